//! Flows as Parquet, read by DuckDB.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

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

/// Puts the rows of a flow together, of which each segment has one. Rows do not tell all flows
/// apart (a question in ARP from its answer), so those of a store are put together as well.
fn joined(rows: Vec<Value>) -> impl Iterator<Item = Value> {
    let mut flows: BTreeMap<String, Value> = BTreeMap::new();
    for row in rows {
        let mut key = row.clone();
        for of_packets in
            ["segments", "first", "last", "packets", "bytes", "a_to_b", "b_to_a", "tcp_flags"]
        {
            key[of_packets] = Value::Null;
        }
        let Some(sum) = flows.get_mut(&key.to_string()) else {
            flows.insert(key.to_string(), row);
            continue;
        };
        let number = |value: &Value| value.as_u64().expect("a number");
        for field in ["segments", "packets", "bytes"] {
            sum[field] = (number(&sum[field]) + number(&row[field])).into();
        }
        for field in ["a_to_b", "b_to_a"] {
            sum[field] = (sum[field] == true || row[field] == true).into();
        }
        let ns = |value: &Value| number(&value["ns"]);
        if ns(&row["first"]) < ns(&sum["first"]) {
            sum["first"] = row["first"].clone();
        }
        if ns(&row["last"]) > ns(&sum["last"]) {
            sum["last"] = row["last"].clone();
        }
        if let (Some(a), Some(b)) = (sum["tcp_flags"].as_str(), row["tcp_flags"].as_str()) {
            let both = |flag: &char| a.contains(*flag) || b.contains(*flag);
            sum["tcp_flags"] = "FSRPAUEC".chars().filter(both).collect::<String>().into();
        }
    }
    flows.into_values()
}

fn parquet_files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let below = paths.flat_map(|path| match path.is_dir() {
        true => parquet_files(&path),
        false => vec![text(&path)],
    });
    below.filter(|path| path.ends_with(".parquet")).collect()
}

/// Of all segments of a store that encrypts.
#[test]
fn flows_beside_segments_in_the_tier_are_those_of_the_store_and_go_with_them() {
    let store = TestStore::new(true);
    (21..23).for_each(|seed| import(&store, seed));
    let segments = store.segment_files().len();
    let (dir, tier, config) = (text(&store.dir()), store.path("tier"), store.path("tier.yaml"));
    fs::create_dir(&tier).expect("a folder");
    let yaml = format!(
        "store: {dir}\nreplay:\n  file: /x\ntier:\n  url: file://{}\n  flows: parquet\n  \
         keep_local: false\nretention:\n  - name: cold\n    action: tier\n",
        text(&tier)
    );
    fs::write(&config, yaml).expect("a configuration");
    let config = text(&config);
    succeed(&wirevault(&["lifecycle", "apply", "--store", &dir, "--config", &config]));
    let files = parquet_files(&tier);
    assert!(segments > 2 && files.len() == segments, "of {segments} segments: {files:?}");
    // BEGIN_NS is the first instant of 2026.
    let partition = |file: &&String| file.contains("/flows/day=2026-01-01/hour=00/appliance=");
    assert_eq!(files.iter().filter(partition).count(), segments, "{files:?}");
    if let Some(found) = rows_in(&files) {
        let expected = flows(&store);
        assert!(found.len() > expected.len(), "some flows are in several segments");
        assert_eq!(sorted(joined(found)), sorted(joined(expected)));
    }
    succeed(&wirevault(&["delete", "--store", &dir, "--segment", "2", "--yes"]));
    assert_eq!(parquet_files(&tier).len(), segments - 1);
    let shown = wirevault(&["certificate", "show", "--store", &dir, "--json"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("flows/day=2026-01-01/hour=00/appliance="), "{shown}");
}
