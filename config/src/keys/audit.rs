//! What is done about the audit log: `audit`.

use super::Without::Nothing;
use super::{Key, Kind, PATH_BYTES_MAX, hidden, key};

pub(super) const KEYS: &[Key] = &[
    hidden(key("audit", Kind::Section, Nothing, "", "The log of what is done with the store.")),
    hidden(key(
        "audit.anchor",
        Kind::Path(PATH_BYTES_MAX),
        Nothing,
        "/mnt/elsewhere/wirevault.heads",
        "File that heads of the audit log are appended to, every minute and after each deletion: \
         on another machine or disk, where who can change the log cannot. `wirevault audit verify \
         --anchor` then finds a log whose end was cut off.",
    )),
];
