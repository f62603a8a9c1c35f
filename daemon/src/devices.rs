//! Block devices of this machine, for the command line.

use std::path::Path;

use wirevault_nvme::device::{self, Roots};
pub use wirevault_nvme::{Device, DeviceKind, Use};

use crate::DaemonError;

/// All that can hold something.
///
/// # Errors
/// The kernel's descriptions cannot be read.
pub fn discover() -> Result<Vec<Device>, DaemonError> {
    Ok(device::discover(&Roots::default())?)
}

/// The device behind a node or a link to it.
///
/// # Errors
/// It is none.
pub fn of_path(path: &Path) -> Result<Device, DaemonError> {
    Ok(device::of_path(&Roots::default(), path)?)
}
