//! Taking a controller over from the kernel's driver, and handing it back (Linux
//! Documentation/ABI/testing/sysfs-bus-pci).
//!
//! What a crash leaves behind: the kernel closes the device and resets it, but it stays with
//! vfio-pci and has no block device. A note, written before the device is taken, says that it was
//! ours; [`Binder::give_back_all`] reads the notes.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use wirevault_media::notes::{self, Note};

use crate::device::{Controller, Device, Roots, discover};
use crate::error::NvmeError;

/// The driver that lets us have a device.
const VFIO_DRIVER: &str = "vfio-pci";
/// The kernel's driver of NVMe controllers.
const KERNEL_DRIVER: &str = "nvme";
/// PCI class of NVMe controllers: storage, non-volatile memory, NVM Express.
const NVME_CLASS: &str = "0x010802";

/// Where a PCI function is: `0000:00:04.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl FromStr for PciAddress {
    type Err = NvmeError;

    fn from_str(text: &str) -> Result<Self, NvmeError> {
        let parse = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let hex = |digits: &str, length: std::ops::RangeInclusive<usize>| {
                let good =
                    length.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
                good.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
            };
            Some(Self {
                domain: hex(domain, 4..=8)?,
                bus: u8::try_from(hex(bus, 2..=2)?).ok()?,
                device: u8::try_from(hex(device, 2..=2)?).ok().filter(|d| *d < 32)?,
                function: u8::try_from(hex(function, 1..=1)?).ok().filter(|f| *f < 8)?,
            })
        };
        parse().ok_or_else(|| NvmeError::PciAddress { text: text.to_owned() })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// A controller that this process has, until it is handed back. Dropping it leaves the device where
/// it is, for [`Binder::give_back_all`].
#[derive(Debug)]
pub struct Taken {
    address: PciAddress,
    note: Note,
}

impl Taken {
    /// Where it is.
    pub fn address(&self) -> PciAddress {
        self.address
    }
}

/// Moves controllers between drivers, by the kernel's files about PCI devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binder {
    roots: Roots,
    notes: PathBuf,
}

impl Binder {
    /// `notes` is a directory that outlives the process but not the boot ([`notes::NOTES`]). It is
    /// made when it is needed.
    pub fn new(roots: Roots, notes: impl Into<PathBuf>) -> Self {
        Self { roots, notes: notes.into() }
    }

    /// The controller that a namespace belongs to; nothing if there are several, or none on a PCI
    /// bus.
    pub fn address_of(device: &Device) -> Option<PciAddress> {
        match device.nvme.as_ref()?.controllers.as_slice() {
            [only] => only.address.parse().ok(),
            _ => None,
        }
    }

    /// Why a controller cannot be driven from here, each reason with its way out. Empty: it can be
    /// taken. Looks only.
    ///
    /// Errors: the kernel's descriptions cannot be read.
    pub fn why_not(&self, address: PciAddress) -> Result<Vec<String>, NvmeError> {
        let mut reasons = Vec::new();
        let device = self.device(address);
        if !device.exists() {
            return Ok(vec![format!("there is no PCI device {address}")]);
        }
        let class = fs::read_to_string(device.join("class")).unwrap_or_default();
        if class.trim() != NVME_CLASS {
            reasons.push(format!("{address} is no NVMe controller (class {})", class.trim()));
        }
        match self.iommu_group(address) {
            Ok(group) => reasons.extend(self.strangers(address, &group)),
            Err(_) => reasons.push(format!(
                "there is no IOMMU for {address}; where the machine has one, enable it with \
                 intel_iommu=on (or amd_iommu=on) on the kernel's command line"
            )),
        }
        if !self.roots.sys.join("bus/pci/drivers").join(VFIO_DRIVER).exists() {
            reasons.push("the driver vfio-pci is not loaded; modprobe vfio-pci".to_owned());
        }
        if !self.roots.dev.join("vfio/vfio").exists() {
            reasons.push("/dev/vfio/vfio is missing; modprobe vfio_iommu_type1".to_owned());
        }
        reasons.extend(self.users(address)?);
        Ok(reasons)
    }

