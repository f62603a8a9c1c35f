//! `wirevault segments`: what a store holds, piece by piece.

use wirevault_daemon::api::{self, SegmentRow};
use wirevault_daemon::report::status;
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::args::SegmentsArgs;
use crate::error::CliError;
use crate::interrupt;
use crate::outcome::Outcome;
use crate::output::{put, put_json, size_text, table, table_text, tell};
use crate::place::{self, Asked};

const HEADINGS: [&str; 11] =
    ["name", "at", "state", "from", "until", "packets", "size", "chunks", "lane", "link", "notes"];

/// Lists segments, oldest first.
pub(crate) fn list(args: &SegmentsArgs) -> Result<Outcome, CliError> {
    let cancel = interrupt::watch()?;
    let rows: Vec<SegmentRow> = match place::ask(&args.place, &cancel)? {
        Asked::Store(store) => status::segments(&store.catalog(SystemClock.unix_ns())),
        Asked::Daemon(mut client) => client.get(api::SEGMENTS)?,
    };
    if args.json {
        put_json(&rows)?;
    } else if rows.is_empty() {
        tell("the store holds no segments yet");
    } else {
        let mut table = table(&HEADINGS, &[5, 6, 7, 8]);
        for row in &rows {
            table.add_row(columns(row));
        }
        put(&table_text(&table, ""))?;
    }
    Ok(if rows.is_empty() { Outcome::Nothing } else { Outcome::Found })
}

fn columns(row: &SegmentRow) -> Vec<String> {
    let time =
        |time: &Option<api::Instant>| time.as_ref().map_or("-".to_owned(), |t| t.utc.clone());
    vec![
        row.name.clone(),
        row.at.clone(),
        row.close_reason
            .as_ref()
            .map_or_else(|| row.state.clone(), |why| format!("{}: {why}", row.state)),
        time(&row.from),
        time(&row.until),
        row.packets.to_string(),
        row.file_bytes.map_or_else(|| "-".to_owned(), size_text),
        row.chunks.to_string(),
        row.lane.to_string(),
        row.link_type.clone(),
        notes(row),
    ]
}

fn notes(row: &SegmentRow) -> String {
    let flags = [
        (!row.sealed, "plain"),
        (row.import, "import"),
        (row.recovered, "recovered"),
        (row.damaged, "DAMAGED"),
    ];
    let flags = flags.into_iter().filter(|(set, _)| *set).map(|(_, text)| text.to_owned());
    let hold = row.hold.map(|number| format!("copy for hold {number}"));
    flags.chain(hold).chain(row.error.clone()).collect::<Vec<_>>().join(", ")
}
