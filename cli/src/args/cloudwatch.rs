//! `cloudwatch`: alarms and dashboard for the metrics that a recorder publishes.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

/// What is put into CloudWatch.
#[derive(Debug, Subcommand)]
pub(crate) enum CloudWatchVerb {
    /// Alarms: what must not be, and what to do if it is.
    #[command(after_help = "\
Example: wirevault cloudwatch alarms --config wirevault.yaml --json | jq -r '.[].AlarmName'")]
    Alarms {
        #[command(flatten)]
        args: BoardArgs,
        /// Topic of SNS that is told when an alarm is raised, and when it is over.
        #[arg(long, value_name = "ARN")]
        notify: Option<String>,
    },
    /// A dashboard of all metrics.
    #[command(after_help = "\
Example: wirevault cloudwatch dashboard --config wirevault.yaml --apply")]
    Dashboard {
        #[command(flatten)]
        args: BoardArgs,
        /// Region of the metrics; without it that of the configuration, or AWS_REGION.
        #[arg(long, value_name = "NAME")]
        region: Option<String>,
    },
    /// Both as resources of a CloudFormation template that has the parameters ApplianceName and
    /// AlarmTopicArn and the condition HasTopic: what deploy/appliance.yaml holds.
    #[command(after_help = "Example: wirevault cloudwatch template > resources.yaml")]
    Template,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("how").args(["json", "apply"]).required(true))]
pub(crate) struct BoardArgs {
    /// Configuration of the recorder.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Show it as JSON, as the AWS command line takes it.
    #[arg(long)]
    pub(crate) json: bool,
    /// Put it there, or change what is there.
    #[arg(long)]
    pub(crate) apply: bool,
}
