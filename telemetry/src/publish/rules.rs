//! The table of alarms as a rules file of Prometheus.
//!
//! A stretch of an alarm becomes the window of a range, stretches in a row become `for`; what must
//! not be all the time is looked at as it is, for as long as all stretches take. Values are those
//! of the page, so limits in milliseconds or percent become seconds or ratios. Labels of the target
//! (`job`, `instance`, what a site adds) stay; those that tell lanes, volumes and causes apart are
//! folded away, as they are for any other service. Silence is the marker's alarm and no other's:
//! Prometheus notes itself whether a target answers, with all its metrics.
//!
//! Source: Prometheus, "Alerting rules", "Query functions".

use std::fmt::Write;

use super::alarms::{ALARMS, Alarm, Statistic, When};
use super::table::{Of, metric};
use super::{Metric, Unit};
use crate::metrics::PREFIX;

/// Labels that are folded away.
const FOLDED: &str = "without (cause, interface, lane, limit, place, policy, volume)";

/// All alarms, as rules over the targets of this scrape job.
pub fn rules(job: &str) -> String {
    let mut text = format!(
        "# Alarms of wirevaultd, made by `wirevault metrics rules`. They look at single minutes:\n\
         # 30s is the longest scrape interval that they work with.\n\
         groups:\n  - name: {PREFIX}\n    rules:\n"
    );
    for alarm in ALARMS {
        let of = metric(alarm.metric);
        let Some(Bad { expression, wait_s }) = of.and_then(|of| bad(alarm, of, job)) else {
            continue;
        };
        let (name, meaning) = (alert_name(alarm), quoted(alarm.meaning));
        let what_to_do = quoted(alarm.what_to_do);
        let wait =
            if wait_s > 0 { format!("        for: {}\n", span(wait_s)) } else { String::new() };
        // A string cannot refuse to be written to.
        let _ = write!(
            text,
            "      - alert: {name}\n        expr: >-\n          {expression}\n{wait}        \
             annotations:\n          summary: {meaning}\n          description: {what_to_do}\n"
        );
    }
    text
}

/// What must not be.
struct Bad {
    expression: String,
    /// For how long, in seconds.
    wait_s: u32,
}

/// `None` for a metric that is not one number.
fn bad(alarm: &Alarm, of: &Metric, job: &str) -> Option<Bad> {
    let target = format!("{{job=\"{}\"}}", job.replace('\\', "\\\\").replace('"', "\\\""));
    let all_s = alarm.stretch_s * alarm.stretches;
    let window = format!("[{}]", span(alarm.stretch_s));
    let series = |name: &str, suffix: &str| format!("{PREFIX}_{name}{suffix}{target}");
    let over_time = match (alarm.statistic, alarm.when) {
        (Statistic::Minimum, When::Above(_)) | (Statistic::Maximum, When::Below(_)) => None,
        (Statistic::Minimum, _) => Some("min_over_time"),
        (Statistic::Maximum, _) => Some("max_over_time"),
        (Statistic::Average, _) => Some("avg_over_time"),
        (Statistic::Sum, _) => Some("sum_over_time"),
    };
    let gauge = |fold: &str, name: &str| match over_time {
        Some(over_time) => format!("{fold} {FOLDED} ({over_time}({}{window}))", series(name, "")),
        None => format!("{fold} {FOLDED} ({})", series(name, "")),
    };
    let value = match of.of {
        Of::Growth(it) => {
            format!("sum {FOLDED} (increase({}{window}))", series(it.name(), "_total"))
        }
        Of::Risen(it) => {
            format!("sum {FOLDED} (clamp_min(delta({}{window}), 0))", series(it.name(), ""))
        }
        Of::Highest(it) => gauge("max", it.name()),
        Of::Lowest(it) => gauge("min", it.name()),
        Of::Total(it) => gauge("sum", it.name()),
        Of::P99(it) => {
            let rate = format!("rate({}{window})", series(it.name(), "_bucket"));
            format!("histogram_quantile(0.99, sum {FOLDED} ({rate}))")
        }
        Of::Marker => {
            let expression = format!("up{target} == 0 or absent(up{target})");
            return Some(Bad { expression, wait_s: all_s });
        }
        Of::Share(..) | Of::Durations(_) => return None,
    };
    let scale = match of.unit {
        Unit::Milliseconds => 1000.0,
        Unit::Percent => 100.0,
        Unit::Count | Unit::Bytes | Unit::Seconds | Unit::None => 1.0,
    };
    let expression = match alarm.when {
        When::Above(limit) => format!("{value} > {}", limit / scale),
        When::Below(limit) => format!("{value} < {}", limit / scale),
    };
    let wait_s = if over_time.is_some() { all_s - alarm.stretch_s } else { all_s };
    Some(Bad { expression, wait_s })
}

/// `packets-lost` as `WirevaultPacketsLost`.
fn alert_name(alarm: &Alarm) -> String {
    let words = std::iter::once(PREFIX).chain(alarm.name.split('-'));
    words.map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

/// Seconds that are whole minutes, as Prometheus writes them.
fn span(seconds: u32) -> String {
    format!("{}m", seconds / 60)
}

/// A text of YAML in single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alarm_is_a_rule() {
        let text = rules("wirevault");
        for alarm in ALARMS {
            let name = format!("- alert: {}\n", alert_name(alarm));
            assert_eq!(text.matches(&name).count(), 1, "{name}{text}");
            assert!(text.contains(&quoted(alarm.what_to_do)), "{}", alarm.name);
        }
        assert_eq!(text.matches("- alert: ").count(), ALARMS.len());
        assert!(text.lines().all(|line| !line.ends_with(' ')), "{text}");
    }

    #[test]
    fn windows_limits_and_waits_are_those_of_the_table() {
        let text = rules("a \"b\\");
        let job = "{job=\"a \\\"b\\\\\"}";
        for (part, wait) in [
            (format!("(increase(wirevault_lane_dropped_packets_total{job}[5m])) > 0"), None),
            (format!("up{job} == 0 or absent(up{job})"), Some("5m")),
            (format!("(rate(wirevault_nvme_write_seconds_bucket{job}[1m]))) > 0.2"), Some("4m")),
            (
                format!("(max_over_time(wirevault_buffer_pressure_ratio{job}[1m])) > 0.8"),
                Some("2m"),
            ),
            (format!("(wirevault_hold_waiting_segments{job}) > 0"), Some("60m")),
            (format!("(wirevault_key_ahead_keys{job}) < 2"), Some("15m")),
        ] {
            let wait = wait.map(|wait| format!("        for: {wait}\n")).unwrap_or_default();
            let part = format!("{part}\n{wait}        annotations:\n");
            assert!(text.contains(&part), "{part}\nis not in\n{text}");
        }
    }
}
