//! The device's side: what registers do, and what commands do.

use std::ops::Range;

use wirevault_media::sim::SplitMix64;

use super::super::command::{COMMAND_DWORDS, RANGE_BYTES};
use super::super::pages::LIST_BYTES;
use super::super::registers::{
    ACQ, AQA, ASQ, CAP, CC, CC_EN, CC_RUN, CC_SHN_MASK, CSTS, CSTS_CFS, CSTS_RDY, CSTS_SHST_DONE,
    DOORBELLS, PAGE_BYTES,
};
use super::{HostMemory, Journal, ModelOptions, Trouble};
use crate::spec::Status;
use crate::spec::command::{admin, io as io_command};
use crate::spec::identify::IDENTIFY_BYTES;

/// How long enabling, disabling and admin commands take.
const SLOW_NS: u64 = 300_000;

pub(super) struct Device {
    options: ModelOptions,
    rng: SplitMix64,
    pub(super) disk: Vec<u8>,
    pub(super) durable: Vec<u8>,
    /// Ranges of `disk` that are not durable.
    cached: Vec<Range<usize>>,
    pub(super) failing: Vec<(bool, Range<u64>, Status)>,
    pub(super) violations: Vec<String>,
    pub(super) io_commands: u64,
    pub(super) aborts: u64,
    registers: [u32; 16],
    /// When the enable bit takes effect.
    changes_at: Option<u64>,
    ready: bool,
    queues: Vec<Option<Pair>>,
    running: Vec<Running>,
    stuck: u32,
    deaf: bool,
    /// How long the next admin command takes.
    late_ns: Option<u64>,
    troubles: Vec<Trouble>,
    pub(super) journal: Option<Box<dyn Journal>>,
}

/// A queue pair as the device knows it.
struct Pair {
    submissions: u64,
    completions: u64,
    submission_entries: u16,
    completion_entries: u16,
    head: u16,
    completion_tail: u16,
    /// What the driver has read of completions.
    completion_head: u16,
    phase: bool,
    has_submissions: bool,
}

struct Running {
    queue: usize,
    id: u16,
    command: [u32; COMMAND_DWORDS],
    /// `None`: it does not end by itself.
    due_ns: Option<u64>,
    deaf: bool,
    /// The journal's.
    begun: usize,
}

impl Device {
    pub(super) fn new(options: ModelOptions) -> Self {
        Self {
            rng: SplitMix64::new(options.seed),
            disk: vec![0; options.bytes],
            durable: vec![0; options.bytes],
            cached: Vec::new(),
            failing: Vec::new(),
            violations: Vec::new(),
            io_commands: 0,
            aborts: 0,
            registers: [0; 16],
            changes_at: None,
            ready: false,
            queues: Vec::new(),
            running: Vec::new(),
            stuck: 0,
            deaf: false,
            late_ns: None,
            troubles: Vec::new(),
            journal: None,
            options,
        }
    }

    pub(super) fn trouble(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Stuck(count) => (self.stuck, self.deaf) = (count, false),
            Trouble::Deaf(count) => (self.stuck, self.deaf) = (count, true),
            Trouble::AdminLate(ns) => self.late_ns = Some(ns),
            Trouble::Reset => {
                self.registers[CC / 4] = 0;
                self.stop();
            }
            other => self.troubles.push(other),
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.has(Trouble::Gone)
    }

    fn has(&self, trouble: Trouble) -> bool {
        self.troubles.contains(&trouble)
    }

