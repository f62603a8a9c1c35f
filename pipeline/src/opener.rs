//! The threads that open segments ahead of the lanes, so that no lane waits for the flushes this
//! takes.
//!
//! ```text
//!  sealers ─► opener ─► open-V: works on volume V, one order after the other
//!     ▲          │ ▲       │
//!     └── answer ┘ └───────┘
//! ```
//! The opener chooses volumes and never waits for a device. An order that a volume refuses goes to
//! the next one, and so does one that a volume does not answer in time: a device that hangs delays
//! one order, and none of those that were made for others. What it opens when it answers after all
//! is given back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, Sender, select};
use wirevault_format::{Interface, LinkType};
use wirevault_index::flow_table::{FlowOptions, FlowTable};
use wirevault_storage::{OpenRequest, OpenSegment, StorageError, Store};

use crate::writer::WriterShared;

/// How often a run says in the store that it is alive. The time between two signs is what a crash
/// leaves in doubt.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Time between two attempts to take a volume back into use that failed.
const REJOIN: Duration = Duration::from_secs(5);
/// Time after which an order goes to another volume as well. Segments are ordered when the one
/// before is half full, so a lane can wait for that long.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often orders are looked at that were not answered.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) enum ToOpener {
    Open(OpenOrder),
    /// The answer to an earlier order is not wanted any more.
    Release(Opened),
}

pub(crate) struct OpenOrder {
    pub wish: Wish,
    pub reply: Sender<Answer>,
}

/// What a lane wants.
#[derive(Clone)]
pub(crate) struct Wish {
    pub lane: u16,
    pub link_type: LinkType,
    pub interfaces: Arc<Vec<Interface>>,
    /// The stream has no flow table yet: one comes with the segment. Making it takes some ten
    /// milliseconds, which a lane that seals its own chunks does not have.
    pub table: Option<FlowOptions>,
}

/// A segment, and the flow table that was ordered with it.
pub(crate) type Answer = Result<(OpenSegment, Option<FlowTable>), StorageError>;

/// Where the answer to an order arrives.
pub(crate) type Opened = Receiver<Answer>;

/// What a thread of a volume is to do.
pub(crate) enum Work {
    Open(u64, Wish),
    Release(Box<OpenSegment>),
    Heartbeat,
    Rejoin,
}

/// What a thread of a volume did.
pub(crate) enum Done {
    Opened { ticket: u64, volume: usize, answer: Box<Answer> },
    Heartbeat,
    Rejoined(usize),
}

/// An order that was not answered.
struct Pending {
    ticket: u64,
    order: OpenOrder,
    /// Volumes that were asked, and how many of them have not refused.
    asked: Vec<usize>,
    waiting: usize,
    since: Instant,
    first_error: Option<StorageError>,
}

pub(crate) struct Opener {
    store: Arc<Store>,
    /// By volume.
    workers: Vec<Sender<Work>>,
    done: Receiver<Done>,
    loads: Vec<Arc<WriterShared>>,
    /// Chunks that a writer may hold before others are asked first.
    fair_chunks: usize,
    pending: Vec<Pending>,
    next_ticket: u64,
    /// When the next sign of life is due; nothing while one is being written.
    beat_at: Option<Instant>,
    /// When volumes may be taken back into use; nothing while that is tried.
    rejoin_at: Vec<Option<Instant>>,
}

impl Opener {
    pub(crate) fn new(
        store: Arc<Store>,
        (workers, done): (Vec<Sender<Work>>, Receiver<Done>),
        loads: Vec<Arc<WriterShared>>,
        fair_chunks: usize,
    ) -> Self {
        let (pending, next_ticket) = (Vec::new(), 0);
        let beat_at = Some(Instant::now() + HEARTBEAT);
        let rejoin_at = workers.iter().map(|_| Some(Instant::now())).collect();
        Self { store, workers, done, loads, fair_chunks, pending, next_ticket, beat_at, rejoin_at }
    }

    /// Runs until every sealer is gone.
    pub(crate) fn run(mut self, orders: &Receiver<ToOpener>) {
        loop {
            let wait = if self.pending.is_empty() { HEARTBEAT } else { LOOK };
            select! {
                recv(orders) -> message => match message {
                    Ok(message) => self.take(message),
                    Err(RecvError) => break,
                },
                recv(self.done) -> done => match done {
                    Ok(done) => self.done(done),
                    // Their threads have panicked; orders are refused below.
                    Err(RecvError) => std::thread::sleep(LOOK),
                },
                default(wait) => {}
            }
            self.ask_others();
            self.beat();
            self.rejoin();
        }
        self.pending.clear();
        self.workers.clear();
        // What was opened for nobody.
        for done in &self.done {
            if let Done::Opened { answer, .. } = done
                && let Ok((open, _)) = *answer
            {
                release(&self.store, &open);
            }
        }
    }

    fn take(&mut self, message: ToOpener) {
        match message {
            ToOpener::Open(order) => {
                let (ticket, since) = (self.next_ticket, Instant::now());
                self.next_ticket += 1;
                let (asked, waiting, first_error) = (Vec::new(), 0, None);
                let pending = Pending { ticket, order, asked, waiting, since, first_error };
                self.pending.push(pending);
                self.ask(self.pending.len() - 1);
            }
            // An answer that is not there yet finds nobody, and is given back then: this is the
            // only thread that sends them.
            ToOpener::Release(opened) => {
                if let Ok(Ok((open, _))) = opened.try_recv() {
                    self.give_back(open);
                }
            }
        }
    }

