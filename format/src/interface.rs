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
        }
    }
}
