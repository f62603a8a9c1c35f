//! The flow key: which conversation, in which encapsulation, a packet belongs to.
//!
//! Invariants:
//! - both directions of a flow have the same key: the lower of the two innermost endpoints
//!   (address, then port) is A, and every layer's pair of values is stored A first;
//! - bytes behind the values are zero, so that comparing and hashing may read whole words.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::LazyLock;

use crate::describe::FlowText;
use crate::error::PacketError;
use crate::shape;
use crate::template::Template;

/// Most bytes of a key: two lengths, shape, values. Room for two IPv6 layers with tags and a tunnel
/// between them; what lies deeper is left out of the key. [`crate::Dissected`] then is 128 bytes,
/// which compilers still copy in registers instead of calling `memcpy`.
pub const MAX_KEY_BYTES: usize = 112;

/// Where the shape starts; before it are the lengths of shape and values.
pub(crate) const SHAPE_AT: usize = 2;

/// Which way a packet goes between the two endpoints of its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the lower endpoint to the higher. Also when both are equal or there are none.
    AtoB,
    /// From the higher endpoint to the lower.
    BtoA,
}

/// A flow's key.
///
/// Layout: `[shape length u8][values length u8][shape][values][zeros]`; see [`shape`] for the
/// two parts. Kept inline, so that a flow table needs no allocation per flow.
#[derive(Clone, Copy)]
pub struct FlowKey {
    pub(crate) bytes: [u8; MAX_KEY_BYTES],
}

impl FlowKey {
    /// Puts a key together from its stored parts.
    ///
    /// # Errors
    /// The shape is not one, or the values do not fit it: the index is damaged.
    pub fn from_parts(shape: &[u8], values: &[u8]) -> Result<Self, PacketError> {
        let max = MAX_KEY_BYTES - SHAPE_AT;
        let sum = shape.len() + values.len();
        if sum > max {
            return Err(PacketError::KeyLength { bytes: sum, max });
        }
        let want = shape::values_bytes(shape)?;
        if values.len() != want {
            return Err(PacketError::ValuesLength { got: values.len(), want });
        }
        let mut bytes = [0; MAX_KEY_BYTES];
        bytes[0] = shape.len() as u8;
        bytes[1] = values.len() as u8;
        bytes[SHAPE_AT..SHAPE_AT + shape.len()].copy_from_slice(shape);
        bytes[SHAPE_AT + shape.len()..SHAPE_AT + sum].copy_from_slice(values);
        Ok(Self { bytes })
    }

    /// The layers, with everything constant that a filter can test.
    pub fn shape(&self) -> &[u8] {
        &self.bytes[SHAPE_AT..SHAPE_AT + usize::from(self.bytes[0])]
    }

    /// Addresses and ports in shape order, A before B, in network byte order.
    pub fn values(&self) -> &[u8] {
        let at = SHAPE_AT + usize::from(self.bytes[0]);
        &self.bytes[at..at + usize::from(self.bytes[1])]
    }

    /// The key as it is kept elsewhere: the two lengths, shape, values. Never empty, and equal keys
    /// have equal bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.used()]
    }

    /// The same bytes in whole words, zeros behind the last.
    #[inline]
    pub fn words(&self) -> &[[u8; 8]] {
        let (words, _) = self.bytes.as_chunks::<8>();
        &words[..self.used().div_ceil(8).min(words.len())]
    }

    /// The key that [`FlowKey::as_bytes`] gave. Bytes that are no key at all give one without
    /// layers, which no filter can rule out.
    #[inline]
    pub fn from_kept(kept: &[u8]) -> Self {
        let mut bytes = [0; MAX_KEY_BYTES];
        match kept {
            [shape, values, ..] if kept.len() <= MAX_KEY_BYTES => {
                let used = SHAPE_AT + usize::from(*shape) + usize::from(*values);
                if used == kept.len() {
                    bytes[..used].copy_from_slice(kept);
                }
            }
            _ => {}
        }
        Self { bytes }
    }

    /// The packet of partly known bits that stands for every packet of this flow and direction.
    pub fn template(&self, direction: Direction) -> Template {
        Template::of_key(self, direction)
    }

    /// The key in words, for people.
    pub fn describe(&self) -> FlowText {
        FlowText::of_key(self)
    }

    /// Hashes the key. Whoever does not know `seed` cannot prepare flows that collide.
    #[inline]
    pub fn hash64(&self, seed: u64) -> u64 {
        let used = self.used().next_multiple_of(16).min(MAX_KEY_BYTES);
        let mut state = seed ^ MIX[0];
        for pair in self.bytes[..used].chunks_exact(16) {
            let (low, high) = pair.split_at(8);
            state = fold(word(low) ^ state, word(high) ^ MIX[1]).wrapping_add(state ^ MIX[2]);
        }
        fold(state ^ MIX[1], seed ^ MIX[2])
    }

    fn used(&self) -> usize {
        SHAPE_AT + usize::from(self.bytes[0]) + usize::from(self.bytes[1])
    }
}

