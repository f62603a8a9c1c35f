//! Frames of every encapsulation.

use wirevault_format::LinkType;

use super::Random;

pub const HOSTS4: [[u8; 4]; 6] =
    [[10, 0, 0, 1], [10, 0, 0, 2], [10, 1, 2, 3], [192, 168, 1, 1], [224, 0, 0, 1], [0, 0, 0, 0]];
pub const HOSTS6: [[u8; 16]; 6] = [
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
    [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0x20, 1, 0xd, 0xb8, 0xf0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
];
pub const PORTS: [u16; 12] = [20, 53, 80, 443, 1024, 2152, 4789, 4790, 6081, 8472, 40000, 65535];
const MACS: [[u8; 6]; 4] =
    [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]];
/// How deep encapsulations are nested on purpose.
const DEPTH_MAX: usize = 4;

/// A frame of the link type, whole, with random payload.
pub fn frame(random: &mut Random, link: LinkType) -> Vec<u8> {
    let mut out = match link {
        LinkType::ETHERNET => ethernet(random, 0),
        LinkType::LINUX_SLL => {
            let (ethertype, payload) = typed(random, 0);
            let ethertype = ethertype.unwrap_or(4);
            let hardware = *random.pick(&[1, 772, 778]);
            let mut head = vec![0, *random.pick(&[0, 1, 4])];
            push(&mut head, hardware);
            head.extend([0, 6]);
            head.extend(random.bytes(8));
            push(&mut head, ethertype);
            [head, payload].concat()
        }
        LinkType::LINUX_SLL2 => {
            let (ethertype, payload) = typed(random, 0);
            let mut head = ethertype.unwrap_or(4).to_be_bytes().to_vec();
            head.extend([0, 0, 0, 0, 0, 3, 0, 1, *random.pick(&[0, 4]), 6]);
            head.extend(random.bytes(8));
            [head, payload].concat()
        }
        LinkType::NULL | LinkType::LOOP => {
            let v6 = random.one_in(2);
            let family = if v6 { *random.pick(&[10, 24, 28, 30]) } else { 2 };
            let head = match (link, random.one_in(9)) {
                (LinkType::NULL, false) => [family, 0, 0, 0],
                (_, false) => [0, 0, 0, family],
                (_, true) => [0, 7, 0, 0],
            };
            [head.to_vec(), ip(random, v6, 0)].concat()
        }
        LinkType::IPV4 => ip(random, false, 0),
        LinkType::IPV6 => ip(random, true, 0),
        _ => {
            let v6 = random.one_in(2);
            ip(random, v6, 0)
        }
    };
    // Damage: a header that lies.
    if random.one_in(8) && !out.is_empty() {
        let at = random.below(out.len().min(80));
        out[at] = random.bits() as u8;
    }
    out
}

fn ethernet(random: &mut Random, depth: usize) -> Vec<u8> {
    let mut out = [*random.pick(&MACS), *random.pick(&MACS)].concat();
    let (ethertype, payload) = typed(random, depth);
    push(&mut out, ethertype.unwrap_or(random.below(1501) as u16));
    [out, payload].concat()
}

