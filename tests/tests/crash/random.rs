//! Killed at random moments, again and again.

use std::ops::Range;
use std::time::{Duration, Instant};

use wirevault_media::sim::SplitMix64;
use wirevault_testkit::net::{Namespace, now_ns, wait_for};
use wirevault_tests::recorder::{PATIENCE, Recorder, Site, lane_count};

use crate::load::{Load, check, options, topology};

const KILLS: u16 = 50;
/// Time between the first acknowledgement and the kill, ms.
const LIFE_MS: Range<u64> = 20..1200;
/// The smallest there is for one lane: segments of 16 MiB. It holds about 10 s of the load, so
/// places are used again all the time.
const QUOTA: &str = "272MiB";

/// What one life of the recorder promised and what was found of it.
struct Life {
    sent: u64,
    acknowledged: u64,
    /// Age of the oldest packet that was not promised, when it was asked.
    lag_ms: u64,
    found: u64,
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now_ns());
    println!("SEED={seed}");
    let mut random = SplitMix64::new(seed);
    let begin = Instant::now();
    let site = Site::new(QUOTA, 1);
    let mut recorder = site.record("va", &options(0));
    let mut lives = Vec::new();
    for run in 0..KILLS {
        let life_ms = LIFE_MS.start + random.below(LIFE_MS.end - LIFE_MS.start);
        let mut life = live_and_die(recorder, run, Duration::from_millis(life_ms));
        recorder = site.record("va", &options(run + 1));
        (life.found, _) = check(&site, &recorder, run, life.acknowledged, life.sent);
        lives.push(life);
    }
    assert!(recorder.terminate().success());
    let verify = site.offline("verify", &[]);
    assert_eq!(verify.status.code(), Some(0), "{verify:?}");
    tell(&lives, begin.elapsed());
}

/// Sends until the recorder is killed. Gives what it promised just before.
fn live_and_die(recorder: Recorder, run: u16, life: Duration) -> Life {
    let load = Load::start(run);
    let first = wait_for("the first acknowledgement", PATIENCE, || {
        Some(lane_count(&recorder.status(), "watermark")).filter(|watermark| *watermark > 0)
    });
    std::thread::sleep(life);
    let status = recorder.status();
    recorder.kill();
    let sent = load.stop();
    assert_eq!(status["layout"]["topology"], topology(run), "{status}");
    // Then a packet's sequence in the lane is the number that its sender gave it.
    assert_eq!(lane_count(&status, "dropped"), 0, "{status}");
    let acknowledged = lane_count(&status, "watermark");
    assert!(acknowledged >= first);
    let lag_ms = lane_count(&status, "unacknowledged_age_ms");
    Life { sent, acknowledged, lag_ms, found: 0 }
}

fn tell(lives: &[Life], took: Duration) {
    let sum = |of: fn(&Life) -> u64| lives.iter().map(of).sum::<u64>();
    let (sent, acknowledged, found) = (sum(|l| l.sent), sum(|l| l.acknowledged), sum(|l| l.found));
    let mut lags: Vec<_> = lives.iter().map(|life| life.lag_ms).collect();
    lags.sort_unstable();
    let share = |part: u64| part as f64 * 100.0 / sent.max(1) as f64;
    println!("{} kills under load in {:.0} s", lives.len(), took.as_secs_f64());
    println!("sent          {sent:>10} packets until the recorder was gone");
    println!("acknowledged  {acknowledged:>10} = {:.2} %, all found once", share(acknowledged));
    println!("found         {found:>10} = {:.2} %", share(found));
    if let (Some(median), Some(longest)) = (lags.get(lags.len() / 2), lags.last()) {
        println!(
            "oldest packet not acknowledged at the kill: median {median} ms, at most {longest} ms"
        );
    }
}
