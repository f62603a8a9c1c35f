//! One case for each key: what is seen with it, and with its default.

use std::collections::BTreeSet;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use wirevault_testkit::net::Stamp;

use crate::runs::{FILE_PACKETS, PACKET_BYTES, PACKETS, Runs, Seen, file_packets, sum};

/// What a key does.
pub(crate) struct Case {
    pub(crate) key: &'static str,
    pub(crate) effect: &'static str,
    pub(crate) check: fn(&Runs),
}

const fn case(key: &'static str, effect: &'static str, check: fn(&Runs)) -> Case {
    Case { key, effect, check }
}

pub(crate) const CASES: &[Case] = &[
    case("store", "where segments go; its other volumes are checked; absent: a fault", |runs| {
        for seen in [&runs.plain, &runs.changed] {
            let volumes = seen.status["volumes"].as_array().expect("volumes");
            assert_eq!(volumes[0]["path"], seen.site.store().display().to_string());
            assert!(seen.site.store().join("000000.pcapng").exists());
        }
        let second = runs.changed.site.file("volume-1").display().to_string();
        assert_eq!(runs.changed.status["volumes"][1]["path"], second);
        refused(&runs.without_store, 2, "store");
        refused(&runs.with_foreign_volume, 2, "store[1]");
    }),
    case("key_file", "the key is found where it was moved to; else exit code 4", |runs| {
        refused(&runs.without_moved_key, 4, "store.key");
        assert_eq!(runs.changed.status["sealed"], true);
        assert!(!runs.changed.packets.is_empty(), "and what it sealed is read");
    }),
    case("capture", "one interface is recorded, or two", |runs| {
        assert_eq!(names(&runs.plain), ["va"].into());
        assert_eq!(names(&runs.changed), ["va", "vc"].into());
    }),
    case("capture[].interface", "whose packets are taken; an absent one is refused", |runs| {
        assert_eq!(runs.plain.interfaces, ["va"]);
        assert_eq!(runs.short.interfaces, ["vg"]);
        refused(&runs.without_interface, 6, "nope0");
    }),
    case("capture[].lanes", "one lane, or two that share the packets", |runs| {
        assert_eq!(lanes(&runs.plain, "va").len(), 1);
        assert!(lanes(&runs.plain, "va")[0]["fanout"].is_null());
        let shared = lanes(&runs.changed, "va");
        assert_eq!(shared.len(), 2);
        assert!(shared.iter().all(|lane| lane["fanout"].is_string()), "{shared:?}");
        let received = shared.iter().map(|lane| lane["received"].as_u64());
        assert_eq!(received.map(Option::unwrap_or_default).sum::<u64>(), 2 * PACKETS);
    }),
    case("capture[].snaplen", "packets are whole, or cut with their length kept", |runs| {
        let whole = usize::from(PACKET_BYTES);
        assert!(runs.plain.packets.iter().all(|packet| packet.data.len() == whole));
        assert_eq!(sum(&runs.plain.status, "cut"), 0);
        let cut = runs.changed.packets.iter().filter(|packet| packet.data.len() == 200);
        assert_eq!(cut.filter(|packet| packet.wire_len == u32::from(PACKET_BYTES)).count(), 100);
        assert_eq!(sum(&runs.changed.status, "cut"), 2 * PACKETS);
    }),
    case("capture[].promiscuous", "the interface is told to take everything, or not", |runs| {
        assert_eq!(runs.plain.promiscuity["va"], 1);
        assert_eq!(runs.changed.promiscuity["va"], 0);
        assert_eq!(runs.changed.promiscuity["vc"], 1);
    }),
    case("capture[].filter", "all packets are stored, or those it selects", |runs| {
        assert_eq!(sum(&runs.plain.status, "shed"), 0);
        assert_eq!(runs.plain.packets.len() as u64, 2 * PACKETS);
        let filtered = &lanes(&runs.changed, "vc")[0];
        assert_eq!((&filtered["shed"], &filtered["stored"]), (&PACKETS.into(), &PACKETS.into()));
        let stamps = runs.changed.packets.iter().filter(|packet| packet.data.len() > 200);
        let stamps: Vec<_> = stamps.filter_map(|packet| Stamp::read(&packet.data)).collect();
        assert!(stamps.len() as u64 == PACKETS && stamps.iter().all(|stamp| stamp.run == 1));
    }),
    case("capture[].ring", "the kernel's memory for each lane", |runs| {
        assert_eq!(lanes(&runs.plain, "va")[0]["ring_bytes"], 64 << 20);
        for lane in lanes(&runs.changed, "va") {
            assert_eq!(lane["ring_bytes"], 4 << 20);
        }
        assert_eq!(lanes(&runs.changed, "vc")[0]["ring_bytes"], 64 << 20);
    }),
    case("replay.file", "the file's packets instead of an interface's", |runs| {
        assert_eq!(runs.plain.status["lanes"][0]["source"], "packet_mmap");
        assert_eq!(runs.replay.status["lanes"][0]["source"], "replay");
        let expected = file_packets();
        assert_eq!(runs.replay.packets.len(), expected.len());
        let same = runs.replay.packets.iter().zip(&expected);
        assert!(same.into_iter().all(|(a, b)| (a.ts_ns, &a.data) == (b.ts_ns, &b.data)));
        refused(&runs.without_file, 2, "/nowhere.pcap");
    }),
    case(
        "replay.speed",
        "ten minutes are read at once, or as slowly as they were recorded",
        |runs| {
            assert_eq!(sum(&runs.replay.status, "received"), FILE_PACKETS);
            assert_eq!(runs.replay.status["state"], "ended");
            let due = runs.paced.elapsed.as_millis() as u64 / 10;
            // The status was asked some time after that.
            let received = sum(&runs.paced.status, "received");
            assert!(received < (due + 1000).min(FILE_PACKETS), "{received} received, {due} due");
            assert_eq!(runs.paced.status["state"], "recording");
        },
    ),
    case("replay.interface", "the name that packets are stored under", |runs| {
        assert!(!runs.replay.interfaces.contains(&"renamed0".to_owned()));
        assert_eq!(runs.paced.interfaces, ["renamed0"]);
    }),
    case("buffer.size", "bytes and chunks of the buffer", |runs| {
        for (seen, bytes) in [(&runs.plain, 64_u64 << 20), (&runs.changed, 8 << 20)] {
            let buffer = &seen.status["buffer"];
            assert_eq!(
                (&buffer["bytes"], &buffer["chunks"]),
                (&bytes.into(), &(bytes >> 18).into())
            );
        }
    }),
    case("buffer.hugepages", "hugepages or why not, or ordinary pages unasked", |runs| {
        let buffer = &runs.plain.status["buffer"];
        let has = buffer["hugepages"] != "ordinary";
        assert!(has || buffer["why_not"][0].is_string(), "{buffer}");
        let buffer = &runs.changed.status["buffer"];
        assert_eq!(buffer["hugepages"], "ordinary");
        let why_not = buffer["why_not"].as_array().expect("reasons");
        assert!(!why_not.iter().any(|why| why.to_string().contains("hugepages")), "{buffer}");
    }),
    case("flush_age", "a packet waits a moment, or 10 s for others", |runs| {
        assert!(runs.plain.elapsed < Duration::from_secs(9), "{:?}", runs.plain.elapsed);
        assert!(runs.changed.elapsed > Duration::from_secs(9), "{:?}", runs.changed.elapsed);
    }),
    case("commit_interval", "many flushes, or one in 10 s", |runs| {
        // Both write a chunk for every packet; one comes about each 10 ms, for 10 s and for some.
        let seen = &runs.short;
        assert!(seen.syncs >= 6, "{} in {:?}", seen.syncs, seen.elapsed);
        let (seen, spare) = (&runs.paced, 3);
        let due = seen.elapsed.as_secs() / 10 + spare;
        assert!(seen.syncs <= due, "{} in {:?}", seen.syncs, seen.elapsed);
    }),
    case("segment_age", "a segment of an hour, or of 10 s", |runs| {
        assert!(runs.plain.segments.iter().all(|row| row["state"] == "open"));
        let closed = runs.short.segments.iter().filter(|row| row["state"] == "closed");
        let reasons: BTreeSet<_> = closed.map(|row| row["close_reason"].to_string()).collect();
        assert_eq!(reasons, ["\"age\"".to_owned()].into());
        assert!(runs.short.elapsed >= Duration::from_secs(10), "{:?}", runs.short.elapsed);
    }),
    case("api.socket", "where it answers", |runs| {
        assert!(runs.changed.socket.ends_with("folder/other.sock"));
        for seen in [&runs.plain, &runs.changed] {
            assert_eq!(seen.socket_mode, Some(0o666), "{}", seen.socket.display());
            assert!(!seen.socket.exists(), "it is removed at the end");
        }
    }),
    case("api.users", "a user is refused, or answered", |runs| {
        assert!(runs.plain.to_user.contains("may not ask"), "{}", runs.plain.to_user);
        assert!(runs.changed.to_user.contains("\"lanes\""), "{}", runs.changed.to_user);
        assert!(runs.changed.to_member.contains("may not ask"), "{}", runs.changed.to_member);
    }),
    case("api.groups", "a member of a group is refused, or answered", |runs| {
        assert!(runs.plain.to_member.contains("may not ask"), "{}", runs.plain.to_member);
        assert!(runs.short.to_member.contains("\"lanes\""), "{}", runs.short.to_member);
        assert!(runs.short.to_user.contains("may not ask"), "{}", runs.short.to_user);
    }),
    case("cpus.lanes", "the lane's thread runs where the system likes, or on one CPU", |runs| {
        assert!(runs.plain.status["lanes"][0]["cpu"].is_null());
        assert_eq!(runs.short.status["lanes"][0]["cpu"], runs.cpu);
        assert_eq!(runs.short.lane_cpus, runs.cpu.to_string());
    }),
    case("log", "what changes is logged, or less, or more with each level", |runs| {
        assert!(runs.plain.log.contains(" INFO "), "{}", runs.plain.log);
        // Once these two logged what the default does.
        let levels = |seen: &Seen| [" DEBUG ", " TRACE "].map(|level| seen.log.contains(level));
        assert_eq!(levels(&runs.plain), [false, false]);
        assert_eq!(levels(&runs.short), [true, false], "{}", runs.short.log);
        assert_eq!(levels(&runs.paced), [true, true], "{}", runs.paced.log);
        for level in [" INFO ", " WARN "] {
            assert!(!runs.changed.log.contains(level), "{}", runs.changed.log);
        }
    }),
];

/// Exit code and a part of what is said.
fn refused(output: &Output, code: i32, part: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(part), "{said}");
}

fn names(seen: &Seen) -> BTreeSet<&str> {
    let lanes = seen.status["lanes"].as_array().expect("lanes");
    lanes.iter().filter_map(|lane| lane["interface"].as_str()).collect()
}

fn lanes<'a>(seen: &'a Seen, interface: &str) -> Vec<&'a Value> {
    let lanes = seen.status["lanes"].as_array().expect("lanes");
    lanes.iter().filter(|lane| lane["interface"] == interface).collect()
}
