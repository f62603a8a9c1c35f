//! Volumes on devices that this process drives itself, from the taking to the handing back.
//!
//! ```text
//!  start: what a crash left ─► kernel      volume's path ─► device ─► taken ─► Controller
//!  end: last queue and file gone ─► controller shut down ─► kernel
//! ```
//! What cannot be had goes on with the kernel's driver: recording comes first, and the status says
//! why.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use wirevault_buffer::Arena;
use wirevault_media::notes::NOTES;
use wirevault_media::{BlockMedia, Media, MediaError, open_volume};
use wirevault_nvme::device::{self, Roots};
use wirevault_nvme::vfio::{Binder, Controller, ControllerOptions, Taken, VfioBus, VfioVolume};
use wirevault_nvme::{Device, NvmeError, Queue, QueueOptions, open_best, open_instead, open_vfio};
use wirevault_pipeline::QueueMaker;
use wirevault_storage::StoreStatus;

use crate::volumes::devices::NO_CONTROLLER;
use crate::volumes::health::Below;

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
        self.shared.state().open(path, false)
    }

    /// Leaves a volume to the kernel, if it was wanted from here.
    pub(crate) fn leave(&self, path: &Path, why: &str) {
        let mut state = self.shared.state();
        if state.is_wanted(path) {
            state.refused.push((path.display().to_string(), why.to_owned()));
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
        let refused = |name: &str| state.refused.iter().find(|(refused, _)| refused == name);
        let volumes: Vec<_> = store
            .volumes
            .iter()
            .map(|it| match (own(&it.path), refused(&it.path)) {
                (Some(own), _) => Driver::Own(Weak::clone(&own.controller)),
                (None, Some((_, why))) => Driver::Instead(why.clone()),
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
        state.open(path, true)
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
        let controller = {
            let state = self.state();
            let own = state.own.iter().filter_map(|own| own.controller.upgrade());
            own.into_iter().find(|controller| controller.path() == node)
        };
        match controller {
            Some(controller) => self.open_vfio(arena, &controller),
            None => open_best(&QueueOptions::default(), arena),
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

    /// `fresh`: it is to become a volume, so nothing may stand on it.
    fn open(&mut self, path: &Path, fresh: bool) -> Result<Arc<dyn Media>, MediaError> {
        if !self.is_wanted(path) {
            return open_volume(path);
        }
        match self.take(path, fresh) {
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

    fn take(&mut self, path: &Path, fresh: bool) -> Result<Arc<dyn Media>, NotTaken> {
        if !path.exists() {
            return Ok(open_volume(path)?);
        }
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
        let State { binder, own, .. } = &mut *self.shared.state();
        for own in own.drain(..) {
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
            give_back(binder, taken);
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
