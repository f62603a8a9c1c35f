//! Checks that wait for others: side by side, and no longer than a person does.

use std::panic;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::Finding;

/// For all checks together. The clients of the recorder wait longer, and try again: it has nobody
/// in front of it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A check of something that may never answer.
pub(super) struct Check {
    /// What is told if it does not.
    late: Finding,
    ask: Box<dyn FnOnce() -> Vec<Finding> + Send>,
}

impl Check {
    pub(super) fn new(late: Finding, ask: impl FnOnce() -> Vec<Finding> + Send + 'static) -> Self {
        Self { late, ask: Box::new(ask) }
    }
}

/// What the checks found, in their order. One that takes longer is left behind, and ends with the
/// program.
pub(super) fn side_by_side(checks: Vec<Check>, patience: Duration) -> Vec<Finding> {
    let until = Instant::now() + patience;
    let begun = checks.into_iter().map(|Check { late, ask }| {
        let (tell, told) = mpsc::sync_channel(1);
        // Nobody listens any more if it is late.
        let asking = thread::spawn(move || drop(tell.send(ask())));
        (late, told, asking)
    });
    let begun: Vec<_> = begun.collect();
    let found = begun.into_iter().flat_map(|(late, told, asking)| {
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(found) => found,
            Err(RecvTimeoutError::Timeout) => vec![late],
            Err(RecvTimeoutError::Disconnected) => match asking.join() {
                Ok(()) => unreachable!("it tells before it ends"),
                Err(panicked) => panic::resume_unwind(panicked),
            },
        }
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A silent bucket was waited for for 50 s, and everybody else behind it.
    #[test]
    fn who_never_answers_holds_up_nobody() {
        let (never, silence) = mpsc::sync_channel::<()>(0);
        let silent = Check::new(Finding::ok("a", "late"), move || {
            let _ = silence.recv();
            Vec::new()
        });
        let answer = |about: &'static str| {
            Check::new(Finding::ok(about, "late"), move || vec![Finding::ok(about, "told")])
        };
        let checks = vec![answer("b"), silent, answer("c")];
        let found = side_by_side(checks, Duration::from_secs(2));
        let told: Vec<_> = found.iter().map(|it| (it.about.as_str(), it.seen.as_str())).collect();
        assert_eq!(told, [("b", "told"), ("a", "late"), ("c", "told")]);
        drop(never);
    }
}
