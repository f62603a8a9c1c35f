//! What somebody can do who took the recorder over, by a packet or a question: calls are made in
//! its own threads, and the kernel's answers are looked at.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::unistd::Pid;
use wirevault_testkit::net::{Namespace, Sender, Stamp, wait_for};
use wirevault_tests::injected::{call, thread};
use wirevault_tests::recorder::{PATIENCE, Recorder, Site, lane_count, program};

/// Source: asm-generic/errno-base.h.
const EPERM: i64 = -1;
const EACCES: i64 = -13;

/// Opens a file for reading, in a thread of the recorder.
fn open(thread: Pid, path: &Path) -> i64 {
    let at = libc::AT_FDCWD as u64;
    call(thread, libc::SYS_openat, &path.display().to_string(), |path| [at, path, 0, 0, 0, 0])
}

fn send(interface: &str, from: u64, packets: u64) {
    let mut sender = Sender::on(interface);
    for number in from..from + packets {
        let stamp = Stamp { run: 0, number, sent_ns: 0, flow: 1, bytes: 100, vlan: 0 };
        sender.send(&stamp.frame());
    }
}

fn stores(recorder: &Recorder, packets: u64) {
    wait_for("the packets are stored", PATIENCE, || {
        (lane_count(&recorder.status(), "stored") >= packets).then_some(())
    });
}

#[test]
fn no_thread_starts_a_program_or_opens_what_is_not_the_recorders() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let foreign = tempfile::tempdir().expect("folder");
    let secret = foreign.path().join("secret");
    fs::write(&secret, "s").expect("a file");

    let (site, spare) = (Site::new("1GiB", 2), foreign.path().join("spare"));
    fs::create_dir(&spare).expect("folder");
    let more = format!("sandbox: 'on'\nspares: {}\n", spare.display());
    let recorder = site.record("va", &more);
    let status = fs::read_to_string(format!("/proc/{}/status", recorder.pid())).expect("status");
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    let sandbox = recorder.status()["sandbox"].clone();
    assert_eq!(sandbox["why_not"].as_array().map(Vec::len), Some(0), "{sandbox}");
    let rights = sandbox["rights"].to_string();
    assert!(rights.contains("CAP_NET_RAW") && !rights.contains("CAP_SYS_PTRACE"), "{rights}");

    for name in ["wirevaultd", "lane-0"] {
        let of = thread(recorder.pid(), name);
        assert_eq!(open(of, &secret), EACCES, "{name} opens a foreign file");
        assert!(open(of, &site.store()) >= 0, "{name} opens its own folder");
        let run = call(of, libc::SYS_execve, "/bin/true", |path| [path, 0, 0, 0, 0, 0]);
        assert_eq!(run, EPERM, "{name} starts a program");
        let both = (libc::PROT_WRITE | libc::PROT_EXEC) as u64;
        let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let code = call(of, libc::SYS_mmap, "", |_| [0, 4096, both, private, u64::MAX, 0]);
        assert_eq!(code, EPERM, "{name} has memory that is written and run");
        let family = libc::AF_VSOCK as u64;
        let socket =
            call(of, libc::SYS_socket, "", |_| [family, libc::SOCK_STREAM as u64, 0, 0, 0, 0]);
        assert_eq!(socket, EPERM, "{name} has a socket of a strange family");
    }

    // It goes on: records, answers, and takes volumes from where they may come from.
    send("vb", 0, 50);
    stores(&recorder, 50);
    let count = recorder.ask("query", &["--count", "udp"]);
    assert_eq!(String::from_utf8_lossy(&count.stdout).trim(), "50", "{count:?}");
    let replace = |by: &Path| {
        let mut command = Command::new(program("wirevault"));
        command.args(["volume", "replace", "1"]).arg(by).arg("--yes");
        let said = command.arg("--socket").arg(recorder.socket()).output().expect("wirevault");
        String::from_utf8_lossy(&said.stderr).into_owned()
    };
    let other = foreign.path().join("other");
    fs::create_dir(&other).expect("folder");
    let said = replace(&other);
    assert!(said.contains("`spares` would have to name it"), "{said}");
    let said = replace(&spare);
    assert!(said.contains("works"), "only the old volume keeps it out: {said}");
    assert!(recorder.terminate().success());
    assert!(!site.file("socket").exists(), "it is removed at the end");

    // Without it all that is possible, so that the answers above are the sandbox's.
    let recorder = site.record("va", "sandbox: off\n");
    let lane = thread(recorder.pid(), "lane-0");
    assert!(open(lane, &secret) >= 0, "a foreign file");
    send("vb", 50, 50);
    stores(&recorder, 50);
    assert!(recorder.terminate().success());
}
