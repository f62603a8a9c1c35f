//! Block devices of this machine as the kernel describes them: which they are, what they can do,
//! and who uses them. Nothing here opens a device or changes anything.
//!
//! ```text
//!  /sys/block, /sys/class/nvme ─► sysfs ─► Device ◄─ usage ◄─ /proc mounts, swaps
//! ```
//!
//! A device is known by model and serial number. Kernel names (`nvme0n1`) are given in the order of
//! discovery and change from start to start.
//!
//! Sources: Linux `Documentation/ABI/stable/sysfs-block`, `drivers/nvme/host/sysfs.c`,
//! proc_pid_mountinfo(5); names of EC2's devices from its user guide (instance store and EBS
//! volumes on Nitro instances).

mod sysfs;
mod usage;

use std::fmt;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::NvmeError;

/// Model of EC2's local disks.
const INSTANCE_STORE_MODEL: &str = "Amazon EC2 NVMe Instance Storage";
/// Model of EC2's network volumes.
const EBS_MODEL: &str = "Amazon Elastic Block Store";
/// Serial numbers of EBS volumes are the volume's id without its dash.
const EBS_SERIAL: &str = "vol";

/// Where the kernel's descriptions are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

/// What a device is, as far as its promises go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A local NVMe disk of an EC2 instance: fast, and empty after a stop.
    InstanceStore,
    /// An EBS volume: reached over the network, paid by size and rate. To be used only when an
    /// operator names it.
    Ebs,
    /// Another NVMe namespace.
    Nvme,
    /// Any other block device.
    Block,
}

impl DeviceKind {
    /// Judges by model and serial number. What shows either sign of EBS counts as EBS, because
    /// that is the kind nobody may take by mistake.
    fn of(nvme: bool, model: &str, serial: &str) -> Self {
        let volume_id = serial.strip_prefix(EBS_SERIAL).unwrap_or_default();
        let ebs_serial = volume_id.len() >= 8 && volume_id.bytes().all(|b| b.is_ascii_hexdigit());
        match model {
            _ if !nvme => Self::Block,
            EBS_MODEL => Self::Ebs,
            _ if ebs_serial => Self::Ebs,
            INSTANCE_STORE_MODEL => Self::InstanceStore,
            _ => Self::Nvme,
        }
    }

    /// The name in reports: `instance_store`, `ebs`, `nvme`, `block`.
    pub fn name(self) -> &'static str {
        match self {
            Self::InstanceStore => "instance_store",
            Self::Ebs => "ebs",
            Self::Nvme => "nvme",
            Self::Block => "block",
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A block device with its limits and users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The kernel's name until the next start: `nvme0n1`.
    pub name: String,
    /// Its node: `/dev/nvme0n1`.
    pub node: PathBuf,
    /// A name that survives restarts: the shortest link in `/dev/disk/by-id` that carries the
    /// serial number, if udev made one.
    pub by_id: Option<PathBuf>,
    /// Major and minor number.
    pub number: (u32, u32),
    /// What it is.
    pub kind: DeviceKind,
    /// Model, without blanks around it; empty where the device has none.
    pub model: String,
    /// Serial number, without blanks around it; empty where the device has none.
    pub serial: String,
    /// Bytes it holds.
    pub bytes: u64,
    /// Bytes of one logical block: the unit of reads and writes.
    pub lba_bytes: u32,
    /// Bytes that the device writes at once without reading first.
    pub physical_block_bytes: u32,
    /// Bytes that one command may carry.
    pub transfer_bytes_max: u64,
    /// Whether it has a write cache that loses its content with power, so that only a flush makes
    /// writes durable.
    pub volatile_cache: bool,
    /// Whether a single write can be made durable by itself (FUA).
    pub fua: bool,
    /// Whether its driver has queues that are polled instead of interrupting.
    pub polled_queues: bool,
    /// Bytes that one discard may cover; 0 where the device cannot discard.
    pub discard_bytes_max: u64,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Memory node that is nearest to it.
    pub numa_node: Option<u32>,
    /// What only NVMe namespaces have.
    pub nvme: Option<Namespace>,
    /// Who uses it. Empty means that the kernel knows of nobody; what is on it says nobody here.
    pub uses: Vec<Use>,
}

/// What a namespace has beyond a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Number of the namespace within its controller, from 1.
    pub id: u32,
    /// Node that takes NVMe commands: `/dev/ng0n1` (Linux 5.13).
    pub generic_node: Option<PathBuf>,
    /// Globally unique name, if the device has one (`nguid`, `eui64` or `uuid`, as `wwid`).
    pub wwid: Option<String>,
    /// Controllers that lead to it: one, or several where paths are shared.
    pub controllers: Vec<Controller>,
}

