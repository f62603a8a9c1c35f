//! Keys in AWS KMS: `kms`.

use super::Without::{Nothing, Value};
use super::{DAY_MS, Key, Kind, PATH_BYTES_MAX, SECOND_MS, hidden, key, millis};
use crate::settings::WhenOut;

/// Bytes of an address at most.
const ENDPOINT_BYTES_MAX: usize = 255;
/// Bytes of a key's name at most: 2048 at AWS, of which a ring has room for these.
const ARN_BYTES_MAX: usize = 384;
/// Epoch keys ahead at least: when only one is left there is an alarm.
const AHEAD_MIN: u64 = 2;
/// Epoch keys ahead at most: two days of epochs of an hour.
const AHEAD_MAX: u64 = 48;

pub(super) const KEYS: &[Key] = &[
    hidden(key(
        "kms",
        Kind::Section,
        Nothing,
        "",
        "How the key of a store that was made with `--kms-key` is used. Region and credentials are \
         found as by any AWS program.",
    )),
    hidden(key(
        "kms.endpoint",
        Kind::Word(ENDPOINT_BYTES_MAX),
        Nothing,
        "https://vpce-0123.kms.eu-central-1.vpce.amazonaws.com",
        "Address of KMS, in place of the region's own. Whoever answers there sees the keys of all \
         epochs: it is logged as a warning.",
    )),
    hidden(key(
        "kms.epoch_age",
        millis(SECOND_MS, DAY_MS),
        Value("1h"),
        "1h",
        "Time after which the next epoch key takes over. A key ring is then written again.",
    )),
    hidden(key(
        "kms.epochs_ahead",
        Kind::Count { min: AHEAD_MIN, max: AHEAD_MAX },
        Value("3"),
        "3",
        "Epoch keys that are fetched ahead. An outage of KMS of so many times `epoch_age` changes \
         nothing.",
    )),
    hidden(key(
        "kms.when_exhausted",
        Kind::Choice(WhenOut::NAMES),
        Value("extend"),
        "extend",
        "When they are used up and KMS does not answer: `extend` lets the last one go on, which \
         weakens no key; `stop` begins no segment until KMS answers; `seal` makes epoch keys here \
         that hang from `public_key`, also when the recorder starts: it then records without being \
         able to read what is there.",
    )),
    hidden(key(
        "kms.when_revoked",
        Kind::Choice(WhenOut::NAMES),
        Value("extend"),
        "extend",
        "When KMS says that the key is disabled, to be deleted, unknown or not for this recorder: \
         `extend` goes on until the recorder ends, which it then cannot start again; `stop` begins \
         no segment from then on; `seal` goes over to `public_key`. It is noticed within five \
         minutes.",
    )),
    hidden(key(
        "kms.public_key",
        Kind::Path(PATH_BYTES_MAX),
        Nothing,
        "/etc/wirevault/keys/seal.pem",
        "PEM file with the public half of an RSA key of 3072 bits or more, for `seal`. What hangs \
         from it opens with the private half only, in a file or in KMS.",
    )),
    hidden(key(
        "kms.public_key_of",
        Kind::Word(ARN_BYTES_MAX),
        Nothing,
        "arn:aws:kms:eu-central-1:123456789012:key/mrk-0123",
        "The key of KMS that `public_key` is the public half of: RSA_4096, to encrypt and decrypt. \
         Whoever may call `kms:Decrypt` with it reads what was sealed.",
    )),
];
