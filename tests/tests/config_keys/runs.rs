//! The starts of the daemon that the cases look at.
//!
//! | run | configuration | traffic |
//! |---|---|---|
//! | `plain` | the shortest there is | packets of 1000 B to two ports |
//! | `changed` | everything that can be changed for interfaces | the same, on two interfaces |
//! | `short` | short waits and segments, one lane on a CPU | a packet each 10 ms |
//! | `replay` | a file, the rest as it is | |
//! | `paced` | the same file in real time, rarely flushed | |
//!
//! Those for the keys of sources are in [`crate::sources`], those for what is left out in
//! [`crate::policies`], those for who may ask in [`crate::access`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde_json::Value;
use wirevault_format::pcapng::Reader;
use wirevault_testkit::net::{Namespace, Sender, Stamp, wait_for};
use wirevault_tests::captures::{Packet, write_pcap};
use wirevault_tests::recorder::{Exported, Recorder, Site, read_pcapng};
use wirevault_tests::store::text;

use crate::access::Access;
use crate::backup::Backed;
use crate::cloudwatch::CloudWatch;
use crate::kms::Kms;
use crate::policies::Policies;
use crate::sources::Sources;

/// Long enough for what a configuration here puts off for 10 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Packets to each of two ports.
pub(crate) const PACKETS: u64 = 50;
pub(crate) const PACKET_BYTES: u16 = 1000;
/// The user and the group that a configuration lets in; the kernel has no names for them.
pub(crate) const USER: u32 = 64_001;
pub(crate) const GROUP: u32 = 64_002;
/// Packets of the file, and what lies between two of them.
pub(crate) const FILE_PACKETS: u64 = 60_000;
const FILE_STEP_NS: u64 = 10_000_000;

/// What was seen of one run.
pub(crate) struct Seen {
    pub(crate) site: Site,
    pub(crate) status: Value,
    pub(crate) segments: Vec<Value>,
    pub(crate) packets: Vec<Exported>,
    /// Names of the interfaces in an answer.
    pub(crate) interfaces: Vec<String>,
    pub(crate) log: String,
    /// Flushes of the device's cache.
    pub(crate) syncs: u64,
    /// Time since the run began, or since packets were sent.
    pub(crate) elapsed: Duration,
    /// The same when the status and the flushes were asked for.
    pub(crate) looked: Duration,
    /// How often each interface was told to take everything.
    pub(crate) promiscuity: BTreeMap<String, u64>,
    /// Interfaces with an XDP program.
    pub(crate) programs: BTreeSet<&'static str>,
    /// What [`USER`], in no group, is answered.
    pub(crate) to_user: String,
    /// What a member of [`GROUP`] is answered.
    pub(crate) to_member: String,
    /// CPUs that the first lane's thread may use, as /proc writes them.
    pub(crate) lane_cpus: String,
    /// Names of its threads.
    pub(crate) threads: BTreeSet<String>,
    pub(crate) socket: PathBuf,
    pub(crate) socket_mode: Option<u32>,
}

/// All of them.
pub(crate) struct Runs {
    pub(crate) plain: Seen,
    pub(crate) changed: Seen,
    pub(crate) short: Seen,
    pub(crate) replay: Seen,
    pub(crate) paced: Seen,
    pub(crate) sources: Sources,
    pub(crate) policies: Policies,
    pub(crate) access: Access,
    /// Nothing without the emulator.
    pub(crate) kms: Option<Kms>,
    /// Nothing without the emulator.
    pub(crate) cloudwatch: Option<CloudWatch>,
    pub(crate) backed: Backed,
    /// The last CPU that this process may use.
    pub(crate) cpu: usize,
    pub(crate) without_store: Output,
    pub(crate) with_foreign_volume: Output,
    pub(crate) with_foreign_device: Output,
    pub(crate) without_interface: Output,
    pub(crate) without_moved_key: Output,
    pub(crate) without_file: Output,
}

