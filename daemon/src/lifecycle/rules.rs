//! What the configured rules want deleted or tiered of a catalog.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use wirevault_config::{RetentionAction, RetentionRule};
use wirevault_format::LifeId;
use wirevault_format::table::SegmentState;
use wirevault_index::{Catalog, Segment};
use wirevault_lifecycle::retention::{Action, Match, Piece, Rule, Step, plan};
use wirevault_query::matching_chunks;

/// The configured rules, and what they have learnt of segments.
pub struct Rules {
    rules: Vec<Rule>,
    known: Mutex<Known>,
    /// Why what they want could not be deleted, the last time; nothing once it could.
    trouble: Mutex<Option<String>>,
}

/// What never changes of a closed segment and takes reading to find out.
#[derive(Default)]
struct Known {
    interfaces: HashMap<LifeId, Option<Vec<String>>>,
    /// By life and number of the rule.
    matches: HashMap<(LifeId, String), Match>,
}

impl Rules {
    /// Rules of a configuration.
    pub fn new(rules: &[RetentionRule]) -> Self {
        let rule = |rule: &RetentionRule| Rule {
            name: rule.name.clone(),
            action: match rule.action {
                RetentionAction::Delete => Action::Delete,
                RetentionAction::Tier => Action::Tier,
                RetentionAction::Keep => Action::Keep,
            },
            age: rule.age,
            size_bytes: rule.size_bytes,
            interface: rule.interface.clone(),
            flows: rule.flows.clone(),
        };
        Self {
            rules: rules.iter().map(rule).collect(),
            known: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Keeps for the status why what they want could not be deleted, if that is so.
    pub(super) fn note(&self, why: Option<String>) {
        let trouble = why.map(|why| format!("what the rules want cannot be deleted: {why}"));
        if let Some(trouble) = &trouble {
            tracing::error!("{trouble}");
        }
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Why what they want could not be deleted.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the rules want of this catalog.
    pub fn plan(&self, catalog: &Catalog, now_ns: u64) -> Vec<Step> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let segments: HashMap<u64, &Arc<Segment>> =
            closed(catalog).map(|segment| (segment.entry.ordinal, segment)).collect();
        let lives: HashSet<LifeId> = segments.values().map(|it| it.entry.life).collect();
        known.interfaces.retain(|life, _| lives.contains(life));
        known.matches.retain(|(life, _), _| lives.contains(life));
        let Known { interfaces, matches } = &mut *known;
        let asks = self.rules.iter().any(|rule| rule.interface.is_some());
        let pieces: Vec<Piece> = closed(catalog)
            .map(|segment| {
                let read = || asks.then(|| names(segment)).flatten();
                let interfaces = interfaces.entry(segment.entry.life).or_insert_with(read);
                Piece { interfaces: interfaces.clone(), ..piece(segment) }
            })
            .collect();
        plan(&self.rules, &pieces, now_ns, &mut |piece, filter| {
            let Some(segment) = segments.get(&piece.ordinal) else { return Match::Some };
            let key = (segment.entry.life, filter.to_owned());
            *matches.entry(key).or_insert_with(|| matching(segment, filter))
        })
    }
}

/// Closed segments, without copies for holds.
pub(super) fn closed(catalog: &Catalog) -> impl Iterator<Item = &Arc<Segment>> {
    let recorded = |segment: &&Arc<Segment>| {
        segment.entry.state == SegmentState::Closed && segment.entry.hold == 0
    };
    catalog.segments.iter().filter(recorded)
}

pub(super) fn piece(segment: &Segment) -> Piece {
    let entry = &segment.entry;
    Piece {
        ordinal: entry.ordinal,
        life: entry.life.to_string(),
        closed_ns: entry.closed_ns,
        bytes: entry.file_bytes,
        packets: entry.packets,
        times_ns: entry.times_ns,
        interfaces: None,
        tiered: segment.tier().is_some(),
    }
}

/// Names of a segment's interfaces; nothing if it cannot be read.
fn names(segment: &Segment) -> Option<Vec<String>> {
    let reader = segment.open().ok()?;
    let names = reader.interfaces().iter().map(|it| it.name.clone().unwrap_or_default());
    Some(names.collect())
}

/// What the index of a segment says of a filter.
fn matching(segment: &Segment, filter: &str) -> Match {
    let none = |filter: &str| {
        matching_chunks(segment, filter, 0, u64::MAX).is_ok_and(|chunks| chunks.is_empty())
    };
    if none(filter) {
        Match::None
    } else if none(&format!("not ({filter})")) {
        Match::All
    } else {
        Match::Some
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was a line in the log, once a minute, and nothing else.
    #[test]
    fn what_rules_cannot_delete_is_told_until_they_can() {
        let rules = Rules::new(&[]);
        assert_eq!(rules.trouble(), None);
        rules.note(Some("the disk is gone".to_owned()));
        let told = rules.trouble().unwrap();
        assert_eq!(told, "what the rules want cannot be deleted: the disk is gone");
        rules.note(None);
        assert_eq!(rules.trouble(), None);
    }
}
