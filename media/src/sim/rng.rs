//! The seeded generator behind every simulated decision.

/// SplitMix64 (Steele, Lea, Flood 2014): small, deterministic everywhere, and good enough to pick
/// faults.
///
/// Not for keys, salts or ids.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Starts the sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number in `0..bound`; 0 when `bound` is 0. (The bias of the modulo is far below what tests
    /// can see.)
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }
}

/// One number for a tuple of numbers; equal tuples give equal numbers, whatever was asked before.
pub(super) fn hash(words: &[u64]) -> u64 {
    words.iter().fold(0x5749_5245_5641_554C, |state, word| {
        mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15) ^ mix(*word))
    })
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_values() {
        // First outputs of the reference implementation for seed 1234567.
        let mut rng = SplitMix64::new(1_234_567);
        assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next_u64(), 3_203_168_211_198_807_973);
        assert_eq!(rng.below(0), 0);
    }
}
