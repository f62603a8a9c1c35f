//! `wirevault status`: one page that says whether it records, and what was lost.

use std::fmt::Write;

use wirevault_daemon::api::{
    self, BufferStatus, CardStatus, DeviceStatus, InstanceStatus, KeyStatus, LaneStatus,
    LayoutStatus, LostStatus, PublishStatus, SandboxStatus, SharedStatus, SnapshotStatus, State,
    StatusReport, VolumeStatus,
};
use wirevault_daemon::report::status;
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::args::StatusArgs;
use crate::error::CliError;
use crate::interrupt;
use crate::outcome::Outcome;
use crate::output::{Paint, count_text, put, put_json, size_text, table, table_text};
use crate::place::{self, Asked};

/// State of a volume at which nothing is wrong.
const OK: &str = "ok";

/// Shows the status.
pub(crate) fn show(args: &StatusArgs) -> Result<Outcome, CliError> {
    let cancel = interrupt::watch()?;
    let report: StatusReport = match place::ask(&args.place, &cancel)? {
        Asked::Store(store) => status::offline(&store, &store.catalog(SystemClock.unix_ns())),
        Asked::Daemon(mut client) => client.get(api::STATUS)?,
    };
    match args.json {
        true => put_json(&report)?,
        false => put(&page(&report, Paint::stdout()))?,
    }
    Ok(Outcome::Found)
}

/// The page. Sections without content are left out.
fn page(report: &StatusReport, paint: Paint) -> String {
    let mut page = head(report, paint);
    for reason in &report.reasons {
        line(&mut page, &paint.warn(&format!("  ! {reason}")));
    }
    lanes(&mut page, report, paint);
    cards(&mut page, &report.cards, paint);
    volumes(&mut page, &report.volumes, paint);
    if let Some(buffer) = &report.buffer {
        buffer_section(&mut page, buffer, paint);
    }
    if let Some(layout) = &report.layout {
        layout_section(&mut page, layout, paint);
    }
    if let Some(recovery) = report.recovery.as_ref().filter(|recovery| !recovery.is_clean()) {
        line(&mut page, &format!("\n{}", paint.strong("repaired at the last start")));
        let segments = count_text(recovery.segments, "interrupted segment");
        let packets = count_text(recovery.packets, "packet");
        line(&mut page, &format!("  {segments} closed with {packets}"));
        for damage in &recovery.damage {
            line(&mut page, &paint.bad(&format!("  ! {damage}")));
        }
    }
    page
}

fn head(report: &StatusReport, paint: Paint) -> String {
    let state = match report.state {
        State::Recording => paint.good("recording"),
        State::Degraded => paint.warn("recording, DEGRADED"),
        State::Ended => "all sources have ended".to_owned(),
        State::Standby => "standing by: another machine records".to_owned(),
        State::Fenced => paint.bad("FENCED: another machine has taken over"),
        State::Stopping => paint.warn("stopping"),
        State::Offline => "offline: read from the store, no daemon was asked".to_owned(),
    };
    let sealed = if report.sealed { "sealed" } else { "plaintext" };
    let segments = count_text(report.segments, "segment");
    let mut head = format!("{} {state}\n", paint.strong("wirevault"));
    line(&mut head, &format!("store     {}, {sealed}, {segments}", report.store));
    if let Some(started) = &report.started {
        let seconds = report.now.ns.saturating_sub(started.ns) / 1_000_000_000;
        line(&mut head, &format!("running   since {started}, {}", duration(seconds)));
    }
    if let Some(key) = &report.key {
        let KeyStatus { key, condition, epochs_ahead, .. } = key;
        let ahead = count_text(*epochs_ahead, "epoch key");
        line(&mut head, &format!("key       {key}: {condition}, {ahead} ahead"));
    }
    if let Some(SnapshotStatus { folder, checkpoint, taken: Some(taken), .. }) = &report.snapshots {
        let number = checkpoint.unwrap_or_default();
        line(&mut head, &format!("state     checkpoint {number} in {folder}, {taken}"));
    }
    if let Some(InstanceStatus { id, kind, zone, .. }) = &report.instance {
        line(&mut head, &format!("instance  {id}, {kind} in {zone}"));
    }
    for LostStatus { store, segments, checkpoint, .. } in &report.lost {
        let segments = count_text(*segments, "segment");
        let text =
            format!("lost      instance store of {store}: {segments}, by checkpoint {checkpoint}");
        line(&mut head, &paint.warn(&text));
    }
    if let Some(publish) = &report.publish {
        let PublishStatus { sent_periods, waiting_periods, dropped_periods, .. } = publish;
        let newest = publish.last_sent.as_ref();
        let newest = newest.map_or(String::new(), |last| format!(", the newest until {last}"));
        let sent = count_text(*sent_periods, "period");
        let rest = format!("{waiting_periods} waiting, {dropped_periods} given up");
        line(&mut head, &format!("published {sent}{newest}; {rest}"));
    }
    if let Some(tier) = &report.tier {
        let (segments, bytes) = (count_text(tier.segments, "segment"), size_text(tier.bytes));
        line(&mut head, &format!("tier      {}: {segments}, {bytes}", tier.url));
    }
    line(&mut head, &format!("release   {}", report.version));
    if let Some(sandbox) = &report.sandbox {
        line(&mut head, &format!("sandbox   {}", sandbox_text(sandbox)));
    }
    if let Some(shared) = &report.shared {
        let SharedStatus { role, holder, epoch, lease, .. } = shared;
        let writer = if shared.writes { "this machine" } else { holder.as_str() };
        let seconds = shared.beat_age_ms as f64 / 1e3;
        line(
            &mut head,
            &format!("shared    {role}; {writer}, epoch {epoch}, lease {lease} {seconds:.1} s ago"),
        );
        if let Some(protection) = &shared.protection {
            let why = shared.why_no_reservation.as_ref();
            let why = why.map_or(String::new(), |why| format!("; no reservation: {why}"));
            line(&mut head, &format!("          protected by {protection}{why}"));
        }
    }
    head
}