    /// Takes a controller from the kernel's driver: its block devices vanish. `names` are what it
    /// was known by, for those who look for it meanwhile. One that vfio-pci has already is ours
    /// from then on as well.
    ///
    /// Errors: it is in use or cannot be had ([`Binder::why_not`]), another process has it, or the
    /// kernel refuses; then it is handed back.
    pub fn take(&self, address: PciAddress, names: &[&Path]) -> Result<Taken, NvmeError> {
        let not_for_us = |reasons: String| {
            let device = address.to_string();
            Err(NvmeError::NotForUs { device, reasons })
        };
        let reasons = self.why_not(address)?;
        if !reasons.is_empty() {
            return not_for_us(reasons.join("; "));
        }
        let failed = |action| failed(address, action);
        let noted = self.note(address)?;
        let Some(note) = noted else {
            return not_for_us("another process drives it; stop that first".to_owned());
        };
        let taken = Taken { address, note };
        taken.note.name(names).map_err(failed("note that it is ours"))?;
        if self.driver(address).as_deref() == Some(VFIO_DRIVER) {
            return Ok(taken);
        }
        match self.rebind(address, VFIO_DRIVER) {
            Ok(()) => Ok(taken),
            Err(error) => {
                // The first error is the one to tell.
                let _ = self.give_back(taken);
                Err(error)
            }
        }
    }

    /// Hands a controller back to the kernel's driver. Nothing may have it open: the kernel waits
    /// for that. Does nothing to one that vfio-pci does not have.
    ///
    /// Errors: the kernel refuses.
    pub fn give_back(&self, taken: Taken) -> Result<(), NvmeError> {
        let Taken { address, note } = taken;
        let failed = |action| failed(address, action);
        // An override is named even if the kernel's driver has the device again: it would keep it
        // from there after the next removal.
        let has_other = self.driver(address).is_some_and(|driver| driver != VFIO_DRIVER);
        if self.device(address).exists() && !has_other {
            self.rebind(address, KERNEL_DRIVER)?;
        }
        if self.device(address).exists() {
            self.write(&self.device(address).join("driver_override"), "\n")
                .map_err(failed("clear its driver_override"))?;
        }
        note.remove().map_err(failed("remove its note"))
    }

    /// Hands back every controller that has a note which nobody holds: what crashes left. For the
    /// start, before any is taken. Gives those that were handed back.
    ///
    /// Errors: of the first that could not be; the others are handed back all the same.
    pub fn give_back_all(&self) -> Result<Vec<PciAddress>, NvmeError> {
        let names = notes::all(&self.notes);
        let mut addresses: Vec<PciAddress> =
            names.iter().filter_map(|it| it.parse().ok()).collect();
        let mut results = Vec::new();
        addresses.retain(|address| match self.note(*address) {
            Ok(None) => false,
            Ok(Some(note)) => {
                results.push(self.give_back(Taken { address: *address, note }));
                true
            }
            Err(error) => {
                results.push(Err(error));
                true
            }
        });
        results.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(addresses)
    }

    /// The note about a device, unless another process holds it.
    fn note(&self, address: PciAddress) -> Result<Option<Note>, NvmeError> {
        let note = Note::take(&self.notes, &address.to_string());
        note.map_err(failed(address, "note that it is ours"))
    }

    /// Name of the driver that has the device, if any.
    pub fn driver(&self, address: PciAddress) -> Option<String> {
        file_name(&self.device(address).join("driver"))
    }

    /// Name of the device's IOMMU group. Errors: there is no IOMMU for it.
    pub(super) fn iommu_group(&self, address: PciAddress) -> io::Result<String> {
        let link = self.device(address).join("iommu_group");
        file_name(&link).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it has none"))
    }

    fn device(&self, address: PciAddress) -> PathBuf {
        self.roots.sys.join("bus/pci/devices").join(address.to_string())
    }

    /// Other devices of the group that some driver has: VFIO gives out whole groups only. Bridges
    /// do not count.
    fn strangers(&self, address: PciAddress, group: &str) -> Vec<String> {
        let folder = self.roots.sys.join("kernel/iommu_groups").join(group).join("devices");
        let Ok(devices) = fs::read_dir(folder) else { return Vec::new() };
        let names = devices.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let others = names.filter_map(|name| name.parse::<PciAddress>().ok());
        let mut reasons = Vec::new();
        for other in others.filter(|other| *other != address) {
            let driver = self.driver(other).filter(|d| d != VFIO_DRIVER && d != "pcieport");
            if let Some(driver) = driver {
                reasons.push(format!(
                    "{other} (driver {driver}) is in the same IOMMU group {group}, so {address} \
                     can only be had together with it"
                ));
            }
        }
        reasons
    }

