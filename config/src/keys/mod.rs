//! The table of all keys: the only place that knows their kinds, defaults, ranges and meanings.
//!
//! A section of the file has a module here: what stands in `capture` is in `capture.rs`. Keys that
//! stand alone are beside the section whose matter they are: `key_file` in `store.rs`, the times
//! that packets wait in `buffer.rs`, `log` in `process.rs`.

mod api;
mod audit;
mod backup;
mod buffer;
mod capture;
mod cloud;
mod cloudwatch;
mod kms;
mod mirror_targets;
mod pcap_over_ip;
mod policies;
mod process;
mod replay;
mod retention;
mod snapshots;
mod store;
mod tier;

use std::time::Duration;

use wirevault_format::limits::{CHUNK_BYTES, SNAPLEN_MAX};

use crate::settings::Tunnel;
use crate::units::{duration_text, size_text};

/// Volumes of a store at most.
pub const VOLUMES_MAX: usize = 8;
/// Interfaces at most: a segment describes no more.
pub const INTERFACES_MAX: usize = wirevault_format::limits::SEGMENT_INTERFACES_MAX;
/// Bytes of an interface name at most. Source: IFNAMSIZ of linux/if.h, less the closing zero byte.
pub const INTERFACE_NAME_BYTES_MAX: usize = 15;
/// Lanes of one interface at most.
pub const LANES_PER_INTERFACE_MAX: u64 = 32;
/// A kernel ring is a multiple of this: the block size that a lane hands back to the kernel at
/// once.
pub const CAPTURE_RING_STEP_BYTES: u64 = 1 << 20;
/// UDP ports of VXLAN at most. A lane compares with each.
const VXLAN_PORTS_MAX: usize = 8;
/// Bytes of a path at most. Source: PATH_MAX of linux/limits.h, less the closing zero byte.
const PATH_BYTES_MAX: usize = 4095;
/// Bytes of a filter at most; tcpdump filters are a line or two.
const FILTER_BYTES_MAX: usize = 4096;
/// Highest CPU number. Source: the largest NR_CPUS of Linux is 8192.
pub(crate) const CPU_MAX: u16 = 8191;

/// One key of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Where it stands: names joined by dots, `[]` after the name of a list of sections.
    pub path: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// What holds without it.
    pub without: Without,
    /// A value for the example file; empty for sections. Equals the default where there is one.
    pub example: &'static str,
    /// Whether the example file sets it; otherwise it stands there with a `#` before it.
    pub shown: bool,
    /// What it means: full sentences.
    pub meaning: &'static str,
}

impl Key {
    /// The last part of the path.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// The path of the section it stands in; empty at the top. Ends with `[]` in a list of
    /// sections.
    pub fn parent(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }
}

/// What holds when a key is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// Absence is a fault.
    Fault,
    /// This value, written as in a file.
    Value(&'static str),
    /// Nothing in particular; the meaning says what.
    Nothing,
}

