//! Metrics in Amazon CloudWatch: `cloudwatch`.

use super::Without::{Nothing, Value};
use super::{Key, Kind, SECOND_MS, hidden, key, millis};

/// Bytes of a name of CloudWatch at most. Source: its API reference, `Dimension` and
/// `PutMetricData`.
const NAME_BYTES_MAX: usize = 255;
/// Longest period: alarms look at minutes, and each has to have a value. (One call takes 1,000
/// values, of which each second has six.)
const PERIOD_MAX_MS: u64 = 60 * SECOND_MS;

pub(super) const KEYS: &[Key] = &[
    hidden(key(
        "cloudwatch",
        Kind::Section,
        Nothing,
        "",
        "Metrics in Amazon CloudWatch. Credentials are found as by any AWS program.",
    )),
    hidden(key(
        "cloudwatch.publish",
        Kind::Switch,
        Value("false"),
        "false",
        "Whether metrics are sent. Every metric and every call costs money; the documentation \
         counts them.",
    )),
    hidden(key(
        "cloudwatch.namespace",
        Kind::Word(NAME_BYTES_MAX),
        Value("Wirevault"),
        "Wirevault",
        "The namespace that the metrics stand in. Names that begin with `AWS/` are AWS's own.",
    )),
    hidden(key(
        "cloudwatch.appliance",
        Kind::Word(NAME_BYTES_MAX),
        Nothing,
        "recorder-1",
        "The dimension `Appliance`: what tells this recorder from others. Without it the host \
         name.",
    )),
    hidden(key(
        "cloudwatch.period",
        millis(SECOND_MS, PERIOD_MAX_MS),
        Value("1m"),
        "1m",
        "Time between two calls, in whole seconds. A shorter one costs more, and shows no more.",
    )),
    hidden(key(
        "cloudwatch.region",
        Kind::Word(NAME_BYTES_MAX),
        Nothing,
        "eu-central-1",
        "The region. Without it that of the environment, the profile or the instance.",
    )),
    hidden(key(
        "cloudwatch.endpoint",
        Kind::Word(NAME_BYTES_MAX),
        Nothing,
        "https://vpce-0123.monitoring.eu-central-1.vpce.amazonaws.com",
        "Address of CloudWatch, in place of the region's own.",
    )),
];
