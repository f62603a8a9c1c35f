//! Admin commands that read: through a node of the kernel's driver (`/dev/nvme0`, or the node of a
//! namespace), or whatever else can put them to a controller. Reservations go the same way, to a
//! namespace's node.
//!
//! The kernel lets everybody who may open the node identify (Linux 6.2), and only who has
//! `CAP_SYS_ADMIN` read log pages.

#[expect(unsafe_code, reason = "the ioctl for admin commands")]
mod sys;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::NvmeError;
use crate::reserve;
use crate::spec::Status;
use crate::spec::command::Command;
use crate::spec::identify::{IDENTIFY_BYTES, IdentifyController, IdentifyNamespace};

/// Identify's number for a namespace, and for the controller.
const CNS_NAMESPACE: u8 = 0;
const CNS_CONTROLLER: u8 = 1;

/// Who puts admin commands to a controller.
pub trait Admin {
    /// Carries a command out whose answer fills `data`, which is as long as the command says.
    ///
    /// Errors: the system's, or a [`Status`] that is no success.
    fn read(&self, command: &Command, data: &mut [u8]) -> io::Result<()>;

    /// Who answers, for messages.
    fn describe(&self) -> String;
}

/// A node of the kernel's driver.
#[derive(Debug)]
pub struct AdminNode {
    file: File,
    path: PathBuf,
}

impl AdminNode {
    /// Opens a node for reading. Errors: it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, NvmeError> {
        Self::with(path, File::options().read(true))
    }

    /// Opens a node for commands that change something, too: the kernel asks that of whoever has no
    /// `CAP_SYS_ADMIN`. Errors: it cannot be opened.
    pub fn open_to_write(path: &Path) -> Result<Self, NvmeError> {
        Self::with(path, File::options().read(true).write(true))
    }

    fn with(path: &Path, options: &OpenOptions) -> Result<Self, NvmeError> {
        let file = options.open(path).map_err(|source| NvmeError::Ask {
            device: path.display().to_string(),
            what: "anything",
            source,
        })?;
        Ok(Self { file, path: path.to_owned() })
    }
}

impl AdminNode {
    fn carry_out(&self, to: sys::To, command: &Command, data: &mut [u8]) -> io::Result<()> {
        if data.len() != command.data_bytes as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the answer has another size"));
        }
        Status(sys::carry_out(&self.file, to, command, data)?).into_result()
    }
}

impl reserve::Namespace for AdminNode {
    fn exchange(&self, command: &Command, data: &mut [u8]) -> io::Result<()> {
        self.carry_out(sys::To::Io, command, data)
    }
}

impl Admin for AdminNode {
    fn read(&self, command: &Command, data: &mut [u8]) -> io::Result<()> {
        self.carry_out(sys::To::Admin, command, data)
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

/// What the controller is, as the device gives it. Errors: it cannot be asked.
pub fn identify_controller(admin: &dyn Admin) -> Result<[u8; IDENTIFY_BYTES], NvmeError> {
    identify(admin, CNS_CONTROLLER, 0, "what controller it is")
}

/// What a namespace is. Errors: it cannot be asked.
pub fn identify_namespace(admin: &dyn Admin, id: u32) -> Result<IdentifyNamespace, NvmeError> {
    let page = identify(admin, CNS_NAMESPACE, id, "what namespace it is")?;
    Ok(IdentifyNamespace::decode(&page))
}

/// Whether a controller has a write cache that loses its content with power; nothing if it cannot
/// be asked.
pub fn volatile_cache(node: &Path) -> Option<bool> {
    let page = identify_controller(&AdminNode::open(node).ok()?).ok()?;
    Some(IdentifyController::decode(&page).volatile_cache)
}

fn identify(
    admin: &dyn Admin,
    cns: u8,
    namespace: u32,
    what: &'static str,
) -> Result<[u8; IDENTIFY_BYTES], NvmeError> {
    let mut page = [0; IDENTIFY_BYTES];
    let answer = admin.read(&Command::identify(cns, namespace), &mut page);
    answer.map_err(|source| NvmeError::Ask { device: admin.describe(), what, source })?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_take_no_commands() {
        let node = AdminNode::open(Path::new("/dev/null")).unwrap();
        let refused = identify_controller(&node).unwrap_err();
        assert!(refused.to_string().contains("/dev/null"), "{refused}");
        assert_eq!(volatile_cache(Path::new("/dev/null")), None);
        let short = node.read(&Command::identify(CNS_CONTROLLER, 0), &mut [0; 8]).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::InvalidInput);
        assert!(AdminNode::open(Path::new("/nonexistent")).is_err());
    }
}
