//! Devices of this machine, for the command line.

use std::path::Path;

use wirevault_media::notes::NOTES;
use wirevault_nvme::NvmeError;
use wirevault_nvme::admin::AdminNode;
use wirevault_nvme::device::{self, Roots};
pub use wirevault_nvme::erase::Erase;
use wirevault_nvme::erase::Plan;
use wirevault_nvme::vfio::Binder;
pub use wirevault_nvme::{Device, DeviceKind, Use};

use crate::DaemonError;

/// Why a device that is none of ours is left to the kernel.
pub(crate) const NO_CONTROLLER: &str = "it is no NVMe device on a PCI bus with one controller";

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

/// Hands back to the kernel's driver what recorders had taken from it that ended without doing so;
/// gives the places of these devices on the PCI bus.
///
/// # Errors
/// The kernel refuses one of them; the others are handed back all the same.
pub fn release() -> Result<Vec<String>, DaemonError> {
    let returned = Binder::new(Roots::default(), NOTES).give_back_all()?;
    Ok(returned.iter().map(ToString::to_string).collect())
}

/// Erases the device behind a path, by its own means.
pub struct Eraser {
    plan: Plan,
    node: AdminNode,
}

impl Eraser {
    /// Finds out whether the device offers that. Nothing is erased.
    ///
    /// # Errors
    /// It is no NVMe device, or does not offer it; root may ask.
    pub fn make(path: &Path, erase: Erase) -> Result<Self, DaemonError> {
        let device = of_path(path)?;
        let controller =
            device.nvme.as_ref().and_then(|nvme| Some((nvme, nvme.controllers.first()?)));
        let (nvme, controller) = controller.ok_or_else(|| NvmeError::NotOffered {
            device: path.display().to_string(),
            why: "it is no NVMe device; `--erase discard` takes any".to_owned(),
        })?;
        let node = AdminNode::open(&controller.node)?;
        let plan = Plan::make(&node, nvme.id, erase)?;
        Ok(Self { plan, node })
    }

    /// What the device will do, in the specification's words.
    pub fn name(&self) -> &'static str {
        self.plan.name()
    }

    /// Erases it, and waits for the end. Nobody may use it meanwhile.
    ///
    /// # Errors
    /// The device's.
    pub fn carry_out(&self) -> Result<(), DaemonError> {
        Ok(self.plan.carry_out(&self.node)?)
    }
}

/// Why a volume's device cannot be driven past the kernel; nothing if it can.
///
/// # Errors
/// The device cannot be told.
pub(crate) fn why_not_own(path: &Path) -> Result<Vec<String>, DaemonError> {
    let device = of_path(path)?;
    match Binder::address_of(&device) {
        Some(address) => Ok(Binder::new(Roots::default(), NOTES).why_not(address)?),
        None => Ok(vec![NO_CONTROLLER.to_owned()]),
    }
}
