//! What `status` shows of a lane over AF_XDP.

use wirevault_buffer::Arena;

use super::XdpSource;
use super::attach::Hooked;
use super::bpf::Hook;
use super::take::Bound;
use crate::link;
use crate::port::offload_notes;

/// Bytes of a frame that packets do not get: XDP keeps them free before the packet.
const HEADROOM_BYTES: usize = 256;

impl XdpSource {
    /// Bytes of packet memory.
    pub(super) fn ring_bytes(&self) -> usize {
        self.attached.as_ref().map_or(0, |attached| {
            let queues = attached.queues.iter().map(|bound| &bound.queue);
            queues.map(|queue| queue.frames() as usize * queue.frame_bytes()).sum()
        })
    }

    /// What `status` shows: why this source, how it is attached, and what it cannot see.
    pub(super) fn all_notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.options.chosen.iter().cloned().collect();
        notes.extend(self.notes.iter().cloned());
        notes
    }

    pub(super) fn describe_attached(
        &self,
        hooked: &Hooked,
        bound: &[Bound],
        arena: &Arena,
        busy: bool,
    ) -> Vec<String> {
        let name = &self.options.interface;
        let zero_copy = bound.iter().filter(|bound| bound.binding.zero_copy).count();
        let hook = match hooked.hook {
            Hook::Native => "in the driver (native)",
            Hook::Generic => "in the kernel's stack (generic)",
        };
        let copies = match zero_copy {
            0 => "the kernel copies packets (no zero-copy)".to_owned(),
            count if count == bound.len() => "zero-copy".to_owned(),
            count => format!("zero-copy on {count} of its queues"),
        };
        let numbers: Vec<String> = bound.iter().map(|bound| bound.number.to_string()).collect();
        let (numbers, queues) = (numbers.join(", "), hooked.queues);
        let mut notes = vec![format!(
            "XDP program {hook}, {copies}, queues {numbers} of {queues}, {} pages",
            arena.report().pages
        )];
        notes.push(match &self.options.udp_ports[..] {
            [] => "all packets are taken away from this machine".to_owned(),
            ports => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                let ports = ports.join(", ");
                format!(
                    "only UDP packets to {ports} are taken, away from this machine; others stay \
                     with it, unrecorded"
                )
            }
        });
        notes.push("packets that this machine sends are not seen".to_owned());
        if self.options.stamps && !hooked.stamps {
            notes.push("times are of the taking: stamps need Linux 6.1".to_owned());
        }
        if let Some(bound) = bound.iter().find(|bound| !bound.binding.fragments) {
            notes.push(format!(
                "packets longer than {} bytes are dropped",
                bound.queue.frame_bytes() - HEADROOM_BYTES
            ));
        }
        if zero_copy > 0 {
            notes.push(format!(
                "what the card drops for want of frames only it counts (`ethtool -S {name}`)"
            ));
        }
        if self.options.busy_poll {
            let how = if busy { "on" } else { "refused by the kernel" };
            notes.push(format!("busy polling is {how}"));
        }
        if link::strips_vlan(&self.port.probe, name) == Some(true) {
            notes.push(match (hooked.card.vlan, &hooked.card.why_not) {
                (true, _) => {
                    "VLAN tags that the card takes out of frames are put back in".to_owned()
                }
                (false, why) => {
                    let why = why.as_ref().map_or(String::new(), |why| format!(": {why}"));
                    format!(
                        "rxvlan is on: VLAN tags that the card takes out of frames are \
                         lost{why} (`ethtool -K {name} rxvlan off` keeps them)"
                    )
                }
            });
        }
        if hooked.hook == Hook::Generic {
            notes.extend(offload_notes(&self.port.probe, name));
        }
        notes
    }
}
