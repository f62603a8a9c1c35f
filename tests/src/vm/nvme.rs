//! NVMe devices of a machine, and what goes wrong with them.
//!
//! ```text
//!  controller ─► raw "S" ─► throttle "S-rate" ─────────────────────────────► file "S-file"
//!                   └─────► blkdebug "S-fault" ─┘ └► qcow2 "S-thin" ─► raw "S-room" ─┘
//!                           only while a fault is on       only of a thin device
//! ```

use std::fs::File;
use std::path::PathBuf;

use serde_json::{Value, json};
use wirevault_testkit::net::wait_for;

use super::machine::{PATIENCE, Vm};

/// How a device is made.
#[derive(Debug, Clone)]
pub struct NvmeOptions {
    /// Serial number; the guest finds the device by it.
    pub serial: String,
    /// Bytes, when the image is not there yet.
    pub bytes: u64,
    /// Bytes of a logical block: 512 or 4096.
    pub block_bytes: u32,
    /// Bytes that a thin device has room for, beside what QEMU notes down for itself: it takes no
    /// block that would need more.
    pub room_bytes: Option<u64>,
    /// Image of a device that was there before, or that another machine has too.
    pub image: Option<PathBuf>,
    /// Further properties of QEMU's `nvme` device.
    pub properties: Value,
}

impl NvmeOptions {
    /// A new device with blocks of 512 bytes.
    pub fn new(serial: &str, bytes: u64) -> Self {
        let (serial, properties) = (serial.to_owned(), json!({}));
        Self { serial, bytes, block_bytes: 512, room_bytes: None, image: None, properties }
    }
}

/// A device as the guest sees it.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Serial number; also the name in QEMU.
    pub serial: String,
    /// Name of the controller in the guest, as `nvme0`.
    pub controller: String,
    /// Where the controller is on the guest's PCI bus.
    pub place: String,
    /// Block device in the guest.
    pub block: String,
    /// Character device of the namespace in the guest.
    pub generic: String,
    /// Image on this side.
    pub image: PathBuf,
    port: usize,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Every write fails with a media error.
    Writes,
    /// Every read does.
    Reads,
    /// Writes to the 512-byte sector of this number fail.
    WritesAt(u64),
    /// Flushes fail.
    Flushes,
}

impl Vm {
    /// Adds a device and waits until the guest has it. It also gets its name under
    /// `/dev/disk/by-id`, as udev would give it.
    pub fn add_nvme(&mut self, options: &NvmeOptions) -> Disk {
        let serial = &options.serial;
        let image = options.image.clone().unwrap_or_else(|| self.folder().join(serial));
        if !image.exists() {
            let file = File::create(&image).expect("image");
            file.set_len(options.bytes).expect("length of the image");
        }
        let file = json!({"driver": "file", "node-name": format!("{serial}-file"),
            "filename": image, "discard": "unmap", "locking": "off"});
        self.qmp.run("blockdev-add", file);
        let medium = match options.room_bytes {
            Some(room_bytes) => self.make_thin(serial, options.bytes, room_bytes),
            None => format!("{serial}-file"),
        };
        let group = json!({"qom-type": "throttle-group", "id": format!("{serial}-group")});
        self.qmp.run("object-add", group);
        let rate = json!({"driver": "throttle", "node-name": format!("{serial}-rate"),
            "throttle-group": format!("{serial}-group"), "file": medium, "discard": "unmap"});
        self.qmp.run("blockdev-add", rate);
        self.qmp.run("blockdev-add", top(serial, &format!("{serial}-rate")));
        self.plug(options, image)
    }

