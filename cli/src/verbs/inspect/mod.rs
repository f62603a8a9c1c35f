//! `wirevault inspect`: the structures of a store as they are. Keys are never shown.

mod constants;
mod segment;
mod volume;

use crate::args::InspectVerb;
use crate::error::CliError;
use crate::outcome::Outcome;
use crate::output::put;

/// Looks.
pub(crate) fn inspect(verb: &InspectVerb) -> Result<Outcome, CliError> {
    match verb {
        InspectVerb::Constants => {
            put(&constants::text())?;
            Ok(Outcome::Found)
        }
        InspectVerb::Segment(args) => segment::show(args),
        InspectVerb::Volume(args) => volume::show(args),
    }
}
