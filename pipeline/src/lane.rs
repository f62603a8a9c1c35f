//! The lane thread: takes packets from its source and fills chunks. Copies each packet once.
//!
//! It blocks only in its source's wait. When no chunk is free it stops taking packets; a live
//! source's kernel ring then fills and the kernel counts what it drops, so no loss escapes the
//! books.
//!
//! Full chunks go to the sealer's thread, or the lane has the sealer itself and drives it: a chunk
//! is sealed when it is full, and after every batch the sealer does what has become possible
//! meanwhile. See `sealer`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use wirevault_buffer::Pool;
use wirevault_capture::{GapInfo, Packet, PacketSink, Polled, Source, SourceState, VlanTag};
use wirevault_format::chunk::{HEADER_BYTES, PAYLOAD_BYTES_MAX};
use wirevault_format::limits::{SEGMENT_INTERFACES_MAX, SNAPLEN_MAX};
use wirevault_format::pcapng::Beside;
use wirevault_format::pcapng::write::{EpbParts, FLAGS_OPTION_BYTES, put_epb_with};
use wirevault_format::{Cause, Gap, Interface, LinkType, VxlanPorts, pcapng};
use wirevault_packet::Decap;
use wirevault_packet::bpf::Program;
use wirevault_telemetry::books::{LaneCounts, LaneSide};
use wirevault_telemetry::clock::Clock;

use crate::decap::{Piece, Stripper};
use crate::duplicates::Seen;
use crate::job::{GAP_ROOM_BYTES, Job, Jobs};
use crate::pending::PendingGaps;
use crate::policy::{Policies, PolicySpec, RungSpec, Subject, Tally, Verdict};
use crate::pressure::Pressure;
use crate::sealer::Sealer;
use crate::status::{BufferTimes, LaneShared, LaneState, note_since};

const PACKETS_END: usize = HEADER_BYTES + PAYLOAD_BYTES_MAX - GAP_ROOM_BYTES;
/// Bytes of a packet's block beside its data and its kept options: fixed fields, flags, end mark.
const BLOCK_BESIDE_BYTES: usize = pcapng::EPB_FIXED_BYTES + FLAGS_OPTION_BYTES + 4;
/// Wait for packets when nothing comes; bounds how late a flush or a stop is noticed.
const POLL_WAIT: Duration = Duration::from_millis(20);
/// Pause while no chunk is free: about what the device needs for one.
const STARVED_PAUSE: Duration = Duration::from_micros(200);
/// Draining a live source at stop ends after this, however fast packets come.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// How far ahead of what it writes a lane asks for a chunk's memory, which is in no near cache: a
/// packet of 800 B takes 32 ns to copy instead of 39 while the chunks in use fit a far one.
const PREFETCH_BYTES: usize = 2048;

/// Chunks that a lane seals in one go. Of those that wait for a late segment it works off two for
/// each one that it fills; a tenth of a millisecond each is what its ring bridges anyway.
const SEAL_CHUNKS_MAX: usize = 2;

/// What a lane takes and how.
pub struct LaneSpec {
    /// Where packets come from.
    pub source: Box<dyn Source>,
    /// Bytes kept of each packet.
    pub snaplen_bytes: u32,
    /// Packets it rejects are shed.
    pub filter: Option<Filter>,
    /// What is left out of those, in the order of asking.
    pub policies: Vec<PolicySpec>,
    /// What is left out under pressure, in the order of entering.
    pub ladder: Vec<RungSpec>,
    /// What is removed from packets before the filter looks at them; `None` stores them as they
    /// come.
    pub decap: Option<Decap>,
    /// What is taken for VXLAN when packets are indexed. The usual ports leave what an interface of
    /// the source says itself.
    pub vxlan_ports: VxlanPorts,
    /// Marks second copies of packets that it, or a lane with the same value, stored before.
    pub duplicates: Option<Arc<Seen>>,
    /// Core to run on.
    pub cpu: Option<usize>,
}

impl LaneSpec {
    /// All packets, whole, as they come, on any core.
    pub fn new(source: Box<dyn Source>) -> Self {
        Self {
            source,
            snaplen_bytes: SNAPLEN_MAX,
            filter: None,
            policies: Vec::new(),
            ladder: Vec::new(),
            decap: None,
            vxlan_ports: VxlanPorts::USUAL,
            duplicates: None,
            cpu: None,
        }
    }
}

