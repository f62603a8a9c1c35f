//! Heads of the log with a code of a service, which stand in the log itself.
//!
//! # Format
//! The message that the code is of, five lines of ASCII, each with its end:
//!
//! ```text
//! wirevault audit head 1
//! STORE          id of the store, hex
//! LAST           number of the entry
//! HASH           of its line
//! TIME           Unix ns
//! ```
//!
//! # What that proves
//! Who has the log, its folder, and all that the recorder ever wrote, and may not use the key,
//! cannot change an entry before the last code unseen: he would have to leave the codes behind it
//! out, or make new ones. He can cut the log off behind any code; how old the last one is, is told.
//! A copy of the log, or a backup, carries its codes with it.

use serde::Serialize;
use wirevault_seal::MacService;

use super::anchor::Mark;
use super::entry::{Event, Who};
use super::log::AuditLog;
use super::verify::Source;
use crate::{AuditError, hex};

/// The message of a head.
pub fn message(mark: &Mark) -> String {
    let Mark { store, entry, hash, time_ns } = mark;
    format!("wirevault audit head 1\n{store}\n{entry}\n{hash}\n{time_ns}\n")
}

/// Has a code made of this head, and writes it down. Gives number and hash of that entry.
///
/// # Errors
/// `Service`; as [`AuditLog::append`].
pub fn keep(
    log: &AuditLog,
    mark: &Mark,
    (service, key): (&dyn MacService, &str),
) -> Result<(u64, String), AuditError> {
    let made = service.make_mac(key, message(mark).as_bytes())?;
    let mac = hex::encode(&made.code);
    let Mark { entry: last, time_ns: made_ns, .. } = *mark;
    let event = Event::Anchored { last, hash: mark.hash.clone(), made_ns, key: made.key, mac };
    log.append_hashed(Who::Recorder, event)
}

/// The codes of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Codes {
    /// The heads whose code the service knows for its own.
    #[serde(skip)]
    pub good: Vec<Mark>,
    /// How many those are.
    pub count: u64,
    /// Number and time (Unix ns) of the last of them.
    pub last: Option<(u64, u64)>,
    /// Numbers of entries whose code is no code of these keys, and the key that each names.
    pub wrong: Vec<(u64, String)>,
}

