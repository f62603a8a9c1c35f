//! Puts the tables of the runs that were kept into the documents.
//!
//! A document has a region for each: `<!-- bench: NAME -->` to `<!-- /bench -->`. Everything
//! between is replaced by what bench/runs/NAME.json says: the command, the machine, lines and
//! tables. With a number behind the name it is that table only, counted from 1. `promises` with the
//! names of runs is a table of what these promise and reached. So no figure is typed by hand, and a
//! test finds those that were.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::output::{Part, Run, runs_folder};

const OPEN: &str = "<!-- bench: ";
const OPEN_END: &str = " -->";
const PROMISES: &str = "promises ";
const CLOSE: &str = "<!-- /bench -->";
/// Documents with regions, from the root of the repository.
const DOCUMENTS: [&str; 2] = ["README.md", "docs/SPEC.md"];

/// Rewrites the regions; always true.
pub(crate) fn run() -> Result<bool> {
    for (path, old) in documents()? {
        let new = filled(&old, &kept).with_context(|| path.display().to_string())?;
        if new != old {
            fs::write(&path, new).with_context(|| path.display().to_string())?;
            println!("changed {}", path.display());
        }
    }
    Ok(true)
}

fn documents() -> Result<Vec<(PathBuf, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |name: &&str| {
        let path = root.join(name);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok((path, text))
    };
    DOCUMENTS.iter().map(read).collect()
}

