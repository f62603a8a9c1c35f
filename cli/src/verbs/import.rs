//! `wirevault import`: capture files into a store.

use wirevault_daemon::input::import::{
    self, FileReport, ImportOptions, ImportReport, Progress, Tunnel,
};

use crate::args::ImportArgs;
use crate::error::CliError;
use crate::outcome::Outcome;
use crate::output::{Paint, count_text, put, put_json, size_text};
use crate::{interrupt, place, progress};

/// Imports files and says what could not be kept.
pub(crate) fn import(args: &ImportArgs) -> Result<Outcome, CliError> {
    let options = ImportOptions {
        key: place::key_source(args.key.as_deref())?,
        cancel: interrupt::watch()?,
        decap: args.strip.then(|| match &args.decap_tunnels {
            Some(tunnels) => tunnels.clone(),
            None => Tunnel::USUAL.to_vec(),
        }),
        vxlan_ports: args.vxlan_ports,
        ..ImportOptions::new(args.store.clone(), args.files.clone())
    };
    let bar = progress::counter("importing");
    let mut last = String::new();
    let mut show = |progress: &Progress| {
        bar.set_position(progress.packets);
        if last != progress.file {
            last.clone_from(&progress.file);
            let number = (progress.files_ended + 1).min(progress.files);
            bar.set_message(format!("file {number} of {}, {last}", progress.files));
        }
    };
    let result = import::run(options, &mut show);
    bar.finish_and_clear();
    let report = result?;
    match args.json {
        true => put_json(&report)?,
        false => put(&text(&report, Paint::stdout()))?,
    }
    Ok(match (report.is_whole() && report.not_held.is_none(), report.packets) {
        (false, _) => Outcome::Incomplete,
        (true, 0) => Outcome::Nothing,
        (true, _) => Outcome::Found,
    })
}

fn text(report: &ImportReport, paint: Paint) -> String {
    let mut text = String::new();
    for file in &report.files {
        text += &file_text(file, paint);
    }
    let packets = count_text(report.stored, "packet");
    let state = match report.is_whole() {
        true => paint.good("all stored"),
        false => paint.bad("NOT ALL STORED"),
    };
    text += &format!("{packets}, {}: {state}\n", size_text(report.bytes));
    let lost = [
        (report.dropped, "lost on the way to the device"),
        (report.cut, "cut, because they are longer than a chunk"),
    ];
    for (count, what) in lost.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!("  {}: {what}\n", count_text(count, "packet"));
    }
    let unwrapped = [
        (report.stripped, "stored without their outer headers"),
        (report.kept_fragments, "fragments of a tunnel's packets, stored as they are"),
        (report.truncated_mirror, "cut by the mirror"),
    ];
    for (count, what) in unwrapped.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!("  {}: {what}\n", count_text(count, "packet"));
    }
    if report.cancelled {
        text += "  it was interrupted; what was read until then is stored\n";
    }
    for error in report.not_held.iter().chain(&report.error) {
        text += &format!("  {}\n", paint.bad(error));
    }
    let recovery = &report.recovery;
    if !recovery.is_clean() {
        let segments = count_text(recovery.segments, "interrupted segment");
        let packets = count_text(recovery.packets, "packet");
        text += &format!("  before that {segments} with {packets} closed after a crash\n");
        for damage in &recovery.damage {
            text += &format!("  {}\n", paint.bad(damage));
        }
    }
    text
}

fn file_text(file: &FileReport, paint: Paint) -> String {
    let notes = match file.notes.is_empty() {
        true => String::new(),
        false => format!(" ({})", file.notes.join(", ")),
    };
    let packets = count_text(file.packets, "packet");
    let mut text = format!("{}: {packets}, {}{notes}\n", file.path, size_text(file.bytes));
    if let Some(error) = &file.error {
        text += &format!("  {}: {error}\n", paint.bad("not read to its end"));
    } else if !file.ended {
        text += &format!("  {}\n", paint.warn("not read to its end: interrupted"));
    }
    let rounded = (file.times_rounded, "times finer than a nanosecond or out of range, rounded");
    let cut = (file.options_cut, "packets whose options were too long, shortened");
    let snaplen = (
        file.cut_to_snaplen,
        "packets' bytes behind the file's own snap length, which tcpdump does not see either",
    );
    for (count, what) in [rounded, cut, snaplen].into_iter().filter(|(count, _)| *count > 0) {
        text += &format!("  not kept: {count} {what}\n");
    }
    if file.times_carried > 0 {
        let packets = count_text(file.times_carried, "packet");
        text += &format!(
            "  changed: {packets} with a fraction of a second or more, carried into the seconds\n"
        );
    }
    for (kind, count) in &file.skipped_blocks {
        text += &format!("  not kept: {} of kind {kind}\n", count_text(*count, "block"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_told() {
        let mut file = FileReport {
            path: "a.pcapng".to_owned(),
            packets: 1,
            times_rounded: 2,
            error: Some("it ends inside a block".to_owned()),
            notes: vec!["pcapng".to_owned(), "gzip".to_owned()],
            ended: true,
            ..FileReport::default()
        };
        file.skipped_blocks.insert("name_resolution".to_owned(), 3);
        let report = ImportReport {
            packets: 1,
            stored: 1,
            unreadable: 1,
            files: vec![file],
            ..Default::default()
        };
        let text = text(&report, Paint::stderr());
        for wanted in [
            "a.pcapng: 1 packet, 0 B (pcapng, gzip)\n",
            "not read to its end: it ends inside a block\n",
            "not kept: 2 times finer than a nanosecond",
            "not kept: 3 blocks of kind name_resolution\n",
            "1 packet, 0 B: NOT ALL STORED\n",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
    }
}
