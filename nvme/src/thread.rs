//! The plain back end: one thread writes, one syncs, so that a sync does not hold up the stream of
//! writes.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use wirevault_buffer::ChunkBuf;
use wirevault_media::MediaFile;

use crate::error::{NvmeError, Refused};
use crate::options::{QueueOptions, QueueReport};
use crate::slot::{Slot, Slots};
use crate::target::Target;
use crate::{Completion, Queue, check_write};

const NAME: &str = "thread";
const WHY: &str = "it works everywhere";

/// Writes with pwrite(2) and fdatasync(2). Works on every kind of file, simulated ones included.
pub struct ThreadQueue {
    slots: Slots<Arc<Target>>,
    report: QueueReport,
    direct: bool,
    /// No file attached so far went through the page cache.
    all_direct: bool,
    /// `None` only while the queue is being dropped.
    lines: Option<Lines>,
    ended: Receiver<Ended>,
    threads: Vec<JoinHandle<()>>,
}

/// All channels hold `depth` values, and no more operations are in flight: sending never blocks.
struct Lines {
    writes: Sender<Job>,
    syncs: Sender<Job>,
}

struct Job {
    slot: Slot,
    token: u64,
    target: Arc<Target>,
    write: Option<Write>,
}

struct Write {
    buf: ChunkBuf,
    offset: u64,
    len_bytes: usize,
}

struct Ended {
    slot: Slot,
    token: u64,
    buf: Option<ChunkBuf>,
    result: io::Result<()>,
}

impl ThreadQueue {
    /// Starts the threads. Errors: options beyond limits; no thread can be had.
    pub fn new(options: &QueueOptions) -> Result<Self, NvmeError> {
        options.check()?;
        let depth = options.depth as usize;
        let (writes, write_jobs) = bounded(depth);
        let (syncs, sync_jobs) = bounded(depth);
        let (done, ended) = bounded(depth);
        let start = |name: &str, jobs: Receiver<Job>, done: Sender<Ended>| {
            thread::Builder::new().name(name.to_owned()).spawn(move || work(&jobs, &done)).map_err(
                |source| NvmeError::Setup { backend: NAME, reason: "no thread can be had", source },
            )
        };
        let threads =
            vec![start("wv-write", write_jobs, done.clone())?, start("wv-sync", sync_jobs, done)?];
        Ok(Self {
            slots: Slots::new(options.slots, depth),
            report: QueueReport::new(NAME, WHY),
            direct: options.direct,
            all_direct: true,
            lines: Some(Lines { writes, syncs }),
            ended,
            threads,
        })
    }

    fn submit(&mut self, job: Job) -> Result<(), Job> {
        let Some(lines) = &self.lines else { return Err(job) };
        let line = if job.write.is_some() { &lines.writes } else { &lines.syncs };
        line.try_send(job).map_err(|e| e.into_inner())
    }

    fn take(&mut self, ended: Ended, out: &mut Vec<Completion>) {
        let Ended { slot, token, buf, result } = ended;
        let result = self.slots.finish(slot, result);
        out.push(match buf {
            Some(buf) => Completion::Write { token, buf, result },
            None => Completion::Sync { token, result },
        });
    }
}

fn work(jobs: &Receiver<Job>, done: &Sender<Ended>) {
    for job in jobs {
        let Job { slot, token, target, write } = job;
        let (buf, result) = match write {
            Some(Write { buf, offset, len_bytes }) => {
                let result = target.write_at(&buf[..len_bytes], offset);
                (Some(buf), result)
            }
            None => (None, target.sync()),
        };
        // Without a receiver the queue is being dropped; the chunk goes back to its pool all the
        // same.
        let _ = done.send(Ended { slot, token, buf, result });
    }
}

fn dead() -> NvmeError {
    NvmeError::Broken { backend: NAME, source: io::Error::other("a thread of the queue died") }
}

impl Queue for ThreadQueue {
    fn name(&self) -> &'static str {
        NAME
    }

    fn report(&self) -> QueueReport {
        self.report.clone()
    }

    fn depth(&self) -> usize {
        self.slots.depth()
    }

    fn attach(&mut self, file: &Arc<dyn MediaFile>) -> Result<Slot, NvmeError> {
        let place = self.slots.free_place()?;
        let report = &mut self.report;
        let target = Target::open(NAME, file, self.direct, |text| report.because(text))?;
        self.all_direct &= target.is_direct();
        report.o_direct = self.all_direct;
        Ok(self.slots.put(place, file.name(), Arc::new(target)))
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
        let target =
            check_write(offset, len_bytes).and_then(|()| self.slots.start(slot).map(Arc::clone));
        let target = match target {
            Ok(target) => target,
            Err(error) => return Err(Refused { error, buf }),
        };
        let job = Job { slot, token, target, write: Some(Write { buf, offset, len_bytes }) };
        match self.submit(job) {
            Err(Job { write: Some(Write { buf, .. }), .. }) => {
                let _ = self.slots.finish(slot, Ok(()));
                Err(Refused { error: dead(), buf })
            }
            _ => Ok(()),
        }
    }

    fn sync(&mut self, slot: Slot, token: u64) -> Result<(), NvmeError> {
        let target = self.slots.start(slot).map(Arc::clone)?;
        self.submit(Job { slot, token, target, write: None }).map_err(|_| {
            let _ = self.slots.finish(slot, Ok(()));
            dead()
        })
    }

    fn poll(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        if self.slots.in_flight() == 0 {
            return Ok(());
        }
        if !wait.is_zero() {
            match self.ended.recv_timeout(wait) {
                Ok(ended) => self.take(ended, out),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(dead()),
            }
        }
        while let Ok(ended) = self.ended.try_recv() {
            self.take(ended, out);
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }
}

impl Drop for ThreadQueue {
    /// Ends what was submitted, then the threads.
    fn drop(&mut self) {
        self.lines = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
