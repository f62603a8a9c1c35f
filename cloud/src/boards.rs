//! Alarms and dashboard of CloudWatch, made from the tables of what is published.
//!
//! Their JSON is that of the AWS command line (`aws cloudwatch put-metric-alarm --cli-input-json`,
//! `put-dashboard --dashboard-body`), and has the property names of CloudFormation.
//!
//! Source: CloudWatch API Reference, `PutMetricAlarm`; CloudWatch User Guide, "Dashboard body
//! structure and syntax", "Using search expressions in graphs".

use serde::Serialize;
use serde_json::{Value, json};
use wirevault_telemetry::publish::alarms::{Part, Statistic, When};
use wirevault_telemetry::publish::table::metric;
use wirevault_telemetry::publish::{ALARMS, Alarm};

use crate::MetricOptions;

/// Columns of a dashboard. Source: as above.
const COLUMNS: u32 = 24;
/// Size of a graph: two stand side by side.
const WIDTH: u32 = 12;
const HEIGHT: u32 = 6;

/// Graphs: title, metrics, what is shown of a minute.
const GRAPHS: &[(&str, &[&str], &str)] = &[
    ("Packets", &["PacketsReceived", "PacketsStored"], "Sum"),
    ("Packets not kept", &["PacketsLost", "NicDrops", "PacketsShed", "PacketsCut"], "Sum"),
    ("Bytes written", &["BytesWritten"], "Sum"),
    ("Buffer and ladder", &["BufferPressure", "RungsEntered"], "Maximum"),
    ("At risk", &["UnacknowledgedAge", "RingPackets", "WriterBeatAge"], "Maximum"),
    ("Trouble", &["VolumesDegraded", "WritesFailed", "HoldSegmentsWaiting"], "Maximum"),
    ("Trouble of devices", &["DeviceWarnings", "DeviceMediaErrors"], "Maximum"),
    ("Writes of each device", &["WriteLatency", "FlushLatency"], "p99"),
    ("Slowest writes", &["WriteLatencyP99"], "Maximum"),
    ("Devices", &["DeviceTemperature"], "Maximum"),
    ("Limits of EC2", &["AllowanceExceeded", "DeviceThrottled"], "Sum"),
    ("Storage used, life used", &["StorageUsed", "DeviceLifeUsed"], "Maximum"),
    ("Questions", &["QueryDuration"], "p99"),
    ("Kept elsewhere", &["CheckpointFailed", "TierFailed"], "Maximum"),
    ("Behind elsewhere", &["AuditAnchorAge", "BackupOverdue"], "Maximum"),
    ("Sources and keys", &["Recording", "SourcesUp", "EpochKeysAhead"], "Minimum"),
    ("Publisher", &["PeriodsPublished", "PeriodsDropped"], "Sum"),
];

/// A service that alarms and dashboards are put into.
pub trait Boards {
    /// Puts an alarm there, or changes it.
    ///
    /// # Errors
    /// In words.
    fn put_alarm(&self, alarm: &AlarmInput) -> Result<(), String>;

    /// Puts a dashboard there, or changes it.
    ///
    /// # Errors
    /// In words.
    fn put_dashboard(&self, name: &str, body: &Value) -> Result<(), String>;
}

/// An alarm as `PutMetricAlarm` takes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AlarmInput {
    /// Appliance and name of the alarm.
    pub alarm_name: String,
    /// What it means, and what to do.
    pub alarm_description: String,
    /// As of the metrics.
    pub namespace: String,
    /// The metric.
    pub metric_name: &'static str,
    /// The appliance.
    pub dimensions: [DimensionInput; 1],
    /// What is made of a stretch.
    pub statistic: &'static str,
    /// Seconds of a stretch.
    pub period: u32,
    /// Stretches in a row.
    pub evaluation_periods: u32,
    /// The limit.
    pub threshold: f64,
    /// On which side of the limit it is bad.
    pub comparison_operator: &'static str,
    /// What a stretch without a value is.
    pub treat_missing_data: &'static str,
    /// Who is told.
    pub alarm_actions: Vec<String>,
    /// Who is told that it is over.
    #[serde(rename = "OKActions")]
    pub ok_actions: Vec<String>,
}

