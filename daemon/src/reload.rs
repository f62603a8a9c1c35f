//! The configuration's file, read again while the recorder runs, or stands by.
//!
//! ```text
//!  SIGHUP ─► read ─► compare ─► names, filters, certificates are tried ─► all of it holds
//!             └─► a fault, or a key that takes a new start: nothing changes
//! ```
//! Half a configuration is never in force, and whoever takes over a shared volume records with the
//! one that held while he stood by. Recording does not notice: who may ask, what is kept for
//! how long, what is shown over TLS and what is logged are no matter of the lanes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sd_notify::NotifyState;
use wirevault_config::{Changes, Config, Given, LogLevel};
use wirevault_lifecycle::audit::Event;
use wirevault_telemetry::log;

use crate::DaemonError;
use crate::lifecycle::Rules;
use crate::lifecycle::audit::text_hash;
use crate::server::App;
use crate::server::access::Access;
use crate::server::doors::Calls;
use crate::server::tls::Certificates;

/// A configuration file, and what the command line says in its place.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    path: PathBuf,
    store: Vec<PathBuf>,
}

impl ConfigFile {
    /// `store` goes before the file's own.
    pub fn new(path: &Path, store: Vec<PathBuf>) -> Self {
        Self { path: path.to_owned(), store }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it.
    ///
    /// # Errors
    /// `Config`.
    pub fn load(&self) -> Result<Config, DaemonError> {
        let store = self.store.clone();
        Ok(wirevault_config::load_with(&self.path, &Given { store })?)
    }
}

/// The level of the log's library.
pub fn level(wanted: LogLevel) -> log::Level {
    match wanted {
        LogLevel::Error => log::Level::ERROR,
        LogLevel::Warn => log::Level::WARN,
        LogLevel::Info => log::Level::INFO,
        LogLevel::Debug => log::Level::DEBUG,
        LogLevel::Trace => log::Level::TRACE,
    }
}

/// The configuration that holds, and where the next one comes from.
pub(crate) struct Reloader {
    file: ConfigFile,
    config: Arc<Config>,
}

/// A configuration of which everything has been tried.
struct Prepared {
    config: Config,
    changes: Changes,
    access: Access,
    certificates: Option<Certificates>,
    rules: Rules,
}

impl Reloader {
    pub(crate) fn new(file: &ConfigFile, config: &Config) -> Self {
        Self { file: file.clone(), config: Arc::new(config.clone()) }
    }

    /// The configuration that holds.
    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config)
    }

    /// Reads it again, tells systemd before and after, and writes down what came of it.
    pub(crate) async fn reload(&mut self, app: &App, calls: &mut Calls) {
        let now = NotifyState::monotonic_usec_now().ok();
        calls.supervisor.tell([NotifyState::Reloading].into_iter().chain(now).collect()).await;
        let (file, running) = (self.file.clone(), Arc::clone(&self.config));
        // Certificates are read and the user database may be asked, which blocks.
        let prepare = move || Prepared::read(&file, &running);
        let prepared = match tokio::task::spawn_blocking(prepare).await {
            Ok(prepared) => prepared,
            Err(error) => Err(("reading it panicked: ".to_owned() + &error.to_string(), None)),
        };
        let [taken, not_taken] = match app.stored() {
            None => ["recording", "recording; another configuration was refused, see the log"],
            Some(_) => {
                ["standing by", "standing by; another configuration was refused, see the log"]
            }
        };
        let (status, event) = match prepared {
            Ok(prepared) => (taken, self.take_over(prepared, app, calls)),
            Err((why, config)) => {
                tracing::error!("another configuration was refused, the old one goes on: {why}");
                let refused = Event::Reloaded { config, changed: Vec::new(), refused: Some(why) };
                (not_taken, refused)
            }
        };
        // The log of the store is durable before systemd is told.
        let noted = app.clone();
        let _ = tokio::task::spawn_blocking(move || noted.audit().note(event)).await;
        calls.supervisor.tell(vec![NotifyState::Ready, NotifyState::Status(status)]).await;
    }

    /// Lets all of it hold.
    fn take_over(&mut self, prepared: Prepared, app: &App, calls: &Calls) -> Event {
        let Prepared { config, changes, access, certificates, rules } = prepared;
        let changed = changes.live;
        calls.access.take_over(access);
        if let (Some(shown), Some(new)) = (&calls.certificates, certificates) {
            shown.take_over(new);
        }
        app.set_rules(rules);
        if let Some(snapshots) = &app.facts().snapshots {
            snapshots.set_config(&config.text);
        }
        log::set_level(level(config.log));
        tracing::info!(changed = changed.join(", "), "the configuration was read again");
        let event =
            Event::Reloaded { config: Some(text_hash(&config.text)), changed, refused: None };
        self.config = Arc::new(config);
        event
    }
}

impl Prepared {
    /// Errors: why it is refused, and the hash of its text if that could be read.
    fn read(file: &ConfigFile, running: &Config) -> Result<Self, (String, Option<String>)> {
        let config = file.load().map_err(|error| (error.chain(), None))?;
        let hash = text_hash(&config.text);
        let changes = running.changes(&config);
        if !changes.fixed.is_empty() {
            let why = format!(
                "{} changed, which takes a new start: `systemctl restart wirevaultd`",
                changes.fixed.join(", ")
            );
            return Err((why, Some(hash)));
        }
        let tried = || {
            let access = Access::new(&config.api)?;
            let tls = config.api.tls.as_ref();
            Ok::<_, DaemonError>((access, tls.map(Certificates::read).transpose()?))
        };
        let (access, certificates) = tried().map_err(|error| (error.chain(), Some(hash)))?;
        let rules = Rules::new(&config.retention);
        Ok(Self { config, changes, access, certificates, rules })
    }
}
