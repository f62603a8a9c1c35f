//! Numbers at random from a seed: the same seed gives the same test on every machine.

use wirevault_media::sim::SplitMix64;

/// The simulated disk's generator, with what a maker of packets and filters asks for.
#[derive(Debug, Clone)]
pub struct Random(SplitMix64);

impl Random {
    /// A generator of its own for `seed`.
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number from 0 to `n - 1`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.below(n as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(n + 8);
        while bytes.len() < n {
            bytes.extend(self.bits().to_le_bytes());
        }
        bytes.truncate(n);
        bytes
    }
}
