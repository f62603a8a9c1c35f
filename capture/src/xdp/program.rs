//! The XDP program, put together instruction by instruction.
//!
//! ```text
//!  packet ──► of the UDP ports asked for? ──no──► the kernel's stack
//!                   │ yes, or all are taken
//!                   ▼
//!             stamp in front of it ──► socket of its queue; the stack if there is none
//! ```
//! The stamp is what [`Stamp`] reads: a mark and the time of CLOCK_TAI, in the packet's metadata
//! area, and before them what the card knows of the packet, if its driver tells. A driver without
//! such an area leaves the stamp out, and the packet is taken all the same.
//!
//! What the card knows is asked by functions of the kernel, which it lets only programs call that
//! may be used under the GPL. This program is ours, so it may be: under MIT or GPL-2.0, as
//! [`LICENCE`] tells the kernel. A frame's hash is not asked for: the index needs one that is alike
//! in both directions.
//!
//! Source: Linux Documentation/bpf/standardization/instruction-set.rst, linux/bpf.h.

use std::ffi::CStr;
use std::os::fd::RawFd;

use crate::source::VlanTag;

/// UDP ports that one program can test; each is one instruction.
pub(super) const UDP_PORTS_MAX: usize = 16;

/// What the kernel is told. Its list of licences is in linux/license.h.
pub(super) const LICENCE: &CStr = c"Dual MIT/GPL";

/// Tells a stamp from what a frame's headroom held before.
const MARK: u64 = u64::from_be_bytes(*b"WVstamp\x01");
/// A stamp that has the card's part before it.
const MARK_CARD: u64 = u64::from_be_bytes(*b"WVstamp\x02");

/// What the program writes before a packet's first byte, native byte order unless said otherwise:
///
/// ```text
///  card's part:  0 time of the card, 0 if none (8)   8 TPID, as on the wire, 0 if none (2)
///                10 TCI (2)   12 nothing (4)
///  always:       16 mark (8)   24 time of CLOCK_TAI (8)   32 the packet
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Nanoseconds of CLOCK_TAI.
    pub(super) tai_ns: u64,
    /// Nanoseconds of the card's clock.
    pub(super) card_ns: Option<u64>,
    /// The tag that the card took out of the frame.
    pub(super) vlan: Option<VlanTag>,
}

impl Stamp {
    /// Bytes before the packet that every stamp has. The kernel wants a multiple of 4.
    pub(super) const BYTES: usize = 16;
    /// Bytes before the packet with the card's part; the kernel's limit.
    pub(super) const CARD_BYTES: usize = 32;

    /// Reads what stands before a packet, at most [`Self::CARD_BYTES`].
    #[inline]
    pub(super) fn read(before: &[u8]) -> Option<Self> {
        let (before, time) = before.split_last_chunk::<8>()?;
        let (before, mark) = before.split_last_chunk::<8>()?;
        let tai_ns = u64::from_ne_bytes(*time);
        match u64::from_ne_bytes(*mark) {
            MARK => Some(Self { tai_ns, card_ns: None, vlan: None }),
            MARK_CARD => {
                let (card, tag) = before.last_chunk::<16>()?.split_first_chunk::<8>()?;
                let card_ns = Some(u64::from_ne_bytes(*card)).filter(|time| *time != 0);
                let tpid = u16::from_be_bytes([tag[0], tag[1]]);
                let tci = u16::from_ne_bytes([tag[2], tag[3]]);
                let vlan = (tpid != 0).then_some(VlanTag { tpid, tci });
                Some(Self { tai_ns, card_ns, vlan })
            }
            _ => None,
        }
    }
}

/// Functions of the kernel that tell what the card knows of a packet, by their numbers in its
/// types; those that its driver has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct CardCalls {
    /// When the packet came.
    pub(super) time: Option<i32>,
    /// Which VLAN tag was taken out of the frame.
    pub(super) vlan: Option<i32>,
}

impl CardCalls {
    /// Names of the functions: `time`, `vlan`. Linux 6.3 and 6.8.
    pub(super) const NAMES: [&str; 2] =
        ["bpf_xdp_metadata_rx_timestamp", "bpf_xdp_metadata_rx_vlan_tag"];

    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// What the program does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    /// Takes only UDP packets to these ports; all packets if there are none. At most
    /// [`UDP_PORTS_MAX`].
    pub(super) udp_ports: Vec<u16>,
    /// Writes stamps. Needs Linux 6.1.
    pub(super) stamps: bool,
    /// What stamps tell of the card. Needs a program that is loaded for one interface.
    pub(super) card: CardCalls,
}

