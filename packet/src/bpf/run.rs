//! A program on a packet.

use crate::bpf::insn::{Alu, Op, Operand, Program, SCRATCH_WORDS, Size, Test};

/// Most backward jumps in one run; then the packet is refused. A `protochain` loop moves at least
/// 8 bytes ahead each time and ends at the packet's end, so that real programs stay far below.
const BACKWARD_JUMPS_MAX: u32 = 1 << 16;

impl Program {
    /// Runs the program on a packet. Returns 0 to refuse it, else how many bytes to keep.
    ///
    /// `data` are the captured bytes, `wire_len` the length on the wire, as `less` and `greater`
    /// see it. The result is that of libpcap's `bpf_filter`: arithmetic wraps, a load that is not
    /// wholly inside `data` refuses the packet, and so does a division by 0.
    ///
    /// Scratch words start as 0. libpcap leaves them undefined, and reads some of them unwritten
    /// in negations of `geneve ... and ...`; only there can its results differ from these.
    pub fn run(&self, data: &[u8], wire_len: u32) -> u32 {
        let mut a = 0u32;
        let mut x = 0u32;
        let mut scratch = [0u32; SCRATCH_WORDS];
        let mut at = 0;
        let mut backward = 0;
        while let Some(step) = self.steps.get(at) {
            let k = step.k;
            let mut next = step.otherwise;
            match step.op {
                Op::LoadAbsolute(size) => match load(data, k as usize, size) {
                    Some(value) => a = value,
                    None => return 0,
                },
                Op::LoadIndirect(size) => {
                    // No wrap here: libpcap refuses an offset that leaves 32 bits.
                    let Some(offset) = x.checked_add(k) else { return 0 };
                    match load(data, offset as usize, size) {
                        Some(value) => a = value,
                        None => return 0,
                    }
                }
                Op::LoadXHeader => match data.get(k as usize) {
                    Some(byte) => x = u32::from(byte & 0xf) << 2,
                    None => return 0,
                },
                Op::LoadLength => a = wire_len,
                Op::LoadImmediate => a = k,
                Op::LoadScratch => a = scratch[k as usize % SCRATCH_WORDS],
                Op::LoadXLength => x = wire_len,
                Op::LoadXImmediate => x = k,
                Op::LoadXScratch => x = scratch[k as usize % SCRATCH_WORDS],
                Op::Store => scratch[k as usize % SCRATCH_WORDS] = a,
                Op::StoreX => scratch[k as usize % SCRATCH_WORDS] = x,
                Op::Alu(alu, operand) => {
                    let right = if operand == Operand::K { k } else { x };
                    match compute(alu, a, right) {
                        Some(value) => a = value,
                        None => return 0,
                    }
                }
                Op::Negate => a = a.wrapping_neg(),
                Op::Always => {
                    if self.loops && step.then as usize <= at {
                        backward += 1;
                        if backward > BACKWARD_JUMPS_MAX {
                            return 0;
                        }
                    }
                }
                Op::Jump(test, operand) => {
                    let right = if operand == Operand::K { k } else { x };
                    let holds = match test {
                        Test::Equal => a == right,
                        Test::Greater => a > right,
                        Test::GreaterOrEqual => a >= right,
                        Test::AnyBit => a & right != 0,
                    };
                    if holds {
                        next = step.then;
                    }
                }
                Op::ReturnK => return k,
                Op::ReturnA => return a,
                Op::AToX => x = a,
                Op::XToA => a = x,
            }
            at = next as usize;
        }
        0
    }
}

/// One arithmetic step; `None` is a division by 0.
#[inline(always)]
pub(crate) fn compute(alu: Alu, left: u32, right: u32) -> Option<u32> {
    Some(match alu {
        Alu::Add => left.wrapping_add(right),
        Alu::Sub => left.wrapping_sub(right),
        Alu::Mul => left.wrapping_mul(right),
        Alu::Div => left.checked_div(right)?,
        Alu::Mod => left.checked_rem(right)?,
        Alu::Or => left | right,
        Alu::And => left & right,
        Alu::Xor => left ^ right,
        Alu::Lsh => left.checked_shl(right).unwrap_or(0),
        Alu::Rsh => left.checked_shr(right).unwrap_or(0),
    })
}

#[inline(always)]
fn load(data: &[u8], at: usize, size: Size) -> Option<u32> {
    let rest = data.get(at..)?;
    Some(match size {
        Size::Byte => u32::from(*rest.first()?),
        Size::Half => u32::from(u16::from_be_bytes(*rest.first_chunk()?)),
        Size::Word => u32::from_be_bytes(*rest.first_chunk()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::Insn;

    fn program(insns: &[(u16, u8, u8, u32)]) -> Program {
        let insn = |&(code, jt, jf, k)| Insn { code, jt, jf, k };
        Program::new(insns.iter().map(insn).collect()).unwrap()
    }

    #[test]
    fn arithmetic_wraps_and_division_by_zero_refuses() {
        let wrap = program(&[(0x00, 0, 0, u32::MAX), (0x04, 0, 0, 3), (0x16, 0, 0, 0)]);
        assert_eq!(wrap.run(&[], 0), 2);
        let divide = program(&[(0x00, 0, 0, 7), (0x3c, 0, 0, 0), (0x06, 0, 0, 9)]);
        assert_eq!(divide.run(&[], 0), 0);
        let shift = program(&[(0x00, 0, 0, 7), (0x01, 0, 0, 32), (0x6c, 0, 0, 0), (0x16, 0, 0, 0)]);
        assert_eq!(shift.run(&[], 0), 0);
    }

    #[test]
    fn loads_outside_refuse() {
        let word = program(&[(0x20, 0, 0, 1), (0x06, 0, 0, 1)]);
        assert_eq!((word.run(&[0; 4], 99), word.run(&[0; 5], 99)), (0, 1));
        let wrapped = program(&[(0x01, 0, 0, u32::MAX), (0x50, 0, 0, 1), (0x06, 0, 0, 1)]);
        assert_eq!(wrapped.run(&[1, 2], 2), 0);
        let header = program(&[(0xb1, 0, 0, 0), (0x87, 0, 0, 0), (0x16, 0, 0, 0)]);
        assert_eq!((header.run(&[0x46], 1), header.run(&[], 0)), (24, 0));
    }

    #[test]
    fn an_endless_loop_ends() {
        let turn = program(&[(0x05, 0, 0, u32::MAX), (0x06, 0, 0, 1)]);
        assert_eq!(turn.run(&[], 0), 0);
    }

    #[test]
    fn length_is_that_on_the_wire() {
        let length = program(&[(0x80, 0, 0, 0), (0x16, 0, 0, 0)]);
        assert_eq!(length.run(&[0; 10], 1500), 1500);
    }
}
