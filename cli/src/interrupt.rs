//! Ctrl-C: the first one ends the work and what was found so far is told; the second ends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::CliError;

/// Set when the user wants the work to end.
pub(crate) type Cancel = Arc<AtomicBool>;

/// Exit code of a process that a second Ctrl-C ended: as a shell reports death by SIGINT.
const EXIT_AT_ONCE: i32 = 130;

/// Watches for SIGINT and SIGTERM.
///
/// # Errors
/// `Start`.
pub(crate) fn watch() -> Result<Cancel, CliError> {
    let cancel = Cancel::default();
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the exit is armed by the flag that the line after it sets.
        flag::register_conditional_shutdown(signal, EXIT_AT_ONCE, Arc::clone(&cancel))
            .map_err(CliError::Start)?;
        flag::register(signal, Arc::clone(&cancel)).map_err(CliError::Start)?;
    }
    Ok(cancel)
}

/// Whether it was set.
pub(crate) fn is_set(cancel: &Cancel) -> bool {
    cancel.load(Ordering::Relaxed)
}
