//! The list of holds: what may not be forgotten until somebody releases it, and why.
//!
//! # Format
//! File `holds.json` in the folder of the audit log: a JSON object of the number of the next hold
//! and a list of [`Hold`]s. It is written to a file of another name first, which is then renamed: a
//! change is there whole or not at all, and durable when the call returns.
//!
//! Numbers are never given again. The copies in the store carry them, so copies of a hold that is
//! in no list (the file was lost) stay and can be released by `#NUMBER`. What was ever added and
//! released stands in the audit log.

use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::AuditError;
use crate::audit::Who;

/// Name of the list within the folder of the audit log.
pub const FILE: &str = "holds.json";
/// Holds at most: each is asked of each segment that closes.
pub const HOLDS_MAX: usize = 256;
/// Bytes of a name at most: it stands in each line about the hold.
pub const NAME_BYTES_MAX: usize = 40;

/// Something that may not be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Its number, which copies carry.
    pub number: NonZeroU32,
    /// Name of the case.
    pub name: String,
    /// What is held, in tcpdump's language; empty for everything.
    pub filter: String,
    /// From this packet time on, Unix ns; nothing: from the beginning.
    pub since_ns: Option<u64>,
    /// Up to this packet time, Unix ns; nothing: also what is still to come.
    pub until_ns: Option<u64>,
    /// Why, for people.
    pub reason: Option<String>,
    /// Who asked for it.
    pub by: Who,
    /// When, Unix ns.
    pub added_ns: u64,
    /// It was released; its copies may not be gone yet.
    pub released: bool,
}

impl Hold {
    /// Whether packets of these times may be held.
    pub fn touches(&self, times_ns: (u64, u64)) -> bool {
        let since_ns = self.since_ns.unwrap_or(0);
        self.until_ns.is_none_or(|until_ns| times_ns.0 < until_ns) && times_ns.1 >= since_ns
    }
}

/// The holds of a store.
#[derive(Debug)]
pub struct HoldList {
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Content {
    next: NonZeroU32,
    holds: Vec<Hold>,
}

/// Why a hold cannot be added or released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// The name is none.
    #[error(
        "{name:?} cannot be the name of a hold: it takes 1 to {NAME_BYTES_MAX} bytes without \
         spaces, and does not begin with #"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// There is one of that name.
    #[error("there is a hold {name} already; give this one another name, or release that one")]
    Exists {
        /// The name.
        name: String,
    },
    /// There is none of that name.
    #[error("there is no hold {name}; `wirevault hold list` shows all")]
    Unknown {
        /// The name.
        name: String,
    },
    /// There are too many.
    #[error("there are {HOLDS_MAX} holds, and no more can be; release one")]
    TooMany,
    /// The list cannot be read or written.
    #[error(transparent)]
    List(#[from] AuditError),
}

impl HoldList {
    /// Reads the list in the folder of an audit log; there may be none yet.
    ///
    /// # Errors
    /// The system's; text that is no list counts as unreadable.
    pub fn load(folder: &Path) -> Result<Self, AuditError> {
        let path = folder.join(FILE);
        let failed = |source| AuditError::Io { path: path.clone(), what: "read", source };
        let content = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| failed(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Content { next: NonZeroU32::MIN, holds: Vec::new() }
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path, content })
    }

    /// All holds, oldest first.
    pub fn holds(&self) -> &[Hold] {
        &self.content.holds
    }

    /// What the next hold would be, with its number left open.
    ///
    /// # Errors
    /// `Name`, `Exists`, `TooMany`.
    pub fn check(&self, name: &str) -> Result<(), HoldError> {
        let plain = name.chars().all(|c| !c.is_whitespace() && !c.is_control());
        let owned = || name.to_owned();
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !plain || name.starts_with('#') {
            return Err(HoldError::Name { name: owned() });
        }
        if self.holds().iter().any(|hold| hold.name == name) {
            return Err(HoldError::Exists { name: owned() });
        }
        match self.holds().len() < HOLDS_MAX {
            true => Ok(()),
            false => Err(HoldError::TooMany),
        }
    }