/// The instructions, for a map of sockets by queue.
pub(super) fn assemble(task: &Task, map: RawFd) -> Vec<u64> {
    let mut code = Assembler::default();
    code.put(Op::MoveReg, CONTEXT, R1, 0, 0);
    if !task.udp_ports.is_empty() {
        code.select_udp(&task.udp_ports);
    }
    if task.stamps {
        code.stamp(task.card);
    }
    code.label(Label::Redirect);
    code.put(Op::LoadWord, R2, CONTEXT, MD_QUEUE, 0);
    code.wide(R1, PSEUDO_MAP_FD, u64::from(map.cast_unsigned()));
    code.put(Op::MoveImm, R3, 0, 0, XDP_PASS);
    code.call(HELPER_REDIRECT_MAP);
    code.put(Op::Exit, 0, 0, 0, 0);
    if !task.udp_ports.is_empty() {
        code.label(Label::Pass);
        code.put(Op::MoveImm, R0, 0, 0, XDP_PASS);
        code.put(Op::Exit, 0, 0, 0, 0);
    }
    code.finish()
}

const PROTOCOL_UDP: i32 = 17;
const XDP_PASS: i32 = 2;
const PSEUDO_MAP_FD: u8 = 1;
const PSEUDO_KERNEL_FUNCTION: u8 = 2;
const HELPER_REDIRECT_MAP: i32 = 51;
const HELPER_ADJUST_META: i32 = 54;
const HELPER_LOAD_BYTES: i32 = 189;
const HELPER_KTIME_TAI: i32 = 208;
/// Offsets in `xdp_md`.
const MD_DATA: i16 = 0;
const MD_META: i16 = 8;
const MD_QUEUE: i16 = 16;

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
/// Registers 6 to 9 survive calls.
const CONTEXT: u8 = 6;
/// What was read last, or the time.
const VALUE: u8 = 7;
/// Where in the packet we are.
const OFFSET: u8 = 8;
const STACK: u8 = 10;
/// Room on the stack for what is read of the packet.
const SCRATCH: i16 = -32;
/// Places there of what the card tells, as in [`Stamp`].
const CARD_TIME: i16 = -16;
const CARD_TPID: i16 = -8;
const CARD_TCI: i16 = -6;

/// Operations by their code: class, source and width in one byte.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Op {
    Jump = 0x05,
    AddImm = 0x07,
    JumpEqual = 0x15,
    Wide = 0x18,
    JumpGreaterReg = 0x2d,
    JumpUnequal = 0x55,
    AndImm = 0x57,
    LoadWord = 0x61,
    ShiftLeftImm = 0x67,
    LoadHalf = 0x69,
    LoadByte = 0x71,
    LoadDouble = 0x79,
    StoreDoubleImm = 0x7a,
    StoreDouble = 0x7b,
    Call = 0x85,
    Exit = 0x95,
    MoveImm = 0xb7,
    AddReg = 0x0f,
    MoveReg = 0xbf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Type,
    Ipv6,
    Udp,
    Take,
    Redirect,
    Pass,
}

#[derive(Default)]
struct Assembler {
    code: Vec<u64>,
    places: Vec<(Label, usize)>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn put(&mut self, op: Op, to: u8, from: u8, offset: i16, value: i32) {
        self.code.push(
            u64::from(op as u8)
                | u64::from(to) << 8
                | u64::from(from) << 12
                | u64::from(offset.cast_unsigned()) << 16
                | u64::from(value.cast_unsigned()) << 32,
        );
    }

    /// Loads 64 bits; takes two places.
    fn wide(&mut self, to: u8, kind: u8, value: u64) {
        self.put(Op::Wide, to, kind, 0, (value as u32).cast_signed());
        self.code.push(value >> 32 << 32);
    }

    fn call(&mut self, helper: i32) {
        self.put(Op::Call, 0, 0, 0, helper);
    }

    fn label(&mut self, label: Label) {
        self.places.push((label, self.code.len()));
    }

    fn jump(&mut self, op: Op, register: u8, value: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(op, register, 0, 0, value);
    }

    /// Reads `bytes` of the packet, `ahead` of where we are, onto the stack; a shorter packet is
    /// passed. Works for packets of several fragments, and for ones whose first is short.
    fn read(&mut self, ahead: i32, bytes: i32) {
        self.put(Op::MoveReg, R1, CONTEXT, 0, 0);
        self.put(Op::MoveReg, R2, OFFSET, 0, 0);
        self.put(Op::AddImm, R2, 0, 0, ahead);
        self.put(Op::MoveReg, R3, STACK, 0, 0);
        self.put(Op::AddImm, R3, 0, 0, SCRATCH.into());
        self.put(Op::MoveImm, R4, 0, 0, bytes);
        self.call(HELPER_LOAD_BYTES);
        self.jump(Op::JumpUnequal, R0, 0, Label::Pass);
    }