/// A payload and its ethertype; without one it is LLC.
fn typed(random: &mut Random, depth: usize) -> (Option<u16>, Vec<u8>) {
    if depth > DEPTH_MAX {
        return (Some(0x0800), ip(random, false, depth));
    }
    match random.below(24) {
        0..8 => (Some(0x0800), ip(random, false, depth)),
        8..13 => (Some(0x86dd), ip(random, true, depth)),
        13..16 => {
            let mut out = Vec::new();
            push(&mut out, (random.bits() as u16 & 0xe000) | *random.pick(&[5, 7, 4095]));
            let (ethertype, payload) = typed(random, depth + 1);
            push(&mut out, ethertype.unwrap_or(40));
            (Some(*random.pick(&[0x8100, 0x88a8, 0x9100])), [out, payload].concat())
        }
        16..18 => {
            let payload = mpls(random, depth);
            (Some(*random.pick(&[0x8847, 0x8848])), payload)
        }
        18 => {
            let v6 = random.one_in(2);
            let mut out = vec![0x11, 0];
            push(&mut out, *random.pick(&[1, 0x1234]));
            push(&mut out, random.bits() as u16);
            let protocol = if random.one_in(8) { 0xc021 } else { [0x21, 0x57][usize::from(v6)] };
            push(&mut out, protocol);
            (Some(0x8864), [out, ip(random, v6, depth + 1)].concat())
        }
        19 | 20 => (Some(*random.pick(&[0x0806, 0x8035])), arp(random)),
        21 | 22 => (None, llc(random, depth)),
        _ => (Some(*random.pick(&[0x88cc, 0x888e, 0x05dd])), random.bytes(50)),
    }
}

fn mpls(random: &mut Random, depth: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for left in (0..1 + random.below(3)).rev() {
        let label: u32 = *random.pick(&[3, 100, 0xf_ffff]);
        let bottom = u32::from(left == 0);
        let entry = label << 12 | (random.bits() as u32 & 0xeff) | bottom << 8;
        out.extend(entry.to_be_bytes());
    }
    let v6 = random.one_in(3);
    match random.below(8) {
        0 => [out, random.bytes(30)].concat(),
        1 => [out, ethernet(random, depth + 1)].concat(),
        2 => [out, vec![0, 0, 0, 1], ethernet(random, depth + 1)].concat(),
        _ => [out, ip(random, v6, depth + 1)].concat(),
    }
}

fn arp(random: &mut Random) -> Vec<u8> {
    let mut out = vec![0, 1, 8, 0, 6, 4, 0, *random.pick(&[1, 2, 3])];
    for _ in 0..2 {
        out.extend(*random.pick(&MACS));
        out.extend(*random.pick(&HOSTS4));
    }
    out.extend([0; 18]);
    out
}

fn llc(random: &mut Random, depth: usize) -> Vec<u8> {
    match random.below(3) {
        0 => {
            let (ethertype, payload) = typed(random, depth + 1);
            let mut out = vec![0xaa, 0xaa, 3, 0, 0, *random.pick(&[0, 0, 0x0c])];
            push(&mut out, ethertype.unwrap_or(0x2000));
            [out, payload].concat()
        }
        1 => [vec![0x42, 0x42, 3], random.bytes(35)].concat(),
        _ => [vec![0xfe, 0xfe, random.bits() as u8], random.bytes(35)].concat(),
    }
}

fn ip(random: &mut Random, v6: bool, depth: usize) -> Vec<u8> {
    if v6 { ipv6(random, depth) } else { ipv4(random, depth) }
}

fn ipv4(random: &mut Random, depth: usize) -> Vec<u8> {
    let (protocol, payload) = transport(random, false, depth);
    let words = if random.one_in(4) { random.below(11) } else { 0 };
    let total = 20 + words * 4 + payload.len();
    let mut out = vec![0x45 + words as u8, random.bits() as u8];
    push(&mut out, total as u16);
    push(&mut out, random.bits() as u16);
    let df = *random.pick(&[0, 0x4000]);
    push(&mut out, df | fragment(random, 0x2000, 1));
    out.extend([random.bits() as u8, protocol, 0, 0]);
    out.extend(*random.pick(&HOSTS4));
    out.extend(*random.pick(&HOSTS4));
    out.extend(random.bytes(words * 4));
    [out, payload].concat()
}

/// No fragment most times, else a first or a later one.
fn fragment(random: &mut Random, more: u16, unit: u16) -> u16 {
    match random.below(12) {
        0 => more,
        1 => *random.pick(&[1, 2, 0x1fff]) * unit,
        2 => more | (5 * unit),
        _ => 0,
    }
}