/// A controller of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// The kernel's name until the next start: `nvme0`.
    pub name: String,
    /// Node that takes admin commands: `/dev/nvme0`.
    pub node: PathBuf,
    /// Firmware, without blanks around it.
    pub firmware: String,
    /// `pcie`, `tcp`, `loop`...
    pub transport: String,
    /// Place on the bus, such as `0000:00:1f.0`.
    pub address: String,
    /// What the driver thinks of it: `live`, `resetting`, `dead`...
    pub state: String,
}

/// A use that forbids taking a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// It has this partition.
    Partition(String),
    /// Another block device is built on it or on a partition of it (device mapper, RAID).
    Holder(String),
    /// It, or a partition of it, is mounted here.
    Mount(PathBuf),
    /// It, or a partition of it, holds swap.
    Swap(PathBuf),
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partition(name) => write!(f, "has partition {name}"),
            Self::Holder(name) => write!(f, "is held by {name}"),
            Self::Mount(path) => write!(f, "is mounted at {}", path.display()),
            Self::Swap(path) => write!(f, "holds swap ({})", path.display()),
        }
    }
}

impl Device {
    /// Whether the device goes by this model and serial number.
    pub fn is(&self, model: &str, serial: &str) -> bool {
        self.model == model.trim() && self.serial == serial.trim()
    }
}

/// All block devices that can hold something, by name: no hidden paths of a shared namespace, no
/// memory disks, no empty loop devices. A device that goes away meanwhile is left out.
///
/// Errors: the kernel's descriptions cannot be read at all.
pub fn discover(roots: &Roots) -> Result<Vec<Device>, NvmeError> {
    sysfs::devices(roots)
}

/// The device behind a path: its node, or a link to it such as those in `/dev/disk/by-id`.
///
/// Errors: the path cannot be read, it is no block device, or it is a partition or another part
/// of a device.
pub fn of_path(roots: &Roots, path: &Path) -> Result<Device, NvmeError> {
    let failed = |source| NvmeError::Discover { path: path.to_owned(), source };
    let number = block_number(path).map_err(failed)?;
    let devices = discover(roots)?;
    devices.into_iter().find(|device| device.number == number).ok_or_else(|| {
        let text = "it is a partition, or of a kind that cannot be a volume; name a whole device";
        failed(io::Error::new(io::ErrorKind::InvalidInput, text))
    })
}

/// The device that holds a path: the one it names, or the one below its file system.
///
/// Errors: the path cannot be read, or its file system lies on no single device that we know
/// (memory, several devices, the device mapper).
pub fn below(roots: &Roots, path: &Path) -> Result<Device, NvmeError> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |source| NvmeError::Discover { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.file_type().is_block_device() {
        return of_path(roots, path);
    }
    let (major, minor) = (libc::major(metadata.st_dev()), libc::minor(metadata.st_dev()));
    let name = sysfs::device_of(roots, (major, minor));
    let devices = discover(roots)?;
    devices.into_iter().find(|device| Some(&device.name) == name.as_ref()).ok_or_else(|| {
        let text = format!("its file system ({major}:{minor}) lies on no single device");
        failed(io::Error::new(io::ErrorKind::NotFound, text))
    })
}

/// Major and minor number behind a path. Errors: it cannot be read, or is no block device.
pub(crate) fn block_number(path: &Path) -> io::Result<(u32, u32)> {
    use std::os::unix::fs::FileTypeExt;
    let metadata = std::fs::metadata(path)?;
    if !metadata.file_type().is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no block device"));
    }
    let number = metadata.st_rdev();
    Ok((libc::major(number), libc::minor(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_disks_are_told_from_network_volumes() {
        let kind = |model, serial| DeviceKind::of(true, model, serial);
        assert_eq!(kind(INSTANCE_STORE_MODEL, "AWS1A4FC25FB16B79F76"), DeviceKind::InstanceStore);
        assert_eq!(kind(EBS_MODEL, "vol0123456789abcdef0"), DeviceKind::Ebs);
        assert_eq!(kind(EBS_MODEL, "anything"), DeviceKind::Ebs);
        assert_eq!(kind(INSTANCE_STORE_MODEL, "vol0123456789abcdef0"), DeviceKind::Ebs);
        assert_eq!(kind("QEMU NVMe Ctrl", "volume7"), DeviceKind::Nvme);
        assert_eq!(DeviceKind::of(false, EBS_MODEL, "x"), DeviceKind::Block);
    }

    #[test]
    fn other_files_are_no_devices() {
        for path in ["/dev/null", "/", "/nonexistent"] {
            let refused = of_path(&Roots::default(), Path::new(path)).unwrap_err();
            assert!(refused.to_string().contains(path), "{refused}");
        }
    }
}
