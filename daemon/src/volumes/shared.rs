//! A store on a device that two machines have: one of them writes, the other stands by.
//!
//! The wait needs no clock but our own: a writer is silent when its lease stayed the same for
//! [`MISSED_BEATS`] of its intervals. That only decides *when* somebody takes over. That nothing is
//! lost by it, whoever was slow, is the business of the lease (`media::block::lease`). A device
//! that has reservations (`nvme::reserve`) is reserved as well, before the lease is claimed: then
//! only one machine can write at all.

use std::io;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use wirevault_config::Config;
use wirevault_media::{BlockMedia, Claim, Fenced, Lease, LeaseRecord, LeaseState, Media, Role};
use wirevault_nvme::admin::AdminNode;
use wirevault_nvme::device::{self, Roots};
use wirevault_nvme::{LeasedQueue, NvmeError, Queue, Reservation};
use wirevault_pipeline::QueueMaker;
use wirevault_seal::random;
use wirevault_storage::StorageError;

use crate::api::SharedStatus;
use crate::serve::first_volume;
use crate::{DaemonError, host_name};

/// Time between two beats of ours.
const BEAT: Duration = Duration::from_secs(1);
/// Beats that have to be missing in a row before somebody takes over: a device that is throttled or
/// whose path changes is silent for some seconds, and a take-over costs what was not acknowledged.
const MISSED_BEATS: u32 = 5;

/// The device as this machine sees it.
pub(crate) struct Shared {
    media: Arc<BlockMedia>,
    role: Role,
    seen: Mutex<Seen>,
    lease: OnceLock<Arc<Lease>>,
    guard: OnceLock<Guard>,
}

/// What keeps the other machine's writes from doing harm.
enum Guard {
    /// The device refuses them.
    Reservation(Box<Reservation<AdminNode>>),
    /// They hit what nobody reads, by the rules of the lease. The device has no reservations for
    /// the reason given.
    Lease(String),
}

/// The newest lease, and since when it has been as it is.
struct Seen {
    lease: Option<LeaseRecord>,
    since: Instant,
}

