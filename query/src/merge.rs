//! Merges streams by key, lazily: a stream does no work before everything in front of it is out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

/// One ordered stream of items.
///
/// Invariant: the key never decreases from one step to the next, and no later item has a key below
/// it.
pub(crate) trait Cursor {
    /// Order of the items.
    type Key: Ord + Copy;
    /// What the steps share: buffers, counters, a way to be stopped.
    type Context;
    /// Why a step failed.
    type Error;

    /// Key of the item at hand, or a key that no later item undercuts; `None` at the end.
    fn key(&self) -> Option<Self::Key>;

    /// There is an item at hand.
    fn is_ready(&self) -> bool;

    /// One step: leaves the item at hand, or does a bounded piece of work towards the next one.
    fn advance(&mut self, context: &mut Self::Context) -> Result<(), Self::Error>;
}

/// Many streams in the order of their keys.
pub(crate) struct Merge<C: Cursor> {
    cursors: Vec<Option<C>>,
    heap: BinaryHeap<Reverse<(C::Key, usize)>>,
    /// The item of the first stream was given out.
    given: bool,
}

impl<C: Cursor> Merge<C> {
    pub(crate) fn new(cursors: Vec<C>) -> Self {
        let cursors: Vec<_> = cursors.into_iter().map(Some).collect();
        let keys = cursors.iter().enumerate();
        let heap = keys.filter_map(|(n, c)| Some(Reverse((c.as_ref()?.key()?, n)))).collect();
        Self { cursors, heap, given: false }
    }

    /// The stream whose item at hand comes next, or `None` at the end of all.
    pub(crate) fn next(&mut self, context: &mut C::Context) -> Result<Option<&mut C>, C::Error> {
        loop {
            let Some(mut top) = self.heap.peek_mut() else { return Ok(None) };
            let Reverse((key, number)) = *top;
            let slot = &mut self.cursors[number];
            let Some(cursor) = slot else {
                PeekMut::pop(top);
                continue;
            };
            if cursor.is_ready() && !self.given {
                self.given = true;
                drop(top);
                return Ok(self.cursors[number].as_mut());
            }
            self.given = false;
            cursor.advance(context)?;
            match cursor.key() {
                Some(next) => {
                    debug_assert!(next >= key, "a stream went backwards");
                    *top = Reverse((next, number));
                }
                None => {
                    PeekMut::pop(top);
                    // What the stream holds, buffers and files, goes with it.
                    *slot = None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// Items with pauses: `None` is a step that only moves the lower bound.
    struct Steps {
        number: usize,
        items: Vec<(u32, bool)>,
        at: usize,
    }

    impl Cursor for Steps {
        type Key = (u32, usize);
        type Context = u64;
        type Error = Infallible;

        fn key(&self) -> Option<(u32, usize)> {
            self.items.get(self.at).map(|item| (item.0, self.number))
        }

        fn is_ready(&self) -> bool {
            self.items.get(self.at).is_some_and(|item| item.1)
        }

        fn advance(&mut self, steps: &mut u64) -> Result<(), Infallible> {
            *steps += 1;
            self.at += 1;
            Ok(())
        }
    }

    fn merged(streams: &[Vec<(u32, bool)>], take: usize) -> (Vec<(u32, usize)>, u64) {
        let cursor =
            |(number, items): (usize, &Vec<_>)| Steps { number, items: items.clone(), at: 0 };
        let mut merge = Merge::new(streams.iter().enumerate().map(cursor).collect());
        let (mut out, mut steps) = (Vec::new(), 0);
        while out.len() < take {
            let Ok(Some(cursor)) = merge.next(&mut steps) else { break };
            out.extend(cursor.key());
        }
        (out, steps)
    }

    proptest! {
        #[test]
        fn the_merge_is_the_stable_sort(
            mut streams in proptest::collection::vec(
                proptest::collection::vec((0u32..20, any::<bool>()), 0..30), 0..8),
        ) {
            for stream in &mut streams {
                stream.sort_by_key(|item| item.0);
            }
            let mut expected: Vec<(u32, usize)> = Vec::new();
            for (number, stream) in streams.iter().enumerate() {
                expected.extend(stream.iter().filter(|item| item.1).map(|item| (item.0, number)));
            }
            expected.sort();
            prop_assert_eq!(merged(&streams, usize::MAX).0, expected);
        }
    }

    #[test]
    fn streams_that_lie_later_are_not_touched() {
        let late = vec![(100, false); 50];
        let (out, steps) = merged(&[vec![(1, true), (2, true)], late.clone(), late], 2);
        assert_eq!((out, steps), (vec![(1, 0), (2, 0)], 1));
    }

    #[test]
    fn no_streams_give_nothing() {
        assert_eq!(merged(&[], 5), (Vec::new(), 0));
        assert_eq!(merged(&[Vec::new()], 5), (Vec::new(), 0));
    }
}