    /// Puts a thin image into the file of a device; gives the name of its node.
    fn make_thin(&mut self, serial: &str, bytes: u64, room_bytes: u64) -> String {
        let (job, thin) = (format!("{serial}-made"), format!("{serial}-thin"));
        let image = json!({"driver": "qcow2", "file": format!("{serial}-file"), "size": bytes});
        self.qmp.run("blockdev-create", json!({"job-id": job, "options": image}));
        wait_for("the thin image", PATIENCE, || {
            let jobs = self.qmp.run("query-jobs", json!({}));
            let made = jobs.as_array()?.iter().find(|it| it["id"] == *job)?;
            assert!(made.get("error").is_none(), "{made}");
            (made["status"] == "concluded").then_some(())
        });
        self.qmp.run("job-dismiss", json!({"id": job}));
        self.qmp.run("blockdev-add", room(serial, room_bytes));
        let image = json!({"driver": "qcow2", "node-name": thin, "discard": "unmap",
            "file": format!("{serial}-room")});
        self.qmp.run("blockdev-add", image);
        thin
    }

    /// Gives a thin device room for so many bytes.
    pub fn make_room(&mut self, disk: &Disk, room_bytes: u64) {
        let options = json!({"options": [room(&disk.serial, room_bytes)]});
        self.qmp.run("blockdev-reopen", options);
    }

    fn plug(&mut self, options: &NvmeOptions, image: PathBuf) -> Disk {
        let (serial, port) = (options.serial.clone(), self.put_in(options));
        let (controller, block) = self.find(&serial);
        let place = format!("basename $(readlink -f /sys/class/nvme/{controller}/device)");
        let (place, generic) = (self.ok(&place).trim().to_owned(), generic(&block));
        Disk { serial, controller, place, block, generic, image, port }
    }

    /// Gives the port that it is in.
    fn put_in(&mut self, options: &NvmeOptions) -> usize {
        let (serial, port) = (&options.serial, self.take_port());
        let mut device = json!({"driver": "nvme", "id": serial, "serial": serial,
            "bus": format!("port{port}"), "drive": serial, "share-rw": true,
            "logical_block_size": options.block_bytes,
            "physical_block_size": options.block_bytes});
        for (name, value) in options.properties.as_object().into_iter().flatten() {
            device[name] = value.clone();
        }
        self.qmp.run("device_add", device);
        port
    }

    /// Controller and block device of this serial number, once they are there. The block device
    /// gets its name under `/dev/disk/by-id`.
    fn find(&mut self, serial: &str) -> (String, String) {
        // The numbers of controllers say nothing: devices are looked for at the same time. The
        // kernel pads serial numbers with blanks.
        let find = format!(
            "for c in /sys/class/nvme/nvme*; do read -r s <$c/serial && [ \"$s\" = {serial} ] && \
             basename $c && exit 0; done; exit 1"
        );
        let controller = self.wait_for("the device", &find).trim().to_owned();
        // QEMU's controllers may share namespaces, so the kernel makes one block device for all
        // paths to it, with a number of its own; the paths (`nvme0c0n1`) are no devices.
        let find = format!(
            "cd /sys/block; for b in nvme*; do case $b in *c*n*) continue; esac; \
             read -r s <$b/device/serial && [ \"$s\" = {serial} ] && echo $b && exit 0; \
             done; exit 1"
        );
        let name = self.wait_for("the namespace", &find).trim().to_owned();
        let block = format!("/dev/{name}");
        self.wait_for("the block device", &format!("[ -b {block} ]"));
        self.ok(&format!("ln -sfn {block} /dev/disk/by-id/nvme-{serial}"));
        (controller, block)
    }

    /// Switches a fault on; it replaces one that was on.
    pub fn fail(&mut self, disk: &Disk, fault: Fault) {
        self.heal(disk);
        let serial = &disk.serial;
        let mut rule = json!({"event": "none", "errno": 5});
        match fault {
            Fault::Writes => rule["iotype"] = "write".into(),
            Fault::Reads => rule["iotype"] = "read".into(),
            Fault::Flushes => rule["iotype"] = "flush".into(),
            Fault::WritesAt(sector) => {
                rule["iotype"] = "write".into();
                rule["sector"] = sector.into();
            }
        }
        let node = json!({"driver": "blkdebug", "node-name": format!("{serial}-fault"),
            "image": format!("{serial}-rate"), "inject-error": [rule]});
        self.qmp.run("blockdev-add", node);
        let options = json!({"options": [top(serial, &format!("{serial}-fault"))]});
        self.qmp.run("blockdev-reopen", options);
    }

