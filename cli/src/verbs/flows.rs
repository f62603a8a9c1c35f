//! `wirevault flows`: what spoke with what.

use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal, Write};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::Path;

use comfy_table::Table;
use serde::Deserialize;
use wirevault_daemon::api::{self, QueryBody};
use wirevault_query::export::FlowFile;
use wirevault_query::{FlowRow, QueryError, Request, Summary, flows};
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::answer::{conclude, cut};
use crate::args::FlowsArgs;
use crate::client::Body;
use crate::error::CliError;
use crate::interrupt::{self, Cancel};
use crate::outcome::Outcome;
use crate::output::{Target, count_text, size_text, table, table_text};
use crate::place::{self, Asked};

/// Rows that a table holds at most before it is printed, so that columns fit each other without all
/// rows in memory.
const TABLE_ROWS: usize = 1000;

const HEADINGS: [&str; 8] =
    ["first", "seconds", "packets", "bytes", "protocol", "a", "b", "inside"];

const CSV_HEADINGS: &str = "link_type,segments,first,last,first_ns,last_ns,packets,bytes,protocol,\
    a_addr,a_port,b_addr,b_port,a_to_b,b_to_a,vlans,mpls,vni,layers,tcp_flags\n";

/// Lists flows.
pub(crate) fn list(args: &FlowsArgs) -> Result<Outcome, CliError> {
    let request = Request { limit: args.limit, ..place::request(&args.question)? };
    let cancel = interrupt::watch()?;
    let mut rows = Rows::new(args)?;
    let summary = match place::ask(&args.place, &cancel)? {
        Asked::Store(store) => {
            let catalog = store.catalog(SystemClock.unix_ns());
            let mut out = |row: &FlowRow| -> io::Result<ControlFlow<()>> {
                rows.row(row)?;
                Ok(match interrupt::is_set(&cancel) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
            };
            match flows(&catalog, &request, &mut out, &cancel) {
                Err(QueryError::Cancelled) => cut(&request),
                result => result?,
            }
        }
        Asked::Daemon(client) => {
            let body = client.post(api::FLOWS, &QueryBody::from(request.clone()))?;
            match receive(body, &mut rows, &cancel)? {
                Some(summary) => summary,
                None => cut(&request),
            }
        }
    };
    let count = rows.end(&summary)?;
    conclude(&summary, args.summary.as_deref())?;
    Ok(match interrupt::is_set(&cancel) {
        true => Outcome::Incomplete,
        false => Outcome::of(&summary, count),
    })
}

/// A line of the daemon's answer: a flow, or at the end the summary.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Last { summary: Box<Summary> },
    Row(Box<FlowRow>),
}

/// Passes the daemon's rows on; `None` if the user ended it.
fn receive(body: Body, rows: &mut Rows, cancel: &Cancel) -> Result<Option<Summary>, CliError> {
    let mut lines = BufReader::new(body);
    let mut text = String::new();
    loop {
        text.clear();
        let read = lines.read_line(&mut text);
        if interrupt::is_set(cancel) {
            return Ok(None);
        }
        let broken = |what: String| {
            let came = count_text(rows.count, "flow");
            CliError::Answer { what: format!("{what}; the answer is CUT after {came}") }
        };
        match read {
            Ok(0) => return Err(broken("ended without its closing statement".to_owned())),
            Ok(_) => {}
            Err(error) => {
                let error = broken(error.to_string());
                rows.flush()?;
                return Err(error);
            }
        }
        match serde_json::from_str(&text) {
            Ok(Line::Row(row)) => rows.row(&row)?,
            Ok(Line::Last { summary }) => return Ok(Some(*summary)),
            Err(error) => return Err(broken(format!("has a line that is no flow: {error}"))),
        }
    }
}

/// Writes rows in one of the forms.
struct Rows {
    out: Out,
    /// Somebody looks on: each row is passed on at once.
    watched: bool,
    count: u64,
}

enum Out {
    Table(BufWriter<Target>, Table),
    Json(BufWriter<Target>),
    Csv(BufWriter<Target>),
    Parquet(FlowFile<Target>),
}

impl Rows {
    /// # Errors
    /// `Usage` if there can be no such file, or a Parquet file would go to a terminal.
    fn new(args: &FlowsArgs) -> Result<Self, CliError> {
        let target = match args.write.as_deref() {
            Some(path) if args.parquet || path != Path::new("-") => Target::packets(path)?,
            _ => Target::Stdout(io::stdout()),
        };
        let watched = matches!(&target, Target::Stdout(out) if out.is_terminal());
        let out = match (args.json, args.csv, args.parquet) {
            (true, ..) => Out::Json(BufWriter::new(target)),
            (_, true, _) => Out::Csv(BufWriter::new(target)),
            (.., true) => Out::Parquet(FlowFile::new(target)),
            _ => Out::Table(BufWriter::new(target), empty_table()),
        };
        Ok(Self { out, watched, count: 0 })
    }

    fn row(&mut self, row: &FlowRow) -> io::Result<()> {
        self.count += 1;
        match &mut self.out {
            Out::Table(_, table) => {
                table.add_row(columns(row));
                return if table.row_count() >= TABLE_ROWS { self.flush() } else { Ok(()) };
            }
            Out::Json(out) => {
                serde_json::to_writer(&mut *out, row)?;
                out.write_all(b"\n")?;
            }
            Out::Csv(out) => {
                if self.count == 1 {
                    out.write_all(CSV_HEADINGS.as_bytes())?;
                }
                out.write_all(csv(row).as_bytes())?;
            }
            Out::Parquet(file) => file.row(row)?,
        }
        if self.watched { self.flush() } else { Ok(()) }
    }

