//! A queue to a shared volume: it tells of no sync unless the volume's lease was ours behind it.
//!
//! What a sync made durable before anybody claimed a higher epoch is found by whoever did. What it
//! made durable later may not be, so that must not be acknowledged. Looking at the lease when the
//! sync has ended tells the two apart, however long this process was stopped in between.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use wirevault_buffer::ChunkBuf;
use wirevault_media::Lease;

use crate::error::NvmeError;
use crate::layer::Layer;
use crate::{Completion, Queue};

/// A queue that a lease stands before.
pub struct LeasedQueue {
    inner: Box<dyn Queue>,
    lease: Arc<Lease>,
}

impl LeasedQueue {
    /// A queue to a volume under its lease.
    pub fn new(inner: Box<dyn Queue>, lease: Arc<Lease>) -> Self {
        Self { inner, lease }
    }
}

impl Layer for LeasedQueue {
    type Inner = dyn Queue;

    fn inner(&self) -> &Self::Inner {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut Self::Inner {
        &mut *self.inner
    }

    fn admit(&mut self, _chunk: &ChunkBuf) -> Result<(), NvmeError> {
        self.lease.lost().map_or(Ok(()), |lost| {
            let source = io::Error::other(lost.clone());
            Err(NvmeError::Broken { backend: self.inner.name(), source })
        })
    }

    fn pass(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        let before = out.len();
        let polled = self.inner.poll(wait, out);
        let ended = &mut out[before..];
        let synced = |end: &Completion| matches!(end, Completion::Sync { result: Ok(()), .. });
        if ended.iter().any(synced)
            && let Err(error) = self.lease.check()
        {
            let text = error.to_string();
            for end in ended.iter_mut().filter(|end| synced(end)) {
                let failed = Err(io::Error::other(text.clone()));
                *end = Completion::Sync { token: end.token(), result: failed };
            }
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
    use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
    use wirevault_media::{BlockMedia, Claim, Media, OpenMode, Role, Shape};

    use super::*;
    use crate::{QueueOptions, open_best};

    fn taken(device: &Path, role: Role) -> (BlockMedia, Arc<Lease>) {
        let media = BlockMedia::open(device).unwrap();
        let (name, interval) = (format!("{role:?}"), Duration::from_secs(1));
        let (holder, exclusive) = ([role as u8; 16], false);
        let lease = media.take_lease(&Claim { role, holder, name, interval, exclusive });
        (media, lease.unwrap())
    }

    fn ended(queue: &mut LeasedQueue) -> Completion {
        let mut out = Vec::new();
        while out.is_empty() {
            queue.poll(Duration::from_secs(1), &mut out).unwrap();
        }
        out.pop().unwrap()
    }

    #[test]
    fn a_sync_that_ends_behind_a_take_over_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("device");
        File::create(&device).unwrap().set_len(40 << 20).unwrap();
        let shape =
            Shape { volume_bytes: 3 << 20, digests_bytes: 0, place_bytes: 1 << 20, places: 4 };
        BlockMedia::open(&device).unwrap().to_be_shared().lay_out(&shape).unwrap();
        let (media, lease) = taken(&device, Role::Primary);
        let file = media.open("000001.pcapng", OpenMode::ReadWrite).unwrap();
        let options =
            ArenaOptions { bytes: 4 * CHUNK_BYTES, hugepages: Hugepages::Off, numa_node: None };
        let arena = Arena::new(options).unwrap();
        let inner = open_best(&QueueOptions::default(), &arena).unwrap();
        let pool = Pool::new(arena);
        let mut queue = LeasedQueue::new(inner, lease);
        let slot = queue.attach(&file).unwrap();

        for taken_over in [false, true] {
            queue.write(slot, 0, pool.take().unwrap(), LBA_BYTES, 1).unwrap();
            assert!(ended(&mut queue).result().is_ok());
            if taken_over {
                taken(&device, Role::Standby);
            }
            queue.sync(slot, 2).unwrap();
            assert_eq!(ended(&mut queue).result().is_err(), taken_over);
        }
        let refused = queue.write(slot, 0, pool.take().unwrap(), LBA_BYTES, 3).unwrap_err();
        assert!(refused.error.to_string().contains("fenced"), "{}", refused.error);
    }
}