/// What holds, and what does not.
fn sandbox_text(sandbox: &SandboxStatus) -> String {
    let SandboxStatus { rights, landlock_abi, seccomp, why_not, .. } = sandbox;
    let held = [
        (rights.is_some(), "rights"),
        (landlock_abi.is_some(), "files"),
        (*seccomp, "system calls"),
    ];
    let held: Vec<_> = held.iter().filter(|(held, _)| *held).map(|(_, what)| *what).collect();
    let held = if held.is_empty() { "none".to_owned() } else { held.join(", ") };
    [held].iter().chain(why_not).map(String::as_str).collect::<Vec<_>>().join("; not: ")
}

fn lanes(page: &mut String, report: &StatusReport, paint: Paint) {
    if report.lanes.is_empty() {
        return;
    }
    line(page, &format!("\n{}", paint.strong("lanes, in packets")));
    let headings =
        ["lane", "source", "state", "received", "stored", "shed", "dropped", "in flight", "oldest"];
    let mut table = table(&headings, &[0, 3, 4, 5, 6, 7, 8]);
    for lane in &report.lanes {
        let interface = lane.interface.as_deref().unwrap_or_default();
        table.add_row([
            lane.lane.to_string(),
            format!("{} {interface}", lane.source).trim_end().to_owned(),
            lane.state.clone(),
            lane.received.to_string(),
            lane.stored.to_string(),
            lane.shed.to_string(),
            lane.dropped.to_string(),
            lane.in_flight.to_string(),
            format!("{} ms", lane.unacknowledged_age_ms),
        ]);
    }
    page.push_str(&table_text(&table, "  "));
    for lane in &report.lanes {
        lane_lines(page, lane, report.state == State::Offline, paint);
    }
}

