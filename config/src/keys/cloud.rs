//! What the cloud tells this machine: `cloud`.

use super::Without::{Nothing, Value};
use super::{Key, Kind, hidden, key};
use crate::settings::{Imds, OnNotice};

pub(super) const KEYS: &[Key] = &[
    hidden(key(
        "cloud",
        Kind::Section,
        Nothing,
        "",
        "What is done about what a cloud tells this machine of itself.",
    )),
    hidden(key(
        "cloud.imds",
        Kind::Choice(Imds::NAMES),
        Value("auto"),
        "auto",
        "`auto` asks the metadata service of EC2 every 5 s, if this is an instance: which one, and \
         whether it is about to go away. `off` never asks.",
    )),
    hidden(key(
        "cloud.on_notice",
        Kind::Choice(OnNotice::NAMES),
        Value("record"),
        "record",
        "When it goes (a spot instance that is taken back, a group that ends it), segments are \
         closed and a checkpoint is taken. Then `record` goes on to the last moment, and `stop` \
         ends the recorder well.",
    )),
];
