//! Options of live capture over AF_XDP.

use super::bpf::Hook;
use super::program::UDP_PORTS_MAX;
use crate::error::CaptureError;

/// Frames of a queue at least: fewer do not bridge the time between two wake-ups, and would be less
/// than an arena has.
const FRAMES_MIN: usize = 128;
/// Frames of a queue at most, 4 GiB: the kernel's limit on a ring's entries is not far above.
const FRAMES_MAX: usize = 1 << 20;

/// Where the XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpHook {
    /// In the driver if it can, otherwise in the kernel's stack.
    #[default]
    Best,
    /// In the driver.
    Native,
    /// In the kernel's stack.
    Generic,
}

impl XdpHook {
    /// Places to try, the best first.
    pub(super) fn places(self) -> &'static [Hook] {
        match self {
            Self::Best => &[Hook::Native, Hook::Generic],
            Self::Native => &[Hook::Native],
            Self::Generic => &[Hook::Generic],
        }
    }
}

/// Options of live capture over AF_XDP.
#[derive(Debug, Clone)]
pub struct XdpOptions {
    /// Name of the interface.
    pub interface: String,
    /// Bytes of one lane's packet memory. It is shared out over the lane's queues, and each share
    /// rounded down to a power of two.
    pub ring_bytes: usize,
    /// Whether frames for other hosts are taken too.
    pub promiscuous: bool,
    /// What the lane cuts packets to; only described here. 0 means no limit.
    pub snaplen_bytes: u32,
    /// Takes only UDP packets to these ports, at most 16, and leaves the others to the machine. All
    /// packets are taken if there are none.
    pub udp_ports: Vec<u16>,
    /// Where the program runs.
    pub hook: XdpHook,
    /// Whether the program stamps packets. Otherwise they carry the time of their taking, cost some
    /// ten nanoseconds less, and lack the VLAN tags that the card took out.
    pub stamps: bool,
    /// Whether the card's own time stamps are asked for. They need a driver that tells a program of
    /// them, and stamps.
    pub hardware_time: bool,
    /// Whether the lane's system calls poll the card. It helps where interrupts are deferred
    /// (`napi_defer_hard_irqs`), and costs a core's attention.
    pub busy_poll: bool,
    /// Why this source and no other, for `status`.
    pub chosen: Option<String>,
}

impl XdpOptions {
    /// The usual options: 64 MiB, promiscuous, all packets, the best hook.
    pub fn new(interface: impl Into<String>) -> Self {
        Self {
            interface: interface.into(),
            ring_bytes: 64 << 20,
            promiscuous: true,
            snaplen_bytes: 0,
            udp_ports: Vec::new(),
            hook: XdpHook::Best,
            stamps: true,
            hardware_time: false,
            busy_poll: false,
            chosen: None,
        }
    }

    /// Frames of each of `queues` queues.
    pub(super) fn frames(&self, queues: usize, frame_bytes: usize) -> usize {
        let share = self.ring_bytes / frame_bytes / queues.max(1);
        let rounded = share.checked_ilog2().map_or(0, |log| 1 << log);
        rounded.clamp(FRAMES_MIN, FRAMES_MAX)
    }

    pub(super) fn check(&self, lanes: usize) -> Result<(), CaptureError> {
        let wrong = |name, value: String, rule| Err(CaptureError::Option { name, value, rule });
        if lanes == 0 {
            return wrong("lanes", "0".to_owned(), "at least one lane is needed");
        }
        if self.udp_ports.len() > UDP_PORTS_MAX {
            let count = format!("a list of {}", self.udp_ports.len());
            return wrong("udp_ports", count, "at most 16 ports can be told apart");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_out_in_powers_of_two() {
        let mut options = XdpOptions::new("x");
        let frames = |queues| options.frames(queues, 4096);
        assert_eq!((frames(1), frames(2), frames(3)), (16384, 8192, 4096));
        assert_eq!(options.frames(1, 2048), 32768);
        options.ring_bytes = 1;
        assert_eq!(options.frames(8, 2048), FRAMES_MIN);
        options.ring_bytes = usize::MAX;
        assert_eq!(options.frames(1, 2048), FRAMES_MAX);
    }

    #[test]
    fn impossible_options_are_refused() {
        let options = XdpOptions { udp_ports: vec![1; 17], ..XdpOptions::new("x") };
        let error = options.check(1).unwrap_err().to_string();
        assert!(error.contains("a list of 17") && error.contains("16"), "{error}");
        assert!(XdpOptions::new("x").check(0).is_err());
    }
}
