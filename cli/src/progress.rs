//! Bars for long work. They are drawn when standard error is a terminal, else not at all.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Between two drawings of something that only turns.
const TICK: Duration = Duration::from_millis(120);

/// A bar over `bytes_total`.
pub(crate) fn bytes(what: &str, bytes_total: u64) -> ProgressBar {
    shown(what, || ProgressBar::new(bytes_total), "{msg} [{bar:30}] {bytes}/{total_bytes} {eta}")
}

/// Something that turns and counts, where the end is not known.
pub(crate) fn counter(what: &str) -> ProgressBar {
    let bar = shown(what, ProgressBar::new_spinner, "{spinner} {msg} {human_pos} packets");
    if !bar.is_hidden() {
        bar.enable_steady_tick(TICK);
    }
    bar
}

fn shown(what: &str, bar: impl FnOnce() -> ProgressBar, template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar().with_style(style).with_message(what.to_owned())
}
