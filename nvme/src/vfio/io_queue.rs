//! Commands on one I/O queue pair: in flight, ended, overdue, lost by a reset.

use std::io;
use std::sync::Arc;

use super::bus::Bus;
use super::command::{Command, RANGE_BYTES};
use super::controller::{Controller, Mapped};
use super::ids::{IDS_MAX, Ids};
use super::memory::DmaMemory;
use super::pages::{self, LIST_BYTES};
use super::registers::PAGE_BYTES;
use super::ring::Ring;
use crate::spec::command::io as io_command;

/// How often at least a queue with commands in flight looks whether they are overdue and the device
/// well.
const WATCHES_PER_TIMEOUT: u64 = 8;
/// Between two looks at most: whatever commands may take, a device that was reset is seen soon.
const WATCH_NS_MAX: u64 = 1_000_000_000;

/// Reads, writes and flushes of one namespace, each with a `T` that comes back once.
pub(super) struct IoQueue<B: Bus, T> {
    controller: Arc<Controller<B>>,
    number: u16,
    entries: u16,
    mapped: Mapped,
    lists_at: usize,
    data_at: usize,
    ring: Ring,
    ids: Ids<InFlight<T>>,
    /// Epoch in which the pair was opened; `None`: it is not open.
    epoch: Option<u32>,
    next_watch_ns: u64,
    /// Commands of which the device was not told yet.
    untold: Vec<u16>,
}

struct InFlight<T> {
    user: T,
    /// When the device was told of it: a thread may stand still before.
    since_ns: Option<u64>,
    /// When its abort had ended.
    aborted_ns: Option<u64>,
}

/// Why a queue can do nothing any more, and whether memory of its commands may be used again.
pub(super) struct Dead {
    /// The device may still read it.
    pub(super) runaway: bool,
}

impl<B: Bus, T> IoQueue<B, T> {
    /// Opens a pair for `commands` in flight, or as many as the device allows, with `data_bytes` of
    /// memory beside it. Errors: no queue or memory is left, or the device's.
    pub(super) fn open(
        controller: Arc<Controller<B>>,
        commands: usize,
        data_bytes: usize,
    ) -> io::Result<Self> {
        let entries_max = controller.capabilities.entries_max().min(IDS_MAX as u32 + 1) as usize;
        // One entry always stays free.
        let entries = (commands + 1).clamp(2, entries_max) as u16;
        let commands = usize::from(entries) - 1;
        let lists_at = Ring::bytes(entries);
        let data_at = lists_at + (commands * LIST_BYTES).next_multiple_of(PAGE_BYTES);
        let (number, mapped) = controller.reserve(data_at + data_bytes)?;
        let ring = Ring::new(Arc::clone(&mapped.memory), entries, number, controller.capabilities);
        let mut queue = Self {
            controller,
            number,
            entries,
            mapped,
            lists_at,
            data_at,
            ring,
            ids: Ids::new(commands),
            epoch: None,
            next_watch_ns: 0,
            untold: Vec::with_capacity(commands),
        };
        queue.reopen()?;
        Ok(queue)
    }

    pub(super) fn controller(&self) -> &Arc<Controller<B>> {
        &self.controller
    }

    pub(super) fn in_flight(&self) -> usize {
        self.ids.in_flight()
    }

    /// The memory beside the queue, its first byte there, and the device's address of that byte.
    pub(super) fn data(&self) -> (&DmaMemory, usize, u64) {
        (&self.mapped.memory, self.data_at, self.mapped.start + self.data_at as u64)
    }

    /// Submits a read or write of whole blocks at device address `data`, a multiple of a page, at
    /// most `transfer_bytes_max` long; [`IoQueue::tell`] hands it over. Gives `user` back when
    /// there is no room.
    pub(super) fn transfer(
        &mut self,
        write: bool,
        first_byte: u64,
        bytes: usize,
        data: u64,
        user: T,
    ) -> Result<(), T> {
        let id = self.start(user)?;
        let at = self.lists_at + Ids::<T>::place(id) * LIST_BYTES;
        let list = self.mapped.start + at as u64;
        let pages = pages::name(&self.mapped.memory, at, list, data, bytes);
        let opcode = if write { io_command::WRITE } else { io_command::READ };
        let command = self.named(opcode, first_byte, bytes, pages);
        self.push(command, id)
    }

    /// Submits a flush; see [`IoQueue::transfer`].
    pub(super) fn flush(&mut self, user: T) -> Result<(), T> {
        let id = self.start(user)?;
        self.push(Command::flush(self.controller.facts.namespace_id), id)
    }

    /// Submits the deallocation of whole blocks, whose range stands in the first page beside the
    /// queue ([`IoQueue::data`]) until it ends; see [`IoQueue::transfer`].
    pub(super) fn deallocate(&mut self, first_byte: u64, blocks: u32, user: T) -> Result<(), T> {
        let id = self.start(user)?;
        let facts = &self.controller.facts;
        let first = first_byte / u64::from(facts.block_bytes());
        let mut range = [0; RANGE_BYTES];
        range[4..8].copy_from_slice(&blocks.to_le_bytes());
        range[8..].copy_from_slice(&first.to_le_bytes());
        let command = Command::deallocate(facts.namespace_id, self.data().2);
        self.mapped.memory.copy_in(self.data_at, &range);
        self.push(command, id)
    }

    /// Submits that whole blocks become zeros, as many as [`IoQueue::transfer`] takes at most; see
    /// there.
    pub(super) fn write_zeroes(&mut self, first_byte: u64, bytes: usize, user: T) -> Result<(), T> {
        let id = self.start(user)?;
        let command = self.named(io_command::WRITE_ZEROES, first_byte, bytes, (0, 0));
        self.push(command, id)
    }

