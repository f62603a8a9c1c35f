//! A file of the simulated disk, with submission and completion as separate steps.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::fault::{Fault, Kind, eio, enospc, power_cut};
use super::{InodeId, State, guard};
use crate::MediaFile;

/// How often a sync that hangs looks whether it may go on.
const HANG_LOOK: Duration = Duration::from_millis(1);

/// A file of a [`SimMedia`](super::SimMedia).
///
/// Besides the blocking calls of [`MediaFile`] it has them in two steps, for simulated queues: what
/// is submitted may be on the disk after a crash; only what was completed before a sync was
/// submitted is covered by that sync.
pub struct SimFile {
    state: Arc<Mutex<State>>,
    inode: InodeId,
    name: String,
    writable: bool,
}

/// A write that was submitted. Dropping it leaves the write unfinished for ever.
#[must_use = "a write counts as done when it is completed"]
pub struct PendingWrite {
    state: Arc<Mutex<State>>,
    inode: InodeId,
    outcome: io::Result<Option<u64>>,
}

/// A sync that was submitted. Dropping it leaves everything volatile.
#[must_use = "a sync takes effect when it is completed"]
pub struct PendingSync {
    state: Arc<Mutex<State>>,
    inode: InodeId,
    submitted: u64,
    fault: Option<Fault>,
    /// It is none of a queue's.
    blocking: bool,
}

impl SimFile {
    pub(super) fn new(
        state: Arc<Mutex<State>>,
        inode: InodeId,
        name: &str,
        writable: bool,
    ) -> Self {
        Self { state, inode, name: name.to_owned(), writable }
    }

    /// Submits a write. It counts now, reads see it now, and faults are told on completion.
    pub fn submit_write(&self, data: &[u8], offset: u64) -> PendingWrite {
        let outcome = self.start_write(data, offset);
        PendingWrite { state: Arc::clone(&self.state), inode: self.inode, outcome }
    }

    /// Submits a sync. It will cover the writes that were completed before this call.
    pub fn submit_sync(&self) -> PendingSync {
        let mut state = self.state();
        let fault = if state.dead { Some(Fault::PowerCut) } else { state.script.next(Kind::Sync) };
        if fault == Some(Fault::PowerCut) {
            state.dead = true;
        }
        PendingSync {
            state: Arc::clone(&self.state),
            inode: self.inode,
            submitted: state.tick(),
            fault,
            blocking: false,
        }
    }

    /// Gives the operation whose completion is to be noted, if there is one.
    fn start_write(&self, data: &[u8], offset: u64) -> io::Result<Option<u64>> {
        let mut state = self.state();
        state.alive()?;
        self.may_write()?;
        let Some(end) = offset.checked_add(data.len() as u64) else {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        };
        let fault = state.script.next(Kind::Write);
        let mut at = offset;
        match fault {
            Some(Fault::Enospc) => return Err(enospc()),
            Some(Fault::Lost) => return Ok(None),
            Some(Fault::Misdirected { by_bytes }) => at = offset.saturating_add_signed(by_bytes),
            Some(Fault::Eio | Fault::PowerCut | Fault::CacheDropped) | None => {}
        }
        state.room_for(self.inode, end.max(at.saturating_add(data.len() as u64)))?;
        let op = state.tick();
        let visible = fault != Some(Fault::Eio);
        state.inode(self.inode).image.write(op, data, at, visible);
        match fault {
            Some(Fault::Eio) => Err(eio()),
            Some(Fault::PowerCut) => {
                state.dead = true;
                Err(power_cut())
            }
            _ => Ok(Some(op)),
        }
    }

    fn resize(&self, shrink: bool, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.alive()?;
        self.may_write()?;
        state.change(|state| {
            state.room_for(self.inode, len)?;
            let (op, now) = (state.tick(), state.tick());
            let image = &mut state.inode(self.inode).image;
            if shrink || len > image.len() {
                image.set_len(op, len);
                image.complete(op, now);
            }
            Ok(())
        })
    }

    fn may_write(&self) -> io::Result<()> {
        if self.writable {
            return Ok(());
        }
        let text = format!("{} was opened to read only", self.name);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        guard(&self.state)
    }
}

impl PendingWrite {
    /// The caller learns the outcome. From now on a sync that is submitted covers the write.
    pub fn complete(self) -> io::Result<()> {
        let mut state = guard(&self.state);
        let op = self.outcome?;
        state.alive()?;
        let now = state.tick();
        if let Some(op) = op {
            state.inode(self.inode).image.complete(op, now);
        }
        Ok(())
    }
}

impl PendingSync {
    /// The sync takes effect and the caller learns the outcome.
    pub fn complete(self) -> io::Result<()> {
        let mut state = guard(&self.state);
        let ended = self.end(&mut state);
        if self.blocking {
            return state.flushes.note(ended);
        }
        ended
    }

    fn end(&self, state: &mut State) -> io::Result<()> {
        state.alive()?;
        let image = &mut state.inode(self.inode).image;
        match self.fault {
            Some(Fault::Lost) => Ok(()),
            Some(Fault::CacheDropped) => {
                state.inodes.values_mut().for_each(|inode| inode.image.drop_cache());
                Err(eio())
            }
            Some(Fault::Eio) => {
                image.sync_failed(self.submitted);
                Err(eio())
            }
            Some(Fault::Enospc) => {
                image.sync_failed(self.submitted);
                Err(enospc())
            }
            Some(Fault::PowerCut) => Err(power_cut()),
            Some(Fault::Misdirected { .. }) | None => {
                image.sync(self.submitted);
                Ok(())
            }
        }
    }
}

impl MediaFile for SimFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state();
        state.alive()?;
        Ok(state.inode(self.inode).image.read(buf, offset))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.submit_write(data, offset).complete()
    }

    fn sync(&self) -> io::Result<()> {
        while self.state().hangs {
            std::thread::sleep(HANG_LOOK);
        }
        PendingSync { blocking: true, ..self.submit_sync() }.complete()
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.state();
        state.alive()?;
        Ok(state.inode(self.inode).image.len())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.resize(true, len_bytes)
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.resize(false, len_bytes)
    }

    fn raw_fd(&self) -> Option<RawFd> {
        None
    }

    fn direct_path(&self) -> Option<PathBuf> {
        None
    }

    fn simulated(&self) -> Option<&SimFile> {
        Some(self)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.state();
        let inode = state.inode(self.inode);
        inode.handles = inode.handles.saturating_sub(1);
        state.collect();
    }
}

#[cfg(test)]
mod tests {
    use crate::{Media, OpenMode, SimMedia, Survival};

    #[test]
    fn a_write_completed_after_the_syncs_submission_is_not_covered() {
        let media = SimMedia::new();
        let file = media.open("a", OpenMode::Create).unwrap();
        media.sync_dir().unwrap();
        let file = file.simulated().unwrap();
        let early = file.submit_write(&[1; 512], 0);
        let late = file.submit_write(&[2; 512], 512);
        early.complete().unwrap();
        let sync = file.submit_sync();
        late.complete().unwrap();
        sync.complete().unwrap();
        let found = media.crash_as(Survival::Nothing, 0);
        assert_eq!(found.open("a", OpenMode::Read).unwrap().len().unwrap(), 512);
    }
}
