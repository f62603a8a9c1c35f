//! Flows in columns: keys in their true length, shapes once, statistics, and for each flow the
//! chunks that hold packets of it.
//!
//! A record of everything in one piece took 224 bytes and an allocation a flow; this takes about
//! 90 for IPv4, and 4 more for each chunk.

use std::borrow::Cow;
use std::collections::HashMap;

use wirevault_packet::{FlowKey, ValueKind, value_layout};

use crate::delta::FlowStats;
use crate::memory::prefetch;

/// Bytes of the key of TCP in IPv4.
const TYPICAL_KEY_BYTES: usize = 23;

/// Flow keys one behind the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyList {
    bytes: Vec<u8>,
    /// Where each key ends in `bytes`.
    ends: Vec<u32>,
}

impl KeyList {
    /// An empty list that takes so many keys and bytes without allocating.
    pub fn with_room(keys: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(keys) }
    }

    /// Keys in it.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// It has no keys.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Appends a key.
    #[inline]
    pub fn push(&mut self, key: &FlowKey) {
        self.push_kept(key.as_bytes());
    }

    /// Appends a key in the form of [`FlowKey::as_bytes`].
    #[inline]
    pub fn push_kept(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len() as u32);
    }

    /// The key with this number, in the form of [`FlowKey::as_bytes`]; empty if there is none.
    #[inline]
    pub fn get(&self, number: usize) -> &[u8] {
        let end = self.ends.get(number).map_or(0, |end| *end as usize);
        let start = number.checked_sub(1).and_then(|before| self.ends.get(before));
        self.bytes.get(start.map_or(0, |start| *start as usize)..end).unwrap_or_default()
    }

    /// The last key.
    pub fn last(&self) -> Option<&[u8]> {
        self.len().checked_sub(1).map(|number| self.get(number))
    }

    /// All keys, in the form of [`FlowKey::as_bytes`].
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|number| self.get(number))
    }

    /// Forgets all keys and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    #[cfg(test)]
    pub(crate) fn room(&self) -> [usize; 2] {
        [self.bytes.capacity(), self.ends.capacity()]
    }
}

impl FromIterator<FlowKey> for KeyList {
    fn from_iter<T: IntoIterator<Item = FlowKey>>(keys: T) -> Self {
        let mut list = Self::default();
        keys.into_iter().for_each(|key| list.push(&key));
        list
    }
}

/// Shape and values of a key in the form of [`FlowKey::as_bytes`].
#[inline]
pub(crate) fn parts(key: &[u8]) -> (&[u8], &[u8]) {
    let shape = key.first().map_or(0, |bytes| usize::from(*bytes));
    key.get(2..).unwrap_or_default().split_at_checked(shape).unwrap_or_default()
}

/// Shapes, each with its number and the layout of its values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shapes {
    pub(crate) list: Vec<Shape>,
    numbers: HashMap<Vec<u8>, u32>,
    /// The last one asked for: neighbours are much alike.
    last: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) bytes: Vec<u8>,
    pub(crate) layout: Vec<ValueKind>,
}

impl Shape {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        // A key in memory was made by `dissect` or passed `from_parts`, so its shape has a layout.
        let layout = value_layout(&bytes).unwrap_or_default();
        Self { bytes, layout }
    }

    /// Each value of a flow of this shape.
    pub(crate) fn values<'a>(
        &'a self,
        mut values: &'a [u8],
    ) -> impl Iterator<Item = (ValueKind, &'a [u8])> {
        self.layout.iter().map(move |kind| {
            let (value, rest) = values.split_at(kind.bytes().min(values.len()));
            values = rest;
            (*kind, value)
        })
    }
}

impl Shapes {
    /// Shapes that were read back.
    pub(crate) fn of(list: Vec<Shape>) -> Self {
        let numbers = (0..).zip(&list).map(|(number, shape)| (shape.bytes.clone(), number));
        Self { numbers: numbers.collect(), list, last: 0 }
    }

    /// Number of a shape, a new one if there is none and fewer than `most` are known.
    #[inline]
    pub(crate) fn number(&mut self, shape: &[u8], most: usize) -> Option<u32> {
        if self.list.get(self.last as usize).is_some_and(|last| last.bytes == shape) {
            return Some(self.last);
        }
        let number = match self.numbers.get(shape) {
            Some(number) => *number,
            None if self.list.len() >= most => return None,
            None => {
                let number = self.list.len() as u32;
                self.numbers.insert(shape.to_vec(), number);
                self.list.push(Shape::new(shape.to_vec()));
                number
            }
        };
        self.last = number;
        Some(number)
    }
}

/// Flows with their statistics.
#[derive(Debug, Clone, Default)]
pub(crate) struct FlowList {
    pub(crate) shapes: Shapes,
    pub(crate) keys: KeyList,
    /// Shape of each flow.
    pub(crate) shape_of: Vec<u32>,
    pub(crate) stats: Vec<FlowStats>,
}

impl FlowList {
    pub(crate) fn len(&self) -> usize {
        self.stats.len()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let keys = self.keys.bytes.len() + size_of_val(&self.keys.ends[..]);
        keys + size_of_val(&self.shape_of[..]) + size_of_val(&self.stats[..])
    }

    /// Appends a flow of which nothing was seen yet.
    pub(crate) fn push(&mut self, key: &[u8]) {
        let shape = self.shapes.number(parts(key).0, usize::MAX);
        self.shape_of.push(shape.unwrap_or_default());
        self.keys.push_kept(key);
        self.stats.push(FlowStats::NONE);
    }