    fn violate(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    pub(super) fn read32(&self, at: usize) -> u32 {
        match at {
            CAP => u32::from(self.options.entries - 1) | 2 << 24,
            _ if at == CAP + 4 => u32::from(self.options.stride) | 1 << 5,
            CSTS => {
                let shutdown =
                    if self.registers[CC / 4] & CC_SHN_MASK != 0 { CSTS_SHST_DONE } else { 0 };
                let fatal = if self.has(Trouble::Fatal) { CSTS_CFS } else { 0 };
                if self.ready { CSTS_RDY | shutdown | fatal } else { fatal }
            }
            _ => self.registers.get(at / 4).copied().unwrap_or(0),
        }
    }

    pub(super) fn write32(&mut self, at: usize, value: u32, now_ns: u64, memory: &HostMemory) {
        if at >= DOORBELLS {
            return self.ring(at, value, now_ns, memory);
        }
        let enabled = self.registers[CC / 4] & CC_EN != 0;
        match at {
            CC => {
                if value & CC_EN != 0 && value & !CC_SHN_MASK != CC_RUN {
                    self.violate(format!("CC set to {value:#x}"));
                }
                if enabled != (value & CC_EN != 0) {
                    self.changes_at = Some(now_ns + SLOW_NS);
                }
                self.registers[CC / 4] = value;
            }
            AQA | ASQ | ACQ | 0x2c | 0x34 if !enabled && !self.ready => {
                self.registers[at / 4] = value;
            }
            _ => self.violate(format!("register {at:#x} written, enabled: {enabled}")),
        }
    }

    /// Lets time pass: state changes, and ends of commands, in any order.
    pub(super) fn step(&mut self, now_ns: u64, memory: &HostMemory) {
        if self.is_gone() {
            return;
        }
        if self.changes_at.is_some_and(|at| at <= now_ns) {
            self.changes_at = None;
            if self.registers[CC / 4] & CC_EN != 0 {
                self.start();
            } else if !self.has(Trouble::WillNotStop) {
                self.stop();
            }
        }
        if !self.ready || self.has(Trouble::Fatal) {
            return;
        }
        loop {
            // A device does not write over completions that were not read.
            let due = |r: &Running| r.due_ns.is_some_and(|due| due <= now_ns);
            let can_end = |(_, r): &(usize, &Running)| due(r) && self.has_room(r.queue);
            let ending: Vec<usize> =
                self.running.iter().enumerate().filter(can_end).map(|(at, _)| at).collect();
            if ending.is_empty() {
                return;
            }
            let at = ending[self.rng.below(ending.len() as u64) as usize];
            let command = self.running.swap_remove(at);
            self.end(&command, memory);
        }
    }

    fn has_room(&self, queue: usize) -> bool {
        self.queues.get(queue).and_then(Option::as_ref).is_some_and(|pair| {
            (pair.completion_tail + 1) % pair.completion_entries != pair.completion_head
        })
    }

    fn start(&mut self) {
        let qword = |at: usize| {
            u64::from(self.registers[at / 4 + 1]) << 32 | u64::from(self.registers[at / 4])
        };
        let entries = |field: u32| (field & 0xfff) as u16 + 1;
        let (submissions, completions) = (qword(ASQ), qword(ACQ));
        let attributes = self.registers[AQA / 4];
        let mut pair = Pair::new(completions, entries(attributes >> 16));
        pair.open(submissions, entries(attributes));
        self.queues = (0..=self.options.pairs).map(|_| None).collect();
        self.queues[0] = Some(pair);
        self.ready = true;
    }

    fn stop(&mut self) {
        self.queues.clear();
        self.running.clear();
        self.troubles.retain(|t| *t != Trouble::Fatal);
        self.ready = false;
    }

    /// A doorbell: either completions were read, or there are new commands to fetch.
    fn ring(&mut self, at: usize, value: u32, now_ns: u64, memory: &HostMemory) {
        let number = (at - DOORBELLS) / (4 << self.options.stride);
        let queue = number / 2;
        let Some(Some(pair)) = self.queues.get_mut(queue) else {
            return self.violate(format!("doorbell of queue {queue}, which is not open"));
        };
        let value = value as u16;
        if number % 2 == 1 {
            if value >= pair.completion_entries {
                return self.violate(format!("completion head {value}"));
            }
            pair.completion_head = value;
            return;
        }
        if value >= pair.submission_entries || !pair.has_submissions {
            return self.violate(format!("submission tail {value}"));
        }
        loop {
            let Some(Some(pair)) = self.queues.get_mut(queue) else { return };
            if pair.head == value {
                return;
            }
            let mut bytes = [0; COMMAND_DWORDS * 4];
            let from = pair.submissions + u64::from(pair.head) * bytes.len() as u64;
            pair.head = (pair.head + 1) % pair.submission_entries;
            if !memory.read(from, &mut bytes) {
                return self.violate("a submission queue in memory that was not mapped");
            }
            let command = std::array::from_fn(|n| {
                u32::from_le_bytes(std::array::from_fn(|k| bytes[n * 4 + k]))
            });
            self.fetch(queue, command, now_ns);
        }
    }

    fn fetch(&mut self, queue: usize, command: [u32; COMMAND_DWORDS], now_ns: u64) {
        let id = (command[0] >> 16) as u16;
        if self.running.iter().any(|r| r.queue == queue && r.id == id) || id == u16::MAX {
            self.violate(format!("identifier {id} is in use"));
        }
        let in_flight = self.running.iter().filter(|r| r.queue == queue).count();
        if let Some(pair) = self.queues[queue].as_ref().filter(|_| !self.has(Trouble::Echo))
            && in_flight + pair.unread() + 1 >= usize::from(pair.completion_entries)
        {
            self.violate(format!("completion queue {queue} has no room for another command"));
        }
        let mut due_ns = Some(now_ns + 1 + self.rng.below(self.options.delay_ns_max));
        let deaf = self.deaf;
        if queue > 0 {
            self.io_commands += 1;
            if self.stuck > 0 {
                self.stuck -= 1;
                due_ns = None;
            }
        } else if self.has(Trouble::AdminStuck) {
            due_ns = None;
        } else if let Some(late_ns) = self.late_ns.take() {
            due_ns = Some(now_ns + late_ns);
        }
        let begun = self.journal.as_mut().filter(|_| queue > 0).map_or(0, |it| it.begun());
        self.running.push(Running { queue, id, command, due_ns, deaf, begun });
    }

    fn end(&mut self, command: &Running, memory: &HostMemory) {
        let (status, result) = if command.queue == 0 {
            self.administer(&command.command, memory)
        } else {
            (self.carry_out(command, memory), 0)
        };
        self.post(command.queue, command.id, status, result, memory);
        if self.has(Trouble::Echo) && self.has_room(command.queue) {
            self.post(command.queue, command.id ^ 0x8400, Status::OK, 0, memory);
        }
    }

    fn post(&mut self, queue: usize, id: u16, status: Status, result: u32, memory: &HostMemory) {
        let Some(Some(pair)) = self.queues.get_mut(queue) else { return };
        let next = (pair.completion_tail + 1) % pair.completion_entries;
        let is_full = next == pair.completion_head;
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&result.to_le_bytes());
        bytes[8..10].copy_from_slice(&pair.head.to_le_bytes());
        bytes[12..14].copy_from_slice(&id.to_le_bytes());
        let last = status.0 << 1 | u16::from(pair.phase);
        bytes[14..16].copy_from_slice(&last.to_le_bytes());
        let at = pair.completions + u64::from(pair.completion_tail) * 16;
        pair.completion_tail = next;
        pair.phase ^= next == 0;
        // The phase bit is written last, as on a bus that keeps the order of writes.
        let written = memory.write(at, &bytes[..12]) && memory.write(at + 12, &bytes[12..]);
        if is_full {
            self.violate(format!("completion queue {queue} ran over"));
        }
        if !written {
            self.violate("a completion queue in memory that was not mapped");
        }
    }