fn ipv6(random: &mut Random, depth: usize) -> Vec<u8> {
    let (protocol, mut payload) = transport(random, true, depth);
    let mut next = protocol;
    for _ in 0..if random.one_in(3) { 1 + random.below(3) } else { 0 } {
        let kind = *random.pick(&[0, 43, 44, 51, 60]);
        let mut head = vec![next];
        match kind {
            44 => {
                head.push(0);
                push(&mut head, fragment(random, 1, 8));
                head.extend(random.bytes(4));
            }
            51 => {
                let words = random.below(6);
                head.push(words as u8);
                head.extend(random.bytes((words + 2) * 4 - 2));
            }
            _ => {
                let units = *random.pick(&[0, 0, 1, 3]);
                head.push(units as u8);
                head.extend(random.bytes((units + 1) * 8 - 2));
            }
        }
        payload = [head, payload].concat();
        next = kind;
    }
    let mut out = vec![0x60 | (random.bits() as u8 & 0xf), 0, 0, 0];
    push(&mut out, payload.len() as u16);
    out.extend([next, random.bits() as u8]);
    out.extend(*random.pick(&HOSTS6));
    out.extend(*random.pick(&HOSTS6));
    [out, payload].concat()
}

/// A protocol number and the packet inside.
fn transport(random: &mut Random, v6: bool, depth: usize) -> (u8, Vec<u8>) {
    let mut out = Vec::new();
    let (source, destination) = (*random.pick(&PORTS), *random.pick(&PORTS));
    push(&mut out, source);
    push(&mut out, destination);
    let kinds = if depth > DEPTH_MAX { 9 } else { 18 };
    match random.below(kinds) {
        0..4 => {
            out.extend(random.bytes(8));
            out.extend([0x50, *random.pick(&[2, 0x12, 0x10, 0x18, 0x11, 4, 0]), 1, 0, 0, 0, 0, 0]);
            let payload = random.below(20);
            out.extend(random.bytes(payload));
            (6, out)
        }
        4..6 => {
            let payload = random.below(40);
            push(&mut out, 8 + payload as u16);
            out.extend([0, 0]);
            out.extend(random.bytes(payload));
            (17, out)
        }
        6 => {
            out.extend(random.bytes(20));
            (132, out)
        }
        7 => {
            let kind = if v6 { *random.pick(&[128, 135, 1]) } else { *random.pick(&[8, 0, 3]) };
            let body = random.bytes(20);
            (if v6 { 58 } else { 1 }, [vec![kind, *random.pick(&[0, 1])], body].concat())
        }
        8 => (*random.pick(&[50, 89, 2, 59]), random.bytes(24)),
        9 | 10 => (17, vxlan(random, depth)),
        11 | 12 => (17, geneve(random, depth)),
        13 => (47, gre(random, depth)),
        14 => (4, ipv4(random, depth + 1)),
        15 => (17, vxlan_gpe(random, depth)),
        16 => (17, gtp_u(random, depth)),
        _ => (*random.pick(&[41, 137]), ipv6(random, depth + 1)),
    }
}

fn vxlan(random: &mut Random, depth: usize) -> Vec<u8> {
    let mut out = random.bytes(2);
    push(&mut out, *random.pick(&[4789, 8472]));
    out.extend([
        0,
        0,
        0,
        0,
        *random.pick(&[8, 8, 8, 0x88, 0]),
        0,
        0,
        0,
        0,
        0,
        *random.pick(&[7, 9]),
        0,
    ]);
    [out, ethernet(random, depth + 1)].concat()
}