    fn done(&mut self, done: Done) {
        let (ticket, volume, answer) = match done {
            Done::Opened { ticket, volume, answer } => (ticket, volume, answer),
            Done::Heartbeat => {
                self.beat_at = Some(Instant::now() + HEARTBEAT);
                return;
            }
            Done::Rejoined(volume) => {
                self.rejoin_at[volume] = Some(Instant::now() + REJOIN);
                return;
            }
        };
        let at = self.pending.iter().position(|pending| pending.ticket == ticket);
        match (at, *answer) {
            (Some(at), Ok(opened)) => {
                let Pending { order, .. } = self.pending.swap_remove(at);
                let (lane, place, life) = (order.wish.lane, opened.0.place, opened.0.entry.life);
                tracing::debug!(lane, volume, place, %life, "a segment is open");
                if let Err(unsent) = order.reply.send(Ok(opened))
                    && let Ok((open, _)) = unsent.into_inner()
                {
                    self.give_back(open);
                }
            }
            (Some(at), Err(error)) => {
                let pending = &mut self.pending[at];
                pending.waiting -= 1;
                pending.first_error.get_or_insert(error);
                if pending.waiting == 0 {
                    self.ask(at);
                }
            }
            (None, Ok((open, _))) => self.give_back(open),
            (None, Err(_)) => {}
        }
    }

    /// Asks the best volume that was not asked. If all were, and what some of them said is known,
    /// that is the answer.
    fn ask(&mut self, at: usize) {
        let opening = |volume: usize| {
            let there = |pending: &&Pending| pending.waiting > 0 && pending.asked.contains(&volume);
            self.pending.iter().filter(there).count() as u32
        };
        let load = |volume: usize| self.loads[volume].load(opening(volume), self.fair_chunks);
        let ranked = self.store.ranked_volumes(load);
        let pending = &mut self.pending[at];
        let next = ranked.into_iter().find(|volume| !pending.asked.contains(volume));
        let Some(volume) = next else {
            if let Some(error) = pending.first_error.take() {
                let _ = pending.order.reply.send(Err(error));
                self.pending.swap_remove(at);
            }
            return;
        };
        pending.asked.push(volume);
        pending.since = Instant::now();
        let work = Work::Open(pending.ticket, pending.order.wish.clone());
        match self.workers[volume].try_send(work) {
            Ok(()) => pending.waiting += 1,
            Err(_) => {
                let what = format!("volume {volume} takes no orders: its device hangs");
                pending.first_error.get_or_insert(StorageError::Misuse { what });
            }
        }
    }

    /// Asks further volumes for orders that wait for too long.
    fn ask_others(&mut self) {
        for at in (0..self.pending.len()).rev() {
            let pending = &self.pending[at];
            if pending.waiting == 0 || pending.since.elapsed() > PATIENCE {
                self.ask(at);
            }
        }
    }

    fn beat(&mut self) {
        if self.beat_at.is_some_and(|at| at <= Instant::now())
            && self.workers[0].try_send(Work::Heartbeat).is_ok()
        {
            self.beat_at = None;
        }
    }

    /// Has volumes looked at that failed.
    fn rejoin(&mut self) {
        let now = Instant::now();
        if !self.rejoin_at.iter().flatten().any(|at| *at <= now) {
            return;
        }
        for (volume, status) in self.store.status().volumes.iter().enumerate() {
            let due = self.rejoin_at[volume].is_some_and(|at| at <= now);
            if due && status.failed.is_some() && self.workers[volume].try_send(Work::Rejoin).is_ok()
            {
                self.rejoin_at[volume] = None;
            }
        }
    }

    fn give_back(&self, open: OpenSegment) {
        let (volume, life) = (open.volume, open.entry.life);
        if self.workers[volume].try_send(Work::Release(Box::new(open))).is_err() {
            tracing::error!(volume, %life, "an unused segment stays open until the next start");
        }
    }
}

/// Works on one volume until the opener is gone.
pub(crate) fn work(volume: usize, store: &Store, orders: &Receiver<Work>, done: &Sender<Done>) {
    for order in orders {
        match order {
            Work::Open(ticket, wish) => {
                let request = OpenRequest {
                    lane: wish.lane,
                    link_type: wish.link_type,
                    interfaces: &wish.interfaces,
                };
                let opened = store.open_segment_on(volume, request);
                let answer = Box::new(opened.map(|open| (open, wish.table.map(FlowTable::new))));
                let _ = done.send(Done::Opened { ticket, volume, answer });
            }
            Work::Release(open) => release(store, &open),
            Work::Heartbeat => {
                if let Err(error) = store.heartbeat() {
                    tracing::error!("the sign of life could not be written: {error}");
                }
                let _ = done.send(Done::Heartbeat);
            }
            Work::Rejoin => {
                match store.rejoin_volume(volume) {
                    Ok(()) => tracing::warn!(volume, "a volume that had failed is in use again"),
                    Err(error) => tracing::debug!(volume, "the volume stays out of use: {error}"),
                }
                let _ = done.send(Done::Rejoined(volume));
            }
        }
    }
}

fn release(store: &Store, open: &OpenSegment) {
    if let Err(error) = store.release_segment(open) {
        tracing::error!(place = open.place, "an unused segment could not be released: {error}");
    }
}
