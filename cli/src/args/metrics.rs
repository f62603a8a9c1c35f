//! `metrics`: what Prometheus needs to watch a recorder.

use clap::{Args, Subcommand};

/// What is made for Prometheus.
#[derive(Debug, Subcommand)]
pub(crate) enum MetricsVerb {
    /// Alarms, as a rules file: what must not be, and what to do if it is.
    #[command(after_help = "\
Example: wirevault metrics rules >/etc/prometheus/wirevault.rules.yml")]
    Rules(RulesArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RulesArgs {
    /// Name of the scrape job (`job_name`) that the recorders are targets of.
    #[arg(long, value_name = "NAME", default_value = "wirevault")]
    pub(crate) job: String,
}
