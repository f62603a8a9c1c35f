//! Leases: which of two machines may write a device that both have.
//!
//! A shared volume has [`AREAS`] copies of `volume.wv`, and a lease for each. Who wants to write
//! claims a new **epoch**, higher than all before; area and lease of epoch *e* are those of number
//! *e* mod [`AREAS`]. So a writer that was stopped in the middle of a write, and goes on when
//! another one has taken over, writes into an area that nobody reads any more.
//!
//! Nothing here depends on clocks, but when to take over. A holder asks [`Lease::check`] behind
//! every flush and before it acknowledges what that made durable: if no higher epoch is there, then
//! none was claimed before the flush, and whoever claims one later finds what was flushed.
//!
//! A lease is one sector, written by turns into two blocks, at
//! `65,536 + (2 x number + copy) x 4,096`; the valid one with the higher epoch, then beat, counts:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic: `WVLEASE` and one byte `0x01` |
//! | 8 | 8 | epoch |
//! | 16 | 8 | beat: how often the holder wrote it |
//! | 24 | 16 | holder, random for each process |
//! | 40 | 1 | state: 1 claimed, 2 held, 3 released, 4 fenced |
//! | 41 | 1 | bytes of the holder's name |
//! | 42 | 2 | zero |
//! | 44 | 4 | milliseconds between two beats |
//! | 48 | 64 | holder's name, then zeros |
//! | 112 | 396 | zero |
//! | 508 | 4 | CRC-32C of bytes 0 to 507 |

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::label::Label;
use crate::MediaFile;
use crate::flushes::Flushes;

/// Areas for `volume.wv` on a shared device, and leases.
pub const AREAS: u64 = 8;
/// Where the leases are.
pub const LEASES_OFFSET: u64 = 64 << 10;
/// Bytes of a holder's name at most.
pub const NAME_BYTES_MAX: usize = 64;

const BLOCK_BYTES: usize = 4096;
/// What a device writes whole or not at all.
const LEASE_BYTES: usize = 512;
const CRC_AT: usize = LEASE_BYTES - 4;
const MAGIC: &[u8; 8] = b"WVLEASE\x01";
/// Bytes that are copied at once.
const COPY_BYTES: usize = 1 << 20;

/// What a holder says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LeaseState {
    /// It takes over; its area is not whole yet.
    Claimed = 1,
    /// It writes.
    Held = 2,
    /// It closed everything and has ended.
    Released = 3,
    /// It noticed that another one took over, and writes nothing more.
    Fenced = 4,
}

/// One lease as it stands on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Who of all that ever wrote the volume.
    pub epoch: u64,
    /// How often the holder wrote it.
    pub beat: u64,
    /// Process that wrote it.
    pub holder: [u8; 16],
    /// What that says of itself.
    pub state: LeaseState,
    /// Time between two beats.
    pub interval: Duration,
    /// Name of the holder's machine.
    pub name: String,
}

impl LeaseRecord {
    fn encode(&self) -> [u8; LEASE_BYTES] {
        let mut block = [0; LEASE_BYTES];
        let name = &self.name.as_bytes()[..self.name.floor_char_boundary(NAME_BYTES_MAX)];
        let interval_ms = u32::try_from(self.interval.as_millis()).unwrap_or(u32::MAX);
        block[..8].copy_from_slice(MAGIC);
        block[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        block[16..24].copy_from_slice(&self.beat.to_le_bytes());
        block[24..40].copy_from_slice(&self.holder);
        block[40..42].copy_from_slice(&[self.state as u8, name.len() as u8]);
        block[44..48].copy_from_slice(&interval_ms.to_le_bytes());
        block[48..48 + name.len()].copy_from_slice(name);
        let crc = crc32c::crc32c(&block[..CRC_AT]);
        block[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        block
    }

    fn decode(block: &[u8]) -> Option<Self> {
        let block = block.get(..LEASE_BYTES)?;
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| block[at + n]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| block[at + n]));
        if &block[..8] != MAGIC || crc32c::crc32c(&block[..CRC_AT]) != u32_at(CRC_AT) {
            return None;
        }
        let states =
            [LeaseState::Claimed, LeaseState::Held, LeaseState::Released, LeaseState::Fenced];
        let name = block[48..].get(..usize::from(block[41]).min(NAME_BYTES_MAX))?;
        Some(Self {
            epoch: u64_at(8),
            beat: u64_at(16),
            holder: std::array::from_fn(|n| block[24 + n]),
            state: states.into_iter().find(|state| *state as u8 == block[40])?,
            interval: Duration::from_millis(u32_at(44).into()),
            name: String::from_utf8_lossy(name).into_owned(),
        })
    }

