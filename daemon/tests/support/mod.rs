//! A recorder as a child process, and a small HTTP client for its socket.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use wirevault_format::pcapng::{BLOCK_EPB, BLOCK_ISB, Blocks, Epb, options};
use wirevault_media::{DirMedia, Media};
use wirevault_query::export::COMMENT_PREFIX;
use wirevault_seal::{FileProvider, KeyProvider};
use wirevault_storage::{CreateOptions, create};
use wirevault_telemetry::clock::SystemClock;

/// Longest wait for anything; machines are shared.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The smallest quota of a store with one lane.
const QUOTA_BYTES: u64 = 256 << 20;
/// Time of the first packet of a file, s.
pub(crate) const FIRST_S: u64 = 1_700_000_000;

/// A temporary store and what belongs to it.
pub(crate) struct Place {
    dir: TempDir,
    pub(crate) store: PathBuf,
    pub(crate) key: Option<PathBuf>,
}

impl Place {
    pub(crate) fn new(sealed: bool) -> Self {
        let dir = TempDir::new().unwrap();
        let store = dir.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let key_path = sealed.then(|| dir.path().join("keys/store.key"));
        let key = key_path
            .as_ref()
            .map(|path| Arc::new(FileProvider::create(path).unwrap()) as Arc<dyn KeyProvider>);
        let options = CreateOptions {
            quota_bytes: Some(QUOTA_BYTES),
            lanes: 1,
            key,
            key_path: key_path.as_ref().map(|it| it.display().to_string()).unwrap_or_default(),
            clock: Arc::new(SystemClock),
        };
        let media: Arc<dyn Media> = Arc::new(DirMedia::open(&store).unwrap());
        let id = wirevault_seal::random::store_id().unwrap();
        create(&[(media, store.display().to_string())], id, &options).unwrap();
        Self { dir, store, key: key_path }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/wirevault.sock")
    }

