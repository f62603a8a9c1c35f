//! The real programs: `wirevaultd` as a child process, and `wirevault` asking it or its store.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use wirevault_format::pcapng::{Event, Reader};
use wirevault_testkit::certificates::rsa_halves;
use wirevault_testkit::net::{Stamp, wait_for};

use crate::aws::Aws;
use crate::stepper::Stepper;

/// Limit for anything that takes a moment; loose, because machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A program of the workspace, built beside this test.
///
/// # Panics
/// If it is not there.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    let folder = test.parent().and_then(Path::parent).expect("target folder");
    let program = folder.join(name);
    let way_out = "cargo build -p wirevault-cli -p wirevault-daemon -p xtask";
    assert!(program.exists(), "{} is not built: {way_out}", program.display());
    program
}

/// A sealed store in a temporary folder, with its key, its socket and a configuration.
pub struct Site {
    folder: TempDir,
    volumes: usize,
    /// What the programs have in their environment beside ours.
    environment: Vec<(&'static str, String)>,
}

impl Site {
    /// Makes a store of `volumes` volumes.
    pub fn new(quota: &str, volumes: usize) -> Self {
        let site = Self::empty(volumes, Vec::new());
        site.init(quota, &["--key", &site.key().display().to_string()]);
        site
    }

    /// Makes a store of one volume that is sealed with the key of another.
    pub fn with_key_of(quota: &str, other: &Self) -> Self {
        let site = Self::empty(1, Vec::new());
        fs::copy(other.key(), site.key()).expect("a key");
        site.init(quota, &["--key", &site.key().display().to_string()]);
        site
    }

    /// Makes a store of one volume whose key is one of AWS KMS, and with which all programs ask
    /// this one.
    pub fn with_kms_key(aws: &Aws, key: &str) -> Self {
        let site = Self::empty(1, aws.environment().into());
        site.init("272MiB", &["--kms-key", key]);
        site
    }

    /// Makes a store of one volume that this machine cannot read, and gives the private half that
    /// can.
    pub fn sealed_one_way() -> (Self, PathBuf) {
        let site = Self::empty(1, Vec::new());
        let [private, public] = rsa_halves(site.folder.path(), "pair");
        site.init("272MiB", &["--seal-to", &public.display().to_string()]);
        (site, private)
    }

