//! Targets that read what a recorder knows of itself: the audit log, the files beside it, and
//! checkpoints, which come back from wherever backups go.

use std::fs;
use std::sync::Arc;

use tempfile::TempDir;
use wirevault_format::crc32c;
use wirevault_index::lost;
use wirevault_lifecycle::snapshot::{self, Snapshots};
use wirevault_lifecycle::{audit, certificate, holds, tier};
use wirevault_media::{Media, SimMedia, check_name};
use wirevault_seal::chain::Chain;

use crate::seeds;

/// An audit log of two files, cut at the first newline behind the middle.
pub(crate) fn audit_log(bytes: &[u8]) {
    let middle = bytes.len() / 2;
    let end = bytes[middle..].iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let (first, second) = bytes.split_at(middle + end);
    let folder = folder();
    for (name, part) in [("audit-00000001.log", first), ("audit-00000002.log", second)] {
        fs::write(folder.path().join(name), part).expect("a small file");
    }
    let mut entries = 0;
    let report = audit::read(folder.path(), None, &mut |_| entries += 1).expect("it is there");
    let lines = |part: &[u8]| part.split_inclusive(|byte| *byte == b'\n').count() as u64;
    let lines = lines(first) + lines(second);
    assert_eq!(report.entries, entries);
    assert!(entries + report.faults.len() as u64 >= lines, "no line is passed over");
    assert!(entries <= lines && report.faults.len() as u64 <= lines);
}

/// A folder with the pieces of a checkpoint, and in it a manifest: its name in the first line, then
/// its text, whose hash is made right, since mutations would get no further.
pub(crate) fn checkpoint(bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let (name, text) = (String::from_utf8_lossy(&bytes[..end]), &bytes[end + 1..]);
    if check_name(&name).is_err() {
        return;
    }
    let media = SimMedia::new();
    for (name, piece) in seeds::state::pieces() {
        media.preload(name, piece);
    }
    let mut chain = Chain::new();
    chain.add(text);
    let hash: String = chain.finish().iter().map(|byte| format!("{byte:02x}")).collect();
    media.preload(&name, &[text, b"\n", hash.as_bytes(), b"\n"].concat());

    let media: Arc<dyn Media> = Arc::new(media);
    for found in snapshot::list(&*media).expect("a folder that lists") {
        let _ = found.manifest.map(|manifest| manifest.bytes());
        Snapshots::open(Arc::clone(&media), &found.store, 2)
            .and_then(|mut snapshots| snapshots.take(&[], 1, "fuzz"))
            .expect("whatever stands there, the next one is taken");
    }
    let Ok(manifest) = snapshot::newest(&*media, None, Some(1)) else { return };
    let (folder, elsewhere) = (folder(), folder());
    let log = folder.path().join("audit");
    if snapshot::restore(&*media, &manifest, &log, "another").is_ok() {
        let _ = snapshot::restore_config(&*media, &manifest, &elsewhere.path().join("w.yaml"));
        let outside = fs::read_dir(folder.path()).expect("the folder above").count();
        assert_eq!(outside, 1, "nothing is written beside the log's folder");
    }
}

/// The catalog of a store that is gone.
pub(crate) fn catalog(bytes: &[u8]) {
    let Ok(lost) = lost::decode(bytes, "01", 1) else { return };
    for segment in &lost.segments {
        let (from, until) = segment.span_ns();
        assert!(from <= until || segment.entry.times_ns.is_some(), "a time without an end");
        let _ = segment.name();
    }
}

/// A file beside the log: the first byte says which.
pub(crate) fn beside_log(bytes: &[u8]) {
    let Some((pick, text)) = bytes.split_first() else { return };
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let put = |name: &str, text: &[u8]| fs::write(path(name), text).expect("a small file");
    match pick % 4 {
        0 => {
            put(tier::FILE, &summed_lines(text));
            let _ = tier::read(folder.path());
        }
        1 => {
            put(holds::FILE, text);
            if let Ok(list) = holds::HoldList::load(folder.path()) {
                let _ = list.next_number(u32::MAX);
                let _ = list.holds().iter().filter(|hold| hold.touches((1, 2))).count();
            }
        }
        2 => {
            put("certificate", text);
            if let Ok(certificate) = certificate::read(&path("certificate")) {
                let _ = certificate::verify(folder.path(), &certificate);
            }
        }
        _ => {
            put("export", text);
            let report = audit::Source::Export(&path("export")).verify(None);
            let lines = text.split_inclusive(|byte| *byte == b'\n').count() as u64;
            assert!(report.expect("it reads").entries <= lines);
        }
    }
}

/// Each line behind its sum, as the tier's list has them.
fn summed_lines(text: &[u8]) -> Vec<u8> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .flat_map(|line| [format!("{:08x} ", crc32c(line)).as_bytes(), line, b"\n"].concat())
        .collect()
}

/// A system without a folder for temporary files does not fuzz.
fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}
