//! `wirevault cloudwatch`: alarms and dashboard for the metrics that the recorder publishes.

use std::path::Path;

use wirevault_cloud::MetricOptions;
use wirevault_cloud::boards::{self, Boards};
use wirevault_cloud::template;
use wirevault_config::{Config, Given, load_with};
use wirevault_daemon::DaemonError;
use wirevault_daemon::cloud::publisher;
use wirevault_telemetry::publish::alarms::Part;

use crate::args::{BoardArgs, CloudWatchVerb};
use crate::error::CliError;
use crate::outcome::Outcome;
use crate::output::{put, put_json};

/// Shows them as JSON, or puts them there.
pub(crate) fn cloudwatch(verb: &CloudWatchVerb) -> Result<Outcome, CliError> {
    match verb {
        CloudWatchVerb::Alarms { args, notify } => alarms(args, notify.as_deref()),
        CloudWatchVerb::Dashboard { args, region } => dashboard(args, region.clone()),
        CloudWatchVerb::Template => put(&template::resources()),
    }?;
    Ok(Outcome::Found)
}

fn alarms(args: &BoardArgs, notify: Option<&str>) -> Result<(), CliError> {
    let config = load(&args.config)?;
    let options = options(&config)?;
    let alarms = boards::alarms(&options, &parts(&config), notify);
    if args.json {
        put_json(&alarms)?;
    }
    if args.apply {
        let service = connect(options)?;
        for alarm in &alarms {
            service.put_alarm(alarm).map_err(refused)?;
            put(&format!("{}\n", alarm.alarm_name))?;
        }
    }
    Ok(())
}

fn dashboard(args: &BoardArgs, region: Option<String>) -> Result<(), CliError> {
    let options = options(&load(&args.config)?)?;
    let known = region.or_else(|| options.region.clone());
    let region = known.or_else(|| std::env::var("AWS_REGION").ok()).ok_or_else(|| {
        let why = "the region is not known: name it with --region, in `cloudwatch.region` or in \
                   AWS_REGION";
        CliError::Usage(why.to_owned())
    })?;
    let (name, body) = (boards::dashboard_name(&options), boards::dashboard(&options, &region));
    if args.json {
        put_json(&body)?;
    }
    if args.apply {
        connect(options)?.put_dashboard(&name, &body).map_err(refused)?;
        put(&format!("{name}\n"))?;
    }
    Ok(())
}

fn load(config: &Path) -> Result<Config, CliError> {
    Ok(load_with(config, &Given::default()).map_err(DaemonError::from)?)
}

/// What the recorder of this configuration has.
fn parts(config: &Config) -> Vec<Part> {
    let parts = [
        (Part::Checkpoints, config.snapshots.is_some()),
        (Part::Backups, config.backup.is_some()),
        (Part::Tier, config.tier.is_some()),
        (Part::Anchors, !config.audit.anchors.is_empty()),
    ];
    parts.into_iter().filter_map(|(part, has)| has.then_some(part)).collect()
}

/// As whom the recorder of this configuration publishes.
fn options(config: &Config) -> Result<MetricOptions, CliError> {
    publisher::options(&config.cloudwatch).ok_or_else(|| {
        let why = "this recorder publishes nothing: `cloudwatch.publish` is not true";
        CliError::Usage(why.to_owned())
    })
}

fn connect(options: MetricOptions) -> Result<Box<dyn Boards>, CliError> {
    let service = wirevault_cloud::board_service(options).map_err(CliError::Start)?;
    Ok(service.ok_or_else(publisher::no_service)?)
}

fn refused(message: String) -> CliError {
    CliError::Refused { message }
}