impl Runs {
    pub(crate) fn make(ns: &Namespace) -> Self {
        for (a, b) in [("va", "vb"), ("vc", "vd"), ("vg", "vh")] {
            ns.add_veth(a, b);
        }
        let cpu = last_cpu();
        let plain = plain(ns);
        let (changed, short, without_moved_key) = changed_and_short(ns, cpu);
        let (replay, paced) = replayed(ns);
        let sources = Sources::make(ns, &plain.site.file("answer.pcapng"));
        let (site, socket) = (Site::new("272MiB", 1), plain.socket.display());
        let store = site.store().display().to_string();
        let with = |more: &str| site.refuse(&format!("api:\n  socket: {socket}\n{more}"));
        let capture = "capture:\n  - interface: va\n";
        Self {
            cpu,
            without_store: with(capture),
            with_foreign_volume: with(&format!("store: [{store}, /tmp]\n{capture}")),
            with_foreign_device: with(&format!("store: {store}\nvfio: /tmp\n{capture}")),
            without_interface: with(&format!("store: {store}\ncapture:\n  - interface: nope0\n")),
            without_moved_key,
            without_file: with(&format!("store: {store}\nreplay:\n  file: /nowhere.pcap\n")),
            kms: Kms::make(),
            cloudwatch: CloudWatch::make(),
            backed: Backed::make(),
            plain,
            changed,
            short,
            replay,
            paced,
            sources,
            policies: Policies::make(ns),
            access: Access::make(),
        }
    }
}

fn plain(ns: &Namespace) -> Seen {
    let site = site(1);
    let socket = site.file("socket");
    let config = format!(
        "store: {}\napi:\n  socket: {}\ncapture:\n  - interface: va\n",
        site.store().display(),
        socket.display()
    );
    let recorder = site.start(&config, &socket);
    let begin = Instant::now();
    send("vb");
    wait_until_stored(&recorder, 2 * PACKETS);
    let elapsed = begin.elapsed();
    look(ns, site, recorder, elapsed)
}

/// Both at once, for each waits 10 s.
fn changed_and_short(ns: &Namespace, cpu: usize) -> (Seen, Seen, Output) {
    let site_changed = site(2);
    let moved = site_changed.file("moved.key");
    fs::rename(site_changed.key(), &moved).expect("the key is moved");
    let (config, socket) = changed_config(&site_changed, "");
    let without_moved_key = site_changed.refuse(&config);
    // A directory is no device that could be taken from the kernel: that is told, and it is used.
    let second = site_changed.file("volume-1");
    let more = format!("key_file: {}\nvfio: {}\n", moved.display(), second.display());
    let (config, _) = changed_config(&site_changed, &more);
    let changed = site_changed.start(&config, &socket);

    let site_short = site(1);
    let socket = site_short.file("socket");
    let config = format!(
        "store: {}\nlog: debug\nsandbox: off\nflush_age: 1ms\nsegment_age: 10s\ncpus:\n  \
         lanes: [{cpu}]\n  topology: split\nsnapshots:\n  folder: {}\n\
         api:\n  socket: {}\n  groups: [{GROUP}]\ncapture:\n  - interface: vg\n",
        site_short.store().display(),
        site_short.file("state").display(),
        socket.display()
    );
    let short = site_short.start(&config, &socket);
    let (begin_short, mut sender, mut number) = (Instant::now(), Sender::on("vh"), 0);

    let begin = Instant::now();
    send("vb");
    send("vd");
    wait_for("the end of a segment by age", PATIENCE, || {
        let stamp = Stamp { run: 0, number, sent_ns: 0, flow: 1, bytes: PACKET_BYTES, vlan: 0 };
        sender.send(&stamp.frame());
        number += 1;
        let rows = segments(&short);
        rows.iter().any(|row| row["state"] == "closed").then_some(())
    });
    let short = look(ns, site_short, short, begin_short.elapsed());
    // One of two ports is not recorded on the second interface.
    wait_until_stored(&changed, 3 * PACKETS);
    wait_for("a checkpoint by time", PATIENCE, || {
        (changed.status()["snapshots"]["checkpoint"].as_u64() > Some(2)).then_some(())
    });
    wait_for("heads by time", PATIENCE, || (heads(&site_changed) > 2).then_some(()));
    let elapsed = begin.elapsed();
    (look(ns, site_changed, changed, elapsed), short, without_moved_key)
}

