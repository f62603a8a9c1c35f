//! What is kept, moved, deleted, and written down of it: what the rules want once a minute, what
//! somebody asks for, and both without a daemon.
//!
//! ```text
//!  catalog ─► pieces ─► rules ─► steps ─┐
//!  a person ────────────────────────────┴─► entry `deleted` ─► keys gone ─► certificate ─► space
//! ```
//! Whatever is planned is a list of lives; whatever is done is done to these lives and no others.
//! What cannot be written down is not deleted.
//!
//! Files: `rules` (what goes), `holds` (what stays; `hold_rows` shows it), `deleting` (doing it),
//! [`tier`] (what goes elsewhere instead), `offline` (without a daemon), `routes` (the questions);
//! `audit` (who asked for what), `anchors` (its heads, kept elsewhere), [`snapshots`] (the state).
//! Here is the thread that keeps holds and follows rules.

pub(crate) mod anchors;
pub(crate) mod audit;
mod deleting;
mod hold_rows;
mod holds;
#[cfg(test)]
pub(crate) mod month_tests;
mod offline;
mod routes;
mod rules;
pub mod snapshots;
pub mod tier;

use std::time::{Duration, Instant};

use wirevault_lifecycle::audit::{Event, Who};
use wirevault_lifecycle::retention::Step;
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::duty::Duty;
use crate::server::App;

pub use deleting::chosen;
pub(crate) use deleting::settle;
pub use holds::Holds;
pub(crate) use offline::user;
pub use offline::{Notes, add_hold, apply_offline, holds_of, release_hold};
pub(crate) use routes::routes;
pub use rules::Rules;

/// How often the rules are asked.
const PERIOD: Duration = Duration::from_secs(60);

/// Begins to keep holds, every few seconds, and to do what the rules say, every minute.
pub(crate) fn keeping(app: &App) -> Option<Duty> {
    let app = app.clone();
    let (mut rules_at, mut trouble) = (Instant::now(), None);
    Duty::start("lifecycle", "follows the retention rules", move |_| {
        if let Some(pipeline) = app.pipeline() {
            let stopping = || app.is_stopping();
            app.holds().keep(pipeline.store(), app.audit(), &stopping);
            let told = pipeline.store().status().key_trouble;
            if told != trouble {
                app.audit().note(Event::Keys { trouble: told.clone() });
                trouble = told;
            }
        }
        if rules_at <= Instant::now() {
            follow(&app, &app.rules());
            rules_at = Instant::now() + PERIOD;
        }
        holds::PERIOD
    })
}

/// Deletes what the rules want deleted.
fn follow(app: &App, rules: &Rules) {
    let done = deleting::delete_live(app, &Who::Recorder, &planned(app, rules));
    rules.note(done.err().map(|error| error.chain()));
}

/// What the rules want now.
pub(crate) fn planned(app: &App, rules: &Rules) -> Vec<Step> {
    if rules.is_empty() {
        return Vec::new();
    }
    let now_ns = SystemClock.unix_ns();
    app.pipeline().map_or(Vec::new(), |pipeline| rules.plan(&pipeline.catalog(), now_ns))
}
