//! What is deleted or moved, and when: `retention`.

use super::Without::{Fault, Nothing};
use super::{DAY_MS, FILTER_BYTES_MAX, Key, Kind, SECOND_MS, hidden, key, millis, size};
use crate::settings::RetentionAction;

/// Rules at most. Each is asked for each segment, once a minute.
const RULES_MAX: usize = 64;
/// Bytes of a rule's name at most: it stands in every line about a deletion.
const NAME_BYTES_MAX: usize = 40;
/// Oldest age of a rule: longer than any store keeps.
const AGE_MAX_DAYS: u64 = 100 * 366;
/// Bytes of a size at most: 1 EiB.
const SIZE_BYTES_MAX: u64 = 1 << 60;

pub(super) const KEYS: &[Key] = &[
    hidden(key(
        "retention",
        Kind::Sections(RULES_MAX),
        Nothing,
        "",
        "Rules for what is deleted before the quota takes it, so that its key is gone for good, or \
         moved to the `tier`. They are asked in this order, once a minute; for each closed segment \
         the first one that matches decides. A rule matches if all it names does. `wirevault \
         lifecycle plan` shows what they want.",
    )),
    hidden(key(
        "retention[].name",
        Kind::Word(NAME_BYTES_MAX),
        Fault,
        "month",
        "Name of the rule, for the audit log and certificates: no spaces.",
    )),
    hidden(key(
        "retention[].action",
        Kind::Choice(RetentionAction::NAMES),
        Fault,
        "delete",
        "`delete` deletes what matches. `tier` moves it to the `tier`, and leaves what lies there \
         already to the rules behind this one. `keep` spares it from the rules behind; the quota \
         still takes it.",
    )),
    hidden(key(
        "retention[].age",
        millis(SECOND_MS, AGE_MAX_DAYS * DAY_MS),
        Nothing,
        "30days",
        "Segments that were closed so long ago. Times of packets do not count: an import of an old \
         capture is young.",
    )),
    hidden(key(
        "retention[].size",
        size(0, SIZE_BYTES_MAX, 1),
        Nothing,
        "500GiB",
        "The oldest of those that match otherwise, so that these bytes of them stay. Not with \
         `action: keep`.",
    )),
    hidden(key(
        "retention[].interface",
        Kind::Interface,
        Nothing,
        "eth0",
        "Segments with packets of this interface: with `delete` only if they have no others.",
    )),
    hidden(key(
        "retention[].flows",
        Kind::Filter(FILTER_BYTES_MAX),
        Nothing,
        "port 53",
        "Segments with flows that this tcpdump filter selects: with `delete` only if, by the \
         index, they hold no others.",
    )),
];