/// Heads of the audit log in the place for objects.
pub(crate) fn heads(site: &Site) -> usize {
    let stores = fs::read_dir(site.file("objects").join("heads")).into_iter().flatten().flatten();
    stores.map(|store| fs::read_dir(store.path()).expect("of a store").count()).sum()
}

fn changed_config(site: &Site, more: &str) -> (String, PathBuf) {
    let (socket, spare) = (site.file("folder/other.sock"), site.file("spare"));
    let objects = site.file("objects");
    [&spare, &objects].into_iter().for_each(|it| fs::create_dir_all(it).expect("folder"));
    let config = format!(
        "store: [{}, {}]\n{more}reserve: 5%\nhold_share: 20%\nflush_age: 10s\nlog: error\n\
         spares: {}\naudit:\n  anchor: [{}, 'file://{}']\n  anchor_every: 1s\n\
         snapshots:\n  folder: {}\n  every: 1s\n  keep: 2\n\
         buffer:\n  size: 8MiB\n  hugepages: off\ncpus:\n  topology: run_to_completion\n\
         api:\n  socket: {}\n  users: [{USER}]\n\
         capture:\n  - interface: va\n    lanes: 2\n    snaplen: 200\n    promiscuous: false\n    \
         budget: 512MiB\n    ring: 4MiB\n  - interface: vc\n    filter: udp dst port {}\n",
        site.store().display(),
        site.file("volume-1").display(),
        spare.display(),
        site.file("heads").display(),
        objects.display(),
        site.file("state").display(),
        socket.display(),
        Stamp::port(1)
    );
    (config, socket)
}

fn replayed(ns: &Namespace) -> (Seen, Seen) {
    let run = |more: &str, rest: &str, done: fn(&Value) -> bool| {
        let site = site(1);
        let file = site.file("in.pcap");
        write_pcap(&file, &file_packets());
        let socket = site.file("socket");
        let config = format!(
            "store: {}\napi:\n  socket: {}\n{rest}replay:\n  file: {}\n{more}",
            site.store().display(),
            socket.display(),
            file.display()
        );
        let begin = Instant::now();
        let recorder = site.start(&config, &socket);
        wait_for("the replay", PATIENCE, || done(&recorder.status()).then_some(()));
        fs::remove_file(&file).expect("the file was there");
        let elapsed = begin.elapsed();
        look(ns, site, recorder, elapsed)
    };
    let replay = run("", "", |status| status["lanes"][0]["stored"] == FILE_PACKETS);
    let paced = run(
        "  speed: realtime\n  interface: renamed0\n",
        "log: trace\nflush_age: 1ms\ncommit_interval: 10s\n",
        |status| {
            let lane = |field: &str| status["lanes"][0][field].as_u64();
            lane("received") > Some(200) && lane("stored") > Some(0)
        },
    );
    (replay, paced)
}

/// Packets of the file, the last ten minutes after the first.
pub(crate) fn file_packets() -> Vec<Packet> {
    let packet = |number: u64| {
        let ts_ns = 1_700_000_000_000_000_000 + number * FILE_STEP_NS;
        let stamp = Stamp { run: 9, number, sent_ns: 0, flow: 1, bytes: 100, vlan: 0 };
        Packet { ts_ns, orig_len: 100, data: stamp.frame() }
    };
    (0..FILE_PACKETS).map(packet).collect()
}

/// A store in a folder that everybody may enter, for the sockets in it.
pub(crate) fn site(volumes: usize) -> Site {
    let site = Site::new(if volumes == 1 { "272MiB" } else { "1GiB" }, volumes);
    let folder = site.file("");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("its mode");
    site
}

/// [`PACKETS`] to each of the ports of runs 0 and 1.
pub(crate) fn send(interface: &str) {
    let mut sender = Sender::on(interface);
    for number in 0..PACKETS {
        for run in [0, 1] {
            let flow = 1000 + number as u16;
            let bytes = PACKET_BYTES;
            sender.send(&Stamp { run, number, sent_ns: 0, flow, bytes, vlan: 0 }.frame());
        }
    }
}

/// A number of all lanes together.
pub(crate) fn sum(status: &Value, field: &str) -> u64 {
    let lanes = status["lanes"].as_array().expect("lanes");
    lanes.iter().map(|lane| lane[field].as_u64().expect("a count")).sum()
}

