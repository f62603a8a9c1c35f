//! What is known of an interface that packets came from.

use crate::LinkType;

/// One capture interface, as an Interface Description Block tells of it.
///
/// Source: pcapng, section 4.2 "Interface Description Block".
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Interface {
    /// Name of the device (`if_name`); a classic pcap file has none.
    pub name: Option<String>,
    /// Description (`if_description`).
    pub description: Option<String>,
    /// Link-layer header type.
    pub link_type: LinkType,
    /// Bytes the interface was asked to keep of each packet; 0 means no limit.
    pub snaplen_bytes: u32,
    /// Capture filter (`if_filter`, filter string).
    pub filter: Option<String>,
    /// Hardware (`if_hardware`).
    pub hardware: Option<String>,
    /// Operating system of the capturing machine (`if_os`).
    pub os: Option<String>,
    /// What stamped the packets: `software`, `hardware`, `ring`, or nothing if a file does not say.
    pub clock: Option<String>,
    /// UDP ports that were taken for VXLAN's when the packets were indexed.
    pub vxlan_ports: VxlanPorts,
}

/// UDP destination ports of VXLAN, as the walk through a frame's headers takes them.
///
/// They are told with the interface, so that whoever reads the packets later finds the same flows
/// in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VxlanPorts([u16; VxlanPorts::MAX]);

impl VxlanPorts {
    /// Ports at most: a lane compares each datagram's with all of them at once.
    pub const MAX: usize = 8;
    /// The assigned port, and Linux's older default.
    pub const USUAL: Self = Self([4789, 8472, 0, 0, 0, 0, 0, 0]);

    /// These ports; [`Self::MAX`] of them count, and 0 is none.
    pub fn new(ports: &[u16]) -> Self {
        let mut list = Self([0; Self::MAX]);
        let wanted = ports.iter().filter(|port| **port != 0);
        for (place, port) in list.0.iter_mut().zip(wanted) {
            *place = *port;
        }
        list
    }

    /// Whether a datagram to this port may hold VXLAN.
    #[inline(always)]
    pub fn contains(&self, port: u16) -> bool {
        // Unused places hold 0, which no datagram is sent to.
        port != 0 && self.0.contains(&port)
    }

    /// The ports.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.into_iter().filter(|port| *port != 0)
    }
}

impl Default for VxlanPorts {
    fn default() -> Self {
        Self::USUAL
    }
}

impl Interface {
    /// An interface of which nothing but the link type is known.
    pub fn unnamed(link_type: LinkType) -> Self {
        Self {
            name: None,
            description: None,
            link_type,
            snaplen_bytes: 0,
            filter: None,
            hardware: None,
            os: None,
            clock: None,
            vxlan_ports: VxlanPorts::USUAL,
        }
    }
}
