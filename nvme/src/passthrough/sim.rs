//! A namespace that is a file: it carries commands out late and in any order, and fails where it is
//! told to. Deterministic: the same seed and calls give the same completions.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wirevault_buffer::ChunkBuf;
use wirevault_media::sim::SplitMix64;

use crate::spec::Status;
use crate::spec::command::{self, Command};

use super::held::Held;
use super::{CommandRing, Tag, Target};

/// A simulated namespace behind a [`CommandRing`]. Dropping it abandons what is under way.
pub struct SimCommands {
    file: File,
    path: PathBuf,
    lba_bytes: u64,
    transfer_bytes: usize,
    held: Held,
    pending: Vec<Pending>,
    ended: Vec<(Tag, i32)>,
    random: SplitMix64,
    /// Commands seen, counted from 1.
    commands: u64,
    faults: BTreeMap<u64, i32>,
    stuck: bool,
}

struct Pending {
    tag: Tag,
    command: Command,
    data: Option<Range<usize>>,
    asked: bool,
    number: u64,
}

impl SimCommands {
    /// A namespace in the file at `path`, which exists. `depth` is that of the queue.
    ///
    /// Errors: the file cannot be opened.
    pub fn open(path: &Path, target: &Target, depth: usize, seed: u64) -> io::Result<Self> {
        Ok(Self {
            file: File::options().read(true).write(true).open(path)?,
            path: path.to_owned(),
            lba_bytes: u64::from(target.lba_bytes),
            transfer_bytes: target.transfer_bytes,
            held: Held::new(depth),
            pending: Vec::with_capacity(depth),
            ended: Vec::with_capacity(depth),
            random: SplitMix64::new(seed),
            commands: 0,
            faults: BTreeMap::new(),
            stuck: false,
        })
    }

    /// Ends the `nth` command (from 1) with this result, as the kernel would tell it, and without
    /// carrying it out.
    pub fn fail(&mut self, nth: u64, result: i32) {
        self.faults.insert(nth, result);
    }

    /// Lets nothing end any more, or again.
    pub fn set_stuck(&mut self, stuck: bool) {
        self.stuck = stuck;
    }

    fn queue(
        &mut self,
        tag: Tag,
        command: Command,
        data: Option<Range<usize>>,
        asked: bool,
    ) -> bool {
        if !self.held.begin(tag.index as usize) {
            return false;
        }
        self.commands += 1;
        self.pending.push(Pending { tag, command, data, asked, number: self.commands });
        true
    }

    fn carry_out(&self, pending: &Pending) -> i32 {
        let Pending { tag, command, data, asked, number } = pending;
        if let Some(result) = self.faults.get(number) {
            return *result;
        }
        if *asked {
            return -libc::EFAULT;
        }
        let data = data.as_ref().and_then(|range| self.held.data(tag.index as usize, range));
        match (command.opcode, data) {
            (command::io::FLUSH, None) => 0,
            (command::io::WRITE, Some(data)) => {
                let first = u64::from(command.dwords[1]) << 32 | u64::from(command.dwords[0]);
                let blocks = u64::from(command.dwords[2]) + 1;
                let said = blocks * self.lba_bytes;
                if said != data.len() as u64 || data.len() > self.transfer_bytes {
                    return INVALID_FIELD;
                }
                match self.file.write_all_at(data, first * self.lba_bytes) {
                    Ok(()) => 0,
                    Err(_) => i32::from(Status::WRITE_FAULT.0),
                }
            }
            _ => INVALID_FIELD,
        }
    }
}

/// "Invalid field in command", "do not retry".
const INVALID_FIELD: i32 = 0x4002;

impl CommandRing for SimCommands {
    fn hold(&mut self, index: usize, buf: ChunkBuf) {
        self.held.hold(index, buf);
    }

    fn release(&mut self, index: usize) -> Option<ChunkBuf> {
        self.held.release(index)
    }

    fn push(&mut self, tag: Tag, command: Command, data: Option<Range<usize>>) -> bool {
        self.queue(tag, command, data, false)
    }

    fn ask(&mut self, tag: Tag, command: Command) -> bool {
        self.queue(tag, command, None, true)
    }

    fn enter(&mut self, wait: Duration) -> io::Result<()> {
        let count = self.pending.len() as u64;
        if count == 0 || self.stuck {
            return Ok(());
        }
        let least = u64::from(!wait.is_zero());
        for _ in 0..(least + self.random.below(count + 1)).min(count) {
            let at = self.random.below(self.pending.len() as u64) as usize;
            let pending = self.pending.swap_remove(at);
            self.ended.push((pending.tag, self.carry_out(&pending)));
        }
        Ok(())
    }

    fn next(&mut self) -> Option<(Tag, i32)> {
        let (tag, result) = self.ended.pop()?;
        self.held.end(tag.index as usize);
        Some((tag, result))
    }

    fn leads_to_device(&self, node: &Path) -> io::Result<bool> {
        Ok(node == self.path)
    }
}