    /// Fetches where a flow's shape and key are found.
    pub(crate) fn prefetch_place(&self, number: usize) {
        prefetch(&self.shape_of, number);
        prefetch(&self.keys.ends, number);
    }

    /// Fetches a flow's key.
    pub(crate) fn prefetch_key(&self, number: usize) {
        let end = self.keys.ends.get(number).map_or(0, |end| *end as usize);
        prefetch(&self.keys.bytes, end);
        prefetch(&self.keys.bytes, end.saturating_sub(TYPICAL_KEY_BYTES));
    }

    /// Shape of a flow, and its values.
    #[inline]
    pub(crate) fn flow(&self, number: usize) -> (&Shape, &[u8]) {
        let shape = &self.shapes.list[self.shape_of[number] as usize];
        (shape, parts(self.keys.get(number)).1)
    }
}

/// Lists of numbers, one behind the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lists {
    pub(crate) numbers: Vec<u32>,
    /// Where each list ends in `numbers`.
    pub(crate) ends: Vec<u32>,
}

impl Lists {
    pub(crate) fn end_list(&mut self) {
        self.ends.push(self.numbers.len() as u32);
    }

    #[inline]
    pub(crate) fn get(&self, list: usize) -> &[u32] {
        let end = self.ends.get(list).map_or(0, |end| *end as usize);
        let start = list.checked_sub(1).and_then(|before| self.ends.get(before));
        self.numbers.get(start.map_or(0, |start| *start as usize)..end).unwrap_or_default()
    }

    /// The lists the other way round: for each number below `count` the lists, among those that
    /// `wanted` names, in which it stands, ascending.
    pub(crate) fn turned(&self, count: usize, wanted: impl Fn(usize) -> bool) -> Self {
        let lists = || (0..self.ends.len()).filter(|list| wanted(*list));
        let mut ends = vec![0u32; count + 1];
        for list in lists() {
            self.get(list).iter().for_each(|number| ends[*number as usize + 1] += 1);
        }
        (1..=count).for_each(|at| ends[at] += ends[at - 1]);
        let mut numbers = vec![0; ends[count] as usize];
        // Filling moves each list's start to its end, which is what is kept.
        for list in lists() {
            for number in self.get(list) {
                let at = &mut ends[*number as usize];
                numbers[*at as usize] = list as u32;
                *at += 1;
            }
        }
        ends.pop();
        Self { numbers, ends }
    }
}

/// The flows of an index, in the order of their first packets.
#[derive(Debug, Clone)]
pub struct Flows<'a> {
    list: Cow<'a, FlowList>,
    postings: Cow<'a, Lists>,
}

/// A flow and what was seen of it in the segment.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowRecord<'a> {
    /// Its key.
    pub key: FlowKey,
    /// What was seen.
    pub stats: FlowStats,
    /// Chunks that hold packets of it, ascending; without those that a filter covers.
    pub chunks: &'a [u32],
}

impl<'a> Flows<'a> {
    pub(crate) fn new(list: &'a FlowList, postings: Cow<'a, Lists>) -> Self {
        Self { list: Cow::Borrowed(list), postings }
    }

    pub(crate) fn owned(list: FlowList, postings: Lists) -> Flows<'static> {
        Flows { list: Cow::Owned(list), postings: Cow::Owned(postings) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = FlowRecord<'_>> {
        (0..self.len()).map(|number| FlowRecord {
            key: FlowKey::from_kept(self.list.keys.get(number)),
            stats: self.list.stats[number],
            chunks: self.postings.get(number),
        })
    }
}

impl FromIterator<(FlowKey, FlowStats, Vec<u32>)> for Flows<'static> {
    fn from_iter<T: IntoIterator<Item = (FlowKey, FlowStats, Vec<u32>)>>(flows: T) -> Self {
        let (mut list, mut postings) = (FlowList::default(), Lists::default());
        for (key, stats, chunks) in flows {
            list.push(key.as_bytes());
            list.stats.pop();
            list.stats.push(stats);
            postings.numbers.extend(chunks);
            postings.end_list();
        }
        Self::owned(list, postings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_turn_and_turn_back() {
        let mut lists = Lists::default();
        for list in [&[3, 1][..], &[], &[1], &[0, 1, 3]] {
            lists.numbers.extend(list);
            lists.end_list();
        }
        let turned = lists.turned(5, |_| true);
        let all: Vec<_> = (0..6).map(|number| turned.get(number).to_vec()).collect();
        assert_eq!(all, [vec![3], vec![0, 2, 3], vec![], vec![0, 3], vec![], vec![]]);
        let back = turned.turned(4, |_| true);
        assert_eq!((back.get(0), back.get(1), back.get(3)), (&[1, 3][..], &[][..], &[0, 1, 3][..]));
        assert_eq!(lists.turned(4, |list| list == 2).get(1), [2]);
    }

    #[test]
    fn keys_come_back_by_number() {
        let mut keys = KeyList::with_room(2, 10);
        let room = keys.room();
        keys.push_kept(&[1, 0, 7]);
        keys.push_kept(&[0, 2, 8, 9]);
        assert_eq!(
            (keys.get(0), keys.get(1), keys.get(2)),
            (&[1, 0, 7][..], &[0, 2, 8, 9][..], &[][..])
        );
        assert_eq!(parts(keys.get(0)), (&[7][..], &[][..]));
        assert_eq!((parts(&[]), parts(&[9, 9, 1])), Default::default());
        assert_eq!((keys.last(), keys.room()), (Some(&[0, 2, 8, 9][..]), room));
    }
}
