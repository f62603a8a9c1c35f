//! Whether AF_XDP is better than a packet socket on an interface, and harmless.
//!
//! AF_XDP takes packets away: from the machine itself, and from every other program that looks at
//! the interface. It is chosen only where nobody misses them, and where the driver writes into our
//! memory itself. Where the kernel copies, it costs the lane more than a packet socket does: 7 % of
//! a core against 4 % at 1 million packets of 64 B a second, 7 % against 6 % at 200,000 of 1500 B.

use std::fs;

use super::facts::Facts;
use crate::error::CaptureError;
use crate::link;
use crate::port::socket_error;

const WHY_BETTER: &str = "its driver has zero-copy, it has no address, and nobody else uses it";

/// Which source is right for an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// AF_XDP; otherwise a packet socket.
    pub af_xdp: bool,
    /// Why, for people.
    pub why: String,
}

/// Chooses for an interface and that many lanes, from what is to be seen without changing anything.
/// An interface that is absent or down gets a packet socket.
///
/// Errors: no CAP_NET_RAW, or a kernel that does not answer.
pub fn choose(interface: &str, lanes: usize) -> Result<Choice, CaptureError> {
    let probe = link::open_socket().map_err(socket_error(interface, "opening"))?;
    let failed = |step| socket_error(interface, step);
    let link = link::link_by_name(&probe, interface).map_err(failed("looking it up"))?;
    let Some(link) = link.filter(|link| link.up) else {
        return Ok(Choice { af_xdp: false, why: "the interface was down".to_owned() });
    };
    let facts = Facts::ask(link.index).map_err(failed("asking about it"))?;
    let sight = Sight {
        ethernet: link.hardware == libc::ARPHRD_ETHER,
        addresses: link::addresses(interface).map_err(failed("asking for its addresses"))?,
        listeners: listeners(link.index),
        queues: link::receive_queues(&probe, interface),
        strips_vlan: link::strips_vlan(&probe, interface) == Some(true),
        facts,
    };
    Ok(sight.judge(lanes))
}

/// What is to be seen of an interface.
#[derive(Debug, Clone, Default)]
struct Sight {
    ethernet: bool,
    addresses: Vec<String>,
    /// Packet sockets of other programs that are bound to it.
    listeners: usize,
    queues: u32,
    strips_vlan: bool,
    facts: Facts,
}

impl Sight {
    fn judge(&self, lanes: usize) -> Choice {
        match self.against(lanes) {
            Some(why) => Choice { af_xdp: false, why },
            None => Choice { af_xdp: true, why: WHY_BETTER.to_owned() },
        }
    }

    /// The first thing that speaks against AF_XDP.
    fn against(&self, lanes: usize) -> Option<String> {
        let Self { facts, addresses, listeners, queues, .. } = self;
        let driver = facts.driver;
        let reasons = [
            (!self.ethernet, "it is no Ethernet interface".to_owned()),
            (facts.program.is_some(), "an XDP program is on it already".to_owned()),
            (!addresses.is_empty(), format!("it has the address {}", addresses.join(", "))),
            (facts.master.is_some(), "it is part of a bridge or bond".to_owned()),
            (*listeners > 0, format!("{listeners} packet sockets of others listen on it")),
            (driver.is_none(), "the kernel does not say what its driver can do".to_owned()),
            (driver.is_some_and(|it| !it.native), "its driver has no native XDP".to_owned()),
            (
                driver.is_some_and(|it| !it.zero_copy),
                "its driver has no zero-copy, and AF_XDP with copies costs more".to_owned(),
            ),
            (self.strips_vlan, "its card takes VLAN tags out (rxvlan is on)".to_owned()),
            (
                (*queues as usize) < lanes,
                format!("it has {queues} receive queues for {lanes} lanes"),
            ),
        ];
        reasons.into_iter().find(|(holds, _)| *holds).map(|(_, reason)| reason)
    }
}

/// Packet sockets bound to an interface. Those bound to none see all; they are not counted, because
/// every machine has some.
///
/// Source: packet(7): columns of /proc/net/packet, the fifth is the interface's index.
fn listeners(index: i32) -> usize {
    let text = fs::read_to_string("/proc/thread-self/net/packet").unwrap_or_default();
    count_listeners(&text, index)
}

fn count_listeners(table: &str, index: i32) -> usize {
    let rows = table.lines().skip(1);
    let indexes = rows.filter_map(|row| row.split_ascii_whitespace().nth(4));
    indexes.filter(|number| number.parse() == Ok(index)).count()
}

#[cfg(test)]
mod tests {
    use super::super::facts::Driver;
    use super::*;

    fn port() -> Sight {
        let driver = Some(Driver { native: true, zero_copy: true, ..Driver::default() });
        let facts = Facts { mtu: 1500, driver, ..Facts::default() };
        Sight { ethernet: true, queues: 2, facts, ..Sight::default() }
    }

    #[test]
    fn a_port_that_nobody_else_uses_is_taken_by_af_xdp() {
        let choice = port().judge(2);
        assert!(choice.af_xdp && choice.why.contains("zero-copy"), "{choice:?}");
    }

    #[test]
    fn each_reason_alone_is_enough_against_it() {
        let with = |change: &dyn Fn(&mut Sight)| {
            let mut sight = port();
            change(&mut sight);
            let choice = sight.judge(2);
            assert!(!choice.af_xdp, "{sight:?}");
            choice.why
        };
        let silent = Driver::default();
        let copying = Driver { native: true, ..Driver::default() };
        assert!(with(&|it| it.ethernet = false).contains("Ethernet"));
        assert!(with(&|it| it.addresses.push("10.0.0.1".into())).contains("10.0.0.1"));
        assert!(with(&|it| it.facts.program = Some(7)).contains("program"));
        assert!(with(&|it| it.facts.master = Some(3)).contains("bridge"));
        assert!(with(&|it| it.listeners = 1).contains("1 packet sockets"));
        assert!(with(&|it| it.facts.driver = None).contains("driver"));
        assert!(with(&|it| it.facts.driver = Some(silent)).contains("native"));
        assert!(with(&|it| it.facts.driver = Some(copying)).contains("zero-copy"));
        assert!(with(&|it| it.strips_vlan = true).contains("rxvlan"));
        assert!(with(&|it| it.queues = 1).contains("1 receive queues for 2 lanes"));
    }

    #[test]
    fn packet_sockets_are_counted_by_their_interface() {
        let table = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n\
            0000000000000000 3      3    0003   2     1 0      0      12\n\
            0000000000000000 3      3    0003   0     1 0      0      13\n\
            0000000000000000 3      3    88cc   12    1 0      0      14\n";
        assert_eq!((count_listeners(table, 2), count_listeners(table, 12)), (1, 1));
        assert_eq!((count_listeners(table, 1), count_listeners("", 2)), (0, 0));
    }
}
