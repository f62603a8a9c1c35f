//! Queues in front of other queues: each does a little itself, and leaves the rest to the one
//! behind it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wirevault_buffer::ChunkBuf;
use wirevault_media::MediaFile;

use crate::error::{NvmeError, Refused};
use crate::options::QueueReport;
use crate::slot::Slot;
use crate::{Completion, Queue};

/// A queue in front of another one. It is a [`Queue`] that does what the inner one does, but for
/// what is said here.
pub trait Layer: Send {
    /// The queue behind it.
    type Inner: Queue + ?Sized;

    /// That queue.
    fn inner(&self) -> &Self::Inner;

    /// The same, to submit to.
    fn inner_mut(&mut self) -> &mut Self::Inner;

    /// Looks at a chunk before it is submitted.
    ///
    /// Errors: it is not submitted, and goes back to the caller.
    fn admit(&mut self, _chunk: &ChunkBuf) -> Result<(), NvmeError> {
        Ok(())
    }

    /// As [`Queue::poll`].
    fn pass(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        self.inner_mut().poll(wait, out)
    }

    /// Operations that the inner queue has ended and this one has not.
    fn held(&self) -> usize {
        0
    }

    /// As [`Queue::oldest`].
    fn since(&self) -> Option<Instant> {
        self.inner().oldest()
    }
}

impl<L: Layer> Queue for L {
    fn name(&self) -> &'static str {
        self.inner().name()
    }

    fn report(&self) -> QueueReport {
        self.inner().report()
    }

    fn depth(&self) -> usize {
        self.inner().depth()
    }

    fn attach(&mut self, file: &Arc<dyn MediaFile>) -> Result<Slot, NvmeError> {
        self.inner_mut().attach(file)
    }

    fn detach(&mut self, slot: Slot) -> Result<(), NvmeError> {
        self.inner_mut().detach(slot)
    }

    fn write(
        &mut self,
        slot: Slot,
        offset: u64,
        buf: ChunkBuf,
        len_bytes: usize,
        token: u64,
    ) -> Result<(), Refused> {
        match self.admit(&buf) {
            Ok(()) => self.inner_mut().write(slot, offset, buf, len_bytes, token),
            Err(error) => Err(Refused { error, buf }),
        }
    }

    fn sync(&mut self, slot: Slot, token: u64) -> Result<(), NvmeError> {
        self.inner_mut().sync(slot, token)
    }

    fn poll(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        self.pass(wait, out)
    }

    fn in_flight(&self) -> usize {
        self.inner().in_flight() + self.held()
    }

    fn oldest(&self) -> Option<Instant> {
        self.since()
    }
}
