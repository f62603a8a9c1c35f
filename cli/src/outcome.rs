//! What the process says to its caller.

use std::process::ExitCode;

use wirevault_query::summary::Summary;

/// Exit codes. `wirevault --help` lists them; scripts may rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Outcome {
    /// Something was found, or all is well.
    Found = 0,
    /// There is nothing like that, and the answer is complete.
    Nothing = 1,
    /// The question could not be answered.
    Error = 2,
    /// The answer may lack something, or something is damaged.
    Incomplete = 3,
}

impl Outcome {
    /// What an answer of so many items means.
    pub(crate) fn of(summary: &Summary, items: u64) -> Self {
        match (summary.complete, items) {
            (false, _) => Self::Incomplete,
            (true, 0) => Self::Nothing,
            (true, _) => Self::Found,
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incompleteness_goes_before_emptiness() {
        let summary = |complete| Summary { complete, ..Summary::default() };
        assert_eq!(Outcome::of(&summary(true), 1) as u8, 0);
        assert_eq!(Outcome::of(&summary(true), 0) as u8, 1);
        assert_eq!(Outcome::of(&summary(false), 0) as u8, 3);
        assert_eq!(Outcome::of(&summary(false), 5) as u8, 3);
        assert_eq!(Outcome::Error as u8, 2);
    }
}
