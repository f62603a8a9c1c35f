//! What a device says of its health, read in one go.
//!
//! Reading waits for the device: one that hangs answers when the driver gives up (60 s). Whoever
//! watches devices does it from a thread of its own for each. EC2's devices refresh their
//! statistics once a second and want to be asked no more often.

use std::io;

use crate::admin::{Admin, identify_controller, identify_namespace};
use crate::error::NvmeError;
use crate::spec::amazon::{AMAZON_LOG, AMAZON_LOG_BYTES, AMAZON_VENDOR, mapped_name};
use crate::spec::command::{ALL_NAMESPACES, Command, log};
use crate::spec::errors::ERROR_BYTES;
use crate::spec::smart::SMART_BYTES;
use crate::spec::{AmazonLog, ErrorEntry, IdentifyController, IdentifyNamespace, SmartLog, Status};

/// Entries of the error log that are read: newest first, the rest is history.
const ERRORS_MAX: usize = 64;

/// What a device told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The controller.
    pub controller: IdentifyController,
    /// The namespace.
    pub namespace: Option<IdentifyNamespace>,
    /// Temperature, wear, spare, counters.
    pub smart: Option<SmartLog>,
    /// Errors that the controller noted, newest first; none if it was not told them.
    pub errors: Vec<ErrorEntry>,
    /// EC2's statistics.
    pub amazon: Option<AmazonLog>,
    /// Name of an EBS volume in the instance's block device mapping.
    pub mapped_name: Option<String>,
    /// What could not be had, each with its reason.
    pub why_not: Vec<String>,
}

impl Health {
    /// Asks a device.
    ///
    /// Errors: it does not even say what controller it is. Whatever else is missing stands in
    /// [`Health::why_not`].
    pub fn read(admin: &dyn Admin, namespace: u32) -> Result<Self, NvmeError> {
        let page = identify_controller(admin)?;
        let controller = IdentifyController::decode(&page);
        let is_amazon = controller.vendor == AMAZON_VENDOR;
        let mut why_not = Vec::new();
        let mut told = |what: &str, error: io::Error| why_not.push(in_words(what, &error));
        let namespace_told = match identify_namespace(admin, namespace) {
            Ok(it) => Some(it),
            Err(NvmeError::Ask { source, .. }) => {
                told("the namespace", source);
                None
            }
            Err(error) => return Err(error),
        };
        let smart = log_page::<SMART_BYTES>(admin, log::SMART, ALL_NAMESPACES);
        let smart = smart.map_err(|error| told("health (log page 02h)", error)).ok();
        let mut entries = vec![0; ERRORS_MAX.min(controller.error_entries.into()) * ERROR_BYTES];
        let command = Command::log_page(log::ERRORS, ALL_NAMESPACES, entries.len() as u32);
        let errors = match admin.read(&command, &mut entries) {
            Ok(()) => ErrorEntry::decode_all(&entries),
            Err(error) => {
                told("errors (log page 01h)", error);
                Vec::new()
            }
        };
        // Others would note the question in their error log.
        let amazon = is_amazon.then(|| log_page(admin, AMAZON_LOG, namespace)).and_then(|page| {
            let unknown = || io::Error::other("its magic number is not known");
            let log = page.and_then(|page: Box<[u8; AMAZON_LOG_BYTES]>| {
                AmazonLog::decode(&page).ok_or_else(unknown)
            });
            log.map_err(|error| told("EC2's statistics (log page D0h)", error)).ok()
        });
        Ok(Self {
            mapped_name: is_amazon.then(|| mapped_name(&page)).flatten(),
            controller,
            namespace: namespace_told,
            smart: smart.map(|page| SmartLog::decode(&page)),
            errors,
            amazon,
            why_not,
        })
    }

    /// What an operator should know now: warnings of the device, and a medium that takes no more
    /// writes.
    pub fn warnings(&self) -> Vec<String> {
        let smart = self.smart.iter().flat_map(|smart| smart.warning.names().map(str::to_owned));
        let protected = self.namespace.is_some_and(|it| it.write_protected);
        smart.chain(protected.then(|| "the namespace is write protected".to_owned())).collect()
    }
}

fn log_page<const N: usize>(
    admin: &dyn Admin,
    page: u8,
    namespace: u32,
) -> io::Result<Box<[u8; N]>> {
    let mut bytes = Box::new([0; N]);
    admin.read(&Command::log_page(page, namespace, N as u32), &mut bytes[..])?;
    Ok(bytes)
}

