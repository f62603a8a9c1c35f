//! The devices below the volumes: what they are, and how they say they are.
//!
//! Each volume has a thread of its own that asks, because a device that hangs holds up whoever asks
//! it until its driver gives up. Nobody waits for these threads, also not at the end.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use wirevault_nvme::admin::AdminNode;
use wirevault_nvme::device::{self, Roots};
use wirevault_nvme::spec::amazon::quantile_us;
use wirevault_nvme::vfio::{Controller, VfioBus};
use wirevault_nvme::{Device, Health, NvmeError};
use wirevault_storage::{Store, Wear};

use crate::api::DeviceStatus;

/// Time between two questions. Wear and temperature change slowly; EC2's devices want to be asked
/// once a second at most.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// Where to ask for a device.
pub(crate) enum Below {
    /// The kernel has the device that holds this path.
    Kernel(PathBuf),
    /// We have it; it is known as the kernel described it before.
    Own(Box<Device>, Weak<Controller<VfioBus>>),
}

/// What is known of each volume's device. Dropping it ends the threads when they next wake.
pub(crate) struct Devices {
    known: Vec<Arc<Mutex<Option<DeviceStatus>>>>,
    _alive: Vec<SyncSender<()>>,
}

impl Devices {
    /// Begins to ask the devices below volumes, and tells the store of their wear. A thread that
    /// cannot be had costs its volume the report.
    pub(crate) fn watch(volumes: Vec<Below>, store: &Weak<Store>) -> Self {
        let watch_one = |(number, below): (usize, Below)| {
            let known = Arc::new(Mutex::new(None));
            let (alive, ended) = sync_channel(0);
            let told = Arc::clone(&known);
            let store = Weak::clone(store);
            let spawned =
                thread::Builder::new().name(format!("health-{number}")).spawn(move || {
                    let wear = |wear| {
                        if let Some(store) = store.upgrade() {
                            store.set_wear(number, wear);
                        }
                    };
                    let place =
                        || Some(store.upgrade()?.status().volumes.get(number)?.path.clone());
                    ask(&below, place, &told, wear, &ended);
                });
            if let Err(error) = spawned {
                tracing::warn!("the device of volume {number} is not watched: {error}");
            }
            (known, alive)
        };
        let (known, alive) = volumes.into_iter().enumerate().map(watch_one).unzip();
        Self { known, _alive: alive }
    }

    /// What a volume's device told last; nothing before its first answer.
    pub(crate) fn of(&self, volume: usize) -> Option<DeviceStatus> {
        self.known.get(volume)?.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn ask(
    below: &Below,
    place: impl Fn() -> Option<String>,
    told: &Mutex<Option<DeviceStatus>>,
    wear: impl Fn(Wear),
    ended: &Receiver<()>,
) {
    let mut warned = Vec::new();
    loop {
        let status = match below {
            Below::Kernel(first) => match device::below(
                &Roots::default(),
                // The volume may have been replaced meanwhile.
                &place().map_or_else(|| first.clone(), PathBuf::from),
            ) {
                Ok(device) => {
                    let (status, worn) = described(&device, kernel_health(&device));
                    wear(worn);
                    status
                }
                Err(error) => {
                    DeviceStatus { why_not: vec![error.to_string()], ..DeviceStatus::default() }
                }
            },
            Below::Own(device, controller) => {
                let Some(controller) = controller.upgrade() else { return };
                let health = Health::read(&*controller, controller.facts().namespace_id);
                let node = controller.describe();
                let (status, worn) = described(device, Some(health));
                wear(worn);
                DeviceStatus { node, ..status }
            }
        };
        if status.warnings != warned {
            let (serial, warnings) = (&status.serial, status.warnings.join("; "));
            tracing::warn!(serial, warnings, "a device's warnings have changed");
            warned.clone_from(&status.warnings);
        }
        *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        // Nothing is ever sent: the other end goes when the recorder ends.
        if ended.recv_timeout(ASK_EVERY) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
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
            worn = wear_of(&health);
        }
        Some(Err(error)) => status.why_not.push(error.to_string()),
        None => status.why_not.push("it is no NVMe device, and tells nothing of itself".to_owned()),
    }
    (status, worn)
}

/// What the choice of a volume depends on. Heat passes; everything else that a device warns of does
/// not.
fn wear_of(health: &Health) -> Wear {
    let protected = health.namespace.is_some_and(|it| it.write_protected);
    let failing = health.smart.as_ref().is_some_and(|smart| smart.warning.is_failing());
    let used_percent = health.smart.as_ref().map(|smart| smart.used_percent);
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
    use wirevault_nvme::spec::smart::SMART_BYTES;
    use wirevault_nvme::spec::{IdentifyController, SmartLog};

    use super::*;

    #[test]
    fn what_a_device_tells_is_passed_on_and_nothing_else() {
        let mut page = [0; SMART_BYTES];
        page[..6].copy_from_slice(&[1, 0x36, 1, 5, 10, 101]);
        let controller = IdentifyController::decode(&[0; 4096]);
        let mut health = Health {
            controller,
            namespace: None,
            smart: Some(SmartLog::decode(&page)),
            errors: Vec::new(),
            amazon: None,
            mapped_name: None,
            why_not: vec!["EC2's statistics".to_owned()],
        };
        let mut status = DeviceStatus::default();
        add_health(&mut status, &health);
        assert_eq!((status.celsius, status.used_percent), (Some(37), Some(101)));
        assert_eq!((status.spare_percent, status.throttled_us), (Some(5), None));
        assert_eq!((status.warnings.len(), status.why_not.len()), (1, 1));
        let wear = Wear { used_percent: Some(101), exhausted: true };
        assert_eq!(wear_of(&health), wear);
        health.smart = None;
        assert_eq!(wear_of(&health), Wear::default());
        let mut status = DeviceStatus::default();
        add_health(&mut status, &health);
        assert_eq!((status.celsius, status.used_percent, status.media_errors), (None, None, None));
    }

    #[test]
    fn a_volume_without_a_known_device_says_why() {
        let devices = Devices::watch(vec![Below::Kernel("/proc".into())], &Weak::new());
        let status = loop {
            match devices.of(0) {
                Some(status) => break status,
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        assert!(status.why_not[0].contains("/proc"), "{status:?}");
        assert_eq!(devices.of(1), None);
    }
}
