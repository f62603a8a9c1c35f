//! How each recorder is started and stopped, and how what it kept is counted.

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::machine::{TICKS_PER_S, duration};
use crate::sender::RECEIVER;

/// Memory for packets not taken yet, the same for everyone who can be told.
const RING_MIB: usize = 256;
/// A recorder that has not opened its socket by then has failed.
const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(60);
/// A recorder is ready when it used less than [`START_CPU`] in this time. Its socket is there
/// before the memory of ring and buffers is cleared, half a second's work that took longer on a
/// busy machine and was then counted as recording.
const START_REST: Duration = Duration::from_millis(700);
const START_CPU: Duration = Duration::from_millis(30);
/// More than any sender here fills in the usual seconds of a run.
const QUOTA_BYTES_MAX: u64 = 16 << 30;
/// One core's worth of a machine with two.
const CPU: &str = "1";

/// Who records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Recorder {
    /// Ours, sealed and indexed.
    Sealed,
    /// Ours, indexed, in plain text.
    Plaintext,
    /// Stenographer's recorder, with its index.
    Stenotype,
    /// Stenographer's recorder without one.
    StenotypeNoIndex,
    /// A bare reader of the kernel's ring that copies each packet once and keeps nothing.
    Reader,
    /// With a buffer as large as the others'.
    Tcpdump,
    /// With a ring as large as the others'.
    NetsniffNg,
    /// Wireshark's recorder, with a buffer as large as the others'.
    Dumpcap,
}

/// What a recorder used from when it was ready to its end.
#[derive(Debug)]
pub(super) struct Used {
    pub(super) cpu: Duration,
    pub(super) memory_peak_bytes: u64,
}

/// A recorder that runs.
pub(super) struct Started {
    child: Child,
    signal: Signal,
    /// CPU time of all children before it, and its own until it was ready.
    cpu_before: Duration,
}

