//! `wirevault hold`: what may not be forgotten, and why.

use std::path::Path;

use wirevault_daemon::api::{self, HoldBody, HoldRow, HoldsReport, ReleaseBody};
use wirevault_daemon::lifecycle::{add_hold, holds_of, release_hold};
use wirevault_query::summary::Instant;
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::args::{HoldVerb, Place};
use crate::error::CliError;
use crate::interrupt;
use crate::outcome::Outcome;
use crate::output::{put, put_json, size_text, table, table_text, tell};
use crate::place::{self, Asked, key_source};
use crate::verbs::delete;

const HEADINGS: [&str; 8] =
    ["hold", "from", "until", "copies", "size", "waiting", "filter", "reason"];

/// Adds, lists or releases holds.
pub(crate) fn hold(verb: &HoldVerb) -> Result<Outcome, CliError> {
    let cancel = interrupt::watch()?;
    let (place, json) = match verb {
        HoldVerb::Add { place, json, .. }
        | HoldVerb::List { place, json }
        | HoldVerb::Release { place, json, .. } => (place, *json),
    };
    let report = match place::ask(place, &cancel)? {
        Asked::Daemon(mut client) => match order(verb)? {
            Order::Add(body) => client.have_done(api::HOLD_ADD, &body)?,
            Order::Release(name) => client.have_done(api::HOLD_RELEASE, &ReleaseBody { name })?,
            Order::List => client.get(api::HOLDS)?,
        },
        Asked::Store(store) => {
            let (volume, key) = (volume(place), key_source(place.key.as_deref())?);
            match order(verb)? {
                Order::List => holds_of(volume, &store.catalog(SystemClock.unix_ns()))?,
                Order::Add(body) => {
                    drop(store);
                    add_hold(volume, &key, body)?
                }
                Order::Release(name) => {
                    drop(store);
                    release_hold(volume, &key, &name)?
                }
            }
        }
    };
    show(&report, json)
}

/// What is to be done.
enum Order {
    Add(HoldBody),
    List,
    Release(String),
}

fn order(verb: &HoldVerb) -> Result<Order, CliError> {
    Ok(match verb {
        HoldVerb::Add { name, filter, since, until, reason, .. } => Order::Add(HoldBody {
            name: name.clone(),
            filter: filter.clone(),
            since_ns: place::time("since", since.as_deref())?,
            until_ns: place::time("until", until.as_deref())?,
            reason: reason.clone(),
        }),
        HoldVerb::List { .. } => Order::List,
        HoldVerb::Release { name, .. } => Order::Release(name.clone()),
    })
}

fn volume(place: &Place) -> &Path {
    place.store.as_deref().unwrap_or(Path::new(""))
}

fn show(report: &HoldsReport, json: bool) -> Result<Outcome, CliError> {
    if json {
        put_json(report)?;
    } else {
        let mut table = table(&HEADINGS, &[3, 4, 5]);
        for row in &report.holds {
            table.add_row(columns(row));
        }
        match report.holds.is_empty() {
            true => tell("there is no hold"),
            false => put(&table_text(&table, ""))?,
        }
        report.certificates.iter().try_for_each(|it| put(&delete::line(it)))?;
        report.holds.iter().filter_map(|row| row.why.as_ref()).for_each(|why| tell(why));
    }
    let waits = report.holds.iter().any(|row| row.why.is_some());
    Ok(match report.holds.is_empty() && report.certificates.is_empty() {
        _ if waits => Outcome::Incomplete,
        true => Outcome::Nothing,
        false => Outcome::Found,
    })
}

fn columns(row: &HoldRow) -> Vec<String> {
    let time = |time: &Option<Instant>| time.as_ref().map_or("-".to_owned(), |it| it.utc.clone());
    let waiting = row.waiting.map_or("-".to_owned(), |waiting| waiting.to_string());
    vec![
        row.name.clone(),
        time(&row.since),
        time(&row.until),
        row.segments.to_string(),
        size_text(row.bytes),
        waiting,
        row.filter.clone(),
        row.reason.clone().unwrap_or_default(),
    ]
}