    /// Ends every fault but [`Vm::unplug`].
    pub fn heal(&mut self, disk: &Disk) {
        let serial = &disk.serial;
        self.slow(disk, 0);
        let options = json!({"options": [top(serial, &format!("{serial}-rate"))]});
        self.qmp.run("blockdev-reopen", options);
        let fault = json!({"node-name": format!("{serial}-fault")});
        // There is none if no fault was on.
        let _ = self.qmp.try_run("blockdev-del", fault);
    }

    /// Limits the device to so many bytes a second; 0 is no limit.
    ///
    /// One byte a second is silence, and for good: what waits then is not let go by other limits,
    /// and [`Vm::heal`] has QEMU wait for it, answering nobody. The kernel of a plain machine waits
    /// for ten minutes.
    pub fn slow(&mut self, disk: &Disk, bytes_per_second: u64) {
        let path = format!("/objects/{}-group", disk.serial);
        let limits = json!({"bps-total": bytes_per_second, "bps-total-max": bytes_per_second});
        let arguments = json!({"path": path, "property": "limits", "value": limits});
        self.qmp.run("qom-set", arguments);
    }

    /// Makes the device warn of its health: bits of the critical warning in its health log.
    pub fn warn(&mut self, disk: &Disk, bits: u8) {
        let path = format!("/machine/peripheral/{}", disk.serial);
        let arguments = json!({"path": path, "property": "smart_critical_warning", "value": bits});
        self.qmp.run("qom-set", arguments);
    }

    /// Takes the namespace away from its controller, which stays.
    pub fn detach_namespace(&mut self, disk: &Disk) {
        let Disk { controller, block, .. } = disk;
        self.ok(&format!("nvme detach-ns /dev/{controller} --namespace-id=1 --controllers=0"));
        self.wait_for("the namespace to be gone", &format!("! [ -b {block} ]"));
    }

    /// Gives it back. Its node may have another name then.
    pub fn attach_namespace(&mut self, disk: &Disk) -> Disk {
        let controller = &disk.controller;
        self.ok(&format!("nvme attach-ns /dev/{controller} --namespace-id=1 --controllers=0"));
        let (controller, block) = self.find(&disk.serial);
        let generic = generic(&block);
        Disk { controller, block, generic, ..disk.clone() }
    }

    /// Pulls the device out: the kernel takes its driver away from it first, which drivers in the
    /// kernel have no say in, and others are asked for.
    pub fn unplug(&mut self, disk: &Disk) {
        let id = &disk.serial;
        self.qmp.run("device_del", json!({"id": id}));
        wait_for("the device to be gone", PATIENCE, || {
            self.qmp.has_happened("DEVICE_DELETED", id).then_some(())
        });
        self.give_port(disk.port);
    }

    /// Puts a device back that was pulled out.
    pub fn replug(&mut self, disk: &Disk) -> Disk {
        let options = NvmeOptions::new(&disk.serial, 0);
        self.plug(&options, disk.image.clone())
    }

    /// The same into the port that was left last, where somebody may take it before the kernel
    /// shows it.
    pub fn put_back(&mut self, disk: &Disk) {
        let port = self.put_in(&NvmeOptions::new(&disk.serial, 0));
        assert_eq!(port, disk.port, "the port that {} was in", disk.serial);
    }
}

/// The character device beside a block device.
fn generic(block: &str) -> String {
    block.replacen("/dev/nvme", "/dev/ng", 1)
}

fn room(serial: &str, bytes: u64) -> Value {
    json!({"driver": "raw", "node-name": format!("{serial}-room"), "size": bytes,
        "file": format!("{serial}-file"), "discard": "unmap"})
}

fn top(serial: &str, below: &str) -> Value {
    json!({"driver": "raw", "node-name": serial, "file": below, "discard": "unmap"})
}
