//! A real controller behind VFIO.

use std::hint;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use wirevault_buffer::Arena;

use super::bind::{Binder, PciAddress};
use super::bus::Bus;
use super::controller::Controller;
use super::iova::IovaSpace;
use super::memory::DmaMemory;
use super::registers::GONE;
use super::sys::{Event, Vfio};
use crate::error::NvmeError;

/// Waits up to this long keep the core: the fastest devices answer in 10 us, and a sleep takes 50
/// us at least.
const SPIN_NS: u64 = 50_000;
/// Naps of a longer wait: an eighth of it so far, within these bounds. Slow devices, and emulated
/// ones above all, are not asked thousands of times for one answer.
const NAP_MIN_NS: u64 = 20_000;
const NAP_MAX_NS: u64 = 500_000;

/// A controller taken over from the kernel. Closing it lets the kernel reset the device; it stays
/// with vfio-pci until [`Binder::give_back`].
pub struct VfioBus {
    address: PciAddress,
    vfio: Vfio,
    /// The kernel wants the device back, or there is no bus any more.
    wanted: Event,
    space: Mutex<IovaSpace>,
    start: Instant,
}

impl VfioBus {
    /// Opens a device that is bound to vfio-pci (see [`Binder::take`]). Errors: what is missing.
    pub fn open(binder: &Binder, address: PciAddress) -> Result<Self, NvmeError> {
        let failed =
            |action, source| NvmeError::Takeover { device: address.to_string(), action, source };
        let group =
            binder.iommu_group(address).map_err(|source| failed("find its IOMMU group", source))?;
        let group = Path::new("/dev/vfio").join(group);
        let vfio = Vfio::open(&group, &address.to_string())
            .map_err(|(action, source)| failed(action, source))?;
        let info = vfio.iommu_info().map_err(|source| failed("ask what the IOMMU can", source))?;
        let space = Mutex::new(IovaSpace::from_info(&info));
        let wanted = Event::new().map_err(|source| failed("make an event", source))?;
        vfio.signal_request(&wanted)
            .map_err(|source| failed("ask to be told when the kernel wants it back", source))?;
        Ok(Self { address, vfio, wanted, space, start: Instant::now() })
    }

    fn place(&self, bytes: usize) -> io::Result<u64> {
        let mut space = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        space.take(bytes as u64).ok_or_else(|| {
            io::Error::other(format!("the IOMMU has no {bytes} bytes of addresses left"))
        })
    }
}

impl Drop for VfioBus {
    /// Ends the thread that waits for the kernel's wish.
    fn drop(&mut self) {
        let _ = self.wanted.signal();
    }
}

impl Controller<VfioBus> {
    /// Lets go of the device as soon as the kernel wants it back: it is being pulled out, or
    /// somebody removes it. The kernel waits for that, for ever, and nothing else of its bus is
    /// seen to meanwhile. `told` is called afterwards.
    ///
    /// Errors: there is no thread for it.
    pub fn heed_removal(self: &Arc<Self>, told: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let (wanted, controller) = (self.bus.wanted.clone(), Arc::downgrade(self));
        let wait = move || {
            if wanted.wait().is_ok()
                && let Some(controller) = controller.upgrade()
            {
                controller.let_go();
                told();
            }
        };
        thread::Builder::new().name("vfio-removal".to_owned()).spawn(wait).map(drop)
    }
}

impl Bus for VfioBus {
    fn describe(&self) -> String {
        self.address.to_string()
    }

    fn read32(&self, at: usize) -> u32 {
        self.vfio.bar().read32(at).unwrap_or(GONE)
    }

    fn write32(&self, at: usize, value: u32) {
        self.vfio.bar().write32(at, value);
    }

    fn map(&self, memory: &Arc<DmaMemory>) -> io::Result<u64> {
        let iova = self.place(memory.bytes())?;
        self.vfio.map(memory, iova).map_err(in_words)?;
        Ok(iova)
    }

    fn map_arena(&self, arena: &Arena) -> io::Result<Vec<u64>> {
        let mut starts = Vec::with_capacity(arena.regions().len());
        for (n, region) in arena.regions().iter().enumerate() {
            let iova = self.place(region.bytes)?;
            self.vfio.map_region(arena, n, iova).map_err(in_words)?;
            starts.push(iova);
        }
        Ok(starts)
    }

    fn sever(&self) -> io::Result<()> {
        // The reset only quietens the device; taking the memory away is what counts.
        let _ = self.vfio.reset();
        self.vfio.give_up()
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn relax(&self, waited_ns: u64) {
        if waited_ns < SPIN_NS {
            hint::spin_loop();
        } else {
            thread::sleep(Duration::from_nanos((waited_ns / 8).clamp(NAP_MIN_NS, NAP_MAX_NS)));
        }
    }
}

fn in_words(error: io::Error) -> io::Error {
    if error.raw_os_error() != Some(libc::ENOMEM) {
        return error;
    }
    let text = "the device's memory may not be pinned; raise LimitMEMLOCK= or ulimit -l, \
                or give CAP_IPC_LOCK";
    io::Error::new(error.kind(), text)
}
