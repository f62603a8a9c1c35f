//! Log events of the binaries: one line each, on standard error.
//!
//! Under systemd (`JOURNAL_STREAM` is set) a line carries the priority that journald understands
//! (sd-daemon(3)) instead of a time of its own; on a terminal it has colours; anywhere else it is
//! plain text with a time.

use std::{fmt, io::IsTerminal, sync::OnceLock};

use tracing::{Event, Subscriber};
use tracing_subscriber::{
    Registry,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Compact, Format, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
};

pub use tracing::level_filters::LevelFilter as Level;

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The level is not one of the known words.
    #[error("log level `{got}` is unknown; use off, error, warn, info, debug or trace")]
    Level {
        /// What was given.
        got: String,
    },
    /// Something in this process already receives the events.
    #[error("logging is already set up in this process; call `init` once, in `main`")]
    AlreadySet,
}

/// Reads a level as people type it: off, error, warn, info, debug, trace.
pub fn parse_level(text: &str) -> Result<Level, LogError> {
    match text.trim().to_ascii_lowercase().as_str() {
        "off" => Ok(Level::OFF),
        "error" => Ok(Level::ERROR),
        "warn" | "warning" => Ok(Level::WARN),
        "info" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        "trace" => Ok(Level::TRACE),
        _ => Err(LogError::Level { got: text.to_owned() }),
    }
}

/// Sends every event of `level` and above to standard error, for the whole process.
///
/// # Errors
/// [`LogError::AlreadySet`] the second time.
pub fn init(level: Level) -> Result<(), LogError> {
    let (filter, handle) = reload::Layer::new(level);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let done = if std::env::var_os("JOURNAL_STREAM").is_some() {
        let inner = Format::default().compact().without_time().with_level(false).with_ansi(false);
        // Fields are formatted apart from the line, and must not be coloured either.
        let lines = lines.with_ansi(false).event_format(Journal { inner });
        tracing::subscriber::set_global_default(registry.with(lines))
    } else {
        let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        tracing::subscriber::set_global_default(registry.with(lines.compact().with_ansi(ansi)))
    };
    done.map_err(|_| LogError::AlreadySet)?;
    // Nobody was here before: that would have been an error.
    let _ = FILTER.set(handle);
    Ok(())
}

/// Logs from this level on, if [`init`] was called.
pub fn set_level(level: Level) {
    if let Some(filter) = FILTER.get() {
        // It fails only when the subscriber is gone, which a global one never is.
        let _ = filter.modify(|least| *least = level);
    }
}

/// What the subscriber of the process goes by.
static FILTER: OnceLock<reload::Handle<Level, Registry>> = OnceLock::new();

/// Lines as journald reads them.
struct Journal {
    inner: Format<Compact, ()>,
}

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(priority(*event.metadata().level()))?;
        self.inner.format_event(context, writer, event)
    }
}

fn priority(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "<3>",
        tracing::Level::WARN => "<4>",
        tracing::Level::INFO => "<6>",
        tracing::Level::DEBUG | tracing::Level::TRACE => "<7>",
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test thread panics").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn journal_lines_start_with_a_priority_and_have_no_time_or_colour() {
        let sink = Sink::default();
        let inner = Format::default().compact().without_time().with_level(false).with_ansi(false);
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .event_format(Journal { inner })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(lane = 3, "the ring is full");
        });
        let text = String::from_utf8(sink.0.lock().expect("no panic").clone()).expect("is UTF-8");
        assert!(text.starts_with("<4>"), "{text:?}");
        assert!(text.contains("the ring is full") && text.contains("lane=3"), "{text:?}");
        assert!(!text.contains('\u{1b}') && text.ends_with('\n'), "{text:?}");
    }

    #[test]
    fn levels_are_read_as_people_type_them() {
        assert_eq!(parse_level(" WARN ").expect("is a level"), Level::WARN);
        let error = parse_level("loud").expect_err("is not a level");
        assert!(error.to_string().contains("`loud`"), "{error}");
    }
}
