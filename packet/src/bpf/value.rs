//! Numbers of which only some bits and bounds are known.

use crate::bpf::insn::Alu;
use crate::bpf::run::compute;

/// Where a number was loaded from, if from a place with something to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Origin {
    /// Number of the place, from 1; 0 = nowhere.
    pub(crate) place: u8,
    /// Bytes between the start of the place and the start of the load.
    pub(crate) skip: u8,
    /// Bytes loaded.
    pub(crate) size: u8,
    /// Bits of the load that are left in the number; the others were masked off.
    pub(crate) kept: u32,
}

/// A number. Invariants: `value & unknown == 0`, `low <= n <= high` for every number meant.
///
/// All zeros is the number 0, so that scratch words cost nothing to prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Value {
    pub(crate) unknown: u32,
    pub(crate) value: u32,
    pub(crate) low: u32,
    pub(crate) high: u32,
    pub(crate) origin: Origin,
}

impl Value {
    pub(crate) fn constant(n: u32) -> Self {
        Self { unknown: 0, value: n, low: n, high: n, origin: Origin::default() }
    }

    /// Any number with these bits.
    pub(crate) fn bits(unknown: u32, value: u32) -> Self {
        let value = value & !unknown;
        Self { unknown, value, low: value, high: value | unknown, origin: Origin::default() }
    }

    /// Any number within the bounds, both included. Bits above the first that differs are known.
    pub(crate) fn range(low: u32, high: u32) -> Self {
        let unknown = u32::MAX.checked_shr((low ^ high).leading_zeros()).unwrap_or(0);
        Self { unknown, value: low & !unknown, low, high, origin: Origin::default() }
    }

    pub(crate) fn exactly(&self) -> Option<u32> {
        (self.low == self.high).then_some(self.low)
    }

    /// Narrows the bounds. `None`: no number is left.
    pub(crate) fn within(mut self, low: u32, high: u32) -> Option<Self> {
        self.low = self.low.max(low);
        self.high = self.high.min(high);
        if self.low > self.high {
            return None;
        }
        if self.low == self.high {
            let n = self.low;
            if n & !self.unknown != self.value {
                return None;
            }
            (self.unknown, self.value) = (0, n);
        }
        Some(self)
    }

    /// Whether the number may be `n`, as far as bits and bounds say.
    pub(crate) fn may_be(&self, n: u32) -> bool {
        n & !self.unknown == self.value && (self.low..=self.high).contains(&n)
    }

    /// Whatever is either of the two.
    pub(crate) fn join(&self, other: &Self) -> Self {
        if self == other {
            return *self;
        }
        let unknown = self.unknown | other.unknown | (self.value ^ other.value);
        Self {
            unknown,
            value: self.value & !unknown,
            low: self.low.min(other.low),
            high: self.high.max(other.high),
            origin: if self.origin == other.origin { self.origin } else { Origin::default() },
        }
    }

    /// The result of arithmetic. `None`: a division by 0, surely.
    pub(crate) fn compute(&self, alu: Alu, right: &Self) -> Option<Self> {
        if let (Some(left), Some(right)) = (self.exactly(), right.exactly())
            && !(alu == Alu::And && self.origin.place != 0)
        {
            return compute(alu, left, right).map(Self::constant);
        }
        let top = Self::range(0, u32::MAX);
        let range = |low: Option<u32>, high: Option<u32>| match (low, high) {
            (Some(low), Some(high)) => Self::range(low, high),
            _ => top,
        };
        let constant = right.exactly();
        Some(match alu {
            Alu::And => {
                let zeros = self.zeros() | right.zeros();
                let ones = self.value & right.value;
                let mut out = Self::bits(!(zeros | ones), ones);
                out.high = out.high.min(self.high).min(right.high);
                if let Some(mask) = constant {
                    out.origin = Origin { kept: self.origin.kept & mask, ..self.origin };
                }
                out
            }
            Alu::Or => {
                let ones = self.value | right.value;
                let zeros = self.zeros() & right.zeros();
                Self::bits(!(zeros | ones), ones)
            }
            Alu::Xor => Self::bits(self.unknown | right.unknown, self.value ^ right.value),
            Alu::Lsh | Alu::Rsh => match constant {
                Some(by @ 0..32) if alu == Alu::Lsh => {
                    Self::bits(self.unknown << by, self.value << by)
                }
                Some(by @ 0..32) => {
                    let bits = Self::bits(self.unknown >> by, self.value >> by);
                    bits.within(self.low >> by, self.high >> by).unwrap_or(top)
                }
                Some(_) => Self::constant(0),
                None => top,
            },
            Alu::Add => range(self.low.checked_add(right.low), self.high.checked_add(right.high)),
            Alu::Sub => range(self.low.checked_sub(right.high), self.high.checked_sub(right.low)),
            Alu::Mul => range(self.low.checked_mul(right.low), self.high.checked_mul(right.high)),
            Alu::Div => match constant {
                Some(by) => range(Some(self.low.checked_div(by)?), self.high.checked_div(by)),
                None => Self::range(0, self.high),
            },
            Alu::Mod => match constant {
                Some(by) => Self::range(0, by.checked_sub(1)?.min(self.high)),
                None => Self::range(0, self.high),
            },
        })
    }

    /// The number with its sign changed, in wrapping arithmetic.
    pub(crate) fn negate(&self) -> Self {
        self.exactly().map_or(Self::range(0, u32::MAX), |n| Self::constant(n.wrapping_neg()))
    }

    fn zeros(&self) -> u32 {
        !self.unknown & !self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A number and something known about it.
    fn known() -> impl Strategy<Value = (u32, Value)> {
        let small = prop_oneof![any::<u32>(), 0u32..40, Just(u32::MAX)];
        (small, any::<u32>(), any::<u32>(), 0..4).prop_map(|(n, unknown, slack, how)| {
            let value = match how {
                0 => Value::constant(n),
                1 => Value::bits(unknown, n),
                2 => Value::range(n.saturating_sub(slack), n.saturating_add(slack >> 7)),
                _ => Value::bits(unknown, n).join(&Value::constant(slack)),
            };
            (n, value)
        })
    }

    fn alu() -> impl Strategy<Value = Alu> {
        prop::sample::select(vec![
            Alu::Add,
            Alu::Sub,
            Alu::Mul,
            Alu::Div,
            Alu::Mod,
            Alu::Or,
            Alu::And,
            Alu::Xor,
            Alu::Lsh,
            Alu::Rsh,
        ])
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(4000)
        })]

        #[test]
        fn arithmetic_keeps_the_number((m, a) in known(), (n, b) in known(), alu in alu()) {
            prop_assert!(a.may_be(m) && b.may_be(n));
            if let Some(result) = compute(alu, m, n) {
                let abstracted = a.compute(alu, &b);
                prop_assert!(abstracted.is_some_and(|v| v.may_be(result)), "{alu:?} {m} {n}");
            }
            prop_assert!(a.join(&b).may_be(m) && a.join(&b).may_be(n));
            prop_assert!(a.negate().may_be(m.wrapping_neg()));
        }
    }
}
