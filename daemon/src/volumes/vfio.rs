//! Volumes on devices that this process drives itself, from the taking to the handing back.
//!
//! ```text
//!  start: what a crash left ─► kernel      volume's path ─► device ─► taken ─► Controller
//!  pulled, or dead: let go of ─► kernel    back at its path ─► taken again
//!  end: last queue and file gone ─► controller shut down ─► kernel
//! ```
//! What cannot be had goes on with the kernel's driver: recording comes first, and the status says
//! why.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use wirevault_buffer::Arena;
use wirevault_media::block::BlockDevice;
use wirevault_media::block::device::HostDevice;
use wirevault_media::notes::NOTES;
use wirevault_media::{BlockMedia, Media, MediaError, open_volume};
use wirevault_nvme::device::{self, Roots};
use wirevault_nvme::vfio::{Binder, Controller, ControllerOptions, Taken, VfioBus, VfioVolume};
use wirevault_nvme::{Device, NvmeError, Queue, QueueOptions, open_best, open_instead, open_vfio};
use wirevault_pipeline::QueueMaker;
use wirevault_storage::StoreStatus;

use crate::volumes::devices::NO_CONTROLLER;
use crate::volumes::health::Below;
use crate::volumes::returning::{Driven, Returning};

/// How long the kernel, and whoever makes links to its devices, may take to have one again.
const RETURN_MAX: Duration = Duration::from_secs(10);
/// How long answers may hold on to a device at the end.
const LET_GO_MAX: Duration = Duration::from_secs(5);
/// Between two looks at either.
const LOOK: Duration = Duration::from_millis(20);

/// The volumes that are to be driven from here. Dropping it hands their devices back, once nobody
/// uses them any more.
pub(crate) struct OwnDevices {
    shared: Successors,
}

/// The same for those that open a volume in the place of another. Does not keep devices.
#[derive(Clone)]
pub(crate) struct Successors(Arc<Mutex<State>>);

struct State {
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

impl Own {
    /// Whether the device is closed, so that the kernel may have it.
    fn is_left(&self) -> bool {
        self.controller.upgrade().is_none_or(|controller| controller.is_left())
    }
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
        let (wanted, own, refused) = (wanted.to_vec(), Vec::new(), Vec::new());
        let state = State { binder, wanted, own, refused };
        Self { shared: Successors(Arc::new(Mutex::new(state))) }
    }

    /// Opens a volume, past the kernel if that is wanted of it and can be had.
    ///
    /// # Errors
    /// As [`open_volume`]; somebody writes the volume.
    pub(crate) fn open(&self, path: &Path) -> Result<Arc<dyn Media>, MediaError> {
        self.shared.open_volume(path, false)
    }

    /// Leaves a volume to the kernel, if it was wanted from here.
    pub(crate) fn leave(&self, path: &Path, why: &str) {
        let mut state = self.shared.state();
        if state.is_wanted(path) {
            state.refuse(path, why.to_owned());
        }
    }

    /// For volumes that take the place of those that were opened here.
    pub(crate) fn successors(&self) -> Successors {
        self.shared.clone()
    }

    /// Makes the queues of a store whose volumes were opened here.
    pub(crate) fn queues(&self, store: &StoreStatus) -> QueueMaker {
        let state = self.shared.state();
        let own = |name: &str| state.own.iter().find(|own| own.name == name);
        let volumes: Vec<_> = store
            .volumes
            .iter()
            .map(|it| match (own(&it.path), state.why_refused(&it.path)) {
                (Some(own), _) => Driver::Own(Weak::clone(&own.controller)),
                (None, Some(why)) => Driver::Instead(why),
                (None, None) => Driver::Kernel,
            })
            .collect();
        let (options, successors) = (QueueOptions::default(), self.successors());
        Arc::new(move |volume, arena| match volumes.get(volume) {
            Some(Driver::Own(controller)) => match controller.upgrade() {
                Some(controller) => successors.open_vfio(arena, &controller),
                None => open_best(&options, arena),
            },
            Some(Driver::Instead(why)) => open_instead(&options, arena, why),
            Some(Driver::Kernel) | None => open_best(&options, arena),
        })
    }

