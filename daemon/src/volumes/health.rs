//! The devices below the volumes: what they are, and how they say they are.
//!
//! Each volume has a thread of its own that asks, because a device that hangs holds up whoever asks
//! it until its driver gives up. Nobody waits for these threads, also not at the end.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use wirevault_nvme::admin::AdminNode;
use wirevault_nvme::device::{self, Roots};
use wirevault_nvme::spec::SmartLog;
use wirevault_nvme::spec::amazon::quantile_us;
use wirevault_nvme::vfio::{Controller, VfioBus};
use wirevault_nvme::{Device, Health, NvmeError};
use wirevault_storage::{Store, Wear};

use crate::api::DeviceStatus;

/// Time between two questions. Wear and temperature change slowly; EC2's devices want to be asked
/// once a second at most.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// Times that all of a device may be written in its life, where it does not say: once a day for
/// five years, which makers of disks for data centres warrant at least.
const LIFE_WRITES: u64 = 5 * 365;

/// Where to ask for a device.
pub(crate) enum Below {
    /// The kernel has the device that holds this path.
    Kernel(PathBuf),
    /// We have it; it is known as the kernel described it before.
    Own(Box<Device>, Weak<Controller<VfioBus>>),
}

/// What is known of each volume's device. Dropping it ends the threads when they next wake.
pub(crate) struct Devices(Vec<Watch>);

struct Watch {
    known: Arc<Mutex<Option<DeviceStatus>>>,
    wake: SyncSender<()>,
}

impl Devices {
    /// Nobody's devices.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    /// Begins to ask the devices below the store's volumes, and tells the store of their wear.
    /// `below` tells where the device of a volume at a path is.
    pub(crate) fn watch(
        store: &Arc<Store>,
        below: impl Fn(&str) -> Below + Clone + Send + 'static,
    ) -> Self {
        let watch_one = |number: usize| {
            let (store, known) = (Arc::downgrade(store), Arc::downgrade(store));
            let place = move || {
                let volumes = known.upgrade()?.status().volumes;
                volumes.into_iter().nth(number).map(|volume| volume.path)
            };
            let wear = move |wear| {
                if let Some(store) = store.upgrade() {
                    store.set_wear(number, wear);
                }
            };
            Watch::start(&format!("health-{number}"), place, below.clone(), wear)
        };
        Self((0..store.status().volumes.len()).map(watch_one).collect())
    }

    /// What a volume's device told last; nothing before its first answer.
    pub(crate) fn of(&self, volume: usize) -> Option<DeviceStatus> {
        lock(&self.0.get(volume)?.known).clone()
    }

    /// The volume is on another device from now on: that one is asked at once, and what the former
    /// told is forgotten.
    pub(crate) fn is_new(&self, volume: usize) {
        if let Some(Watch { known, wake }) = self.0.get(volume) {
            *lock(known) = None;
            // Who was woken already has not looked yet.
            let _ = wake.try_send(());
        }
    }
}

impl Watch {
    /// A thread that cannot be had costs its volume the report.
    fn start(
        name: &str,
        place: impl Fn() -> Option<String> + Send + 'static,
        below: impl Fn(&str) -> Below + Send + 'static,
        wear: impl Fn(Wear) + Send + 'static,
    ) -> Self {
        let known = Arc::new(Mutex::new(None));
        let (wake, woken) = sync_channel(1);
        let told = Arc::clone(&known);
        let spawned = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || ask(place, below, wear, &told, &woken));
        if let Err(error) = spawned {
            tracing::warn!("a device is not watched, the thread {name} cannot be had: {error}");
        }
        Self { known, wake }
    }
}

