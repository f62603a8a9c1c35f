//! Interfaces: queues, interrupts, offloads, rings, their place on the bus, what they lost.

use std::path::Path;

use wirevault_daemon::input::cards::CardFacts;

use super::root::{Root, cpu_list};
use super::{Finding, Verdict, Wanted};
use crate::output::count_text;

/// Descriptors of a card's receive ring: 4096 packets are 3 ms at 10 Gbit/s of 800 B.
const RING_MIN: u32 = 1024;

/// Asks the card of an interface; nothing if there is none.
pub(super) type Ask<'a> = &'a dyn Fn(&str) -> Option<CardFacts>;

pub(super) fn check(root: &Root, wanted: &Wanted, ask: Ask<'_>) -> Vec<Finding> {
    let interfaces = match &wanted.interfaces {
        Some(interfaces) => interfaces.clone(),
        // Only hardware has a device behind it.
        None => {
            let names = root.names("sys/class/net").into_iter();
            let is_card = |name: &String| root.has(&format!("sys/class/net/{name}/device"));
            names.filter(is_card).map(|name| (name, 0)).collect()
        }
    };
    if interfaces.is_empty() {
        let configured = wanted.interfaces.is_some();
        let seen = if configured { "none is recorded" } else { "no card is here" };
        return vec![match configured {
            true => Finding::ok("interfaces", seen),
            false => Finding::warn("interfaces", seen, "name what to record in a configuration"),
        }];
    }
    let look = |(name, lanes): &(String, u16)| {
        Interface { root, name, folder: format!("sys/class/net/{name}") }.check(
            *lanes,
            &wanted.lane_cpus,
            ask,
        )
    };
    interfaces.iter().flat_map(look).collect()
}

struct Interface<'a> {
    root: &'a Root,
    name: &'a str,
    folder: String,
}

impl Interface<'_> {
    fn check(&self, lanes: u16, lane_cpus: &[u16], ask: Ask<'_>) -> Vec<Finding> {
        if !self.root.has(&self.folder) {
            let advice = "see `ip link`; a recorder that runs waits for it to come back";
            let missing = Finding::warn(self.name, "there is no such interface", advice);
            return vec![Finding { verdict: Verdict::Fail, ..missing }];
        }
        let mut findings = vec![self.state(), self.queues(lanes)];
        findings.extend(self.interrupts(lane_cpus));
        findings.extend(self.place());
        if let Some(card) = ask(self.name) {
            findings.push(self.offloads(&card.merging));
            findings.extend(card.ring.map(|(now, max)| self.ring(now, max)));
            findings.extend(self.losses(&card));
        }
        findings
    }

    fn file(&self, name: &str) -> Option<String> {
        self.root.text(&format!("{}/{name}", self.folder))
    }

    fn state(&self) -> Finding {
        let state = self.file("operstate").unwrap_or_else(|| "unknown".to_owned());
        let speed = self.file("speed").and_then(|speed| speed.parse::<u32>().ok());
        let speed = speed.map(|it| format!(", {it} Mbit/s")).unwrap_or_default();
        let advice = format!("ip link set {} up: nothing is recorded until then", self.name);
        Finding::judged(self.name, format!("{state}{speed}"), state == "down", &advice)
    }

    fn queues(&self, lanes: u16) -> Finding {
        let names = self.root.names(&format!("{}/queues", self.folder));
        let queues = names.iter().filter(|name| name.starts_with("rx-")).count();
        let mut seen = count_text(queues as u64, "receive queue");
        if lanes > 0 {
            seen += &format!(" for {}", count_text(lanes.into(), "lane"));
        }
        let advice = format!(
            "ethtool -L {} combined {lanes}: over AF_XDP a lane has queues of its own, and one \
             queue is one core's work in any case",
            self.name
        );
        Finding::judged(self.name, seen, queues < usize::from(lanes), &advice)
    }

    /// Which CPUs serve the card's interrupts. A lane's CPU should serve none.
    fn interrupts(&self, lane_cpus: &[u16]) -> Option<Finding> {
        let numbers = self.root.names(&format!("{}/device/msi_irqs", self.folder));
        let served = numbers.iter().filter_map(|number| {
            let effective = format!("proc/irq/{number}/effective_affinity_list");
            let allowed = format!("proc/irq/{number}/smp_affinity_list");
            let list = self.root.text(&effective).filter(|list| !list.is_empty());
            list.or_else(|| self.root.text(&allowed))
        });
        let mut cpus: Vec<u16> = served.flat_map(|list| cpu_list(&list)).collect();
        cpus.sort_unstable();
        cpus.dedup();
        if cpus.is_empty() {
            return None;
        }
        let on_lanes: Vec<_> = cpus.iter().filter(|cpu| lane_cpus.contains(cpu)).collect();
        let seen = format!("{} on CPUs {cpus:?}", count_text(numbers.len() as u64, "interrupt"));
        let (name, advice) = (self.name, "and keep irqbalance away from them");
        Some(if !on_lanes.is_empty() {
            let seen = format!("{seen}; lanes run on {on_lanes:?}");
            Finding::warn(
                name,
                seen,
                format!("move them by /proc/irq/N/smp_affinity_list, {advice}"),
            )
        } else {
            let alone = numbers.len() > 2 && cpus.len() == 1;
            let advice = format!("spread them by /proc/irq/N/smp_affinity_list, {advice}");
            Finding::judged(name, seen, alone, &advice)
        })
    }

    /// Whether the bus is as wide and as fast as the card could use.
    fn place(&self) -> Option<Finding> {
        bus(self.root, self.name, &format!("{}/device", self.folder))
    }

    fn losses(&self, card: &CardFacts) -> Vec<Finding> {
        let missed = (card.missed_packets > 0).then(|| {
            let missed = card.missed_packets;
            let seen = format!("the card had no room for {missed} packets since it is up");
            let advice = "larger receive rings (ethtool -G), more queues, or interrupts on more \
                          CPUs; such packets are in nobody's capture";
            Finding::warn(self.name, seen, advice)
        });
        let over = card.allowance_packets.iter().filter(|(_, packets)| *packets > 0);
        let over = over.map(|(limit, packets)| {
            let seen = format!("EC2 held back or dropped {packets} packets over its limit {limit}");
            let advice = "bw_ and pps want a larger instance or fewer sources, conntrack a \
                          security group that is open both ways";
            Finding::warn(self.name, seen, advice)
        });
        over.chain(missed).collect()
    }

    fn offloads(&self, merging: &[&str]) -> Finding {
        if merging.is_empty() {
            return Finding::ok(self.name, "receive offloads are off");
        }
        let advice = format!(
            "ethtool -K {} {} off: packets are merged before anyone can see them",
            self.name,
            merging.join(" off ")
        );
        Finding::warn(self.name, format!("{} on", merging.join(" and ")), advice)
    }

    fn ring(&self, now: u32, max: u32) -> Finding {
        let advice = format!("ethtool -G {} rx {max}: bridges moments without the CPU", self.name);
        let short = now < max && now < RING_MIN;
        Finding::judged(self.name, format!("receive ring {now} of {max}"), short, &advice)
    }
}