    /// Paths that are wanted and belong to no volume of the store.
    pub(crate) fn strangers(&self, store: &StoreStatus) -> Vec<(usize, PathBuf)> {
        let known =
            |path: &Path| store.volumes.iter().any(|volume| is_same(path, Path::new(&volume.path)));
        let wanted = self.shared.state().wanted.clone().into_iter().enumerate();
        wanted.filter(|(_, path)| !known(path)).collect()
    }
}

impl Successors {
    /// Opens an empty device, or a directory, for a new volume in the place of the one at `was`:
    /// past the kernel if that one was to be driven so.
    ///
    /// # Errors
    /// As [`OwnDevices::open`].
    pub(crate) fn open(&self, was: &str, path: &Path) -> Result<Arc<dyn Media>, MediaError> {
        let mut state = self.state();
        if state.is_wanted(Path::new(was)) && !state.is_wanted(path) {
            state.wanted.push(path.to_owned());
        }
        drop(state);
        self.open_volume(path, true)
    }

    /// `fresh`: it is to become a volume, so nothing may stand on it.
    fn open_volume(&self, path: &Path, fresh: bool) -> Result<Arc<dyn Media>, MediaError> {
        let mut state = self.state();
        if !state.is_wanted(path) || !path.exists() {
            return open_volume(path);
        }
        let driven = match state.take(path, fresh) {
            Ok(driven) => driven,
            Err(NotTaken::Volume(error)) => return Err(error),
            Err(NotTaken::Refused(why)) => {
                state.refuse(path, why);
                return open_volume(path);
            }
        };
        drop(state);
        let device = Returning::new(path, driven, self.clone());
        Ok(Arc::new(BlockMedia::over(Arc::new(device))?))
    }

    /// The device of a volume that was let go of, once it is there again: taken, or else with the
    /// kernel.
    ///
    /// # Errors
    /// It is not there; somebody else has it.
    pub(crate) fn take_again(&self, path: &Path) -> Result<Driven, MediaError> {
        let mut state = self.state();
        state.give_back_left(path);
        let kernel = HostDevice::find(path)?;
        match state.take(path, false) {
            Ok(driven) => Ok(driven),
            Err(NotTaken::Volume(error)) => Err(error),
            Err(NotTaken::Refused(why)) => {
                state.refuse(path, why);
                Ok(Driven { device: Arc::new(kernel), controller: Weak::new() })
            }
        }
    }

    /// Whom to ask for the health of the device of a volume at this path.
    pub(crate) fn below(&self, path: &str) -> Below {
        // The newest one, if several had that path one after the other.
        match self.state().own.iter().rfind(|own| own.name == path) {
            Some(own) => Below::Own(Box::new(own.device.clone()), Weak::clone(&own.controller)),
            None => Below::Kernel(PathBuf::from(path)),
        }
    }

    /// A queue on a controller of ours, which goes over to the back end of a successor.
    fn open_vfio(
        &self,
        arena: &Arena,
        controller: &Arc<Controller<VfioBus>>,
    ) -> Result<Box<dyn Queue>, NvmeError> {
        let (next, memory) = (self.clone(), arena.clone());
        let successor = Box::new(move |node: &Path| next.queue(&memory, node));
        open_vfio(&QueueOptions::default(), arena, controller, successor)
    }

