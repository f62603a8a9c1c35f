//! Where heads of the audit log are kept.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What a key of AWS KMS begins with.
const KEY: &str = "kms:";

/// What is done about the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Audit {
    /// Where heads of it are kept.
    pub anchors: Vec<Anchor>,
    /// Time between two heads where keeping one is a request to somebody.
    pub anchor_every: Duration,
}

/// A place for heads of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anchor {
    /// A file that they are appended to.
    File(PathBuf),
    /// A place for objects, by its URL.
    Objects(String),
    /// A key of AWS KMS that makes codes of them, by its name.
    Key(String),
}

impl From<&str> for Anchor {
    fn from(text: &str) -> Self {
        match text.strip_prefix(KEY) {
            Some(key) => Self::Key(key.to_owned()),
            None if text.contains("://") => Self::Objects(text.to_owned()),
            None => Self::File(PathBuf::from(text)),
        }
    }
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Objects(url) => f.write_str(url),
            Self::Key(key) => write!(f, "{KEY}{key}"),
        }
    }
}
