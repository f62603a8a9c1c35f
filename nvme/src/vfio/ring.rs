//! One pair of queues in memory: where the next command goes, and which completion is new.
//!
//! # Invariants
//! - A submission entry is written again only after the device said that it has read it.
//! - The caller keeps at most `entries - 1` commands without a completion, so the completion queue
//!   never runs over. It counts by identifiers, because a device may complete what is not there.
//! - A completion is new if its phase bit differs from the last round's; the rest of the entry is
//!   read after the bit.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::bus::Bus;
use super::command::{COMMAND_DWORDS, COMPLETION_DWORDS, Command, Ended};
use super::memory::DmaMemory;
use super::registers::{Capabilities, PAGE_BYTES};

const COMMAND_BYTES: usize = COMMAND_DWORDS * 4;
const COMPLETION_BYTES: usize = COMPLETION_DWORDS * 4;

/// A submission queue and its completion queue, of the same number and length.
pub(super) struct Ring {
    memory: Arc<DmaMemory>,
    entries: u16,
    completions_at: usize,
    tail: u16,
    /// What the device was told of `tail`.
    tail_told: u16,
    /// How far the device has read.
    submission_head: u16,
    completion_head: u16,
    completion_head_told: u16,
    /// What the phase bit of a new completion is in this round.
    phase: bool,
    tail_doorbell: usize,
    head_doorbell: usize,
}

impl Ring {
    /// Bytes at the start of the memory that a ring of so many entries takes.
    pub(super) fn bytes(entries: u16) -> usize {
        Self::completions_at(entries)
            + (usize::from(entries) * COMPLETION_BYTES).next_multiple_of(PAGE_BYTES)
    }

    /// Byte of the completion queue; the submission queue stands at the start.
    pub(super) fn completions_at(entries: u16) -> usize {
        (usize::from(entries) * COMMAND_BYTES).next_multiple_of(PAGE_BYTES)
    }

    /// Lays an empty pair at the start of `memory`, which has room for it. `entries` is 2 at least.
    pub(super) fn new(
        memory: Arc<DmaMemory>,
        entries: u16,
        queue: u16,
        capabilities: Capabilities,
    ) -> Self {
        memory.clear(0, Self::bytes(entries));
        let tail_doorbell = capabilities.doorbell(queue);
        Self {
            memory,
            entries,
            completions_at: Self::completions_at(entries),
            tail: 0,
            tail_told: 0,
            submission_head: 0,
            completion_head: 0,
            completion_head_told: 0,
            phase: true,
            tail_doorbell,
            head_doorbell: tail_doorbell + capabilities.doorbell_stride(),
        }
    }

    /// Whether another command fits.
    pub(super) fn has_room(&self) -> bool {
        self.next(self.tail) != self.submission_head
    }

    /// Writes a command behind the last; [`Ring::tell`] hands it over. `false`: there is no room.
    pub(super) fn push(&mut self, command: &Command) -> bool {
        if !self.has_room() {
            return false;
        }
        let at = usize::from(self.tail) * COMMAND_BYTES;
        for (n, dword) in command.0.iter().enumerate() {
            self.memory.store32(at + n * 4, *dword);
        }
        self.tail = self.next(self.tail);
        true
    }

    /// Tells the device of new commands and of completions taken.
    pub(super) fn tell(&mut self, bus: &impl Bus) {
        if self.completion_head != self.completion_head_told {
            self.completion_head_told = self.completion_head;
            bus.write32(self.head_doorbell, u32::from(self.completion_head));
        }
        if self.tail != self.tail_told {
            self.tail_told = self.tail;
            bus.write32(self.tail_doorbell, u32::from(self.tail));
        }
    }

    /// The next new completion.
    pub(super) fn pop(&mut self) -> Option<Ended> {
        let at = self.completions_at + usize::from(self.completion_head) * COMPLETION_BYTES;
        let last = self.memory.load32(at + 12);
        if Ended::phase(last) != self.phase {
            return None;
        }
        fence(Ordering::Acquire);
        let load = |n: usize| self.memory.load32(at + n * 4);
        let ended = Ended::decode([load(0), load(1), load(2), last]);
        self.completion_head = self.next(self.completion_head);
        if self.completion_head == 0 {
            self.phase = !self.phase;
        }
        // A head outside of the queue would be the device's fault; believing it would overwrite
        // commands that it has not read.
        if ended.submission_head < self.entries {
            self.submission_head = ended.submission_head;
        }
        Some(ended)
    }

    fn next(&self, at: u16) -> u16 {
        if at + 1 == self.entries { 0 } else { at + 1 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn complete(memory: &DmaMemory, entries: u16, at: u16, phase: bool, id: u16, head: u16) {
        let base = Ring::completions_at(entries) + usize::from(at) * COMPLETION_BYTES;
        memory.store32(base + 8, u32::from(head));
        memory.store32(base + 12, u32::from(id) | u32::from(phase) << 16);
    }

    proptest! {
        /// A device that reads and completes at its own pace sees every command once, in order, and
        /// every completion is taken once, whatever the length of the queue.
        #[test]
        fn nothing_is_lost_or_seen_twice(
            entries in 2u16..9,
            steps in prop::collection::vec(0u8..3, 0..300),
        ) {
            let memory = Arc::new(DmaMemory::new(Ring::bytes(entries)).unwrap());
            let mut ring = Ring::new(Arc::clone(&memory), entries, 1, Capabilities(0));
            let (mut sent, mut read, mut posted, mut taken) = (0u16, 0u16, 0u16, 0u16);
            let mut unread = VecDeque::new();
            for step in steps {
                match step {
                    0 => {
                        if sent - taken + 1 == entries {
                            continue;
                        }
                        let fits = ring.has_room();
                        prop_assert_eq!(ring.push(&Command::flush(1).with_id(sent)), fits);
                        if fits {
                            unread.push_back(sent);
                            sent += 1;
                        }
                    }
                    1 => if let Some(id) = unread.pop_front() {
                        let at = usize::from(read % entries) * COMMAND_BYTES;
                        prop_assert_eq!(memory.load32(at) >> 16, u32::from(id));
                        read += 1;
                        let phase = posted / entries % 2 == 0;
                        complete(&memory, entries, posted % entries, phase, id, read % entries);
                        posted += 1;
                    },
                    _ => match ring.pop() {
                        Some(ended) => {
                            prop_assert_eq!(ended.id, taken);
                            taken += 1;
                            prop_assert!(taken <= posted);
                        }
                        None => prop_assert_eq!(taken, posted),
                    },
                }
            }
        }
    }

    #[test]
    fn a_head_that_cannot_be_is_not_believed() {
        let memory = Arc::new(DmaMemory::new(Ring::bytes(4)).unwrap());
        let mut ring = Ring::new(Arc::clone(&memory), 4, 1, Capabilities(0));
        for id in 0..3 {
            assert!(ring.push(&Command::flush(1).with_id(id)));
        }
        complete(&memory, 4, 0, true, 0, 60_000);
        assert!(ring.pop().is_some());
        assert!(!ring.has_room(), "nobody said that an entry was read");
        complete(&memory, 4, 1, true, 1, 2);
        assert!(ring.pop().is_some());
        assert!(ring.has_room());
    }
}
