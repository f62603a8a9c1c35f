//! Copies of chunks for people who watch live, made before sealing. A slow watcher misses chunks
//! and is told how many; it never slows a lane down.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use wirevault_format::{Interface, LinkType};

use crate::status::lock;

/// Chunks that wait for one watcher at most.
const BACKLOG: usize = 64;

/// A copy of one chunk's payload.
pub struct TailChunk {
    /// Interfaces that the packets name by number.
    pub interfaces: Arc<Vec<Interface>>,
    /// Link type.
    pub link_type: LinkType,
    /// Lane.
    pub lane: u16,
    /// Packets and gaps: pcapng blocks.
    pub payload: Vec<u8>,
    /// What this watcher missed before this chunk.
    pub missed: Missed,
}

/// Chunks that came while a watcher's backlog was full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missed {
    /// Chunks.
    pub chunks: u64,
    /// Packets in them.
    pub packets: u64,
}

/// Where watchers subscribe.
#[derive(Default)]
pub struct TailHub {
    watchers: Mutex<Vec<Watcher>>,
    count: AtomicUsize,
}

struct Watcher {
    sender: Sender<TailChunk>,
    missed: Missed,
}

impl TailHub {
    /// Subscribes; dropping the receiver ends the subscription.
    pub fn subscribe(&self) -> Receiver<TailChunk> {
        let (sender, receiver) = bounded(BACKLOG);
        let mut watchers = lock(&self.watchers);
        watchers.push(Watcher { sender, missed: Missed::default() });
        self.count.store(watchers.len(), Ordering::Release);
        receiver
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    pub(crate) fn publish(
        &self,
        interfaces: &Arc<Vec<Interface>>,
        link_type: LinkType,
        lane: u16,
        payload: &[u8],
        packets: usize,
    ) {
        let mut watchers = lock(&self.watchers);
        watchers.retain_mut(|watcher| {
            let (interfaces, payload) = (Arc::clone(interfaces), payload.to_vec());
            let missed = watcher.missed;
            match watcher.sender.try_send(TailChunk {
                interfaces,
                link_type,
                lane,
                payload,
                missed,
            }) {
                Ok(()) => watcher.missed = Missed::default(),
                Err(TrySendError::Full(_)) => {
                    watcher.missed.chunks += 1;
                    watcher.missed.packets += packets as u64;
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
            true
        });
        self.count.store(watchers.len(), Ordering::Release);
    }

    /// Ends every subscription.
    pub(crate) fn end(&self) {
        lock(&self.watchers).clear();
        self.count.store(0, Ordering::Release);
    }
}
