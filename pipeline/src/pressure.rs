//! How much pressure there is on a lane, and what it comes from.
//!
//! Three things say, before packets are lost, that they soon will be. Each is a share from 0 to 1,
//! and the pressure is the largest:
//!
//! | cause | share |
//! |---|---|
//! | `buffer` | chunks in use, of all there are. When none is free, packets are lost |
//! | `queue` | how much later than it should the device of the lane's segment is with the oldest chunk that it was given, of the time after which it counts as stalled. What a crash would take |
//! | `disk` | 1 while no segment can be opened for the lane: no volume has room, or none takes writes. Then nothing leaves the buffer |
//!
//! A large buffer hides a slow device for long: its queue tells of it while nine tenths of the
//! chunks are still free. A lane looks at its own device only: where there are several, others
//! take the segments of one that is late, and no packet need be left out for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use wirevault_buffer::Pool;
use wirevault_format::PressureCause;

use crate::status::LaneShared;
use crate::writer::WriterShared;

/// Shares by cause, from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Shares([f64; PressureCause::ALL.len()]);

impl Shares {
    /// Shares in the order of [`PressureCause::ALL`].
    pub fn new(shares: [f64; PressureCause::ALL.len()]) -> Self {
        Self(shares)
    }

    /// The share of one cause.
    pub fn of(&self, cause: PressureCause) -> f64 {
        self.0[cause.index()]
    }

    /// The pressure, and what it comes from: of equal causes the one that is closest to a loss.
    pub fn largest(&self) -> (f64, PressureCause) {
        let shares = PressureCause::ALL.map(|cause| (self.of(cause), cause));
        shares.into_iter().fold((0.0, PressureCause::Buffer), |largest, share| {
            if share.0 > largest.0 { share } else { largest }
        })
    }

    /// That with the larger pressure.
    pub(crate) fn larger(self, other: Self) -> Self {
        if other.largest().0 > self.largest().0 { other } else { self }
    }
}

/// Reads the pressure. Takes no lock.
#[derive(Clone)]
pub(crate) struct Pressure {
    pool: Pool,
    /// By volume.
    writers: Arc<[Arc<WriterShared>]>,
    stall: Duration,
}

impl Pressure {
    pub(crate) fn new(pool: Pool, writers: Vec<Arc<WriterShared>>, stall: Duration) -> Self {
        Self { pool, writers: writers.into(), stall }
    }

    /// The pressure on a lane.
    pub(crate) fn on(&self, lane: &LaneShared) -> Shares {
        let late_ns = |writer: &Arc<WriterShared>| writer.queue_ns.load(Ordering::Relaxed);
        let late_ns = self.writers.get(lane.volume()).map_or(0, late_ns);
        let queue = late_ns as f64 / self.stall.as_nanos().max(1) as f64;
        let disk = f64::from(u8::from(lane.is_blocked()));
        Shares([self.pool.pressure(), queue.min(1.0), disk])
    }
}

#[cfg(test)]
mod tests {
    use wirevault_buffer::{Arena, ArenaOptions, Hugepages};
    use wirevault_capture::SourceReport;

    use super::*;

    #[test]
    fn the_largest_cause_is_the_pressure_and_is_named() {
        let arena = ArenaOptions { bytes: 4 << 20, hugepages: Hugepages::Off, numa_node: None };
        let pool = Pool::new(Arena::new(arena).unwrap());
        let writers: Vec<_> = (0..2).map(|_| Arc::<WriterShared>::default()).collect();
        let pressure = Pressure::new(pool.clone(), writers.clone(), Duration::from_secs(10));
        let (kind, name, clocks, notes) = ("test", String::new(), Vec::new(), Vec::new());
        let report = SourceReport { kind, name, fanout: None, ring_bytes: 0, clocks, notes };
        let lane = LaneShared::new(0, None, report, Vec::new());
        assert_eq!(pressure.on(&lane).largest(), (0.0, PressureCause::Buffer));

        let _held: Vec<_> = (0..4).map(|_| pool.take().unwrap()).collect();
        writers[1].queue_ns.store(4_000_000_000, Ordering::Relaxed);
        assert_eq!(pressure.on(&lane).largest(), (0.25, PressureCause::Buffer), "no volume yet");
        lane.set_volume(0);
        assert_eq!(pressure.on(&lane).largest(), (0.25, PressureCause::Buffer), "of its own");
        lane.set_volume(1);
        assert_eq!(pressure.on(&lane).largest(), (0.4, PressureCause::Queue));
        writers[1].queue_ns.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(pressure.on(&lane).largest(), (1.0, PressureCause::Queue));
        lane.set_volume(0);
        lane.set_blocked(true);
        let shares = pressure.on(&lane);
        assert_eq!(shares.largest(), (1.0, PressureCause::Disk));
        assert_eq!(
            (shares.of(PressureCause::Buffer), shares.of(PressureCause::Queue)),
            (0.25, 0.0)
        );
        assert_eq!(Shares::default().larger(shares), shares);
        assert_eq!(shares.larger(Shares::default()), shares);
    }
}
