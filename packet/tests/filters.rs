//! The interpreter against libpcap, and the abstract one against the concrete one.

#[expect(dead_code, unreachable_pub, reason = "each test binary uses a part")]
mod common;

use std::collections::HashSet;
use std::ops::RangeInclusive;

use common::{LINKS, Random, cases, compile, filters, frames};
use proptest::prelude::*;
use wirevault_format::LinkType;
use wirevault_packet::bpf::{AnyAddress, Oracle, Program, Verdict};
use wirevault_packet::{FlowKey, Template, ValueKind, dissect, shape_template, value_layout};

/// Knows exactly the addresses and ports of some flows.
#[derive(Default)]
struct Exact {
    hosts4: HashSet<[u8; 4]>,
    hosts6: HashSet<[u8; 16]>,
    ports: HashSet<u16>,
}

impl Exact {
    fn add(&mut self, key: &FlowKey) {
        let mut values = key.values();
        for kind in value_layout(key.shape()).unwrap() {
            let (value, rest) = values.split_at(kind.bytes());
            values = rest;
            match kind {
                ValueKind::Addr4 => self.hosts4.insert(value.try_into().unwrap()),
                ValueKind::Addr6 => self.hosts6.insert(value.try_into().unwrap()),
                ValueKind::Port => self.ports.insert(u16::from_be_bytes(value.try_into().unwrap())),
            };
        }
    }
}

impl Oracle for Exact {
    fn host4(&self, addr: [u8; 4], prefix_len: u8) -> bool {
        let cut = |a: [u8; 4]| u64::from(u32::from_be_bytes(a)) >> (32 - prefix_len);
        assert!((1..=32).contains(&prefix_len));
        self.hosts4.iter().any(|host| cut(*host) == cut(addr))
    }

    fn host6(&self, addr: [u8; 16], prefix_len: u8) -> bool {
        let cut = |a: [u8; 16]| u128::from_be_bytes(a) >> (128 - prefix_len);
        assert!((1..=128).contains(&prefix_len));
        self.hosts6.iter().any(|host| cut(*host) == cut(addr))
    }

    fn port(&self, range: RangeInclusive<u16>) -> bool {
        self.ports.iter().any(|port| range.contains(port))
    }
}

/// Whether the program may read a scratch word that it has not written. libpcap compiles some
/// negations of `geneve` so; its interpreter then computes with whatever the stack held.
fn reads_garbage(program: &Program) -> bool {
    let insns = program.insns();
    // Scratch words surely written when an instruction is reached; all of them if it never is.
    let mut written = vec![u16::MAX; insns.len() + 1];
    written[0] = 0;
    for (at, insn) in insns.iter().enumerate() {
        let mut now = written[at];
        match insn.code {
            0x60 | 0x61 if now >> insn.k & 1 == 0 => return true,
            0x02 | 0x03 => now |= 1 << insn.k,
            _ => {}
        }
        let next = match insn.code {
            0x06 | 0x16 => vec![],
            0x05 => vec![(at as u32 + 1).wrapping_add(insn.k) as usize],
            code if code & 7 == 5 => vec![at + 1 + insn.jt as usize, at + 1 + insn.jf as usize],
            _ => vec![at + 1],
        };
        for target in next {
            written[target] &= now;
        }
    }
    false
}

fn agrees(verdict: Verdict, result: u32) -> bool {
    match verdict {
        Verdict::No => result == 0,
        Verdict::Yes => result != 0,
        Verdict::Maybe => true,
    }
}

/// Packets of the template: the one given, with unknown bits changed.
fn others(random: &mut Random, template: &Template, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for _ in 0..8 {
        let mut other = frame.to_vec();
        for _ in 0..1 + random.below(30) {
            let at = random.below(other.len().max(1));
            if let Some(byte) = other.get_mut(at) {
                *byte ^= !template.byte(at).0 & random.bits() as u8;
            }
        }
        if random.one_in(3) {
            other.extend(random.bytes(9));
        }
        if template.admits(&other, other.len() as u32) {
            all.push(other);
        }
    }
    all
}

fn program(random: &mut Random, link: LinkType) -> Option<(pcap::BpfProgram, Program, String)> {
    let filter = filters::filter(random);
    let optimize = !random.one_in(4);
    let (theirs, ours) = compile(link, &filter, optimize)?;
    Some((theirs, ours, filter))
}

/// Raw IP once had the number of files: libpcap compiled nothing for it and nothing was compared.
#[test]
fn filters_compile_for_every_link_type_of_the_generator() {
    for link in LINKS {
        let filter = "ip host 10.0.0.1 or ip6 host 2001:db8::1";
        assert!(compile(link, filter, true).is_some(), "{link}");
    }
}

proptest! {
    #![proptest_config(cases(3000))]

    #[test]
    fn run_does_what_libpcap_does(seed: u64) {
        let mut random = Random::new(seed);
        let link = *random.pick(&LINKS);
        let Some((theirs, ours, filter)) = program(&mut random, link) else { return Ok(()) };
        if reads_garbage(&ours) {
            return Ok(());
        }
        for _ in 0..40 {
            let mut frame = frames::frame(&mut random, link);
            if random.one_in(3) {
                frame.truncate(random.below(frame.len().max(1)));
            }
            let wire = frame.len() as u32;
            prop_assert_eq!(ours.run(&frame, wire) != 0, theirs.filter(&frame), "{}", filter);
        }
    }

    #[test]
    fn verdicts_on_flows_hold_for_their_packets(seed: u64) {
        let mut random = Random::new(seed);
        let link = *random.pick(&LINKS);
        let Some((_, ours, filter)) = program(&mut random, link) else { return Ok(()) };
        for _ in 0..20 {
            let mut frame = frames::frame(&mut random, link);
            if random.one_in(4) {
                frame.truncate(random.below(frame.len().max(1)));
            }
            let d = dissect(link, &frame);
            let mut template = d.key.template(d.direction);
            let len = frame.len() as u32;
            if random.one_in(2) {
                template.set_lengths(len, len + 7, len, len);
            }
            if random.one_in(2) && frame.len() > template.tcp_flags_at().unwrap_or(0) {
                template.set_tcp_flags(d.tcp_flags | 1, d.tcp_flags & 0x7f);
            }
            let verdict = ours.decide(&template, &AnyAddress);
            let all = [vec![frame.clone()], others(&mut random, &template, &frame)].concat();
            for packet in all {
                let result = ours.run(&packet, packet.len() as u32);
                prop_assert!(
                    agrees(verdict, result),
                    "{} is {:?} for {:?}, run gives {}: {:02x?}",
                    filter, verdict, d.key, result, packet
                );
            }
        }
    }

    #[test]
    fn verdicts_on_shapes_hold_for_their_packets(seed: u64) {
        let mut random = Random::new(seed);
        let link = *random.pick(&LINKS);
        let Some((_, ours, filter)) = program(&mut random, link) else { return Ok(()) };
        let frames: Vec<_> = (0..12).map(|_| frames::frame(&mut random, link)).collect();
        let mut oracle = Exact::default();
        for frame in &frames {
            oracle.add(&dissect(link, frame).key);
        }
        for frame in &frames {
            let d = dissect(link, frame);
            let template = shape_template(d.key.shape()).unwrap();
            let verdict = ours.decide(&template, &oracle);
            let result = ours.run(frame, frame.len() as u32);
            let right = agrees(verdict, result);
            prop_assert!(right, "{} {:?} {:?} {}", filter, verdict, d.key, result);
        }
    }
}
