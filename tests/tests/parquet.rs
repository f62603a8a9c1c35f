//! Flows as Parquet, read by DuckDB.

use serde_json::{Value, json};
use wirevault_tests::captures::write_pcap;
use wirevault_tests::readers::python;
use wirevault_tests::store::{TestStore, succeed, text, wirevault};
use wirevault_tests::traffic::Capture;

const FLOWS_OF: &str = include_str!("../src/flows_of.py");

/// A row of `flows --json` without the texts of its times, which Parquet has as numbers only.
fn row(line: &[u8]) -> Value {
    let mut row: Value = serde_json::from_slice(line).expect("a flow");
    for time in ["first", "last"] {
        row[time] = json!({ "ns": row[time]["ns"] });
    }
    row
}

/// What DuckDB finds in Parquet files; `None`, loudly, without it.
fn rows_in(files: &[String]) -> Option<Vec<Value>> {
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let output = python("duckdb", FLOWS_OF, &files)?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(rows(&output.stdout))
}

fn rows(lines: &[u8]) -> Vec<Value> {
    lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(row).collect()
}

fn sorted(rows: impl IntoIterator<Item = Value>) -> Vec<String> {
    let mut rows: Vec<String> = rows.into_iter().map(|row| row.to_string()).collect();
    rows.sort();
    rows
}

fn import(store: &TestStore, seed: u64) {
    let file = store.path(&format!("{seed}.pcap"));
    write_pcap(&file, &Capture::new(seed).packets);
    succeed(&store.import(&file));
}

fn flows(store: &TestStore) -> Vec<Value> {
    let said = wirevault(&["flows", "--store", &text(&store.dir()), "--json"]);
    succeed(&said);
    rows(&said.stdout)
}

#[test]
fn flows_as_parquet_are_those_of_json() {
    let store = TestStore::new(true);
    import(&store, 11);
    let (dir, file) = (text(&store.dir()), text(&store.path("flows.parquet")));
    succeed(&wirevault(&["flows", "--store", &dir, "--parquet", "-w", &file]));
    let Some(found) = rows_in(&[file]) else { return };
    let expected = flows(&store);
    assert!(expected.len() > 100, "{} flows", expected.len());
    assert_eq!(sorted(found), sorted(expected));
}