    /// Tells the device of what was submitted and taken. After a reset there is no such queue until
    /// [`IoQueue::reap`] has opened it again. (One that happens this very moment makes the device
    /// note a doorbell that leads nowhere.)
    pub(super) fn tell(&mut self) {
        if self.epoch == Some(self.controller.epoch()) {
            self.ring.tell(&self.controller.bus);
        }
        if self.untold.is_empty() {
            return;
        }
        let now_ns = self.controller.bus.now_ns();
        for id in self.untold.drain(..) {
            if let Some(command) = self.ids.get_mut(id) {
                command.since_ns = Some(now_ns);
            }
        }
    }

    /// Gives every command that ended to `out`. Sees to overdue ones now and then: first they are
    /// aborted, then the controller is reset, which ends all.
    ///
    /// Errors: the device is dead; commands in flight are with [`IoQueue::give_up`].
    pub(super) fn reap(&mut self, out: &mut impl FnMut(T, io::Result<()>)) -> Result<(), Dead> {
        if self.epoch == Some(self.controller.epoch()) {
            while let Some(ended) = self.ring.pop() {
                // An identifier that is not in flight would be the device's fault; nothing of ours
                // ended then.
                if let Some(command) = self.ids.remove(ended.id) {
                    out(command.user, ended.status.into_result());
                }
            }
            self.watch();
        }
        if self.epoch == Some(self.controller.epoch()) {
            return Ok(());
        }
        self.lost(out)
    }

    /// Everything in flight when the device died. If it runs away, what these commands point to
    /// must never be used again.
    pub(super) fn give_up(&mut self) -> Option<T> {
        let id = self.ids.any()?;
        self.ids.remove(id).map(|command| command.user)
    }

    fn start(&mut self, user: T) -> Result<u16, T> {
        if self.epoch.is_none() || !self.ring.has_room() {
            return Err(user);
        }
        if self.ids.in_flight() == 0 {
            self.next_watch_ns = self.controller.bus.now_ns() + self.watch_ns();
        }
        let command = InFlight { user, since_ns: None, aborted_ns: None };
        let id = self.ids.insert(command).map_err(|command| command.user)?;
        self.untold.push(id);
        Ok(id)
    }

    /// A command on whole blocks.
    fn named(&self, opcode: u8, first_byte: u64, bytes: usize, pages: (u64, u64)) -> Command {
        let facts = &self.controller.facts;
        let block_bytes = u64::from(facts.block_bytes());
        let (first, blocks) = (first_byte / block_bytes, (bytes as u64 / block_bytes) as u32);
        Command::transfer(opcode, facts.namespace_id, first, blocks, pages)
    }

    fn push(&mut self, command: Command, id: u16) -> Result<(), T> {
        if self.ring.push(&command.with_id(id)) {
            return Ok(());
        }
        // `start` saw room, so this does not happen; were it to, nothing reached the device.
        match self.ids.remove(id) {
            Some(command) => Err(command.user),
            None => Ok(()),
        }
    }

    fn watch_ns(&self) -> u64 {
        let timeout_ns = self.controller.options.command_timeout.as_nanos() as u64;
        (timeout_ns / WATCHES_PER_TIMEOUT).clamp(1, WATCH_NS_MAX)
    }

    fn watch(&mut self) {
        let now = self.controller.bus.now_ns();
        let Some(epoch) = self.epoch.filter(|_| self.in_flight() > 0 && now >= self.next_watch_ns)
        else {
            return;
        };
        self.next_watch_ns = now + self.watch_ns();
        if self.controller.has_failed() {
            return self.controller.reset(epoch);
        }
        let timeout_ns = self.controller.options.command_timeout.as_nanos() as u64;
        let grace_ns = self.controller.options.admin_timeout.as_nanos() as u64;
        for (id, command) in self.ids.iter_mut() {
            let age_ns = |since_ns: Option<u64>| since_ns.map_or(0, |ns| now.saturating_sub(ns));
            let stuck = if command.aborted_ns.is_some() {
                age_ns(command.aborted_ns) > grace_ns
            } else if age_ns(command.since_ns) > timeout_ns {
                let refused = self.controller.abort(self.number, id).is_err();
                command.aborted_ns = Some(self.controller.bus.now_ns());
                refused
            } else {
                false
            };
            if stuck {
                return self.controller.reset(epoch);
            }
        }
    }

    /// Ends what a reset swept away, then opens the pair again.
    fn lost(&mut self, out: &mut impl FnMut(T, io::Result<()>)) -> Result<(), Dead> {
        self.epoch = None;
        if self.controller.is_runaway() {
            return Err(Dead { runaway: true });
        }
        while let Some(user) = self.give_up() {
            let text = if self.controller.is_alive() {
                "the device was reset"
            } else {
                "the device is gone, or does not answer any more"
            };
            out(user, Err(io::Error::new(io::ErrorKind::TimedOut, text)));
        }
        self.reopen().map_err(|_| Dead { runaway: self.controller.is_runaway() })
    }

    fn reopen(&mut self) -> io::Result<()> {
        let memory = Arc::clone(&self.mapped.memory);
        self.ring = Ring::new(memory, self.entries, self.number, self.controller.capabilities);
        let (number, entries, start) = (self.number, self.entries, self.mapped.start);
        self.epoch = Some(self.controller.open_pair(number, entries, start)?);
        Ok(())
    }
}

impl<B: Bus, T> Drop for IoQueue<B, T> {
    /// Closes the pair. Afterwards commands in flight use no memory any more, or the device runs
    /// away: see [`Controller::is_runaway`].
    fn drop(&mut self) {
        self.controller.close_pair(self.number, self.epoch, &self.mapped);
    }
}