/// A compiled capture filter: one program for each link type that the source can show.
pub type Filter = Arc<dyn Fn(LinkType) -> Option<Program> + Send + Sync>;

pub(crate) struct Lane {
    pub source: Box<dyn Source>,
    pub fill: Fill,
    pub stop: Arc<AtomicBool>,
    pub flush_age: Duration,
}

/// The part of a lane that the source hands packets to.
pub(crate) struct Fill {
    pub pool: Pool,
    /// Part of the pool on the lane's node.
    pub near: usize,
    pub jobs: Jobs,
    pub hand: Hand,
    pub snaplen_bytes: u32,
    pub filter: Option<Filter>,
    pub vxlan_ports: VxlanPorts,
    pub duplicates: Option<Arc<Seen>>,
    pub duplicates_marked: u64,
    pub clock: Arc<dyn Clock>,
    pub pen: LaneSide,
    pub shared: Arc<LaneShared>,
    pub times: Arc<BufferTimes>,
    pub streams: Vec<Stream>,
    /// Each interface that packets are stored under, its stream, and its number in that stream's
    /// table.
    pub numbers: Vec<(Interface, usize, Option<u32>)>,
    /// For each interface of the source, where it is in `numbers`.
    pub places: Vec<Places>,
    /// Boxed, so that taking it out for a packet moves a pointer.
    pub stripper: Option<Box<Stripper>>,
    pub counts: LaneCounts,
    pub gaps: PendingGaps,
    pub starved: bool,
    /// Boxed for the same reason as the stripper. With policies it has the filter as well.
    pub policies: Option<Box<Policies>>,
    /// What rungs among them are entered by; `None` if there are none.
    pub pressure: Option<Pressure>,
    /// What the filter rejected.
    pub filtered: Tally,
    pub shed_told: u64,
}

/// Where a lane's full chunks go.
pub(crate) enum Hand {
    /// To the sealer's thread.
    Thread(Sender<Box<Job>>),
    /// The lane seals them itself.
    Own(Box<Sealer>),
}

/// Where an interface of the source is among those that packets are stored under.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    own: usize,
    /// Under its name with the link types that tunnels carry.
    ethernet: usize,
    raw: usize,
}

/// Packets of one link type.
pub(crate) struct Stream {
    link_type: LinkType,
    interfaces: Arc<Vec<Interface>>,
    program: Option<Program>,
    sequence: u64,
    current: Option<(Box<Job>, Instant)>,
}

impl Lane {
    /// Runs until the source ends or the pipeline stops, then flushes.
    pub(crate) fn run(mut self) {
        if let Hand::Own(sealer) = &mut self.fill.hand {
            sealer.set_table_aside();
        }
        self.fill.learn(self.source.interfaces());
        let mut draining_since = None;
        let mut rest = POLL_WAIT;
        loop {
            if self.stop.load(Ordering::Relaxed) && draining_since.is_none() {
                draining_since = Some(Instant::now());
            }
            let wait = if draining_since.is_some() { Duration::ZERO } else { rest };
            let polled_ns = self.fill.clock.unix_ns();
            let polled = self.source.poll(&mut self.fill, wait);
            self.count();
            self.fill.climb();
            self.fill.flush_aged(self.flush_age);
            self.fill.shared.polled_ns.store(polled_ns, Ordering::Release);
            self.fill.shared.rounds.fetch_add(1, Ordering::Relaxed);
            rest = POLL_WAIT.min(self.fill.seal_waiting());
            match polled {
                Ok(Polled::Packets(0)) => std::thread::sleep(STARVED_PAUSE.min(rest)),
                Ok(Polled::Packets(_)) => {}
                Ok(Polled::Interfaces) => {
                    self.fill.learn(self.source.interfaces());
                    self.fill.shared.set_report(self.source.report());
                }
                Ok(Polled::Gap(gap)) => self.fill.gap(gap),
                Ok(Polled::Idle) if draining_since.is_some() => break,
                Ok(Polled::Idle) => {}
                Ok(Polled::End) => break,
                Err(error) => {
                    self.fill.shared.fail(&error.to_string());
                    tracing::error!(lane = self.fill.shared.lane, "{error}");
                    if !self.source.is_live() {
                        break;
                    }
                    std::thread::sleep(POLL_WAIT);
                }
            }
            let replay = !self.source.is_live();
            let late =
                draining_since.is_some_and(|since| replay || since.elapsed() > DRAIN_TIME_MAX);
            if late {
                break;
            }
        }
        self.count();
        self.fill.end_policies();
        self.fill.flush_all();
        self.fill.shared.set_state(LaneState::Ended);
        if let Hand::Own(sealer) = self.fill.hand {
            sealer.finish();
        }
    }

