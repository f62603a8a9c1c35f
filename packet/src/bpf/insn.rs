//! Instructions and their checking.

use std::str::FromStr;

use crate::error::PacketError;

/// Scratch words of the machine.
pub(crate) const SCRATCH_WORDS: usize = 16;
/// Most instructions of a program. The kernel takes 4096; libpcap has no limit for files, and long
/// address lists need more than the kernel's.
pub(crate) const PROGRAM_INSNS_MAX: usize = 1 << 17;
/// From here on an absolute load asks the Linux kernel about the packet (`SKF_AD_OFF`).
const ANCILLARY_AT: u32 = 0xffff_f000;

/// One instruction.
///
/// Layout: that of `struct bpf_insn`. Source: the pcap-filter library and `bpf(4)` of the BSDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Insn {
    /// Class, size or operation, and mode.
    pub code: u16,
    /// Instructions to skip if the condition holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Text is not an instruction as `tcpdump -ddd` prints it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a filter instruction: four decimal numbers are expected")]
pub struct ParseInsnError(String);

impl FromStr for Insn {
    type Err = ParseInsnError;

    /// Reads `code jt jf k` in decimal, one line of `tcpdump -ddd`.
    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let mut words = line.split_ascii_whitespace();
        let mut parse = || {
            let insn = Self {
                code: words.next()?.parse().ok()?,
                jt: words.next()?.parse().ok()?,
                jf: words.next()?.parse().ok()?,
                k: words.next()?.parse().ok()?,
            };
            words.next().is_none().then_some(insn)
        };
        parse().ok_or_else(|| ParseInsnError(line.to_owned()))
    }
}

/// How many bytes a load takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Byte = 1,
    Half = 2,
    Word = 4,
}

/// Where an operation's second operand comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operand {
    K,
    X,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alu {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Or,
    And,
    Xor,
    Lsh,
    Rsh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
    AnyBit,
}

/// An instruction taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    LoadAbsolute(Size),
    LoadIndirect(Size),
    LoadLength,
    LoadImmediate,
    LoadScratch,
    LoadXImmediate,
    LoadXScratch,
    LoadXLength,
    LoadXHeader,
    Store,
    StoreX,
    Alu(Alu, Operand),
    Negate,
    Always,
    Jump(Test, Operand),
    ReturnK,
    ReturnA,
    AToX,
    XToA,
}

impl Op {
    pub(crate) fn of(code: u16) -> Option<Self> {
        let size = |code: u16| match code & 0x18 {
            0x00 => Some(Size::Word),
            0x08 => Some(Size::Half),
            0x10 => Some(Size::Byte),
            _ => None,
        };
        let operand = if code & 0x08 == 0 { Operand::K } else { Operand::X };
        Some(match (code & 7, code) {
            (_, 0x00) => Self::LoadImmediate,
            (_, 0x60) => Self::LoadScratch,
            (_, 0x80) => Self::LoadLength,
            (0, _) if code & !0x18 == 0x20 => Self::LoadAbsolute(size(code)?),
            (0, _) if code & !0x18 == 0x40 => Self::LoadIndirect(size(code)?),
            (_, 0x01) => Self::LoadXImmediate,
            (_, 0x61) => Self::LoadXScratch,
            (_, 0x81) => Self::LoadXLength,
            (_, 0xb1) => Self::LoadXHeader,
            (_, 0x02) => Self::Store,
            (_, 0x03) => Self::StoreX,
            (_, 0x84) => Self::Negate,
            (4, _) => {
                let alu = match code & !0x08 {
                    0x04 => Alu::Add,
                    0x14 => Alu::Sub,
                    0x24 => Alu::Mul,
                    0x34 => Alu::Div,
                    0x44 => Alu::Or,
                    0x54 => Alu::And,
                    0x64 => Alu::Lsh,
                    0x74 => Alu::Rsh,
                    0x94 => Alu::Mod,
                    0xa4 => Alu::Xor,
                    _ => return None,
                };
                Self::Alu(alu, operand)
            }
            (_, 0x05) => Self::Always,
            (5, _) => {
                let test = match code & !0x08 {
                    0x15 => Test::Equal,
                    0x25 => Test::Greater,
                    0x35 => Test::GreaterOrEqual,
                    0x45 => Test::AnyBit,
                    _ => return None,
                };
                Self::Jump(test, operand)
            }
            (_, 0x06) => Self::ReturnK,
            (_, 0x16) => Self::ReturnA,
            (_, 0x07) => Self::AToX,
            (_, 0x87) => Self::XToA,
            _ => return None,
        })
    }
}

