//! Segments of a catalog, oldest first, in blocks that catalogs share.
//!
//! A store of 100,000 segments changes several times a second. A change copies the pointers of one
//! block, not those of all segments; everybody who holds an older list keeps it as it was.

use std::collections::BTreeMap;
use std::ops::Index;
use std::sync::Arc;

use wirevault_format::table::SegmentEntry;

use crate::catalog::Segment;
use crate::tier::Tiered;

/// Segments of a block at most. A change copies so many pointers, and one for each block: about 700
/// with 100,000 segments.
const BLOCK_SEGMENTS: usize = 512;

type Block = Arc<[Arc<Segment>]>;

/// A list of segments, oldest first. Cloning it is cheap; a changed list is a new one.
#[derive(Clone, Default)]
pub struct Segments {
    /// None of them is empty.
    blocks: Arc<[Block]>,
    len: usize,
}

impl Segments {
    /// Number of segments.
    pub fn len(&self) -> usize {
        self.len
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> Iter<'_> {
        self.blocks.iter().flat_map(as_slice)
    }

    /// The segment of this entry.
    pub fn get(&self, entry: &SegmentEntry) -> Option<&Arc<Segment>> {
        let block = &self.blocks[self.block_of(entry.ordinal)?];
        block.iter().find(|known| is_same(&known.entry, entry))
    }

    /// The list with the copies that lie in the tier: each beside what lies on its volume, or in
    /// its place.
    pub fn joined(&self, tiered: &[Tiered]) -> Self {
        let join = |tiered: &Tiered| match self.get(&tiered.entry) {
            Some(known) if known.is_live() => Arc::clone(known),
            Some(known) => Arc::new(known.with_tier(Some(Arc::clone(&tiered.copy)))),
            None => Arc::new(Segment::tiered(tiered)),
        };
        match tiered {
            [] => self.clone(),
            [one] => self.with(join(one)),
            _ => {
                let of =
                    |segment: Arc<Segment>| ((segment.entry.ordinal, segment.entry.life), segment);
                let mut all: BTreeMap<_, _> = self.iter().cloned().map(of).collect();
                all.extend(tiered.iter().map(|tiered| of(join(tiered))));
                all.into_values().collect()
            }
        }
    }

    /// The list without what lies on the volume of this entry's segment: a copy in the tier stays.
    pub fn without_local(&self, entry: &SegmentEntry) -> Self {
        match self.get(entry).and_then(|known| known.left_in_tier()) {
            Some(left) => self.with(Arc::new(left)),
            None => self.without(entry),
        }
    }

    /// The list with this segment, in the place of the one with its ordinal and life if that is
    /// there.
    pub fn with(&self, segment: Arc<Segment>) -> Self {
        let ordinal = segment.entry.ordinal;
        let Some(number) = self.block_of(ordinal) else {
            return std::iter::once(segment).collect();
        };
        let mut block: Vec<_> = self.blocks[number].to_vec();
        match block.iter_mut().find(|known| is_same(&known.entry, &segment.entry)) {
            Some(known) => *known = segment,
            None => {
                let at = block.partition_point(|known| known.entry.ordinal <= ordinal);
                // The list grows at its end; a full last block stays as it is.
                let is_last = number + 1 == self.blocks.len();
                if is_last && at == block.len() && at >= BLOCK_SEGMENTS {
                    let last = [Arc::from([segment])];
                    return self.with_blocks(self.blocks.len()..self.blocks.len(), last);
                }
                block.insert(at, segment);
            }
        }
        self.with_blocks(number..number + 1, [Arc::from(block)])
    }

    /// The list without the segment of this entry.
    pub fn without(&self, entry: &SegmentEntry) -> Self {
        let Some(number) = self.block_of(entry.ordinal) else { return self.clone() };
        let kept = self.blocks[number].iter().filter(|known| !is_same(&known.entry, entry));
        let block: Block = kept.cloned().collect();
        let block = (!block.is_empty()).then_some(block);
        self.with_blocks(number..number + 1, block)
    }

    /// The block that has the place of this ordinal; `None` if there is no block.
    fn block_of(&self, ordinal: u64) -> Option<usize> {
        let begun = self.blocks.partition_point(|block| block[0].entry.ordinal <= ordinal);
        (!self.blocks.is_empty()).then(|| begun.saturating_sub(1))
    }

    fn with_blocks(
        &self,
        range: std::ops::Range<usize>,
        new: impl IntoIterator<Item = Block>,
    ) -> Self {
        let (before, rest) = self.blocks.split_at(range.start);
        let (old, after) = rest.split_at(range.len());
        let new: Vec<Block> = new.into_iter().collect();
        let count = |blocks: &[Block]| blocks.iter().map(|block| block.len()).sum::<usize>();
        let len = self.len - count(old) + count(&new);
        let blocks = before.iter().cloned().chain(new).chain(after.iter().cloned());
        Self { blocks: blocks.collect(), len }
    }
}