/// Link of a PCI device, compared with what it could have; nothing for what is on no such bus.
pub(super) fn bus(root: &Root, name: &str, device: &str) -> Option<Finding> {
    let read = |what: &str| root.text(&Path::new(device).join(what).to_string_lossy());
    let (speed, width) = (read("current_link_speed")?, read("current_link_width")?);
    let (speed_max, width_max) = (read("max_link_speed")?, read("max_link_width")?);
    // Virtual devices show widths of 0 and unknown speeds.
    let known = width != "0" && speed.starts_with(|first: char| first.is_ascii_digit());
    let slower = known && (speed != speed_max || width != width_max);
    let seen = format!("PCIe {speed} x{width}, at most {speed_max} x{width_max}");
    let advice = "another slot, or a setting of the firmware: see `lspci -vv`";
    known.then(|| Finding::judged(name, seen, slower, advice))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn root_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn look(files: &[(&str, &str)], lanes: u16, lane_cpus: &[u16]) -> Vec<Finding> {
        let dir = root_with(files);
        let wanted = Wanted {
            interfaces: Some(vec![("eth7".to_owned(), lanes)]),
            lane_cpus: lane_cpus.to_vec(),
            ..Wanted::nothing()
        };
        let card = |_: &str| {
            Some(CardFacts {
                ring: Some((256, 8192)),
                merging: vec!["gro"],
                missed_packets: 17,
                allowance_packets: vec![("pps".to_owned(), 3), ("bw_in".to_owned(), 0)],
            })
        };
        check(&Root::new(dir.path()), &wanted, &card)
    }

    fn told(findings: &[Finding], verdict: Verdict) -> String {
        let of = findings.iter().filter(|finding| finding.verdict == verdict);
        of.map(|finding| format!("{}: {} > {}\n", finding.about, finding.seen, finding.advice))
            .collect()
    }

    const CARD: &[(&str, &str)] = &[
        ("sys/class/net/eth7/operstate", "up\n"),
        ("sys/class/net/eth7/speed", "25000\n"),
        ("sys/class/net/eth7/queues/rx-0/x", ""),
        ("sys/class/net/eth7/queues/rx-1/x", ""),
        ("sys/class/net/eth7/queues/tx-0/x", ""),
        ("sys/class/net/eth7/device/msi_irqs/40", "msix"),
        ("sys/class/net/eth7/device/msi_irqs/41", "msix"),
        ("sys/class/net/eth7/device/current_link_speed", "8.0 GT/s PCIe\n"),
        ("sys/class/net/eth7/device/max_link_speed", "16.0 GT/s PCIe\n"),
        ("sys/class/net/eth7/device/current_link_width", "8\n"),
        ("sys/class/net/eth7/device/max_link_width", "8\n"),
        ("proc/irq/40/effective_affinity_list", "2\n"),
        ("proc/irq/41/smp_affinity_list", "3\n"),
    ];

    #[test]
    fn a_card_that_limits_is_told_in_each_respect() {
        let warned = told(&look(CARD, 4, &[3]), Verdict::Warn);
        for part in [
            "2 receive queues for 4 lanes > ethtool -L eth7 combined 4",
            "2 interrupts on CPUs [2, 3]; lanes run on [3] > move them",
            "PCIe 8.0 GT/s PCIe x8, at most 16.0 GT/s PCIe x8 > another slot",
            "no room for 17 packets",
            "dropped 3 packets over its limit pps > bw_ and pps want a larger instance",
            "gro on > ethtool -K eth7 gro off",
            "receive ring 256 of 8192 > ethtool -G eth7 rx 8192",
        ] {
            assert!(warned.contains(part), "{part}\nis not in\n{warned}");
        }
    }

    #[test]
    fn a_card_that_suffices_is_fine() {
        let findings = look(CARD, 2, &[0]);
        let fine = told(&findings, Verdict::Ok);
        for part in ["up, 25000 Mbit/s", "2 receive queues for 2 lanes", "2 interrupts on CPUs"] {
            assert!(fine.contains(part), "{part}\nis not in\n{fine}");
        }
    }

    #[test]
    fn an_interface_that_is_absent_fails() {
        let findings = look(&[], 1, &[]);
        assert_eq!(told(&findings, Verdict::Fail).lines().count(), 1, "{findings:?}");
    }
}
