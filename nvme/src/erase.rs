//! Erasing a whole device by the device's own means: Format NVM and Sanitize (base specification,
//! sections 5.14, 5.24 and 5.16.1.25).
//!
//! Both may reach further than the namespace that was meant, so a controller with several is left
//! alone. What a device does not offer is refused with the field that says so; nothing is tried.

use std::io;
use std::thread;
use std::time::Duration;

use crate::admin::{Admin, identify_controller, identify_namespace};
use crate::error::NvmeError;
use crate::spec::IdentifyController;
use crate::spec::command::{ALL_NAMESPACES, Command, log};
use crate::spec::identify::IDENTIFY_BYTES;

/// Erasing a large device takes minutes; one that overwrites takes hours, but Sanitize only starts
/// that and is asked how far it is.
const FORMAT_TIMEOUT_MS: u32 = 30 * 60 * 1000;
/// Between two questions how far Sanitize is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Bytes of the log page of Sanitize that are read.
const SANITIZE_LOG_BYTES: usize = 20;

/// By which means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erase {
    /// Format NVM: the namespace, with the block size that it has.
    Format,
    /// Sanitize: everything that the device ever held, spare areas and caches included.
    Sanitize,
}

/// What is done for a device that offers several ways: whoever throws a key away is done at once
/// and reaches every cell; erased cells come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    FormatCrypto,
    FormatData,
    SanitizeCrypto,
    SanitizeBlocks,
    SanitizeOverwrite,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::FormatCrypto => "Format NVM with cryptographic erase",
            Self::FormatData => "Format NVM with user data erase",
            Self::SanitizeCrypto => "Sanitize by crypto erase",
            Self::SanitizeBlocks => "Sanitize by block erase",
            Self::SanitizeOverwrite => "Sanitize by overwriting",
        }
    }

    /// Secure Erase Settings of Format NVM, or Sanitize Action.
    fn number(self) -> u32 {
        match self {
            Self::FormatData => 1,
            Self::FormatCrypto | Self::SanitizeBlocks => 2,
            Self::SanitizeOverwrite => 3,
            Self::SanitizeCrypto => 4,
        }
    }
}

/// A way that a device offers to erase its only namespace.
#[derive(Debug)]
pub struct Plan {
    way: Way,
    namespace: u32,
    command: Command,
}

impl Plan {
    /// Asks the device what it offers. Nothing is erased.
    ///
    /// Errors: it cannot be asked; `NotOffered` says what is missing.
    pub fn make(device: &dyn Admin, namespace: u32, erase: Erase) -> Result<Self, NvmeError> {
        let page = identify_controller(device)?;
        let controller = IdentifyController::decode(&page);
        let refused = |why: String| NvmeError::NotOffered { device: device.describe(), why };
        let namespaces = namespaces(device)?;
        if namespaces != [namespace] {
            let why = format!(
                "its controller has the namespaces {namespaces:?}, and erasing may reach all of \
                 them; `--erase discard` does not"
            );
            return Err(refused(why));
        }
        let (way, command) = match erase {
            Erase::Format => {
                let way = format_way(&controller).ok_or_else(|| {
                    refused("it does not offer Format NVM (bit 1 of OACS is 0)".to_owned())
                })?;
                let format = identify_namespace(device, namespace)?.format;
                (way, Command::format(namespace, format, way.number(), FORMAT_TIMEOUT_MS))
            }
            Erase::Sanitize => {
                let way = sanitize_way(&controller).ok_or_else(|| {
                    refused("it does not offer Sanitize (SANICAP is 0)".to_owned())
                })?;
                (way, Command::sanitize(way.number()))
            }
        };
        Ok(Self { way, namespace, command })
    }

    /// What it does, in the words of the specification.
    pub fn name(&self) -> &'static str {
        self.way.name()
    }

    /// Erases the device, and waits for the end. Nobody may use it meanwhile.
    ///
    /// Errors: the device's. What it holds then is not known.
    pub fn carry_out(&self, device: &dyn Admin) -> Result<(), NvmeError> {
        let failed = |source| NvmeError::Erase {
            device: device.describe(),
            way: self.way.name(),
            namespace: self.namespace,
            source,
        };
        device.read(&self.command, &mut []).map_err(failed)?;
        if matches!(self.way, Way::FormatCrypto | Way::FormatData) {
            return Ok(());
        }
        while !sanitized(device).map_err(failed)? {
            thread::sleep(PROGRESS_EVERY);
        }
        Ok(())
    }
}

fn format_way(controller: &IdentifyController) -> Option<Way> {
    controller.can_format.then_some(match controller.format_erases_keys {
        true => Way::FormatCrypto,
        false => Way::FormatData,
    })
}

fn sanitize_way(controller: &IdentifyController) -> Option<Way> {
    match controller.can_sanitize {
        (true, _, _) => Some(Way::SanitizeCrypto),
        (_, true, _) => Some(Way::SanitizeBlocks),
        (_, _, true) => Some(Way::SanitizeOverwrite),
        (false, false, false) => None,
    }
}

