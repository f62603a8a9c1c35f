//! Stores in temporary folders: made and filled by the program, asked through the libraries or the
//! program.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use tempfile::TempDir;
use wirevault_format::Interface;
use wirevault_index::{Catalog, KeySource, open_store};
use wirevault_query::{PacketOut, QueryError, Request, Sink, Summary};
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::captures::{Packet, write_pcap};
use crate::recorder::program;

/// The smallest quota: segments of 16 MiB.
pub const QUOTA: &str = "256MiB";

/// A store, its key beside it, and a folder for files.
pub struct TestStore {
    folder: TempDir,
    sealed: bool,
}

impl TestStore {
    /// An empty store with one volume.
    pub fn new(sealed: bool) -> Self {
        Self::with_volumes(sealed, 1)
    }

    /// An empty store with several volumes, for as many lanes.
    ///
    /// # Panics
    /// If `wirevault init` fails.
    pub fn with_volumes(sealed: bool, volumes: usize) -> Self {
        Self::with(sealed, volumes, if volumes == 1 { QUOTA } else { "1GiB" })
    }

    /// An empty store with this quota as well.
    ///
    /// # Panics
    /// If `wirevault init` fails.
    pub fn with(sealed: bool, volumes: usize, quota: &str) -> Self {
        Self::with_lanes(sealed, volumes, volumes, quota)
    }

    /// As `with`, for so many lanes.
    ///
    /// # Panics
    /// If `wirevault init` fails.
    pub fn with_lanes(sealed: bool, volumes: usize, lanes: usize, quota: &str) -> Self {
        let store = Self { folder: folder(), sealed };
        store.init(volumes, lanes, quota);
        store
    }

    /// An empty store on a plain file of so many bytes that stands for a device.
    ///
    /// # Panics
    /// If `wirevault init` fails.
    pub fn on_device(sealed: bool, bytes: u64, quota: &str) -> Self {
        let store = Self { folder: folder(), sealed };
        File::create(store.dir()).and_then(|file| file.set_len(bytes)).expect("a device");
        store.init(1, 1, quota);
        store
    }

    fn init(&self, volumes: usize, lanes: usize, quota: &str) {
        let mut args: Vec<String> = vec!["init".to_owned(), text(&self.dir())];
        args.extend(["--quota".to_owned(), quota.to_owned()]);
        args.extend(["--lanes".to_owned(), lanes.to_string()]);
        for number in 1..volumes {
            args.extend(["--volume".to_owned(), text(&self.volume(number))]);
        }
        match self.sealed {
            true => args.extend(["--key".to_owned(), text(&self.key_file())]),
            false => args.push("--plaintext".to_owned()),
        }
        succeed(&wirevault(&args));
    }

    /// A store that holds these packets, imported from one file.
    pub fn holding(sealed: bool, packets: &[Packet]) -> Self {
        let store = Self::new(sealed);
        let file = store.path("original.pcap");
        write_pcap(&file, packets);
        succeed(&store.import(&file));
        store
    }

    /// `wirevault import`.
    pub fn import(&self, file: &Path) -> Output {
        wirevault(&["import", "--store", &text(&self.dir()), &text(file)])
    }

    /// A file beside the store.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The store's first volume.
    pub fn dir(&self) -> PathBuf {
        self.path("store")
    }

    /// A volume.
    pub fn volume(&self, number: usize) -> PathBuf {
        if number == 0 { self.dir() } else { self.path(&format!("volume-{number}")) }
    }

    /// The key file of a sealed store.
    pub fn key_file(&self) -> PathBuf {
        self.path("store.key")
    }

    /// Whether packets are encrypted.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// The store as it is now, read only.
    ///
    /// # Panics
    /// If it does not open.
    pub fn catalog(&self) -> Catalog {
        let store = open_store(&self.dir(), &KeySource::Recorded).expect("the store opens");
        store.catalog(SystemClock.unix_ns())
    }

    /// Asks the store in this process.
    ///
    /// # Panics
    /// If the question is refused.
    pub fn ask(&self, request: &Request) -> Answer {
        ask(&self.catalog(), request).unwrap_or_else(|error| panic!("{request:?}: {error}"))
    }