    fn administer(&mut self, c: &[u32; COMMAND_DWORDS], memory: &HostMemory) -> (Status, u32) {
        let (id, entries) = (c[10] as u16, ((c[10] >> 16) as u16).wrapping_add(1));
        let address = u64::from(c[7]) << 32 | u64::from(c[6]);
        let limit = self.options.entries;
        let known = 1..=self.options.pairs;
        let invalid = (Status(0x002), 0);
        match c[0] as u8 {
            admin::IDENTIFY => (self.identify(c, address, memory), 0),
            admin::SET_FEATURES if c[10] & 0xff == 7 => {
                let granted = u32::from(self.options.pairs) - 1;
                (Status::OK, granted << 16 | granted)
            }
            admin::CREATE_COMPLETION_QUEUE
                if c[11] & 1 == 1 && known.contains(&id) && entries <= limit =>
            {
                let place = &mut self.queues[usize::from(id)];
                if place.is_some() {
                    return (Status(0x101), 0);
                }
                *place = Some(Pair::new(address, entries));
                (Status::OK, 0)
            }
            admin::CREATE_SUBMISSION_QUEUE
                if c[11] & 1 == 1 && known.contains(&id) && entries <= limit =>
            {
                match &mut self.queues[usize::from(id)] {
                    Some(pair) if !pair.has_submissions && c[11] >> 16 == u32::from(id) => {
                        pair.open(address, entries);
                        (Status::OK, 0)
                    }
                    _ => (Status(0x101), 0),
                }
            }
            admin::DELETE_SUBMISSION_QUEUE if known.contains(&id) => {
                self.running.retain(|r| r.queue != usize::from(id));
                match &mut self.queues[usize::from(id)] {
                    Some(pair) => {
                        pair.has_submissions = false;
                        (Status::OK, 0)
                    }
                    None => (Status(0x101), 0),
                }
            }
            admin::DELETE_COMPLETION_QUEUE if known.contains(&id) => {
                self.queues[usize::from(id)] = None;
                (Status::OK, 0)
            }
            admin::ABORT => {
                self.aborts += 1;
                let (queue, id) = (c[10] as u16, (c[10] >> 16) as u16);
                let is_it = |r: &Running| r.queue == usize::from(queue) && r.id == id && !r.deaf;
                let Some(at) = self.running.iter().position(is_it) else {
                    return (Status::OK, 1);
                };
                let aborted = self.running.swap_remove(at);
                self.post(aborted.queue, aborted.id, Status::ABORTED, 0, memory);
                (Status::OK, 0)
            }
            admin::GET_LOG_PAGE => {
                let bytes = vec![0x5a; ((c[10] >> 16) as usize + 1) * 4];
                let status = if memory.write(address, &bytes) { Status::OK } else { Status(4) };
                (status, 0)
            }
            _ => invalid,
        }
    }

