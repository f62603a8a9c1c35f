//! What systemd is told: that the recorder is ready, lives, reads its configuration again, and is
//! stopping (sd_notify(3)).
//!
//! Telling can block: the socket takes ten messages, or what `net.unix.max_dgram_qlen` says, that
//! nobody has read. So a thread tells, and who has not read the last message is told no more until
//! he has. The recorder once stood still with its supervisor, API and all.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinHandle;

/// How long a message may take before the recorder goes on without knowing.
const TELLING_MAX: Duration = Duration::from_secs(1);

/// The time after which systemd ends a recorder that says nothing; nothing if it does not.
pub(crate) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Tells systemd to wait for so long in place of that, if it waits for anything.
pub(crate) fn patience(limit: Duration) -> Option<NotifyState<'static>> {
    let limit_us = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
    watchdog().map(|_| NotifyState::WatchdogUsec(limit_us))
}

/// Systemd, or whoever reads `NOTIFY_SOCKET`; without that nobody is told.
#[derive(Default)]
pub(crate) struct Supervisor {
    /// A message that was not taken in time.
    stuck: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Tells it, or leaves it if it does not listen.
    pub(crate) async fn tell(&mut self, states: Vec<NotifyState<'static>>) {
        if self.stuck.as_ref().is_some_and(|telling| !telling.is_finished()) {
            return;
        }
        let mut telling = tokio::task::spawn_blocking(move || {
            if let Err(error) = sd_notify::notify(&states) {
                tracing::warn!("systemd was not told: {error}");
            }
        });
        self.stuck = match tokio::time::timeout(TELLING_MAX, &mut telling).await {
            Ok(_) => None,
            Err(_) => {
                tracing::warn!(
                    "NOTIFY_SOCKET is full and nobody reads it; nothing more is told until then"
                );
                Some(telling)
            }
        };
    }
}