/// The run of that name, if there is one.
fn kept(name: &str) -> Result<Option<Run>> {
    let path = runs_folder().join(format!("{name}.json"));
    match fs::read_to_string(&path) {
        Ok(text) => {
            Ok(Some(serde_json::from_str(&text).with_context(|| path.display().to_string())?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// `text` with every region filled. Runs that are not kept leave "not measured yet".
fn filled(text: &str, kept: &dyn Fn(&str) -> Result<Option<Run>>) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(OPEN) {
        let from = at + OPEN.len();
        let named = rest[from..].find(OPEN_END).context("a region's opening mark has no end")?;
        let name = &rest[from..from + named];
        let body = from + named + OPEN_END.len();
        let end = rest[body..].find(CLOSE).with_context(|| format!("{name} has no end"))? + body;
        ensure!(!rest[body..end].contains(OPEN), "{name} has no end before the next region");
        out += &rest[..body];
        out += "\n\n";
        out += &match name.strip_prefix(PROMISES) {
            Some(runs) => promises(runs, kept)?,
            None => one(name, kept).with_context(|| name.to_owned())?,
        };
        out += "\n";
        out += CLOSE;
        rest = &rest[end + CLOSE.len()..];
    }
    Ok(out + rest)
}

/// One run, or one of its tables.
fn one(name: &str, kept: &dyn Fn(&str) -> Result<Option<Run>>) -> Result<String> {
    let (name, only) = match name.split_once(' ') {
        Some((name, table)) => (name, Some(table.parse().context("number of a table")?)),
        None => (name, None),
    };
    match kept(name)? {
        Some(run) => region(&run, only),
        None => Ok("Not measured yet.\n".to_owned()),
    }
}

/// What the runs of these names promise and reached.
fn promises(names: &str, kept: &dyn Fn(&str) -> Result<Option<Run>>) -> Result<String> {
    let columns = ["promise", "number", "reached", "", "run"].map(str::to_owned);
    let mut rows = Vec::new();
    for name in names.split(' ') {
        let Some(run) = kept(name)? else {
            let row = ["all of this run", "-", "not measured yet", "", name];
            rows.push(row.map(str::to_owned).into());
            continue;
        };
        for part in run.parts {
            if let Part::Promise(promise) = part {
                let verdict = promise.verdict().to_owned();
                let cells = [promise.what, promise.promised, promise.reached, verdict];
                rows.push(cells.into_iter().chain([name.to_owned()]).collect());
            }
        }
    }
    let mut out = String::new();
    table(&mut out, &columns, &rows)?;
    Ok(out.trim_start().to_owned())
}

fn region(run: &Run, only: Option<usize>) -> Result<String> {
    let mut out = String::new();
    match only {
        None => {
            writeln!(out, "`{}`, {}.", run.command, run.machine.line())?;
            for part in &run.parts {
                match part {
                    Part::Text(line) if line.trim().is_empty() => {}
                    // Lines of one paragraph would run together.
                    Part::Text(line) => write!(out, "\n{}\n", line.trim())?,
                    Part::Table { columns, rows } => table(&mut out, columns, rows)?,
                    // They stand together elsewhere.
                    Part::Promise(_) => {}
                }
            }
        }
        Some(number) => {
            let mut tables = run.parts.iter().filter_map(|part| match part {
                Part::Table { columns, rows } => Some((columns, rows)),
                Part::Text(_) | Part::Promise(_) => None,
            });
            let before = number.checked_sub(1).context("tables are counted from 1")?;
            let (columns, rows) = tables.nth(before).context("no such table")?;
            table(&mut out, columns, rows)?;
            writeln!(out, "\n`{}`, {}.", run.command, run.machine.line())?;
        }
    }
    Ok(out.trim_start().to_owned())
}

fn table(out: &mut String, columns: &[String], rows: &[Vec<String>]) -> Result<()> {
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    writeln!(out, "\n{}", line(columns))?;
    writeln!(out, "|---|{}", "---:|".repeat(columns.len() - 1))?;
    for row in rows {
        writeln!(out, "{}", line(row))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn example(name: &str) -> Result<Option<Run>> {
        if name != "one" {
            return Ok(None);
        }
        let run = json!({
            "command": "wirevault-bench one",
            "machine": {
                "date": "2026-11-21", "commit": "abc", "cpu": "C", "cores": 2, "kernel": "6.1",
                "memory_gib": 4, "hugepages": 0, "file_system": "ext4", "others": 0.25
            },
            "parts": [
                { "text": "What this is." },
                { "table": { "columns": ["size", "GB/s"], "rows": [["64", "1.0"]] } },
                { "table": { "columns": ["who"], "rows": [["me"], ["you"]] } },
                { "promise": { "what": "w", "promised": "p", "reached": "r", "kept": false } }
            ],
            "figures": null
        });
        Ok(Some(serde_json::from_value(run)?))
    }

    #[test]
    fn regions_are_replaced_and_nothing_else_is() {
        let text =
            "a\n<!-- bench: one -->old<!-- /bench -->\nb <!-- bench: none --><!-- /bench -->";
        let new = filled(text, &example).unwrap();
        let machine = "2026-11-21, commit abc: C, 2 cores, 4 GiB, Linux 6.1, ext4, others used \
                       0.25 cores";
        assert_eq!(
            new,
            format!(
                "a\n<!-- bench: one -->\n\n`wirevault-bench one`, {machine}.\n\nWhat this is.\n\n\
                 | size | GB/s |\n|---|---:|\n| 64 | 1.0 |\n\n| who |\n|---|\n| me |\n| you |\n\n\
                 <!-- /bench -->\nb <!-- bench: none -->\n\nNot measured yet.\n\n<!-- /bench -->"
            )
        );
        assert_eq!(filled(&new, &example).unwrap(), new, "twice is as once");
    }

    #[test]
    fn a_number_takes_one_table() {
        let new = filled("<!-- bench: one 2 --><!-- /bench -->", &example).unwrap();
        assert!(new.contains("| who |") && !new.contains("| size |"), "{new}");
        assert!(filled("<!-- bench: one 3 --><!-- /bench -->", &example).is_err());
    }

    #[test]
    fn promises_of_several_runs_stand_in_one_table() {
        let new = filled("<!-- bench: promises one none --><!-- /bench -->", &example).unwrap();
        assert!(new.contains("\n| w | p | r | **not reached** | one |\n"), "{new}");
        assert!(new.contains("\n| all of this run | - | not measured yet |  | none |\n"), "{new}");
    }

    #[test]
    fn a_region_without_an_end_is_refused() {
        let text = "<!-- bench: one --> <!-- bench: two --> <!-- /bench -->";
        assert!(filled(text, &example).is_err());
        assert!(filled("<!-- bench: one -->", &example).is_err());
    }

    /// Figures in the documents are those of the runs that lie beside the code.
    #[test]
    fn the_documents_say_what_the_runs_say() {
        for (path, text) in documents().unwrap() {
            let new = filled(&text, &kept).unwrap();
            assert!(new == text, "{}: run `wirevault-bench tables`", path.display());
        }
    }
}
