//! How large segments are, how many places a volume has, and where its tables lie.

use wirevault_format::digest::file_bytes;
use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
use wirevault_format::segment::REGION_BYTES_MAX;
use wirevault_format::superblock::{SLOT_OFFSETS, Superblock, VOLUMES_MAX};
use wirevault_format::table::PAGE_ENTRIES;
use wirevault_media::block::label::places_offset;
use wirevault_seal::ring::{self, WRAPPED_ROOT_BYTES_MAX};

use crate::StorageError;
use crate::room::RESERVE_PERCENT;

/// Bytes of a full segment at most: a query reads the index of one segment at once.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Bytes of a full segment at least, for stores that are planned by rule: smaller ones would be all
/// header and index.
pub const SEGMENT_BYTES_MIN: u64 = 16 << 20;
/// Bytes of a full segment at least, for a [`Plan::exact`]: header region, chunks and index fit.
pub const SEGMENT_BYTES_FLOOR: u64 = 1 << 20;
/// Segments that the quota holds for each lane: deleting the oldest then costs a lane at most a
/// sixteenth of what it keeps.
pub const SEGMENTS_PER_LANE: u64 = 16;
/// Segments that one volume holds at least.
pub const SEGMENTS_PER_VOLUME: u64 = 4;
/// Places of a volume at least.
pub const PLACES_MIN: u64 = 64;
/// Places for each full segment that fits the quota: segments that were closed by age are short.
pub const PLACES_PER_SEGMENT: u64 = 8;
/// Places of a volume at most: a ring with all their keys stays within its own limit.
pub const PLACES_MAX: u64 = ring::ENTRIES_MAX as u64 / 2;
/// Spare keys at least.
pub const SPARES_MIN: usize = 16;

/// The part of a segment that its index may fill: one in this many bytes.
const INDEX_SHARE: u64 = 16;
const RUNS_PAGES: u32 = 32;
/// Lines of the run table.
pub(crate) const RUNS_MAX: usize = RUNS_PAGES as usize * PAGE_ENTRIES;
const RING_ENTRY_BYTES: u64 = 48;
const _: () = assert!(
    SEGMENT_BYTES_FLOOR as usize * 15 / 16 >= REGION_BYTES_MAX + 2 * CHUNK_BYTES,
    "the smallest segment holds the largest header and chunks"
);

/// Sizes of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of a full segment, a power of two.
    pub segment_bytes: u64,
    /// One entry a volume.
    pub volumes: Vec<VolumePlan>,
}

/// Sizes of one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumePlan {
    /// Bytes that the volume may occupy, its own file included.
    pub quota_bytes: u64,
    /// Places for segments.
    pub places: u32,
    /// Spare keys for which the key ring has room.
    pub spares: usize,
}

/// Room that a volume may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that are free, or those of the whole device.
    pub bytes: u64,
    /// It is a device that nothing else is on. Segments have fixed places there.
    pub device: bool,
    /// Two machines have the device, so there are several copies of the tables.
    pub shared: bool,
}

impl Space {
    /// What a volume takes if nobody says how much: others need room on a file system, and the
    /// controller of a flash device on which a part was never written has less to move about.
    fn default_bytes(self) -> u64 {
        let reserve = (u128::from(self.bytes) * u128::from(RESERVE_PERCENT) / 100) as u64;
        if self.device { self.bytes - reserve } else { self.bytes / 2 }
    }
}

