//! A device that takes its time, as long as a test says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wirevault_nvme::{Completion, Layer, NvmeError, Queue, QueueOptions, ThreadQueue};
use wirevault_pipeline::QueueMaker;

/// How long a chunk takes; clones share it, and it may change at any time.
#[derive(Debug, Clone, Default)]
pub struct ChunkTime(Arc<AtomicU64>);

impl ChunkTime {
    /// Sets it, also for what the device has already.
    pub fn set(&self, time: Duration) {
        self.0.store(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Makes queues that take so long.
    pub fn queues(&self) -> QueueMaker {
        let time = self.clone();
        Arc::new(move |_, _| {
            let inner = ThreadQueue::new(&QueueOptions::default())?;
            let (time, held) = (time.clone(), VecDeque::new());
            Ok(Box::new(SlowQueue { inner, time, held, free_at: Instant::now() }) as Box<dyn Queue>)
        })
    }

    fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// Completions of the real queue come out in order, the writes one [`ChunkTime`] apart.
struct SlowQueue {
    inner: ThreadQueue,
    time: ChunkTime,
    /// What is done, and since when.
    held: VecDeque<(Instant, Completion)>,
    /// When the last one came out.
    free_at: Instant,
}

impl SlowQueue {
    /// When the first of those that are held comes out.
    fn due(&self) -> Option<Instant> {
        let (since, completion) = self.held.front()?;
        let takes = match completion {
            Completion::Write { .. } => self.time.get(),
            _ => Duration::ZERO,
        };
        Some(self.free_at.max(*since) + takes)
    }
}

impl Layer for SlowQueue {
    type Inner = ThreadQueue;

    fn inner(&self) -> &ThreadQueue {
        &self.inner
    }

    fn inner_mut(&mut self) -> &mut ThreadQueue {
        &mut self.inner
    }

    fn pass(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        let mut fresh = Vec::new();
        self.inner.poll(if self.held.is_empty() { wait } else { Duration::ZERO }, &mut fresh)?;
        let now = Instant::now();
        self.held.extend(fresh.into_iter().map(|completion| (now, completion)));
        if let Some(due) = self.due() {
            std::thread::sleep(due.saturating_duration_since(now).min(wait));
        }
        while let Some(due) = self.due().filter(|due| *due <= Instant::now()) {
            self.free_at = due;
            out.extend(self.held.pop_front().map(|(_, completion)| completion));
        }
        Ok(())
    }

    fn held(&self) -> usize {
        self.held.len()
    }
}