/// Has the service check every code in a log, under whichever of these keys made it. The names that
/// stand in the log are not believed: whoever made a log anew could name a key of his own there.
///
/// # Errors
/// `Service`; as [`Source::verify`].
pub fn check(
    log: Source<'_>,
    store: &str,
    (service, keys): (&dyn MacService, &[String]),
) -> Result<Codes, AuditError> {
    let mut found = Vec::new();
    log.read_hashed(None, &mut |entry, _| {
        if let Event::Anchored { last, hash, made_ns, key, mac } = entry.event {
            let mark = Mark { store: store.to_owned(), entry: last, hash, time_ns: made_ns };
            found.push((entry.number, mark, key, mac));
        }
    })?;
    let mut codes = Codes::default();
    for (number, mark, key, mac) in found {
        let (message, code) = (message(&mark), hex::decode(&mac).unwrap_or_default());
        let mut is_good = false;
        for key in keys {
            is_good = is_good || service.is_mac(key, message.as_bytes(), &code)?;
        }
        match is_good {
            true => codes.good.push(mark),
            false => codes.wrong.push((number, key)),
        }
    }
    codes.count = codes.good.len() as u64;
    codes.last = codes.good.last().map(|mark| (mark.entry, mark.time_ns));
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use wirevault_seal::service::Refusal;
    use wirevault_seal::sim::SimService;
    use wirevault_telemetry::clock::ManualClock;

    use super::*;
    use crate::audit;
    use crate::audit::anchor::{Difference, compare};

    const STORE: &str = "07070707070707070707070707070707";
    const KEYS: [&str; 2] = ["former", "arn:1"];

    /// Adds an entry, and a code of what is the head then.
    fn add(log: &AuditLog, service: &SimService, key: &str, why: &str) {
        let (request, why) = (String::new(), why.to_owned());
        log.append(Who::Unknown, Event::Denied { request, why, others: 0 }).unwrap();
        let (entry, hash) = log.last().unwrap();
        let mark = Mark { store: STORE.into(), entry, hash, time_ns: 5 };
        assert_eq!(keep(log, &mark, (service, key)).unwrap().0, entry + 1);
    }

    /// A log of six entries, three of them with a code: 1, 3 and 5.
    fn coded(service: &SimService, keys: [&str; 3]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open(dir.path(), Arc::new(ManualClock::new(1))).unwrap();
        for (why, key) in ["a", "b", "c"].into_iter().zip(keys) {
            add(&log, service, key, why);
        }
        dir
    }

    /// Its entries, without their hashes.
    fn entries(dir: &tempfile::TempDir) -> Vec<String> {
        let text = fs::read_to_string(dir.path().join("audit-00000001.log")).unwrap();
        text.lines().map(|line| line[65..].to_owned()).collect()
    }

    /// The same is said of the log and of what is exported of it.
    fn checked(folder: &Path, service: &SimService) -> (Codes, Option<Difference>) {
        let export = folder.join("export");
        audit::export(folder, STORE, 7, &mut fs::File::create(&export).unwrap()).unwrap();
        let [log, exported] = [Source::Folder(folder), Source::Export(&export)].map(|log| {
            let codes = check(log, STORE, (service, &KEYS.map(str::to_owned))).unwrap();
            let difference = compare(log, &codes.good).unwrap();
            (codes, difference)
        });
        assert_eq!(log, exported);
        log
    }

    #[test]
    fn whoever_may_not_use_the_key_changes_nothing_before_a_code() {
        let service = SimService::default();
        let dir = coded(&service, [KEYS[0], KEYS[1], KEYS[1]]);
        let (codes, difference) = checked(dir.path(), &service);
        assert_eq!((codes.count, codes.last, difference), (3, Some((4, 5)), None));
        assert!(codes.wrong.is_empty());

        // He changes the third entry and chains anew, with the codes as they were ...
        let mut kept = entries(&dir);
        kept[2] = kept[2].replace("\"b\"", "\"x\"");
        write_chained(dir.path(), &kept);
        assert!(
            Source::Folder(dir.path()).verify(None).unwrap().faults.is_empty(),
            "it chains well"
        );
        let (codes, difference) = checked(dir.path(), &service);
        assert_eq!((codes.count, codes.wrong.len()), (3, 0));
        assert_eq!(difference, Some(Difference::Rewritten { after: Some(0), until: 2 }));

        // ... or with codes that fit, of a key of his own that he gives the other's name ...
        let forged = entries(&coded(&service, ["own"; 3]));
        let forged: Vec<_> =
            forged.iter().map(|line| line.replace("\"own\"", "\"arn:1\"")).collect();
        write_chained(dir.path(), &forged);
        let (codes, _) = checked(dir.path(), &service);
        let wrong = [1, 3, 5].map(|entry| (entry, KEYS[1].to_owned()));
        assert_eq!((codes.count, &codes.wrong[..]), (0, &wrong[..]));
        // ... or with those of another store.
        let other =
            check(Source::Folder(dir.path()), "other", (&service, &[KEYS[1].to_owned()])).unwrap();
        assert_eq!((other.count, other.wrong.len()), (0, 3));
    }

    #[test]
    fn without_the_service_nothing_is_said_of_codes() {
        let service = SimService::default();
        let dir = coded(&service, [KEYS[0], KEYS[1], KEYS[1]]);
        service.set_away(Some(Refusal::Unreachable));
        let log = Source::Folder(dir.path());
        let failed = check(log, STORE, (&service, &[KEYS[0].to_owned()])).unwrap_err();
        assert!(failed.to_string().contains("check network"), "{failed}");
        let log = AuditLog::open(dir.path(), Arc::new(ManualClock::new(1))).unwrap();
        let mark = Mark { store: STORE.into(), entry: 5, hash: log.head(), time_ns: 5 };
        keep(&log, &mark, (&service, KEYS[1])).unwrap_err();
        assert_eq!(log.last().unwrap().0, 5, "nothing is written of a code that there is not");
    }

    fn write_chained(folder: &Path, entries: &[String]) {
        let mut head = super::super::folder::BEGINNING.to_owned();
        let mut text = String::new();
        for entry in entries {
            head = super::super::folder::hash(&head, entry);
            text += &format!("{head} {entry}\n");
        }
        fs::write(folder.join("audit-00000001.log"), text).unwrap();
    }
}
