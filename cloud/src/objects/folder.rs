//! A folder.
//!
//! It has to be there: it is not made, because an archive that is not mounted would then fill the
//! disk below its mount point. Objects are written under a name of their own in `.partial` first,
//! made durable, and renamed.

use std::path::Path;

use opendal::{Operator, services};
use wirevault_media::ObjectFault;

use super::Unopened;

/// Folder within it for what is not whole yet.
const PARTIAL: &str = ".partial";

/// # Errors
/// `NoPlace`.
pub(super) fn is_there(root: &Path) -> Result<(), Unopened> {
    let why = "the folder is not there: mount it, or make it";
    if root.is_dir() { Ok(()) } else { Err(Unopened::new(ObjectFault::NoPlace, why)) }
}

pub(super) fn operator(root: &Path) -> Result<Operator, Unopened> {
    let folder = services::Fs::default()
        .root(&root.to_string_lossy())
        .atomic_write_dir(&root.join(PARTIAL).to_string_lossy());
    Ok(Operator::new(folder)?)
}
