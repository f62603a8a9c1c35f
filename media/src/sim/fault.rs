//! What may go wrong, when, and what survives a power cut.

use std::io;

use super::rng::hash;

/// When a [`Fault`] strikes. Numbers count from 1 since the disk was made (or found after a crash).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The n-th write.
    Write(u64),
    /// Every write.
    EveryWrite,
    /// The n-th sync of a file.
    Sync(u64),
    /// Every sync of a file.
    EverySync,
    /// The n-th call that changes something: write, sync, set_len, allocate, creation, removal,
    /// sync_dir.
    Operation(u64),
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with EIO. Sectors of a failed write may be on the disk after a crash, or not;
    /// reads do not see them. After a failed sync, nothing written before it is made durable by
    /// later syncs (as Linux behaves).
    Eio,
    /// The sync fails with EIO, and the device drops its cache with that: of no file is anything
    /// made durable that was submitted before. Only for syncs.
    CacheDropped,
    /// The call fails with ENOSPC and changes nothing.
    Enospc,
    /// Power goes while the call runs: it and every later call fail (see [`is_power_cut`]).
    PowerCut,
    /// The call reports success and does nothing: a lost write, or a sync that flushes nothing. For
    /// other operations than writes and syncs this fault does nothing.
    Lost,
    /// The write reports success but lands this many bytes further on. Only for writes.
    Misdirected {
        /// Distance in bytes; negative is towards the start, where it stops at 0.
        by_bytes: i64,
    },
}

/// What a crash leaves of writes that no sync covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Nothing: only what was synced.
    Nothing,
    /// Everything, as if the process had died and the system had not.
    Everything,
    /// Whole writes survive or vanish, regardless of their order.
    Writes,
    /// As [`Survival::Writes`], and some writes are torn: only their first or last sectors are
    /// there.
    Torn,
    /// Every 512-byte sector survives or vanishes by itself. Drives promise no more.
    Sectors,
    /// One of the others, picked by the seed.
    Any,
}

/// The marker inside the error of every call after the power was cut.
#[derive(Debug, thiserror::Error)]
#[error("simulated power cut")]
pub struct PowerCut;

/// Whether an error says that the simulated disk has lost its power.
pub fn is_power_cut(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<PowerCut>())
}

pub(super) fn power_cut() -> io::Error {
    io::Error::other(PowerCut)
}

pub(super) fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

pub(super) fn enospc() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

/// Calls counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes.
    pub writes: u64,
    /// Syncs of files.
    pub syncs: u64,
    /// All calls that change something, the former included.
    pub operations: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Write,
    Sync,
    Other,
}

/// The faults still to come and the counters that trigger them.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    pub(super) counts: Counts,
    faults: Vec<(Trigger, Fault)>,
}

impl Script {
    pub(super) fn add(&mut self, trigger: Trigger, fault: Fault) {
        self.faults.push((trigger, fault));
    }

    pub(super) fn clear(&mut self) {
        self.faults.clear();
    }

    /// Counts one call and gives the first fault that applies to it.
    pub(super) fn next(&mut self, kind: Kind) -> Option<Fault> {
        self.counts.operations += 1;
        match kind {
            Kind::Write => self.counts.writes += 1,
            Kind::Sync => self.counts.syncs += 1,
            Kind::Other => {}
        }
        let counts = self.counts;
        let strikes = |trigger: &Trigger| match *trigger {
            Trigger::Write(n) => kind == Kind::Write && n == counts.writes,
            Trigger::EveryWrite => kind == Kind::Write,
            Trigger::Sync(n) => kind == Kind::Sync && n == counts.syncs,
            Trigger::EverySync => kind == Kind::Sync,
            Trigger::Operation(n) => n == counts.operations,
        };
        self.faults.iter().find(|(trigger, _)| strikes(trigger)).map(|(_, fault)| *fault)
    }
}

/// Decides, from a seed alone, what survives.
pub(super) struct Chooser {
    survival: Survival,
    seed: u64,
}

impl Chooser {
    pub(super) fn new(survival: Survival, seed: u64) -> Self {
        const MODES: [Survival; 6] = [
            Survival::Nothing,
            Survival::Everything,
            Survival::Writes,
            Survival::Torn,
            Survival::Sectors,
            Survival::Sectors,
        ];
        let survival = match survival {
            Survival::Any => MODES[(hash(&[seed, 1]) % MODES.len() as u64) as usize],
            other => other,
        };
        Self { survival, seed }
    }

    /// Whether the directory's newest idea of a name survives.
    pub(super) fn keeps_name(&self, name: &str) -> bool {
        let words: Vec<u64> = name.bytes().map(u64::from).chain([self.seed, 2]).collect();
        self.coin(hash(&words).is_multiple_of(2))
    }

    /// Whether the length that operation `op` gave to file `inode` survives.
    pub(super) fn keeps_len(&self, inode: u64, op: u64) -> bool {
        self.coin(!hash(&[self.seed, 3, inode, op]).is_multiple_of(4))
    }

    /// Whether sector number `at` of the `sectors` that operation `op` wrote survives.
    pub(super) fn keeps_sector(&self, inode: u64, op: u64, at: u64, sectors: u64) -> bool {
        let draw = hash(&[self.seed, 3, inode, op]);
        match self.survival {
            Survival::Torn => {
                let cut = hash(&[self.seed, 4, inode, op]) % sectors.max(1);
                match draw % 4 {
                    0 => false,
                    1 => true,
                    2 => at < cut,
                    _ => at >= cut,
                }
            }
            Survival::Sectors => {
                // From "nearly nothing" to "nearly everything", because both ends find other faults
                // than the middle.
                let percent = [5, 50, 95][(hash(&[self.seed, 5]) % 3) as usize];
                hash(&[self.seed, 6, inode, op, at]) % 100 < percent
            }
            _ => self.coin(!draw.is_multiple_of(4)),
        }
    }

    fn coin(&self, draw: bool) -> bool {
        match self.survival {
            Survival::Nothing => false,
            Survival::Everything => true,
            _ => draw,
        }
    }
}