/// Numbers of the controller's namespaces, as many as a page holds.
fn namespaces(device: &dyn Admin) -> Result<Vec<u32>, NvmeError> {
    let mut page = [0; IDENTIFY_BYTES];
    let answer = device.read(&Command::identify(CNS_NAMESPACES, 0), &mut page);
    let what = "which namespaces it has";
    answer.map_err(|source| NvmeError::Ask { device: device.describe(), what, source })?;
    let (ids, _) = page.as_chunks::<4>();
    Ok(ids.iter().map(|id| u32::from_le_bytes(*id)).take_while(|id| *id != 0).collect())
}

/// Identify's number for the list of namespaces.
const CNS_NAMESPACES: u8 = 2;

/// Whether the last Sanitize has ended well. Errors: it failed, or the device does not say.
fn sanitized(device: &dyn Admin) -> io::Result<bool> {
    let mut page = [0; SANITIZE_LOG_BYTES];
    let command = Command::log_page(log::SANITIZE, ALL_NAMESPACES, SANITIZE_LOG_BYTES as u32);
    device.read(&command, &mut page)?;
    match page[2] & 7 {
        1 | 4 => Ok(true),
        2 => Ok(false),
        3 => Err(io::Error::other("the device says that the last Sanitize failed")),
        _ => Err(io::Error::other("the device knows of no Sanitize")),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::spec::Status;
    use crate::spec::command::admin;

    /// A controller that notes what erases.
    struct Device {
        controller: [u8; IDENTIFY_BYTES],
        namespaces: Vec<u32>,
        /// States of Sanitize, the next one last.
        progress: RefCell<Vec<u8>>,
        erased: RefCell<Vec<(u8, u32, u32)>>,
        status: Status,
    }

    impl Device {
        fn offering(oacs: u8, fna: u8, sanicap: u8) -> Self {
            let mut controller = [0; IDENTIFY_BYTES];
            (controller[256], controller[524], controller[328]) = (oacs, fna, sanicap);
            let (namespaces, progress) = (vec![1], RefCell::new(vec![1, 2]));
            let (erased, status) = (RefCell::default(), Status::OK);
            Self { controller, namespaces, progress, erased, status }
        }
    }

    impl Admin for Device {
        fn read(&self, command: &Command, data: &mut [u8]) -> io::Result<()> {
            match (command.opcode, command.dwords[0]) {
                (admin::IDENTIFY, 1) => data.copy_from_slice(&self.controller),
                (admin::IDENTIFY, 2) => {
                    for (id, place) in self.namespaces.iter().zip(data.chunks_exact_mut(4)) {
                        place.copy_from_slice(&id.to_le_bytes());
                    }
                }
                // Format 1 of two, of 4096 bytes.
                (admin::IDENTIFY, _) => (data[26], data[134]) = (1, 12),
                (admin::GET_LOG_PAGE, _) => {
                    data[2] = self.progress.borrow_mut().pop().expect("asked after the end");
                }
                (opcode, dword) => {
                    self.erased.borrow_mut().push((opcode, command.namespace, dword));
                    return self.status.into_result();
                }
            }
            Ok(())
        }

        fn describe(&self) -> String {
            "device".to_owned()
        }
    }

    #[test]
    fn the_best_way_that_is_offered_is_taken() {
        for (oacs, fna, sanicap, erase, name, command) in [
            (2, 4, 0, Erase::Format, "cryptographic erase", (0x80, 1, 1 | 2 << 9)),
            (2, 0, 7, Erase::Format, "user data erase", (0x80, 1, 1 | 1 << 9)),
            (0, 0, 7, Erase::Sanitize, "crypto erase", (0x84, 0, 4)),
            (0, 0, 6, Erase::Sanitize, "block erase", (0x84, 0, 2)),
            (0, 0, 4, Erase::Sanitize, "overwriting", (0x84, 0, 3 | 1 << 4)),
        ] {
            let device = Device::offering(oacs, fna, sanicap);
            let plan = Plan::make(&device, 1, erase).unwrap();
            assert!(plan.name().contains(name) && device.erased.borrow().is_empty());
            plan.carry_out(&device).unwrap();
            assert_eq!(*device.erased.borrow(), [command], "{name}");
        }
    }

    #[test]
    fn what_is_not_offered_or_reaches_others_is_refused() {
        let refuse = |device: &Device, erase| {
            let text = Plan::make(device, 1, erase).unwrap_err().to_string();
            assert!(device.erased.borrow().is_empty(), "nothing is tried");
            text
        };
        let poor = Device::offering(0, 0, 0);
        assert!(refuse(&poor, Erase::Format).contains("bit 1 of OACS"));
        assert!(refuse(&poor, Erase::Sanitize).contains("SANICAP is 0"));
        let shared = Device { namespaces: vec![1, 5], ..Device::offering(2, 0, 7) };
        assert!(refuse(&shared, Erase::Format).contains("[1, 5]"));
    }

    #[test]
    fn a_failure_is_told_with_the_way() {
        let status = Status(0x10d);
        let device = Device { status, ..Device::offering(2, 0, 1) };
        let error = Plan::make(&device, 1, Erase::Format).unwrap().carry_out(&device).unwrap_err();
        assert!(error.to_string().contains("Format NVM with user data erase"), "{error}");
        let device = Device::offering(0, 0, 1);
        *device.progress.borrow_mut() = vec![3];
        let error = Plan::make(&device, 1, Erase::Sanitize).unwrap().carry_out(&device);
        assert!(error.unwrap_err().to_string().contains("last Sanitize failed"));
    }
}