impl Recorder {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sealed => "wirevault, sealed",
            Self::Plaintext => "wirevault, plaintext",
            Self::Stenotype => "stenotype",
            Self::StenotypeNoIndex => "stenotype, no index",
            Self::Reader => "ring reader with one copy",
            Self::Tcpdump => "tcpdump",
            Self::NetsniffNg => "netsniff-ng",
            Self::Dumpcap => "dumpcap",
        }
    }

    pub(super) const fn is_ours(self) -> bool {
        matches!(self, Self::Sealed | Self::Plaintext)
    }

    /// A recorder of others that keeps packets.
    pub(super) const fn is_peer(self) -> bool {
        !self.is_ours() && !matches!(self, Self::Reader)
    }

    /// The program's path.
    pub(super) fn find(self) -> Result<PathBuf> {
        let program = match self {
            Self::Sealed | Self::Plaintext => return beside_us("wirevaultd"),
            Self::Reader => return Ok(std::env::current_exe()?),
            Self::Stenotype | Self::StenotypeNoIndex => "stenotype",
            Self::Tcpdump => "tcpdump",
            Self::NetsniffNg => "netsniff-ng",
            Self::Dumpcap => "dumpcap",
        };
        let places = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&places)
            .map(|place| place.join(program))
            .find(|path| path.is_file())
            .with_context(|| format!("{program} is not installed"))
    }

    /// Starts it on the receiving interface, its files in `folder`.
    pub(super) fn start(self, folder: &Path, quota_bytes: u64) -> Result<Started> {
        let program = self.find()?;
        if self.is_ours() {
            self.make_store(folder, quota_bytes)?;
        }
        let log = File::create(folder.join("log")).context("log of the recorder")?;
        let cpu_before = children_cpu()?;
        let mut command = Command::new("taskset");
        command.args(["-c", CPU]).arg(program).args(self.arguments(folder)?);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("taskset")?;
        let signal = if self.is_ours() { Signal::SIGTERM } else { Signal::SIGINT };
        let mut started = Started { child, signal, cpu_before };
        started.wait_for_socket(folder).with_context(|| format!("starting {}", self.name()))?;
        started.cpu_before += process_cpu(started.child.id())?;
        Ok(started)
    }

    fn arguments(self, folder: &Path) -> Result<Vec<String>> {
        let path = |name: &str| folder.join(name).display().to_string();
        let line = match self {
            Self::Sealed | Self::Plaintext => vec!["--config".to_owned(), path("config.yaml")],
            Self::Stenotype | Self::StenotypeNoIndex => {
                for name in ["PKT0", "IDX0"] {
                    fs::create_dir(folder.join(name))?;
                }
                let mut line = vec![
                    format!("--dir={}", folder.display()),
                    format!("--iface={RECEIVER}"),
                    format!("--blocks={RING_MIB}"),
                    "--uid=root".to_owned(),
                    "--gid=root".to_owned(),
                    "--seccomp=none".to_owned(),
                    "--blockage_sec=1".to_owned(),
                    "-v".to_owned(),
                ];
                line.extend((self == Self::StenotypeNoIndex).then(|| "--no_index".to_owned()));
                line
            }
            Self::Reader => {
                ["read-ring", RECEIVER, &RING_MIB.to_string()].map(str::to_owned).into()
            }
            Self::Tcpdump => {
                let buffer = (RING_MIB << 10).to_string();
                ["-i", RECEIVER, "-n", "-s", "0", "-Z", "root", "-B", &buffer, "-w"]
                    .map(str::to_owned)
                    .into_iter()
                    .chain([path("packets.pcap")])
                    .collect()
            }
            Self::NetsniffNg => {
                let ring = format!("{RING_MIB}MiB");
                ["--in", RECEIVER, "--silent", "--ring-size", &ring, "--out"]
                    .map(str::to_owned)
                    .into_iter()
                    .chain([path("packets.pcap")])
                    .collect()
            }
            Self::Dumpcap => {
                let buffer = RING_MIB.to_string();
                ["-i", RECEIVER, "-q", "-P", "-B", &buffer, "-w"]
                    .map(str::to_owned)
                    .into_iter()
                    .chain([path("packets.pcap")])
                    .collect()
            }
        };
        Ok(line)
    }

    fn make_store(self, folder: &Path, quota_bytes: u64) -> Result<()> {
        let store = folder.join("store");
        let mut init = Command::new(beside_us("wirevault")?);
        // Nothing may be given up for newer packets: it would be missing in the count.
        let quota = (quota_bytes * 2).clamp(2 << 30, QUOTA_BYTES_MAX);
        init.arg("init").arg(&store).args(["--quota", &quota.to_string()]);
        match self {
            Self::Plaintext => init.arg("--plaintext"),
            _ => init.arg("--key").arg(folder.join("store.key")),
        };
        succeed(&mut init)?;
        let socket = folder.join("socket");
        let mut config = format!(
            "store: {}\ncapture:\n  - interface: {RECEIVER}\n    ring: {RING_MIB}MiB\n\
             buffer:\n  size: {RING_MIB}MiB\napi:\n  socket: {}\n",
            store.display(),
            socket.display()
        );
        if self == Self::Sealed {
            config += &format!("key_file: {}\n", folder.join("store.key").display());
        }
        fs::write(folder.join("config.yaml"), config).context("configuration")
    }

    /// Packets in the files it left.
    pub(super) fn count(self, folder: &Path, frame_bytes: usize) -> Result<u64> {
        match self {
            Self::Sealed | Self::Plaintext => count_store(&folder.join("store")),
            Self::Stenotype | Self::StenotypeNoIndex => count_blocks(&folder.join("PKT0")),
            // It keeps nothing, so its own count must do.
            Self::Reader => {
                let said = fs::read_to_string(folder.join("log"))?;
                said.trim().parse().with_context(|| format!("the reader said: {said}"))
            }
            Self::Tcpdump | Self::NetsniffNg | Self::Dumpcap => {
                count_pcap(&folder.join("packets.pcap"), frame_bytes)
            }
        }
    }
}