fn lane_lines(page: &mut String, lane: &LaneStatus, offline: bool, paint: Paint) {
    let mut say = |text: String| line(page, &format!("  lane {}: {text}", lane.lane));
    let lost = lane.dropped_by_cause.iter().filter(|(_, packets)| **packets > 0);
    for (cause, packets) in lost {
        say(paint.bad(&format!("{} lost: {cause}", count_text(*packets, "packet"))));
    }
    let by = lane.pressure.as_ref().map_or(String::new(), |pressure| {
        let (permille, cause) = (pressure.permille, &pressure.cause);
        format!(" ({cause}, {}.{} %)", permille / 10, permille % 10)
    });
    for policy in &lane.policies {
        let counts = [(policy.shed, "left out"), (policy.cut, "cut")];
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            say(format!("{} {what} by {}", count_text(count, "packet"), policy.name));
        }
        if policy.rung && policy.active {
            say(paint.bad(&format!("under pressure{by}: {} holds", policy.name)));
        }
    }
    let counts = [
        (lane.cut, "cut"),
        (lane.unparsed, "not parsed"),
        (lane.unreadable, "not readable"),
        (lane.times_rounded, "with a time that was rounded"),
        (lane.cut_to_snaplen, "cut to the snap length of their file"),
        (lane.times_carried, "with a fraction of a second carried over"),
        (lane.options_cut, "with options that were shortened"),
        (lane.stripped, "stored without their outer headers"),
        (lane.kept_fragments, "stored as fragments of tunnels"),
        (lane.truncated_mirror, "cut by the mirror"),
        (lane.duplicates, "marked as second copies"),
        (lane.unindexed_chunks, "in chunks without index (chunks)"),
        (lane.filtered_chunks, "in chunks whose flows the index does not follow (chunks)"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        say(format!("{count} {what}"));
    }
    for (kind, count) in &lane.skipped_blocks {
        say(format!("{} of kind {kind} not kept", count_text(*count, "block")));
    }
    if let Some(until) = &lane.durable_until {
        say(format!("durable up to {until}, watermark {}", lane.watermark));
    }
    if let Some(error) = &lane.error {
        say(paint.bad(error));
    }
    if offline {
        return;
    }
    if lane.flows_max > 0 {
        say(format!("{} flows in the open segment, {} at most", lane.flows, lane.flows_max));
    }
    let mut uses = vec![format!("pages {}", lane.hugepages)];
    uses.extend(lane.fanout.as_ref().map(|fanout| format!("fanout {fanout}")));
    uses.extend(lane.cpu.map(|cpu| format!("cpu {cpu}")));
    uses.extend((lane.ring_bytes > 0).then(|| format!("ring {}", size_text(lane.ring_bytes))));
    uses.extend((!lane.clocks.is_empty()).then(|| format!("clock {}", lane.clocks.join(", "))));
    say(uses.join("; "));
    for note in &lane.notes {
        say(format!("note: {note}"));
    }
}

/// Packets that no lane knows of, where there are any.
fn cards(page: &mut String, cards: &[CardStatus], paint: Paint) {
    for card in cards {
        let mut say = |text: String| {
            line(page, &paint.bad(&format!("  card {}: {text}, before any lane", card.interface)));
        };
        if card.missed_packets > 0 {
            say(format!("{} found no room", count_text(card.missed_packets, "packet")));
        }
        for (limit, packets) in card.allowance_packets.iter().filter(|(_, packets)| **packets > 0) {
            let packets = count_text(*packets, "packet");
            say(format!("{packets} over EC2's limit {limit} held back or dropped"));
        }
    }
}

fn volumes(page: &mut String, volumes: &[VolumeStatus], paint: Paint) {
    if volumes.is_empty() {
        return;
    }
    line(page, &format!("\n{}", paint.strong("volumes")));
    let headings = ["path", "state", "used", "quota", "", "segments", "write p99", "sync p99"];
    let mut table = table(&headings, &[2, 3, 4, 5, 6, 7]);
    let micros = |time: Option<u64>| time.map_or("-".to_owned(), |micros| format!("{micros} us"));
    for volume in volumes {
        table.add_row([
            volume.path.clone(),
            match volume.state.split(':').next() {
                Some(OK) => OK,
                Some("suspect") => "SUSPECT",
                Some("worn") => "WORN",
                Some("stalled") => "STALLED",
                Some("full") => "FULL",
                _ => "FAILED",
            }
            .to_owned(),
            size_text(volume.used_bytes),
            size_text(volume.quota_bytes),
            format!("{} %", (volume.used_bytes * 100).div_ceil(volume.quota_bytes.max(1))),
            volume.segments.to_string(),
            micros(volume.write_p99_us),
            micros(volume.sync_p99_us),
        ]);
    }
    page.push_str(&table_text(&table, "  "));
    for volume in volumes.iter().filter(|volume| volume.state != OK) {
        line(page, &paint.bad(&format!("  {}: {}", volume.path, volume.state)));
    }
    for volume in volumes.iter().filter(|volume| !volume.backend.is_empty()) {
        let has = |on: bool, what: &str| format!("{what} {}", if on { "yes" } else { "NO" });
        let uses = [
            volume.backend.clone(),
            has(volume.o_direct, "O_DIRECT"),
            has(volume.registered_buffers, "registered buffers"),
            has(volume.registered_files, "registered files"),
        ];
        line(page, &format!("  {}: {}", volume.path, uses.join("; ")));
        for why in &volume.why_not {
            line(page, &paint.warn(&format!("    not in use: {why}")));
        }
        if volume.failed_chunks > 0 {
            let chunks = count_text(volume.failed_chunks, "chunk");
            line(page, &paint.bad(&format!("    {chunks} not taken: the device failed")));
        }
        if volume.bad_places > 0 {
            let places = count_text(volume.bad_places, "bad place");
            line(page, &paint.warn(&format!("    {places}: not used any more")));
        }
        if let Some(device) = &volume.device {
            device_lines(page, device, paint);
        }
    }
}

