//! The header of a segment: what a reader of pcapng needs first, then who wrote the segment and
//! when.
//!
//! The header region is a whole number of logical blocks, nearly always one: Section Header Block,
//! Interface Description Blocks, then one local-use block that fills the region. In a sealed store
//! the file shows one bare interface of the right link type, because tcpdump refuses a file without
//! one; the real interface table (names included) is sealed inside the local-use block:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 20 | common start; flag 1: sealed, flag 2: written by an import |
//! | 20 | 2 | lane |
//! | 22 | 2 | link type |
//! | 24 | 16 | life id |
//! | 40 | 8 | run id |
//! | 48 | 16 | store id |
//! | 64 | 8 | ordinal: store-wide, increasing |
//! | 72 | 4 | place on the volume |
//! | 76 | 4 | bytes of the header region; the first chunk starts there |
//! | 80 | 8 | time opened, ns |
//! | 88 | 4 | bytes of the sealed interface table with its tag, 0 in plain stores |
//! | 92 | 4 | zero |
//! | 96 | 16 | salt of the seal |
//! | 112 | n | sealed interface table, then zeros |
//! | -8 | 4 | CRC-32C of the region from its first byte to here |
//! | -4 | 4 | trailing length |
//!
//! The first 96 bytes of the block are the additional data of the seal.

use crate::bytes::{all_zero, array_at, put, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::limits::{LBA_BYTES, SEGMENT_INTERFACES_MAX, SNAPLEN_MAX};
use crate::local::{self, Kind};
use crate::{FormatError, Interface, LifeId, LinkType, RunId, StoreId, crc32c, pcapng};

/// Bytes of the block that the seal of the interface table authenticates.
pub const HEADER_AAD_BYTES: usize = 96;
/// Bytes of header region at most: 64 interfaces with long names and filters.
pub const REGION_BYTES_MAX: usize = 256 << 10;

const BODY_AT: usize = 112;
const FLAG_SEALED: u16 = 1;
const FLAG_IMPORT: u16 = 2;
const STRUCTURE: &str = "segment header";

/// Who wrote a segment, where and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Payload of its chunks is encrypted.
    pub sealed: bool,
    /// Written by an import rather than from a live interface.
    pub import: bool,
    /// Lane.
    pub lane: u16,
    /// Link type of every packet.
    pub link_type: LinkType,
    /// Life.
    pub life: LifeId,
    /// Run.
    pub run: RunId,
    /// Store.
    pub store: StoreId,
    /// Store-wide number; a later segment has a larger one.
    pub ordinal: u64,
    /// Place on the volume.
    pub place: u32,
    /// Time opened, ns.
    pub opened_ns: u64,
}

/// Encodes the interface table as it is sealed: Interface Description Blocks, one after the other.
pub fn interface_table(interfaces: &[Interface]) -> Vec<u8> {
    let mut table = Vec::new();
    interfaces.iter().for_each(|it| pcapng::write::put_idb(&mut table, it, SNAPLEN_MAX));
    table
}

/// Reads an interface table back.
///
/// # Errors
/// `Field` if a block is not an interface description or there are too many.
pub fn read_interface_table(table: &[u8]) -> Result<Vec<Interface>, FormatError> {
    let mut interfaces = Vec::new();
    for block in pcapng::read::Blocks::new(table) {
        let block = block?;
        interfaces.push(pcapng::read::interface(&block)?);
        if interfaces.len() > SEGMENT_INTERFACES_MAX {
            let (structure, field, value) = (STRUCTURE, "interfaces", interfaces.len() as u64);
            return Err(FormatError::Field { structure, field, value });
        }
    }
    Ok(interfaces)
}

impl SegmentHeader {
    /// Bytes of the header region that `interfaces` need, with room for a seal.
    pub fn region_bytes(&self, interfaces: &[Interface]) -> usize {
        let table_bytes = interface_table(interfaces).len();
        (self.preamble(interfaces).len() + BODY_AT + table_bytes + 16 + 8)
            .next_multiple_of(LBA_BYTES)
    }