    fn identify(&mut self, c: &[u32; COMMAND_DWORDS], at: u64, memory: &HostMemory) -> Status {
        let mut data = [0; IDENTIFY_BYTES];
        match (c[10] as u8, c[1]) {
            (1, _) => {
                data[4..24].fill(b' ');
                data[4..9].copy_from_slice(b"MODEL");
                data[24..64].fill(b' ');
                data[24..34].copy_from_slice(b"Controller");
                data[77] = self.options.mdts;
                let options = &self.options;
                data[520] =
                    u8::from(options.can_deallocate) << 2 | u8::from(options.can_write_zeroes) << 3;
                data[525] = u8::from(self.options.volatile_cache);
            }
            (2, _) => data[0] = 1,
            (0, 1) => {
                let blocks = self.options.bytes as u64 / u64::from(self.options.block_bytes);
                data[..8].copy_from_slice(&blocks.to_le_bytes());
                data[130] = self.options.block_bytes.trailing_zeros() as u8;
            }
            _ => return Status(0x00b),
        }
        if memory.write(at, &data) { Status::OK } else { Status(4) }
    }

    fn carry_out(&mut self, running: &Running, memory: &HostMemory) -> Status {
        let c = &running.command;
        let opcode = c[0] as u8;
        if c[1] != 1 {
            self.violate(format!("namespace {}", c[1]));
            return Status(0x00b);
        }
        if opcode == io_command::FLUSH {
            if !self.has(Trouble::FlushLies) {
                for range in self.cached.drain(..) {
                    self.durable[range.clone()].copy_from_slice(&self.disk[range]);
                }
            }
            self.note(running.begun, None);
            return Status::OK;
        }
        let block = u64::from(self.options.block_bytes);
        if opcode == io_command::DATASET_MANAGEMENT {
            return self.deallocate(running, block, memory);
        }
        let first = (u64::from(c[11]) << 32 | u64::from(c[10])) * block;
        let bytes = (u64::from(c[12] & 0xffff) + 1) * block;
        let range = first..first + bytes;
        if range.end > self.disk.len() as u64 {
            return Status(0x080);
        }
        if self.options.mdts != 0 && bytes > 4096 << self.options.mdts {
            self.violate(format!("{bytes} bytes in one command"));
            return Status(0x002);
        }
        let touched = |(writes, bad, _): &&(bool, Range<u64>, Status)| {
            *writes == (opcode == io_command::WRITE)
                && bad.start < range.end
                && range.start < bad.end
        };
        if let Some((_, _, status)) = self.failing.iter().find(touched) {
            return *status;
        }
        let place = range.start as usize..range.end as usize;
        if opcode == io_command::WRITE_ZEROES && self.options.can_write_zeroes {
            self.disk[place.clone()].fill(0);
            self.wrote(running, place);
            return Status::OK;
        }
        let Some(pages) = pages(c, bytes as usize, memory) else {
            self.violate("pages that cannot be");
            return Status(0x013);
        };
        for (page, at) in pages.into_iter().zip(place.clone().step_by(PAGE_BYTES)) {
            let part = at..(at + PAGE_BYTES).min(place.end);
            let reached = match opcode {
                io_command::WRITE => memory.read(page, &mut self.disk[part]),
                io_command::READ => memory.write(page, &self.disk[part]),
                _ => return Status(0x001),
            };
            if !reached {
                self.violate(format!("data at {page:#x}, which is not mapped for that"));
                return Status(0x004);
            }
        }
        if opcode == io_command::WRITE {
            self.wrote(running, place);
        }
        Status::OK
    }

