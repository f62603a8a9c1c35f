//! The network cards below the lanes: packets that were lost before anything of ours saw them.
//!
//! A thread asks once a second, because some drivers ask their card, which takes its time. What is
//! told is what was counted since the recorder started; a card that is set up anew begins at 0 and
//! goes on. Interfaces of a mirror target are looked for each time: on EC2 they may come later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wirevault_capture::nic::{CardLosses, Cards};
use wirevault_config::{Config, Input, LiveSource};
use wirevault_telemetry::metrics::{Counter, MetricsPage};

use crate::api::CardStatus;
use crate::duty::Duty;
use crate::server::App;

/// Time between two questions.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What a card is set to, and what it lost since it is up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardFacts {
    /// Descriptors of its receive ring, and how many it could have; nothing if its driver does not
    /// say.
    pub ring: Option<(u32, u32)>,
    /// What merges received packets before anyone can see them: `gro`, `lro`.
    pub merging: Vec<&'static str>,
    /// Packets that it had no room for.
    pub missed_packets: u64,
    /// Packets that EC2 queued or dropped, by the limit of the instance that was exceeded.
    pub allowance_packets: Vec<(String, u64)>,
}

/// Asks the card of this interface; nothing if there is none.
pub fn facts(interface: &str) -> Option<CardFacts> {
    let cards = Cards::new().ok()?;
    let losses = cards.losses(interface).ok()?;
    Some(CardFacts {
        ring: cards.receive_ring(interface),
        merging: cards.merging(interface),
        missed_packets: losses.missed,
        allowance_packets: losses.allowances,
    })
}

/// What is known of the cards that packets come in by.
#[derive(Debug, Default)]
pub(crate) struct CardWatch {
    ways: Vec<Way>,
    known: Mutex<BTreeMap<String, Known>>,
}

/// How packets come in.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    Interface(String),
    /// By whatever interface leads to this address.
    Address(IpAddr),
}

/// One card.
#[derive(Debug, Default)]
struct Known {
    last: Option<CardLosses>,
    since_start: CardLosses,
    why_not: Option<String>,
}

impl CardWatch {
    /// Of the interfaces of a configuration. Nobody is asked yet.
    pub(crate) fn of(config: &Config) -> Self {
        let live = match &config.input {
            Input::Live(live) => live.as_slice(),
            Input::Replay(_) => &[],
        };
        let ways = live.iter().filter_map(|live| match &live.source {
            LiveSource::Capture(capture) => Some(Way::Interface(capture.interface.clone())),
            LiveSource::MirrorTarget(target) => Some(Way::Address(target.listen.ip())),
            // TCP repeats what a card loses.
            LiveSource::PcapOverIp(_) => None,
        });
        Self { ways: ways.collect(), known: Mutex::default() }
    }

    /// What the API tells of them.
    pub(crate) fn status(&self) -> Vec<CardStatus> {
        let card = |(interface, known): (&String, &Known)| CardStatus {
            interface: interface.clone(),
            missed_packets: known.since_start.missed,
            allowance_packets: known.since_start.allowances.iter().cloned().collect(),
            why_not: known.why_not.clone(),
        };
        self.known().iter().map(card).collect()
    }

    /// Their counters. A card that never told anything has none.
    pub(crate) fn page(&self, page: &mut MetricsPage) {
        for (interface, known) in self.known().iter().filter(|(_, known)| known.last.is_some()) {
            let interface = ("interface", interface.as_str());
            page.counter(Counter::NicMissedPackets, &[interface], known.since_start.missed);
            for (limit, packets) in &known.since_start.allowances {
                let labels = [interface, ("limit", limit.as_str())];
                page.counter(Counter::NicAllowancePackets, &labels, *packets);
            }
        }
    }

    fn look(&self, cards: &Cards) {
        let names = self.ways.iter().flat_map(|way| match way {
            Way::Interface(name) => vec![name.clone()],
            Way::Address(address) => cards.behind(*address),
        });
        // Two inputs may have one card.
        for name in names.collect::<BTreeSet<_>>() {
            let answer = cards.losses(&name);
            let mut known = self.known();
            let known = known.entry(name).or_default();
            match answer {
                Ok(losses) => known.add(losses),
                Err(error) => known.why_not = Some(error.to_string()),
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the cards, if there are any.
pub(crate) fn watching(app: &App) -> Option<Duty> {
    if app.facts().cards.ways.is_empty() {
        return None;
    }
    let failed = |error| tracing::warn!("network cards are not asked what they lost: {error}");
    let (app, cards) = (app.clone(), Cards::new().map_err(failed).ok()?);
    Duty::start("cards", "asks network cards what they lost", move |_| {
        app.facts().cards.look(&cards);
        ASK_EVERY
    })
}

impl Known {
    /// Adds what was lost since the last answer; before the first it is not the recorder's matter.
    fn add(&mut self, now: CardLosses) {
        let first = self.last.is_none();
        let before = self.last.take().unwrap_or_default();
        let grown = |now: u64, before: u64| match first {
            true => 0,
            false => now.checked_sub(before).unwrap_or(now),
        };
        self.since_start.missed += grown(now.missed, before.missed);
        for (limit, count) in &now.allowances {
            let of = |it: &(String, u64)| it.0 == *limit;
            let was = before.allowances.iter().find(|it| of(it)).map_or(0, |it| it.1);
            match self.since_start.allowances.iter_mut().find(|it| of(it)) {
                Some((_, sum)) => *sum += grown(*count, was),
                None => self.since_start.allowances.push((limit.clone(), grown(*count, was))),
            }
        }
        (self.last, self.why_not) = (Some(now), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(missed: u64, pps: u64) -> CardLosses {
        CardLosses { missed, allowances: vec![("pps".to_owned(), pps)] }
    }

    #[test]
    fn only_what_was_lost_since_the_start_counts() {
        let mut known = Known::default();
        known.add(losses(1_000, 50));
        assert_eq!(known.since_start, losses(0, 0));
        known.add(losses(1_004, 50));
        known.add(losses(1_004, 57));
        assert_eq!(known.since_start, losses(4, 7));
        known.add(losses(2, 0));
        assert_eq!(known.since_start, losses(6, 7), "a card that began anew");
    }

    #[test]
    fn inputs_name_the_cards_and_the_page_has_their_counters() {
        let text = "store: /a\ncapture:\n  - interface: nope7\nmirror_targets:\n  \
                    - listen: 127.0.0.1:4789\n";
        let watch = CardWatch::of(&wirevault_config::parse(text, "t").unwrap());
        watch.look(&Cards::new().unwrap());
        let status = watch.status();
        let names: Vec<_> = status.iter().map(|card| card.interface.as_str()).collect();
        assert_eq!(names, ["lo", "nope7"]);
        assert!(status[0].why_not.is_none() && status[1].why_not.is_some(), "{status:?}");
        watch.known().entry("lo".to_owned()).or_default().since_start = losses(4, 7);
        let mut page = MetricsPage::new();
        watch.page(&mut page);
        let text = page.render();
        for line in [
            "wirevault_nic_missed_packets_total{interface=\"lo\"} 4",
            "wirevault_nic_allowance_packets_total{interface=\"lo\",limit=\"pps\"} 7",
        ] {
            assert!(text.lines().any(|got| got == line), "{line}\nis not in\n{text}");
        }
        assert!(!text.contains("nope7"), "what never answered has no counters: {text}");
    }
}