    /// `wirevault query --store` with these arguments; the summary is read.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn query(&self, args: &[&str]) -> (Output, Option<Value>) {
        let summary = self.path("summary.json");
        let _ = fs::remove_file(&summary);
        let (store, file) = (text(&self.dir()), text(&summary));
        let head = ["query", "--store", &store, "--summary", &file];
        let output = wirevault(&[&head[..], args].concat());
        let json = fs::read_to_string(&summary).ok();
        (output, json.map(|json| serde_json::from_str(&json).expect("a summary is JSON")))
    }

    /// `wirevault verify --json`: its exit code and report.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn verify(&self) -> (i32, Value) {
        let output = wirevault(&["verify", "--store", &text(&self.dir()), "--json"]);
        let report = serde_json::from_slice(&output.stdout);
        (code(&output), report.unwrap_or_else(|_| panic!("verify: {}", words(&output))))
    }

    /// Files of segments on all volumes, by name.
    pub fn segment_files(&self) -> Vec<PathBuf> {
        let mut files = self.files();
        files.retain(|path| path.extension() == Some(OsStr::new("pcapng")));
        files
    }

    /// All files of all volumes, those of the audit log among them.
    ///
    /// # Panics
    /// If a folder cannot be read.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut folders: Vec<_> =
            (0..).map(|n| self.volume(n)).take_while(|volume| volume.is_dir()).collect();
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(folder).expect("a folder");
            let paths = entries.map(|entry| entry.expect("an entry").path());
            let (inner, outer): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
            folders.extend(inner);
            files.extend(outer);
        }
        files.sort();
        files
    }
}

/// A temporary folder in the target folder: on a disk, where memory file systems do not hide what
/// direct writes need.
///
/// # Panics
/// If it cannot be made.
pub fn folder() -> TempDir {
    let parent = program("wirevault").with_file_name("store-tests");
    fs::create_dir_all(&parent).expect("a folder");
    tempfile::tempdir_in(parent).expect("a folder")
}

/// What an answer holds.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its statement.
    pub summary: Summary,
    /// Its packets, in order.
    pub packets: Vec<Packet>,
}

/// Asks a catalog in this process.
///
/// # Errors
/// As the query says.
pub fn ask(catalog: &Catalog, request: &Request) -> Result<Answer, QueryError> {
    let mut sink = Collect::default();
    let summary = wirevault_query::run(catalog, request, &mut sink, &AtomicBool::new(false))?;
    Ok(Answer { summary, packets: sink.0 })
}

/// A question for a filter over all time.
pub fn all(filter: &str) -> Request {
    Request { filter: filter.to_owned(), ..Request::default() }
}

/// A question that only counts.
pub fn count() -> Request {
    Request { count_only: true, ..Request::default() }
}

/// A question for every packet of a window.
pub fn window(since_ns: u64, until_ns: u64) -> Request {
    Request { since_ns: Some(since_ns), until_ns: Some(until_ns), ..Request::default() }
}

#[derive(Default)]
struct Collect(Vec<Packet>);

impl Sink for Collect {
    fn interface(&mut self, _: u32, _: &Interface) -> io::Result<()> {
        Ok(())
    }

    fn packet(&mut self, packet: &PacketOut<'_>) -> io::Result<ControlFlow<()>> {
        let PacketOut { ts_ns, orig_len, data, .. } = *packet;
        self.0.push(Packet { ts_ns, orig_len, data: data.to_vec() });
        Ok(ControlFlow::Continue(()))
    }
}

/// Runs `wirevault`.
///
/// # Panics
/// If it cannot be started.
pub fn wirevault(args: &[impl AsRef<OsStr>]) -> Output {
    Command::new(program("wirevault")).args(args).output().expect("wirevault runs")
}

/// Exit code of a program that ended by itself.
///
/// # Panics
/// If a signal ended it.
pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {}", words(output)))
}

/// Everything a program said.
pub fn words(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// Checks that a program said it succeeded.
///
/// # Panics
/// If it did not.
pub fn succeed(output: &Output) {
    assert!(output.status.success(), "{}", words(output));
}

/// A path as text.
///
/// # Panics
/// If it is not UTF-8.
pub fn text(path: &Path) -> String {
    path.to_str().expect("paths of tests are UTF-8").to_owned()
}
