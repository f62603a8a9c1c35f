//! What systemd's watchdog is fed with: rounds of the threads that packets pass, not a timer.
//!
//! A thread hangs because ptrace(2) holds it, it alone: the program knows nothing of the test.

#[expect(dead_code, reason = "the other tests use the rest of it")]
mod support;

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use support::{Place, Recorder};

const PATIENCE: Duration = Duration::from_secs(60);
/// Twenty of the beats that WATCHDOG_USEC asks for in these tests.
const BEATS: Duration = Duration::from_secs(4);

/// The thread of this name.
fn thread(recorder: &Recorder, name: &str) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{}/task", recorder.pid())).unwrap();
    let mut found = tasks.map(|task| task.unwrap().path()).filter(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|found| found.trim_end() == name)
    });
    let task = found.next().unwrap_or_else(|| panic!("there is no thread {name}"));
    Pid::from_raw(task.file_name().unwrap().to_str().unwrap().parse().unwrap())
}

fn fed(recorder: &Recorder) {
    let since = Instant::now();
    while !recorder.told().contains("WATCHDOG=1") {
        assert!(since.elapsed() < PATIENCE, "the watchdog is not fed");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn starves_while_a_thread_hangs(topology: &str, name: &str) {
    let place = Place::new(false);
    let input = format!("pcap_over_ip:\n  - connect: 127.0.0.1:9\ncpus:\n  topology: {topology}\n");
    let recorder = place.start(&place.config_of(&input));
    fed(&recorder);
    fed(&recorder);
    let thread = thread(&recorder, name);
    ptrace::seize(thread, Options::empty()).expect("a thread can be traced");
    ptrace::interrupt(thread).expect("it can be stopped");
    waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
    recorder.told();
    std::thread::sleep(BEATS);
    // The rounds before that are told of once more, however late.
    let fed_by = recorder.told().matches("WATCHDOG=1").count();
    assert!(fed_by <= 1, "{name} hangs and the watchdog is fed {fed_by} times");
    assert_eq!(recorder.get("/v1/status").status, 200, "everything else goes on");
    ptrace::detach(thread, None).expect("it goes on");
    fed(&recorder);
}

#[test]
fn a_lane_that_hangs_is_noticed() {
    starves_while_a_thread_hangs("split", "lane-0");
}

#[test]
fn a_sealer_that_hangs_is_noticed() {
    starves_while_a_thread_hangs("split", "seal-0");
}

#[test]
fn a_lane_that_seals_is_fed_like_others() {
    starves_while_a_thread_hangs("run_to_completion", "lane-0");
}
