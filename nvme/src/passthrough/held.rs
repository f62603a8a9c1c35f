//! Memory that commands point to.

use std::mem;
use std::ops::Range;

use wirevault_buffer::ChunkBuf;

/// The memory of every operation, with the number of its commands under way. A chunk that is in
/// here comes out only while that number is 0: the rings' promise to the kernel.
pub(super) struct Held {
    places: Vec<Place>,
}

#[derive(Default)]
struct Place {
    buf: Option<ChunkBuf>,
    commands: u32,
}

impl Held {
    pub(super) fn new(operations: usize) -> Self {
        Self { places: (0..operations).map(|_| Place::default()).collect() }
    }

    /// Puts memory in. A chunk that is there already stays, and the new one is dropped: callers
    /// hold once for each operation.
    pub(super) fn hold(&mut self, index: usize, buf: ChunkBuf) {
        if let Some(place) = self.places.get_mut(index)
            && place.buf.is_none()
        {
            place.buf = Some(buf);
        }
    }

    pub(super) fn release(&mut self, index: usize) -> Option<ChunkBuf> {
        let place = self.places.get_mut(index)?;
        place.buf.take_if(|_| place.commands == 0)
    }

    /// A part of the memory of an operation.
    pub(super) fn data(&self, index: usize, range: &Range<usize>) -> Option<&[u8]> {
        self.buf(index)?.get(range.clone())
    }

    pub(super) fn buf(&self, index: usize) -> Option<&ChunkBuf> {
        self.places.get(index)?.buf.as_ref()
    }

    /// Counts a command in. `false` if there is no such operation.
    pub(super) fn begin(&mut self, index: usize) -> bool {
        let place = self.places.get_mut(index);
        place.map(|place| place.commands += 1).is_some()
    }

    /// Counts a command out. `false` if none was under way.
    pub(super) fn end(&mut self, index: usize) -> bool {
        let place = self.places.get_mut(index).filter(|place| place.commands > 0);
        place.map(|place| place.commands -= 1).is_some()
    }

    /// Commands under way, over all operations.
    pub(super) fn commands(&self) -> usize {
        self.places.iter().map(|place| place.commands as usize).sum()
    }

    /// Leaves the memory of commands that are still under way to them for ever.
    pub(super) fn abandon(&mut self) {
        for place in self.places.iter_mut().filter(|place| place.commands > 0) {
            mem::forget(place.buf.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
    use wirevault_format::limits::CHUNK_BYTES;

    use super::*;

    fn pool() -> Pool {
        let bytes = 4 * CHUNK_BYTES;
        let options = ArenaOptions { bytes, hugepages: Hugepages::Off, numa_node: None };
        Pool::new(Arena::new(options).unwrap())
    }

    proptest! {
        /// Whatever order things come in: memory comes out only while nothing is under way, and
        /// once for each time it went in.
        #[test]
        fn memory_stays_while_commands_are_under_way(
            steps in prop::collection::vec((0usize..4, 0usize..3), 1..200),
        ) {
            let pool = pool();
            let mut held = Held::new(2);
            let mut model = [(false, 0u32); 2];
            for (step, index) in steps {
                let known = model.get_mut(index);
                match (step, known) {
                    (0, Some((there, _))) if !*there => {
                        held.hold(index, pool.take().unwrap());
                        *there = true;
                    }
                    (1, Some((there, commands))) => {
                        let free = *there && *commands == 0;
                        prop_assert_eq!(held.release(index).is_some(), free);
                        *there &= !free;
                    }
                    (2, known) => {
                        prop_assert_eq!(held.begin(index), known.is_some());
                        if let Some((_, commands)) = known { *commands += 1; }
                    }
                    (3, known) => {
                        let under_way = known.as_ref().is_some_and(|(_, commands)| *commands > 0);
                        prop_assert_eq!(held.end(index), under_way);
                        if let Some((_, commands)) = known { *commands -= u32::from(under_way); }
                    }
                    _ => {}
                }
                let commands: u32 = model.iter().map(|(_, commands)| commands).sum();
                prop_assert_eq!(held.commands(), commands as usize);
                prop_assert_eq!(pool.in_flight(), model.iter().filter(|(there, _)| *there).count());
            }
            let kept = model.iter().filter(|(there, commands)| *there && *commands > 0).count();
            held.abandon();
            drop(held);
            prop_assert_eq!(pool.in_flight(), kept);
        }
    }
}
