//! The label of a device: where the parts of its volume are.
//!
//! 4,096 bytes, written twice, integers little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `WVDEVICE` |
//! | 8 | 4 | version: 1; 2 if the volume is shared |
//! | 12 | 4 | places |
//! | 16 | 8 | offset of `volume.wv`, 1 MiB |
//! | 24 | 8 | its bytes; of a shared volume there are 8, one behind the other |
//! | 32 | 8 | offset of place 0 |
//! | 40 | 8 | bytes of a place |
//! | 48 | 8 | bytes of the device when it was laid out |
//! | 56 | 8 | bytes of `digests.wv`, which begins behind the last `volume.wv`; 0 if there is none |
//! | 64 | 4028 | zero |
//! | 4092 | 4 | CRC-32C of bytes 0 to 4091 |

use std::io;

use super::lease::AREAS;
use crate::Shape;

/// Bytes of a label.
pub const LABEL_BYTES: usize = 4096;
/// Where the two copies are.
pub const LABELS: [u64; 2] = [0, LABEL_BYTES as u64];
/// Where `volume.wv` begins.
pub const VOLUME_OFFSET: u64 = 1 << 20;
/// The first place begins at a multiple of this: devices erase in large units.
pub const PARTS_ALIGN_BYTES: u64 = 1 << 20;

const MAGIC: &[u8; 8] = b"WVDEVICE";
/// An older release must not write a shared volume, so that has a version of its own.
const VERSIONS: [u32; 2] = [1, 2];
const CRC_AT: usize = LABEL_BYTES - 4;
/// Writes start and end on such a border.
const LBA_BYTES: u64 = 4096;

/// Where the parts of a device are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Bytes of `volume.wv`.
    pub volume_bytes: u64,
    /// Bytes of `digests.wv`; 0 if there is none, as on devices of older releases.
    pub digests_bytes: u64,
    /// Offset of the first place.
    pub places_offset: u64,
    /// Bytes of each.
    pub place_bytes: u64,
    /// How many there are.
    pub places: u32,
    /// Bytes of the device when it was laid out.
    pub device_bytes: u64,
    /// Two machines may have it, see [`lease`](super::lease).
    pub shared: bool,
}

impl Label {
    /// The layout of a device of that size. Errors: it is too small, or sizes are no whole blocks.
    pub(super) fn new(shape: &Shape, device_bytes: u64, shared: bool) -> io::Result<Self> {
        let volume_bytes = shape.volume_bytes.next_multiple_of(LBA_BYTES);
        let digests_bytes = shape.digests_bytes.next_multiple_of(LBA_BYTES);
        let label = Self {
            volume_bytes,
            digests_bytes,
            places_offset: places_offset(volume_bytes, digests_bytes, shared),
            place_bytes: shape.place_bytes,
            places: shape.places,
            device_bytes,
            shared,
        };
        label.check().map(|()| label)
    }

    /// Where `volume.wv` of an epoch begins; a volume that is not shared has one only.
    pub fn volume_offset(&self, epoch: u64) -> u64 {
        VOLUME_OFFSET + epoch % areas(self.shared) * self.volume_bytes
    }

    /// Where `digests.wv` begins. Two machines have it together: what a fenced writer writes there
    /// late counts for nobody, because it names a life that the table does not.
    pub fn digests_offset(&self) -> u64 {
        VOLUME_OFFSET + areas(self.shared) * self.volume_bytes
    }

    /// Where a place begins.
    pub fn place_offset(&self, place: u32) -> u64 {
        self.places_offset + u64::from(place) * self.place_bytes
    }

    pub(super) fn encode(&self) -> [u8; LABEL_BYTES] {
        let mut block = [0; LABEL_BYTES];
        block[..8].copy_from_slice(MAGIC);
        let version = VERSIONS[usize::from(self.shared)];
        block[8..12].copy_from_slice(&version.to_le_bytes());
        block[12..16].copy_from_slice(&self.places.to_le_bytes());
        let fields = [
            VOLUME_OFFSET,
            self.volume_bytes,
            self.places_offset,
            self.place_bytes,
            self.device_bytes,
            self.digests_bytes,
        ];
        for (field, at) in fields.iter().zip((16..).step_by(8)) {
            block[at..at + 8].copy_from_slice(&field.to_le_bytes());
        }
        let crc = crc32c::crc32c(&block[..CRC_AT]);
        block[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Reads a label; nothing if there is none, or it is not whole. Errors: it is of a newer
    /// release, or does not fit the device.
    pub(super) fn decode(block: &[u8; LABEL_BYTES], device_bytes: u64) -> io::Result<Option<Self>> {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| block[at + n]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| block[at + n]));
        if &block[..8] != MAGIC || crc32c::crc32c(&block[..CRC_AT]) != u32_at(CRC_AT) {
            return Ok(None);
        }
        if !VERSIONS.contains(&u32_at(8)) || u64_at(16) != VOLUME_OFFSET {
            let (found, known) = (u32_at(8), VERSIONS[1]);
            return Err(invalid(format!(
                "its label has version {found}; this release reads up to {known}"
            )));
        }
        let label = Self {
            volume_bytes: u64_at(24),
            digests_bytes: u64_at(56),
            places_offset: u64_at(32),
            place_bytes: u64_at(40),
            places: u32_at(12),
            device_bytes: u64_at(48),
            shared: u32_at(8) == VERSIONS[1],
        };
        if label.device_bytes > device_bytes {
            return Err(invalid(format!(
                "it was laid out with {} bytes and has {device_bytes} now",
                label.device_bytes
            )));
        }
        label.check().map(|()| Some(label))
    }

