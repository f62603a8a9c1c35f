//! Identifiers: random, never reused, written in hexadecimal wherever a person sees them.

use std::fmt;
use std::str::FromStr;

/// A text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an identifier: {digits} hexadecimal digits are expected")]
pub struct ParseIdError {
    text: String,
    digits: usize,
}

macro_rules! id_128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Layout: 16 random bytes, shown as 32 lower-case hexadecimal digits.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let wrong = || ParseIdError { text: text.to_owned(), digits: 32 };
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(wrong());
                }
                u128::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_| wrong())
            }
        }
    };
}

id_128! {
    /// Names a store: all its volumes carry the same one.
    StoreId
}
id_128! {
    /// Names one volume of a store.
    VolumeId
}
id_128! {
    /// Names one use of a segment's place. Every life has a key of its own.
    LifeId
}

/// Names one start of the daemon, or one import.
///
/// Layout: 8 random bytes, shown as 16 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunId({self})")
    }
}

impl FromStr for RunId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseIdError { text: text.to_owned(), digits: 16 };
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| wrong())
    }
}

/// Link-layer header type of an interface.
///
/// Source: the LINKTYPE_ registry of tcpdump.org, as used in pcap and pcapng files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkType(pub u16);

impl LinkType {
    /// BSD loopback: four bytes of address family in the writer's byte order.
    pub const NULL: Self = Self(0);
    /// Ethernet.
    pub const ETHERNET: Self = Self(1);
    /// IPv4 or IPv6 with no link header.
    pub const RAW: Self = Self(101);
    /// OpenBSD loopback: four bytes of address family in network byte order.
    pub const LOOP: Self = Self(108);
    /// Linux cooked capture, version 1.
    pub const LINUX_SLL: Self = Self(113);
    /// Raw IPv4.
    pub const IPV4: Self = Self(228);
    /// Raw IPv6.
    pub const IPV6: Self = Self(229);
    /// Linux cooked capture, version 2.
    pub const LINUX_SLL2: Self = Self(276);
}

impl fmt::Display for LinkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NULL => f.write_str("NULL"),
            Self::ETHERNET => f.write_str("EN10MB"),
            Self::RAW => f.write_str("RAW"),
            Self::LOOP => f.write_str("LOOP"),
            Self::LINUX_SLL => f.write_str("LINUX_SLL"),
            Self::IPV4 => f.write_str("IPV4"),
            Self::IPV6 => f.write_str("IPV6"),
            Self::LINUX_SLL2 => f.write_str("LINUX_SLL2"),
            Self(other) => write!(f, "LINKTYPE {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_read_back_what_they_show() {
        let life = LifeId([0xab; 16]);
        assert_eq!(life.to_string().parse(), Ok(life));
        let run = RunId(0x0123_4567_89ab_cdef);
        assert_eq!(run.to_string().parse(), Ok(run));
    }

    #[test]
    fn signs_and_wrong_lengths_are_refused() {
        assert!("+123456789abcdef".parse::<RunId>().is_err());
        assert!("12".parse::<StoreId>().is_err());
    }
}