    fn count(&mut self) {
        let counters = self.source.counters();
        let fill = &mut self.fill;
        fill.counts.received = counters.received;
        fill.counts.unreadable = counters.unreadable;
        fill.shared.count(&counters);
        if let Some(policies) = &fill.policies {
            policies.publish(&fill.shared.policies);
        }
        fill.pen.publish(&fill.counts);
        let stripped = fill.stripper.as_ref().map_or([0; 3], |stripper| stripper.counts());
        fill.shared.duplicates.store(fill.duplicates_marked, Ordering::Relaxed);
        fill.shared.decap.publish(stripped, counters.truncated_mirror);
        let state = self.source.state();
        let (new, absent_since_ns) = match state {
            SourceState::InterfaceDown { since_ns } => (LaneState::InterfaceDown, Some(since_ns)),
            SourceState::Waiting { since_ns } => (LaneState::Waiting, Some(since_ns)),
            SourceState::Running if fill.starved => (LaneState::Starved, None),
            SourceState::Running => (LaneState::Running, None),
            SourceState::Ended => (LaneState::Ended, None),
        };
        let is_absent = |state| matches!(state, LaneState::InterfaceDown | LaneState::Waiting);
        let was_absent = is_absent(fill.shared.source_state());
        if let Some(from_ns) = absent_since_ns
            && !was_absent
        {
            // Told at once and left open; the source tells it again, with its end, when the
            // interface or the next sender is there.
            let cause = Cause::InterfaceDown;
            let gap = fill.counted(GapInfo { cause, from_ns, until_ns: None, packets: None });
            fill.gaps.add(gap);
        }
        if was_absent != absent_since_ns.is_some() {
            // An interface may come back with other offloads than before.
            fill.shared.set_report(self.source.report());
        }
        fill.shared.set_state(new);
    }
}

impl PacketSink for Fill {
    #[inline]
    fn packet(&mut self, packet: &Packet<'_>) -> ControlFlow<()> {
        match self.stripper.take() {
            None => self.append(packet, &Piece::whole(packet)),
            Some(stripper) => self.strip(stripper, packet),
        }
    }
}

impl Fill {
    /// Appends what is inside of a packet.
    #[inline(never)]
    fn strip(&mut self, mut stripper: Box<Stripper>, packet: &Packet<'_>) -> ControlFlow<()> {
        let own = self.places.get(packet.interface as usize).map(|places| places.own);
        let link = own.map_or(LinkType::RAW, |own| self.numbers[own].0.link_type);
        let flow = stripper.strip(link, packet, |piece| {
            let flow = self.append(packet, piece);
            (flow, flow.is_continue())
        });
        self.stripper = Some(stripper);
        flow
    }

