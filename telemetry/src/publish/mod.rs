//! What a metrics service such as CloudWatch is sent, and how seconds become periods.
//!
//! ```text
//!  metrics page, once a second ─► Sampler ─► Period ─► spool ─► MetricSink
//!                                    ▲
//!                          table: name, unit, which counter or gauge, meaning
//! ```
//! The page is the one that Prometheus reads, so both services are told the same numbers. A service
//! that is paid by the metric gets a choice of them ([`table::PUBLISHED`]), already summed up.
//!
//! Nothing here knows a service: who does implements [`MetricSink`].

pub mod alarms;
pub mod rules;
pub mod sampler;
pub mod table;

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

pub use alarms::{ALARMS, Alarm};
pub use sampler::Sampler;
pub use table::{Metric, PUBLISHED};

/// Name of the metric that says `1` once in every period, at the period's last second. Whether a
/// period has arrived is asked by it.
pub const MARKER: &str = "PeriodsPublished";

/// Values with a time of their own that a period has at most. Source: CloudWatch API reference,
/// `PutMetricData`.
pub const DATUMS_MAX: usize = 1_000;

/// A unit, by the name that CloudWatch has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unit {
    /// A number of things.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Thousandths of a second.
    Milliseconds,
    /// Hundredths.
    Percent,
    /// None of these.
    None,
}

impl Unit {
    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Count => "Count",
            Self::Bytes => "Bytes",
            Self::Seconds => "Seconds",
            Self::Milliseconds => "Milliseconds",
            Self::Percent => "Percent",
            Self::None => "None",
        }
    }
}

/// Everything that is sent of one stretch of time, in one call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Period {
    /// Unix time that it begins at, in seconds.
    pub since_s: u64,
    /// Unix time of its last second. No two periods of an appliance have the same.
    pub until_s: u64,
    /// The metrics.
    pub series: Vec<Series>,
}

/// One metric in one period.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Its name. A period of an earlier release may have names that are none any more.
    pub name: String,
    /// Number of the volume whose device it is of; of the whole appliance without.
    pub device: Option<String>,
    /// Its unit.
    pub unit: Unit,
    /// Its values.
    pub values: Values,
}

/// Values of a metric in a period.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Values {
    /// Values of single seconds: seconds since the period began, and the value.
    Seconds(Vec<(u32, f64)>),
    /// What is left of the values of all seconds.
    Set {
        /// How many there were.
        count: f64,
        /// Their sum.
        sum: f64,
        /// The least.
        min: f64,
        /// The greatest.
        max: f64,
    },
    /// Different values, and how often each occurred.
    Counts(Vec<(f64, f64)>),
}

impl Period {
    /// Values with a time of their own: what a service counts and limits.
    pub fn datums(&self) -> usize {
        let of = |series: &Series| match &series.values {
            Values::Seconds(seconds) => seconds.len(),
            Values::Set { .. } | Values::Counts(_) => 1,
        };
        self.series.iter().map(of).sum()
    }

    /// Makes it end in another second, by which the service then knows it: the marker stands there.
    pub fn end_at(&mut self, until_s: u64) {
        self.until_s = until_s;
        let second = u32::try_from(until_s.saturating_sub(self.since_s)).unwrap_or(u32::MAX);
        for marker in self.series.iter_mut().filter(|series| series.name == MARKER) {
            marker.values = Values::Seconds(vec![(second, 1.0)]);
        }
    }
}

/// A service that keeps metrics. Calls block, each for a few seconds at most.
pub trait MetricSink: Debug + Send + Sync {
    /// Sends a period, once.
    ///
    /// # Errors
    /// [`SinkFailure`]; it says whether the period may have arrived all the same.
    fn put(&self, period: &Period) -> Result<(), SinkFailure>;

    /// Whether the service has the period that ends with this second. A service may need a minute
    /// until it knows.
    ///
    /// # Errors
    /// [`SinkFailure`].
    fn has(&self, until_s: u64) -> Result<bool, SinkFailure>;
}

/// Why a service did not take a period, or did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct SinkFailure {
    /// What was done, where, and what came of it, for people.
    pub why: String,
    /// What became of the period.
    pub fate: Fate,
}

/// What became of a period whose sending failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The service will never take it.
    Refused,
    /// The service has not taken it now.
    NotTaken,
    /// The answer was lost: it may have been taken.
    Unknown,
}