/// One instruction, checked, with jump targets made absolute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) op: Op,
    pub(crate) k: u32,
    /// Next instruction if the condition holds; also the target of an unconditional jump.
    pub(crate) then: u32,
    /// Next instruction if it does not; also the one after anything but a jump.
    pub(crate) otherwise: u32,
}

/// A checked program. Invariant: every `then` and `otherwise` that can be reached is an
/// instruction, scratch indexes are below `SCRATCH_WORDS`, constant divisors are not 0.
#[derive(Debug, Clone)]
pub struct Program {
    insns: Vec<Insn>,
    pub(crate) steps: Vec<Step>,
    /// Whether a jump goes backward, which only `protochain` makes libpcap do.
    pub(crate) loops: bool,
}

impl Program {
    /// Checks a program.
    ///
    /// Unlike the kernel this takes the backward jumps that libpcap emits for `protochain`.
    ///
    /// # Errors
    /// Unknown instruction, jump out of the program, scratch word that does not exist, division by
    /// the constant 0, shift by 32 or more, no return at the end, or a question to the kernel
    /// (such as `inbound`) that a stored packet cannot answer.
    pub fn new(insns: Vec<Insn>) -> Result<Self, PacketError> {
        let count = insns.len();
        if count == 0 || count > PROGRAM_INSNS_MAX {
            return Err(PacketError::ProgramLength { insns: count, max: PROGRAM_INSNS_MAX });
        }
        let steps = insns.iter().enumerate().map(|(at, insn)| check(at, insn, count));
        let steps = steps.collect::<Result<Vec<_>, _>>()?;
        let loops = (0..).zip(&steps).any(|(at, s)| s.op == Op::Always && s.then <= at);
        Ok(Self { insns, steps, loops })
    }

    /// A program that takes what both take. Putting their texts together instead would let either
    /// change what the other means: by a parenthesis, or by `vlan`, which shifts what follows it.
    ///
    /// # Errors
    /// Both together are too long, or the first returns a value that it computes, which libpcap's
    /// never do.
    pub fn and(&self, other: &Self) -> Result<Self, PacketError> {
        let behind = self.insns.len();
        let mut insns = self.insns.clone();
        for (at, (insn, step)) in insns.iter_mut().zip(&self.steps).enumerate() {
            match step.op {
                Op::ReturnA => return Err(PacketError::ProgramCode { at, code: insn.code }),
                Op::ReturnK if insn.k != 0 => {
                    *insn = Insn { code: 0x05, jt: 0, jf: 0, k: (behind - at - 1) as u32 };
                }
                _ => {}
            }
        }
        insns.extend_from_slice(&other.insns);
        Self::new(insns)
    }

    /// The instructions.
    pub fn insns(&self) -> &[Insn] {
        &self.insns
    }
}

