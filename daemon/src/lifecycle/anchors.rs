//! Where heads of the audit log are kept, beside the system's log: files, places for objects, and
//! codes of a key service.
//!
//! ```text
//!  thread `anchors` ─► codes, into the log ─► files and objects, of the head behind them
//!  a deletion ───────► files
//!  the end ──────────► all of them
//! ```
//! Only that thread, and the end, wait for a service. One that does not answer is tried again each
//! minute, and status, metrics and an alarm say so; recording does not notice.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wirevault_config::{Anchor as Wanted, Config};
use wirevault_format::StoreId;
use wirevault_lifecycle::AuditError;
use wirevault_lifecycle::audit::{Anchor, AuditLog, FileAnchor, Mark, ObjectAnchor, codes};
use wirevault_seal::MacService;
use wirevault_telemetry::clock::Clock;

use crate::DaemonError;
use crate::api::AnchorStatus;
use crate::duty::Duty;
use crate::server::App;

/// How often the thread looks what is due.
const PERIOD: Duration = Duration::from_secs(1);
/// Time between two heads in a file, which costs nothing; and between two attempts anywhere.
const PAUSE: Duration = Duration::from_secs(60);

/// Why heads are kept now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// Where the last one is old enough.
    Time,
    /// Something was deleted: whatever costs no waiting.
    Deletion,
    /// The recorder ends: everywhere.
    End,
}

/// All places.
pub(crate) struct Anchors {
    places: Vec<Place>,
    store: String,
    clock: Arc<dyn Clock>,
    since_ns: u64,
}

struct Place {
    /// As it is configured.
    name: String,
    kind: Kind,
    /// Held while a head is kept; whoever shows the rest does not wait for that.
    keeping: Mutex<()>,
    told: Mutex<Told>,
    every: Duration,
}

enum Kind {
    File(FileAnchor),
    Objects(ObjectAnchor),
    Code { service: Arc<dyn MacService>, key: String },
}

/// How it stands with a place.
#[derive(Default)]
struct Told {
    /// Number, hash and time (Unix ns) of what was kept last.
    kept: Option<(u64, String, u64)>,
    /// When that was last the head, Unix ns.
    whole_ns: u64,
    tried: Option<Instant>,
    trouble: Option<String>,
}

impl Anchors {
    /// The places that a configuration names; codes first, so that the others keep those as well.
    ///
    /// # Errors
    /// `Setting`: this build knows no key service. `System`: a place for objects cannot be opened.
    pub(crate) fn of(
        config: &Config,
        store: StoreId,
        clock: Arc<dyn Clock>,
        service: Option<&Arc<dyn MacService>>,
    ) -> Result<Self, DaemonError> {
        let place = |wanted: &Wanted| {
            let kind = match wanted {
                Wanted::File(path) => Kind::File(FileAnchor::new(path)),
                Wanted::Objects(url) => {
                    let what = "opening a place for heads of the audit log";
                    let objects = wirevault_cloud::objects(url)
                        .map_err(|source| DaemonError::System { what, source })?;
                    Kind::Objects(ObjectAnchor::new(objects))
                }
                Wanted::Key(key) => {
                    let service = service.ok_or_else(|| no_service(key))?;
                    Kind::Code { service: Arc::clone(service), key: key.clone() }
                }
            };
            let every =
                if matches!(kind, Kind::File(_)) { PAUSE } else { config.audit.anchor_every };
            let (keeping, told) = Default::default();
            Ok(Place { name: wanted.to_string(), kind, keeping, told, every })
        };
        let places: Result<Vec<_>, DaemonError> = config.audit.anchors.iter().map(place).collect();
        let mut places = places?;
        places.sort_by_key(|place| !matches!(place.kind, Kind::Code { .. }));
        let since_ns = clock.unix_ns();
        Ok(Self { places, store: store.to_string(), clock, since_ns })
    }

    /// Keeps the head where it is another than the last time.
    pub(crate) fn keep(&self, log: &AuditLog, occasion: Occasion) {
        for place in self.places.iter().filter(|place| place.is_due(occasion)) {
            place.keep(log, &self.store, &*self.clock);
        }
    }

    /// How it stands with each. `head` is the hash of the log's last line now.
    pub(crate) fn status(&self, head: &str) -> Vec<AnchorStatus> {
        let now_ns = self.clock.unix_ns();
        let row = |place: &Place| {
            let Told { kept, whole_ns, trouble, .. } = &*place.told();
            let same = kept.as_ref().is_some_and(|(_, hash, _)| hash == head);
            let since_ns = if kept.is_some() { *whole_ns } else { self.since_ns };
            AnchorStatus {
                place: place.name.clone(),
                entry: kept.as_ref().map(|(entry, ..)| *entry),
                kept: kept.as_ref().map(|(_, _, at_ns)| (*at_ns).into()),
                age_ms: if same { 0 } else { now_ns.saturating_sub(since_ns) / 1_000_000 },
                trouble: trouble.clone(),
            }
        };
        self.places.iter().map(row).collect()
    }
}

impl Place {
    fn is_due(&self, occasion: Occasion) -> bool {
        match occasion {
            Occasion::Time => {
                let told = self.told();
                let pause = if told.trouble.is_some() { self.every.min(PAUSE) } else { self.every };
                told.tried.is_none_or(|tried| tried.elapsed() >= pause)
            }
            Occasion::Deletion => matches!(self.kind, Kind::File(_)),
            Occasion::End => true,
        }
    }