/// A segment is known by its ordinal; the life tells it from one of a store that was damaged.
fn is_same(a: &SegmentEntry, b: &SegmentEntry) -> bool {
    (a.ordinal, a.life) == (b.ordinal, b.life)
}

fn as_slice(block: &Block) -> std::slice::Iter<'_, Arc<Segment>> {
    block.iter()
}

/// Iterator over the segments of a catalog.
pub type Iter<'a> = std::iter::FlatMap<
    std::slice::Iter<'a, Block>,
    std::slice::Iter<'a, Arc<Segment>>,
    fn(&'a Block) -> std::slice::Iter<'a, Arc<Segment>>,
>;

impl<'a> IntoIterator for &'a Segments {
    type Item = &'a Arc<Segment>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl FromIterator<Arc<Segment>> for Segments {
    /// Takes segments in any order.
    fn from_iter<I: IntoIterator<Item = Arc<Segment>>>(segments: I) -> Self {
        let mut segments: Vec<_> = segments.into_iter().collect();
        segments.sort_by_key(|segment| segment.entry.ordinal);
        let blocks = segments.chunks(BLOCK_SEGMENTS).map(Arc::from).collect();
        Self { blocks, len: segments.len() }
    }
}

impl Index<usize> for Segments {
    type Output = Arc<Segment>;

    fn index(&self, at: usize) -> &Arc<Segment> {
        let mut rest = at;
        for block in self.blocks.iter() {
            match block.get(rest) {
                Some(segment) => return segment,
                None => rest -= block.len(),
            }
        }
        panic!("segment {at} of {}", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use proptest::prelude::*;
    use wirevault_format::LifeId;
    use wirevault_media::SimMedia;

    use super::*;
    use crate::SegmentIndex;

    fn segment(ordinal: u64, place: u32) -> Arc<Segment> {
        let entry = SegmentEntry { ordinal, life: LifeId([7; 16]), ..SegmentEntry::default() };
        let index = Arc::new(RwLock::new(SegmentIndex::new()));
        Arc::new(Segment::live(entry, 0, place, Arc::new(SimMedia::new()), None, index))
    }

    fn content(segments: &Segments) -> Vec<(u64, u32)> {
        let content: Vec<_> = segments.iter().map(|it| (it.entry.ordinal, it.place)).collect();
        assert_eq!(content.len(), segments.len());
        for (at, pair) in content.iter().enumerate() {
            assert_eq!(*pair, (segments[at].entry.ordinal, segments[at].place));
        }
        content
    }

    proptest! {
        #[test]
        fn a_list_is_a_sorted_map(
            start in 0u64..1600,
            steps in prop::collection::vec((any::<bool>(), 0u64..2000), 0..60),
        ) {
            let mut list: Segments = (0..start).rev().map(|n| segment(2 * n, 0)).collect();
            let mut model: BTreeMap<u64, u32> = (0..start).map(|n| (2 * n, 0)).collect();
            for (step, (add, ordinal)) in (1..).zip(steps) {
                let before = (list.clone(), content(&list));
                if add {
                    list = list.with(segment(ordinal, step));
                    model.insert(ordinal, step);
                } else {
                    list = list.without(&segment(ordinal, 0).entry);
                    model.remove(&ordinal);
                }
                prop_assert_eq!(content(&before.0), before.1, "who holds the old list keeps it");
            }
            prop_assert_eq!(content(&list), model.into_iter().collect::<Vec<_>>());
        }
    }

    /// It went behind the last one: a block that had grown past its size was taken for a full one.
    #[test]
    fn a_segment_before_the_last_of_an_overfull_block_keeps_the_order() {
        let full: Segments = (0..BLOCK_SEGMENTS as u64).map(|n| segment(n, 0)).collect();
        let late = [2000, 1000, 1500, 1800].map(|ordinal| segment(ordinal, 0));
        let grown: Segments = (0..500).chain(700..711).map(|n| segment(n, 0)).collect();
        let grown = late.into_iter().fold(grown, |list, segment| list.with(segment));
        assert!(grown.blocks.len() == 1 && grown.len() > BLOCK_SEGMENTS, "one overfull block");
        assert!(content(&grown).is_sorted());
        let late = full.with(segment(512, 0)).with(segment(511, 1));
        assert!(content(&late).is_sorted());
    }

    #[test]
    fn a_list_that_grows_at_its_end_fills_its_blocks() {
        let grown = (0..2000).fold(Segments::default(), |list, n| list.with(segment(n, 0)));
        assert_eq!(grown.blocks.len(), 2000usize.div_ceil(BLOCK_SEGMENTS));
        let left = (0..2000).fold(grown, |list, n| list.without(&segment(n, 0).entry));
        assert!(left.is_empty() && left.blocks.is_empty());
    }
}