    /// The number that the next hold gets; `used` is the largest that a copy carries.
    pub fn next_number(&self, used: u32) -> NonZeroU32 {
        self.content.next.max(NonZeroU32::MIN.saturating_add(used))
    }

    /// Adds a hold, durably.
    ///
    /// # Errors
    /// As [`HoldList::check`]; `List`: nothing was added then.
    pub fn add(&mut self, hold: Hold) -> Result<(), HoldError> {
        self.check(&hold.name)?;
        let mut content = self.content.clone();
        content.next = hold.number.saturating_add(1).max(content.next);
        content.holds.push(hold);
        Ok(self.save(content)?)
    }

    /// Says durably that a hold is released.
    ///
    /// # Errors
    /// `Unknown`, `List`.
    pub fn release(&mut self, name: &str) -> Result<(), HoldError> {
        let mut content = self.content.clone();
        let hold = content.holds.iter_mut().find(|hold| hold.name == name);
        hold.ok_or_else(|| HoldError::Unknown { name: name.to_owned() })?.released = true;
        Ok(self.save(content)?)
    }

    /// Forgets a hold whose copies are gone.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&mut self, number: NonZeroU32) -> Result<(), AuditError> {
        let mut content = self.content.clone();
        content.holds.retain(|hold| hold.number != number);
        self.save(content)
    }

    fn save(&mut self, content: Content) -> Result<(), AuditError> {
        let failed = |source| AuditError::Io { path: self.path.clone(), what: "write", source };
        let mut text = serde_json::to_vec_pretty(&content).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        replace(&self.path, &text).map_err(failed)?;
        self.content = content;
        Ok(())
    }
}

/// Puts a text into the place of a file, durably; the folder is made if it is not there.
///
/// # Errors
/// The system's; the file is as it was then.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let draft = path.with_extension("draft");
    let mut file = File::create(&draft)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(list: &HoldList, name: &str) -> Hold {
        Hold {
            number: list.next_number(0),
            name: name.to_owned(),
            filter: "host 10.0.0.1".to_owned(),
            since_ns: Some(100),
            until_ns: Some(200),
            reason: None,
            by: Who::Recorder,
            added_ns: 7,
            released: false,
        }
    }

    #[test]
    fn a_list_outlives_its_process_and_numbers_are_never_given_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = HoldList::load(dir.path()).unwrap();
        for name in ["a", "b"] {
            list.add(hold(&list, name)).unwrap();
        }
        list.release("b").unwrap();
        let again = HoldList::load(dir.path()).unwrap();
        assert_eq!(again.holds(), list.holds());
        assert!(again.holds()[1].released && again.holds()[1].number.get() == 2);
        list.remove(again.holds()[1].number).unwrap();
        let again = HoldList::load(dir.path()).unwrap();
        assert_eq!((again.holds().len(), again.next_number(0).get()), (1, 3));
        assert_eq!(again.next_number(9).get(), 10, "copies of a lost list carry larger ones");
        fs::write(dir.path().join(FILE), b"{").unwrap();
        assert!(HoldList::load(dir.path()).is_err(), "a list that does not read is none");
    }

    #[test]
    fn names_are_checked_and_windows_are_half_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = HoldList::load(dir.path()).unwrap();
        for name in ["", "two words", "#1", &"n".repeat(41)] {
            assert!(matches!(list.check(name), Err(HoldError::Name { .. })), "{name:?}");
        }
        list.add(hold(&list, "a")).unwrap();
        assert!(matches!(list.add(hold(&list, "a")), Err(HoldError::Exists { .. })));
        assert!(matches!(list.release("b"), Err(HoldError::Unknown { .. })));
        let touches = |times| list.holds()[0].touches(times);
        assert_eq!(
            [(0, 99), (0, 100), (199, 300), (200, 300)].map(touches),
            [false, true, true, false]
        );
        let standing = Hold { since_ns: None, until_ns: None, ..hold(&list, "b") };
        assert!(standing.touches((0, 0)) && standing.touches((u64::MAX, u64::MAX)));
    }
}
