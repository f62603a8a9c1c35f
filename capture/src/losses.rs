//! What a live source could not take: packets that its ring had no room for, and the time in which
//! its interface was down. Both become gaps for the lane.

use wirevault_format::Cause;

use crate::link;
use crate::source::{GapInfo, SourceState};

/// State of an interface, and gaps that were not handed out yet. Times are Unix nanoseconds.
#[derive(Debug)]
pub(crate) struct Losses {
    pub(crate) state: SourceState,
    /// Packets dropped since the source was opened.
    pub(crate) dropped: u64,
    /// When the kernel's counters were read last.
    pub(crate) read_ns: u64,
    /// When the interface was last seen to be up.
    pub(crate) up_ns: u64,
    /// Time of the last packet handed out.
    pub(crate) last_ts_ns: u64,
    overflow: Option<GapInfo>,
    outage: Option<GapInfo>,
}

impl Losses {
    /// Of an interface that is not attached yet.
    pub(crate) fn since(now_ns: u64) -> Self {
        Self {
            state: SourceState::InterfaceDown { since_ns: now_ns },
            dropped: 0,
            read_ns: now_ns,
            up_ns: now_ns,
            last_ts_ns: 0,
            overflow: None,
            outage: None,
        }
    }

    /// The interface is attached, its counters begin anew.
    pub(crate) fn attached(&mut self, now_ns: u64) {
        (self.read_ns, self.up_ns) = (now_ns, now_ns);
        self.state = SourceState::Running;
    }

    /// The next gap to hand out.
    pub(crate) fn take(&mut self) -> Option<GapInfo> {
        self.overflow.take().or_else(|| self.outage.take())
    }

    /// Books packets as dropped since the last reading.
    pub(crate) fn lose(&mut self, packets: u64, now_ns: u64) {
        if packets == 0 {
            return;
        }
        self.dropped += packets;
        let before = self.overflow.map_or(Some(0), |gap| gap.packets);
        self.overflow = Some(GapInfo {
            cause: Cause::RingOverflow,
            from_ns: self.overflow.map_or(self.read_ns, |gap| gap.from_ns),
            until_ns: Some(now_ns),
            packets: before.map(|before| before + packets),
        });
    }

    /// Packets may have been dropped since the last reading, and nobody can say how many.
    pub(crate) fn suspect(&mut self, now_ns: u64) {
        self.overflow.get_or_insert(GapInfo {
            cause: Cause::RingOverflow,
            from_ns: self.read_ns,
            until_ns: Some(now_ns),
            packets: None,
        });
    }

    /// The interface is down or gone.
    pub(crate) fn begin_outage(&mut self) {
        if self.state == SourceState::Running {
            let since_ns = self.up_ns.max(self.last_ts_ns);
            self.state = SourceState::InterfaceDown { since_ns };
        }
    }

    /// The interface is back, or was away without anybody's having seen it.
    pub(crate) fn end_outage(&mut self) {
        self.begin_outage();
        if let SourceState::InterfaceDown { since_ns } = self.state {
            let until_ns = link::now_ns();
            self.outage = Some(GapInfo {
                cause: Cause::InterfaceDown,
                // Packets that were still in the ring prove that it was up for longer.
                from_ns: since_ns.max(self.last_ts_ns).min(until_ns),
                until_ns: Some(until_ns),
                packets: None,
            });
        }
        self.state = SourceState::Running;
    }
}
