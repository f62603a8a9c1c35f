//! Metrics in Amazon CloudWatch: `PutMetricData`, one call for each period.
//!
//! A call is made once: a second attempt of the SDK after a lost answer would count a period twice,
//! because `PutMetricData` has no token that tells the same request sent again. Whether a period
//! arrived is asked with `GetMetricStatistics`, by its marker.
//!
//! Dimensions are `Appliance`, and `Device` for what each device has. Nothing that has more values
//! than a machine has devices: every name with every value of a dimension is paid for.
//!
//! Source: CloudWatch API Reference, `PutMetricData`, `MetricDatum`, `GetMetricStatistics`, "Common
//! errors".

use std::error::Error;
use std::io;

use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::config::Builder;
use aws_sdk_cloudwatch::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{
    ComparisonOperator, Dimension, MetricDatum, StandardUnit, Statistic, StatisticSet,
};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;
use wirevault_telemetry::publish::{
    DATUMS_MAX, Fate, MARKER, MetricSink, Period, Series, SinkFailure, Values,
};

use crate::boards::{AlarmInput, Boards};
use crate::{MetricOptions, client};

const PUT: &str = "publish metrics";
const ASK: &str = "ask whether metrics arrived";
/// See the module's documentation.
const ATTEMPTS: u32 = 1;
/// Seconds that a single value stands for; anything else stands for a minute.
const EACH_SECOND: i32 = 1;

/// AWS's words for a request that it will not take later either.
const NEVER: [&str; 6] = [
    "InvalidFormat",
    "InvalidParameterCombination",
    "InvalidParameterValue",
    "MissingParameter",
    "RequestEntityTooLarge",
    "ValidationError",
];

/// Amazon CloudWatch.
#[derive(Debug)]
pub struct CloudWatch {
    options: MetricOptions,
    runtime: Runtime,
    client: OnceCell<Client>,
}

impl CloudWatch {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// The operating system gives no descriptor to wait with.
    pub fn new(options: MetricOptions) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { options, runtime, client: OnceCell::new() })
    }

    async fn client(&self) -> &Client {
        let made = async {
            let common = client::config(self.options.region.as_deref(), ATTEMPTS).await;
            let mut config = Builder::from(&common);
            if let Some(endpoint) = &self.options.endpoint {
                config = config.endpoint_url(endpoint);
            }
            Client::from_conf(config.build())
        };
        self.client.get_or_init(|| made).await
    }

    fn dimensions(&self, device: Option<&str>) -> Vec<Dimension> {
        let dimension = |name, value| Dimension::builder().name(name).value(value).build();
        let device = device.map(|device| dimension("Device", device));
        [Some(dimension("Appliance", self.options.appliance.as_str())), device]
            .into_iter()
            .flatten()
            .collect()
    }

    /// A series as CloudWatch wants it.
    fn datums(&self, since_s: u64, series: &Series) -> Vec<MetricDatum> {
        let datum = |second: u32| {
            MetricDatum::builder()
                .metric_name(&series.name)
                .set_dimensions(Some(self.dimensions(series.device.as_deref())))
                .unit(StandardUnit::from(series.unit.name()))
                .timestamp(time(since_s + u64::from(second)))
        };
        match &series.values {
            Values::Seconds(seconds) => {
                let single = |(second, value): &(u32, f64)| {
                    datum(*second).value(*value).storage_resolution(EACH_SECOND).build()
                };
                seconds.iter().map(single).collect()
            }
            Values::Set { count, sum, min, max } => {
                let set = StatisticSet::builder()
                    .sample_count(*count)
                    .sum(*sum)
                    .minimum(*min)
                    .maximum(*max);
                vec![datum(0).statistic_values(set.build()).build()]
            }
            Values::Counts(counts) => {
                let (values, counts) = counts.iter().copied().unzip();
                vec![datum(0).set_values(Some(values)).set_counts(Some(counts)).build()]
            }
        }
    }

    fn failure<E>(&self, doing: &str, error: &SdkError<E>) -> SinkFailure
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let place = match (&self.options.endpoint, &self.options.region) {
            (Some(place), _) | (None, Some(place)) => place,
            (None, None) => "the region of this machine",
        };
        let said_no = error.raw_response().is_some_and(|it| it.status().is_client_error());
        let (what, fate) = match (error.code(), error) {
            (Some(code), _) => {
                let message = error.message().unwrap_or_default();
                let fate = match said_no {
                    true if NEVER.contains(&code) => Fate::Refused,
                    true => Fate::NotTaken,
                    false => Fate::Unknown,
                };
                (format!("{code}: {message}"), fate)
            }
            (None, _) if client::unsigned(error).is_some() => {
                (client::causes(error), Fate::NotTaken)
            }
            (None, SdkError::ConstructionFailure(_)) => (client::causes(error), Fate::NotTaken),
            (None, SdkError::TimeoutError(_)) => ("no answer in time".to_owned(), Fate::Unknown),
            (None, _) => {
                (format!("no answer of CloudWatch: {}", client::causes(error)), Fate::Unknown)
            }
        };
        SinkFailure { why: format!("cannot {doing} at {place}: {what}"), fate }
    }
}

impl MetricSink for CloudWatch {
    fn put(&self, period: &Period) -> Result<(), SinkFailure> {
        let datums = period.series.iter().flat_map(|it| self.datums(period.since_s, it));
        let datums: Vec<_> = datums.collect();
        if datums.len() > DATUMS_MAX {
            let why = format!("a period has {} values; {DATUMS_MAX} is the most", datums.len());
            return Err(SinkFailure { why, fate: Fate::Refused });
        }
        let call = async {
            let request = self.client().await.put_metric_data();
            request.namespace(&self.options.namespace).set_metric_data(Some(datums)).send().await
        };
        let answer = self.runtime.block_on(call);
        answer.map(drop).map_err(|error| self.failure(PUT, &error))
    }