    fn check(&self) -> io::Result<()> {
        let whole = |bytes: u64| bytes > 0 && bytes.is_multiple_of(LBA_BYTES);
        let places_bytes = self.place_bytes.checked_mul(self.places.into());
        let end = places_bytes.and_then(|bytes| bytes.checked_add(self.places_offset));
        let volumes_bytes = self.volume_bytes.checked_mul(areas(self.shared));
        let behind = volumes_bytes
            .and_then(|bytes| bytes.checked_add(self.digests_bytes))
            .and_then(|bytes| VOLUME_OFFSET.checked_add(bytes));
        if !whole(self.volume_bytes) || !whole(self.place_bytes) || !whole(self.places_offset) {
            return Err(invalid(format!("{self:?}: parts are whole blocks of {LBA_BYTES} bytes")));
        }
        if behind.is_none_or(|behind| behind > self.places_offset) {
            return Err(invalid(format!("{self:?}: places begin behind the other parts")));
        }
        if end.is_none_or(|end| end > self.device_bytes) {
            let text = format!("{self:?}: the device is too small for its parts");
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        Ok(())
    }
}

/// Where the first place begins behind a `volume.wv` and a `digests.wv` of so many bytes.
pub fn places_offset(volume_bytes: u64, digests_bytes: u64, shared: bool) -> u64 {
    (VOLUME_OFFSET + areas(shared) * volume_bytes + digests_bytes)
        .next_multiple_of(PARTS_ALIGN_BYTES)
}

fn areas(shared: bool) -> u64 {
    if shared { AREAS } else { 1 }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn label() -> Label {
        let shape =
            Shape { volume_bytes: 2_100_000, digests_bytes: 5000, place_bytes: 1 << 20, places: 9 };
        Label::new(&shape, 13 << 20, false).unwrap()
    }

    #[test]
    fn a_label_reads_as_it_was_written() {
        let label = label();
        assert_eq!((label.places_offset, label.volume_bytes % 4096), (4 << 20, 0));
        assert_eq!(label.place_offset(2), 6 << 20);
        assert_eq!(label.digests_offset(), VOLUME_OFFSET + label.volume_bytes);
        assert_eq!(label.digests_bytes, 8192);
        assert_eq!(Label::decode(&label.encode(), 13 << 20).unwrap(), Some(label.clone()));
        let shrunk = Label::decode(&label.encode(), 12 << 20).unwrap_err();
        assert!(shrunk.to_string().contains("has 12582912 now"), "{shrunk}");
        assert_eq!(Label::decode(&[0; LABEL_BYTES], 1 << 30).unwrap(), None);
    }

    #[test]
    fn a_newer_label_is_refused() {
        let mut block = label().encode();
        block[8] = 3;
        let crc = crc32c::crc32c(&block[..CRC_AT]);
        block[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        assert!(Label::decode(&block, 1 << 30).unwrap_err().to_string().contains("version 3"));
    }

    proptest! {
        /// Whatever the sizes: what is read is a layout that fits the device, or nothing.
        #[test]
        fn labels_are_checked(
            fields in any::<[u64; 5]>(), places: u32, device_bytes: u64, shared: bool
        ) {
            let [volume_bytes, digests_bytes, places_offset, place_bytes, laid_out] = fields;
            let written = Label {
                volume_bytes,
                digests_bytes,
                places_offset,
                place_bytes,
                places,
                device_bytes: laid_out,
                shared,
            };
            if let Ok(Some(label)) = Label::decode(&written.encode(), device_bytes) {
                prop_assert!(label.place_offset(label.places) <= device_bytes);
            }
        }

        #[test]
        fn a_damaged_label_is_no_label(at in 0..LABEL_BYTES, flip in 1u8..) {
            let mut block = label().encode();
            block[at] ^= flip;
            prop_assert_eq!(Label::decode(&block, 1 << 30).unwrap(), None);
        }
    }
}