fn in_words(what: &str, error: &io::Error) -> String {
    let way_out = match Status::of(error) {
        Some(status) if status.is_unsupported() => "; the device does not have it",
        None if error.kind() == io::ErrorKind::PermissionDenied => {
            "; the kernel gives log pages to who has CAP_SYS_ADMIN only"
        }
        _ => "",
    };
    format!("{what} cannot be read: {error}{way_out}")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use crate::spec::command::admin as opcode;
    use crate::spec::identify::IDENTIFY_BYTES;

    use super::*;

    /// A controller that answers from pages, by opcode and number of page.
    #[derive(Default)]
    struct Model {
        pages: BTreeMap<(u8, u8), Vec<u8>>,
        refuse: Option<i32>,
        asked: RefCell<Vec<(u8, u8)>>,
    }

    impl Admin for Model {
        fn read(&self, command: &Command, data: &mut [u8]) -> io::Result<()> {
            let asked = (command.opcode, command.dwords[0] as u8);
            self.asked.borrow_mut().push(asked);
            assert_eq!(data.len(), command.data_bytes as usize);
            let Some(page) = self.pages.get(&asked) else {
                return match self.refuse {
                    Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                    None => Status(0x4109).into_result(),
                };
            };
            let bytes = page.len().min(data.len());
            data[..bytes].copy_from_slice(&page[..bytes]);
            Ok(())
        }

        fn describe(&self) -> String {
            "model".to_owned()
        }
    }

    fn controller(vendor: u16) -> Vec<u8> {
        let mut page = vec![0; IDENTIFY_BYTES];
        page[..2].copy_from_slice(&vendor.to_le_bytes());
        page[262] = 3;
        page[3072..3080].copy_from_slice(b"/dev/sdf");
        page
    }

    fn model(vendor: u16) -> Model {
        let mut model = Model::default();
        model.pages.insert((opcode::IDENTIFY, CONTROLLER), controller(vendor));
        model
    }

    const CONTROLLER: u8 = 1;
    const NAMESPACE: u8 = 0;

    #[test]
    fn a_device_that_tells_everything() {
        let mut model = model(AMAZON_VENDOR);
        let mut namespace = vec![0; IDENTIFY_BYTES];
        namespace[99] = 1;
        model.pages.insert((opcode::IDENTIFY, NAMESPACE), namespace);
        model.pages.insert((opcode::GET_LOG_PAGE, log::SMART), vec![8, 0x2c, 1, 97, 10, 12]);
        let mut error = vec![0; ERROR_BYTES];
        error[0] = 5;
        model.pages.insert((opcode::GET_LOG_PAGE, log::ERRORS), error);
        let mut amazon = vec![0; AMAZON_LOG_BYTES];
        amazon[..4].copy_from_slice(&0xec2c_0d7eu32.to_le_bytes());
        amazon[80] = 9;
        model.pages.insert((opcode::GET_LOG_PAGE, AMAZON_LOG), amazon);
        let health = Health::read(&model, 1).unwrap();
        assert_eq!(health.why_not, Vec::<String>::new());
        let smart = health.smart.as_ref().unwrap();
        assert_eq!((smart.celsius(), smart.spare_percent, smart.used_percent), (Some(27), 97, 12));
        assert_eq!(health.errors.len(), 1);
        assert_eq!(health.amazon.as_ref().unwrap().instance_over_throughput_us, 9);
        assert_eq!(health.mapped_name.as_deref(), Some("/dev/sdf"));
        let warnings = health.warnings();
        assert_eq!(warnings, ["the medium is read-only", "the namespace is write protected"]);
    }

    #[test]
    fn what_is_missing_is_told_and_the_rest_is_there() {
        let mut model = model(0x8086);
        model.pages.insert((opcode::IDENTIFY, NAMESPACE), vec![0; IDENTIFY_BYTES]);
        let health = Health::read(&model, 1).unwrap();
        assert!(health.smart.is_none() && health.errors.is_empty() && health.amazon.is_none());
        assert_eq!(health.mapped_name, None, "bytes of the vendor mean something else here");
        assert_eq!(health.why_not.len(), 2, "{:?}", health.why_not);
        assert!(health.why_not[0].contains("02h") && health.why_not[0].contains("does not have"));
        let vendors_page = (opcode::GET_LOG_PAGE, AMAZON_LOG);
        assert!(!model.asked.borrow().contains(&vendors_page), "asking leaves a mark");
    }

    #[test]
    fn missing_rights_name_the_capability() {
        let mut model = model(AMAZON_VENDOR);
        model.refuse = Some(libc::EACCES);
        let health = Health::read(&model, 1).unwrap();
        assert_eq!(health.why_not.len(), 4);
        let rights = |why: &String| why.contains("CAP_SYS_ADMIN");
        assert!(health.why_not.iter().all(rights), "{:?}", health.why_not);
    }

    #[test]
    fn a_device_that_says_nothing_is_an_error() {
        let refused = Health::read(&Model::default(), 1).unwrap_err();
        assert!(refused.to_string().contains("model"), "{refused}");
    }
}