    /// Falls through for UDP over IPv4 or IPv6 to one of the ports. Fragments other than the first
    /// have no ports and are passed, as are IPv6 packets with extension headers.
    fn select_udp(&mut self, ports: &[u16]) {
        const TAGS_MAX: u32 = 2;
        self.put(Op::MoveImm, OFFSET, 0, 0, 12);
        for _ in 0..TAGS_MAX {
            self.read(0, 2);
            self.put(Op::LoadHalf, VALUE, STACK, SCRATCH, 0);
            self.put(Op::JumpEqual, VALUE, 0, 2, network(0x8100));
            self.put(Op::JumpEqual, VALUE, 0, 1, network(0x88a8));
            self.jump(Op::Jump, 0, 0, Label::Type);
            self.put(Op::AddImm, OFFSET, 0, 0, 4);
        }
        self.read(0, 2);
        self.put(Op::LoadHalf, VALUE, STACK, SCRATCH, 0);
        self.label(Label::Type);
        self.put(Op::AddImm, OFFSET, 0, 0, 2);
        self.jump(Op::JumpEqual, VALUE, network(0x86dd), Label::Ipv6);
        self.jump(Op::JumpUnequal, VALUE, network(0x0800), Label::Pass);
        self.read(0, 20);
        self.put(Op::LoadByte, R1, STACK, SCRATCH + 9, 0);
        self.jump(Op::JumpUnequal, R1, PROTOCOL_UDP, Label::Pass);
        self.put(Op::LoadHalf, R1, STACK, SCRATCH + 6, 0);
        self.put(Op::AndImm, R1, 0, 0, network(0x1fff));
        self.jump(Op::JumpUnequal, R1, 0, Label::Pass);
        self.put(Op::LoadByte, R1, STACK, SCRATCH, 0);
        self.put(Op::AndImm, R1, 0, 0, 15);
        self.put(Op::ShiftLeftImm, R1, 0, 0, 2);
        self.put(Op::AddReg, OFFSET, R1, 0, 0);
        self.jump(Op::Jump, 0, 0, Label::Udp);
        self.label(Label::Ipv6);
        self.read(0, 7);
        self.put(Op::LoadByte, R1, STACK, SCRATCH + 6, 0);
        self.jump(Op::JumpUnequal, R1, PROTOCOL_UDP, Label::Pass);
        self.put(Op::AddImm, OFFSET, 0, 0, 40);
        self.label(Label::Udp);
        self.read(2, 2);
        self.put(Op::LoadHalf, VALUE, STACK, SCRATCH, 0);
        for port in ports {
            self.jump(Op::JumpEqual, VALUE, network(*port), Label::Take);
        }
        self.jump(Op::Jump, 0, 0, Label::Pass);
        self.label(Label::Take);
    }

    /// Writes the stamp, if the driver has room for it.
    fn stamp(&mut self, card: CardCalls) {
        let (mark, bytes) = match card.is_empty() {
            true => (MARK, Stamp::BYTES as i32),
            false => (MARK_CARD, Stamp::CARD_BYTES as i32),
        };
        self.put(Op::MoveReg, R1, CONTEXT, 0, 0);
        self.put(Op::MoveImm, R2, 0, 0, -bytes);
        self.call(HELPER_ADJUST_META);
        self.jump(Op::JumpUnequal, R0, 0, Label::Redirect);
        self.ask_card(card);
        self.call(HELPER_KTIME_TAI);
        self.put(Op::LoadWord, R2, CONTEXT, MD_META, 0);
        self.put(Op::LoadWord, R3, CONTEXT, MD_DATA, 0);
        // What the verifier wants to see, although the call above made sure of it.
        self.put(Op::MoveReg, R4, R2, 0, 0);
        self.put(Op::AddImm, R4, 0, 0, bytes);
        self.jumps.push((self.code.len(), Label::Redirect));
        self.put(Op::JumpGreaterReg, R4, R3, 0, 0);
        if !card.is_empty() {
            for (place, to) in [(CARD_TIME, 0), (CARD_TPID, 8)] {
                self.put(Op::LoadDouble, R4, STACK, place, 0);
                self.put(Op::StoreDouble, R2, R4, to, 0);
            }
        }
        let always = (bytes - Stamp::BYTES as i32) as i16;
        self.wide(R4, 0, mark);
        self.put(Op::StoreDouble, R2, R4, always, 0);
        self.put(Op::StoreDouble, R2, R0, always + 8, 0);
    }

