//! Where closed segments go that the volumes have no room for: `tier`.

use super::Without::{Fault, Nothing, Value};
use super::{GIB, KIB, Key, Kind, hidden, key, size};
use crate::settings::TierFlows;

/// Bytes of the address at most.
const URL_BYTES_MAX: usize = 1024;

pub(super) const KEYS: &[Key] = &[
    hidden(key(
        "tier",
        Kind::Section,
        Nothing,
        "",
        "A place for closed segments outside of the volumes, where a rule of `retention` with \
         `action: tier` moves them, as they are on disk, with their keys beside them. They are \
         still found.",
    )),
    hidden(key(
        "tier.url",
        Kind::Word(URL_BYTES_MAX),
        Fault,
        "file:///mnt/archive/wirevault",
        "Where it is: `file://` and the absolute path of a folder, or `s3://BUCKET/PREFIX`, which \
         may go on with `?region=`, `&endpoint=` (an address of the service in place of the \
         region's own) and `&storage_class=`. Region and credentials are else found as by any AWS \
         program. What stands before the `?` has to stay as long as segments lie there.",
    )),
    hidden(key(
        "tier.rate",
        size(64 * KIB, 64 * GIB, 1),
        Nothing,
        "100MiB",
        "Bytes a second at most on the way there, and for reading back what was put. Without it \
         only the place limits them.",
    )),
    hidden(key(
        "tier.keep_local",
        Kind::Switch,
        Value("true"),
        "true",
        "What was moved also stays on its volume, where it is read more quickly, until the quota \
         takes it; `false` lets go of it at once.",
    )),
    hidden(key(
        "tier.flows",
        Kind::Choice(TierFlows::NAMES),
        Value("off"),
        "off",
        "`parquet` puts the flows of each segment that goes there beside it, for programs that ask \
         many recorders. They are NOT encrypted, also where the store is: whoever may read the \
         place learns who spoke to whom, when, and how much.",
    )),
];
