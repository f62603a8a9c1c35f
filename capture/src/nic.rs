//! What network cards count themselves: packets that never reached the kernel, and those that EC2
//! held back.
//!
//! Nobody above the card sees these packets, so they are in no lane's books. The kernel has
//! counters that every driver keeps, and each driver has some of its own, by names of its own.
//!
//! Source: linux/if_link.h, `rtnl_link_stats64`; Documentation/networking/statistics.rst;
//! drivers/net/ethernet/*/, `ethtool -S`; Amazon EC2 User Guide, "Monitor network performance for
//! ENA settings".

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use crate::link;
use crate::netlink::{ask, attributes, message, payload};

/// Drivers' names for packets that found no room in the card's ring: of ena, Intel's, Mellanox's.
const MISSED: [&str; 4] =
    ["rx_overruns", "rx_missed_errors", "rx_out_of_buffer", "rx_no_dma_resources"];
/// What follows the name of a limit in the counters of ena.
const ALLOWANCE: &str = "_allowance_exceeded";

const RTM_GETSTATS: u16 = 94;
/// Number of the attribute; its bit in a request is one lower.
const STATS_LINK_64: u16 = 1;
/// `if_stats_msg`: family and padding, index, mask of attributes.
const IFSTATS_BYTES: usize = 12;

/// The cards of this thread's network namespace.
#[derive(Debug)]
pub struct Cards {
    /// Any socket will do.
    socket: OwnedFd,
}

/// What a card lost since it was set up. A driver may begin at 0 again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardLosses {
    /// Packets that found no room in the card's ring.
    pub missed: u64,
    /// Packets that EC2 queued or dropped, by the limit that was exceeded: `bw_in`, `bw_out`,
    /// `pps`, `conntrack`, `linklocal`. Empty on other cards.
    pub allowances: Vec<(String, u64)>,
}

impl Cards {
    /// Needs no privilege.
    ///
    /// # Errors
    /// There is no descriptor for it.
    pub fn new() -> io::Result<Self> {
        Ok(Self { socket: UnixDatagram::unbound()?.into() })
    }

    /// What this interface's card lost. The driver may take its time.
    ///
    /// # Errors
    /// There is no such interface, or it does not answer.
    pub fn losses(&self, interface: &str) -> io::Result<CardLosses> {
        let found = link::link_by_name(&self.socket, interface)?;
        let found = found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        let driver = link::statistics(&self.socket, interface)?;
        Ok(CardLosses::of(&driver, LinkCounters::ask(found.index)?))
    }

    /// Descriptors of an interface's receive ring, as it is and as long as it can be; nothing if
    /// its driver does not say.
    pub fn receive_ring(&self, interface: &str) -> Option<(u32, u32)> {
        link::receive_ring(&self.socket, interface).ok()
    }

    /// What merges received packets of one stream before anyone can see them: `gro`, `lro`.
    pub fn merging(&self, interface: &str) -> Vec<&'static str> {
        let offloads = link::receive_offloads(&self.socket, interface).into_iter();
        offloads.filter(|(_, on)| *on == Some(true)).map(|(name, _)| name).collect()
    }

    /// Interfaces that packets to this address come in by: those that have it, or all but loopback
    /// for an unspecified one.
    pub fn behind(&self, address: IpAddr) -> Vec<String> {
        let leads = |name: &String| match address.is_unspecified() {
            true => {
                let found = link::link_by_name(&self.socket, name).ok().flatten();
                found.is_some_and(|found| found.hardware != libc::ARPHRD_LOOPBACK)
            }
            false => link::addresses(name).is_ok_and(|its| its.contains(&address.to_string())),
        };
        let mut names = link::interface_names();
        names.retain(leads);
        names
    }
}

impl CardLosses {
    /// One thing may be counted under several names, so the largest of them counts.
    fn of(driver: &[(String, u64)], link: LinkCounters) -> Self {
        let allowance = |(name, count): &(String, u64)| {
            Some((name.strip_suffix(ALLOWANCE)?.to_owned(), *count))
        };
        let allowances: Vec<_> = driver.iter().filter_map(allowance).collect();
        // What others call dropped was received, and wanted by nobody; ena's card has no other name
        // for what it dropped itself.
        let dropped = if allowances.is_empty() { 0 } else { link.dropped };
        let named = driver.iter().filter(|(name, _)| MISSED.contains(&name.as_str()));
        let missed = named.map(|(_, count)| *count).chain([link.over, link.fifo, link.missed]);
        Self { missed: missed.fold(dropped, u64::max), allowances }
    }
}

/// Counters of received packets that every driver keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct LinkCounters {
    dropped: u64,
    over: u64,
    fifo: u64,
    missed: u64,
}