/// A dimension and its value.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DimensionInput {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}

/// The alarms of an appliance that has these parts; `notify` is the ARN of an SNS topic that they
/// tell. Of a part that it has not, an alarm would be silent for ever and look like all is well.
pub fn alarms(options: &MetricOptions, parts: &[Part], notify: Option<&str>) -> Vec<AlarmInput> {
    let actions: Vec<_> = notify.map(ToOwned::to_owned).into_iter().collect();
    let has = |it: &&Alarm| it.about.is_none_or(|part| parts.contains(&part));
    ALARMS.iter().filter(has).map(|it| alarm(it, options, &actions)).collect()
}

fn alarm(alarm: &Alarm, options: &MetricOptions, actions: &[String]) -> AlarmInput {
    let (comparison_operator, threshold) = match alarm.when {
        When::Above(limit) => ("GreaterThanThreshold", limit),
        When::Below(limit) => ("LessThanThreshold", limit),
    };
    AlarmInput {
        alarm_name: format!("{}-{}", options.appliance, alarm.name),
        alarm_description: format!("{} {}", alarm.meaning, alarm.what_to_do),
        namespace: options.namespace.clone(),
        metric_name: alarm.metric,
        dimensions: [DimensionInput { name: "Appliance", value: options.appliance.clone() }],
        statistic: match alarm.statistic {
            Statistic::Sum => "Sum",
            Statistic::Minimum => "Minimum",
            Statistic::Maximum => "Maximum",
            Statistic::Average => "Average",
        },
        period: alarm.stretch_s,
        evaluation_periods: alarm.stretches,
        threshold,
        comparison_operator,
        treat_missing_data: if alarm.silence_is_bad { "breaching" } else { "notBreaching" },
        alarm_actions: actions.to_owned(),
        ok_actions: actions.to_owned(),
    }
}

/// Name of an appliance's dashboard: letters, digits, `-` and `_` are allowed.
pub fn dashboard_name(options: &MetricOptions) -> String {
    let allowed = |it: char| if it.is_ascii_alphanumeric() || it == '-' { it } else { '_' };
    format!("{}-{}", options.namespace, options.appliance).chars().map(allowed).collect()
}

/// The body of an appliance's dashboard in this region.
pub fn dashboard(options: &MetricOptions, region: &str) -> Value {
    let widget = |(number, (title, names, statistic)): (u32, &(&str, &[&str], &str))| {
        json!({
            "type": "metric",
            "x": number * WIDTH % COLUMNS, "y": number / (COLUMNS / WIDTH) * HEIGHT,
            "width": WIDTH, "height": HEIGHT,
            "properties": {
                "title": title,
                "region": region,
                "view": "timeSeries",
                "period": 60,
                "metrics": names.iter().map(|it| shown(options, it, statistic)).collect::<Vec<_>>(),
            },
        })
    };
    json!({ "widgets": (0..).zip(GRAPHS).map(widget).collect::<Vec<_>>() })
}

/// A metric of a graph. Devices are searched for, so that a dashboard needs not know them.
fn shown(options: &MetricOptions, name: &str, statistic: &str) -> Value {
    let MetricOptions { namespace, appliance, .. } = options;
    if metric(name).is_some_and(|metric| metric.per_device) {
        let search = format!(
            "SEARCH('{{{namespace},Appliance,Device}} Appliance=\"{appliance}\" \
             MetricName=\"{name}\"', '{statistic}', 60)"
        );
        return json!([{ "expression": search }]);
    }
    json!([namespace, name, "Appliance", appliance, { "stat": statistic }])
}

#[cfg(test)]
mod tests {
    use super::*;

    use wirevault_telemetry::publish::PUBLISHED;
    use wirevault_telemetry::publish::table::Of;

    /// Whether CloudWatch can tell a percentile: it needs single values, or counts of them.
    fn has_percentiles(name: &str) -> bool {
        metric(name).is_some_and(|it| it.each_second || matches!(it.of, Of::Durations(_)))
    }