fn geneve(random: &mut Random, depth: usize) -> Vec<u8> {
    let mut out = random.bytes(2);
    push(&mut out, 6081);
    let words = *random.pick(&[0, 0, 1, 2, 16, 63]);
    out.extend([0, 0, 0, 0, words as u8, *random.pick(&[0, 0x40])]);
    let v6 = random.one_in(3);
    let inside = random.below(3);
    push(&mut out, [0x6558, [0x800, 0x86dd][usize::from(v6)], 0x1234][inside]);
    out.extend([0, 0, *random.pick(&[7, 9]), 0]);
    out.extend(random.bytes(words * 4));
    match inside {
        0 => [out, ethernet(random, depth + 1)].concat(),
        1 => [out, ip(random, v6, depth + 1)].concat(),
        _ => [out, random.bytes(30)].concat(),
    }
}

fn vxlan_gpe(random: &mut Random, depth: usize) -> Vec<u8> {
    let mut out = random.bytes(2);
    push(&mut out, 4790);
    let next = *random.pick(&[1, 2, 3, 4]);
    out.extend([0, 0, 0, 0, *random.pick(&[0x0c, 0x0c, 0x0d, 0x08]), 0, 0, next, 0, 0, 7, 0]);
    match next {
        1 | 2 => [out, ip(random, next == 2, depth + 1)].concat(),
        _ => [out, ethernet(random, depth + 1)].concat(),
    }
}

fn gtp_u(random: &mut Random, depth: usize) -> Vec<u8> {
    let v6 = random.one_in(3);
    let inside = ip(random, v6, depth + 1);
    let flags = *random.pick(&[0x30, 0x30, 0x32, 0x31, 0x34, 0x36, 0x50]);
    let mut rest = Vec::new();
    if flags & 7 != 0 {
        let extensions = if flags & 4 != 0 { random.below(3) } else { 0 };
        let kinds = [0x85, 0x40, 0x20];
        let kind = |n: usize| if n < extensions { kinds[n] } else { 0 };
        rest.extend([0, 9, 0, kind(0)]);
        for n in 0..extensions {
            let words = *random.pick(&[1, 1, 2]);
            rest.push(words);
            rest.extend(random.bytes(usize::from(words) * 4 - 2));
            rest.push(kind(n + 1));
        }
    }
    let length = (rest.len() + inside.len()) as u16;
    let mut out = random.bytes(2);
    push(&mut out, 2152);
    push(&mut out, length.wrapping_add(*random.pick(&[16, 16, 16, 15])));
    out.extend([0, 0, flags, *random.pick(&[0xff, 0xff, 0xff, 1])]);
    push(&mut out, length);
    out.extend([0, 0, 1, 2]);
    [out, rest, inside].concat()
}

fn gre(random: &mut Random, depth: usize) -> Vec<u8> {
    let flags: u16 = *random.pick(&[0, 0x8000, 0x2000, 0x1000, 0xb000, 0x3000, 0x3001, 0x4000]);
    let mut out = Vec::new();
    push(&mut out, flags);
    let inside = random.below(6);
    push(&mut out, [0x800, 0x86dd, 0x6558, 0x88be, 0x88be, 0x22eb][inside]);
    for bits in [0xc000, 0x2000, 0x1000] {
        if flags & bits != 0 {
            out.extend(random.bytes(4));
        }
    }
    match inside {
        0 | 1 => [out, ip(random, inside == 1, depth + 1)].concat(),
        4 => [out, vec![0x10, 5, 0xe8, 7, 0, 0, 0, 1], ethernet(random, depth + 1)].concat(),
        5 => {
            let (kind, subheader) = (random.pick(&[0, 0, 2, 1]), random.below(2));
            let (a, b) = (kind << 2 | 0x80, subheader as u8 | 0x10);
            let head = vec![0x2f, 0xff, 3, 0xff, 1, 2, 3, 4, 0, 0, a, b];
            let more = random.bytes(subheader * 8);
            let frame = match kind {
                2 => ip(random, false, depth + 1),
                _ => ethernet(random, depth + 1),
            };
            [out, head, more, frame].concat()
        }
        _ => [out, ethernet(random, depth + 1)].concat(),
    }
}

fn push(out: &mut Vec<u8>, half: u16) {
    out.extend(half.to_be_bytes());
}
