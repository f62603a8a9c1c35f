//! Which segments have to go, where to, and why: rules and a list of segments in, a plan out.
//! Nothing here reads or deletes anything.
//!
//! Rules are asked in the order of the configuration; for each segment the first one that matches
//! decides. A segment that no rule matches is kept: then only the quota takes it. A rule matches if
//! everything that it names does:
//!
//! | named | matches a segment |
//! |---|---|
//! | age | that was closed so long ago, by record time: an import of an old capture is not old |
//! | size | if those of the rule's other conditions that are younger, and it, take more bytes |
//! | interface | whose packets all came from that interface (delete), or some of them (keep, tier) |
//! | flows | whose packets all match the filter (delete), or may match it (keep, tier) |
//!
//! So whatever is not known for certain is kept. A rule that tiers passes over what the tier has
//! already, so that rules behind it decide when that is to go.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What becomes of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is deleted.
    #[default]
    Delete,
    /// It is moved to the object tier.
    Tier,
    /// No later rule deletes it. The quota still may.
    Keep,
}

/// A rule. Without conditions it matches every segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Name, for reasons.
    pub name: String,
    /// What becomes of the segments that match.
    pub action: Action,
    /// Closed at least so long ago.
    pub age: Option<Duration>,
    /// More bytes than these are there. Not to keep: what is kept for a size would go once others
    /// have gone.
    pub size_bytes: Option<u64>,
    /// Came from this interface.
    pub interface: Option<String>,
    /// Match this filter, in tcpdump's language.
    pub flows: Option<String>,
}

/// A closed segment, as far as rules ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Store-wide number: a larger one is younger.
    pub ordinal: u64,
    /// Life id, hex.
    pub life: String,
    /// When it was closed, Unix ns.
    pub closed_ns: u64,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Packets in it.
    pub packets: u64,
    /// Smallest and largest packet time, Unix ns.
    pub times_ns: Option<(u64, u64)>,
    /// What its packets came from; nothing if that cannot be read.
    pub interfaces: Option<Vec<String>>,
    /// The tier has a copy.
    pub tiered: bool,
}

/// How many packets of a segment match a filter, as far as its index tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// All of them.
    All,
    /// Some, or nobody knows.
    Some,
    /// None.
    None,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// Ordinal of the segment.
    pub segment: u64,
    /// Its life id, hex: the step means this use of the place and no other.
    pub life: String,
    /// What becomes of it: `delete` or `tier`.
    #[serde(default)]
    pub action: Action,
    /// The rule, or who else wants it.
    pub reason: String,
    /// Packets in it.
    pub packets: u64,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Their smallest and largest packet time, Unix ns.
    pub times_ns: Option<(u64, u64)>,
}

impl Piece {
    /// The step that does this to it.
    pub fn step(&self, action: Action, reason: impl fmt::Display) -> Step {
        Step {
            segment: self.ordinal,
            life: self.life.clone(),
            action,
            reason: reason.to_string(),
            packets: self.packets,
            bytes: self.bytes,
            times_ns: self.times_ns,
        }
    }
}

/// What the rules want deleted or tiered then, oldest first. `matches` says how many packets
/// of a segment a filter selects; it is asked only where the rest of a rule fits.
pub fn plan(
    rules: &[Rule],
    pieces: &[Piece],
    now_ns: u64,
    matches: &mut dyn FnMut(&Piece, &str) -> Match,
) -> Vec<Step> {
    let mut youngest_first: Vec<&Piece> = pieces.iter().collect();
    youngest_first.sort_by_key(|piece| std::cmp::Reverse(piece.ordinal));
    let mut used_bytes = vec![0u64; rules.len()];
    let mut steps = Vec::new();
    for piece in youngest_first {
        let mut decided = false;
        for (rule, used_bytes) in rules.iter().zip(&mut used_bytes) {
            // Counted for every rule, also behind the one that decides: what is kept elsewhere
            // takes room all the same.
            let is_done = decided || (rule.action == Action::Tier && piece.tiered);
            if !rule.fits(piece, now_ns) || (is_done && rule.size_bytes.is_none()) {
                continue;
            }
            let flows = rule.flows.as_deref();
            let selects = flows.is_none_or(|filter| rule.takes(matches(piece, filter)));
            if !selects {
                continue;
            }
            *used_bytes = used_bytes.saturating_add(piece.bytes);
            if is_done || rule.size_bytes.is_some_and(|most| *used_bytes <= most) {
                continue;
            }
            decided = true;
            if rule.action != Action::Keep {
                steps.push(piece.step(rule.action, rule));
            }
        }
    }
    steps.reverse();
    steps
}

