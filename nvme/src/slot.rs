//! The files of a queue, and the poison rule, shared by all back ends.

use std::io;

use crate::error::{AfterFailure, NvmeError};

/// A file attached to a queue. Good for that queue until it is detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    pub(crate) index: u16,
    /// Tells the users of one place apart, so that a stale slot does not write to somebody else's
    /// file.
    generation: u32,
}

struct Entry<T> {
    generation: u32,
    used: Option<Used<T>>,
}

struct Used<T> {
    file: T,
    name: String,
    in_flight: u32,
    poisoned: bool,
}

/// A fixed number of slots with a `T` in each.
pub(crate) struct Slots<T> {
    entries: Vec<Entry<T>>,
    in_flight: usize,
    depth: usize,
}

impl<T> Slots<T> {
    pub(crate) fn new(slots: u16, depth: usize) -> Self {
        let entries = (0..slots).map(|_| Entry { generation: 0, used: None }).collect();
        Self { entries, in_flight: 0, depth }
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Finds a free place; [`Slots::put`] fills it.
    pub(crate) fn free_place(&self) -> Result<u16, NvmeError> {
        let place = self.entries.iter().position(|e| e.used.is_none());
        place.map(|at| at as u16).ok_or(NvmeError::SlotsFull { slots: self.entries.len() as u16 })
    }

    pub(crate) fn put(&mut self, index: u16, name: &str, file: T) -> Slot {
        let entry = &mut self.entries[usize::from(index)];
        entry.generation = entry.generation.wrapping_add(1);
        entry.used = Some(Used { file, name: name.to_owned(), in_flight: 0, poisoned: false });
        Slot { index, generation: entry.generation }
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Result<T, NvmeError> {
        let entry = self.entry(slot)?;
        if let Some(used) = entry.used.take_if(|used| used.in_flight == 0) {
            return Ok(used.file);
        }
        let (file, in_flight) =
            entry.used.as_ref().map_or((String::new(), 0), |u| (u.name.clone(), u.in_flight));
        Err(NvmeError::SlotBusy { file, in_flight })
    }

    /// Counts one operation in, unless it has to be refused, and gives its file.
    pub(crate) fn start(&mut self, slot: Slot) -> Result<&T, NvmeError> {
        let full = self.in_flight >= self.depth;
        let depth = self.depth;
        let unknown = NvmeError::UnknownSlot { index: slot.index };
        let used = match self.entries.get_mut(usize::from(slot.index)) {
            Some(entry) if entry.generation == slot.generation => {
                entry.used.as_mut().ok_or(unknown)?
            }
            _ => return Err(unknown),
        };
        if used.poisoned {
            return Err(NvmeError::Poisoned { file: used.name.clone() });
        }
        if full {
            return Err(NvmeError::QueueFull { depth });
        }
        used.in_flight += 1;
        self.in_flight += 1;
        Ok(&used.file)
    }

    /// Counts one operation out and turns its result into what the caller may believe.
    pub(crate) fn finish(&mut self, slot: Slot, result: io::Result<()>) -> io::Result<()> {
        let Ok(entry) = self.entry(slot) else { return result };
        let Some(used) = entry.used.as_mut() else { return result };
        used.in_flight = used.in_flight.saturating_sub(1);
        let result = match result {
            Ok(()) if used.poisoned => Err(io::Error::other(AfterFailure)),
            other => other,
        };
        used.poisoned |= result.is_err();
        self.in_flight = self.in_flight.saturating_sub(1);
        result
    }

    fn entry(&mut self, slot: Slot) -> Result<&mut Entry<T>, NvmeError> {
        self.entries
            .get_mut(usize::from(slot.index))
            .filter(|e| e.generation == slot.generation && e.used.is_some())
            .ok_or(NvmeError::UnknownSlot { index: slot.index })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stale_slots_are_unknown() {
        let mut slots = Slots::new(1, 4);
        let place = slots.free_place().unwrap();
        let old = slots.put(place, "a", ());
        assert!(matches!(slots.free_place(), Err(NvmeError::SlotsFull { slots: 1 })));
        slots.start(old).unwrap();
        assert!(matches!(slots.remove(old), Err(NvmeError::SlotBusy { in_flight: 1, .. })));
        slots.finish(old, Ok(())).unwrap();
        slots.remove(old).unwrap();
        let new = slots.put(place, "b", ());
        assert!(matches!(slots.start(old), Err(NvmeError::UnknownSlot { .. })));
        assert!(slots.start(new).is_ok());
    }

    proptest! {
        /// Once a result was an error, no later result of that slot is a success, and nothing new
        /// starts.
        #[test]
        fn poison_is_for_ever(results in prop::collection::vec(any::<bool>(), 1..20)) {
            let mut slots = Slots::new(2, 100);
            let slot = slots.put(0, "a", ());
            let other = slots.put(1, "b", ());
            for _ in &results {
                slots.start(slot).unwrap();
            }
            let mut failed = false;
            for ok in results {
                let result = if ok { Ok(()) } else { Err(io::ErrorKind::Other.into()) };
                let end = slots.finish(slot, result);
                failed |= !ok;
                prop_assert_eq!(end.is_err(), failed);
            }
            prop_assert_eq!(slots.in_flight(), 0);
            let refused = slots.start(slot).is_err_and(|e| e.is_poisoned());
            prop_assert_eq!(refused, failed);
            prop_assert!(slots.start(other).is_ok(), "poison stays with its file");
        }
    }
}