    /// Has the card's answers on the stack. One that fails leaves zeros: it has nothing to say of
    /// this packet.
    fn ask_card(&mut self, card: CardCalls) {
        let answers = [(card.time, CARD_TIME, None), (card.vlan, CARD_TPID, Some(CARD_TCI))];
        for (_, place, _) in answers.iter().filter(|_| !card.is_empty()) {
            self.put(Op::StoreDoubleImm, STACK, 0, *place, 0);
        }
        for (function, place, second) in answers {
            let Some(function) = function else { continue };
            self.put(Op::MoveReg, R1, CONTEXT, 0, 0);
            for (register, place) in [(R2, Some(place)), (R3, second)] {
                let Some(place) = place else { continue };
                self.put(Op::MoveReg, register, STACK, 0, 0);
                self.put(Op::AddImm, register, 0, 0, place.into());
            }
            self.put(Op::Call, 0, PSEUDO_KERNEL_FUNCTION, 0, function);
            self.put(Op::JumpEqual, R0, 0, 1, 0);
            self.put(Op::StoreDoubleImm, STACK, 0, place, 0);
        }
    }

    /// Fills the jumps in. A jump counts from the instruction behind it.
    fn finish(mut self) -> Vec<u64> {
        for (at, label) in self.jumps {
            let place = self.places.iter().find(|(known, _)| *known == label);
            let place = place.expect("every label that is jumped to is put down");
            let offset = (place.1 - at - 1) as u16;
            self.code[at] |= u64::from(offset) << 16;
        }
        self.code
    }
}

/// A half word as it is loaded from a packet.
fn network(value: u16) -> i32 {
    u16::from_ne_bytes(value.to_be_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_go_forward_and_stay_inside() {
        let both = CardCalls { time: Some(7), vlan: Some(8) };
        let all = [(false, CardCalls::default()), (true, CardCalls::default()), (true, both)];
        for ports in [vec![], vec![4789], vec![1; UDP_PORTS_MAX]] {
            for (stamps, card) in all {
                let task = Task { udp_ports: ports.clone(), stamps, card };
                let code = assemble(&task, 7);
                for (at, one) in code.iter().enumerate() {
                    let is_jump = *one as u8 & 7 == 5 && ![0x85, 0x95].contains(&(*one as u8));
                    let to = at + 1 + (*one >> 16) as usize % 65536;
                    assert!(!is_jump || (to > at && to < code.len()), "{task:?}: {at} to {to}");
                }
                assert_eq!(code.last().map(|one| *one as u8), Some(Op::Exit as u8));
            }
        }
    }

    #[test]
    fn all_packets_need_seven_instructions() {
        let task = Task { udp_ports: vec![], stamps: false, card: CardCalls::default() };
        let code = assemble(&task, 5);
        let expected = [
            0x0000_0000_0000_16bf,
            0x0000_0000_0010_6261,
            0x0000_0005_0000_1118,
            0,
            0x0000_0002_0000_03b7,
            0x0000_0033_0000_0085,
            0x0000_0000_0000_0095,
        ];
        assert_eq!(code, expected);
    }

    #[test]
    fn a_stamp_is_known_by_its_mark() {
        let mut bytes = [0; Stamp::CARD_BYTES];
        bytes[24..].copy_from_slice(&9u64.to_ne_bytes());
        assert_eq!(Stamp::read(&bytes), None);
        assert_eq!(Stamp::read(&bytes[17..]), None);
        bytes[..8].copy_from_slice(&5u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&[0x81, 0, 7, 7]);
        bytes[16..24].copy_from_slice(&MARK.to_ne_bytes());
        let plain = Stamp { tai_ns: 9, card_ns: None, vlan: None };
        assert_eq!(Stamp::read(&bytes), Some(plain));
        assert_eq!(Stamp::read(&bytes[16..]), Some(plain));
        bytes[16..24].copy_from_slice(&MARK_CARD.to_ne_bytes());
        let vlan = Some(VlanTag { tpid: 0x8100, tci: 0x0707 });
        assert_eq!(Stamp::read(&bytes), Some(Stamp { card_ns: Some(5), vlan, ..plain }));
        assert_eq!(Stamp::read(&bytes[16..]), None, "the card's part is missing");
        bytes[..16].fill(0);
        assert_eq!(Stamp::read(&bytes), Some(plain), "the card had nothing to say");
    }
}
