//! What the kernel's netlink says of an interface: XDP programs, what its driver can do, and what
//! it is part of.
//!
//! Source: rtnetlink(7), linux/if_link.h, linux/genetlink.h, linux/netdev.h.

use std::io;

use crate::netlink::{ask, attributes, message, payload, put_attribute};

const IFINFO_BYTES: usize = 16;
const GENERIC_BYTES: usize = 4;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_XDP: u16 = 43;
const XDP_PROG_ID: u16 = 4;
/// Programs in the driver, in the stack, in the card.
const XDP_PROG_IDS: std::ops::RangeInclusive<u16> = 5..=7;
const GENL_CONTROL: u16 = 16;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
const NETDEV_DEV_GET: u8 = 1;
const NETDEV_IFINDEX: u16 = 1;
const NETDEV_FEATURES: u16 = 3;
const NETDEV_RX_METADATA: u16 = 5;
const METADATA_TIME: u64 = 1;
const METADATA_VLAN: u64 = 4;
const FEATURES_NATIVE: u64 = 1 | 2;
const FEATURE_ZERO_COPY: u64 = 8;

/// An interface as XDP sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// The XDP program that is on it already, by the kernel's number.
    pub(super) program: Option<u32>,
    /// Longest packet without its link header.
    pub(super) mtu: u32,
    /// Index of the bridge, bond or the like that it is part of.
    pub(super) master: Option<u32>,
    /// What its driver can do; `None` if the kernel does not say (before Linux 6.3).
    pub(super) driver: Option<Driver>,
}

/// What a driver says that it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Driver {
    /// Run XDP programs and redirect packets.
    pub(super) native: bool,
    /// Write packets into a socket's memory.
    pub(super) zero_copy: bool,
    /// Tell a program when the card took the packet.
    pub(super) card_time: bool,
    /// Tell a program which VLAN tag the card took out of the frame.
    pub(super) card_vlan: bool,
}

impl Facts {
    /// Asks for the interface with this index. Errors: the kernel's.
    pub(super) fn ask(index: i32) -> io::Result<Self> {
        let mut body = vec![0; IFINFO_BYTES];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let answer = ask(libc::NETLINK_ROUTE, &message(libc::RTM_GETLINK, &body))?;
        let mut facts = Self { driver: Driver::ask(index), ..Self::default() };
        for (kind, value) in attributes(payload(&answer, IFINFO_BYTES)?) {
            match kind {
                IFLA_MTU => facts.mtu = word(value).unwrap_or(0),
                IFLA_MASTER => facts.master = word(value),
                IFLA_XDP => facts.program = program(value),
                _ => {}
            }
        }
        Ok(facts)
    }
}

impl Driver {
    /// `None` if the kernel does not say.
    fn ask(index: i32) -> Option<Self> {
        let mut body = vec![CONTROL_GET_FAMILY, 1, 0, 0];
        put_attribute(&mut body, CONTROL_FAMILY_NAME, b"netdev\0");
        let family = message(GENL_CONTROL, &body);
        let answer = ask(libc::NETLINK_GENERIC, &family).ok()?;
        let mut answers = attributes(payload(&answer, GENERIC_BYTES).ok()?);
        let (_, id) = answers.find(|(kind, _)| *kind == CONTROL_FAMILY_ID)?;
        let id = u16::from_ne_bytes(*id.first_chunk()?);
        let mut body = vec![NETDEV_DEV_GET, 1, 0, 0];
        put_attribute(&mut body, NETDEV_IFINDEX, &index.to_ne_bytes());
        let answer = ask(libc::NETLINK_GENERIC, &message(id, &body)).ok()?;
        let answer = payload(&answer, GENERIC_BYTES).ok()?;
        let flags = |wanted| {
            let (_, flags) = attributes(answer).find(|(kind, _)| *kind == wanted)?;
            Some(u64::from_ne_bytes(*flags.first_chunk()?))
        };
        let features = flags(NETDEV_FEATURES)?;
        let metadata = flags(NETDEV_RX_METADATA).unwrap_or(0);
        Some(Self {
            native: features & FEATURES_NATIVE == FEATURES_NATIVE,
            zero_copy: features & FEATURE_ZERO_COPY != 0,
            card_time: metadata & METADATA_TIME != 0,
            card_vlan: metadata & METADATA_VLAN != 0,
        })
    }
}

fn program(attribute: &[u8]) -> Option<u32> {
    let ids = attributes(attribute).filter(|(kind, _)| {
        // With several programs there is no `XDP_PROG_ID`.
        *kind == XDP_PROG_ID || XDP_PROG_IDS.contains(kind)
    });
    ids.filter_map(|(_, id)| word(id)).find(|id| *id != 0)
}

fn word(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_where_there_are_any() {
        let mut program_attribute = Vec::new();
        put_attribute(&mut program_attribute, 2, &[1]);
        put_attribute(&mut program_attribute, 5, &42u32.to_ne_bytes());
        assert_eq!(program(&program_attribute), Some(42));
        assert_eq!(program(&[]), None);
    }

    #[test]
    fn the_loopback_interface_is_known() {
        let facts = Facts::ask(1).unwrap();
        assert!(facts.mtu > 1000, "{facts:?}");
        assert_eq!((facts.program, facts.master), (None, None));
        assert!(Facts::ask(i32::MAX).is_err());
    }
}