/// Plans a store: `quota_bytes` over all volumes, shared in proportion to the room on each. Without
/// a quota it is nine tenths of devices, and half of what is free elsewhere.
///
/// # Errors
/// `Volumes`; `Quota` with the arithmetic if even the smallest segments do not fit.
pub fn plan(quota_bytes: Option<u64>, lanes: u16, spaces: &[Space]) -> Result<Plan, StorageError> {
    check_volumes(spaces.len())?;
    let free: u128 = spaces.iter().map(|space| u128::from(space.bytes)).sum();
    let default = || spaces.iter().map(|space| u128::from(space.default_bytes())).sum();
    let quota = quota_bytes.map_or_else(default, u128::from);
    let lanes = u64::from(lanes.max(1));
    let refuse = |arithmetic: String| Err(StorageError::Quota { arithmetic });
    if quota > free {
        return refuse(format!("a quota of {quota} bytes is more than the {free} bytes free"));
    }
    let need = u128::from(SEGMENTS_PER_LANE * lanes * SEGMENT_BYTES_MIN);
    if quota < need {
        return refuse(format!(
            "a quota of {quota} bytes is too small: {SEGMENTS_PER_LANE} segments x {lanes} lane{} \
             x {SEGMENT_BYTES_MIN} bytes = {need} bytes are needed",
            if lanes == 1 { "" } else { "s" }
        ));
    }
    // With nothing free everywhere the quota was refused above, so the divisor is not 0.
    let share = |space: &Space| match quota_bytes {
        Some(_) => (quota * u128::from(space.bytes) / free) as u64,
        None => space.default_bytes(),
    };
    let shares: Vec<u64> = spaces.iter().map(share).collect();
    let smallest = shares.iter().copied().min().unwrap_or(0);
    let fits = |segment_bytes: u64| {
        quota >= u128::from(SEGMENTS_PER_LANE * lanes * segment_bytes)
            && smallest >= (SEGMENTS_PER_VOLUME + 1) * segment_bytes
    };
    let mut segment_bytes = SEGMENT_BYTES_MAX;
    while segment_bytes > SEGMENT_BYTES_MIN && !fits(segment_bytes) {
        segment_bytes /= 2;
    }
    if !fits(segment_bytes) {
        let need = (SEGMENTS_PER_VOLUME + 1) * SEGMENT_BYTES_MIN;
        return refuse(format!(
            "the smallest volume's share of the quota is {smallest} bytes: {SEGMENTS_PER_VOLUME} \
             segments x {SEGMENT_BYTES_MIN} bytes and its tables need {need} bytes"
        ));
    }
    let spares = spares_wanted(lanes as u16);
    let volume = |(number, quota_bytes): (usize, u64)| {
        volume_plan(number, spaces[number], quota_bytes, segment_bytes, spares)
    };
    Ok(Plan { segment_bytes, volumes: shares.into_iter().enumerate().map(volume).collect() })
}

/// Plans one further volume of a store whose segments have that size.
///
/// # Errors
/// `Quota` with the arithmetic if that place is too small.
pub(crate) fn plan_one(
    number: usize,
    space: Space,
    segment_bytes: u64,
    spares: usize,
) -> Result<VolumePlan, StorageError> {
    let (quota_bytes, need) = (space.default_bytes(), (SEGMENTS_PER_VOLUME + 1) * segment_bytes);
    match quota_bytes < need {
        true => Err(StorageError::Quota {
            arithmetic: format!(
                "of {} bytes a volume takes {quota_bytes}: {SEGMENTS_PER_VOLUME} segments x \
                 {segment_bytes} bytes and its tables need {need} bytes",
                space.bytes
            ),
        }),
        false => Ok(volume_plan(number, space, quota_bytes, segment_bytes, spares)),
    }
}

fn volume_plan(
    number: usize,
    space: Space,
    quota_bytes: u64,
    segment_bytes: u64,
    spares: usize,
) -> VolumePlan {
    let segments = quota_bytes / segment_bytes;
    let places = match space.device {
        true => fixed_places(number, quota_bytes, segment_bytes, spares, space.shared),
        false => segments.saturating_mul(PLACES_PER_SEGMENT).clamp(PLACES_MIN, PLACES_MAX),
    };
    VolumePlan { quota_bytes, places: places as u32, spares }
}

/// Places that lie one behind the other in so many bytes of a device, behind label and tables.
fn fixed_places(number: usize, bytes: u64, segment_bytes: u64, spares: usize, shared: bool) -> u64 {
    let fits = |places: &u64| {
        let volume = VolumePlan { quota_bytes: bytes, places: *places as u32, spares };
        let tables_bytes = Layout::new(&volume, number == 0, true).end;
        let digests_bytes = file_bytes(segment_bytes, volume.places);
        places_offset(tables_bytes, digests_bytes, shared) + places * segment_bytes <= bytes
    };
    // Tables and digests of the most places that there can be take a small part of each, so a
    // few steps down from what would fit without them are enough.
    (0..=(bytes / segment_bytes).min(PLACES_MAX)).rev().find(fits).unwrap_or(0)
}

