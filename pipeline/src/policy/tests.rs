use std::sync::Arc;

use wirevault_packet::bpf::{Insn, Program};

use super::*;

const T: u64 = 1_700_000_000_000_000_000;

fn name(name: &str) -> PolicyName {
    PolicyName::new(name).unwrap()
}

fn policy(text: &str, filter: Option<Filter>, action: Action) -> PolicySpec {
    PolicySpec { name: name(text), filter, action }
}

/// Matches frames whose byte at 12 is this: `ldb [12]; jeq; ret`.
fn type_is(byte: u32) -> Filter {
    let insns = [(0x30, 0, 0, 12), (0x15, 0, 1, byte), (0x06, 0, 0, 65535), (0x06, 0, 0, 0)];
    let insns = insns.map(|(code, jt, jf, k)| Insn { code, jt, jf, k });
    let program = Program::new(insns.to_vec()).unwrap();
    Arc::new(move |link| (link == LinkType::ETHERNET).then(|| program.clone()))
}

fn made(filter: Option<Filter>, standing: Vec<PolicySpec>, rungs: Vec<RungSpec>) -> Policies {
    let mut filter = filter;
    let mut made = Policies::new(&mut filter, standing, rungs, VxlanPorts::USUAL).unwrap();
    assert!(filter.is_none(), "it is asked here");
    made.learn(LinkType::ETHERNET);
    made.learn(LinkType::RAW);
    *made
}

/// UDP over IPv4 from this port to port 53, or back.
fn frame(port: u16, back: bool) -> Vec<u8> {
    let mut frame = vec![0; 100];
    (frame[12], frame[14], frame[23]) = (8, 0x45, 17);
    let (a, b, ports) = if back { (2, 1, [53, port]) } else { (1, 2, [port, 53]) };
    frame[26..34].copy_from_slice(&[10, 0, 0, a, 10, 0, 0, b]);
    frame[34..36].copy_from_slice(&ports[0].to_be_bytes());
    frame[36..38].copy_from_slice(&ports[1].to_be_bytes());
    frame
}

/// Judges a frame, and stores it if it is kept.
fn take(policies: &mut Policies, frame: &[u8]) -> Verdict {
    take_with(policies, 0, &[], frame, None)
}

fn take_with(
    policies: &mut Policies,
    stream: usize,
    head: &[u8],
    data: &[u8],
    vlan: Option<VlanTag>,
) -> Verdict {
    let link = [LinkType::ETHERNET, LinkType::RAW][stream];
    let wire_len = data.len() as u32;
    let subject = Subject { stream, link, head, data, vlan, wire_len, ts_ns: T };
    let verdict = policies.judge(&subject);
    if let Verdict::Kept { snaplen_bytes } = verdict {
        policies.stored(wire_len, snaplen_bytes < wire_len);
    }
    verdict
}

const KEPT: Verdict = Verdict::Kept { snaplen_bytes: u32::MAX };

fn gaps(tell: impl FnOnce(&mut dyn FnMut(Gap))) -> Vec<(Cause, Option<PolicyName>, Option<u64>)> {
    let mut told = Vec::new();
    tell(&mut |gap| told.push((gap.cause, gap.policy, gap.packets)));
    told
}

#[test]
fn policies_are_asked_in_order_and_kept_is_spared_from_all_behind() {
    let standing = vec![
        policy("vlan", Some(type_is(0x81)), Action::Drop),
        policy("ip", Some(type_is(8)), Action::Keep),
        policy("rest", None, Action::Drop),
    ];
    let mut policies = made(None, standing, Vec::new());
    assert_eq!(take(&mut policies, &frame(1, false)), KEPT);
    let mut arp = frame(1, false);
    (arp[12], arp[13]) = (9, 6);
    assert_eq!(take(&mut policies, &arp), Verdict::Shed);
    // The tag that the kernel took out is a part of the frame again.
    let tag = Some(VlanTag { tpid: 0x8100, tci: 5 });
    let tagged = take_with(&mut policies, 0, &[], &frame(1, false), tag);
    assert_eq!(tagged, Verdict::Shed);
    // And so is a header that a tunnel left.
    let (head, rest) = arp.split_at(14);
    assert_eq!(take_with(&mut policies, 0, head, rest, None), Verdict::Shed);
    // The filters do not fit this link type, so only the policy without one is for it.
    assert_eq!(take_with(&mut policies, 1, &[], &arp, None), Verdict::Shed);
    let shed = |name_of, packets| (Cause::Shed, Some(name(name_of)), Some(packets));
    let told = gaps(|tell| policies.tell(T + 9, tell));
    assert_eq!(told, [shed("vlan", 1), shed("rest", 3)]);
    assert_eq!(gaps(|tell| policies.tell(T + 9, tell)), [], "each is told once");
}

