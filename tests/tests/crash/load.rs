//! What a recorder is loaded with, and what must be found of it after a kill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use wirevault_testkit::net::{Sender, Stamp};
use wirevault_tests::recorder::{Recorder, Site, counted, read_pcapng};
use wirevault_tests::store::text;

/// 500 packets of 1000 B each 20 ms: 25 MB/s.
const BURST: u64 = 500;
const BURST_PAUSE: Duration = Duration::from_millis(20);

/// Whose threads are killed: those of every other recorder.
const TOPOLOGIES: [&str; 2] = ["run_to_completion", "split"];

/// What stands behind the interface in the configuration of the recorder that is killed as number
/// `run`.
pub(crate) fn options(run: u16) -> String {
    let topology = topology(run);
    format!("    ring: 64MiB\nbuffer:\n  size: 32MiB\ncpus:\n  topology: {topology}\n")
}

/// The threads of that recorder.
pub(crate) fn topology(run: u16) -> &'static str {
    TOPOLOGIES[usize::from(run) % TOPOLOGIES.len()]
}

/// Packets numbered from 0 are sent on `vb` until this is stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Load {
    pub(crate) fn start(run: u16) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        // A thread that is started here is in the namespace, too.
        let thread = std::thread::spawn(move || {
            let mut sender = Sender::on("vb");
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    let number = count.load(Ordering::Relaxed);
                    let flow = 1000 + (number % 50) as u16;
                    let stamp = Stamp { run, number, sent_ns: 0, flow, bytes: 1000, vlan: 0 };
                    sender.send(&stamp.frame());
                    count.store(number + 1, Ordering::Relaxed);
                }
                std::thread::sleep(BURST_PAUSE);
            }
        });
        Self { stop, sent, thread }
    }

    /// Ends it; gives how many packets were sent.
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("sending");
        self.sent.load(Ordering::Relaxed)
    }
}

/// Checks that every packet below the watermark is there once, and that what else is there follows
/// without a hole. Gives how many are there, and the summary of the answer.
pub(crate) fn check(
    site: &Site,
    recorder: &Recorder,
    run: u16,
    acknowledged: u64,
    sent: u64,
) -> (u64, Value) {
    let (file, summary) = (site.file("answer.pcapng"), site.file("summary.json"));
    let filter = format!("udp dst port {}", Stamp::port(run));
    let output =
        recorder.ask("query", &["-w", &text(&file), "--summary", &text(&summary), &filter]);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
    let found = counted(&read_pcapng(&file));
    for (number, (stamp, times)) in (0..).zip(&found) {
        assert_eq!((stamp.run, stamp.number), (run, number), "life {run} has a hole");
        assert_eq!(*times, 1, "life {run}: packet {number} is there {times} times");
    }
    let found = found.len() as u64;
    assert!(found >= acknowledged, "life {run}: {acknowledged} acknowledged, {found} are there");
    assert!(found <= sent);
    let summary = std::fs::read(&summary).expect("a summary");
    (found, serde_json::from_slice(&summary).expect("a summary is JSON"))
}