impl Started {
    /// Waits until the process has a packet socket of its own.
    fn wait_for_socket(&mut self, folder: &Path) -> Result<()> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status}: {}", fs::read_to_string(folder.join("log"))?);
            }
            // Two lines: a heading, and a socket. Only the recorder has one in this namespace.
            let sockets = fs::read_to_string("/proc/thread-self/net/packet")?;
            if sockets.lines().count() > 1 {
                let before = process_cpu(self.child.id())?;
                std::thread::sleep(START_REST);
                if process_cpu(self.child.id())?.saturating_sub(before) < START_CPU {
                    return Ok(());
                }
            }
            ensure!(
                begin.elapsed() < START_MAX,
                "it did not open a packet socket and come to rest"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end, and waits for that.
    pub(super) fn stop(mut self) -> Result<Used> {
        let pid = self.child.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|it| it.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kill(Pid::from_raw(pid.cast_signed()), self.signal)?;
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > STOP_MAX {
                self.child.kill()?;
                self.child.wait()?;
                bail!("it did not end within {STOP_MAX:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Used {
            cpu: children_cpu()?.saturating_sub(self.cpu_before),
            memory_peak_bytes: peak.unwrap_or(0) << 10,
        })
    }
}

/// CPU time of all children that have ended.
fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok(duration(usage.user_time()) + duration(usage.system_time()))
}

/// CPU time of a process that runs, to 10 ms.
fn process_cpu(pid: u32) -> Result<Duration> {
    let status = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may hold anything; user and system time are fields 14 and 15.
    let fields = status.rsplit_once(") ").context("no name in /proc/PID/stat")?.1;
    let ticks: u64 =
        fields.split(' ').skip(11).take(2).filter_map(|it| it.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_S))
}

fn beside_us(program: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(program);
    ensure!(path.is_file(), "{} is missing: build it with the same profile", path.display());
    Ok(path)
}

fn succeed(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().context("starting it")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

fn count_store(store: &Path) -> Result<u64> {
    let mut segments = Command::new(beside_us("wirevault")?);
    segments.arg("segments").arg("--store").arg(store).arg("--json");
    let rows: serde_json::Value = serde_json::from_slice(&succeed(&mut segments)?)?;
    let rows = rows.as_array().context("the answer is no list of segments")?;
    Ok(rows.iter().filter_map(|row| row["packets"].as_u64()).sum())
}

/// Blocks of TPACKET_V3 as stenotype writes them: 1 MiB each, the packets' count at byte 12.
fn count_blocks(folder: &Path) -> Result<u64> {
    const BLOCK_BYTES: u64 = 1 << 20;
    let mut packets = 0;
    for entry in fs::read_dir(folder)? {
        let mut file = File::open(entry?.path())?;
        let blocks = file.metadata()?.len() / BLOCK_BYTES;
        for block in 0..blocks {
            let mut head = [0; 16];
            file.seek(std::io::SeekFrom::Start(block * BLOCK_BYTES))?;
            file.read_exact(&mut head)?;
            packets += u64::from(u32::from_ne_bytes([head[12], head[13], head[14], head[15]]));
        }
    }
    Ok(packets)
}

/// Whole records of a pcap file whose packets are all of one size.
fn count_pcap(path: &Path, frame_bytes: usize) -> Result<u64> {
    const FILE_HEADER_BYTES: u64 = 24;
    const RECORD_HEADER_BYTES: u64 = 16;
    let mut file = BufReader::new(File::open(path)?);
    let bytes = file.get_ref().metadata()?.len();
    let record_bytes = RECORD_HEADER_BYTES + frame_bytes as u64;
    let mut head = [0; 12];
    if file.seek(std::io::SeekFrom::Start(FILE_HEADER_BYTES)).is_ok()
        && file.read_exact(&mut head).is_ok()
    {
        let captured = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
        ensure!(captured as usize == frame_bytes, "records of {captured} bytes, not {frame_bytes}");
    }
    Ok(bytes.saturating_sub(FILE_HEADER_BYTES) / record_bytes)
}