    /// Namespaces of the controller that somebody uses.
    fn users(&self, address: PciAddress) -> Result<Vec<String>, NvmeError> {
        let mut reasons = Vec::new();
        let mut nodes = Vec::new();
        for device in discover(&self.roots)? {
            let ours =
                |it: &Controller| it.address.parse::<PciAddress>().is_ok_and(|it| it == address);
            if device.nvme.is_some_and(|nvme| nvme.controllers.iter().any(ours)) {
                let node = device.node.display();
                reasons.extend(device.uses.iter().map(|it| format!("{node} {it}")));
                nodes.push(node.to_string());
            }
        }
        if nodes.len() > 1 {
            let nodes = nodes.join(", ");
            reasons.push(format!("its namespaces {nodes} can only be had together"));
        }
        Ok(reasons)
    }

    fn rebind(&self, address: PciAddress, driver: &str) -> Result<(), NvmeError> {
        let device = self.device(address);
        let name = address.to_string();
        let failed = |action| failed(address, action);
        self.write(&device.join("driver_override"), driver)
            .map_err(failed("write its driver_override; root may do that"))?;
        if self.driver(address).is_some() {
            self.write(&device.join("driver/unbind"), &name)
                .map_err(failed("unbind it from its driver"))?;
        }
        self.write(&self.roots.sys.join("bus/pci/drivers_probe"), &name)
            .map_err(failed("bind it to its new driver"))?;
        match self.driver(address) {
            Some(found) if found == driver => Ok(()),
            found => {
                let found = found.unwrap_or_else(|| "no driver".to_owned());
                Err(failed("bind it to its new driver")(io::Error::other(format!(
                    "{found} has it, not {driver}"
                ))))
            }
        }
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
    }
}

fn failed(address: PciAddress, action: &'static str) -> impl Fn(io::Error) -> NvmeError {
    move |source| NvmeError::Takeover { device: address.to_string(), action, source }
}