    /// Encodes the whole header region. `seal` gets the additional data and the interface table and
    /// appends its tag to the ciphertext; it gives the salt. Plain stores pass a `seal` that is
    /// never called.
    ///
    /// # Errors
    /// `TooLarge` if the interfaces need more than [`REGION_BYTES_MAX`]; whatever `seal` returns.
    pub fn encode<E: From<FormatError>>(
        &self,
        interfaces: &[Interface],
        seal: impl FnOnce(&[u8], &mut Vec<u8>) -> Result<[u8; 16], E>,
    ) -> Result<Vec<u8>, E> {
        let region_bytes = self.region_bytes(interfaces);
        if region_bytes > REGION_BYTES_MAX || interfaces.len() > SEGMENT_INTERFACES_MAX {
            let (what, limit) = ("interface table of a segment", REGION_BYTES_MAX as u64);
            return Err(FormatError::TooLarge { what, value: region_bytes as u64, limit }.into());
        }
        let mut region = self.preamble(interfaces);
        let block_at = region.len();
        region.resize(region_bytes, 0);
        let block_bytes = region_bytes - block_at;
        let mut table = if self.sealed { interface_table(interfaces) } else { Vec::new() };
        let sealed_bytes = if self.sealed { table.len() + 16 } else { 0 };
        let block = &mut region[block_at..];
        let flags =
            if self.sealed { FLAG_SEALED } else { 0 } | if self.import { FLAG_IMPORT } else { 0 };
        local::put_start(block, Kind::Segment, block_bytes as u32, flags);
        put_u16(block, 20, self.lane);
        put_u16(block, 22, self.link_type.0);
        put(block, 24, &self.life.0);
        put_u64(block, 40, self.run.0);
        put(block, 48, &self.store.0);
        put_u64(block, 64, self.ordinal);
        put_u32(block, 72, self.place);
        put_u32(block, 76, region_bytes as u32);
        put_u64(block, 80, self.opened_ns);
        put_u32(block, 88, sealed_bytes as u32);
        if self.sealed {
            let salt = seal(&block[..HEADER_AAD_BYTES], &mut table)?;
            put(block, HEADER_AAD_BYTES, &salt);
            put(block, BODY_AT, &table);
        }
        let crc = crc32c(&region[..region_bytes - 8]);
        put_u32(&mut region, region_bytes - 8, crc);
        put_u32(&mut region, region_bytes - 4, block_bytes as u32);
        Ok(region)
    }

    fn preamble(&self, interfaces: &[Interface]) -> Vec<u8> {
        let mut preamble = Vec::new();
        pcapng::write::put_shb(&mut preamble, concat!("Wirevault ", env!("CARGO_PKG_VERSION")));
        if self.sealed || interfaces.is_empty() {
            pcapng::write::put_idb(&mut preamble, &Interface::unnamed(self.link_type), SNAPLEN_MAX);
        } else {
            preamble.extend(interface_table(interfaces));
        }
        preamble
    }
}

/// A header region, taken apart.
#[derive(Debug)]
pub struct SegmentRegion<'a> {
    /// Who wrote the segment.
    pub header: SegmentHeader,
    /// Bytes of the region; the first chunk starts there.
    pub region_bytes: usize,
    /// Interfaces of a plain segment; empty in a sealed one.
    pub interfaces: Vec<Interface>,
    /// Additional data, salt and ciphertext with tag of a sealed interface table.
    pub sealed_table: Option<(&'a [u8], [u8; 16], &'a [u8])>,
}