    /// It wrote, and has not said that it writes nothing more.
    pub fn may_write(&self) -> bool {
        matches!(self.state, LeaseState::Claimed | LeaseState::Held)
    }
}

/// The lease of each number, as it stands on the device.
pub(super) fn read(file: &dyn MediaFile) -> io::Result<Vec<LeaseRecord>> {
    let mut blocks = vec![0; 2 * AREAS as usize * BLOCK_BYTES];
    file.read_exact_at(&mut blocks, LEASES_OFFSET)?;
    let lease = |two: &[u8]| {
        let copies = two.chunks(BLOCK_BYTES).filter_map(LeaseRecord::decode);
        copies.max_by_key(|record| (record.epoch, record.beat))
    };
    Ok(blocks.chunks(2 * BLOCK_BYTES).filter_map(lease).collect())
}

/// The highest epoch whose area is whole; 0 is that of the making.
pub(super) fn ready_epoch(leases: &[LeaseRecord], below: u64) -> u64 {
    let whole = leases.iter().filter(|lease| lease.state != LeaseState::Claimed);
    whole.map(|lease| lease.epoch).filter(|epoch| *epoch < below).max().unwrap_or(0)
}

/// Which of the two machines this is. They never claim the same epoch: one takes the even, one the
/// odd ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Writes whenever nobody else does.
    #[default]
    Primary,
    /// Takes over when the primary is silent.
    Standby,
}

/// Who claims a lease.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Which of the two.
    pub role: Role,
    /// Random, new for each process.
    pub holder: [u8; 16],
    /// The machine's name, for people.
    pub name: String,
    /// Time between two beats, as it is told to others.
    pub interval: Duration,
    /// The device itself keeps every other machine from writing: nothing is written late.
    pub exclusive: bool,
}

/// Another machine has taken over, or the lease is not ours any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fenced {
    /// Our epoch.
    pub epoch: u64,
    /// Who has taken over: epoch and name.
    pub by: Option<(u64, String)>,
}

impl fmt::Display for Fenced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epoch = self.epoch;
        match &self.by {
            Some((by, name)) => {
                write!(f, "fenced: {name} took over with epoch {by}, ours was {epoch}")
            }
            None => write!(f, "fenced: the lease of epoch {epoch} is not ours any more"),
        }
    }
}

impl std::error::Error for Fenced {}

/// The right to write a shared volume, for as long as nobody claims a higher epoch.
pub struct Lease {
    file: Arc<dyn MediaFile>,
    flushes: Flushes,
    record: Mutex<LeaseRecord>,
    epoch: u64,
    exclusive: bool,
    contested: bool,
    lost: OnceLock<Fenced>,
}

impl Lease {
    /// Claims a new epoch, and makes its area whole. Whoever had the lease is fenced from the claim
    /// on. Failed flushes are counted with those of the volume.
    pub(super) fn take(
        file: Arc<dyn MediaFile>,
        flushes: Flushes,
        label: &Label,
        claim: &Claim,
    ) -> io::Result<Self> {
        let leases = read(&*file)?;
        let epoch = next_epoch(&leases, claim);
        let Claim { holder, name, interval, exclusive, .. } = claim.clone();
        let state = LeaseState::Claimed;
        let record = LeaseRecord { epoch, beat: 0, holder, state, interval, name };
        let (record, lost) = (Mutex::new(record), OnceLock::new());
        let mut lease = Self { file, flushes, record, epoch, exclusive, contested: false, lost };
        lease.say(LeaseState::Claimed)?;
        // Only now: what the holder before us acknowledged is what it flushed before the claim.
        let leases = read(&*lease.file)?;
        let rival = |it: &LeaseRecord| it.epoch < epoch && it.may_write();
        lease.contested = !exclusive && leases.iter().any(rival);
        lease.copy_area(label, ready_epoch(&leases, epoch))?;
        lease.check()?;
        lease.say(LeaseState::Held)?;
        Ok(lease)
    }

    /// Our epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The lease as we wrote it last.
    pub fn record(&self) -> LeaseRecord {
        self.last().clone()
    }

    /// A writer before us has not said that it writes nothing more.
    pub fn is_contested(&self) -> bool {
        self.contested
    }

    /// Why the lease was lost, if that was noticed.
    pub fn lost(&self) -> Option<&Fenced> {
        self.lost.get()
    }