    fn wrote(&mut self, running: &Running, place: Range<usize>) {
        self.note(running.begun, Some(place.clone()));
        if self.options.volatile_cache {
            self.cached.push(place);
        } else {
            self.durable[place.clone()].copy_from_slice(&self.disk[place]);
        }
    }

    /// One range; what it covers reads as zeros, at once and for good.
    fn deallocate(&mut self, running: &Running, block: u64, memory: &HostMemory) -> Status {
        let c = &running.command;
        let mut range = [0; RANGE_BYTES];
        let page = u64::from(c[7]) << 32 | u64::from(c[6]);
        if c[10] & 0xff != 0 || c[11] & 4 == 0 || !memory.read(page, &mut range) {
            self.violate("a deallocation of other than one range");
            return Status(0x002);
        }
        let blocks = u32::from_le_bytes(std::array::from_fn(|n| range[4 + n]));
        let first = u64::from_le_bytes(std::array::from_fn(|n| range[8 + n]));
        let (from, until) = (first * block, (first + u64::from(blocks)) * block);
        if until > self.disk.len() as u64 {
            return Status(0x080);
        }
        for bytes in [&mut self.disk, &mut self.durable] {
            bytes[from as usize..until as usize].fill(0);
        }
        self.note(running.begun, Some(from as usize..until as usize));
        Status::OK
    }

    fn note(&mut self, begun: usize, written: Option<Range<usize>>) {
        if let Some(journal) = &mut self.journal {
            journal.ended(begun, written.map(|range| (range.start as u64, &self.disk[range])));
        }
    }
}

impl Pair {
    fn new(completions: u64, entries: u16) -> Self {
        Self {
            submissions: 0,
            completions,
            submission_entries: 0,
            completion_entries: entries,
            head: 0,
            completion_tail: 0,
            completion_head: 0,
            phase: true,
            has_submissions: false,
        }
    }

    /// Completions that the driver has not taken.
    fn unread(&self) -> usize {
        let entries = self.completion_entries;
        usize::from((self.completion_tail + entries - self.completion_head) % entries)
    }

    fn open(&mut self, submissions: u64, entries: u16) {
        (self.submissions, self.submission_entries) = (submissions, entries);
        self.has_submissions = true;
    }
}

/// The pages of a transfer. `None`: the list is none.
fn pages(c: &[u32; COMMAND_DWORDS], bytes: usize, memory: &HostMemory) -> Option<Vec<u64>> {
    let qword = |at: usize| u64::from(c[at + 1]) << 32 | u64::from(c[at]);
    let (first, second) = (qword(6), qword(8));
    let mut found = vec![first];
    match bytes.div_ceil(PAGE_BYTES) {
        1 => {}
        2 => found.push(second),
        count => {
            let mut list = vec![0; (count - 1) * 8];
            let fits = list.len() <= LIST_BYTES && second % LIST_BYTES as u64 == 0;
            if !fits || !memory.read(second, &mut list) {
                return None;
            }
            let entry = |e: &[u8]| u64::from_le_bytes(std::array::from_fn(|n| e[n]));
            found.extend(list.chunks_exact(8).map(entry));
        }
    }
    found.iter().all(|page| page.is_multiple_of(PAGE_BYTES as u64)).then_some(found)
}
