//! Seeds of what a recorder knows of itself.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use tempfile::TempDir;
use wirevault_format::limits::LBA_BYTES;
use wirevault_format::table::{RunEntry, RunState, SegmentEntry, SegmentState, encode_page};
use wirevault_lifecycle::audit::{self, AuditLog, Event, Who};
use wirevault_lifecycle::certificate::{self, Erased, Erasure};
use wirevault_lifecycle::holds::{self, Hold, HoldList};
use wirevault_lifecycle::snapshot::{CATALOG, Content, Snapshots, StateFile};
use wirevault_lifecycle::tier::{self, Flows, Row, RowKey, TierList};
use wirevault_media::{Media, OpenMode, SimMedia};
use wirevault_telemetry::clock::ManualClock;

const STORE: &str = "01010101010101010101010101010101";

/// A log with an entry of most kinds.
pub(super) fn audit_log() -> Vec<u8> {
    let folder = folder();
    let log = log(folder.path());
    let (store, version) = (STORE.to_owned(), "1.0.0".to_owned());
    let (config, key) = (Some("02".repeat(32)), Some("file:0123456789abcdef".to_owned()));
    let question = serde_json::json!({ "filter": "host 10.0.0.1" });
    let (hold, name, filter) = (1, "a".to_owned(), "arp".to_owned());
    let (since_ns, until_ns, reason, life) = (Some(1), None, None, "03".repeat(16));
    let events = [
        (Who::Recorder, Event::Started { store, version, config, key }),
        (Who::User { uid: 1, gid: 2 }, Event::Asked { verb: "query".to_owned(), question }),
        (Who::Recorder, Event::Keys { trouble: Some("no answer".to_owned()) }),
        (Who::Unknown, Event::HoldAdded { hold, name, filter, since_ns, until_ns, reason }),
        (Who::Recorder, Event::Held { hold, segment: 1, copy: 2, life, packets: 3, chunks: 4 }),
        (Who::Unknown, Event::HoldReleased { hold, name: "a".to_owned() }),
        (Who::Recorder, Event::Reloaded { config: None, changed: vec![], refused: None }),
        (Who::Recorder, Event::Stopped),
    ];
    for (who, event) in events {
        log.append(who, event).expect("a line is appended");
    }
    std::fs::read(folder.path().join("audit-00000001.log")).expect("the log is there")
}

/// Names of manifests, and their text without the hash: as it was taken, and with the largest
/// numbers.
pub(super) fn checkpoints() -> Vec<Vec<u8>> {
    let (name, file) = taken().iter().find(|(name, _)| !is_piece(name)).expect("a manifest");
    let line = file.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let last = name.replace("00000001", &u64::MAX.to_string());
    let text = String::from_utf8_lossy(line);
    let numbers = text.replace("\"number\":1,", &format!("\"number\":{},", u64::MAX));
    let endless = text.replace("\"bytes\":", "\"bytes\":1844674407370955");
    let seed = |name: &str, text: &str| [name, "\n", text].concat().into_bytes();
    vec![seed(name, &text), seed(&last, &numbers), seed(name, &endless)]
}

/// The pieces that it names.
pub(crate) fn pieces() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    let pieces = taken().iter().filter(|(name, _)| is_piece(name));
    pieces.map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
}

fn is_piece(name: &str) -> bool {
    name.starts_with("piece-")
}

/// Files of a folder with one checkpoint.
fn taken() -> &'static [(String, Vec<u8>)] {
    static TAKEN: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    TAKEN.get_or_init(|| {
        let media = SimMedia::new();
        let files = [("audit-00000001.log", audit_log()), (CATALOG, catalog())];
        let files = files.map(|(name, bytes)| StateFile {
            name: name.to_owned(),
            content: Content::Whole(bytes),
        });
        let mut snapshots = Snapshots::open(Arc::new(media.clone()), STORE, 2).expect("a folder");
        snapshots.take(&files, 9, "fuzz").expect("a checkpoint");
        let read = |name: String| {
            let file = media.open(&name, OpenMode::Read).expect("it was listed");
            let mut bytes = vec![0; file.len().expect("its length") as usize];
            file.read_exact_at(&mut bytes, 0).expect("its bytes");
            (name, bytes)
        };
        media.list().expect("names").into_iter().map(read).collect()
    })
}

/// A run and a segment of a store that is gone.
pub(super) fn catalog() -> Vec<u8> {
    let head = "wirevault catalog 1\nevicted 7 8\nruns 1\nvolume 0 1\n";
    let mut bytes = head.as_bytes().to_vec();
    bytes.resize(LBA_BYTES, 0);
    let run = RunEntry { state: RunState::Running, ..RunEntry::default() };
    bytes.extend(encode_page(0, 1, &[run]));
    bytes.extend(encode_page(0, 1, &[segment()]));
    bytes
}

fn segment() -> SegmentEntry {
    let times_ns = Some((10, 20));
    SegmentEntry { state: SegmentState::Closed, ordinal: 3, times_ns, ..SegmentEntry::default() }
}

/// The tier's list without its sums, a list of holds, a certificate, an export; each behind its
/// number.
pub(super) fn beside_log() -> Vec<Vec<u8>> {
    let folder = folder();
    let path = folder.path();
    let file = |name: &str| std::fs::read(path.join(name)).expect("it was written");
    let mut list = TierList::open(path, "file:///t").expect("a list");
    let (entry, flows) = (segment(), Flows::Due);
    let key = RowKey { second: true, hangs_from: Some("kms:1".to_owned()), other: false };
    let (volume, place, crc, store) = (1, 4, Some(9), None);
    let row = Row { entry, volume, place, crc, store, key, flows, forgetting: false };
    let life = row.entry.life;
    list.coming(&row).expect("a line");
    list.add(row).and_then(|()| list.forgetting(life)).expect("two lines");
    let lines = file(tier::FILE);
    let texts = lines.split_inclusive(|byte| *byte == b'\n').map(|line| &line[9..]);
    let tier = texts.collect::<Vec<_>>().concat();

    let mut held = HoldList::load(path).expect("none yet");
    held.add(hold(&held)).expect("a hold");

    let log = log(path);
    log.append(Who::Recorder, Event::Stopped).expect("a line is appended");
    certificate::certify(&log, Who::Recorder, erasure()).expect("a certificate");
    let certificate = certificate::list(path).expect("a folder").swap_remove(0);
    let certificate = std::fs::read(certificate).expect("it was listed");

    let mut export = Vec::new();
    audit::export(path, STORE, 5, &mut export).expect("an export");
    let files = [tier, file(holds::FILE), certificate, export];
    (0..).zip(files).map(|(pick, file)| [&[pick][..], &file].concat()).collect()
}

fn hold(list: &HoldList) -> Hold {
    Hold {
        number: list.next_number(0),
        name: "a".to_owned(),
        filter: "arp".to_owned(),
        since_ns: Some(1),
        until_ns: None,
        reason: None,
        by: Who::User { uid: 1, gid: 2 },
        added_ns: 3,
        released: false,
    }
}

fn erasure() -> Erasure {
    let (store, path, reason) = (STORE.to_owned(), "/a".to_owned(), "by hand".to_owned());
    let level = Some("L0".to_owned());
    Erasure { store, volume: 0, path, reason, level, epoch: 3, segments: Vec::<Erased>::new() }
}

fn log(folder: &Path) -> AuditLog {
    AuditLog::open(folder, Arc::new(ManualClock::new(1))).expect("a new log")
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}
