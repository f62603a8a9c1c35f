//! A machine that waits for its turn to write a shared volume, and answers from it meanwhile.
//!
//! It reads the store like `wirevault query --store` does: without a lock, and looking at the
//! device anew for each question, because the other machine goes on writing. It publishes metrics,
//! so that its silence means something.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use wirevault_index::{Catalog, KeySource, StoreReader, open_store};
use wirevault_lifecycle::audit::{self, Event};
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::DaemonError;
use crate::cloud::publisher::{Publisher, Sending};
use crate::input::cards::CardWatch;
use crate::lifecycle::Holds;
use crate::lifecycle::anchors::Occasion;
use crate::lifecycle::audit::{Audit, text_hash};
use crate::lifecycle::snapshots;
use crate::lifecycle::tier;
use crate::reload::Reloader;
use crate::serve::{Services, first_volume, open_audit, publishing};
use crate::server::access::Access;
use crate::server::doors::{Call, Doors};
use crate::server::{App, Facts};
use crate::supervisor;
use crate::volumes::shared::Shared;

/// How often it looks whether the other one is still there.
const LOOK: Duration = Duration::from_millis(250);
/// How long it may take to begin to record, `TimeoutStartSec=` of the unit: systemd waits for no
/// start then, and its watchdog would end a recovery that takes longer than 30 s.
const TAKE_OVER_MAX: Duration = Duration::from_secs(15 * 60);

/// A store that another machine writes.
pub(crate) struct Stored {
    path: PathBuf,
    key: KeySource,
}

impl Stored {
    /// The store as it is now.
    ///
    /// # Errors
    /// As [`open_store`] and [`tier::attach`].
    pub(crate) fn open(&self) -> Result<(StoreReader, Catalog), DaemonError> {
        let mut reader = open_store(&self.path, &self.key)?;
        tier::attach(&mut reader, &self.path, &self.key)?;
        let log = audit::folder_of(&self.path, &reader.store.to_string());
        reader.lost = snapshots::lost_stores(&log).0;
        let catalog = reader.catalog(SystemClock.unix_ns());
        Ok((reader, catalog))
    }
}

/// How waiting ended.
pub(crate) enum Waited {
    /// It is this machine's turn. What is left of the time before, if there was any.
    Turn(Option<StoodBy>),
    /// We were told to stop before it was.
    Stopped,
}

/// What goes over to the recorder.
pub(crate) struct StoodBy {
    /// The log of what was asked.
    pub(crate) audit: Arc<Audit>,
    /// The thread that publishes metrics, if they are published.
    pub(crate) sending: Option<Sending>,
}

/// Waits until this machine may write the volume, and answers questions meanwhile. What is read of
/// the configuration anew holds then, and for whoever records afterwards.
///
/// # Errors
/// The volume cannot be read, the audit log not be opened.
pub(crate) fn wait(
    reloader: &mut Reloader,
    services: &Services,
    shared: &Arc<Shared>,
    doors: Doors,
    notes: Vec<String>,
) -> Result<Waited, DaemonError> {
    shared.look()?;
    if shared.is_silent(Instant::now()) {
        return Ok(Waited::Turn(None));
    }
    let config = &*reloader.config();
    let stored = Stored { path: first_volume(config).to_owned(), key: services.key.clone() };
    let store = stored.open()?.0.store;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let audit = Arc::new(open_audit(config, services, store, &clock)?);
    audit.note(Event::Started {
        store: store.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config: Some(text_hash(&config.text)),
        key: None,
    });
    let facts = Facts {
        started_ns: clock.unix_ns(),
        recovery: Default::default(),
        notes,
        certificates: doors.certificates(),
        shared: Some(Arc::clone(shared)),
        keys: None,
        snapshots: None,
        publishing: publishing(config, services, audit.folder())?,
        successors: None,
        sandbox: None,
        tier: None,
        backups: None,
        instance: None,
        cards: CardWatch::default(),
    };
    let holds = Holds::open(audit.folder())?;
    let app = App::standing_by(stored, facts, Arc::clone(&audit), holds);
    let publisher = Publisher::start(&app, None);
    let holder = shared.status().holder;
    tracing::info!(holder, "another machine writes the shared volume: standing by");
    let turn = doors.answer_while(&app, Access::new(&config.api)?, async |calls| {
        calls.supervisor.tell(vec![NotifyState::Ready, NotifyState::Status("standing by")]).await;
        loop {
            match calls.pause(LOOK).await {
                Some(Call::Stop(signal)) => {
                    tracing::info!("{signal}: it was not this machine's turn to record");
                    return Ok(false);
                }
                Some(Call::Reload) => reloader.reload(&app, calls).await,
                None => {}
            }
            calls.supervisor.tell(vec![NotifyState::Watchdog]).await;
            shared.look()?;
            if shared.is_silent(Instant::now()) {
                tracing::warn!("nobody writes the shared volume any more: taking over");
                // Recovery may read what the other one left open: it has the time of a start.
                let mut states = vec![NotifyState::Status("taking over")];
                states.extend(supervisor::patience(TAKE_OVER_MAX));
                calls.supervisor.tell(states).await;
                return Ok(true);
            }
        }
    })?;
    let closing = publisher.close(&app);
    if turn {
        return Ok(Waited::Turn(Some(StoodBy { audit, sending: closing.hand_over() })));
    }
    closing.end(&[]);
    audit.note(Event::Stopped);
    audit.anchor(Occasion::End);
    Ok(Waited::Stopped)
}