impl Rule {
    /// Age and interface.
    fn fits(&self, piece: &Piece, now_ns: u64) -> bool {
        let age_ns = now_ns.saturating_sub(piece.closed_ns);
        let old = self.age.is_none_or(|age| u128::from(age_ns) >= age.as_nanos());
        let from = self.interface.as_ref().is_none_or(|wanted| {
            self.takes(match &piece.interfaces {
                None => Match::Some,
                Some(names) if names.iter().all(|name| name == wanted) => Match::All,
                Some(names) if names.contains(wanted) => Match::Some,
                Some(_) => Match::None,
            })
        });
        old && from
    }

    /// Whether so many are enough: all to delete, any to keep or to tier.
    fn takes(&self, matching: Match) -> bool {
        match self.action {
            Action::Delete => matching == Match::All,
            Action::Keep | Action::Tier => matching != Match::None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW_NS: u64 = 1_700_000_000_000_000_000;
    const HOUR_NS: u64 = 3_600_000_000_000;

    fn rule(action: Action) -> Rule {
        let (age, size_bytes, interface, flows) = (None, None, None, None);
        Rule { name: "r".into(), action, age, size_bytes, interface, flows }
    }

    fn piece(ordinal: u64, hours: u64, bytes: u64, interfaces: &[&str]) -> Piece {
        Piece {
            ordinal,
            life: format!("{ordinal:032x}"),
            closed_ns: NOW_NS - hours * HOUR_NS,
            bytes,
            packets: 1,
            times_ns: None,
            interfaces: Some(interfaces.iter().map(ToString::to_string).collect()),
            tiered: false,
        }
    }

    fn planned(rules: &[Rule], pieces: &[Piece]) -> Vec<u64> {
        let steps = plan(rules, pieces, NOW_NS, &mut |_, _| Match::Some);
        steps.iter().map(|step| step.segment).collect()
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let pieces = [piece(1, 50, 10, &["a"]), piece(2, 50, 10, &["b"]), piece(3, 1, 10, &["a"])];
        let hours = |hours: u64| Some(Duration::from_secs(3600 * hours));
        let keep = Rule { interface: Some("a".into()), ..rule(Action::Keep) };
        let old = Rule { age: hours(24), ..rule(Action::Delete) };
        assert_eq!(planned(&[keep.clone(), old.clone()], &pieces), [2]);
        assert_eq!(planned(&[old.clone(), keep], &pieces), [1, 2]);
        assert_eq!(planned(&[Rule { age: hours(50), ..old.clone() }], &pieces), [1, 2]);
        assert_eq!(planned(&[Rule { age: hours(51), ..old }], &pieces), [0; 0]);
    }

    #[test]
    fn what_the_tier_has_is_left_to_the_rules_behind() {
        let mut pieces = [piece(1, 90, 10, &["a"]), piece(2, 50, 10, &["a"])];
        let hours = |hours: u64| Some(Duration::from_secs(3600 * hours));
        let tier = Rule { age: hours(24), ..rule(Action::Tier) };
        let delete = Rule { age: hours(80), ..rule(Action::Delete) };
        let rules = [tier, delete];
        let steps = |pieces: &[Piece]| {
            let steps = plan(&rules, pieces, NOW_NS, &mut |_, _| Match::Some);
            steps.iter().map(|step| (step.segment, step.action)).collect::<Vec<_>>()
        };
        assert_eq!(steps(&pieces), [(1, Action::Tier), (2, Action::Tier)]);
        pieces.iter_mut().for_each(|piece| piece.tiered = true);
        assert_eq!(steps(&pieces), [(1, Action::Delete)]);
    }

    #[test]
    fn of_a_size_the_youngest_stay() {
        let pieces: Vec<_> = (1..=5).map(|n| piece(n, 9, 10, &["a"])).collect();
        let size = |bytes| Rule { size_bytes: Some(bytes), ..rule(Action::Delete) };
        assert_eq!(planned(&[size(30)], &pieces), [1, 2]);
        assert_eq!(planned(&[size(29)], &pieces), [1, 2, 3]);
        assert_eq!(planned(&[size(0)], &pieces), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_is_not_certain_is_kept() {
        let mut pieces = [piece(1, 9, 1, &["a", "b"]), piece(2, 9, 1, &[])];
        pieces[1].interfaces = None;
        for action in [Action::Delete, Action::Keep] {
            let of_a = Rule { interface: Some("a".into()), ..rule(action) };
            let rest = planned(&[of_a, rule(Action::Delete)], &pieces);
            assert_eq!(rest.is_empty(), action == Action::Keep, "{action:?}");
        }
        for (matching, goes) in [(Match::All, true), (Match::Some, false), (Match::None, false)] {
            let dns = Rule { flows: Some("port 53".into()), ..rule(Action::Delete) };
            let steps = plan(&[dns], &pieces[..1], NOW_NS, &mut |_, filter| {
                assert_eq!(filter, "port 53");
                matching
            });
            assert_eq!(!steps.is_empty(), goes, "{matching:?}");
        }
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let age = prop::option::of((0u64..60).prop_map(|h| Duration::from_secs(3600 * h)));
        let interface = prop::option::of(prop::sample::select(vec!["a", "b"]));
        let flows = prop::option::of(Just("tcp".to_owned()));
        let size = prop::option::of(0u64..200);
        (any::<bool>(), age, size, interface, flows).prop_map(
            |(keep, age, size_bytes, interface, flows)| Rule {
                age,
                size_bytes: size_bytes.filter(|_| !keep),
                interface: interface.map(Into::into),
                flows,
                ..rule(if keep { Action::Keep } else { Action::Delete })
            },
        )
    }

    fn any_pieces() -> impl Strategy<Value = Vec<Piece>> {
        let names = prop::sample::select(vec![vec!["a"], vec!["b"], vec!["a", "b"]]);
        prop::collection::vec((0u64..50, 0u64..40, names), 0..30).prop_map(|pieces| {
            let of = |(n, (hours, bytes, names)): (usize, (u64, u64, Vec<&str>))| {
                piece(n as u64, hours, bytes, &names)
            };
            pieces.into_iter().enumerate().map(of).collect()
        })
    }

    /// By the table, one segment and one rule at a time.
    fn goes(rules: &[Rule], pieces: &[Piece], piece: &Piece, oracle: fn(&Piece) -> Match) -> bool {
        let takes = |rule: &Rule, all: bool, any: bool| match rule.action {
            Action::Delete => all,
            Action::Keep | Action::Tier => any,
        };
        let selects = |rule: &Rule, piece: &Piece| {
            let names = piece.interfaces.as_ref().unwrap();
            let hours = (NOW_NS - piece.closed_ns) / HOUR_NS;
            rule.age.is_none_or(|age| hours * 3600 >= age.as_secs())
                && rule.interface.as_ref().is_none_or(|wanted| {
                    takes(rule, names.iter().all(|it| it == wanted), names.contains(wanted))
                })
                && rule.flows.as_ref().is_none_or(|_| {
                    takes(rule, oracle(piece) == Match::All, oracle(piece) != Match::None)
                })
        };
        let matching = rules.iter().find(|rule| {
            let younger = pieces.iter().filter(|it| it.ordinal >= piece.ordinal);
            let bytes: u64 = younger.filter(|it| selects(rule, it)).map(|it| it.bytes).sum();
            selects(rule, piece) && rule.size_bytes.is_none_or(|most| bytes > most)
        });
        matching.is_some_and(|rule| rule.action != Action::Keep)
    }

    proptest! {
        #[test]
        fn the_plan_is_what_the_table_says(
            rules in prop::collection::vec(any_rule(), 0..5),
            pieces in any_pieces(),
            rotate in 0usize..30,
        ) {
            let oracle = |piece: &Piece| match piece.ordinal % 3 {
                0 => Match::All,
                1 => Match::Some,
                _ => Match::None,
            };
            let steps = plan(&rules, &pieces, NOW_NS, &mut |piece, _| oracle(piece));
            let planned: Vec<u64> = steps.iter().map(|step| step.segment).collect();
            let expected = pieces.iter().filter(|it| goes(&rules, &pieces, it, oracle));
            let expected: Vec<u64> = expected.map(|piece| piece.ordinal).collect();
            prop_assert_eq!(&planned, &expected);
            // The order in which segments are told does not matter, and done is done.
            let mut others = pieces.clone();
            others.rotate_left(rotate % pieces.len().max(1));
            let again = plan(&rules, &others, NOW_NS, &mut |piece, _| oracle(piece));
            prop_assert_eq!(&steps, &again);
            others.retain(|piece| !planned.contains(&piece.ordinal));
            let rest = plan(&rules, &others, NOW_NS, &mut |piece, _| oracle(piece));
            prop_assert_eq!(rest, vec![]);
        }
    }
}