impl Shared {
    /// The device of the configured store; nothing if it is none that two machines have.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub(crate) fn of(config: &Config) -> Result<Option<Arc<Self>>, DaemonError> {
        let path = first_volume(config);
        if !path.exists() || path.is_dir() {
            return Ok(None);
        }
        // Whoever cannot be opened here is refused with better words when the store is opened.
        let Ok(media) = BlockMedia::open(path) else { return Ok(None) };
        if !media.is_shared() {
            return Ok(None);
        }
        let role = if config.standby { Role::Standby } else { Role::Primary };
        let seen = Mutex::new(Seen { lease: None, since: Instant::now() });
        let (lease, guard) = (OnceLock::new(), OnceLock::new());
        let shared = Self { media: Arc::new(media), role, seen, lease, guard };
        shared.look()?;
        Ok(Some(Arc::new(shared)))
    }

    /// Looks at the device who writes it.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn look(&self) -> Result<(), DaemonError> {
        let leases =
            self.media.leases().map_err(|source| self.failed("read its leases", source))?;
        let newest = leases.into_iter().max_by_key(|lease| lease.epoch);
        self.seen().look(newest, Instant::now());
        Ok(())
    }

    /// Whether nobody writes it, as far as was seen.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.seen().is_silent(self.role, now)
    }

    /// Reserves the device if it offers that, takes the lease, whoever has it, and keeps both from
    /// now on.
    ///
    /// # Errors
    /// Another machine was faster; the device cannot be written.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Leased, DaemonError> {
        let holder = random::life_id()
            .map_err(|source| StorageError::Key { volume: self.media.describe(), source })?;
        let name = host_name();
        let key = u64::from_le_bytes(std::array::from_fn(|at| holder.0[at])).max(1);
        let guard = Guard::take(Path::new(&self.media.describe()), key)?;
        let guard = self.guard.get_or_init(|| guard);
        let (role, exclusive) = (self.role, matches!(guard, Guard::Reservation(_)));
        let claim = Claim { role, holder: holder.0, name, interval: BEAT, exclusive };
        let lease = self.media.take_lease(&claim);
        let lease = lease.map_err(|source| self.failed("take its lease", source))?;
        let (epoch, protection) = (lease.epoch(), guard.name());
        tracing::info!(epoch, protection, "this machine writes the shared volume");
        let lease = self.lease.get_or_init(|| lease);
        self.look()?;
        Ok(Leased::keep(Arc::clone(self), Arc::clone(lease)))
    }

    /// Why this machine may not write it any more, if it once did.
    pub(crate) fn lost(&self) -> Option<&Fenced> {
        self.lease.get()?.lost()
    }

    /// What the API tells of it.
    pub(crate) fn status(&self) -> SharedStatus {
        let ours = self.lease.get();
        let seen = self.seen();
        let lease = seen.lease.as_ref();
        SharedStatus {
            role: match self.role {
                Role::Primary => "primary".to_owned(),
                Role::Standby => "standby".to_owned(),
            },
            writes: ours.is_some_and(|lease| lease.lost().is_none()),
            holder: lease.map(|lease| lease.name.clone()).unwrap_or_default(),
            epoch: lease.map_or(0, |lease| lease.epoch),
            lease: match lease.map(|lease| lease.state) {
                None => "none".to_owned(),
                Some(LeaseState::Claimed) => "claimed".to_owned(),
                Some(LeaseState::Held) => "held".to_owned(),
                Some(LeaseState::Released) => "released".to_owned(),
                Some(LeaseState::Fenced) => "fenced".to_owned(),
            },
            protection: self.guard.get().map(|guard| guard.name().to_owned()),
            why_no_reservation: match self.guard.get() {
                Some(Guard::Lease(why)) => Some(why.clone()),
                _ => None,
            },
            beat_age_ms: seen.since.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
        }
    }

    fn failed(&self, doing: &str, source: io::Error) -> DaemonError {
        let (volume, doing) = (self.media.describe(), doing.to_owned());
        StorageError::Device { volume, doing, source }.into()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    /// Errors: the device has reservations, and this machine did not get it.
    fn take(path: &Path, key: u64) -> Result<Self, DaemonError> {
        let taken = device::of_path(&Roots::default(), path).and_then(|device| {
            let Some(nvme) = &device.nvme else {
                let (device, why) = (device.name, "it is no NVMe namespace".to_owned());
                return Err(NvmeError::NoReservations { device, why });
            };
            // Closing the block device would make udev look at it anew.
            let node = nvme.generic_node.as_ref().unwrap_or(&device.node);
            Reservation::take(AdminNode::open_to_write(node)?, nvme.id, key)
        });
        match taken {
            Ok(reservation) => Ok(Self::Reservation(Box::new(reservation))),
            // The kernel does not let this user; a device that another one reserved shows that.
            Err(NvmeError::Reserve { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Ok(Self::Lease(format!("it cannot be reserved without CAP_SYS_ADMIN: {source}")))
            }
            // Going on without would be a promise that is not kept.
            Err(error @ NvmeError::Reserve { .. }) => Err(error.into()),
            Err(error) => Ok(Self::Lease(error.to_string())),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Reservation(_) => "reservation",
            Self::Lease(_) => "lease",
        }
    }

    /// Whether the device lets another machine write by now. One that cannot be asked does not say
    /// so; whoever writes to it notices.
    fn is_gone(&self) -> bool {
        match self {
            Self::Reservation(reservation) => reservation.is_ours().is_ok_and(|ours| !ours),
            Self::Lease(_) => false,
        }
    }

    fn give_up(&self) -> io::Result<()> {
        match self {
            Self::Reservation(reservation) => reservation.give_up(),
            Self::Lease(_) => Ok(()),
        }
    }
}

impl Seen {
    fn look(&mut self, lease: Option<LeaseRecord>, now: Instant) {
        if lease != self.lease {
            *self = Self { lease, since: now };
        }
    }

    /// Whether nobody writes. A primary need not wait for who said that it has ended; a standby
    /// leaves the primary the time to come back.
    fn is_silent(&self, role: Role, now: Instant) -> bool {
        let writes = self.lease.as_ref().is_some_and(LeaseRecord::may_write);
        if role == Role::Primary && !writes {
            return true;
        }
        let interval = self.lease.as_ref().map_or(BEAT, |lease| lease.interval.max(BEAT));
        now.duration_since(self.since) > interval * MISSED_BEATS
    }
}

/// A shared volume that this process may write, and the thread that says so.
pub(crate) struct Leased {
    pub(crate) shared: Arc<Shared>,
    lease: Arc<Lease>,
    beats: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl Leased {
    fn keep(shared: Arc<Shared>, lease: Arc<Lease>) -> Self {
        let (stop, stopped) = sync_channel(1);
        let (watched, ours) = (Arc::clone(&shared), Arc::clone(&lease));
        let work = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(BEAT) {
                // A device that fails is noticed by those who write to it.
                let _ = ours.beat();
                let _ = watched.look();
                if watched.guard.get().is_some_and(Guard::is_gone) {
                    ours.give_in();
                }
                if ours.lost().is_some() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("lease".to_owned()).spawn(work);
        let beats = thread.inspect_err(|error| tracing::error!("no beats: {error}")).ok();
        Self { shared, lease, beats: beats.map(|thread| (stop, thread)) }
    }

    /// The volume, if this is its path.
    pub(crate) fn volume(&self, path: &Path) -> Option<Arc<dyn Media>> {
        let ours = Path::new(&self.shared.media.describe()) == path;
        ours.then(|| Arc::clone(&self.shared.media) as Arc<dyn Media>)
    }

    /// Queues that acknowledge under the lease only.
    pub(crate) fn queues(&self, best: QueueMaker) -> QueueMaker {
        let lease = Arc::clone(&self.lease);
        Arc::new(move |volume, arena| {
            let queue: Box<dyn Queue> =
                Box::new(LeasedQueue::new(best(volume, arena)?, Arc::clone(&lease)));
            Ok(queue)
        })
    }

    /// Ends the beats and, if `nobody_writes`, says so: nothing that this process began is under
    /// way any more. Otherwise others wait until they miss the beats. Gives why the lease was lost,
    /// if it was.
    pub(crate) fn end(mut self, nobody_writes: bool) -> Option<Fenced> {
        if let Some((stop, thread)) = self.beats.take() {
            drop(stop);
            let _ = thread.join();
        }
        if nobody_writes && let Err(error) = self.lease.end() {
            tracing::warn!("others wait until they miss our beats: {error}");
        }
        let lost = self.lease.lost().cloned();
        let guard = self.shared.guard.get().filter(|_| nobody_writes && lost.is_none());
        if let Some(Err(error)) = guard.map(Guard::give_up) {
            tracing::warn!("the reservation stays until another machine takes it: {error}");
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(beat: u64, state: LeaseState) -> Option<LeaseRecord> {
        let (holder, interval, name) = ([1; 16], BEAT, "other".to_owned());
        Some(LeaseRecord { epoch: 2, beat, holder, state, interval, name })
    }

    #[test]
    fn silence_is_measured_by_our_own_clock() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut seen = Seen { lease: lease(1, LeaseState::Held), since: start };
        for role in [Role::Primary, Role::Standby] {
            assert!(!seen.is_silent(role, after(5)) && seen.is_silent(role, after(6)));
        }
        seen.look(lease(2, LeaseState::Held), after(6));
        assert!(!seen.is_silent(Role::Standby, after(11)));
        seen.look(lease(2, LeaseState::Held), after(11));
        assert!(seen.is_silent(Role::Standby, after(12)), "the same beat is none");
        seen.look(lease(3, LeaseState::Released), after(12));
        assert!(seen.is_silent(Role::Primary, after(12)));
        assert!(!seen.is_silent(Role::Standby, after(12)));
        let never = Seen { lease: None, since: start };
        assert!(never.is_silent(Role::Primary, start) && !never.is_silent(Role::Standby, start));
    }
}
