//! The simulated back end: operations on a [`SimMedia`](wirevault_media::SimMedia) that end late
//! and out of order.
//!
//! Deterministic: the same seed and calls give the same completions. Time counts in polls; a poll
//! with a wait jumps to the next completion. What is in flight when the disk crashes may be on it
//! or not, as with real devices. Failed writes and syncs, lies and power cuts are injected into the
//! media.

use std::sync::Arc;
use std::time::Duration;

use wirevault_buffer::ChunkBuf;
use wirevault_media::MediaFile;
use wirevault_media::sim::{PendingSync, PendingWrite, SplitMix64};

use crate::error::{NvmeError, Refused};
use crate::options::QueueReport;
use crate::slot::{Slot, Slots};
use crate::{Completion, Queue, check_write};

const NAME: &str = "sim";
const WHY: &str = "the disk is simulated";

/// What a simulated queue should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimOptions {
    /// Decides delays and order.
    pub seed: u64,
    /// Operations in flight at most.
    pub depth: usize,
    /// Files attached at most.
    pub slots: u16,
    /// Polls an operation takes at most; it takes 1 at least.
    pub delay_polls_max: u32,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self { seed: 0, depth: 64, slots: 64, delay_polls_max: 8 }
    }
}

/// A queue over simulated files. Dropping it abandons what is in flight.
pub struct SimQueue {
    slots: Slots<Arc<dyn MediaFile>>,
    pending: Vec<Pending>,
    rng: SplitMix64,
    delay_polls_max: u32,
    now: u64,
}

struct Pending {
    slot: Slot,
    token: u64,
    due: u64,
    work: Work,
}

enum Work {
    Write(PendingWrite, ChunkBuf),
    Sync(PendingSync),
}

impl SimQueue {
    /// Makes a queue. Nothing can fail.
    pub fn new(options: SimOptions) -> Self {
        Self {
            slots: Slots::new(options.slots, options.depth),
            pending: Vec::with_capacity(options.depth),
            rng: SplitMix64::new(options.seed),
            delay_polls_max: options.delay_polls_max,
            now: 0,
        }
    }

    fn add(&mut self, slot: Slot, token: u64, work: Work) {
        let due = self.now + 1 + self.rng.below(u64::from(self.delay_polls_max));
        self.pending.push(Pending { slot, token, due, work });
    }
}

impl Queue for SimQueue {
    fn name(&self) -> &'static str {
        NAME
    }

    fn report(&self) -> QueueReport {
        QueueReport::new(NAME, WHY)
    }

    fn depth(&self) -> usize {
        self.slots.depth()
    }

    fn attach(&mut self, file: &Arc<dyn MediaFile>) -> Result<Slot, NvmeError> {
        if file.simulated().is_none() {
            return Err(NvmeError::WrongFile {
                backend: NAME,
                file: file.name().to_owned(),
                reason: "it is not simulated",
            });
        }
        let place = self.slots.free_place()?;
        Ok(self.slots.put(place, file.name(), Arc::clone(file)))
    }

    fn detach(&mut self, slot: Slot) -> Result<(), NvmeError> {
        self.slots.remove(slot).map(drop)
    }

    fn write(
        &mut self,
        slot: Slot,
        offset: u64,
        buf: ChunkBuf,
        len_bytes: usize,
        token: u64,
    ) -> Result<(), Refused> {
        let submitted = check_write(offset, len_bytes).and_then(|()| {
            let file = self.slots.start(slot)?;
            Ok(file.simulated().map(|sim| sim.submit_write(&buf[..len_bytes], offset)))
        });
        match submitted {
            Ok(Some(write)) => self.add(slot, token, Work::Write(write, buf)),
            // `attach` takes simulated files only.
            Ok(None) => return Err(Refused { error: unknown(slot), buf }),
            Err(error) => return Err(Refused { error, buf }),
        }
        Ok(())
    }

    fn sync(&mut self, slot: Slot, token: u64) -> Result<(), NvmeError> {
        let sync = self.slots.start(slot)?.simulated().map(|sim| sim.submit_sync());
        self.add(slot, token, Work::Sync(sync.ok_or_else(|| unknown(slot))?));
        Ok(())
    }

    fn poll(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        self.now += 1;
        if !wait.is_zero()
            && let Some(first) = self.pending.iter().map(|p| p.due).min()
        {
            self.now = self.now.max(first);
        }
        loop {
            let due = |p: &&Pending| p.due <= self.now;
            let count = self.pending.iter().filter(due).count();
            if count == 0 {
                return Ok(());
            }
            let nth = self.rng.below(count as u64) as usize;
            let Some((at, _)) = self.pending.iter().enumerate().filter(|(_, p)| due(p)).nth(nth)
            else {
                return Ok(());
            };
            let Pending { slot, token, work, .. } = self.pending.swap_remove(at);
            out.push(match work {
                Work::Write(write, buf) => {
                    let result = self.slots.finish(slot, write.complete());
                    Completion::Write { token, buf, result }
                }
                Work::Sync(sync) => {
                    let result = self.slots.finish(slot, sync.complete());
                    Completion::Sync { token, result }
                }
            });
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }
}

fn unknown(slot: Slot) -> NvmeError {
    NvmeError::UnknownSlot { index: slot.index }
}