impl LinkCounters {
    /// Of the interface with this index. Errors: the kernel's; none in Linux 4.7 and later.
    fn ask(index: i32) -> io::Result<Self> {
        let mut body = [0; IFSTATS_BYTES];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body[8..].copy_from_slice(&(1u32 << (STATS_LINK_64 - 1)).to_ne_bytes());
        let answer = ask(libc::NETLINK_ROUTE, &message(RTM_GETSTATS, &body))?;
        let mut found = attributes(payload(&answer, IFSTATS_BYTES)?);
        let counters = found.find(|(kind, _)| *kind == STATS_LINK_64);
        let (_, counters) = counters.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (words, _) = counters.as_chunks::<8>();
        let at = |at: usize| words.get(at).map_or(0, |word| u64::from_ne_bytes(*word));
        Ok(Self { dropped: at(6), over: at(11), fifo: at(14), missed: at(15) })
    }
}

#[cfg(test)]
mod tests {
    use wirevault_testkit::net::Namespace;

    use super::*;

    /// Names of an ENA card with one queue as its driver lists them, most of the queue's left out.
    /// Source: amzn-drivers, kernel/linux/ena/ena_ethtool.c.
    const ENA: &str = "\
        tx_timeout: 0\n suspend: 0\n resume: 0\n wd_expired: 0\n interface_up: 1\n \
        interface_down: 0\n admin_q_pause: 0\n reset_fail: 0\n bw_in_allowance_exceeded: 17\n \
        bw_out_allowance_exceeded: 0\n pps_allowance_exceeded: 3\n \
        conntrack_allowance_exceeded: 0\n linklocal_allowance_exceeded: 0\n \
        conntrack_allowance_available: 136812\n queue_0_tx_cnt: 5\n queue_0_rx_cnt: 4242\n \
        queue_0_rx_empty_rx_ring: 2\n ena_admin_q_aborted_cmd: 0\n";

    fn recorded(text: &str) -> Vec<(String, u64)> {
        let line = |line: &str| {
            let (name, count) = line.trim().split_once(": ")?;
            Some((name.to_owned(), count.parse().ok()?))
        };
        text.lines().filter_map(line).collect()
    }

    #[test]
    fn limits_of_ec2_and_a_full_ring_are_told_apart() {
        let link = LinkCounters { dropped: 5, ..LinkCounters::default() };
        let losses = CardLosses::of(&recorded(ENA), link);
        assert_eq!(losses.missed, 5);
        let names: Vec<_> = losses.allowances.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["bw_in", "bw_out", "pps", "conntrack", "linklocal"]);
        assert_eq!(losses.allowances.iter().map(|(_, count)| count).sum::<u64>(), 20);
    }

    #[test]
    fn one_thing_under_several_names_is_counted_once() {
        let link = LinkCounters { dropped: 99, fifo: 2, missed: 9, ..LinkCounters::default() };
        let intel = recorded("rx_missed_errors: 9\nrx_no_dma_resources: 4\nrx_bytes: 700\n");
        assert_eq!(CardLosses::of(&intel, link).missed, 9);
        let none = recorded("peer_ifindex: 4\n");
        assert_eq!(CardLosses::of(&none, LinkCounters::default()), CardLosses::default());
    }

    #[test]
    fn an_interface_of_software_has_lost_nothing() {
        let cards = Cards::new().unwrap();
        assert_eq!(cards.losses("lo").unwrap(), CardLosses::default());
        let absent = cards.losses("nope0").unwrap_err();
        assert_eq!(absent.raw_os_error(), Some(libc::ENODEV));
        assert!(!cards.behind("0.0.0.0".parse().unwrap()).contains(&"lo".to_owned()));
    }

    #[test]
    fn the_kernel_tells_the_counters_of_a_driver_and_who_has_an_address() {
        let Some(ns) = Namespace::new() else { return };
        ns.add_veth("va", "vb");
        ns.ip(&["addr", "add", "192.0.2.1/24", "dev", "vb"]);
        let cards = Cards::new().unwrap();
        let counters = link::statistics(&cards.socket, "va").unwrap();
        let peer = counters.iter().find(|(name, _)| name == "peer_ifindex");
        let vb = link::link_by_name(&cards.socket, "vb").unwrap().unwrap();
        assert_eq!(peer.map(|(_, index)| *index), Some(vb.index as u64), "{counters:?}");
        assert_eq!(cards.losses("va").unwrap(), CardLosses::default());
        assert!(cards.merging("va").iter().all(|name| ["gro", "lro"].contains(name)));
        assert_eq!(cards.receive_ring("lo"), None);
        assert_eq!(cards.behind("192.0.2.1".parse().unwrap()), ["vb"]);
        assert_eq!(cards.behind("0.0.0.0".parse().unwrap()).len(), 2);
    }
}