fn wait_until_stored(recorder: &Recorder, packets: u64) {
    let stored = || sum(&recorder.status(), "stored");
    wait_for("everything is stored", PATIENCE, || (stored() >= packets).then_some(()));
}

/// Looks at everything, and ends the recorder.
pub(crate) fn look(ns: &Namespace, site: Site, recorder: Recorder, elapsed: Duration) -> Seen {
    let (file, since) = (site.file("answer.pcapng"), Instant::now());
    // A chunk counts as stored once it is durable, and is found once its index is in the catalog.
    wait_for("an answer", PATIENCE, || {
        let output = recorder.ask("query", &["-w", &text(&file)]);
        matches!(output.status.code(), Some(0 | 3)).then_some(())
    });
    let metrics = recorder.get("/v1/metrics").expect("metrics");
    let syncs = metrics.lines().filter(|line| line.starts_with("wirevault_nvme_syncs_count_total"));
    let socket = recorder.socket().to_owned();
    let facts = fs::metadata(&socket).ok().filter(|facts| facts.file_type().is_socket());
    let seen = Seen {
        status: recorder.status(),
        segments: segments(&recorder),
        packets: read_pcapng(&file),
        interfaces: interfaces(&file),
        syncs: syncs.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum(),
        elapsed,
        looked: elapsed + since.elapsed(),
        promiscuity: ["va", "vc", "vg"].map(|name| (name.to_owned(), promiscuity(ns, name))).into(),
        programs: ["va", "vc", "vg"].into_iter().filter(|name| has_program(ns, name)).collect(),
        to_user: status_for(&socket, USER, 64_000),
        to_member: status_for(&socket, 64_000, GROUP),
        lane_cpus: lane_cpus(recorder.pid()),
        threads: threads(recorder.pid()),
        socket_mode: facts.map(|facts| facts.mode() & 0o777),
        socket,
        log: recorder.log(),
        site,
    };
    assert!(recorder.terminate().success(), "{}", seen.log);
    seen
}

fn segments(recorder: &Recorder) -> Vec<Value> {
    let rows = recorder.get("/v1/segments").expect("segments");
    serde_json::from_str(&rows).expect("a list")
}

fn interfaces(file: &Path) -> Vec<String> {
    let mut reader = Reader::new(BufReader::new(File::open(file).expect("an answer")));
    while reader.next_event().expect("a readable answer").is_some() {}
    let names = reader.interfaces().iter().filter_map(|interface| interface.name.clone());
    names.collect()
}

fn promiscuity(ns: &Namespace, interface: &str) -> u64 {
    link(ns, interface)["promiscuity"].as_u64().expect("a count")
}

fn has_program(ns: &Namespace, interface: &str) -> bool {
    link(ns, interface)["xdp"].is_object()
}

fn link(ns: &Namespace, interface: &str) -> Value {
    let links = ns.ip(&["-json", "-details", "link", "show", interface]);
    let links: Value = serde_json::from_slice(&links).expect("JSON of ip");
    links[0].clone()
}

/// What the recorder says when somebody asks for its status.
pub(crate) fn status_for(socket: &Path, user: u32, group: u32) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-s", "--unix-socket"]).arg(socket).arg("http://localhost/v1/status");
    let output = curl.uid(user).gid(group).output().expect("curl");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn threads(pid: Pid) -> BTreeSet<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let names =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.map(|name| name.trim_end().to_owned()).collect()
}

fn lane_cpus(pid: Pid) -> String {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let folders = threads.map(|thread| thread.expect("a thread").path());
    let of_lane = |folder: &PathBuf| {
        fs::read_to_string(folder.join("comm")).is_ok_and(|name| name.trim() == "lane-0")
    };
    let status =
        folders.filter(of_lane).filter_map(|at| fs::read_to_string(at.join("status")).ok());
    let line = |status: String| {
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        Some(list.trim().to_owned())
    };
    status.filter_map(line).next().unwrap_or_default()
}

fn last_cpu() -> usize {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("own CPUs");
    let last = (0..CpuSet::count()).rfind(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    last.expect("a CPU")
}
