//! A queue that writes nothing, to measure what comes before the device.

use std::sync::Arc;
use std::time::Duration;

use wirevault_buffer::ChunkBuf;
use wirevault_media::MediaFile;

use crate::error::{NvmeError, Refused};
use crate::options::{QueueOptions, QueueReport};
use crate::slot::{Slot, Slots};
use crate::{Completion, Queue, check_write};

const NAME: &str = "null";
const WHY: &str = "it stores nothing, for measuring";

/// Completes every operation at the next poll. Nothing is stored, and nothing is durable.
pub struct NullQueue {
    slots: Slots<()>,
    done: Vec<(Slot, Completion)>,
}

impl NullQueue {
    /// Makes a queue. Errors: options beyond limits.
    pub fn new(options: &QueueOptions) -> Result<Self, NvmeError> {
        options.check()?;
        let depth = options.depth as usize;
        Ok(Self { slots: Slots::new(options.slots, depth), done: Vec::with_capacity(depth) })
    }
}

impl Queue for NullQueue {
    fn name(&self) -> &'static str {
        NAME
    }

    fn report(&self) -> QueueReport {
        let mut report = QueueReport::new(NAME, WHY);
        report.because("the null queue was asked for: nothing is stored".to_owned());
        report
    }

    fn depth(&self) -> usize {
        self.slots.depth()
    }

    fn attach(&mut self, file: &Arc<dyn MediaFile>) -> Result<Slot, NvmeError> {
        let place = self.slots.free_place()?;
        Ok(self.slots.put(place, file.name(), ()))
    }

    fn detach(&mut self, slot: Slot) -> Result<(), NvmeError> {
        self.slots.remove(slot)
    }

    fn write(
        &mut self,
        slot: Slot,
        offset: u64,
        buf: ChunkBuf,
        len_bytes: usize,
        token: u64,
    ) -> Result<(), Refused> {
        let started = check_write(offset, len_bytes).and_then(|()| self.slots.start(slot).copied());
        if let Err(error) = started {
            return Err(Refused { error, buf });
        }
        self.done.push((slot, Completion::Write { token, buf, result: Ok(()) }));
        Ok(())
    }

    fn sync(&mut self, slot: Slot, token: u64) -> Result<(), NvmeError> {
        self.slots.start(slot)?;
        self.done.push((slot, Completion::Sync { token, result: Ok(()) }));
        Ok(())
    }

    fn poll(&mut self, _wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        for (slot, completion) in self.done.drain(..) {
            // Nothing fails here, so nothing is poisoned.
            let _ = self.slots.finish(slot, Ok(()));
            out.push(completion);
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }
}