    fn has(&self, until_s: u64) -> Result<bool, SinkFailure> {
        let call = async {
            let request = self.client().await.get_metric_statistics();
            request
                .namespace(&self.options.namespace)
                .metric_name(MARKER)
                .set_dimensions(Some(self.dimensions(None)))
                .start_time(time(until_s))
                .end_time(time(until_s + 1))
                .period(EACH_SECOND)
                .statistics(Statistic::SampleCount)
                .send()
                .await
        };
        let answer = self.runtime.block_on(call).map_err(|error| self.failure(ASK, &error))?;
        Ok(answer.datapoints().iter().any(|it| it.sample_count().is_some_and(|it| it > 0.0)))
    }
}

impl Boards for CloudWatch {
    fn put_alarm(&self, alarm: &AlarmInput) -> Result<(), String> {
        let dimensions = alarm
            .dimensions
            .iter()
            .map(|it| Dimension::builder().name(it.name).value(&it.value).build());
        let call = async {
            let request = self.client().await.put_metric_alarm();
            request
                .alarm_name(&alarm.alarm_name)
                .alarm_description(&alarm.alarm_description)
                .namespace(&alarm.namespace)
                .metric_name(alarm.metric_name)
                .set_dimensions(Some(dimensions.collect()))
                .statistic(Statistic::from(alarm.statistic))
                .period(i32::try_from(alarm.period).unwrap_or(i32::MAX))
                .evaluation_periods(i32::try_from(alarm.evaluation_periods).unwrap_or(i32::MAX))
                .threshold(alarm.threshold)
                .comparison_operator(ComparisonOperator::from(alarm.comparison_operator))
                .treat_missing_data(alarm.treat_missing_data)
                .set_alarm_actions(Some(alarm.alarm_actions.clone()))
                .set_ok_actions(Some(alarm.ok_actions.clone()))
                .send()
                .await
        };
        let answer = self.runtime.block_on(call);
        let doing = format!("put the alarm {}", alarm.alarm_name);
        answer.map(drop).map_err(|error| self.failure(&doing, &error).why)
    }

    fn put_dashboard(&self, name: &str, body: &Value) -> Result<(), String> {
        let call = async {
            let request = self.client().await.put_dashboard();
            request.dashboard_name(name).dashboard_body(body.to_string()).send().await
        };
        let doing = format!("put the dashboard {name}");
        let answer = self.runtime.block_on(call);
        let answer = answer.map_err(|error| self.failure(&doing, &error).why)?;
        let said = answer.dashboard_validation_messages().iter();
        let said: Vec<_> = said.filter_map(|message| message.message()).collect();
        if said.is_empty() { Ok(()) } else { Err(format!("cannot {doing}: {}", said.join("; "))) }
    }
}

fn time(unix_s: u64) -> DateTime {
    DateTime::from_secs(i64::try_from(unix_s).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use wirevault_telemetry::publish::Unit;

    use super::*;

    fn sink() -> CloudWatch {
        let options = MetricOptions {
            namespace: "Wirevault".to_owned(),
            appliance: "box".to_owned(),
            region: Some("eu-central-1".to_owned()),
            endpoint: Some("http://127.0.0.1:9".to_owned()),
        };
        CloudWatch::new(options).unwrap()
    }

    fn series(values: Values) -> Series {
        let (name, device, unit) = ("WriteLatency".to_owned(), Some("3".to_owned()), Unit::Bytes);
        Series { name, device, unit, values }
    }

    #[test]
    fn values_keep_their_seconds_their_unit_and_their_device() {
        let seconds = sink().datums(100, &series(Values::Seconds(vec![(0, 1.0), (7, 2.0)])));
        assert_eq!(seconds[1].timestamp(), Some(&DateTime::from_secs(107)));
        assert_eq!((seconds[1].value(), seconds[1].storage_resolution()), (Some(2.0), Some(1)));
        let names: Vec<_> = seconds[0].dimensions().iter().map(|it| it.name().unwrap()).collect();
        assert_eq!(names, ["Appliance", "Device"]);

        let counts = sink().datums(100, &series(Values::Counts(vec![(1.5, 9.0), (3.0, 1.0)])));
        assert_eq!((counts[0].values(), counts[0].counts()), (&[1.5, 3.0][..], &[9.0, 1.0][..]));
        assert_eq!(counts[0].unit(), Some(&StandardUnit::Bytes));
        assert_eq!(counts[0].storage_resolution(), None);

        let set = Values::Set { count: 3.0, sum: 6.0, min: 1.0, max: 3.0 };
        let set = sink().datums(100, &series(set));
        let set = set[0].statistic_values().unwrap();
        assert_eq!((set.sample_count(), set.sum()), (Some(3.0), Some(6.0)));
    }

    #[test]
    fn a_port_without_a_server_leaves_the_period_in_doubt() {
        let period = Period { since_s: 100, until_s: 101, series: Vec::new() };
        let failure = sink().put(&period).unwrap_err();
        assert_eq!(failure.fate, Fate::Unknown, "{failure}");
        assert!(failure.to_string().contains("http://127.0.0.1:9"), "{failure}");
    }

    #[test]
    fn more_than_a_call_takes_is_refused_without_one() {
        let many = (0..=DATUMS_MAX as u32).map(|second| (second, 0.0)).collect();
        let many = series(Values::Seconds(many));
        let period = Period { since_s: 100, until_s: 101, series: vec![many] };
        assert_eq!(sink().put(&period).unwrap_err().fate, Fate::Refused);
    }
}