    /// Writes a pcap file of `packets` frames, `step_us` apart: every third is ARP, the others are
    /// UDP from changing ports to port 53.
    pub(crate) fn capture(&self, name: &str, packets: u32, step_us: u64) -> PathBuf {
        let path = self.path(name);
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, 1] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        for number in 0..packets {
            let us = FIRST_S * 1_000_000 + u64::from(number) * step_us;
            let data = frame(number);
            let length = data.len() as u32;
            for word in [(us / 1_000_000) as u32, (us % 1_000_000) as u32, length, length] {
                file.extend_from_slice(&word.to_le_bytes());
            }
            file.extend_from_slice(&data);
        }
        std::fs::write(&path, file).unwrap();
        path
    }

    /// Writes a configuration that replays `file`.
    pub(crate) fn config(&self, file: &Path, more: &str) -> PathBuf {
        self.config_of(&format!("replay:\n  file: {}\n{more}", file.display()))
    }

    /// Writes a configuration with this input.
    pub(crate) fn config_of(&self, input: &str) -> PathBuf {
        let path = self.path("wirevaultd.yaml");
        let (store, socket) = (self.store.display(), self.socket());
        let key = self.key.as_ref().map(|key| format!("key_file: {}\n", key.display()));
        let text = format!(
            "store: {store}\n{}flush_age: 20ms\ncommit_interval: 10ms\n\
             buffer:\n  size: 4MiB\n  hugepages: off\napi:\n  socket: {}\n{input}",
            key.unwrap_or_default(),
            socket.display()
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts a recorder and waits until it answers.
    pub(crate) fn start(&self, config: &Path) -> Recorder {
        let notify_path = self.path("notify.sock");
        let _ = std::fs::remove_file(&notify_path);
        let notify = UnixDatagram::bind(&notify_path).unwrap();
        notify.set_nonblocking(true).unwrap();
        let mut child = daemon(&["--config", &config.display().to_string()])
            .env("NOTIFY_SOCKET", &notify_path)
            .env("WATCHDOG_USEC", "600000")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let socket = self.socket();
        let since = Instant::now();
        while get(&socket, "/v1/status").is_err() {
            if let Some(status) = child.try_wait().unwrap() {
                let output = child.wait_with_output().unwrap();
                panic!("{status}: {}", String::from_utf8_lossy(&output.stderr));
            }
            assert!(since.elapsed() < PATIENCE, "the recorder does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Recorder { child: Some(child), socket, notify }
    }
}

fn frame(number: u32) -> Vec<u8> {
    let [_, _, high, low] = number.to_be_bytes();
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    if number.is_multiple_of(3) {
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
        frame.extend([0, 0, 0, 0, 0, 0, 10, 0, high, low]);
    } else {
        frame.extend([8, 0, 0x45, 0, 0, 32, high, low, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1]);
        frame.extend([10, 0, 0, 2, 0x40 | (high & 0x3f), low, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    }
    frame.resize(60, 0);
    frame
}

/// The program with these arguments.
pub(crate) fn daemon(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wirevaultd"));
    command.args(arguments).stdin(Stdio::null()).env_remove("NOTIFY_SOCKET");
    command
}

/// Exit code and both outputs of a run that ends by itself.
pub(crate) fn run(arguments: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = daemon(arguments).output().unwrap();
    let text = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (status.code().unwrap_or(-1), text)
}

/// A running recorder; killed if a test forgets it.
pub(crate) struct Recorder {
    child: Option<Child>,
    pub(crate) socket: PathBuf,
    notify: UnixDatagram,
}

impl Recorder {
    /// What systemd has been told since the last call.
    pub(crate) fn told(&self) -> String {
        let mut told = String::new();
        let mut message = [0; 512];
        while let Ok(length) = self.notify.recv(&mut message) {
            told += &String::from_utf8_lossy(&message[..length]);
        }
        told
    }

    /// Process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().unwrap().id().cast_signed())
    }

    /// Leaves no room for what systemd is to be told.
    pub(crate) fn fill_notify_socket(&self) {
        let stranger = UnixDatagram::unbound().unwrap();
        stranger.connect(self.notify.local_addr().unwrap().as_pathname().unwrap()).unwrap();
        stranger.set_nonblocking(true).unwrap();
        while stranger.send(b"STATUS=full").is_ok() {}
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        get(&self.socket, path).unwrap()
    }

    pub(crate) fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        let head = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        ask(&self.socket, &format!("POST {path}"), &head, body).unwrap()
    }

    /// Waits until the status is as wanted.
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let since = Instant::now();
        loop {
            let status = self.json("/v1/status");
            if wanted(&status) {
                return status;
            }
            assert!(since.elapsed() < PATIENCE, "never: {what}\n{status:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal and waits for the end: exit code, if it has one, and what was logged and
    /// told to systemd.
    pub(crate) fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        kill(self.pid(), signal).unwrap();
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), log + &self.told())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A whole HTTP answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// The last chunk came.
    pub(crate) whole: bool,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Times of the packets in a pcapng answer, and its summary.
    pub(crate) fn packets(&self) -> (Vec<u64>, Value) {
        assert_eq!(self.status, 200, "{}", self.text());
        assert!(self.whole);
        let blocks: Vec<_> = Blocks::new(&self.body).map(Result::unwrap).collect();
        let packets = blocks.iter().filter(|block| block.kind == BLOCK_EPB);
        let times = packets.map(|block| Epb::parse(block).unwrap().ts_ns).collect();
        let last = blocks.last().unwrap();
        assert_eq!(last.kind, BLOCK_ISB);
        let comment = options(&last.body[12..]).next().unwrap().unwrap();
        let comment = String::from_utf8(comment.value.to_vec()).unwrap();
        let json = comment.lines().last().unwrap().strip_prefix(COMMENT_PREFIX).unwrap();
        (times, serde_json::from_str(json).unwrap())
    }
}

pub(crate) fn get(socket: &Path, path: &str) -> io::Result<Answer> {
    ask(socket, &format!("GET {path}"), "", "")
}

/// Sends a request and leaves the connection open for reading.
pub(crate) fn send(socket: &Path, line: &str, head: &str, body: &str) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request =
        format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{head}\r\n{body}");
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

fn ask(socket: &Path, line: &str, head: &str, body: &str) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    // A connection that was broken off ends with what came until then.
    let _ = send(socket, line, head, body)?.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(end) = end else { return Err(io::ErrorKind::UnexpectedEof.into()) };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head[9..12].parse().unwrap();
    let body = &bytes[end + 4..];
    let (body, whole) = match head.contains("transfer-encoding: chunked") {
        true => dechunk(body),
        false => (body.to_vec(), true),
    };
    Ok(Answer { status, body, whole })
}

/// Body of a chunked answer so far, and whether its last chunk came.
pub(crate) fn dechunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(line) = rest.windows(2).position(|two| two == b"\r\n") else {
            return (body, false);
        };
        let length = String::from_utf8_lossy(&rest[..line]).into_owned();
        let length = usize::from_str_radix(&length, 16).unwrap();
        rest = &rest[line + 2..];
        if length == 0 {
            return (body, true);
        }
        if rest.len() < length + 2 {
            body.extend_from_slice(&rest[..length.min(rest.len())]);
            return (body, false);
        }
        body.extend_from_slice(&rest[..length]);
        rest = &rest[length + 2..];
    }
}