    fn keep(&self, log: &AuditLog, store: &str, clock: &dyn Clock) {
        let _keeping = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((entry, hash)) = log.last() else { return };
        let time_ns = clock.unix_ns();
        {
            let mut told = self.told();
            if told.kept.as_ref().is_some_and(|(_, kept, _)| *kept == hash) {
                told.whole_ns = time_ns;
                return;
            }
        }
        let mark = Mark { store: store.to_owned(), entry, hash, time_ns };
        let kept: Result<_, AuditError> = match &self.kind {
            Kind::File(file) => file.keep(&mark).map(|()| (entry, mark.hash)),
            Kind::Objects(objects) => objects.keep(&mark).map(|()| (entry, mark.hash)),
            Kind::Code { service, key } => codes::keep(log, &mark, (&**service, key)),
        };
        let trouble = kept.as_ref().err().map(ToString::to_string);
        let mut told = self.told();
        if told.trouble != trouble {
            match &trouble {
                Some(why) => {
                    tracing::error!(place = self.name, "the log's head is not kept: {why}")
                }
                None => tracing::info!(place = self.name, "the log's head is kept again"),
            }
        }
        (told.tried, told.trouble) = (Some(Instant::now()), trouble);
        if let Ok((entry, hash)) = kept {
            (told.kept, told.whole_ns) = (Some((entry, hash, time_ns)), time_ns);
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_service(key: &str) -> DaemonError {
    DaemonError::Setting {
        path: "audit.anchor".to_owned(),
        value: format!("kms:{key}"),
        problem: "this build knows no service for keys".to_owned(),
        way_out: "build it with the feature `aws`, or remove it".to_owned(),
    }
}

/// Begins to keep heads of the audit log, if there is a place for them.
pub(crate) fn keeping(app: &App) -> Option<Duty> {
    if app.audit().anchors().is_empty() {
        return None;
    }
    let app = app.clone();
    Duty::start("anchors", "keeps heads of the audit log", move |_| {
        app.audit().anchor(Occasion::Time);
        PERIOD
    })
}

#[cfg(test)]
mod tests {
    use wirevault_lifecycle::audit::{Event, Source, Who};
    use wirevault_seal::service::Refusal;
    use wirevault_seal::sim::SimService;
    use wirevault_telemetry::clock::ManualClock;

    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    /// A log whose heads a file and a service keep, by a clock that the test moves.
    struct Rig {
        dir: tempfile::TempDir,
        service: Arc<SimService>,
        clock: Arc<ManualClock>,
        log: AuditLog,
        anchors: Anchors,
    }

    impl Rig {
        fn new() -> Self {
            let (dir, service) = (tempfile::tempdir().unwrap(), Arc::new(SimService::default()));
            let clock = Arc::new(ManualClock::new(1));
            let log = AuditLog::open(&dir.path().join("log"), clock.clone()).unwrap();
            let text = format!(
                "store: /s\ncapture:\n  - interface: lo\naudit:\n  anchor: [{}, 'kms:arn:1']\n  \
                 anchor_every: 1s\n",
                dir.path().join("heads").display()
            );
            let config = wirevault_config::parse(&text, "test").unwrap();
            let macs: Arc<dyn MacService> = service.clone();
            let of = (StoreId::default(), clock.clone());
            let anchors = Anchors::of(&config, of.0, of.1, Some(&macs)).unwrap();
            Self { dir, service, clock, log, anchors }
        }

        fn append(&self) {
            self.log.append(Who::Recorder, Event::Stopped).unwrap();
        }

        fn keep(&self, occasion: Occasion) {
            self.anchors.keep(&self.log, occasion);
        }

        fn shown(&self) -> Vec<(Option<u64>, u64, Option<String>)> {
            let rows = self.anchors.status(&self.log.head());
            rows.into_iter().map(|row| (row.entry, row.age_ms, row.trouble)).collect()
        }
    }

    /// An hour without the service.
    #[test]
    fn an_outage_shows_as_age_and_trouble_and_ends_with_a_code() {
        let rig = Rig::new();
        rig.append();
        rig.keep(Occasion::End);
        assert_eq!(
            rig.shown(),
            [(Some(1), 0, None), (Some(1), 0, None)],
            "the file keeps the code"
        );

        rig.service.set_away(Some(Refusal::Unreachable));
        rig.append();
        rig.clock.advance(Duration::from_millis(HOUR_MS));
        rig.keep(Occasion::End);
        let [(code, age_ms, trouble), file] = rig.shown().try_into().unwrap();
        assert_eq!((code, age_ms), (Some(1), HOUR_MS));
        assert!(trouble.unwrap().contains("check network"));
        assert_eq!(file, (Some(2), 0, None), "the others go on");

        rig.service.set_away(None);
        rig.keep(Occasion::Deletion);
        assert_eq!(rig.shown()[0].1, HOUR_MS, "a deletion waits for no service");
        rig.keep(Occasion::End);
        assert_eq!(rig.shown(), [(Some(3), 0, None), (Some(3), 0, None)]);
        let keys = ["arn:1".to_owned()];
        let written = Source::Folder(rig.log.folder());
        let codes = codes::check(written, &rig.anchors.store, (&*rig.service, &keys)).unwrap();
        assert_eq!((codes.count, codes.wrong.len()), (2, 0));
    }

    /// Nothing was written for eight hours. The first line then was told as a head that nobody had
    /// kept for so long, and an alarm as one of two hours.
    #[test]
    fn the_first_line_behind_a_quiet_night_looked_like_an_outage() {
        let rig = Rig::new();
        rig.append();
        rig.keep(Occasion::End);
        rig.clock.advance(Duration::from_millis(8 * HOUR_MS));
        rig.keep(Occasion::End);
        rig.append();
        let ages: Vec<u64> = rig.shown().iter().map(|(_, age_ms, _)| *age_ms).collect();
        assert_eq!(ages, [0, 0]);
        assert!(rig.dir.path().join("heads").exists());
    }
}