fn check(at: usize, insn: &Insn, insns: usize) -> Result<Step, PacketError> {
    let Insn { code, jt, jf, k } = *insn;
    let op = Op::of(code).ok_or(PacketError::ProgramCode { at, code })?;
    let inside = |target: usize| {
        let there = (target < insns).then_some(target as u32);
        there.ok_or(PacketError::ProgramJump { at, insns })
    };
    let operand_wrong = match op {
        Op::LoadScratch | Op::LoadXScratch | Op::Store | Op::StoreX => k >= SCRATCH_WORDS as u32,
        Op::Alu(Alu::Div | Alu::Mod, Operand::K) => k == 0,
        Op::Alu(Alu::Lsh | Alu::Rsh, Operand::K) => k >= 32,
        _ => false,
    };
    if operand_wrong {
        return Err(PacketError::ProgramOperand { at, k });
    }
    if matches!(op, Op::LoadAbsolute(_)) && k >= ANCILLARY_AT {
        return Err(PacketError::ProgramAncillary { at, k });
    }
    let next = at + 1;
    let (then, otherwise) = match op {
        // The offset wraps: that is how a jump goes backward.
        Op::Always => {
            let target = inside((next as u32).wrapping_add(k) as usize)?;
            (target, target)
        }
        Op::Jump(..) => (inside(next + usize::from(jt))?, inside(next + usize::from(jf))?),
        Op::ReturnK | Op::ReturnA => (0, 0),
        _ => {
            let next = inside(next)?;
            (next, next)
        }
    };
    Ok(Step { op, k, then, otherwise })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insn(code: u16, jt: u8, jf: u8, k: u32) -> Insn {
        Insn { code, jt, jf, k }
    }

    #[test]
    fn faults_are_named() {
        let ret = insn(6, 0, 0, 1);
        let cases = [
            (vec![], "instructions; 1 to"),
            (vec![insn(0x20, 0, 0, 0)], "leaves the program"),
            (vec![insn(0x15, 1, 0, 0), ret], "leaves the program"),
            (vec![insn(0x05, 0, 0, 7), ret], "leaves the program"),
            (vec![insn(0x02, 0, 0, 16), ret], "impossible operand"),
            (vec![insn(0x34, 0, 0, 0), ret], "impossible operand"),
            (vec![insn(0x64, 0, 0, 32), ret], "impossible operand"),
            (vec![insn(0x28, 0, 0, 0xffff_f004), ret], "live capture"),
            (vec![insn(0xffff, 0, 0, 0), ret], "unknown code"),
            (vec![insn(0x38, 0, 0, 0), ret], "unknown code"),
        ];
        for (insns, text) in cases {
            let error = Program::new(insns).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        assert!(Program::new(vec![ret]).is_ok());
    }

    #[test]
    fn instructions_read_as_tcpdump_prints_them() {
        assert_eq!("21 0 5 2048".parse(), Ok(insn(0x15, 0, 5, 2048)));
        for bad in ["", "21 0 5", "21 0 5 1 2", "21 0 256 1", "x 0 0 0"] {
            assert!(bad.parse::<Insn>().is_err());
        }
    }

    #[test]
    fn both_programs_must_take_a_packet() {
        // The first byte is `value`.
        let first = |value| {
            let insns = vec![
                insn(0x30, 0, 0, 0),
                insn(0x15, 0, 1, value),
                insn(0x06, 0, 0, 9),
                insn(0x06, 0, 0, 0),
            ];
            Program::new(insns).unwrap()
        };
        let length = Program::new(vec![
            insn(0x80, 0, 0, 0),
            insn(0x25, 0, 1, 5),
            insn(0x06, 0, 0, 7),
            insn(0x06, 0, 0, 0),
        ])
        .unwrap();
        for both in [first(1).and(&length).unwrap(), length.and(&first(1)).unwrap()] {
            assert_ne!(both.run(&[1], 6), 0);
            for (byte, wire_len) in [(1, 5), (2, 6), (2, 5)] {
                assert_eq!(both.run(&[byte], wire_len), 0);
            }
            // A load outside of the packet refuses, in whichever it stands.
            assert_eq!(both.run(&[], 6), 0);
        }
        let computed = Program::new(vec![insn(0x16, 0, 0, 0)]).unwrap();
        assert!(computed.and(&length).is_err() && length.and(&computed).is_ok());
    }
}
