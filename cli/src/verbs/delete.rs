//! `wirevault lifecycle` and `wirevault delete`: what has to go or to move, shown first, then done.

use std::path::Path;

use wirevault_config::{Config, Tier};
use wirevault_daemon::DaemonError;
use wirevault_daemon::api::{self, ApplyBody, DeleteBody, Deletions, DrainBody, Drained};
use wirevault_daemon::lifecycle::{Rules, apply_offline, chosen};
use wirevault_lifecycle::certificate::Certificate;
use wirevault_lifecycle::retention::{Action, Step};
use wirevault_query::summary::Instant;
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::args::{DeleteArgs, DrainArgs, LifecycleArgs, LifecycleVerb, Place};
use crate::client::{Client, Endpoint};
use crate::error::CliError;
use crate::interrupt;
use crate::outcome::Outcome;
use crate::output::{count_text, put, put_json, size_text, table, table_text, tell};
use crate::place::{self, Asked, key_source};

const HEADINGS: [&str; 7] = ["segment", "from", "until", "packets", "size", "action", "why"];

/// Shows or does what the rules want.
pub(crate) fn lifecycle(verb: &LifecycleVerb) -> Result<Outcome, CliError> {
    let (args, does) = match verb {
        LifecycleVerb::Plan(args) => (args, false),
        LifecycleVerb::Apply(args) => (args, true),
        LifecycleVerb::Drain(args) => return drain(args),
    };
    let cancel = interrupt::watch()?;
    let deletions = match place::ask(&args.place, &cancel)? {
        Asked::Daemon(mut client) => {
            let planned: Deletions = client.get(api::PLAN)?;
            match does && !planned.steps.is_empty() {
                false => planned,
                true => {
                    let lives = planned.steps.into_iter().map(|step| step.life).collect();
                    client.have_done(api::APPLY, &ApplyBody { lives: Some(lives) })?
                }
            }
        }
        Asked::Store(store) => {
            let (now_ns, config) = (SystemClock.unix_ns(), config(args)?);
            let steps = Rules::new(&config.retention).plan(&store.catalog(now_ns), now_ns);
            drop(store);
            offline(&args.place, config.tier.as_ref(), steps, does)?
        }
    };
    show(&deletions, args.json)
}

/// Has everything moved to the tier.
fn drain(args: &DrainArgs) -> Result<Outcome, CliError> {
    let endpoint = Endpoint::new(&args.daemon, args.key.as_deref());
    let mut client = Client::connect(&endpoint, &interrupt::watch()?)?;
    let order = DrainBody { within_ms: u64::from(args.within) * 1000 };
    let drained: Drained = client.have_done(api::DRAIN, &order)?;
    let Drained { moved, left } = drained;
    match args.json {
        true => put_json(&drained)?,
        false => {
            put(&format!("{} moved to the tier, {left} left\n", count_text(moved, "segment")))?
        }
    }
    Ok(if left == 0 { Outcome::Found } else { Outcome::Incomplete })
}

fn config(args: &LifecycleArgs) -> Result<Config, CliError> {
    let Some(path) = &args.config else {
        let what = "the rules are missing: name the configuration with --config";
        return Err(CliError::Usage(what.to_owned()));
    };
    Ok(wirevault_config::load(path).map_err(DaemonError::from)?)
}

/// Shows or deletes what was asked for.
pub(crate) fn delete(args: &DeleteArgs) -> Result<Outcome, CliError> {
    let cancel = interrupt::watch()?;
    let before_ns = place::time("before", args.before.as_deref())?;
    let order = DeleteBody { before_ns, segments: args.segment.clone(), dry_run: !args.yes };
    let deletions = match place::ask(&args.place, &cancel)? {
        Asked::Daemon(mut client) => client.have_done(api::DELETE, &order)?,
        Asked::Store(store) => {
            let catalog = store.catalog(SystemClock.unix_ns());
            let steps = chosen(&catalog, &order).map_err(CliError::Usage)?;
            drop((catalog, store));
            offline(&args.place, None, steps, args.yes)?
        }
    };
    if !args.yes && !deletions.steps.is_empty() {
        tell("nothing was deleted; --yes deletes these for good");
    }
    show(&deletions, args.json)
}

fn offline(
    place: &Place,
    tier: Option<&Tier>,
    steps: Vec<Step>,
    does: bool,
) -> Result<Deletions, CliError> {
    let volume = place.store.as_deref().unwrap_or(Path::new(""));
    let (certificates, moved) = match does && !steps.is_empty() {
        true => apply_offline(volume, &key_source(place.key.as_deref())?, tier, &steps)?,
        false => Default::default(),
    };
    Ok(Deletions { steps, certificates, moved })
}

fn show(deletions: &Deletions, json: bool) -> Result<Outcome, CliError> {
    if json {
        put_json(deletions)?;
    } else if deletions.steps.is_empty() {
        tell("there is nothing to delete or to move");
    } else {
        let mut table = table(&HEADINGS, &[0, 3, 4]);
        for step in &deletions.steps {
            table.add_row(columns(step));
        }
        put(&table_text(&table, ""))?;
        for certificate in &deletions.certificates {
            put(&line(certificate))?;
        }
        if deletions.moved > 0 {
            put(&format!("{} moved to the tier\n", count_text(deletions.moved, "segment")))?;
        }
    }
    Ok(if deletions.steps.is_empty() { Outcome::Nothing } else { Outcome::Found })
}

fn columns(step: &Step) -> Vec<String> {
    let (from, until) = match step.times_ns {
        Some((from_ns, until_ns)) => (Instant::from(from_ns).utc, Instant::from(until_ns).utc),
        None => ("-".to_owned(), "-".to_owned()),
    };
    let (packets, size) = (step.packets.to_string(), size_text(step.bytes));
    let action = match step.action {
        Action::Tier => "tier",
        Action::Delete | Action::Keep => "delete",
    };
    let action = action.to_owned();
    vec![step.segment.to_string(), from, until, packets, size, action, step.reason.clone()]
}

/// A certificate for people.
pub(super) fn line(certificate: &Certificate) -> String {
    let erasure = &certificate.erasure;
    let reach = match erasure.level.as_deref() {
        None => "the store is plain: their space was given back, nothing was forgotten",
        Some("L0") => {
            "L0: gone for whoever reads the device; not for who has old copies and the key"
        }
        Some("L1") => "L1: gone also for who steals the device without rights at the key service",
        Some(_) => "gone also for who has every old copy and every key",
    };
    let segments = count_text(erasure.segments.len() as u64, "segment");
    let (entry, path, why) = (certificate.entry, &erasure.path, &erasure.reason);
    format!("certificate {entry}: {segments} of {path} deleted, {why}; {reach}\n")
}
