//! `wirevault metrics`: alarms for the metrics that Prometheus reads.

use wirevault_telemetry::publish::rules::rules;

use crate::args::MetricsVerb;
use crate::error::CliError;
use crate::outcome::Outcome;
use crate::output::put;

/// Shows them.
pub(crate) fn metrics(verb: &MetricsVerb) -> Result<Outcome, CliError> {
    match verb {
        MetricsVerb::Rules(args) => put(&rules(&args.job))?,
    }
    Ok(Outcome::Found)
}
