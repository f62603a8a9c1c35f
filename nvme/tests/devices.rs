//! Discovery over made-up trees of /sys, /proc and /dev, laid out as Linux 6.12 lays them out.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use wirevault_nvme::device::{DeviceKind, Roots, Use, below, discover};
use wirevault_nvme::{Device, NvmeError};

const MIB: u64 = 1 << 20;

/// A machine in a folder.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        machine.put("proc/self/mountinfo", "22 1 254:1 / / rw - ext4 /dev/root rw\n");
        machine.put("sys/block/.keep", "");
        machine
    }

    fn roots(&self) -> Roots {
        let at = |name| self.dir.path().join(name);
        Roots { sys: at("sys"), proc: at("proc"), dev: at("dev") }
    }

    fn put(&self, path: &str, content: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn link(&self, link: &str, to: &str) {
        let path = self.dir.path().join(link);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    /// A disk in /sys/block, `dir` being its real folder below /sys.
    fn disk(&self, name: &str, dir: &str, number: &str, bytes: u64) {
        let at = |attribute: &str| format!("sys/{dir}/{attribute}");
        self.put(&at("size"), &format!("{}\n", bytes / 512));
        self.put(&at("dev"), &format!("{number}\n"));
        self.put(&at("ro"), "0\n");
        for (attribute, value) in [
            ("logical_block_size", "4096"),
            ("physical_block_size", "4096"),
            ("max_hw_sectors_kb", "512"),
            ("write_cache", "write back"),
            ("fua", "1"),
            ("io_poll", "0"),
            ("discard_max_bytes", "2199023255040"),
        ] {
            self.put(&at(&format!("queue/{attribute}")), &format!("{value}\n"));
        }
        self.put(&at("holders/.keep"), "");
        fs::remove_file(self.dir.path().join(at("holders/.keep"))).unwrap();
        self.link(&format!("sys/block/{name}"), &format!("../{dir}"));
    }

    /// A controller on the PCI bus, and its folder below /sys.
    fn controller(&self, number: u32, model: &str, serial: &str) -> String {
        let (name, slot) = (format!("nvme{number}"), format!("0000:00:1{number}.0"));
        let bus = format!("devices/pci0000:00/{slot}");
        let dir = format!("{bus}/nvme/{name}");
        // The kernel pads model and serial number with blanks.
        self.put(&format!("sys/{dir}/model"), &format!("{model:<40}\n"));
        self.put(&format!("sys/{dir}/serial"), &format!("{serial:<20}\n"));
        self.put(&format!("sys/{dir}/firmware_rev"), "1.0     \n");
        self.put(&format!("sys/{dir}/transport"), "pcie\n");
        self.put(&format!("sys/{dir}/address"), &format!("{slot}\n"));
        self.put(&format!("sys/{dir}/state"), "live\n");
        self.put(&format!("sys/{bus}/numa_node"), "1\n");
        self.link(&format!("sys/{dir}/device"), "../..");
        self.link(&format!("sys/class/nvme/{name}"), &format!("../../{dir}"));
        dir
    }

    /// A namespace directly below its controller.
    fn namespace(&self, number: u32, model: &str, serial: &str) {
        let controller = self.controller(number, model, serial);
        let name = format!("nvme{number}n1");
        let dir = format!("{controller}/{name}");
        self.disk(&name, &dir, &format!("259:{number}"), 64 * MIB);
        self.put(&format!("sys/{dir}/nsid"), "1\n");
        self.link(&format!("sys/{dir}/device"), "..");
        self.put(&format!("sys/class/nvme-generic/ng{number}n1/dev"), "237:0\n");
    }

    fn found(&self) -> Vec<Device> {
        discover(&self.roots()).unwrap()
    }

    fn only(&self) -> Device {
        let mut found = self.found();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }
}

const LOCAL: &str = "Amazon EC2 NVMe Instance Storage";
const EBS: &str = "Amazon Elastic Block Store";

#[test]
fn a_namespace_is_described() {
    let machine = Machine::new();
    machine.namespace(0, LOCAL, "AWS2222A2B2C3D4E5F60");
    for link in ["nvme-Amazon_EC2_NVMe_AWS2222A2B2C3D4E5F60_1", "nvme-AWS2222A2B2C3D4E5F60"] {
        machine.link(&format!("dev/disk/by-id/{link}"), "../../nvme0n1");
    }
    machine.link("dev/disk/by-id/nvme-other-AWS2222A2B2C3D4E5F60", "../../nvme7n1");
    let device = machine.only();
    let dev = machine.roots().dev;
    assert_eq!(device.name, "nvme0n1");
    assert_eq!(device.node, dev.join("nvme0n1"));
    assert_eq!(device.by_id, Some(dev.join("disk/by-id/nvme-AWS2222A2B2C3D4E5F60")));
    assert_eq!((device.model.as_str(), device.serial.as_str()), (LOCAL, "AWS2222A2B2C3D4E5F60"));
    assert!(device.is(LOCAL, "AWS2222A2B2C3D4E5F60  "));
    assert_eq!((device.kind, device.number), (DeviceKind::InstanceStore, (259, 0)));
    assert_eq!(
        (device.bytes, device.lba_bytes, device.physical_block_bytes),
        (64 * MIB, 4096, 4096)
    );
    assert_eq!(device.transfer_bytes_max, MIB / 2);
    assert_eq!((device.volatile_cache, device.fua, device.read_only), (true, true, false));
    assert_eq!((device.polled_queues, device.numa_node), (false, Some(1)));
    assert_eq!(device.uses, []);
    let nvme = device.nvme.unwrap();
    assert_eq!((nvme.id, nvme.generic_node), (1, Some(dev.join("ng0n1"))));
    let controller = &nvme.controllers[0];
    assert_eq!((controller.name.as_str(), &controller.node), ("nvme0", &dev.join("nvme0")));
    assert_eq!((controller.firmware.as_str(), controller.state.as_str()), ("1.0", "live"));
    assert_eq!(
        (controller.transport.as_str(), controller.address.as_str()),
        ("pcie", "0000:00:10.0")
    );
}

#[test]
fn a_shared_namespace_is_one_device_with_its_paths() {
    let machine = Machine::new();
    let subsystem = "devices/virtual/nvme-subsystem/nvme-subsys0";
    machine.put(&format!("sys/{subsystem}/model"), "QEMU NVMe Ctrl\n");
    machine.put(&format!("sys/{subsystem}/serial"), "S1\n");
    for number in [0, 1] {
        let controller = machine.controller(number, "QEMU NVMe Ctrl", "S1");
        let path = format!("nvme0c{number}n1");
        let dir = format!("{controller}/{path}");
        machine.disk(&path, &dir, &format!("259:{}", 5 + number), 64 * MIB);
        machine.put(&format!("sys/{dir}/hidden"), "1\n");
        machine
            .link(&format!("sys/{subsystem}/nvme{number}"), &format!("../../../../{controller}"));
    }
    machine.disk("nvme0n1", &format!("{subsystem}/nvme0n1"), "259:1", 64 * MIB);
    machine.put(&format!("sys/{subsystem}/nvme0n1/nsid"), "3\n");
    machine.link(&format!("sys/{subsystem}/nvme0n1/device"), "..");
    let device = machine.only();
    assert_eq!((device.name.as_str(), device.serial.as_str()), ("nvme0n1", "S1"));
    assert_eq!((device.kind, device.numa_node), (DeviceKind::Nvme, Some(1)));
    let nvme = device.nvme.unwrap();
    let controllers: Vec<_> = nvme.controllers.iter().map(|it| it.name.as_str()).collect();
    assert_eq!((nvme.id, controllers), (3, vec!["nvme0", "nvme1"]));
    assert_eq!(nvme.generic_node, None, "a kernel without such nodes");
}

#[test]
fn numbers_of_the_kernel_do_not_matter() {
    let machine = Machine::new();
    machine.namespace(2, LOCAL, "AWS1");
    machine.namespace(0, EBS, "vol0123456789abcdef0");
    machine.namespace(1, LOCAL, "AWS2");
    let found = machine.found();
    let by_serial = |serial| found.iter().find(|it| it.serial == serial).unwrap();
    assert_eq!(by_serial("AWS1").name, "nvme2n1");
    assert_eq!(by_serial("vol0123456789abcdef0").kind, DeviceKind::Ebs);
    assert_eq!(found.iter().filter(|it| it.kind == DeviceKind::InstanceStore).count(), 2);
}

#[test]
fn every_use_is_told() {
    let machine = Machine::new();
    machine.namespace(0, LOCAL, "AWS1");
    machine.namespace(1, LOCAL, "AWS2");
    machine.namespace(2, LOCAL, "AWS3");
    let parts = "sys/block/nvme0n1";
    for (part, number) in [("nvme0n1p1", "259:11"), ("nvme0n1p2", "259:12")] {
        machine.put(&format!("{parts}/{part}/partition"), "1\n");
        machine.put(&format!("{parts}/{part}/dev"), number);
    }
    machine.put(&format!("{parts}/nvme0n1p2/holders/dm-0/dev"), "253:0\n");
    machine.put("sys/block/nvme1n1/holders/md0/dev", "9:0\n");
    let dev = machine.roots().dev;
    machine.put("dev/nvme2n1", "");
    machine.link("dev/pool", "nvme2n1");
    machine.put(
        "proc/self/mountinfo",
        &format!(
            "30 1 259:11 / /boot rw - vfat /dev/other rw\n\
             31 1 0:44 / /srv/a\\040b rw - btrfs {} rw\n",
            dev.join("pool").display()
        ),
    );
    let swap = dev.join("nvme1n1");
    let head = "Filename Type Size Used Priority";
    machine.put("proc/swaps", &format!("{head}\n{} partition 1 0 -2\n", swap.display()));
    let found = machine.found();
    let name = |name: &str| name.to_owned();
    assert_eq!(
        found[0].uses,
        [
            Use::Partition(name("nvme0n1p1")),
            Use::Mount("/boot".into()),
            Use::Partition(name("nvme0n1p2")),
            Use::Holder(name("dm-0")),
        ]
    );
    assert_eq!(found[1].uses, [Use::Holder(name("md0")), Use::Swap(swap)]);
    // A file system over several devices has a number of its own and tells one of them by name.
    assert_eq!(found[2].uses, [Use::Mount("/srv/a b".into())]);
    assert_eq!(found[2].uses[0].to_string(), "is mounted at /srv/a b");
}

#[test]
fn what_can_hold_nothing_is_left_out() {
    let machine = Machine::new();
    machine.disk("loop0", "devices/virtual/block/loop0", "7:0", 0);
    machine.disk("zram0", "devices/virtual/block/zram0", "252:0", MIB);
    machine.disk("vda", "devices/virtio0/block/vda", "254:0", 8 * MIB);
    machine.put("sys/devices/virtio0/block/vda/serial", "disk-7");
    let vda = machine.only();
    assert_eq!((vda.kind, vda.serial.as_str()), (DeviceKind::Block, "disk-7"));
    assert_eq!((vda.model.as_str(), vda.nvme), ("", None));
    assert_eq!(vda.numa_node, None);
}

/// A folder's device is the one below its file system, a partition's the whole one.
#[test]
fn the_device_below_a_folder_is_found() {
    let machine = Machine::new();
    machine.namespace(0, LOCAL, "AWS1");
    let folder = machine.dir.path();
    let refused = below(&machine.roots(), folder).unwrap_err();
    assert!(refused.to_string().contains("no single device"), "{refused}");
    let number = fs::metadata(folder).unwrap().st_dev();
    let number = format!("{}:{}", libc::major(number), libc::minor(number));
    machine.put("sys/block/nvme0n1/nvme0n1p1/partition", "1\n");
    machine.link(&format!("sys/dev/block/{number}"), "../../block/nvme0n1/nvme0n1p1");
    assert_eq!(below(&machine.roots(), folder).unwrap().serial, "AWS1");
}

#[test]
fn a_device_that_goes_away_meanwhile_is_left_out() {
    let machine = Machine::new();
    machine.namespace(0, LOCAL, "AWS1");
    machine.link("sys/block/nvme1n1", "../devices/gone");
    let dir = machine.roots().sys.join("block/nvme0n1");
    assert_eq!(machine.found().len(), 1);
    fs::remove_file(dir.join("queue/logical_block_size")).unwrap();
    assert_eq!(machine.found(), []);
}

#[test]
fn an_unknown_machine_is_an_error() {
    for missing in ["sys/block", "proc/self"] {
        let machine = Machine::new();
        fs::remove_dir_all(machine.dir.path().join(missing)).unwrap();
        let refused = discover(&machine.roots()).unwrap_err();
        let NvmeError::Discover { path, .. } = &refused else { panic!("{refused}") };
        assert!(path.starts_with(machine.dir.path()), "{refused}");
    }
}

#[test]
fn this_machine_can_be_looked_at() {
    if !Path::new("/sys/block").exists() {
        return;
    }
    for device in discover(&Roots::default()).unwrap() {
        assert!(device.bytes > 0 && device.lba_bytes >= 512, "{device:?}");
    }
}