/// What a value is, and its range.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Kind {
    /// A mapping of further keys.
    Section,
    /// A list of at most so many mappings of further keys.
    Sections(usize),
    /// A list of at most so many values; one value alone may stand without the list.
    List(&'static Kind, usize),
    /// Bytes: least, most, and what it is a multiple of.
    Size {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
        /// The value is a multiple of this.
        step: u64,
    },
    /// A length of time.
    Duration {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// A share of something, `10%` for example: least and most.
    Percent {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A number.
    Count {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An absolute path of at most so many bytes.
    Path(usize),
    /// A word of at most so many bytes.
    Word(usize),
    /// A name the kernel accepts for a network interface.
    Interface,
    /// A tcpdump filter of at most so many bytes.
    Filter(usize),
    /// An IP address of this machine, or all of them, and a port.
    Address,
    /// A host and a TCP port.
    Endpoint,
    /// A user's or group's name or number.
    Principal,
    /// A CPU number, or a range of them such as `2-5`.
    Cpus,
    /// A name in a certificate, of at most so many bytes, behind the field that it stands in.
    CertificateName(usize),
}

impl Kind {
    /// What may stand there, for people.
    pub fn allowed(&self) -> String {
        match self {
            Self::Section => "a mapping of keys".to_owned(),
            Self::Sections(max) => format!("a list of 1 to {max} mappings of keys"),
            Self::List(item, max) => format!("one, or a list of up to {max}: {}", item.allowed()),
            Self::Size { min, max, step } => {
                let range = format!("{} to {}", size_text(*min), size_text(*max));
                match step {
                    1 => range,
                    step => format!("{range}, a multiple of {}", size_text(*step)),
                }
            }
            Self::Duration { min, max } => {
                format!("{} to {}", duration_text(*min), duration_text(*max))
            }
            Self::Percent { min, max } => format!("{min}% to {max}%"),
            Self::Count { min, max } => format!("{min} to {max}"),
            Self::Switch => "true, false".to_owned(),
            Self::Choice(names) => names.join(", "),
            Self::Path(max) => format!("an absolute path of at most {max} bytes"),
            Self::Word(max) => format!("a word of 1 to {max} bytes, no spaces"),
            Self::Interface => format!(
                "an interface name of 1 to {INTERFACE_NAME_BYTES_MAX} bytes, no space, `/` or `:`"
            ),
            Self::Filter(max) => format!("a tcpdump filter of at most {max} bytes"),
            Self::Address => "an IP address and a port".to_owned(),
            Self::Endpoint => "a host and a port".to_owned(),
            Self::Principal => "a name or a number".to_owned(),
            Self::Cpus => format!("a CPU number from 0 to {CPU_MAX}, or a range such as 2-5"),
            Self::CertificateName(_) => "cn:NAME, ou:NAME, san:NAME or issuer_ou:NAME".to_owned(),
        }
    }
}

const fn key(
    path: &'static str,
    kind: Kind,
    without: Without,
    example: &'static str,
    meaning: &'static str,
) -> Key {
    Key { path, kind, without, example, shown: true, meaning }
}

/// A key that the example file holds behind a `#`.
const fn hidden(key: Key) -> Key {
    Key { shown: false, ..key }
}

const fn size(min: u64, max: u64, step: u64) -> Kind {
    Kind::Size { min, max, step }
}

const fn millis(min: u64, max: u64) -> Kind {
    Kind::Duration { min: Duration::from_millis(min), max: Duration::from_millis(max) }
}

const PORT: Kind = Kind::Count { min: 1, max: u16::MAX as u64 };
const TUNNEL: Kind = Kind::Choice(Tunnel::NAMES);
/// All but VLAN tags, which every tool and every filter knows.
const TUNNELS_DEFAULT: &str = "[mpls, vxlan, geneve, gre, erspan, gtp_u, ip_in_ip]";
/// The assigned port, and Linux's older default.
const VXLAN_PORTS_DEFAULT: &str = "[4789, 8472]";

const DUPLICATES: &str = "`mark` tells second copies of a packet, as overlapping mirrors send \
     them, by a mark beside the packet. They are stored and found like all others, unless `query` \
     is asked to leave them out. Copies are equal from the IP header on, except for the hop limit; \
     other packets must be equal in every byte.";
const DUPLICATES_WINDOW: &str = "Longest time between two copies. A sender that repeats a packet \
     byte for byte sooner than this is taken for a mirror. The last 131,072 packets at most are \
     remembered, in 2 MiB.";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND_MS: u64 = 1000;
const DAY_MS: u64 = 24 * 3600 * SECOND_MS;

/// All keys by section, in the order of the example file. A section stands before its keys.
const SECTIONS: &[&[Key]] = &[
    store::KEYS,
    kms::KEYS,
    capture::KEYS,
    pcap_over_ip::KEYS,
    mirror_targets::KEYS,
    policies::KEYS,
    replay::KEYS,
    buffer::KEYS,
    retention::KEYS,
    tier::KEYS,
    audit::KEYS,
    snapshots::KEYS,
    cloudwatch::KEYS,
    backup::KEYS,
    cloud::KEYS,
    api::KEYS,
    process::KEYS,
];

/// All keys, one section behind the other.
pub static TABLE: &[Key] = &joined::<{ count() }>();

/// Keys of all sections.
const fn count() -> usize {
    let (mut count, mut section) = (0, 0);
    while section < SECTIONS.len() {
        count += SECTIONS[section].len();
        section += 1;
    }
    count
}

const fn joined<const COUNT: usize>() -> [Key; COUNT] {
    let mut all = [SECTIONS[0][0]; COUNT];
    let (mut at, mut section) = (0, 0);
    while section < SECTIONS.len() {
        let mut of_section = 0;
        while of_section < SECTIONS[section].len() {
            all[at] = SECTIONS[section][of_section];
            (at, of_section) = (at + 1, of_section + 1);
        }
        section += 1;
    }
    all
}

const _: () = assert!(SNAPLEN_MAX as u64 == 256 * KIB, "the default snaplen is the largest");
const _: () = assert!(4 * CHUNK_BYTES as u64 == MIB, "`buffer.size` names what a lane needs");

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::Without::{Nothing, Value};
    use super::*;

    #[test]
    fn paths_are_unique_and_sections_come_first() {
        let mut seen = HashSet::from([""]);
        for key in TABLE {
            let parent = key.parent();
            let section = parent.strip_suffix("[]").unwrap_or(parent);
            assert!(seen.contains(section), "{}: its section comes later", key.path);
            assert!(seen.insert(key.path), "{} is there twice", key.path);
            let list = TABLE.iter().find(|other| other.path == section);
            let is_list = list.is_some_and(|key| matches!(key.kind, Kind::Sections(_)));
            assert_eq!(parent.ends_with("[]"), is_list, "{}", key.path);
        }
    }

    #[test]
    fn the_example_shows_the_default() {
        for key in TABLE {
            if let Value(default) = key.without {
                assert_eq!(default, key.example, "{}", key.path);
            }
            assert!(key.meaning.ends_with('.'), "{}: a sentence ends with a period", key.path);
            let is_section = matches!(key.kind, Kind::Section | Kind::Sections(_));
            assert_eq!(is_section, key.example.is_empty(), "{}", key.path);
            assert!(!is_section || key.without == Nothing, "{}", key.path);
        }
    }
}
