//! How many bytes each flow has sent, for a cutoff: a table of fixed size with full flow keys.
//!
//! A flow that is not in the table is as good as new: its packets are kept. When a bucket is full,
//! what was idle for long gives way, else the flow with the fewest bytes: so a flood of small flows
//! pushes out its own kind, and the long ones that a cutoff is for stay known.

use wirevault_packet::{Dissected, FlowKey};

/// Entries of a bucket.
const WAYS: usize = 4;
/// Buckets: 32,768 flows in 4.3 MiB, for each lane and cutoff. Long flows are few: one that sends
/// 1 MB/s or more is one of 3,750 at most at 30 Gbit/s.
const BUCKETS: usize = 1 << 13;
const _: () = assert!(BUCKETS.is_power_of_two());
/// A flow that was silent for so long begins anew: its ports may have another owner by now.
const IDLE_NS: u64 = 60_000_000_000;
/// TCP flags SYN and ACK. SYN alone begins a connection, whoever used its ports before.
const SYN_ACK: u8 = 0x12;
const SYN: u8 = 0x02;

/// Where a flow is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(usize);

/// The table of one cutoff.
pub(super) struct FlowBytes {
    /// Hashes beside the entries, so that a miss costs one line of the cache; 0 is empty.
    hashes: Vec<[u64; WAYS]>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    key: FlowKey,
    bytes: u64,
    ts_ns: u64,
}

impl FlowBytes {
    pub(super) fn new() -> Self {
        let empty = Entry { key: FlowKey::from_kept(&[]), bytes: 0, ts_ns: 0 };
        Self { hashes: vec![[0; WAYS]; BUCKETS], entries: vec![empty; BUCKETS * WAYS] }
    }

    /// The place of a packet's flow; a new one, with nothing sent, if it had none.
    pub(super) fn find(&mut self, packet: &Dissected, ts_ns: u64) -> Place {
        let hash = packet.hash.max(1);
        let bucket = hash as usize % BUCKETS;
        let places = bucket * WAYS..(bucket + 1) * WAYS;
        let of_flow = |(known, entry): (&u64, &Entry)| *known == hash && entry.key == packet.key;
        let entries = &self.entries[places.clone()];
        let known = self.hashes[bucket].iter().zip(entries).position(of_flow);
        let way = known.unwrap_or_else(|| {
            let worth = |entry: &Entry| if entry.is_idle(ts_ns) { 0 } else { entry.bytes };
            let least = (0..WAYS).min_by_key(|way| match self.hashes[bucket][*way] {
                0 => 0,
                _ => worth(&entries[*way]).saturating_add(1),
            });
            least.unwrap_or(0)
        });
        let entry = &mut self.entries[places.start + way];
        let begins = packet.tcp_flags & SYN_ACK == SYN;
        if known.is_none() || begins || entry.is_idle(ts_ns) {
            *entry = Entry { key: packet.key, bytes: 0, ts_ns };
            self.hashes[bucket][way] = hash;
        }
        entry.ts_ns = ts_ns;
        Place(places.start + way)
    }

    /// Bytes of its packets that were stored.
    pub(super) fn bytes(&self, place: Place) -> u64 {
        self.entries[place.0].bytes
    }

    /// A packet of the flow was stored.
    pub(super) fn add(&mut self, place: Place, wire_len: u32) {
        self.entries[place.0].bytes += u64::from(wire_len);
    }
}

impl Entry {
    /// Distance and not age: a clock that was set back leaves entries of its future.
    fn is_idle(&self, ts_ns: u64) -> bool {
        self.ts_ns.abs_diff(ts_ns) >= IDLE_NS
    }
}

#[cfg(test)]
mod tests {
    use wirevault_format::LinkType;
    use wirevault_packet::dissect;

    use super::*;

    const S: u64 = 1_000_000_000;

    /// TCP from 10.0.0.1 to 10.0.0.2, or back.
    fn packet(port: u16, flags: u8, back: bool) -> Dissected {
        let mut frame = vec![0; 54];
        frame[12] = 8;
        (frame[14], frame[23], frame[46], frame[47]) = (0x45, 6, 0x50, flags);
        let (a, b) = if back { (2, 1) } else { (1, 2) };
        frame[26..34].copy_from_slice(&[10, 0, 0, a, 10, 0, 0, b]);
        let ports = if back { [443, port] } else { [port, 443] };
        frame[34..36].copy_from_slice(&ports[0].to_be_bytes());
        frame[36..38].copy_from_slice(&ports[1].to_be_bytes());
        dissect(LinkType::ETHERNET, &frame)
    }

    #[test]
    fn both_directions_count_together_until_a_flow_begins_anew() {
        let mut flows = FlowBytes::new();
        let place = flows.find(&packet(1000, 0x10, false), S);
        flows.add(place, 600);
        let back = flows.find(&packet(1000, 0x10, true), 2 * S);
        assert_eq!((back, flows.bytes(back)), (place, 600));
        let other = flows.find(&packet(1001, 0x10, false), S);
        assert_eq!(flows.bytes(other), 0);
        let answered = flows.find(&packet(1000, SYN_ACK, true), 3 * S);
        assert_eq!(flows.bytes(answered), 600, "the answer to a SYN begins nothing");
        let begun = flows.find(&packet(1000, SYN, false), 3 * S);
        assert_eq!((begun, flows.bytes(begun)), (place, 0));
        flows.add(begun, 1);
        let late = flows.find(&packet(1000, 0x10, false), 3 * S + IDLE_NS);
        assert_eq!(flows.bytes(late), 0, "it was silent for long");
    }

    #[test]
    fn a_full_table_forgets_small_flows_and_keeps_the_long_one() {
        let mut flows = FlowBytes::new();
        let long = packet(1, 0x10, false);
        let place = flows.find(&long, S);
        flows.add(place, 1 << 20);
        // A bucket has four places; with a hundred flows for each nothing small is left in peace.
        for number in 0..(100 * BUCKETS) as u32 {
            let mut flood = packet(2, 0x10, false);
            flood.hash = u64::from(number) << 20 | (u64::from(number) % BUCKETS as u64);
            let place = flows.find(&flood, S);
            flows.add(place, 60);
        }
        let again = flows.find(&long, 2 * S);
        assert_eq!((again, flows.bytes(again)), (place, 1 << 20));
    }
}
