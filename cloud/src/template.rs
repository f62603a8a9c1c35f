//! Alarms and dashboard as resources of a CloudFormation template, from the same tables as those
//! that are put by hand ([`boards`](crate::boards)).
//!
//! The template has the parameters `ApplianceName` and `AlarmTopicArn`, and the condition
//! `HasTopic`; `deploy/appliance.yaml` is one, and holds what [`resources`] gives. The text is YAML
//! for people: one line for each property, one for each graph.
//!
//! Source: CloudFormation User Guide, `AWS::CloudWatch::Alarm`, `AWS::CloudWatch::Dashboard`,
//! `Fn::Sub`.

use wirevault_telemetry::publish::alarms::Part;

use crate::MetricOptions;
use crate::boards::{AlarmInput, alarms, dashboard};

/// The configuration's default, and all that the template's role may publish to.
const NAMESPACE: &str = "Wirevault";
/// What stands for the appliance until CloudFormation knows its name.
const APPLIANCE: &str = "${ApplianceName}";
/// What stands for the region.
const REGION: &str = "${AWS::Region}";
/// What the template's configuration has. Backups are a plan of AWS Backup there, with an alarm of
/// its own, and it has no bucket for a tier.
const PARTS: &[Part] = &[Part::Checkpoints, Part::Anchors];
/// Before and behind what is generated.
const BEGIN: &str = "  # From here on as `wirevault cloudwatch template` prints it.\n";
const END: &str = "  # Up to here.\n";

/// The resources, in the order of the tables.
pub fn resources() -> String {
    let options = MetricOptions {
        namespace: NAMESPACE.to_owned(),
        appliance: APPLIANCE.to_owned(),
        region: None,
        endpoint: None,
    };
    let mut text = BEGIN.to_owned();
    alarms(&options, PARTS, None).iter().for_each(|it| text.push_str(&alarm(it)));
    text.push_str(&board(&options));
    text.push_str(END);
    text
}

fn alarm(alarm: &AlarmInput) -> String {
    let named = alarm.alarm_name.trim_start_matches(APPLIANCE);
    let [dimension] = &alarm.dimensions;
    let told = "!If [HasTopic, [!Ref AlarmTopicArn], !Ref 'AWS::NoValue']";
    let properties = [
        ("AlarmName", substituted(&alarm.alarm_name)),
        ("AlarmDescription", quoted(&alarm.alarm_description)),
        ("Namespace", alarm.namespace.clone()),
        ("MetricName", alarm.metric_name.to_owned()),
        ("Dimensions", format!("[{{Name: {}, Value: !Ref ApplianceName}}]", dimension.name)),
        ("Statistic", alarm.statistic.to_owned()),
        ("Period", alarm.period.to_string()),
        ("EvaluationPeriods", alarm.evaluation_periods.to_string()),
        ("Threshold", alarm.threshold.to_string()),
        ("ComparisonOperator", alarm.comparison_operator.to_owned()),
        ("TreatMissingData", alarm.treat_missing_data.to_owned()),
        ("AlarmActions", told.to_owned()),
        ("OKActions", told.to_owned()),
    ];
    resource(&format!("{}Alarm", in_camel_case(named)), "AWS::CloudWatch::Alarm", &properties)
}

fn board(options: &MetricOptions) -> String {
    let body = dashboard(options, REGION);
    let widgets = body["widgets"].as_array().into_iter().flatten();
    let lines: Vec<_> = widgets.map(|widget| format!("          {widget}")).collect();
    let body = format!("!Sub |\n        {{\"widgets\": [\n{}\n        ]}}", lines.join(",\n"));
    // The template takes no name that would have to be put right here.
    let name = format!("{NAMESPACE}-{APPLIANCE}");
    let properties = [("DashboardName", substituted(&name)), ("DashboardBody", body)];
    resource("Dashboard", "AWS::CloudWatch::Dashboard", &properties)
}

fn resource(name: &str, kind: &str, properties: &[(&str, String)]) -> String {
    let lines = properties.iter().map(|(property, value)| format!("      {property}: {value}\n"));
    format!("  {name}:\n    Type: {kind}\n    Properties:\n{}", lines.collect::<String>())
}

/// Text with parameters in it.
fn substituted(text: &str) -> String {
    format!("!Sub {}", quoted(text))
}

/// A text of YAML that stands for itself.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `packets-lost` is `PacketsLost`: names of resources have letters and digits only.
fn in_camel_case(name: &str) -> String {
    let part = |part: &str| {
        let (first, rest) = part.split_at(part.len().min(1));
        first.to_uppercase() + rest
    };
    name.split('-').map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wirevault_telemetry::publish::ALARMS;

    #[test]
    fn every_alarm_and_the_dashboard_are_resources() {
        let text = resources();
        let wanted = ALARMS.iter().filter(|it| it.about.is_none_or(|part| PARTS.contains(&part)));
        assert_eq!(text.matches("Type: AWS::CloudWatch::Alarm\n").count(), wanted.count());
        assert_eq!(text.matches("Type: AWS::CloudWatch::Dashboard\n").count(), 1);
        for line in [
            "  PacketsLostAlarm:",
            "      AlarmName: !Sub '${ApplianceName}-packets-lost'",
            "      TreatMissingData: breaching",
            "      DashboardName: !Sub 'Wirevault-${ApplianceName}'",
        ] {
            assert!(text.lines().any(|got| got == line), "{line}\nis not in\n{text}");
        }
        let other = text.split("${").skip(1).map(|rest| rest.split('}').next().unwrap_or(rest));
        let mut other = other.filter(|name| !["ApplianceName", "AWS::Region"].contains(name));
        assert_eq!(other.next(), None, "the template has no other parameters");
    }

    #[test]
    fn a_text_stands_for_itself() {
        assert_eq!(quoted("no lane's: 'books' #1"), "'no lane''s: ''books'' #1'");
        assert_eq!(in_camel_case("-epoch-keys-low"), "EpochKeysLow");
    }
}