/// Asks until the store or whoever wakes this thread is gone.
fn ask(
    place: impl Fn() -> Option<String>,
    below: impl Fn(&str) -> Below,
    wear: impl Fn(Wear),
    told: &Mutex<Option<DeviceStatus>>,
    woken: &Receiver<()>,
) {
    let mut warned = Vec::new();
    while let Some(path) = place() {
        let (status, worn) = answer(below(&path));
        // If the volume was replaced meanwhile, this is of a device that is none of ours any more.
        if place().is_some_and(|now| now == path) {
            if status.warnings != warned {
                let (serial, warnings) = (&status.serial, status.warnings.join("; "));
                tracing::warn!(serial, warnings, "a device's warnings have changed");
                warned.clone_from(&status.warnings);
            }
            wear(worn);
            *lock(told) = Some(status);
        }
        if woken.recv_timeout(ASK_EVERY) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

fn answer(below: Below) -> (DeviceStatus, Wear) {
    let untold = |why: String| {
        let status = DeviceStatus { why_not: vec![why], ..DeviceStatus::default() };
        (status, Wear::default())
    };
    match below {
        Below::Kernel(path) => match device::below(&Roots::default(), &path) {
            Ok(device) => described(&device, kernel_health(&device)),
            Err(error) => untold(error.to_string()),
        },
        Below::Own(device, controller) => match controller.upgrade() {
            Some(controller) => {
                let health = Health::read(&*controller, controller.facts().namespace_id);
                let (status, worn) = described(&device, Some(health));
                (DeviceStatus { node: controller.describe(), ..status }, worn)
            }
            None => untold("this process drives the device no more".to_owned()),
        },
    }
}

fn lock(known: &Mutex<Option<DeviceStatus>>) -> MutexGuard<'_, Option<DeviceStatus>> {
    // It is put in whole.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn described(device: &Device, health: Option<Result<Health, NvmeError>>) -> (DeviceStatus, Wear) {
    let mut status = DeviceStatus {
        node: device.node.display().to_string(),
        kind: device.kind.name().to_owned(),
        model: device.model.clone(),
        serial: device.serial.clone(),
        ..DeviceStatus::default()
    };
    let mut worn = Wear::default();
    match health {
        Some(Ok(health)) => {
            add_health(&mut status, &health);
            worn = wear_of(&health, device.bytes);
        }
        Some(Err(error)) => status.why_not.push(error.to_string()),
        None => status.why_not.push("it is no NVMe device, and tells nothing of itself".to_owned()),
    }
    (status, worn)
}

/// What the choice of a volume depends on. Heat passes; everything else that a device warns of does
/// not.
///
/// A device that has used nothing of its life may be one that does not reckon, as EC2's local disks
/// may be: then what was written to it tells.
fn wear_of(health: &Health, device_bytes: u64) -> Wear {
    let protected = health.namespace.is_some_and(|it| it.write_protected);
    let failing = health.smart.as_ref().is_some_and(|smart| smart.warning.is_failing());
    let used = |smart: &SmartLog| match smart.used_percent {
        0 => {
            let life_bytes = u128::from(device_bytes.max(1)) * u128::from(LIFE_WRITES);
            let percent = u128::from(smart.written_bytes) * 100 / life_bytes;
            u8::try_from(percent).unwrap_or(u8::MAX)
        }
        told => told,
    };
    let used_percent = health.smart.as_ref().map(used);
    Wear { used_percent, exhausted: protected || failing }
}

fn kernel_health(device: &Device) -> Option<Result<Health, NvmeError>> {
    let nvme = device.nvme.as_ref()?;
    let node = &nvme.controllers.first()?.node;
    Some(AdminNode::open(node).and_then(|admin| Health::read(&admin, nvme.id)))
}

fn add_health(status: &mut DeviceStatus, health: &Health) {
    status.firmware.clone_from(&health.controller.firmware);
    status.warnings = health.warnings();
    status.why_not.clone_from(&health.why_not);
    if let Some(smart) = &health.smart {
        status.celsius = smart.celsius();
        status.used_percent = Some(smart.used_percent);
        status.spare_percent = Some(smart.spare_percent);
        status.life_written_bytes = Some(smart.written_bytes);
        status.media_errors = Some(smart.media_errors);
        status.error_entries = Some(smart.error_entries);
    }
    if let Some(amazon) = &health.amazon {
        let over = [
            amazon.instance_over_iops_us,
            amazon.instance_over_throughput_us,
            amazon.volume_over_iops_us,
            amazon.volume_over_throughput_us,
        ];
        status.throttled_us = Some(over.into_iter().fold(0, u64::saturating_add));
        let latency = amazon.write_latency.as_deref();
        status.device_write_p99_us = latency.and_then(|bins| quantile_us(bins, 0.99));
    }
}

#[cfg(test)]
mod tests {
    use wirevault_nvme::spec::IdentifyController;
    use wirevault_nvme::spec::smart::SMART_BYTES;

    use super::*;

    fn untold() -> Health {
        Health {
            controller: IdentifyController::decode(&[0; 4096]),
            namespace: None,
            smart: None,
            errors: Vec::new(),
            amazon: None,
            mapped_name: None,
            why_not: Vec::new(),
        }
    }

    #[test]
    fn what_a_device_tells_is_passed_on_and_nothing_else() {
        let mut page = [0; SMART_BYTES];
        page[..6].copy_from_slice(&[1, 0x36, 1, 5, 10, 101]);
        page[176] = 7;
        let why_not = vec!["EC2's statistics".to_owned()];
        let mut health = Health { smart: Some(SmartLog::decode(&page)), why_not, ..untold() };
        let mut status = DeviceStatus::default();
        add_health(&mut status, &health);
        assert_eq!((status.celsius, status.used_percent), (Some(37), Some(101)));
        assert_eq!((status.spare_percent, status.throttled_us), (Some(5), None));
        assert_eq!((status.media_errors, status.error_entries), (Some(0), Some(7)));
        assert_eq!((status.warnings.len(), status.why_not.len()), (1, 1));
        let wear = Wear { used_percent: Some(101), exhausted: true };
        assert_eq!(wear_of(&health, 1 << 40), wear);
        health.smart = None;
        assert_eq!(wear_of(&health, 1 << 40), Wear::default());
        let mut status = DeviceStatus::default();
        add_health(&mut status, &health);
        assert_eq!((status.celsius, status.used_percent, status.media_errors), (None, None, None));
    }

    /// EC2's local disks may say 0 for ever: all of them looked new.
    #[test]
    fn a_device_that_does_not_reckon_looked_new() {
        let smart = |used_percent, written_bytes| {
            let mut smart = SmartLog::decode(&[0; SMART_BYTES]);
            (smart.used_percent, smart.written_bytes) = (used_percent, written_bytes);
            smart
        };
        let used = |smart| {
            let health = Health { smart: Some(smart), ..untold() };
            wear_of(&health, 1 << 40).used_percent
        };
        let full_writes = |times: u64| times << 40;
        assert_eq!(used(smart(0, full_writes(1))), Some(0));
        assert_eq!(used(smart(0, full_writes(183))), Some(10));
        assert_eq!(used(smart(0, full_writes(183 * 10))), Some(100));
        assert_eq!(used(smart(1, full_writes(183))), Some(1), "it says so itself");
        let all = Health { smart: Some(smart(0, u64::MAX)), ..untold() };
        assert_eq!(wear_of(&all, 0).used_percent, Some(u8::MAX));
    }

    /// A volume that moves from one place to another, and where it was looked for.
    #[test]
    fn a_volume_that_was_replaced_is_asked_for_at_its_new_place() {
        let place = Arc::new(Mutex::new("/proc/self".to_owned()));
        let now = Arc::clone(&place);
        let at = move || Some(now.lock().unwrap().clone());
        let watch = Watch::start("health", at, |path| Below::Kernel(path.into()), |_| ());
        let devices = Devices(vec![watch]);
        let told = || loop {
            match devices.of(0) {
                Some(status) => break status.why_not.join("; "),
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        assert!(told().contains("/proc/self"), "{}", told());
        *place.lock().unwrap() = "/sys".to_owned();
        devices.is_new(0);
        assert!(told().contains("/sys"), "{}", told());
        assert_eq!(devices.of(1), None);
    }
}