fn layout_section(page: &mut String, layout: &LayoutStatus, paint: Paint) {
    line(page, &format!("\n{}", paint.strong("threads")));
    line(page, &format!("  {}: {}", layout.topology, layout.why));
    let node = |node: Option<u32>| node.map_or(String::new(), |node| format!(", node {node}"));
    for thread in &layout.threads {
        let (name, cpus) = (&thread.name, cpu_list(&thread.cpus));
        line(page, &format!("  {name}: {cpus}{}", node(thread.node)));
        if let Some(why) = &thread.why_not {
            line(page, &paint.warn(&format!("  {name}: {why}")));
        }
    }
    if !layout.others.is_empty() {
        line(page, &format!("  everything else: {}", cpu_list(&layout.others)));
    }
    for part in &layout.memory {
        let (used, chunks) = (part.in_flight, part.chunks);
        if let Some(node) = part.node {
            line(page, &format!("  buffer on node {node}: {used} of {chunks} chunks in use"));
        }
    }
}

/// `cpus 2-4,7`.
fn cpu_list(cpus: &[usize]) -> String {
    let ranges = cpus.chunk_by(|a, b| a + 1 == *b);
    let range = |range: &[usize]| match range {
        [first, .., last] => format!("{first}-{last}"),
        _ => range.iter().map(usize::to_string).collect(),
    };
    match cpus {
        [] => "any cpu".to_owned(),
        [cpu] => format!("cpu {cpu}"),
        _ => format!("cpus {}", ranges.map(range).collect::<Vec<_>>().join(",")),
    }
}

fn buffer_section(page: &mut String, buffer: &BufferStatus, paint: Paint) {
    line(page, &format!("\n{}", paint.strong("buffer")));
    let locked = if buffer.locked { "locked" } else { "NOT locked" };
    let (bytes, pages) = (size_text(buffer.bytes), &buffer.hugepages);
    line(page, &format!("  {bytes}, pages {pages}, {locked}"));
    let (used, chunks) = (buffer.in_flight, buffer.chunks);
    let permille = buffer.pressure_permille;
    line(
        page,
        &format!(
            "  {used} of {chunks} chunks in use, pressure {}.{} %",
            permille / 10,
            permille % 10
        ),
    );
    if !buffer.p999_ns.is_empty() {
        let one = |(name, ns): (&String, &u64)| format!("{name} {:.1} µs", *ns as f64 / 1000.0);
        let all: Vec<String> = buffer.p999_ns.iter().map(one).collect();
        line(page, &format!("  99.9 % of operations take at most: {}", all.join(", ")));
    }
    for why in &buffer.why_not {
        line(page, &paint.warn(&format!("  not in use: {why}")));
    }
}

/// What the disk below a volume says of itself; nothing of one that is not known.
fn device_lines(page: &mut String, device: &DeviceStatus, paint: Paint) {
    if device.serial.is_empty() {
        return;
    }
    let said = [
        device.celsius.map(|celsius| format!("{celsius} °C")),
        device.used_percent.map(|percent| format!("{percent} % of its life used")),
        device.spare_percent.map(|percent| format!("{percent} % spare")),
    ];
    let named = format!("{} {}", device.model, device.serial);
    let all: Vec<String> = std::iter::once(named).chain(said.into_iter().flatten()).collect();
    line(page, &format!("    device: {}", all.join(", ")));
    for warning in &device.warnings {
        line(page, &paint.bad(&format!("    the device warns: {warning}")));
    }
}

fn line(page: &mut String, text: &str) {
    // Writing into a text cannot fail.
    let _ = writeln!(page, "{text}");
}