/// Writes a key front to back, in stores of 16 bytes (see [`shape::Record`] for the reason).
pub(crate) struct KeyWriter {
    bytes: [u8; MAX_KEY_BYTES],
    /// The first block, kept back because the two lengths in it are known last.
    first: u128,
    /// Where `pending` goes; a multiple of the block.
    at: usize,
    pending: u128,
    pending_bytes: usize,
}

const BLOCK_BYTES: usize = 16;
const _: () = assert!(MAX_KEY_BYTES.is_multiple_of(BLOCK_BYTES), "a key is whole blocks");

impl KeyWriter {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self { bytes: [0; MAX_KEY_BYTES], first: 0, at: 0, pending: 0, pending_bytes: SHAPE_AT }
    }

    /// Appends the low `len` bytes of `value` (1 to 16), lowest first; the rest of it must be 0.
    #[inline(always)]
    pub(crate) fn put(&mut self, value: u128, len: usize) {
        self.pending |= value << (8 * self.pending_bytes);
        let filled = self.pending_bytes + len;
        if filled < BLOCK_BYTES {
            self.pending_bytes = filled;
            return;
        }
        self.store();
        self.pending_bytes = filled - BLOCK_BYTES;
        let written = len - self.pending_bytes;
        self.pending = if written < BLOCK_BYTES { value >> (8 * written) } else { 0 };
    }

    #[inline(always)]
    pub(crate) fn finish(&mut self, shape_bytes: usize, values_bytes: usize) -> FlowKey {
        self.store();
        let lengths = shape_bytes as u128 | (values_bytes as u128) << 8;
        let first = self.first | lengths;
        self.bytes[..BLOCK_BYTES].copy_from_slice(&first.to_le_bytes());
        FlowKey { bytes: self.bytes }
    }

    #[inline(always)]
    fn store(&mut self) {
        if self.at == 0 {
            self.first = self.pending;
        } else if let Some(place) = self.bytes.get_mut(self.at..self.at + BLOCK_BYTES) {
            // Callers never write more than a key; a full one has no pending block.
            place.copy_from_slice(&self.pending.to_le_bytes());
        }
        self.at += BLOCK_BYTES;
    }
}

impl PartialEq for FlowKey {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        // The lengths are part of the bytes compared.
        let used = self.used();
        self.bytes[..used] == other.bytes[..used]
    }
}

impl Eq for FlowKey {}

impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.bytes[..self.used()]);
    }
}

impl PartialOrd for FlowKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for FlowKey {
    /// By shape, then by values: keys of one shape stand together.
    fn cmp(&self, other: &Self) -> Ordering {
        (self.shape(), self.values()).cmp(&(other.shape(), other.values()))
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlowKey({})", self.describe())
    }
}

/// Odd constants with no structure: the first bits of pi, as in most multiply-fold hashes.
const MIX: [u64; 3] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345, 0xa409_3822_299f_31d1];

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ (wide >> 64) as u64
}

fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

/// Seed of the hashes that [`crate::dissect()`] hands out, drawn once per process.
pub(crate) fn process_seed() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(MIX));
    *SEED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Layer;

    fn shape_of(layers: &[Layer]) -> Vec<u8> {
        let mut shape = vec![1, 0];
        for layer in layers {
            let record = layer.encode();
            shape.extend_from_slice(&record.bits.to_le_bytes()[..record.bytes]);
        }
        shape
    }

    #[test]
    fn parts_read_back() {
        let shape = shape_of(&[Layer::Ethernet { ethertype: 0x806 }, Layer::Arp { operation: 1 }]);
        let key = FlowKey::from_parts(&shape, &[10, 0, 0, 1, 10, 0, 0, 2]).unwrap();
        assert_eq!(key.shape(), shape);
        assert_eq!(key.values(), [10, 0, 0, 1, 10, 0, 0, 2]);
        assert_ne!(key.hash64(1), key.hash64(2));
    }

    #[test]
    fn kept_bytes_read_back() {
        let shape = shape_of(&[Layer::Ethernet { ethertype: 0x806 }, Layer::Arp { operation: 1 }]);
        let key = FlowKey::from_parts(&shape, &[10, 0, 0, 1, 10, 0, 0, 2]).unwrap();
        assert_eq!(FlowKey::from_kept(key.as_bytes()), key);
        for none in [&[][..], &[1], &[9, 9, 1], &[200, 200], &[0; 200]] {
            assert!(FlowKey::from_kept(none).shape().is_empty());
        }
    }

    #[test]
    fn damaged_parts_are_refused() {
        let shape = shape_of(&[Layer::Ethernet { ethertype: 0x806 }, Layer::Arp { operation: 1 }]);
        assert_eq!(
            FlowKey::from_parts(&shape, &[0; 7]),
            Err(PacketError::ValuesLength { got: 7, want: 8 })
        );
        assert!(matches!(
            FlowKey::from_parts(&shape[..shape.len() - 1], &[0; 8]),
            Err(PacketError::ShapeCut { .. })
        ));
        assert!(FlowKey::from_parts(&[1], &[]).is_err());
        assert!(FlowKey::from_parts(&[0; 200], &[]).is_err());
    }
}