    /// Inlined into each caller, so that the piece stays in registers. Copied into memory it was
    /// read back wider than it had been written, and such a load waits until every store before
    /// it has reached the cache: those of the packet before, to a chunk that is not there yet.
    /// That took a fifth of a lane's time.
    #[inline(always)]
    fn append(&mut self, packet: &Packet<'_>, piece: &Piece<'_>) -> ControlFlow<()> {
        let Some((stream, number)) = self.number(packet.interface as usize, piece.link) else {
            // The source promises to announce interfaces first; a packet of an unknown one is not
            // guessed at.
            return ControlFlow::Break(());
        };
        // The reader of files bounds options to a small part of a chunk, so data always has room
        // beside them.
        let Beside { head, outer, .. } = piece.beside;
        let mut snaplen_bytes = self.snaplen_bytes;
        if let Some(policies) = &mut self.policies {
            let link = self.streams[stream].link_type;
            let Piece { data, vlan, wire_len, .. } = *piece;
            let ts_ns = packet.ts_ns;
            match policies.judge(&Subject { stream, link, head, data, vlan, wire_len, ts_ns }) {
                Verdict::Kept { snaplen_bytes: cut_to } => {
                    snaplen_bytes = cut_to.min(snaplen_bytes)
                }
                Verdict::Shed => {
                    self.counts.shed += 1;
                    return ControlFlow::Continue(());
                }
            }
        }
        let (fingerprint, duplicate_ns) = match self.duplicates.as_deref() {
            None => (None, None),
            Some(seen) => {
                let link = self.streams[stream].link_type;
                let hash = seen.fingerprint(link, head, piece.data, piece.wire_len);
                (Some(hash), seen.distance_ns(hash, packet.ts_ns))
            }
        };
        let beside = Beside { head, outer, duplicate_ns };
        let beside_bytes = BLOCK_BESIDE_BYTES + packet.options.len() + beside.options_bytes();
        let room_bytes = (PACKETS_END - HEADER_BYTES).saturating_sub(beside_bytes) & !3;
        let tag_bytes = if piece.vlan.is_some() { 4 } else { 0 };
        let before_bytes = tag_bytes + head.len();
        let keep = (snaplen_bytes as usize).min(room_bytes).saturating_sub(before_bytes);
        let data = &piece.data[..piece.data.len().min(keep)];
        let parts = EpbParts {
            interface_id: number,
            ts_ns: packet.ts_ns,
            orig_len: piece.wire_len,
            data,
            vlan: piece.vlan.map(|tag| (VlanTag::OFFSET, tag.bytes())),
            flags: packet.flags,
            raw_options: packet.options,
        };
        if !self.room(stream, parts.block_bytes_with(&beside)) {
            self.starved = true;
            return ControlFlow::Break(());
        }
        let stream = &mut self.streams[stream];
        let Some((job, _)) = stream.current.as_mut() else { return ControlFlow::Break(()) };
        let Some(buf) = job.buf.as_mut() else { return ControlFlow::Break(()) };
        let Some(bytes) = put_epb_with(&mut buf[..PACKETS_END], job.end, &parts, &beside) else {
            return ControlFlow::Break(());
        };
        buf.prefetch_for_writing(job.end + PREFETCH_BYTES, bytes);
        let captured_bytes = head.len() + parts.captured_bytes();
        if let Some(program) = &stream.program {
            let from = job.end + EPB_DATA_AT;
            let stored = &buf[from..from + captured_bytes];
            if program.run(stored, piece.wire_len + tag_bytes as u32) == 0 {
                self.counts.shed += 1;
                self.filtered.note(packet.ts_ns);
                return ControlFlow::Continue(());
            }
        }
        job.epb_at.push(job.end as u32);
        job.end += bytes;
        job.captured_bytes += captured_bytes as u64;
        let (min_ns, max_ns) = job.times_ns.unwrap_or((u64::MAX, 0));
        job.times_ns = Some((min_ns.min(packet.ts_ns), max_ns.max(packet.ts_ns)));
        stream.sequence += 1;
        self.counts.appended += 1;
        let is_cut = data.len() < piece.data.len();
        self.counts.cut += u64::from(is_cut);
        if let Some(policies) = &mut self.policies {
            policies.stored(piece.wire_len, is_cut);
        }
        // Only now: a packet that was refused comes again, and is no copy of itself.
        match (&self.duplicates, fingerprint) {
            (Some(_), _) if duplicate_ns.is_some() => self.duplicates_marked += 1,
            (Some(seen), Some(hash)) => seen.note(hash, packet.ts_ns),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Offset of the data in an Enhanced Packet Block.
const EPB_DATA_AT: usize = 28;

impl Fill {
    /// Sorts the source's interfaces into streams.
    fn learn(&mut self, interfaces: &[Interface]) {
        for interface in &interfaces[self.places.len()..] {
            let mut interface = interface.clone();
            if self.vxlan_ports != VxlanPorts::USUAL {
                interface.vxlan_ports = self.vxlan_ports;
            }
            let own = self.describe(&interface);
            let mut places = Places { own, ethernet: own, raw: own };
            if self.stripper.is_some() {
                let carried =
                    [(LinkType::ETHERNET, &mut places.ethernet), (LinkType::RAW, &mut places.raw)];
                for (link_type, place) in carried {
                    if link_type != interface.link_type {
                        *place = self.describe(&Interface { link_type, ..interface.clone() });
                    }
                }
            }
            self.places.push(places);
        }
    }

    /// Adds an interface that packets are stored under.
    fn describe(&mut self, interface: &Interface) -> usize {
        let link_type = interface.link_type;
        let known = self.streams.iter().position(|stream| stream.link_type == link_type);
        let stream = known.unwrap_or_else(|| {
            if let Some(policies) = &mut self.policies {
                policies.learn(link_type);
            }
            self.streams.push(Stream {
                link_type,
                interfaces: Arc::new(Vec::new()),
                program: self.filter.as_ref().and_then(|compile| compile(link_type)),
                sequence: 0,
                current: None,
            });
            self.streams.len() - 1
        });
        self.numbers.push((interface.clone(), stream, None));
        self.assign(self.numbers.len() - 1);
        self.numbers.len() - 1
    }

    /// Stream of a source's interface and its number there; `link` is the link type that a packet
    /// has without its outer headers.
    #[inline]
    fn number(&mut self, interface: usize, link: Option<LinkType>) -> Option<(usize, u32)> {
        let places = self.places.get(interface)?;
        let at = match link {
            None => places.own,
            Some(LinkType::RAW) => places.raw,
            Some(_) => places.ethernet,
        };
        match self.numbers.get(at)? {
            (_, stream, Some(number)) => Some((*stream, *number)),
            (_, stream, None) => Some((*stream, self.assign(at))),
        }
    }

    /// Gives an interface a number in its stream's table. When a segment cannot describe more, a
    /// new table begins and the interfaces of the old one get a number again when they speak again.
    fn assign(&mut self, interface: usize) -> u32 {
        let (description, at, _) = self.numbers[interface].clone();
        let known = self.streams[at].interfaces.iter().position(|known| *known == description);
        let number = known.unwrap_or_else(|| {
            let mut table = self.streams[at].interfaces.to_vec();
            if table.len() == SEGMENT_INTERFACES_MAX {
                self.hand_over(at);
                table.clear();
                for (_, stream, number) in &mut self.numbers {
                    if *stream == at {
                        *number = None;
                    }
                }
            }
            table.push(description);
            self.streams[at].interfaces = Arc::new(table);
            self.streams[at].interfaces.len() - 1
        }) as u32;
        self.numbers[interface].2 = Some(number);
        number
    }

    /// Makes sure that the stream's current chunk has room for a block; `false` if no chunk is
    /// free.
    #[inline]
    fn room(&mut self, stream: usize, block_bytes: usize) -> bool {
        if let Some((job, _)) = &self.streams[stream].current {
            let same_table = Arc::ptr_eq(&job.interfaces, &self.streams[stream].interfaces);
            if job.end + block_bytes <= PACKETS_END && same_table {
                return true;
            }
            self.hand_over(stream);
        }
        self.begin(stream)
    }

    fn begin(&mut self, at: usize) -> bool {
        let begin = Instant::now();
        let job = self.pool.take_near(self.near).and_then(|buf| self.jobs.take(buf));
        let Some(mut job) = job else { return false };
        note_since(&self.times.take, begin);
        let stream = &mut self.streams[at];
        job.link_type = stream.link_type;
        job.interfaces = Arc::clone(&stream.interfaces);
        job.first_sequence = stream.sequence;
        stream.current = Some((job, Instant::now()));
        true
    }

    fn hand_over(&mut self, at: usize) {
        let Some((mut job, _)) = self.streams[at].current.take() else { return };
        if self.counts.shed > self.shed_told {
            self.tell_shed();
        }
        for gap in self.gaps.take() {
            job.push_gap(Gap { sequence: self.streams[at].sequence, ..gap });
        }
        self.starved = false;
        let open = self.streams.iter().filter_map(|stream| stream.current.as_ref());
        job.open_since_ns = open.filter_map(|(open, _)| open.times_ns).map(|it| it.0).min();
        job.coarse = self.policies.as_ref().is_some_and(|policies| policies.is_coarse());
        job.received = self.counts.received;
        job.shed = self.counts.shed;
        job.dropped = self.counts.dropped;
        self.pen.publish(&self.counts);
        match &mut self.hand {
            Hand::Thread(sealer) => {
                // The channel has a place for every chunk there is; it refuses only when the
                // sealer is gone.
                let begin = Instant::now();
                let sent = sealer.try_send(job);
                note_since(&self.times.hand_over, begin);
                if sent.is_err() {
                    self.shared.fail("the sealing thread is gone");
                }
            }
            Hand::Own(sealer) => {
                sealer.push(job);
                sealer.advance(SEAL_CHUNKS_MAX);
            }
        }
    }

    /// What has become possible for a sealer of one's own since the last chunk: a segment is there,
    /// chunks came back. Gives the time after which to ask again.
    fn seal_waiting(&mut self) -> Duration {
        match &mut self.hand {
            Hand::Thread(_) => Duration::MAX,
            Hand::Own(sealer) => sealer.advance(SEAL_CHUNKS_MAX),
        }
    }

    fn tell_shed(&mut self) {
        self.shed_told = self.counts.shed;
        let now_ns = self.clock.unix_ns();
        if let Some(gap) = self.filtered.tell(None, now_ns) {
            self.gaps.add(gap);
        }
        if let Some(policies) = &mut self.policies {
            policies.tell(now_ns, |gap| self.gaps.add(gap));
        }
    }

    /// Enters and leaves rungs of the ladder.
    fn climb(&mut self) {
        let (Some(pressure), Some(policies)) = (&self.pressure, &mut self.policies) else { return };
        let now = pressure.on(&self.shared);
        policies.climb(now.largest(), self.clock.unix_ns(), |mark| self.gaps.add_mark(mark));
    }

    /// No more packets come: no rung stays entered.
    fn end_policies(&mut self) {
        if let Some(policies) = &mut self.policies {
            policies.end(self.clock.unix_ns(), |mark| self.gaps.add_mark(mark));
        }
    }

    /// Takes a gap that the source reports, counts it and keeps it for the next chunk.
    fn gap(&mut self, mut info: GapInfo) {
        if info.cause == Cause::RingOverflow && self.starved {
            info.cause = Cause::NoBuffer;
        }
        self.counts.dropped[info.cause.index()] += info.packets.unwrap_or(0);
        let gap = self.counted(info);
        self.gaps.add(gap);
        self.pen.publish(&self.counts);
    }

    /// A gap with what is lost to its cause so far.
    fn counted(&self, gap: GapInfo) -> Gap {
        let GapInfo { cause, from_ns, until_ns, packets } = gap;
        let cumulative = self.counts.dropped[cause.index()];
        let (sequence, policy, pressure) = (0, None, None);
        Gap { cause, from_ns, until_ns, packets, cumulative, sequence, policy, pressure }
    }

    /// Hands over chunks whose first packet is old enough, and gaps that wait without packets.
    fn flush_aged(&mut self, flush_age: Duration) {
        let policies_due = self.policies.as_ref().is_some_and(|policies| policies.is_due());
        let shed_due = policies_due || self.filtered.is_due();
        let due = (self.gaps.are_due(flush_age) || shed_due) && !self.streams.is_empty();
        if due && (self.streams[0].current.is_some() || self.begin(0)) {
            self.hand_over(0);
        }
        for at in 0..self.streams.len() {
            let current = self.streams[at].current.as_ref();
            if current.is_some_and(|(_, since)| since.elapsed() >= flush_age) {
                match current.is_some_and(|(job, _)| job.epb_at.is_empty()) {
                    // A filter rejected everything so far: an empty chunk is kept, not written.
                    true => continue,
                    false => self.hand_over(at),
                }
            }
        }
    }

    fn flush_all(&mut self) {
        let due = !self.gaps.is_empty() || self.counts.shed > self.shed_told;
        if due && !self.streams.is_empty() {
            while self.streams[0].current.is_none() && !self.begin(0) {
                // The chunks may all wait in the lane's own sealer.
                std::thread::sleep(STARVED_PAUSE.min(self.seal_waiting()));
            }
            self.hand_over(0);
        }
        for at in 0..self.streams.len() {
            match self.streams[at].current.as_ref().is_some_and(|(job, _)| !job.epb_at.is_empty()) {
                true => self.hand_over(at),
                false => {
                    if let Some((job, _)) = self.streams[at].current.take() {
                        self.jobs.put(job);
                    }
                }
            }
        }
        self.pen.publish(&self.counts);
    }
}
