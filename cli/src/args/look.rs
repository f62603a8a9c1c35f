//! `status`, `segments`, `verify`, `doctor`, `inspect`: how it stands.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Place;

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Configuration that the recorder is to have.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SegmentsArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Directory of the store: its first volume.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// Key file of a sealed store, where it is not where `init` put it.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum InspectVerb {
    /// Print every size, offset and number that the format promises.
    #[command(after_help = "Example: wirevault inspect constants")]
    Constants,
    /// Print header, chunks and footer of a segment. No key is needed.
    #[command(after_help = "\
Examples:
  wirevault inspect segment ./store/000003.pcapng
  wirevault inspect segment 0:000003#17 --store ./store")]
    Segment(InspectSegmentArgs),
    /// Print superblock, tables and key ring of a volume.
    #[command(after_help = "Example: wirevault inspect volume ./store --json")]
    Volume(InspectVolumeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InspectSegmentArgs {
    /// File of the segment, or its name as `wirevault segments` shows it.
    #[arg(value_name = "FILE|NAME")]
    pub(crate) segment: String,
    /// Directory of the store, to find a segment by its name.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectVolumeArgs {
    /// Directory of the volume.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Key file of a sealed store, where it is not where `init` put it.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
