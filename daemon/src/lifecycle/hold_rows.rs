//! Holds as the API shows them.

use std::collections::BTreeMap;

use wirevault_lifecycle::holds::{Hold, HoldList};
use wirevault_storage::HoldUse;

use super::holds::Waiting;
use crate::api::HoldRow;

/// All holds with what their copies take, and copies of holds that are not listed. `waiting` is
/// nothing where nobody keeps them.
pub(super) fn rows(
    list: &HoldList,
    mut taken: BTreeMap<u32, HoldUse>,
    waiting: impl Fn(&Hold) -> Option<Waiting>,
) -> Vec<HoldRow> {
    let listed = list.holds().iter().map(|hold| {
        let used = taken.remove(&hold.number.get()).unwrap_or_default();
        row(hold, used, waiting(hold))
    });
    let mut rows: Vec<HoldRow> = listed.collect();
    rows.extend(taken.into_iter().map(unlisted_row));
    rows
}

fn row(hold: &Hold, used: HoldUse, waiting: Option<Waiting>) -> HoldRow {
    HoldRow {
        number: hold.number.get(),
        name: hold.name.clone(),
        filter: hold.filter.clone(),
        since: hold.since_ns.map(Into::into),
        until: hold.until_ns.map(Into::into),
        reason: hold.reason.clone(),
        by: hold.by.to_string(),
        added: Some(hold.added_ns.into()),
        released: hold.released,
        segments: used.segments,
        bytes: used.bytes,
        waiting: waiting.as_ref().map(|waiting| waiting.segments),
        why: waiting.and_then(|waiting| waiting.why),
    }
}

/// Copies of a hold that no list has.
fn unlisted_row((number, used): (u32, HoldUse)) -> HoldRow {
    HoldRow {
        number,
        name: format!("#{number}"),
        segments: used.segments,
        bytes: used.bytes,
        ..HoldRow::default()
    }
}
