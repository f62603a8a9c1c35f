//! What is done about the audit log: `audit`.

use super::Without::{Nothing, Value};
use super::{Key, Kind, PATH_BYTES_MAX, SECOND_MS, hidden, key, millis};

/// Places for heads at most.
const ANCHORS_MAX: usize = 8;
const ANCHOR: Kind = Kind::Word(PATH_BYTES_MAX);
/// An alarm is raised when a head is two hours old.
const EVERY_MAX_MS: u64 = 3600 * SECOND_MS;

pub(super) const KEYS: &[Key] = &[
    hidden(key("audit", Kind::Section, Nothing, "", "The log of what is done with the store.")),
    hidden(key(
        "audit.anchor",
        Kind::List(&ANCHOR, ANCHORS_MAX),
        Nothing,
        "[/mnt/elsewhere/wirevault.heads, 'kms:arn:aws:kms:eu-central-1:123456789012:key/0123']",
        "Where heads of the audit log are kept, which who can change the log cannot change: a file \
         on another machine or disk, appended to every minute and after each deletion; a place \
         for objects by its URL; `kms:KEY`, a key of AWS KMS that makes a code of each, written \
         into the log. `wirevault audit verify --anchor` then finds a log whose end was cut off, \
         or that was made anew.",
    )),
    hidden(key(
        "audit.anchor_every",
        millis(SECOND_MS, EVERY_MAX_MS),
        Value("1h"),
        "1h",
        "Time between two heads in a place for objects, and between two codes.",
    )),
];