    /// A queue for files on this device.
    fn queue(&self, arena: &Arena, node: &Path) -> Result<Box<dyn Queue>, NvmeError> {
        let options = QueueOptions::default();
        let (controller, refused) = {
            let state = self.state();
            let mut own = state.own.iter().filter_map(|own| own.controller.upgrade());
            let is_it = |it: &Arc<Controller<VfioBus>>| it.is_alive() && it.path() == node;
            (own.find(is_it), state.why_refused(&node.display().to_string()))
        };
        match (controller, refused) {
            (Some(controller), _) => self.open_vfio(arena, &controller),
            (None, Some(why)) => open_instead(&options, arena, &why),
            (None, None) => open_best(&options, arena),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever held it left it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_wanted(&self, path: &Path) -> bool {
        self.wanted.iter().any(|wanted| is_same(wanted, path))
    }

    fn refuse(&mut self, path: &Path, why: String) {
        let volume = path.display().to_string();
        tracing::warn!(volume, why, "the kernel goes on driving the device");
        self.refused.retain(|(refused, _)| *refused != volume);
        self.refused.push((volume, why));
    }

    fn why_refused(&self, name: &str) -> Option<String> {
        let refused = self.refused.iter().find(|(refused, _)| refused == name);
        refused.map(|(_, why)| why.clone())
    }

    /// Hands back what is left of the devices that had this path: their places on the bus, and with
    /// them one that did not answer any more, which the kernel's driver may bring to its senses.
    fn give_back_left(&mut self, path: &Path) {
        let name = path.display().to_string();
        while let Some(at) = self.own.iter().position(|own| own.name == name && own.is_left()) {
            give_back(&self.binder, self.own.swap_remove(at).taken);
        }
    }

    fn take(&mut self, path: &Path, fresh: bool) -> Result<Driven, NotTaken> {
        let device = device::of_path(&Roots::default(), path)?;
        let kernel = BlockMedia::open(path)?;
        let is_as_expected = match fresh {
            true => kernel.label().is_none() && matches!(kernel.foreign(), Ok(None)),
            false => kernel.label().is_some(),
        };
        if !is_as_expected {
            let why = if fresh { "it is not empty" } else { "it is not laid out as a volume" };
            return Err(NotTaken::Refused(why.to_owned()));
        }
        // Whoever holds it, or has it mounted, goes before us.
        drop(kernel.lock()?);
        let address = Binder::address_of(&device)
            .ok_or_else(|| NotTaken::Refused(NO_CONTROLLER.to_owned()))?;
        let names: Vec<&Path> = [Some(path), Some(&device.node), device.by_id.as_deref()]
            .into_iter()
            .flatten()
            .collect();
        // The kernel says so only as long as it has the device.
        let patient = ControllerOptions::as_patient_as_the_kernel(&Roots::default(), &device);
        let namespace = device.nvme.as_ref().map(|nvme| nvme.id);
        let taken = self.binder.take(address, &names)?;
        let options = ControllerOptions { namespace, ..patient };
        match start(&self.binder, &taken, options, path) {
            Ok(driven) => {
                let name = path.display().to_string();
                let (serial, place) = (&device.serial, address.to_string());
                tracing::info!(volume = name, serial, place, "drives the device itself");
                let controller = Weak::clone(&driven.controller);
                self.own.push(Own { name, device, taken, controller });
                Ok(driven)
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

fn start(
    binder: &Binder,
    taken: &Taken,
    options: ControllerOptions,
    path: &Path,
) -> Result<Driven, NotTaken> {
    let bus = VfioBus::open(binder, taken.address())?;
    let controller = Controller::start(bus, options, None)?;
    let name = path.display().to_string();
    let volume = Arc::new(VfioVolume::open(&controller, &name)?);
    // What cannot be read by us the kernel may still read.
    BlockMedia::over(Arc::clone(&volume) as Arc<dyn BlockDevice>)
        .map_err(|error| NotTaken::Refused(error.to_string()))?;
    let told = move || tracing::warn!(volume = name, "the kernel has its device back: it goes");
    controller.heed_removal(told).map_err(|error| NotTaken::Refused(error.to_string()))?;
    Ok(Driven { device: volume, controller: Arc::downgrade(&controller) })
}

impl Drop for OwnDevices {
    fn drop(&mut self) {
        let State { binder, own, .. } = &mut *self.shared.state();
        for own in own.drain(..) {
            let since = Instant::now();
            while !own.is_left() && since.elapsed() < LET_GO_MAX {
                thread::sleep(LOOK);
            }
            // The kernel would wait for the last user, and we with it.
            if !own.is_left() {
                let name = own.name;
                tracing::error!(
                    "an answer still reads {name}: its device is not handed back; the next start \
                     does that, or `wirevault volume release`"
                );
                continue;
            }
            give_back(binder, own.taken);
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