    /// Looks at the device whether the lease is ours. Once lost it stays lost.
    ///
    /// # Errors
    /// [`Fenced`], see [`fenced`]; the system's own, which say nothing of the lease.
    pub fn check(&self) -> io::Result<()> {
        if let Some(lost) = self.lost() {
            return Err(io::Error::other(lost.clone()));
        }
        let leases = read(&*self.file)?;
        let holder = self.last().holder;
        let later = leases.iter().filter(|lease| lease.epoch > self.epoch);
        let later = later.max_by_key(|lease| lease.epoch);
        let by = later.map(|lease| (lease.epoch, lease.name.clone()));
        let ours = leases.iter().any(|it| it.epoch == self.epoch && it.holder == holder);
        if by.is_none() && ours {
            return Ok(());
        }
        let lost = self.lost.get_or_init(|| Fenced { epoch: self.epoch, by });
        Err(io::Error::other(lost.clone()))
    }

    /// Tells others that we are alive.
    ///
    /// # Errors
    /// As [`Lease::check`].
    pub fn beat(&self) -> io::Result<()> {
        self.check()?;
        self.write(LeaseState::Held)
    }

    /// The device says that another machine may write by now, so this one must not.
    pub fn give_in(&self) {
        self.lost.get_or_init(|| Fenced { epoch: self.epoch, by: None });
    }

    /// Whether nobody before us writes any more: they have said so, or the device sees to it.
    ///
    /// # Errors
    /// The system's own.
    pub fn rivals_are_gone(&self) -> io::Result<bool> {
        if self.exclusive {
            return Ok(true);
        }
        let leases = read(&*self.file)?;
        Ok(!leases.iter().any(|lease| lease.epoch < self.epoch && lease.may_write()))
    }

    /// Says that we write nothing more: released, or fenced if the lease was lost. Call it when
    /// every write has ended.
    ///
    /// # Errors
    /// The system's own.
    pub fn end(&self) -> io::Result<()> {
        match self.check() {
            Ok(()) => self.say(LeaseState::Released),
            Err(_) if self.lost().is_some_and(|lost| lost.by.is_some()) => {
                self.say(LeaseState::Fenced)
            }
            Err(error) => Err(error),
        }
    }

    /// Both copies, so that no older state is read however the next writes end.
    fn say(&self, state: LeaseState) -> io::Result<()> {
        self.write(state)?;
        self.write(state)
    }

    fn write(&self, state: LeaseState) -> io::Result<()> {
        let mut record = self.last();
        let next = LeaseRecord { beat: record.beat + 1, state, ..record.clone() };
        let mut block = [0; BLOCK_BYTES];
        block[..LEASE_BYTES].copy_from_slice(&next.encode());
        let number = 2 * (self.epoch % AREAS) + next.beat % 2;
        self.file.write_at(&block, LEASES_OFFSET + number * BLOCK_BYTES as u64)?;
        self.flushes.note(self.file.sync())?;
        *record = next;
        Ok(())
    }

    /// The tables as the writer before us left them.
    fn copy_area(&self, label: &Label, from: u64) -> io::Result<()> {
        let (source, target) = (label.volume_offset(from), label.volume_offset(self.epoch));
        let mut buf = vec![0; COPY_BYTES];
        for at in (0..label.volume_bytes).step_by(COPY_BYTES) {
            let bytes = (label.volume_bytes - at).min(COPY_BYTES as u64) as usize;
            self.file.read_exact_at(&mut buf[..bytes], source + at)?;
            self.file.write_at(&buf[..bytes], target + at)?;
        }
        self.file.sync()
    }

    fn last(&self) -> MutexGuard<'_, LeaseRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("record", &*self.last()).field("lost", &self.lost).finish()
    }
}

/// Why an operation failed, if it was because the lease was lost.
pub fn fenced(error: &io::Error) -> Option<&Fenced> {
    error.get_ref()?.downcast_ref()
}

/// The lowest epoch of the role above all others, whose area no writer of another machine may still
/// have a write under way to; if there is none, the lowest.
fn next_epoch(leases: &[LeaseRecord], claim: &Claim) -> u64 {
    let newest = leases.iter().map(|lease| lease.epoch).max().unwrap_or(0);
    let parity = u64::from(claim.role == Role::Standby);
    let first = newest + 1 + u64::from((newest + 1) % 2 != parity);
    let source = ready_epoch(leases, u64::MAX) % AREAS;
    let mut others = (first..first + AREAS).step_by(2).filter(|epoch| epoch % AREAS != source);
    let lowest = others.clone().next().unwrap_or(first);
    let is_free = |epoch: &u64| {
        let before = leases.iter().filter(|lease| lease.epoch % AREAS == epoch % AREAS);
        before.into_iter().all(|lease| !lease.may_write() || lease.name == claim.name)
    };
    others.find(is_free).unwrap_or(lowest)
}