    /// Passes on what can be read without what follows.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.out {
            Out::Table(out, table) => {
                if table.row_count() > 0 {
                    let table = std::mem::replace(table, empty_table());
                    out.write_all(table_text(&table, "").as_bytes())?;
                }
                out.flush()
            }
            Out::Json(out) | Out::Csv(out) => out.flush(),
            Out::Parquet(_) => Ok(()),
        }
    }

    /// Completes the answer. Gives the number of rows.
    fn end(mut self, summary: &Summary) -> Result<u64, CliError> {
        if let (Out::Csv(out), 0) = (&mut self.out, self.count) {
            out.write_all(CSV_HEADINGS.as_bytes())?;
        }
        self.flush()?;
        if let Out::Parquet(file) = self.out {
            file.finish(summary)?.flush()?;
        }
        Ok(self.count)
    }
}

fn empty_table() -> Table {
    table(&HEADINGS, &[1, 2, 3])
}

fn columns(row: &FlowRow) -> Vec<String> {
    let seconds = row.last.ns.saturating_sub(row.first.ns) as f64 / 1e9;
    let flags = row.tcp_flags.as_ref().map(|flags| format!(" {flags}")).unwrap_or_default();
    let arrows = match (row.a_to_b, row.b_to_a) {
        (true, false) => " >",
        (false, true) => " <",
        _ => "",
    };
    vec![
        row.first.utc.clone(),
        format!("{seconds:.3}"),
        row.packets.to_string(),
        size_text(row.bytes),
        format!("{}{flags}", row.protocol),
        format!("{}{arrows}", endpoint(row.a_addr, row.a_port)),
        endpoint(row.b_addr, row.b_port),
        row.layers.join(" / "),
    ]
}

fn endpoint(addr: Option<IpAddr>, port: Option<u16>) -> String {
    match (addr, port) {
        (Some(addr), Some(port)) => std::net::SocketAddr::new(addr, port).to_string(),
        (Some(addr), None) => addr.to_string(),
        (None, _) => "-".to_owned(),
    }
}

/// One line, as RFC 4180 has it but for the line's end.
fn csv(row: &FlowRow) -> String {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(String::new, |value| value.to_string())
    }
    fn list<T: ToString>(values: &[T]) -> String {
        values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
    let fields = [
        row.link_type.clone(),
        row.segments.to_string(),
        row.first.utc.clone(),
        row.last.utc.clone(),
        row.first.ns.to_string(),
        row.last.ns.to_string(),
        row.packets.to_string(),
        row.bytes.to_string(),
        row.protocol.clone(),
        text(row.a_addr),
        text(row.a_port),
        text(row.b_addr),
        text(row.b_port),
        row.a_to_b.to_string(),
        row.b_to_a.to_string(),
        list(&row.vlans),
        list(&row.mpls),
        text(row.vni),
        row.layers.join(" / "),
        text(row.tcp_flags.as_ref()),
    ];
    let quoted = fields.map(|field| match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field,
    });
    quoted.join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> FlowRow {
        FlowRow {
            link_type: "EN10MB".to_owned(),
            segments: 1,
            first: 1_000_000_000.into(),
            last: 2_500_000_000.into(),
            packets: 3,
            bytes: 180,
            protocol: "TCP".to_owned(),
            a_addr: Some([10, 0, 0, 1].into()),
            a_port: Some(4000),
            b_addr: Some([10, 0, 0, 2].into()),
            b_port: Some(80),
            a_to_b: true,
            b_to_a: false,
            vlans: vec![5, 6],
            mpls: vec![],
            vni: None,
            layers: vec!["vlan 5".to_owned(), "a, \"b\"".to_owned()],
            tcp_flags: Some("S".to_owned()),
        }
    }

    #[test]
    fn a_table_row_is_readable() {
        let expected = [
            "1970-01-01T00:00:01Z",
            "1.500",
            "3",
            "180 B",
            "TCP S",
            "10.0.0.1:4000 >",
            "10.0.0.2:80",
            "vlan 5 / a, \"b\"",
        ];
        assert_eq!(columns(&row()), expected);
        assert_eq!(endpoint(Some("::1".parse().unwrap()), Some(53)), "[::1]:53");
        assert_eq!(endpoint(None, None), "-");
    }

    #[test]
    fn csv_has_as_many_fields_as_headings_and_quotes() {
        let line = csv(&row());
        let mut plain = row();
        plain.layers.clear();
        assert_eq!(csv(&plain).matches(',').count(), CSV_HEADINGS.matches(',').count());
        assert!(line.ends_with(",5 6,,,\"vlan 5 / a, \"\"b\"\"\",S\n"), "{line}");
    }

    #[test]
    fn rows_and_the_summary_are_told_apart() {
        let text = serde_json::to_string(&row()).unwrap();
        assert!(matches!(serde_json::from_str(&text), Ok(Line::Row(_))));
        let text = format!(r#"{{"summary":{}}}"#, Summary::default().json_within(usize::MAX));
        assert!(matches!(serde_json::from_str(&text), Ok(Line::Last { .. })));
        assert!(serde_json::from_str::<Line>("{}").is_err());
    }
}