    fn options() -> MetricOptions {
        MetricOptions {
            namespace: "Wirevault".into(),
            appliance: "box.1".into(),
            region: None,
            endpoint: None,
        }
    }

    #[test]
    fn every_graph_shows_what_is_published_and_can_be_told() {
        for (title, names, statistic) in GRAPHS {
            for name in *names {
                assert!(metric(name).is_some(), "{title}: {name}");
                assert!(*statistic != "p99" || has_percentiles(name), "{title}: {name}");
            }
        }
        let body = dashboard(&options(), "eu-central-1").to_string();
        let missing: Vec<_> =
            PUBLISHED.iter().map(|it| it.name).filter(|name| !body.contains(name)).collect();
        assert_eq!(missing, ["QueriesFinished"], "they are the number of `QueryDuration`");
    }

    #[test]
    fn graphs_stand_beside_and_below_each_other() {
        let body = dashboard(&options(), "eu-central-1");
        let widgets = body["widgets"].as_array().unwrap();
        let places: Vec<_> = widgets.iter().map(|it| (it["x"].clone(), it["y"].clone())).collect();
        assert_eq!(
            places[..3],
            [(0.into(), 0.into()), (12.into(), 0.into()), (0.into(), 6.into())]
        );
        assert_eq!(dashboard_name(&options()), "Wirevault-box_1");
    }

    #[test]
    fn the_documentation_lists_every_alarm_with_what_to_do() {
        let page = include_str!("../../docs/OPERATIONS.md");
        for alarm in ALARMS {
            let row = format!("| `{}` |", alarm.name);
            let row = page.lines().find(|line| line.starts_with(&row));
            let said = row.is_some_and(|row| row.ends_with(&format!("{} |", alarm.what_to_do)));
            assert!(said, "{}: {}", alarm.name, alarm.what_to_do);
        }
    }

    #[test]
    fn the_documentation_says_what_is_paid_for() {
        let page = include_str!("../../docs/OPERATIONS.md");
        let each = PUBLISHED.iter().filter(|metric| metric.per_device).count();
        let all = PUBLISHED.len();
        let said = format!(
            "{} metrics and {each} more for each volume ({all} in all with one)",
            all - each
        );
        assert!(page.contains(&said), "{said}");
        let unnamed = PUBLISHED.iter().filter(|it| !page.contains(&format!("`{}`", it.name)));
        assert_eq!(unnamed.map(|metric| metric.name).collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn nobody_waits_for_a_part_that_there_is_not() {
        let of = |parts: &[Part]| {
            let alarms = alarms(&options(), parts, None);
            alarms.into_iter().map(|alarm| alarm.metric_name).collect::<Vec<_>>()
        };
        let (without, with) = (of(&[]), of(&[Part::Tier]));
        assert!(!without.contains(&"TierFailed") && !without.contains(&"BackupOverdue"));
        assert!(with.contains(&"TierFailed") && !with.contains(&"BackupOverdue"));
        assert_eq!(with.len(), without.len() + 1);
    }

    #[test]
    fn an_alarm_says_what_to_do_and_takes_silence_about_losses_for_a_loss() {
        let alarms = alarms(&options(), &[], Some("arn:aws:sns:eu-central-1:123456789012:duty"));
        let lost = serde_json::to_value(&alarms[0]).unwrap();
        assert_eq!(lost["AlarmName"], "box.1-packets-lost");
        assert_eq!(lost["TreatMissingData"], "breaching");
        assert_eq!(lost["Dimensions"], json!([{"Name": "Appliance", "Value": "box.1"}]));
        assert_eq!(lost["OKActions"], lost["AlarmActions"]);
        assert!(lost["AlarmDescription"].as_str().unwrap().contains("`wirevault status`"));
        // Source: CloudWatch API reference, `PutMetricAlarm`.
        assert!(alarms.iter().all(|alarm| alarm.alarm_description.len() <= 1024));
    }
}