/// A span of time in its two largest units: `3d 4h`, `12m 5s`.
fn duration(seconds: u64) -> String {
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let shown = parts[first..].iter().take(2).map(|(count, unit)| format!("{count}{unit}"));
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use wirevault_daemon::api::{MemoryStatus, ThreadStatus};

    use super::*;

    fn thread(name: &str, cpus: &[usize], node: Option<u32>) -> ThreadStatus {
        ThreadStatus { name: name.to_owned(), cpus: cpus.to_vec(), node, why_not: None }
    }

    fn report() -> StatusReport {
        let mut lane = LaneStatus {
            interface: Some("eth0".to_owned()),
            source: "packet_mmap".to_owned(),
            state: "running".to_owned(),
            received: 110,
            stored: 90,
            dropped: 15,
            in_flight: 5,
            hugepages: "2 MiB".to_owned(),
            fanout: Some("hash".to_owned()),
            ..LaneStatus::default()
        };
        lane.dropped_by_cause.insert("ring_overflow".to_owned(), 15);
        lane.dropped_by_cause.insert("no_buffer".to_owned(), 0);
        let volume = VolumeStatus {
            path: "/data".to_owned(),
            quota_bytes: 1 << 30,
            used_bytes: 1 << 28,
            state: "ok".to_owned(),
            backend: "io_uring".to_owned(),
            registered_files: true,
            why_not: vec!["O_DIRECT: the file system refuses it".to_owned()],
            ..VolumeStatus::default()
        };
        StatusReport {
            state: State::Degraded,
            condition: "degraded".to_owned(),
            reasons: vec!["lane 0 lost packets".to_owned()],
            store: "ab".repeat(16),
            sealed: true,
            started: Some(0.into()),
            now: 90_000_000_000_000.into(),
            version: "0.1.0".to_owned(),
            lanes: vec![lane],
            volumes: vec![volume],
            missing_volumes: Vec::new(),
            buffer: Some(BufferStatus { pressure_permille: 123, ..BufferStatus::default() }),
            layout: Some(LayoutStatus {
                topology: "run_to_completion".to_owned(),
                why: "2 cores; split wants 3".to_owned(),
                threads: vec![
                    thread("lane-0", &[4, 5, 6, 9], Some(1)),
                    thread("closer", &[], None),
                ],
                memory: vec![MemoryStatus { node: Some(1), chunks: 64, in_flight: 3 }],
                others: Vec::new(),
            }),
            segments: 1,
            shared: None,
            recovery: None,
            limits: None,
            holds: None,
            key: None,
            snapshots: None,
            backup: None,
            instance: None,
            lost: Vec::new(),
            cards: vec![CardStatus {
                interface: "eth0".to_owned(),
                missed_packets: 3,
                allowance_packets: [("pps".to_owned(), 1), ("bw_in".to_owned(), 0)].into(),
                why_not: None,
            }],
            publish: None,
            sandbox: None,
            tier: None,
            anchors: Vec::new(),
        }
    }

    #[test]
    fn the_page_says_what_is_lost_and_what_is_not_in_use() {
        let page = page(&report(), Paint::stderr());
        for wanted in [
            "wirevault recording, DEGRADED",
            "sealed, 1 segment\n",
            "1d 1h",
            "! lane 0 lost packets",
            "packet_mmap eth0",
            "15 packets lost: ring_overflow",
            "pages 2 MiB; fanout hash",
            "card eth0: 3 packets found no room, before any lane",
            "card eth0: 1 packet over EC2's limit pps held back or dropped, before any lane",
            "256.0 MiB",
            "25 %",
            "O_DIRECT NO; registered buffers NO; registered files yes",
            "not in use: O_DIRECT: the file system refuses it",
            "pressure 12.3 %",
            "run_to_completion: 2 cores; split wants 3",
            "lane-0: cpus 4-6,9, node 1",
            "closer: any cpu",
            "buffer on node 1: 3 of 64 chunks in use",
        ] {
            assert!(page.contains(wanted), "{wanted} is not in\n{page}");
        }
        assert!(!page.contains("no_buffer") && !page.contains("bw_in"), "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= 100), "{page}");
    }

    #[test]
    fn an_offline_page_has_no_machine_facts() {
        let mut report = report();
        report.state = State::Offline;
        (report.started, report.buffer, report.layout) = (None, None, None);
        report.volumes[0].backend.clear();
        let page = page(&report, Paint::stderr());
        assert!(page.contains("offline") && !page.contains("O_DIRECT"), "{page}");
        assert!(!page.contains("fanout"), "{page}");
    }

    #[test]
    fn durations_have_two_units() {
        assert_eq!(duration(0), "0s");
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(3600), "1h 0m");
        assert_eq!(duration(90_061), "1d 1h");
    }
}