impl Plan {
    /// A plan with these very sizes: quota and places of each volume.
    ///
    /// # Errors
    /// `Volumes`, or `Quota` if the sizes contradict each other.
    pub fn exact(
        segment_bytes: u64,
        volumes: &[(u64, u32)],
        lanes: u16,
    ) -> Result<Self, StorageError> {
        check_volumes(volumes.len())?;
        let refuse = |arithmetic: String| Err(StorageError::Quota { arithmetic });
        let sizes = SEGMENT_BYTES_FLOOR..=SEGMENT_BYTES_MAX;
        if !segment_bytes.is_power_of_two() || !sizes.contains(&segment_bytes) {
            return refuse(format!(
                "segments of {segment_bytes} bytes: a power of two from {SEGMENT_BYTES_FLOOR} to \
                 {SEGMENT_BYTES_MAX} is needed"
            ));
        }
        let spares = spares_wanted(lanes);
        let volumes: Vec<_> = volumes
            .iter()
            .map(|(quota_bytes, places)| VolumePlan {
                quota_bytes: *quota_bytes,
                places: *places,
                spares,
            })
            .collect();
        for (number, volume) in volumes.iter().enumerate() {
            let tables = Layout::new(volume, number == 0, true).end;
            if volume.quota_bytes < tables + segment_bytes {
                return refuse(format!(
                    "a quota of {} bytes holds no segment: {tables} bytes of tables + \
                     {segment_bytes} bytes are needed",
                    volume.quota_bytes
                ));
            }
            if volume.places == 0 || u64::from(volume.places) > PLACES_MAX {
                return refuse(format!("{} places: 1 to {PLACES_MAX} can be", volume.places));
            }
        }
        Ok(Self { segment_bytes, volumes })
    }
}

fn check_volumes(volumes: usize) -> Result<(), StorageError> {
    match (1..=VOLUMES_MAX).contains(&volumes) {
        true => Ok(()),
        false => Err(StorageError::Volumes { volumes, max: VOLUMES_MAX }),
    }
}

/// Spare keys that so many lanes want: each may open two segments before the ring is written again.
pub(crate) fn spares_wanted(lanes: u16) -> usize {
    SPARES_MIN.max(2 * usize::from(lanes))
}

/// Spare keys for which the ring of an existing volume has room.
pub(crate) fn spares_max(superblock: &Superblock) -> usize {
    let fixed = ring::ring_bytes(0, WRAPPED_ROOT_BYTES_MAX) as u64;
    let entries = superblock.ring_slot_bytes.saturating_sub(fixed) / RING_ENTRY_BYTES;
    entries.saturating_sub(u64::from(superblock.places)) as usize
}

/// Bytes that the volume's own file occupies.
pub fn volume_file_bytes(superblock: &Superblock) -> u64 {
    superblock.ring_offset + 2 * superblock.ring_slot_bytes
}

/// Bytes of a segment that its index and footer may fill.
pub(crate) fn index_reserve_bytes(segment_bytes: u64) -> u64 {
    segment_bytes / INDEX_SHARE
}

/// Flows whose index fits the reserve: a flow takes about 25 bytes, its postings as many again.
pub(crate) fn flows_max(segment_bytes: u64) -> u32 {
    const FLOW_BYTES: u64 = 64;
    let fit = index_reserve_bytes(segment_bytes) / FLOW_BYTES;
    fit.min(u64::from(wirevault_index::flow_table::FLOWS_MAX)) as u32
}

/// Where the structures of a volume file lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) segments_offset: u64,
    pub(crate) segments_pages: u32,
    pub(crate) runs_offset: u64,
    pub(crate) runs_pages: u32,
    pub(crate) ring_offset: u64,
    pub(crate) ring_slot_bytes: u64,
    pub(crate) end: u64,
}