/// Reads the header region at the start of a segment file. `bytes` should have [`REGION_BYTES_MAX`]
/// if the file does.
///
/// # Errors
/// `NotPresent` if the file does not start like a segment, `Checksum` or `Field` if the region is
/// damaged.
pub fn decode(bytes: &[u8]) -> Result<SegmentRegion<'_>, FormatError> {
    let field = |field, value| FormatError::Field { structure: STRUCTURE, field, value };
    let mut idbs = Vec::new();
    let mut block_at = None;
    for block in pcapng::read::Blocks::new(bytes) {
        let block = block.map_err(|_| FormatError::NotPresent { structure: STRUCTURE })?;
        match block.kind {
            pcapng::BLOCK_SHB if block.offset == 0 => {}
            pcapng::BLOCK_IDB if block.offset > 0 && idbs.len() < SEGMENT_INTERFACES_MAX => {
                idbs.push(pcapng::read::interface(&block)?);
            }
            local::BLOCK_TYPE if !idbs.is_empty() => {
                block_at = Some(block.offset);
                break;
            }
            _ => break,
        }
    }
    let block_at = block_at.ok_or(FormatError::NotPresent { structure: STRUCTURE })?;
    let block = &bytes[block_at..];
    let start = local::expect(block, Kind::Segment, STRUCTURE)?;
    let region_bytes = block_at + start.total_bytes as usize;
    let region = bytes.get(..region_bytes).ok_or(FormatError::Short {
        structure: STRUCTURE,
        have: bytes.len(),
        need: region_bytes,
    })?;
    let block = &region[block_at..];
    if block.len() < BODY_AT + 8 || u32_at(block, 76) as usize != region_bytes {
        return Err(field("region bytes", region_bytes as u64));
    }
    let (found, expected) = (u32_at(region, region_bytes - 8), crc32c(&region[..region_bytes - 8]));
    if found != expected {
        return Err(FormatError::Checksum { structure: STRUCTURE, found, expected });
    }
    let sealed = start.flags & FLAG_SEALED != 0;
    let sealed_bytes = u32_at(block, 88) as usize;
    let body_end = BODY_AT.saturating_add(sealed_bytes);
    if body_end > block.len() - 8 || !all_zero(&block[body_end..block.len() - 8]) {
        return Err(field("sealed table bytes", sealed_bytes as u64));
    }
    if sealed != (sealed_bytes > 0) || u32_at(region, region_bytes - 4) != start.total_bytes {
        return Err(field("sealed table bytes", sealed_bytes as u64));
    }
    let header = SegmentHeader {
        sealed,
        import: start.flags & FLAG_IMPORT != 0,
        lane: u16_at(block, 20),
        link_type: LinkType(u16_at(block, 22)),
        life: LifeId(array_at(block, 24)),
        run: RunId(u64_at(block, 40)),
        store: StoreId(array_at(block, 48)),
        ordinal: u64_at(block, 64),
        place: u32_at(block, 72),
        opened_ns: u64_at(block, 80),
    };
    let sealed_table = sealed.then(|| {
        (&block[..HEADER_AAD_BYTES], array_at(block, HEADER_AAD_BYTES), &block[BODY_AT..body_end])
    });
    let interfaces = if sealed { Vec::new() } else { idbs };
    Ok(SegmentRegion { header, region_bytes, interfaces, sealed_table })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sealed: bool) -> SegmentHeader {
        SegmentHeader {
            sealed,
            import: true,
            lane: 1,
            link_type: LinkType::ETHERNET,
            life: LifeId([1; 16]),
            run: RunId(2),
            store: StoreId([3; 16]),
            ordinal: 4,
            place: 5,
            opened_ns: 6,
        }
    }

    fn eth0() -> Interface {
        let mut interface = Interface::unnamed(LinkType::ETHERNET);
        interface.name = Some("eth0".into());
        interface.snaplen_bytes = 96;
        interface
    }

    fn never(_: &[u8], _: &mut Vec<u8>) -> Result<[u8; 16], FormatError> {
        panic!("a plain header is not sealed")
    }

    #[test]
    fn a_plain_region_reads_back_and_every_flipped_bit_is_an_error() {
        let good = header(false).encode(&[eth0()], never).expect("it fits");
        assert_eq!(good.len(), LBA_BYTES);
        let region = decode(&good).expect("it reads back");
        assert_eq!((region.header, region.interfaces), (header(false), vec![eth0()]));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_sealed_region_shows_no_interface_name() {
        let seal = |_: &[u8], table: &mut Vec<u8>| -> Result<[u8; 16], FormatError> {
            table.iter_mut().for_each(|byte| *byte ^= 0xff);
            table.extend([0xaa; 16]);
            Ok([9; 16])
        };
        let bytes = header(true).encode(&[eth0()], seal).expect("it fits");
        assert!(!bytes.windows(4).any(|window| window == b"eth0"));
        let region = decode(&bytes).expect("it reads back");
        let (_, salt, sealed) = region.sealed_table.expect("the table is there");
        let table: Vec<u8> = sealed[..sealed.len() - 16].iter().map(|byte| byte ^ 0xff).collect();
        assert_eq!((salt, read_interface_table(&table)), ([9; 16], Ok(vec![eth0()])));
    }

    #[test]
    fn many_interfaces_take_more_than_one_block() {
        let many: Vec<_> = (0..64)
            .map(|n| {
                let mut interface = eth0();
                interface.description =
                    Some(format!("interface number {n} of a long list of them"));
                interface
            })
            .collect();
        let bytes = header(false).encode(&many, never).expect("it fits");
        assert!(bytes.len() > LBA_BYTES && bytes.len().is_multiple_of(LBA_BYTES));
        assert_eq!(decode(&bytes).expect("it reads back").interfaces, many);
    }
}