    /// The same store, asked with another environment.
    pub fn set_environment(&mut self, environment: Vec<(&'static str, String)>) {
        self.environment = environment;
    }

    fn empty(volumes: usize, environment: Vec<(&'static str, String)>) -> Self {
        Self { folder: tempfile::tempdir().expect("folder"), volumes, environment }
    }

    fn init(&self, quota: &str, key: &[&str]) {
        let mut init = self.program("wirevault");
        init.arg("init").arg(self.store()).args(["--quota", quota]).args(key);
        for volume in 1..self.volumes {
            init.arg("--volume").arg(self.path(&format!("volume-{volume}")));
        }
        let output = init.output().expect("wirevault init");
        assert!(output.status.success(), "{output:?}");
    }

    /// One of the project's programs, in the site's environment.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Makes a store on a file of `bytes` bytes that stands for a device which two machines have.
    pub fn shared(bytes: u64) -> Self {
        let site = Self::empty(1, Vec::new());
        let device = File::create(site.store()).expect("device");
        device.set_len(bytes).expect("device");
        let mut init = Command::new(program("wirevault"));
        init.arg("init").arg(site.store()).args(["--shared", "--key"]).arg(site.key());
        let output = init.output().expect("wirevault init");
        assert!(output.status.success(), "{output:?}");
        site
    }

    /// Starts a recorder of `interface` as if on a machine of this name, and waits until it
    /// answers. `more` is added to the configuration, behind the section `api`. Each machine has
    /// its own `/var/lib`, for the audit log.
    pub fn on_machine(&self, machine: &str, interface: &str, more: &str) -> Recorder {
        let (socket, log) = (self.path(&format!("{machine}.socket")), format!("{machine}.log"));
        let (file, files) = (self.path(&format!("{machine}.yaml")), self.path(machine));
        let (store, answers) = (self.store(), socket.display());
        let input = format!("store: {}\ncapture:\n  - interface: {interface}\n", store.display());
        let config = format!("{input}api:\n  socket: {answers}\n{more}");
        fs::write(&file, config).expect("configuration");
        fs::create_dir_all(&files).expect("a folder");
        let log = self.path(&log);
        let to = File::options().create(true).append(true).open(&log).expect("log");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--uts", "sh", "-ec"]);
        let script =
            "echo $0 > /proc/sys/kernel/hostname; mount --bind $1 /var/lib; shift; exec $@";
        command.args([script, machine]).arg(files).arg(program("wirevaultd"));
        command.arg("--config").arg(file).stdout(to.try_clone().expect("log")).stderr(to);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let process = Process::Child(command.spawn().expect("unshare"));
        Recorder { process, socket, log }.answering()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Directory of the store.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// File of the store's key.
    pub fn key(&self) -> PathBuf {
        self.path("store.key")
    }

    /// A file for an answer.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path(name)
    }

    /// Starts a recorder of `interface` in the thread's namespace and waits until it records.
    /// `more` is added to the configuration.
    pub fn record(&self, interface: &str, more: &str) -> Recorder {
        self.start(&self.config(interface, more), &self.path("socket"))
    }

    /// As `record`, of any input: `input` is the rest of the configuration.
    pub fn record_from(&self, input: &str) -> Recorder {
        self.start(&self.config_of(input), &self.path("socket"))
    }

    /// As `record`, under a [`Stepper`].
    pub fn record_stepped(&self, interface: &str, more: &str, without_uring: bool) -> Recorder {
        let command = self.daemon(&self.config(interface, more));
        let stepper = Stepper::start(&command, &self.log(), without_uring);
        self.recorder(Process::Stepped(stepper), &self.path("socket"))
    }

    /// Starts a recorder with this configuration, which names this socket, and waits until it
    /// answers.
    pub fn start(&self, config: &str, socket: &Path) -> Recorder {
        let (mut command, log) = (self.daemon(config), self.log());
        command.stdout(log.try_clone().expect("log")).stderr(log);
        self.recorder(Process::Child(command.spawn().expect("wirevaultd")), socket)
    }

    /// Starts a recorder with a configuration that it must refuse.
    pub fn refuse(&self, config: &str) -> Output {
        self.daemon(config).output().expect("wirevaultd")
    }

    /// Configuration of a recorder of `interface`, with `more` added.
    pub fn config(&self, interface: &str, more: &str) -> String {
        self.config_of(&format!("capture:\n  - interface: {interface}\n{more}"))
    }

    fn config_of(&self, input: &str) -> String {
        let (store, socket) = (self.store(), self.path("socket"));
        format!("store: {}\napi:\n  socket: {}\n{input}", store.display(), socket.display())
    }

    fn daemon(&self, config: &str) -> Command {
        let file = self.path("wirevault.yaml");
        fs::write(&file, config).expect("configuration");
        let mut command = self.program("wirevaultd");
        command.arg("--config").arg(file);
        command
    }

    fn log(&self) -> File {
        File::options().create(true).append(true).open(self.path("log")).expect("log")
    }

    fn recorder(&self, process: Process, socket: &Path) -> Recorder {
        Recorder { process, socket: socket.to_owned(), log: self.path("log") }.answering()
    }

    /// Asks the store, without a daemon.
    pub fn offline(&self, verb: &str, args: &[&str]) -> Output {
        self.offline_of(verb, "", args)
    }

    /// The same with a verb of two words; an empty second one is none.
    pub fn offline_of(&self, verb: &str, of: &str, args: &[&str]) -> Output {
        let mut command = self.program("wirevault");
        command.arg(verb).args(Some(of).filter(|of| !of.is_empty()));
        command.arg("--store").arg(self.store()).args(args).output().expect("wirevault")
    }
}

enum Process {
    Child(Child),
    Stepped(Stepper),
}

impl Process {
    fn pid(&self) -> Pid {
        match self {
            Self::Child(child) => Pid::from_raw(child.id().cast_signed()),
            Self::Stepped(stepper) => stepper.pid(),
        }
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        match self {
            Self::Child(child) => child.try_wait().expect("wait"),
            Self::Stepped(stepper) => stepper.ended(),
        }
    }

    fn kill(&mut self) {
        match self {
            Self::Child(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Self::Stepped(stepper) => stepper.kill(),
        }
    }
}

/// A running `wirevaultd`. Dropping it kills it.
pub struct Recorder {
    process: Process,
    socket: PathBuf,
    log: PathBuf,
}

impl Recorder {
    fn answering(mut self) -> Self {
        wait_for("the recorder's first status", PATIENCE, || {
            if let Some(status) = self.process.ended() {
                panic!("wirevaultd ended at once, {status}:\n{}", self.log());
            }
            self.try_status()
        });
        self
    }

    /// Everything it said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What traces it.
    ///
    /// # Panics
    /// If nothing does.
    pub fn stepper(&self) -> &Stepper {
        match &self.process {
            Process::Stepped(stepper) => stepper,
            Process::Child(_) => panic!("this recorder is not stepped"),
        }
    }

    /// Its status, or nothing when it does not answer, or not to the end.
    pub fn try_status(&self) -> Option<Value> {
        serde_json::from_str(&self.get("/v1/status")?).ok()
    }

    /// What it answers to a GET of this path, or nothing when it does not answer.
    ///
    /// # Panics
    /// If the answer is an error.
    pub fn get(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        // HTTP/1.0 knows no chunked bodies: the answer ends with the connection.
        let request = format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        assert!(head.starts_with("HTTP/1.0 200"), "{answer}");
        Some(body.to_owned())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Process id.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its status, over the socket.
    pub fn status(&self) -> Value {
        self.try_status().unwrap_or_else(|| panic!("no status; log:\n{}", self.log()))
    }

    /// Asks it: `wirevault VERB --socket ...`.
    pub fn ask(&self, verb: &str, args: &[&str]) -> Output {
        self.command(verb).args(args).output().expect("wirevault")
    }

    /// A command of its own: `wirevault VERB --socket ...`, to be started by the caller.
    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(program("wirevault"));
        command.arg(verb).arg("--socket").arg(&self.socket);
        command
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Asks it to end, and waits.
    pub fn terminate(mut self) -> ExitStatus {
        kill(self.process.pid(), Signal::SIGTERM).expect("SIGTERM");
        wait_for("the end of the recorder", PATIENCE, || self.process.ended())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.process.kill();
        if std::thread::panicking() {
            eprintln!("log of wirevaultd:\n{}", self.log());
        }
    }
}

/// A number of the first lane in a status.
pub fn lane_count(status: &Value, field: &str) -> u64 {
    let count = status["lanes"][0][field].as_u64();
    count.unwrap_or_else(|| panic!("no lanes[0].{field} in {status}"))
}

/// Waits until all is well: a device that is late for a moment degrades a recorder, too.
///
/// # Panics
/// If it stays otherwise.
pub fn wait_until_it_records(recorder: &Recorder) {
    wait_for("it records", PATIENCE, || (recorder.status()["state"] == "recording").then_some(()));
}

/// Checks what `wirevault verify --json` said.
///
/// # Panics
/// If anything is damaged.
pub fn nothing_is_damaged(verified: &str) {
    let report: Value = serde_json::from_str(verified).expect("a report");
    assert_eq!(report["damaged"], serde_json::json!([]), "{report}");
}

/// One packet of a file that `wirevault query -w` wrote.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Exported {
    /// Unix nanoseconds.
    pub ts_ns: u64,
    /// Length on the wire.
    pub wire_len: u32,
    /// Captured bytes.
    pub data: Vec<u8>,
}

/// Packets of a pcapng file, in its order.
pub fn read_pcapng(path: &Path) -> Vec<Exported> {
    let mut reader = Reader::new(BufReader::new(File::open(path).expect("an answer's file")));
    let mut packets = Vec::new();
    while let Some(event) = reader.next_event().expect("a readable answer") {
        if let Event::Packet(record) = event {
            let (ts_ns, wire_len) = (record.ts_ns, record.orig_len);
            packets.push(Exported { ts_ns, wire_len, data: record.data.to_vec() });
        }
    }
    packets
}

/// Packets of a classic nanosecond file, read by nothing of ours.
///
/// # Panics
/// If it is not one, or ends within a packet.
pub fn read_pcap(path: &Path) -> Vec<Exported> {
    let bytes = fs::read(path).expect("tcpdump's file");
    let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
    assert_eq!(u32_at(0), 0xa1b2_3c4d, "nanoseconds, this machine's byte order");
    let (mut at, mut packets) = (24, Vec::new());
    while at < bytes.len() {
        let (captured, wire_len) = (u32_at(at + 8) as usize, u32_at(at + 12));
        let ts_ns = u64::from(u32_at(at)) * 1_000_000_000 + u64::from(u32_at(at + 4));
        let data = bytes[at + 16..at + 16 + captured].to_vec();
        packets.push(Exported { ts_ns, wire_len, data });
        at += 16 + captured;
    }
    packets
}

/// How often each stamped packet is there.
pub fn counted(packets: &[Exported]) -> BTreeMap<Stamp, u32> {
    let mut counted = BTreeMap::new();
    for stamp in packets.iter().filter_map(|packet| Stamp::read(&packet.data)) {
        *counted.entry(stamp).or_insert(0) += 1;
    }
    counted
}