impl Layout {
    pub(crate) fn new(volume: &VolumePlan, first: bool, sealed: bool) -> Self {
        let lba = LBA_BYTES as u64;
        let segments_offset = 2 * SLOT_OFFSETS[1];
        let segments_pages = volume.places.div_ceil(PAGE_ENTRIES as u32);
        let runs_offset = segments_offset + 2 * u64::from(segments_pages) * lba;
        let runs_pages = if first { RUNS_PAGES } else { 0 };
        let ring_offset = runs_offset + 2 * u64::from(runs_pages) * lba;
        let entries = volume.places as usize + volume.spares;
        // A provider may come to write the ring in parts.
        let whole = ring::ring_bytes(entries, WRAPPED_ROOT_BYTES_MAX);
        let ring_bytes = whole.max(ring::parts_bytes(entries)) as u64;
        let ring_slot_bytes = if sealed { ring_bytes.next_multiple_of(lba) } else { 0 };
        let end = ring_offset + 2 * ring_slot_bytes;
        Self {
            segments_offset,
            segments_pages,
            runs_offset,
            runs_pages,
            ring_offset,
            ring_slot_bytes,
            end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn free(bytes: u64) -> Space {
        Space { bytes, device: false, shared: false }
    }

    #[test]
    fn the_rule_gives_the_largest_segments_that_fit() {
        let bytes =
            |quota, lanes| plan(Some(quota), lanes, &[free(u64::MAX)]).map(|it| it.segment_bytes);
        assert_eq!(bytes(16 * GIB, 1).unwrap(), GIB);
        assert_eq!(bytes(16 * GIB - 1, 1).unwrap(), GIB / 2);
        assert_eq!(bytes(16 * GIB, 4).unwrap(), GIB / 4);
        assert_eq!(bytes(1 << 50, 1).unwrap(), GIB);
        assert_eq!(bytes(256 << 20, 1).unwrap(), SEGMENT_BYTES_MIN);
    }

    #[test]
    fn a_small_quota_is_refused_with_the_arithmetic() {
        let text = plan(Some(1 << 20), 2, &[free(GIB)]).unwrap_err().to_string();
        assert!(text.contains("1048576") && text.contains("536870912"), "{text}");
        let text = plan(Some(2 * GIB), 1, &[free(GIB)]).unwrap_err().to_string();
        assert!(text.contains("1073741824 bytes free"), "{text}");
        let text = plan(Some(GIB), 1, &[free(GIB), free(1 << 20)]).unwrap_err().to_string();
        assert!(text.contains("smallest volume"), "{text}");
        assert!(matches!(plan(None, 1, &[]), Err(StorageError::Volumes { .. })));
    }

    #[test]
    fn half_of_what_is_free_is_shared_in_proportion() {
        let plan = plan(None, 1, &[free(96 * GIB), free(32 * GIB)]).unwrap();
        let quotas: Vec<u64> = plan.volumes.iter().map(|it| it.quota_bytes).collect();
        assert_eq!((quotas, plan.segment_bytes), (vec![48 * GIB, 16 * GIB], GIB));
        assert_eq!((plan.volumes[0].places, plan.volumes[1].places), (384, 128));
    }

    #[test]
    fn a_device_is_filled_with_places() {
        let sizes = [(GIB, 1), (300 << 20, 1), (7_500_000_000_000, 8), (900 * GIB, 64)];
        for ((bytes, lanes), shared) in sizes.iter().flat_map(|it| [(*it, false), (*it, true)]) {
            let spaces = [Space { bytes, device: true, shared }; 2];
            let plan = plan(None, lanes, &spaces).unwrap();
            for (number, volume) in plan.volumes.iter().enumerate() {
                let tables_bytes = Layout::new(volume, number == 0, true).end;
                let digests_bytes = file_bytes(plan.segment_bytes, volume.places);
                let at = places_offset(tables_bytes, digests_bytes, shared);
                let end = at + u64::from(volume.places) * plan.segment_bytes;
                let quota_bytes = bytes - bytes / 10;
                assert_eq!(volume.quota_bytes, quota_bytes);
                let left_bytes = quota_bytes.checked_sub(end);
                assert!(left_bytes < Some(2 * plan.segment_bytes), "{bytes}: {plan:?}");
            }
        }
        let mixed = [Space { bytes: 64 * GIB, device: true, shared: false }, free(64 * GIB)];
        let quotas: Vec<u64> =
            plan(None, 1, &mixed).unwrap().volumes.iter().map(|it| it.quota_bytes).collect();
        assert_eq!(quotas, [64 * GIB - 64 * GIB / 10, 32 * GIB]);
    }

    #[test]
    fn structures_follow_each_other() {
        let volume = VolumePlan { quota_bytes: GIB, places: 64, spares: 16 };
        let layout = Layout::new(&volume, true, true);
        assert_eq!(layout.segments_pages, 3);
        assert_eq!(layout.runs_offset, (2 << 20) + 6 * 4096);
        assert!(layout.end.is_multiple_of(4096));
        assert_eq!(Layout::new(&volume, true, false).ring_slot_bytes, 0);
    }
}
