//! One case for each key: what is seen with it, and with its default.

use std::collections::BTreeSet;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use wirevault_testkit::net::{Stamp, wait_for};
use wirevault_tests::imds::{INSTANCE, Imds};
use wirevault_tests::recorder::{PATIENCE, Site, program};
use wirevault_tests::vault::{ROLE, VAULT, VOLUME};

use crate::access::ACCESS_PACKETS;
use crate::backup::{OTHER_ROLE, OTHER_VAULT, OTHER_VOLUME};
use crate::cloud::{on_instance, until};
use crate::policies::{
    CUT, CUT_OFF, DROPPED, PACKETS as POLICY_PACKETS, SAMPLED, SNAPLEN as POLICY_SNAPLEN, SPARED,
    done, found,
};
use crate::runs::{FILE_PACKETS, PACKET_BYTES, PACKETS, Runs, Seen, file_packets, heads, sum};
use crate::sources::{
    CONNECT, COPIES, FLOW_CHOSEN, FLOW_KEPT, FLOW_STRIPPED, FLOWS_MIRRORED, LISTEN_CHANGED,
    LISTEN_PLAIN, MIRRORS, SNAPLEN_STREAM, SNAPLEN_TARGET, TARGET_CHANGED, TARGET_PLAIN,
    TARGETS_DOUBLED, TUNNELLED, TUNNELS, tunnels_of,
};
use crate::tier::Moved;

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
    case(
        "vfio",
        "status says what cannot be driven past the kernel; strangers are refused",
        |runs| {
            let volumes = runs.changed.status["volumes"].as_array().expect("volumes");
            let reasons = |number: usize| volumes[number]["why_not"].to_string();
            assert!(reasons(1).contains("the kernel drives the device: "), "{}", reasons(1));
            assert!(!reasons(0).contains("the kernel drives the device"), "{}", reasons(0));
            refused(&runs.with_foreign_device, 2, "vfio[0]");
        },
    ),
    case("spares", "it may be written, too", |runs| {
        let spare = runs.changed.site.file("spare").display().to_string();
        let writes = |seen: &Seen| seen.status["sandbox"]["writes"].to_string();
        assert!(writes(&runs.changed).contains(&spare), "{}", writes(&runs.changed));
        assert!(!writes(&runs.plain).contains("/spare"), "{}", writes(&runs.plain));
    }),
    case(
        "standby",
        "it waits while the other machine records, and records when it does not",
        |_| {
            let site = Site::shared(1 << 30);
            let primary = site.on_machine("one", "lo", "standby: false\n");
            let standby = site.on_machine("two", "lo", "standby: true\n");
            assert_eq!(standby.status()["state"], "standby");
            assert_eq!(primary.status()["shared"]["writes"], true);
            assert!(primary.terminate().success());
            wait_for("the take-over", PATIENCE, || {
                standby.try_status().filter(|status| status["shared"]["writes"] == true)
            });
        },
    ),
    case("key_file", "the key is found where it was moved to; else exit code 4", |runs| {
        refused(&runs.without_moved_key, 4, "store.key");
        assert_eq!(runs.changed.status["sealed"], true);
        assert!(!runs.changed.packets.is_empty(), "and what it sealed is read");
    }),
    case("kms.endpoint", "KMS is asked there, though nothing else names the place", |runs| {
        let Some(kms) = &runs.kms else { return };
        assert!(kms.calls.iter().any(|call| call == "GenerateDataKey"), "{:?}", kms.calls);
        assert!(kms.calls.iter().any(|call| call == "Decrypt"), "{:?}", kms.calls);
    }),
    case("kms.epoch_age", "the next epoch key takes over, or not for an hour", |runs| {
        let Some(kms) = &runs.kms else { return };
        assert_eq!(kms.plain[0]["epoch_since"], kms.plain[1]["epoch_since"]);
        assert_ne!(kms.changed[0]["epoch_since"], kms.changed[1]["epoch_since"]);
    }),
    case("kms.epochs_ahead", "three epoch keys wait, or two", |runs| {
        let Some(kms) = &runs.kms else { return };
        assert_eq!(kms.plain[0]["epochs_ahead"], 3);
        assert_eq!(kms.changed[0]["epochs_ahead"], 2);
        assert_eq!(kms.plain[0]["condition"], "ready");
    }),
    case("kms.when_exhausted", "no segment is begun when they are used up", |runs| {
        let Some(kms) = &runs.kms else { return };
        assert_eq!(kms.changed[1]["stopped"], false);
        assert_eq!(kms.exhausted["stopped"], true, "{}", kms.exhausted);
    }),
    case("kms.when_revoked", "no segment is begun when KMS refuses the key", |runs| {
        let Some(kms) = &runs.kms else { return };
        assert_eq!(kms.revoked["stopped"], true, "{}", kms.revoked);
    }),
    case("cloudwatch.publish", "metrics are published, or not", |runs| {
        let Some(cloudwatch) = &runs.cloudwatch else { return };
        assert!(cloudwatch.plain.is_null(), "{}", cloudwatch.plain);
        let lost = |metric: &&Value| metric["MetricName"] == "PacketsLost";
        assert_eq!(cloudwatch.metrics.iter().filter(lost).count(), 1, "{:?}", cloudwatch.metrics);
    }),
    case("cloudwatch.namespace", "all metrics stand in it", |runs| {
        let Some(cloudwatch) = &runs.cloudwatch else { return };
        let elsewhere = |metric: &Value| metric["Namespace"] == "Elsewhere";
        assert!(cloudwatch.metrics.iter().all(elsewhere), "{:?}", cloudwatch.metrics);
    }),
    case("cloudwatch.appliance", "it is a dimension of every metric", |runs| {
        let Some(cloudwatch) = &runs.cloudwatch else { return };
        let appliance = serde_json::json!({"Name": "Appliance", "Value": "box"});
        let is_ours = |metric: &Value| metric["Dimensions"][0] == appliance;
        assert!(cloudwatch.metrics.iter().all(is_ours), "{:?}", cloudwatch.metrics);
    }),
    case("cloudwatch.period", "a call each two seconds, not each second", |runs| {
        let Some(cloudwatch) = &runs.cloudwatch else { return };
        let periods: BTreeSet<_> = cloudwatch.markers_s.iter().map(|second| second / 2).collect();
        assert!(periods.len() >= 4 && periods.len() == cloudwatch.markers_s.len());
    }),
    case("cloudwatch.region", "metrics arrive in it", |runs| {
        let Some(cloudwatch) = &runs.cloudwatch else { return };
        assert!(!cloudwatch.metrics.is_empty());
    }),
    case(
        "cloudwatch.endpoint",
        "they are sent there, though nothing else names the place",
        |runs| {
            let Some(cloudwatch) = &runs.cloudwatch else { return };
            assert!(!cloudwatch.metrics.is_empty());
        },
    ),
    case("kms.public_key", "what epoch keys hang from while KMS gives none", |runs| {
        let Some(kms) = &runs.kms else { return };
        assert_eq!(kms.plain[0]["one_way"], Value::Null);
        let name = kms.sealed["one_way"].as_str().expect("a name");
        assert!(name.starts_with("seal:"), "{name}");
    }),
    case("kms.public_key_of", "where its private half is, in what is sealed", |runs| {
        let Some(kms) = &runs.kms else { return };
        let name = kms.sealed["one_way"].as_str().expect("a name");
        assert!(name.ends_with(&kms.sealing), "{name}");
    }),
    case("reserve", "what of the file systems stays free for others", |runs| {
        assert_eq!(runs.plain.status["limits"]["reserve_percent"], 10);
        assert_eq!(runs.changed.status["limits"]["reserve_percent"], 5);
        let conditions = ["healthy", "pressured", "degraded", "full", "failed"];
        let named = |value: &Value| conditions.iter().any(|it| value == it);
        assert!(named(&runs.plain.status["condition"]), "{}", runs.plain.status);
        assert!(named(&runs.plain.status["volumes"][0]["condition"]));
    }),
    case("hold_share", "what copies for holds may take", |runs| {
        let share = |seen: &Seen, percent: u64| {
            let status = &seen.status;
            let volumes = status["volumes"].as_array().expect("volumes").iter();
            let quotas = volumes.map(|it| it["quota_bytes"].as_u64().expect("a quota"));
            let bytes: u64 = quotas.map(|bytes| bytes * percent / 100).sum();
            assert_eq!(status["holds"]["budget_bytes"], bytes, "{status}");
        };
        share(&runs.plain, 10);
        share(&runs.changed, 20);
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
    case("capture[].budget", "the segments of both its lanes count against it", |runs| {
        assert_eq!(runs.plain.status["limits"]["budgets"], Value::Array(Vec::new()));
        let budgets = runs.changed.status["limits"]["budgets"].as_array().expect("budgets");
        assert_eq!((budgets.len(), &budgets[0]["lanes"]), (1, &serde_json::json!([0, 1])));
        assert_eq!(budgets[0]["budget_bytes"], 512 << 20);
        assert!(budgets[0]["used_bytes"].as_u64() > Some(0));
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
    case("capture[].source", "a packet socket, and why, or AF_XDP with its program", |runs| {
        let plain = lanes(&runs.plain, "va")[0];
        assert_eq!(plain["source"], "packet_mmap");
        assert!(notes(plain).contains("packet_mmap, because its driver has no zero-copy"));
        assert!(runs.plain.programs.is_empty());
        let others = &runs.sources.others;
        for name in ["va", "vc"] {
            let lane = lanes(others, name)[0];
            assert_eq!((&lane["source"], &lane["clocks"][0]), (&"af_xdp".into(), &"xdp".into()));
            assert!(notes(lane).contains("af_xdp, as configured"), "{lane}");
        }
        assert_eq!(others.programs, ["va", "vc"].into());
    }),
    case("capture[].udp_ports", "everything is taken, or packets to these ports", |runs| {
        let others = &runs.sources.others;
        let (some, all) = (lanes(others, "va")[0], lanes(others, "vc")[0]);
        // What AF_XDP leaves to the machine is not even received.
        assert_eq!((&some["received"], &some["stored"]), (&PACKETS.into(), &PACKETS.into()));
        let sent = 2 * PACKETS + TUNNELLED * TUNNELS.len() as u64;
        assert_eq!((&all["received"], &all["stored"]), (&sent.into(), &sent.into()));
        refused(&runs.sources.with_stripped_ports, 2, "capture[0].udp_ports");
    }),
    case("capture[].busy_poll", "the kernel is asked to let the lane poll, or not", |runs| {
        let others = &runs.sources.others;
        assert!(notes(lanes(others, "va")[0]).contains("busy polling is on"));
        assert!(!notes(lanes(others, "vc")[0]).contains("busy polling"));
    }),
    // On a card that can: not shown, no such card here.
    case("capture[].hardware_time", "the kernel's time, or a card that has none", |runs| {
        assert_eq!(runs.plain.status["lanes"][0]["clocks"].to_string(), r#"["software"]"#);
        refused(&runs.sources.with_hardware_time, 6, "does not stamp received packets");
    }),
    case("capture[].decap", "packets as they came, or what is inside", |runs| {
        let others = &runs.sources.others;
        assert_eq!(tunnels_of(others, FLOW_KEPT), [KEPT, KEPT, KEPT]);
        assert_eq!(tunnels_of(others, FLOW_STRIPPED)[0], STRIPPED);
        let counts = ["vc", "vi", "vk"].map(|name| lanes(others, name)[0]["stripped"].as_u64());
        assert_eq!(counts, [Some(0), Some(2 * TUNNELLED), Some(TUNNELLED)]);
    }),
    case("capture[].decap_tunnels", "GENEVE is removed, or not if it is not named", |runs| {
        let others = &runs.sources.others;
        assert_eq!(tunnels_of(others, FLOW_STRIPPED)[2], STRIPPED);
        assert_eq!(tunnels_of(others, FLOW_CHOSEN)[2], KEPT);
    }),
    case("capture[].vxlan_ports", "VXLAN is known by its own port, or by another", |runs| {
        let others = &runs.sources.others;
        assert_eq!(tunnels_of(others, FLOW_STRIPPED)[..2], [STRIPPED, KEPT]);
        assert_eq!(tunnels_of(others, FLOW_CHOSEN)[..2], [KEPT, STRIPPED]);
    }),
    case("capture[].duplicates", "second copies are marked, or not", |runs| {
        let marked = |name: &str| lanes(&runs.sources.doubled, name)[0]["duplicates"].as_u64();
        let [marking, keeping, _] = ["va", "vi", "vk"].map(str::to_owned);
        assert_eq!([marked(&marking), marked(&keeping)], [Some(COPIES), Some(0)]);
    }),
    case("capture[].duplicates_window", "20 ms are too long between copies, or not", |runs| {
        let marked = |name: &str| lanes(&runs.sources.doubled, name)[0]["duplicates"].as_u64();
        let [long, _, short] = ["va", "vi", "vk"].map(str::to_owned);
        assert_eq!([marked(&long), marked(&short)], [Some(COPIES), Some(0)]);
    }),
    case("pcap_over_ip", "no senders, or three entries beside interfaces", |runs| {
        let of = |seen: &Seen| {
            let lanes = seen.status["lanes"].as_array().expect("lanes").iter();
            lanes.filter(|lane| lane["source"] == "pcap_over_ip").count()
        };
        assert_eq!((of(&runs.plain), of(&runs.sources.others)), (0, 4));
        refused(&runs.sources.without_sender, 2, "pcap_over_ip[0].listen");
    }),
    case("pcap_over_ip[].listen", "where senders are waited for", |runs| {
        for (place, count) in [(LISTEN_CHANGED, 2), (LISTEN_PLAIN, 1)] {
            let lanes = lanes(&runs.sources.others, place);
            assert_eq!(lanes.len(), count);
            assert!(lanes.iter().all(|lane| lane["received"] == 2 * PACKETS), "{lanes:?}");
        }
    }),
    case("pcap_over_ip[].connect", "who is gone to", |runs| {
        let lane = lanes(&runs.sources.others, CONNECT)[0];
        assert_eq!((&lane["state"], &lane["stored"]), (&"running".into(), &(2 * PACKETS).into()));
        assert!(notes(lane).contains(&format!("connected to {CONNECT}")), "{lane}");
    }),
    case("pcap_over_ip[].lanes", "one of two senders at a time, or both", |runs| {
        // The streams are equal and their senders stay connected.
        let received = |place| {
            let lanes = lanes(&runs.sources.others, place).into_iter();
            lanes.map(|lane| lane["received"].as_u64().unwrap_or_default()).sum::<u64>()
        };
        assert_eq!(received(LISTEN_PLAIN), 2 * PACKETS);
        assert_eq!(received(LISTEN_CHANGED), 4 * PACKETS);
    }),
    case("pcap_over_ip[].interface", "the name in the stream, or the one given", |runs| {
        // The stream is the answer of the plain run.
        assert_eq!(runs.plain.interfaces, ["va"]);
        let names = &runs.sources.others.interfaces;
        assert!(names.contains(&"far0".to_owned()), "{names:?}");
        let streamed = names.iter().filter(|name| *name == "va");
        assert!(streamed.count() >= 2, "once of AF_XDP, once of the streams: {names:?}");
    }),
    case("pcap_over_ip[].snaplen", "packets are whole, or cut with their length kept", |runs| {
        let others = &runs.sources.others;
        for lane in lanes(others, LISTEN_CHANGED) {
            assert_eq!((&lane["cut"], &lane["stored"]), (&PACKETS.into(), &PACKETS.into()));
        }
        assert_eq!(lanes(others, LISTEN_PLAIN)[0]["cut"], 0);
        assert_eq!(cut_to(others, SNAPLEN_STREAM), 2 * PACKETS);
    }),
    case("pcap_over_ip[].filter", "all packets are stored, or those it selects", |runs| {
        let others = &runs.sources.others;
        for lane in lanes(others, LISTEN_CHANGED) {
            assert_eq!((&lane["shed"], &lane["stored"]), (&PACKETS.into(), &PACKETS.into()));
        }
        let lane = lanes(others, LISTEN_PLAIN)[0];
        assert_eq!((&lane["shed"], &lane["stored"]), (&0.into(), &(2 * PACKETS).into()));
    }),
    case("policies", "none, or those that are for the lane", |runs| {
        let count = |seen: &Seen, lane: usize| {
            seen.status["lanes"][lane]["policies"].as_array().map(Vec::len).unwrap_or_default()
        };
        let shed = &runs.policies.shed;
        assert_eq!([count(&runs.plain, 0), count(shed, 0), count(shed, 1)], [0, 4, 3]);
        assert_eq!(found(shed, SPARED), 2 * POLICY_PACKETS, "no policy is for them");
    }),
    case("policies[].name", "what status calls it", |runs| {
        let policies = runs.policies.shed.status["lanes"][0]["policies"].as_array();
        let names = policies.expect("policies").iter().map(|policy| policy["name"].as_str());
        let names: Vec<_> = names.flatten().collect();
        assert_eq!(names, ["only-va", "first", "some", "heads"]);
    }),
    case("policies[].action", "packets are left out, cut, or spared", |runs| {
        let status = &runs.policies.shed.status;
        assert_eq!(done(status, 0, "only-va")["shed"], POLICY_PACKETS);
        assert_eq!(done(status, 0, "heads")["cut"], POLICY_PACKETS);
        let spared = found(&runs.policies.pressed, SPARED);
        assert_eq!(spared, found(&runs.policies.pressed, CUT), "none of either is left out");
    }),
    case("policies[].filter", "the packets it is for, and no others", |runs| {
        let seen = &runs.policies.shed;
        assert_eq!(found(seen, CUT), 2 * POLICY_PACKETS);
        let shed = ["only-va", "first", "some", "heads"].map(|name| done(&seen.status, 0, name));
        let shed = shed.map(|policy| policy["shed"].as_u64().expect("a count"));
        assert_eq!(seen.status["lanes"][0]["shed"], shed.iter().sum::<u64>());
    }),
    case("policies[].interface", "one interface, or all; a strange one is refused", |runs| {
        assert_eq!(found(&runs.policies.shed, DROPPED), POLICY_PACKETS, "those of the other");
        refused(&runs.policies.with_strange_interface, 2, "policies[0].interface");
    }),
    case("policies[].flow_bytes", "two of three packets of each flow", |runs| {
        let seen = &runs.policies.shed;
        assert_eq!(found(seen, CUT_OFF), 2 * (POLICY_PACKETS / 3 * 2));
        assert_eq!(done(&seen.status, 1, "first")["shed"], POLICY_PACKETS / 3);
        refused(&runs.policies.with_cutoff_of_nothing, 2, "policies[0].flow_bytes");
    }),
    case("policies[].one_in", "some flows, each with all its packets", |runs| {
        let port = Stamp::port(SAMPLED).to_be_bytes();
        let packets = runs.policies.shed.packets.iter();
        let mut flows = std::collections::BTreeMap::new();
        for packet in packets.filter(|packet| packet.data[36..38] == port) {
            *flows.entry(packet.data[34..36].to_vec()).or_insert(0) += 1;
        }
        // Each of two interfaces has three packets of a flow. Both keep the same of twenty flows;
        // all or none of them once in half a million runs.
        assert!(flows.values().all(|packets| *packets == 6), "{flows:?}");
        assert!((1..20).contains(&flows.len()), "{flows:?}");
    }),
    case("policies[].snaplen", "whole packets, or their first bytes", |runs| {
        let cut = |seen: &Seen| {
            let cut = seen.packets.iter().filter(|packet| packet.data.len() == POLICY_SNAPLEN);
            cut.filter(|packet| packet.wire_len == u32::from(PACKET_BYTES)).count() as u64
        };
        assert_eq!([cut(&runs.plain), cut(&runs.policies.shed)], [0, 2 * POLICY_PACKETS]);
    }),
    case("pressure", "no rungs, or four that hold while the buffer is in use", |runs| {
        let rungs = |status: &Value| {
            let policies = status["lanes"][0]["policies"].as_array().expect("policies").iter();
            policies.filter(|policy| policy["rung"] == true).count()
        };
        assert_eq!(rungs(&runs.policies.shed.status), 0);
        assert_eq!(rungs(&runs.policies.under_pressure), 4);
    }),
    case("pressure[].name", "what status calls it", |runs| {
        let status = &runs.policies.under_pressure;
        for name in ["coarse", "first", "heads", "rest"] {
            assert_eq!(done(status, 0, name)["active"], true, "{name}");
        }
    }),
    case("pressure[].action", "chunks without flows, packets left out or cut", |runs| {
        let status = &runs.policies.under_pressure;
        assert!(status["lanes"][0]["filtered_chunks"].as_u64() > Some(0));
        assert_eq!(sum(&runs.plain.status, "filtered_chunks"), 0);
        let [shed, cut] = ["shed", "cut"].map(|count| count_of(status, count));
        assert!(shed("first") > 0 && shed("rest") > 0 && cut("heads") > 0, "{status}");
        assert_eq!((shed("heads"), cut("first"), cut("rest")), (0, 0, 0));
    }),
    case("pressure[].enter", "rungs are entered in order; falling marks are refused", |runs| {
        refused(&runs.policies.with_falling_rungs, 2, "pressure[1].enter");
    }),
    // That rungs are left is shown where a device is slowed: `tests/tests/books/pressure.rs`.
    case("pressure[].leave", "a mark above `enter` is refused", |runs| {
        refused(&runs.policies.with_leave_above_enter, 2, "pressure[0].leave");
    }),
    case("pressure[].filter", "what it is not for is stored whatever the pressure", |runs| {
        let seen = &runs.policies.pressed;
        let (first, rest) = (done(&seen.status, 0, "first"), done(&seen.status, 0, "rest"));
        let shed = [first, rest].map(|rung| rung["shed"].as_u64().expect("a count"));
        let sent = found(seen, CUT);
        let stored = found(seen, DROPPED) + found(seen, CUT_OFF);
        assert_eq!(stored + shed.iter().sum::<u64>(), 2 * sent, "of two ports of four");
    }),
    case("pressure[].flow_bytes", "what is behind the first bytes of a flow", |runs| {
        assert!(count_of(&runs.policies.under_pressure, "shed")("first") > 0);
    }),
    case("pressure[].snaplen", "the first bytes of packets that came meanwhile", |runs| {
        let seen = &runs.policies.pressed;
        let heads = seen.packets.iter().filter(|packet| packet.data.len() == POLICY_SNAPLEN);
        assert_eq!(heads.count() as u64, count_of(&seen.status, "cut")("heads"));
    }),
    case("mirror_targets", "no targets, or two beside interfaces", |runs| {
        let of = |seen: &Seen| {
            let lanes = seen.status["lanes"].as_array().expect("lanes").iter();
            lanes.filter(|lane| lane["source"] == "udp_target").count()
        };
        assert_eq!((of(&runs.plain), of(&runs.sources.others)), (0, 3));
    }),
    case("mirror_targets[].listen", "where mirrors send to; absent: a fault", |runs| {
        for target in [TARGET_PLAIN, TARGET_CHANGED] {
            assert_eq!(of_target(runs, target, "received"), 2 * MIRRORS, "{target}");
        }
        refused(&runs.sources.without_target, 2, "mirror_targets[0].listen");
    }),
    case("mirror_targets[].tunnel", "VXLAN is understood, or GENEVE", |runs| {
        // Both were sent both.
        for (target, flow) in [TARGET_PLAIN, TARGET_CHANGED].into_iter().zip(FLOWS_MIRRORED) {
            assert_eq!(of_target(runs, target, "unreadable"), 2 * MIRRORS, "{target}");
            let ports = runs.sources.others.packets.iter().map(|packet| &packet.data[34..36]);
            let found = ports.filter(|port| **port == flow.to_be_bytes()).count() as u64;
            assert_eq!(found, of_target(runs, target, "stored"), "{target}");
        }
    }),
    case("mirror_targets[].lanes", "one lane, or two that share the packets", |runs| {
        let others = &runs.sources.others;
        let of = |target: &str| lanes(others, &format!("udp {target}"));
        assert_eq!((of(TARGET_PLAIN).len(), of(TARGET_CHANGED).len()), (1, 2));
        assert!(of(TARGET_PLAIN)[0]["fanout"].is_null());
        for lane in of(TARGET_CHANGED) {
            assert!(lane["received"].as_u64() > Some(0), "{lane}");
        }
    }),
    case("mirror_targets[].snaplen", "packets are whole, or cut with their length kept", |runs| {
        assert_eq!(of_target(runs, TARGET_PLAIN, "cut"), 0);
        assert_eq!(of_target(runs, TARGET_CHANGED, "cut"), MIRRORS);
        assert_eq!(cut_to(&runs.sources.others, SNAPLEN_TARGET), MIRRORS);
    }),
    case("mirror_targets[].filter", "all packets are stored, or those it selects", |runs| {
        let of = |target| ["stored", "shed"].map(|field| of_target(runs, target, field));
        assert_eq!(of(TARGET_PLAIN), [2 * MIRRORS, 0]);
        assert_eq!(of(TARGET_CHANGED), [MIRRORS, MIRRORS]);
    }),
    case("mirror_targets[].buffer", "the kernel's memory for each lane", |runs| {
        for (target, bytes) in [(TARGET_PLAIN, 64 << 20), (TARGET_CHANGED, 1 << 20)] {
            for lane in lanes(&runs.sources.others, &format!("udp {target}")) {
                assert_eq!(lane["ring_bytes"], bytes, "{lane}");
            }
        }
    }),
    case("mirror_targets[].duplicates", "second copies are marked, or not", |runs| {
        let marked = |name: &str| lanes(&runs.sources.doubled, name)[0]["duplicates"].as_u64();
        let [marking, keeping, _] = TARGETS_DOUBLED.map(|target| format!("udp {target}"));
        assert_eq!([marked(&marking), marked(&keeping)], [Some(COPIES), Some(0)]);
    }),
    case(
        "mirror_targets[].duplicates_window",
        "20 ms are too long between copies, or not",
        |runs| {
            let marked = |name: &str| lanes(&runs.sources.doubled, name)[0]["duplicates"].as_u64();
            let [long, _, short] = TARGETS_DOUBLED.map(|target| format!("udp {target}"));
            assert_eq!([marked(&long), marked(&short)], [Some(COPIES), Some(0)]);
        },
    ),
    case("replay.decap", "packets as they came, or what is inside", |runs| {
        let sources = &runs.sources;
        assert_eq!(tunnels_of(&sources.kept, FLOW_KEPT), [KEPT, KEPT, KEPT]);
        assert_eq!(tunnels_of(&sources.stripped, FLOW_KEPT), [STRIPPED, KEPT, STRIPPED]);
    }),
    case("replay.decap_tunnels", "GENEVE is removed, or not if it is not named", |runs| {
        assert_eq!(tunnels_of(&runs.sources.stripped, FLOW_KEPT)[2], STRIPPED);
        assert_eq!(tunnels_of(&runs.sources.chosen, FLOW_KEPT)[2], KEPT);
    }),
    case("replay.vxlan_ports", "VXLAN is known by its own port, or by another", |runs| {
        assert_eq!(tunnels_of(&runs.sources.stripped, FLOW_KEPT)[..2], [STRIPPED, KEPT]);
        assert_eq!(tunnels_of(&runs.sources.chosen, FLOW_KEPT)[..2], [KEPT, STRIPPED]);
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
            let due = 1 + runs.paced.looked.as_millis() as u64 / 10;
            let received = sum(&runs.paced.status, "received");
            assert!(received <= due && received < FILE_PACKETS, "{received} received, {due} due");
            assert_ne!(runs.paced.status["state"], "ended");
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
        let due = seen.looked.as_secs() / 10 + spare;
        assert!(seen.syncs <= due, "{} in {:?}", seen.syncs, seen.looked);
    }),
    case("segment_age", "a segment of an hour, or of 10 s", |runs| {
        assert!(runs.plain.segments.iter().all(|row| row["state"] == "open"));
        let closed = runs.short.segments.iter().filter(|row| row["state"] == "closed");
        let reasons: BTreeSet<_> = closed.map(|row| row["close_reason"].to_string()).collect();
        assert_eq!(reasons, ["\"age\"".to_owned()].into());
        assert!(runs.short.elapsed >= Duration::from_secs(10), "{:?}", runs.short.elapsed);
    }),
    case("retention", "what it wants deleted is planned; without it nothing is", |runs| {
        assert_eq!(planned(runs, "").len(), 0);
        assert!(!planned(runs, &rule("")).is_empty());
    }),
    case("retention[].name", "the reason that is told", |runs| {
        assert_eq!(planned(runs, &rule(""))[0]["reason"], "rule gone");
    }),
    case("retention[].action", "delete, or keep from a later rule", |runs| {
        let keep = format!("  - name: kept\n    action: keep\n{}", rule(""));
        assert_eq!(planned(runs, &keep).len(), 0);
    }),
    case("retention[].age", "what is younger stays", |runs| {
        assert_eq!(planned(runs, &rule("    age: 36500days\n")).len(), 0);
    }),
    case("retention[].size", "so many bytes stay", |runs| {
        assert_eq!(planned(runs, &rule("    size: 1000TiB\n")).len(), 0);
        assert!(!planned(runs, &rule("    size: 0B\n")).is_empty());
    }),
    case("retention[].interface", "what came from others stays", |runs| {
        assert_eq!(planned(runs, &rule("    interface: vz\n")).len(), 0);
        assert!(!planned(runs, &rule("    interface: va\n")).is_empty());
    }),
    case("retention[].flows", "what holds such flows is kept, what holds none is not", |runs| {
        let keep =
            |flows| format!("  - name: kept\n    action: keep\n    flows: {flows}\n{}", rule(""));
        assert_eq!(planned(runs, &keep("ip")).len(), 0);
        assert!(!planned(runs, &keep("host 192.0.2.99")).is_empty());
    }),
    case("tier.url", "where what `action: tier` names goes, with its key; absent: a fault", |_| {
        let moved = Moved::with("");
        assert_eq!((moved.objects(), moved.at.as_str()), (2, Some("both")));
    }),
    case("tier.rate", "so many bytes a second at most, there and back", |_| {
        let moved = Moved::with("  rate: 64KiB\n");
        let least = Duration::from_secs_f64(2.0 * moved.bytes as f64 / 65_536.0);
        assert!(moved.elapsed >= least, "{} bytes in {:?}", moved.bytes, moved.elapsed);
    }),
    case("tier.keep_local", "what was moved stays on its volume, or goes", |_| {
        assert_eq!(Moved::with("  keep_local: false\n").at, "tiered");
    }),
    case("tier.flows", "a Parquet file of flows lies beside segment and key", |_| {
        assert_eq!(Moved::with("  flows: parquet\n").objects(), 3);
    }),
    case("audit.anchor", "heads of the log are kept there, and found again in it", |runs| {
        let heads = runs.changed.site.file("heads").display().to_string();
        let checked = runs.changed.site.offline_of("audit", "verify", &["--anchor", &heads]);
        assert_eq!(checked.status.code(), Some(0), "{checked:?}");
        assert!(!runs.plain.site.file("heads").exists());
    }),
    case("audit.anchor_every", "a head a second in a place for objects, or one an hour", |runs| {
        // That of the start, those of the checkpoints, which are entries, and that of the end.
        assert!(heads(&runs.changed.site) > 3, "{}", heads(&runs.changed.site));
        let place = format!("file://{}", runs.changed.site.file("objects").display());
        let checked = runs.changed.site.offline_of("audit", "verify", &["--anchor", &place]);
        assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    }),
    case("snapshots.folder", "checkpoints are there; without it there are none", |runs| {
        assert_eq!(runs.plain.status["snapshots"], Value::Null);
        let folder = runs.short.site.file("state").display().to_string();
        assert_eq!(runs.short.status["snapshots"]["folder"], folder);
        assert!(checkpoints(&runs.short).iter().all(|row| row["trouble"].is_null()));
    }),
    case("snapshots.every", "one at the start and one at the end, or more between", |runs| {
        let last = |seen| checkpoints(seen).last().map(|row| row["checkpoint"].clone());
        assert_eq!(last(&runs.short), Some(2.into()));
        assert!(last(&runs.changed).and_then(|number| number.as_u64()) > Some(3));
    }),
    case("snapshots.keep", "the newest two, or all of them so far", |runs| {
        assert_eq!(checkpoints(&runs.changed).len(), 2);
        assert_eq!(checkpoints(&runs.short)[0]["checkpoint"], 1);
    }),
    case("backup.vault", "where recovery points go", |runs| {
        ordered(runs, "BackupVaultName", VAULT, OTHER_VAULT);
    }),
    case("backup.role", "as whom the service works", |runs| {
        ordered(runs, "IamRoleArn", ROLE, OTHER_ROLE);
    }),
    case("backup.resource", "what is backed up", |runs| {
        ordered(runs, "ResourceArn", VOLUME, OTHER_VOLUME);
    }),
    case("backup.every", "one order a day, or the next after a second", |runs| {
        assert_eq!(runs.backed.plain.len(), 1);
        assert!(runs.backed.changed.len() >= 2);
    }),
    case("backup.retention", "when a recovery point goes, or that it stays", |runs| {
        assert_eq!(runs.backed.plain[0]["order"]["Lifecycle"], Value::Null);
        assert_eq!(runs.backed.changed[0]["order"]["Lifecycle"]["DeleteAfterDays"], 2);
    }),
    case("cloud.imds", "an instance is asked who it is, or nobody is", |_| {
        let imds = Imds::start();
        let (asked, _site) = on_instance(&imds, "");
        assert_eq!(until(&asked, "id")["id"], INSTANCE);
        assert!(asked.terminate().success());
        imds.calls();
        let (silent, _site) = on_instance(&imds, "imds: off");
        assert_eq!(silent.status()["instance"], Value::Null);
        assert!(silent.terminate().success());
        assert!(imds.calls().is_empty());
    }),
    case("cloud.on_notice", "when the machine goes, it records on or ends", |_| {
        let imds = Imds::start();
        imds.announce(&[("spot/instance-action", "{\"action\":\"stop\"}")]);
        let (stays, _site) = on_instance(&imds, "");
        until(&stays, "drained");
        assert!(stays.terminate().success(), "it was there to be told to end");
        let (mut ends, _site) = on_instance(&imds, "on_notice: stop");
        let status = wait_for("its end", PATIENCE, || ends.ended());
        assert!(status.success(), "{status}");
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
    case("api.metrics_listen", "metrics are told there, to everybody on the machine", |runs| {
        let stored =
            format!("wirevault_lane_stored_packets_total{{lane=\"0\"}} {ACCESS_PACKETS}\n");
        assert!(runs.access.scraped.contains(&stored), "{}", runs.access.scraped);
    }),
    case("api.tls.listen", "where it answers over TCP; without it nowhere", |runs| {
        assert!(said(&runs.access.known).contains("\"lanes\""), "{:?}", runs.access.known);
    }),
    case("api.tls.certificate", "it is shown to those who ask; an absent one is refused", |runs| {
        refused(&runs.access.without_certificate, 2, "api.tls.certificate is /nowhere.pem");
    }),
    case("api.tls.key", "one that others may read is refused", |runs| {
        refused(&runs.access.with_open_key, 2, "others may use it (mode 644)");
    }),
    case("api.tls.client_ca", "whom to believe; a file of no certificate is refused", |runs| {
        refused(&runs.access.with_foreign_ca, 2, "it holds no certificate");
    }),
    case("api.tls.crl", "who is on the list is refused; a file of no list is", |runs| {
        assert!(!runs.access.revoked.status.success(), "{:?}", runs.access.revoked);
        refused(&runs.access.with_foreign_list, 2, "it holds no list of revoked certificates");
    }),
    case("api.access", "a user is refused, or answered by a rule", |runs| {
        assert!(runs.plain.to_user.contains("may not ask"), "{}", runs.plain.to_user);
        assert!(runs.access.to_user.contains("\"lanes\""), "{}", runs.access.to_user);
    }),
    case("api.access[].users", "whose rule it is", |runs| {
        assert!(runs.access.to_user.contains("\"lanes\""), "{}", runs.access.to_user);
    }),
    case("api.access[].groups", "whose members' rule it is", |runs| {
        assert!(runs.access.to_member.contains("\"lanes\""), "{}", runs.access.to_member);
    }),
    case("api.access[].certificates", "whose rule it is; others may not ask", |runs| {
        assert!(runs.access.known.status.success(), "{:?}", runs.access.known);
        refused(&runs.access.stranger, 2, "the certificate `CN=stranger` may not ask");
    }),
    case("api.access[].role", "`query` counts packets and gets none", |runs| {
        assert!(said(&runs.access.counted).contains(&ACCESS_PACKETS.to_string()));
        refused(&runs.access.packets, 2, "the role query gets no packets");
    }),
    case("api.access[].filter", "all packets are found, or those that it takes", |runs| {
        let half = (ACCESS_PACKETS / 2).to_string();
        assert!(said(&runs.access.narrowed).contains(&half), "{:?}", runs.access.narrowed);
    }),
    case("api.access[].answers", "a second answer is one too many, or not", |runs| {
        refused(&runs.access.second, 2, "1 answers are as many as you may have");
    }),
    case("api.access[].per_minute", "a question a minute, or as many as one likes", |runs| {
        let often = &runs.access.often;
        assert!(often[0].status.success(), "{often:?}");
        let late = often.iter().find(|output| !output.status.success()).expect("one too many");
        refused(late, 2, "may ask 1 times a minute");
    }),
    case("cpus.lanes", "the lane's thread runs where the system likes, or on one CPU", |runs| {
        assert!(runs.plain.status["lanes"][0]["cpu"].is_null());
        assert_eq!(runs.short.status["lanes"][0]["cpu"], runs.cpu);
        assert_eq!(runs.short.lane_cpus, runs.cpu.to_string());
    }),
    case("cpus.topology", "as the cores allow, or one thread for a lane, or two", |runs| {
        let why = |seen: &Seen| seen.status["layout"]["why"].to_string();
        assert!(why(&runs.plain).contains("split wants"), "{}", why(&runs.plain));
        for (seen, topology) in [(&runs.short, "split"), (&runs.changed, "run_to_completion")] {
            assert_eq!(seen.status["layout"]["topology"], topology);
            assert!(why(seen).contains("as configured"), "{}", why(seen));
            assert_eq!(seen.threads.contains("seal-0"), topology == "split", "{:?}", seen.threads);
            assert!(seen.threads.contains("lane-0"), "{:?}", seen.threads);
        }
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
    case("sandbox", "files and system calls are given up, or not", |runs| {
        let sandbox = |seen: &Seen| seen.status["sandbox"].clone();
        assert_eq!(sandbox(&runs.plain)["seccomp"], true, "{}", sandbox(&runs.plain));
        assert!(sandbox(&runs.plain)["landlock_abi"].is_u64(), "{}", sandbox(&runs.plain));
        assert_eq!(sandbox(&runs.short)["seccomp"], false);
        assert!(sandbox(&runs.short)["why_not"].to_string().contains("sandbox: off"));
    }),
];

/// Packets of a tunnel: those stored without it, and those with it.
const STRIPPED: (u64, u64) = (TUNNELLED, 0);
const KEPT: (u64, u64) = (0, TUNNELLED);

/// Exit code and a part of what is said.
fn refused(output: &Output, code: i32, part: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(part), "{said}");
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A rule that deletes.
fn rule(more: &str) -> String {
    format!("  - name: gone\n    action: delete\n{more}")
}

/// What the first orders of both runs say.
fn ordered(runs: &Runs, field: &str, plain: &str, changed: &str) {
    assert_eq!(runs.backed.plain[0]["order"][field], plain);
    assert_eq!(runs.backed.changed[0]["order"][field], changed);
}

/// What `wirevault snapshot list` says of a run's checkpoints.
fn checkpoints(seen: &Seen) -> Vec<Value> {
    let folder = seen.site.file("state").display().to_string();
    let mut list = std::process::Command::new(program("wirevault"));
    let output = list.args(["snapshot", "list", &folder, "--json"]).output().expect("wirevault");
    let rows: Value = serde_json::from_slice(&output.stdout).expect("a list");
    rows.as_array().expect("a list").clone()
}

/// What such rules want deleted of the plain run's store.
fn planned(runs: &Runs, rules: &str) -> Vec<Value> {
    let site = &runs.plain.site;
    let (file, store) = (site.file("rules.yaml"), site.store().display().to_string());
    let rules = if rules.is_empty() { String::new() } else { format!("retention:\n{rules}") };
    let text = format!("store: {store}\ncapture:\n  - interface: va\n{rules}");
    std::fs::write(&file, text).expect("the rules are written");
    let config = file.display().to_string();
    let output = site.offline_of("lifecycle", "plan", &["--config", &config, "--json"]);
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    plan["steps"].as_array().expect("steps").clone()
}

fn names(seen: &Seen) -> BTreeSet<&str> {
    let lanes = seen.status["lanes"].as_array().expect("lanes");
    lanes.iter().filter_map(|lane| lane["interface"].as_str()).collect()
}

fn lanes<'a>(seen: &'a Seen, interface: &str) -> Vec<&'a Value> {
    let lanes = seen.status["lanes"].as_array().expect("lanes");
    lanes.iter().filter(|lane| lane["interface"] == interface).collect()
}

/// A count of a policy on the first lane.
fn count_of<'a>(status: &'a Value, count: &'a str) -> impl Fn(&str) -> u64 + 'a {
    move |name| done(status, 0, name)[count].as_u64().expect("a count")
}

fn notes(lane: &Value) -> String {
    lane["notes"].to_string()
}

/// A number of all lanes of a mirror target.
fn of_target(runs: &Runs, target: &str, field: &str) -> u64 {
    let lanes = lanes(&runs.sources.others, &format!("udp {target}")).into_iter();
    lanes.map(|lane| lane[field].as_u64().expect("a count")).sum()
}

/// Packets of [`PACKET_BYTES`] of which so many bytes are there.
fn cut_to(seen: &Seen, bytes: usize) -> u64 {
    let cut = seen.packets.iter().filter(|packet| packet.data.len() == bytes);
    cut.filter(|packet| packet.wire_len == u32::from(PACKET_BYTES)).count() as u64
}
