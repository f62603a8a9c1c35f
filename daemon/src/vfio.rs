//! Volumes on devices that this process drives itself, from the taking to the handing back.
//!
//! ```text
//!  start: what a crash left ─► kernel      volume's path ─► device ─► taken ─► Controller
//!  end: last queue and file gone ─► controller shut down ─► kernel
//! ```
//! What cannot be had goes on with the kernel's driver: recording comes first, and the status says
//! why.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use wirevault_media::notes::NOTES;
use wirevault_media::{BlockMedia, Media, MediaError, open_volume};
use wirevault_nvme::device::{self, Roots};
use wirevault_nvme::vfio::{Binder, Controller, ControllerOptions, Taken, VfioBus, VfioVolume};
use wirevault_nvme::{Device, NvmeError, QueueOptions, open_best, open_instead, open_vfio};
use wirevault_pipeline::QueueMaker;
use wirevault_storage::StoreStatus;

use crate::devices::NO_CONTROLLER;
use crate::health::Below;

/// How long the kernel, and whoever makes links to its devices, may take to have one again.
const RETURN_MAX: Duration = Duration::from_secs(10);
/// How long answers may hold on to a device at the end.
const LET_GO_MAX: Duration = Duration::from_secs(5);
/// Between two looks at either.
const LOOK: Duration = Duration::from_millis(20);

/// The volumes that are to be driven from here. Dropping it hands their devices back, once nobody
/// uses them any more.
pub(crate) struct OwnDevices {
    binder: Binder,
    wanted: Vec<PathBuf>,
    own: Vec<Own>,
    /// Volumes that are left to the kernel, and why.
    refused: Vec<(String, String)>,
}

/// A device that was taken.
struct Own {
    /// What its store calls the volume.
    name: String,
    device: Device,
    taken: Taken,
    controller: Weak<Controller<VfioBus>>,
}

/// Why a device was not taken.
enum NotTaken {
    /// It stays with the kernel's driver.
    Refused(String),
    /// Nobody gets it.
    Volume(MediaError),
}

impl From<NvmeError> for NotTaken {
    fn from(error: NvmeError) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<MediaError> for NotTaken {
    fn from(error: MediaError) -> Self {
        Self::Volume(error)
    }
}

impl OwnDevices {
    /// Hands back what crashes left, and waits until it is there again. Nothing is taken yet.
    pub(crate) fn new(wanted: &[PathBuf], store: &Path) -> Self {
        let binder = Binder::new(Roots::default(), NOTES);
        match binder.give_back_all() {
            Ok(returned) if returned.is_empty() => {}
            Ok(returned) => {
                let devices: Vec<String> = returned.iter().map(ToString::to_string).collect();
                let devices = devices.join(", ");
                tracing::warn!(devices, "handed back to the kernel what a crash had left");
                wanted.iter().map(PathBuf::as_path).chain([store]).for_each(wait_for);
            }
            Err(error) => tracing::error!("what a crash left stays as it is: {error}"),
        }
        Self { binder, wanted: wanted.to_vec(), own: Vec::new(), refused: Vec::new() }
    }

    /// Opens a volume, past the kernel if that is wanted of it and can be had.
    ///
    /// # Errors
    /// As [`open_volume`]; somebody writes the volume.
    pub(crate) fn open(&mut self, path: &Path) -> Result<Arc<dyn Media>, MediaError> {
        if !self.wanted.iter().any(|wanted| is_same(wanted, path)) {
            return open_volume(path);
        }
        match self.take(path) {
            Ok(media) => Ok(media),
            Err(NotTaken::Volume(error)) => Err(error),
            Err(NotTaken::Refused(why)) => {
                let volume = path.display().to_string();
                tracing::warn!(volume, why, "the kernel goes on driving the device");
                self.refused.push((volume, why));
                open_volume(path)
            }
        }
    }

    /// Leaves a volume to the kernel, if it was wanted from here.
    pub(crate) fn leave(&mut self, path: &Path, why: &str) {
        if self.wanted.iter().any(|wanted| is_same(wanted, path)) {
            self.refused.push((path.display().to_string(), why.to_owned()));
        }
    }

    /// Makes the queues of a store whose volumes were opened here.
    pub(crate) fn queues(&self, store: &StoreStatus) -> QueueMaker {
        let own = |name: &str| self.own.iter().find(|own| own.name == name);
        let refused = |name: &str| self.refused.iter().find(|(refused, _)| refused == name);
        let volumes: Vec<_> = store
            .volumes
            .iter()
            .map(|it| match (own(&it.path), refused(&it.path)) {
                (Some(own), _) => Driver::Own(Weak::clone(&own.controller)),
                (None, Some((_, why))) => Driver::Instead(why.clone()),
                (None, None) => Driver::Kernel,
            })
            .collect();
        let options = QueueOptions::default();
        Arc::new(move |volume, arena| match volumes.get(volume) {
            Some(Driver::Own(controller)) => match controller.upgrade() {
                Some(controller) => open_vfio(&options, arena, &controller),
                None => open_best(&options, arena),
            },
            Some(Driver::Instead(why)) => open_instead(&options, arena, why),
            Some(Driver::Kernel) | None => open_best(&options, arena),
        })
    }