/// Last part of where a link leads.
fn file_name(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const ADDRESS: &str = "0000:00:04.0";

    /// A machine with one controller; the kernel behind it does nothing.
    struct Machine {
        dir: tempfile::TempDir,
        binder: Binder,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            let roots = Roots { sys: root.join("sys"), proc: root.join("proc"), dev: root.into() };
            let machine = Self { binder: Binder::new(roots, root.join("notes")), dir };
            machine.file("proc/self/mountinfo", "");
            machine.file("sys/block/.keep", "");
            machine.file("sys/bus/pci/drivers/vfio-pci/unbind", "");
            machine.file("sys/bus/pci/drivers/nvme/unbind", "");
            machine.file("sys/bus/pci/drivers_probe", "");
            machine.file("vfio/vfio", "");
            machine.device(ADDRESS, "nvme");
            machine
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn file(&self, name: &str, text: &str) {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn device(&self, address: &str, driver: &str) {
            let device = format!("sys/bus/pci/devices/{address}");
            self.file(&format!("{device}/class"), "0x010802\n");
            self.file(&format!("{device}/driver_override"), "(null)\n");
            self.file(&format!("sys/kernel/iommu_groups/7/devices/{address}"), "");
            let device = self.path(&device);
            symlink("../../../../kernel/iommu_groups/7", device.join("iommu_group")).unwrap();
            self.has(address, driver);
        }

        fn has(&self, address: &str, driver: &str) {
            let link = self.path(&format!("sys/bus/pci/devices/{address}/driver"));
            let _ = fs::remove_file(&link);
            symlink(format!("../../drivers/{driver}"), link).unwrap();
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap()
        }

        fn why_not(&self) -> Vec<String> {
            self.binder.why_not(ADDRESS.parse().unwrap()).unwrap()
        }
    }

    #[test]
    fn addresses_are_read_and_shown() {
        for good in ["0000:00:04.0", "0001:ff:1f.7", "10000:e1:00.0"] {
            assert_eq!(good.parse::<PciAddress>().unwrap().to_string(), good);
        }
        let long: PciAddress = "0000:0A:00.0".parse().unwrap();
        assert_eq!(long.to_string(), "0000:0a:00.0");
        for bad in ["", "00:04.0", "0000:00:20.0", "0000:00:04.8", "0000:00:4.0", "0000:+1:04.0"] {
            let error = bad.parse::<PciAddress>().unwrap_err().to_string();
            assert!(error.contains("0000:00:04.0"), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_missing_is_told_with_the_way_out() {
        let machine = Machine::new();
        assert_eq!(machine.why_not(), Vec::<String>::new());
        let device = format!("sys/bus/pci/devices/{ADDRESS}");
        machine.file(&format!("{device}/class"), "0x020000\n");
        machine.device("0000:00:05.0", "ena");
        machine.device("0000:00:06.0", "pcieport");
        fs::remove_dir_all(machine.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
        fs::remove_dir_all(machine.path("vfio")).unwrap();
        let all = machine.why_not().join("\n");
        for word in [
            "no NVMe controller",
            "0000:00:05.0 (driver ena)",
            "modprobe vfio-pci",
            "/dev/vfio/vfio is missing",
        ] {
            assert!(all.contains(word), "{word}: {all}");
        }
        assert!(!all.contains("0000:00:06.0"), "bridges do not count: {all}");
        fs::remove_file(machine.path(&format!("{device}/iommu_group"))).unwrap();
        assert!(machine.why_not().join("\n").contains("intel_iommu=on"));
        let none = machine.binder.why_not("0000:00:1e.0".parse().unwrap()).unwrap();
        assert!(none.len() == 1 && none[0].contains("no PCI device"), "{none:?}");
    }

    #[test]
    fn a_refused_take_is_undone_and_a_device_in_use_is_not_touched() {
        let machine = Machine::new();
        let address = ADDRESS.parse().unwrap();
        // This kernel never moves a device, so it stays with its driver.
        let error = machine.binder.take(address, &[]).unwrap_err().to_string();
        assert!(error.contains("nvme has it, not vfio-pci"), "{error}");
        assert_eq!(machine.text("sys/bus/pci/drivers/nvme/unbind"), ADDRESS);
        let device = format!("sys/bus/pci/devices/{ADDRESS}");
        assert!(machine.text(&format!("{device}/driver_override")).starts_with('\n'));
        assert!(fs::read_dir(machine.path("notes")).unwrap().next().is_none());

        machine.file(&format!("{device}/class"), "0x020000\n");
        machine.file(&format!("{device}/driver_override"), "(null)\n");
        assert!(matches!(machine.binder.take(address, &[]), Err(NvmeError::NotForUs { .. })));
        assert_eq!(machine.text(&format!("{device}/driver_override")), "(null)\n");
    }

    #[test]
    fn notes_of_a_crash_are_worked_off() {
        let machine = Machine::new();
        let address: PciAddress = ADDRESS.parse().unwrap();
        assert_eq!(machine.binder.give_back_all().unwrap(), [], "no folder, no notes");
        machine.file(&format!("notes/{ADDRESS}"), "");
        machine.file("notes/0000:00:1e.0", "");
        machine.file("notes/something else", "");
        let gone: PciAddress = "0000:00:1e.0".parse().unwrap();
        assert_eq!(machine.binder.give_back_all().unwrap(), [address, gone]);
        assert!(!machine.path(&format!("notes/{ADDRESS}")).exists());
        assert!(machine.path("notes/something else").exists(), "not ours");

        let held = Note::take(&machine.path("notes"), ADDRESS).unwrap().unwrap();
        assert_eq!(machine.binder.give_back_all().unwrap(), [], "its process lives");
        let error = machine.binder.take(address, &[]).unwrap_err().to_string();
        assert!(error.contains("another process drives it"), "{error}");
        drop(held);
        machine.has(ADDRESS, "vfio-pci");
        let error = machine.binder.give_back_all().unwrap_err().to_string();
        assert!(error.contains("vfio-pci has it, not nvme"), "{error}");
        let note = machine.path(&format!("notes/{ADDRESS}"));
        assert!(note.exists(), "it is tried again at the next start");
        assert_eq!(machine.text("sys/bus/pci/drivers_probe"), ADDRESS);
    }
}