#[test]
fn the_capture_filter_comes_first_and_sees_the_whole_packet() {
    let cut = policy("heads", None, Action::Snaplen { bytes: 10 });
    let mut policies = made(Some(type_is(8)), vec![cut], Vec::new());
    let verdict = take(&mut policies, &frame(1, false));
    assert_eq!(verdict, Verdict::Kept { snaplen_bytes: 10 }, "the type stands behind byte 10");
    let mut arp = frame(1, false);
    arp[12] = 9;
    assert_eq!(take(&mut policies, &arp), Verdict::Shed);
    assert_eq!(gaps(|tell| policies.tell(T, tell)), [(Cause::Shed, None, Some(1))]);
    let raw = take_with(&mut policies, 1, &[], &arp, None);
    assert_eq!(raw, Verdict::Kept { snaplen_bytes: 10 }, "it does not fit: all are kept");
    let shown = [PolicyCounters::new(name("heads"), false)];
    policies.publish(&shown);
    assert_eq!((shown[0].shed(), shown[0].cut(), shown[0].is_active()), (0, 2, true));
}

#[test]
fn a_cutoff_keeps_what_begins_within_the_first_bytes_and_counts_what_is_stored() {
    let cutoff = Action::Cutoff { flow_bytes: 250 };
    let mut policies = made(None, vec![policy("long", None, cutoff)], Vec::new());
    let [there, back] = [false, true].map(|back| frame(1000, back));
    // Offered and not stored, for want of a chunk: it comes again and counts once.
    let (head, data, wire_len) = (&[][..], &there[..], 100);
    let link = LinkType::ETHERNET;
    let subject = Subject { stream: 0, link, head, data, vlan: None, wire_len, ts_ns: T };
    (0..9).for_each(|_| assert_eq!(policies.judge(&subject), KEPT));
    let verdicts = [&there, &back, &there, &back, &there].map(|frame| take(&mut policies, frame));
    assert_eq!(verdicts, [KEPT, KEPT, KEPT, Verdict::Shed, Verdict::Shed]);
    assert_eq!(take(&mut policies, &frame(1001, false)), KEPT, "another flow");
}

#[test]
fn a_sample_keeps_whole_flows() {
    let sample = Action::Sample { one_in: 4 };
    let mut policies = made(None, vec![policy("some", None, sample)], Vec::new());
    let mut kept = 0;
    for port in 1000..3000 {
        let there = take(&mut policies, &frame(port, false));
        assert_eq!(take(&mut policies, &frame(port, true)), there, "both directions");
        kept += u32::from(there == KEPT);
    }
    // 500 of 2000, give or take what chance does once in a million times at most.
    assert!((400..600).contains(&kept), "{kept}");
}

#[test]
fn rungs_hold_while_they_are_entered_and_each_change_is_marked() {
    let rung =
        |policy, enter_percent, leave_percent| RungSpec { policy, enter_percent, leave_percent };
    let rungs = vec![
        rung(policy("coarse", None, Action::CoarseIndex), 30, 10),
        rung(policy("heads", None, Action::Snaplen { bytes: 64 }), 50, 20),
        rung(policy("drop", None, Action::Drop), 90, 50),
    ];
    let keep = policy("voice", Some(type_is(9)), Action::Keep);
    let mut policies = made(None, vec![keep], rungs);
    let ip = frame(1, false);
    let mut voice = ip.clone();
    voice[12] = 9;
    assert_eq!((take(&mut policies, &ip), policies.is_coarse()), (KEPT, false));
    let mark = |rung, packets| (Cause::Pressure, Some(name(rung)), packets);
    let up = gaps(|tell| policies.climb((0.6, PressureCause::Queue), T, tell));
    assert_eq!(up, [mark("coarse", None), mark("heads", None)]);
    assert_eq!(take(&mut policies, &ip), Verdict::Kept { snaplen_bytes: 64 });
    assert!(policies.is_coarse());
    assert_eq!(
        gaps(|tell| policies.climb((1.0, PressureCause::Disk), T, tell)),
        [mark("drop", None)]
    );
    assert_eq!((take(&mut policies, &ip), take(&mut policies, &voice)), (Verdict::Shed, KEPT));
    let down = gaps(|tell| policies.end(T + 5, tell));
    assert_eq!(down, [mark("coarse", Some(0)), mark("heads", Some(1)), mark("drop", Some(1))]);
    assert_eq!(take(&mut policies, &ip), KEPT);
    assert_eq!(gaps(|tell| policies.end(T + 5, tell)), []);
    let shown = ["voice", "coarse", "heads", "drop"].map(|it| PolicyCounters::new(name(it), true));
    policies.publish(&shown);
    let entered = shown.map(|it| it.entered());
    assert_eq!(entered, [[0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]], "buffer, queue, disk");
}