    /// Whom to ask for the health of each volume's device.
    pub(crate) fn below(&self, store: &StoreStatus) -> Vec<Below> {
        let below = |path: &String| match self.own.iter().find(|own| own.name == *path) {
            Some(own) => Below::Own(Box::new(own.device.clone()), Weak::clone(&own.controller)),
            None => Below::Kernel(PathBuf::from(path)),
        };
        store.volumes.iter().map(|volume| below(&volume.path)).collect()
    }

    /// Paths that are wanted and belong to no volume of the store.
    pub(crate) fn strangers(&self, store: &StoreStatus) -> Vec<(usize, PathBuf)> {
        let known =
            |path: &Path| store.volumes.iter().any(|volume| is_same(path, Path::new(&volume.path)));
        let wanted = self.wanted.iter().cloned().enumerate();
        wanted.filter(|(_, path)| !known(path)).collect()
    }

    fn take(&mut self, path: &Path) -> Result<Arc<dyn Media>, NotTaken> {
        if !path.exists() {
            return Ok(open_volume(path)?);
        }
        let device = device::of_path(&Roots::default(), path)?;
        let kernel = BlockMedia::open(path)?;
        if kernel.label().is_none() {
            return Err(NotTaken::Refused("it is not laid out as a volume".to_owned()));
        }
        // Whoever holds it, or has it mounted, goes before us.
        drop(kernel.lock()?);
        let address = Binder::address_of(&device)
            .ok_or_else(|| NotTaken::Refused(NO_CONTROLLER.to_owned()))?;
        let names: Vec<&Path> = [Some(path), Some(&device.node), device.by_id.as_deref()]
            .into_iter()
            .flatten()
            .collect();
        let taken = self.binder.take(address, &names)?;
        match start(&self.binder, &taken, &device, path) {
            Ok((controller, media)) => {
                let name = path.display().to_string();
                let (serial, place) = (&device.serial, address.to_string());
                tracing::info!(volume = name, serial, place, "drives the device itself");
                let controller = Arc::downgrade(&controller);
                self.own.push(Own { name, device, taken, controller });
                Ok(media)
            }
            Err(error) => {
                give_back(&self.binder, taken);
                wait_for(path);
                Err(error)
            }
        }
    }
}

/// What drives the device of a volume.
enum Driver {
    Own(Weak<Controller<VfioBus>>),
    /// The kernel, and why not we.
    Instead(String),
    Kernel,
}

type Started = (Arc<Controller<VfioBus>>, Arc<dyn Media>);

fn start(
    binder: &Binder,
    taken: &Taken,
    device: &Device,
    path: &Path,
) -> Result<Started, NotTaken> {
    let bus = VfioBus::open(binder, taken.address())?;
    let namespace = device.nvme.as_ref().map(|nvme| nvme.id);
    let options = ControllerOptions { namespace, ..ControllerOptions::default() };
    let controller = Controller::start(bus, options, None)?;
    let volume = VfioVolume::open(&controller, &path.display().to_string())?;
    let media = BlockMedia::over(Arc::new(volume));
    let media = media.map_err(|error| NotTaken::Refused(error.to_string()))?;
    Ok((controller, Arc::new(media)))
}

impl Drop for OwnDevices {
    fn drop(&mut self) {
        for own in self.own.drain(..) {
            let Own { name, taken, controller, .. } = own;
            let since = Instant::now();
            while controller.strong_count() > 0 && since.elapsed() < LET_GO_MAX {
                thread::sleep(LOOK);
            }
            // The kernel would wait for the last user, and we with it.
            if controller.strong_count() > 0 {
                tracing::error!(
                    "an answer still reads {name}: its device is not handed back; the next start \
                     does that, or `wirevault volume release`"
                );
                continue;
            }
            give_back(&self.binder, taken);
        }
    }
}

fn give_back(binder: &Binder, taken: Taken) {
    let place = taken.address().to_string();
    match binder.give_back(taken) {
        Ok(()) => tracing::info!(place, "the kernel drives the device again"),
        Err(error) => tracing::error!("the device stays with us: {error}"),
    }
}

/// Waits until a path is there; links come after their devices.
fn wait_for(path: &Path) {
    let since = Instant::now();
    while !path.exists() && since.elapsed() < RETURN_MAX {
        thread::sleep(LOOK);
    }
}

/// Whether two paths name one thing, also if it is not there.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    one == other || real(one) == real(other)
}
