//! What a measurement says: lines, tables and promises for people as they come, everything as JSON
//! at the end, and a file of the run beside the code.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine::{Busy, Machine};

/// Space between two columns.
const GAP: &str = "  ";

/// How a measurement prints, and whether it is kept.
#[derive(Debug, Args)]
pub(crate) struct OutputOptions {
    /// As JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Keeps the run, with what is known of the machine, as bench/runs/NAME.json; NAME is that of
    /// the measurement unless another is given.
    #[arg(long, global = true, value_name = "NAME", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "")]
    save: Option<String>,
}

/// One run, as it is kept.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) command: String,
    pub(crate) machine: Machine,
    pub(crate) parts: Vec<Part>,
    /// Every figure, also those that no table shows.
    pub(crate) figures: Value,
}

/// What people read of a run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    Text(String),
    Table { columns: Vec<String>, rows: Vec<Vec<String>> },
    Promise(Promise),
}

/// A number that the project promises, and what this run came to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Promise {
    pub(crate) what: String,
    pub(crate) promised: String,
    pub(crate) reached: String,
    pub(crate) kept: bool,
}

impl Promise {
    /// The last word on it.
    pub(crate) fn verdict(&self) -> &'static str {
        if self.kept { "kept" } else { "**not reached**" }
    }
}

/// Where a measurement puts what it has to say.
pub(crate) struct Output {
    json: bool,
    keep_as: Option<PathBuf>,
    widths: Vec<usize>,
    began: Busy,
    run: Run,
}

impl Output {
    /// For the measurement `what`, which begins now.
    pub(crate) fn new(options: &OutputOptions, what: &str) -> Result<Self> {
        let keep_as = match options.save.as_deref() {
            None => None,
            Some("") => Some(run_path(what)?),
            Some(name) => Some(run_path(name)?),
        };
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let shown = arguments.iter().filter(|it| !it.starts_with("--save") && *it != "--json");
        let command = ["wirevault-bench"].into_iter().chain(shown.map(String::as_str));
        let run = Run {
            command: command.collect::<Vec<_>>().join(" "),
            machine: Machine::look(),
            parts: Vec::new(),
            figures: Value::Null,
        };
        let (json, widths) = (options.json, Vec::new());
        Ok(Self { json, keep_as, widths, began: Busy::now(), run })
    }

    /// A line.
    pub(crate) fn say(&mut self, line: impl Into<String>) {
        let line = line.into();
        if !self.json {
            println!("{line}");
        }
        self.run.parts.push(Part::Text(line));
    }

    /// Begins a table; each column with its name and the width that its values need.
    pub(crate) fn table(&mut self, columns: &[(&str, usize)]) {
        self.widths =
            columns.iter().map(|(name, width)| name.chars().count().max(*width)).collect();
        let columns: Vec<_> = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        if !self.json {
            println!();
        }
        self.print_row(&columns);
        self.run.parts.push(Part::Table { columns, rows: Vec::new() });
    }

    /// A row of the table begun last.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.print_row(&cells);
        if let Some(Part::Table { rows, .. }) = self.run.parts.last_mut() {
            rows.push(cells);
        }
    }

    /// At least so much is promised.
    pub(crate) fn at_least(&mut self, what: &str, unit: &str, promised: f64, reached: f64) {
        self.promise(
            what,
            format!("at least {promised}{unit}"),
            unit,
            reached,
            reached >= promised,
        );
    }

    /// At most so much is promised.
    pub(crate) fn at_most(&mut self, what: &str, unit: &str, promised: f64, reached: f64) {
        self.promise(what, format!("at most {promised}{unit}"), unit, reached, reached <= promised);
    }

    /// What is promised, in words; what was reached, and whether that is enough.
    pub(crate) fn promise(
        &mut self,
        what: &str,
        promised: String,
        unit: &str,
        reached: f64,
        kept: bool,
    ) {
        let reached = format!("{}{unit}", three_digits(reached));
        let promise = Promise { what: what.to_owned(), promised, reached, kept };
        if !self.json {
            let Promise { what, promised, reached, .. } = &promise;
            println!("{what}: promised {promised}, reached {reached}: {}", promise.verdict());
        }
        self.run.parts.push(Part::Promise(promise));
    }

    /// Ends the run with all that was measured.
    pub(crate) fn finish(mut self, figures: &impl Serialize) -> Result<()> {
        self.run.figures = serde_json::to_value(figures)?;
        self.run.machine.others = self.began.others_since();
        if self.json {
            println!("{}", serde_json::to_string_pretty(&self.run.figures)?);
        }
        if let Some(path) = &self.keep_as {
            let text = serde_json::to_string_pretty(&self.run)? + "\n";
            std::fs::write(path, text).with_context(|| path.display().to_string())?;
            eprintln!("kept in {}", path.display());
        }
        Ok(())
    }

    /// Names to the left, numbers to the right.
    fn print_row(&self, cells: &[String]) {
        if self.json {
            return;
        }
        let padded =
            self.widths.iter().zip(cells).enumerate().map(|(at, (width, cell))| match at {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
        println!("{}", padded.collect::<Vec<_>>().join(GAP).trim_end());
    }
}

/// Where runs are kept: beside the code that this program was built from.
pub(crate) fn runs_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("runs")
}

fn run_path(name: &str) -> Result<PathBuf> {
    let plain = |it: char| it.is_ascii_alphanumeric() || it == '-' || it == '_';
    ensure!(name.chars().all(plain), "a run's name has letters, digits, - and _ only: `{name}`");
    let folder = runs_folder();
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder.join(format!("{name}.json")))
}

/// Rounded to three digits that count, as far as they stand behind the point.
fn three_digits(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let before_point = value.abs().max(1e-9).log10().floor() as i32;
    format!("{value:.*}", (2 - before_point).clamp(0, 5) as usize)
}

/// The values in order: smallest, middle, largest.
pub(crate) fn spread(values: impl IntoIterator<Item = f64>) -> Option<[f64; 3]> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    Some([*values.first()?, values[values.len() / 2], *values.last()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_within_the_folder() {
        assert!(run_path("../x").is_err() && run_path("a/b").is_err() && run_path("a.b").is_err());
    }

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [1234.5, 99.96, -12.34, 1.0, 0.01234, 0.0].map(three_digits);
        assert_eq!(shown, ["1234", "100.0", "-12.3", "1.00", "0.0123", "0"]);
    }

    #[test]
    fn spreads_are_of_sorted_values() {
        assert_eq!(spread([3.0, 1.0, 2.0]), Some([1.0, 2.0, 3.0]));
        assert_eq!(spread([5.0]), Some([5.0; 3]));
        assert_eq!(spread([]), None);
    }
}
