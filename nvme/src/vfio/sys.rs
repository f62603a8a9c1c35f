//! Memory shared with devices, mapped registers, and the calls of VFIO (Linux
//! include/uapi/linux/vfio.h, Documentation/driver-api/vfio.rst; type 1 IOMMU of version 2).
//!
//! # Why the functions are safe
//! - A device behind VFIO reaches only what [`Vfio`] mapped into its IOMMU: [`Pages`], which
//!   nothing but atomic loads and stores ever touches, and arenas, which are mapped for reading
//!   only. So no value in any register lets it change memory that Rust believes constant.
//! - [`Vfio`] keeps what it mapped until the last descriptor that holds the IOMMU's table is
//!   closed, or all of it was taken away from the device.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libc::{c_int, c_ulong, c_void};
use wirevault_buffer::Arena;

use super::memory::DmaMemory;

const CONTAINER: &str = "/dev/vfio/vfio";
/// `VFIO_TYPE1v2_IOMMU`
const TYPE1_V2: c_ulong = 3;

const fn request(number: c_ulong) -> c_ulong {
    // _IO(';', 100 + number)
    (b';' as c_ulong) << 8 | (100 + number)
}
const GET_API_VERSION: c_ulong = request(0);
const CHECK_EXTENSION: c_ulong = request(1);
const SET_IOMMU: c_ulong = request(2);
const GROUP_SET_CONTAINER: c_ulong = request(4);
const GROUP_GET_DEVICE_FD: c_ulong = request(6);
const DEVICE_RESET: c_ulong = request(11);

/// A structure of one request.
///
/// # Safety
/// `REQUEST` reads and writes at most the bytes of `Self`, in which every bit pattern is valid.
unsafe trait Argument {
    const REQUEST: c_ulong;
}

/// `struct vfio_group_status`
#[repr(C)]
#[derive(Default)]
struct GroupStatus {
    argsz: u32,
    flags: u32,
}
// SAFETY: the structure of VFIO_GROUP_GET_STATUS; integers only, `argsz` is its size.
unsafe impl Argument for GroupStatus {
    const REQUEST: c_ulong = request(3);
}

/// `struct vfio_region_info`
#[repr(C)]
#[derive(Default)]
struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}
// SAFETY: the structure of VFIO_DEVICE_GET_REGION_INFO; integers only, `argsz` is its size.
unsafe impl Argument for RegionInfo {
    const REQUEST: c_ulong = request(8);
}

/// Dwords asked for with `VFIO_IOMMU_GET_INFO`: the structure and its capabilities.
pub(super) const IOMMU_INFO_DWORDS: usize = 1024;

#[repr(C)]
struct IommuInfo([u32; IOMMU_INFO_DWORDS]);
// SAFETY: `struct vfio_iommu_type1_info` and the capabilities behind it; dword 0 is `argsz`, the
// size of the array, beyond which the kernel does not write.
unsafe impl Argument for IommuInfo {
    const REQUEST: c_ulong = request(12);
}

/// `struct vfio_iommu_type1_dma_map`
#[repr(C)]
struct DmaMap {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}
// SAFETY: the structure of VFIO_IOMMU_MAP_DMA, which the kernel reads; integers only.
unsafe impl Argument for DmaMap {
    const REQUEST: c_ulong = request(13);
}
const MAP_READ: u32 = 1;
const MAP_WRITE: u32 = 2;

/// `struct vfio_irq_set` with one descriptor behind it
#[repr(C)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    fd: c_int,
}
// SAFETY: the structure of VFIO_DEVICE_SET_IRQS, which the kernel reads; integers only.
unsafe impl Argument for IrqSet {
    const REQUEST: c_ulong = request(10);
}
/// `VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER`
const IRQ_TO_EVENT: u32 = 1 << 2 | 1 << 5;
/// `VFIO_PCI_REQ_IRQ_INDEX`: no interrupt of the device, but the kernel's wish to have it back.
const REQUEST_INDEX: u32 = 4;

/// `struct vfio_iommu_type1_dma_unmap`
#[repr(C)]
struct DmaUnmap {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
}
// SAFETY: the structure of VFIO_IOMMU_UNMAP_DMA without a bitmap; integers only.
unsafe impl Argument for DmaUnmap {
    const REQUEST: c_ulong = request(14);
}

/// A function of a PCI device in our hands, with the IOMMU's table of what it reaches.
///
/// Fields are dropped in this order: the registers, the device (the kernel resets it then), its
/// group, the container with the table, and only then the memory.
pub(super) struct Vfio {
    bar: Bar,
    /// The device and its group, until they are given up.
    held: Mutex<Option<(File, File)>>,
    container: File,
    kept: Mutex<Vec<Kept>>,
}

/// A range of device addresses, with the memory behind it.
struct Kept {
    iova: u64,
    bytes: u64,
    _memory: Memory,
}

enum Memory {
    Pages { _memory: Arc<DmaMemory> },
    Arena { _arena: Arena },
}

impl Vfio {
    /// Takes the device at a PCI address, whose driver is vfio-pci, out of a group. Errors: what
    /// was tried, and the system's answer.
    pub(super) fn open(group: &Path, address: &str) -> Result<Self, (&'static str, io::Error)> {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let at = |what: &'static str| move |source: io::Error| (what, source);
        let odd = |what: &'static str| (what, io::Error::from(io::ErrorKind::Unsupported));

        let container = open(Path::new(CONTAINER)).map_err(at("open /dev/vfio/vfio"))?;
        if plain(&container, GET_API_VERSION, 0).map_err(at("ask VFIO for its version"))? != 0 {
            return Err(odd("use this version of VFIO; version 0 is known"));
        }
        if plain(&container, CHECK_EXTENSION, TYPE1_V2).map_err(at("ask VFIO what it can"))? == 0 {
            return Err(odd("use VFIO without the module vfio_iommu_type1; load it"));
        }
        let group = open(group).map_err(at("open the IOMMU group; is somebody else using it?"))?;
        let mut status = GroupStatus { argsz: size::<GroupStatus>(), ..GroupStatus::default() };
        call(&group, &mut status).map_err(at("ask for the state of the IOMMU group"))?;
        if status.flags & 1 == 0 {
            return Err(odd("use the IOMMU group: other devices of it have other drivers"));
        }
        set_container(&group, &container).map_err(at("put the IOMMU group into a container"))?;
        plain(&container, SET_IOMMU, TYPE1_V2)
            .map_err(at("set the IOMMU up (it needs interrupt remapping)"))?;
        let device = device_fd(&group, address).map_err(at("take the device out of its group"))?;

        let config = region(&device, 7).map_err(at("find the PCI configuration"))?;
        allow_memory_and_dma(&device, config.offset).map_err(at("enable the PCI function"))?;
        let bar0 = region(&device, 0).map_err(at("find the registers"))?;
        let bar = Bar::map(&device, &bar0).map_err(at("map the registers"))?;
        let (held, kept) = (Mutex::new(Some((device, group))), Mutex::new(Vec::new()));
        Ok(Self { bar, held, container, kept })
    }

    pub(super) fn bar(&self) -> &Bar {
        &self.bar
    }

    /// What the IOMMU can: the answer to `VFIO_IOMMU_GET_INFO`.
    pub(super) fn iommu_info(&self) -> io::Result<[u32; IOMMU_INFO_DWORDS]> {
        let mut info = IommuInfo([0; IOMMU_INFO_DWORDS]);
        info.0[0] = size::<IommuInfo>();
        call(&self.container, &mut info)?;
        Ok(info.0)
    }

    /// Lets the device read and write memory at a device address.
    pub(super) fn map(&self, memory: &Arc<DmaMemory>, iova: u64) -> io::Result<()> {
        let (address, bytes) = (memory.address(), memory.bytes());
        let kept = Memory::Pages { _memory: Arc::clone(memory) };
        self.map_range(address, bytes, iova, MAP_READ | MAP_WRITE, kept)
    }

    /// Lets the device read a region of an arena at a device address.
    pub(super) fn map_region(&self, arena: &Arena, region: usize, iova: u64) -> io::Result<()> {
        let region = arena.regions()[region];
        let kept = Memory::Arena { _arena: arena.clone() };
        self.map_range(region.address, region.bytes, iova, MAP_READ, kept)
    }

    fn map_range(
        &self,
        address: usize,
        bytes: usize,
        iova: u64,
        flags: u32,
        memory: Memory,
    ) -> io::Result<()> {
        let (vaddr, bytes) = (address as u64, bytes as u64);
        let mut map = DmaMap { argsz: size::<DmaMap>(), flags, vaddr, iova, size: bytes };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        call(&self.container, &mut map)?;
        kept.push(Kept { iova, bytes, _memory: memory });
        Ok(())
    }

    /// Takes all memory away from the device. Errors: it may still reach some, which stays kept.
    pub(super) fn unmap_all(&self) -> io::Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(last) = kept.last() {
            let (iova, bytes) = (last.iova, last.bytes);
            let mut unmap = DmaUnmap { argsz: size::<DmaUnmap>(), flags: 0, iova, size: bytes };
            call(&self.container, &mut unmap)?;
            kept.pop();
        }
        Ok(())
    }

    /// Resets the function, whatever state it is in. Errors: it cannot be reset, or would not.
    pub(super) fn reset(&self) -> io::Result<()> {
        self.with_device(|device| plain(device, DEVICE_RESET, 0).map(drop))
    }

    /// Has an event signalled, again and again, as long as the kernel waits for the device to be
    /// given up. Errors: the kernel's.
    pub(super) fn signal_request(&self, event: &Event) -> io::Result<()> {
        let (argsz, flags, index) = (size::<IrqSet>(), IRQ_TO_EVENT, REQUEST_INDEX);
        let fd = event.0.as_raw_fd();
        let mut set = IrqSet { argsz, flags, index, start: 0, count: 1, fd };
        self.with_device(|device| call(device, &mut set))
    }

    /// Takes all memory away from the device and closes it: from then on its registers read as
    /// those of one that was pulled out, and the kernel may do with it what it likes.
    ///
    /// Errors: it may still reach memory; then it stays open.
    pub(super) fn give_up(&self) -> io::Result<()> {
        self.unmap_all()?;
        // As long as its registers are mapped the device stays open.
        self.bar.forsake()?;
        drop(self.held().take());
        Ok(())
    }

    fn with_device(&self, ask: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        match &*self.held() {
            Some((device, _)) => ask(device),
            None => Err(io::Error::from(io::ErrorKind::NotConnected)),
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<(File, File)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A counter of the kernel's (eventfd) that one thread waits for. Clones are the same one.
#[derive(Clone)]
pub(super) struct Event(Arc<File>);

impl Event {
    /// Errors: the process has no descriptor left.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes two numbers and makes a descriptor.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel made this descriptor for us just now; nobody else has it.
        Ok(Self(Arc::new(unsafe { File::from_raw_fd(fd) })))
    }

    /// Wakes whoever waits. Errors: none, unless it is signalled 2^64 times.
    pub(super) fn signal(&self) -> io::Result<()> {
        (&*self.0).write_all(&1_u64.to_ne_bytes())
    }

    /// Waits until somebody signals. Errors: the system's.
    pub(super) fn wait(&self) -> io::Result<()> {
        (&*self.0).read_exact(&mut [0; 8])
    }
}

fn size<T>() -> u32 {
    mem::size_of::<T>() as u32
}

fn call<T: Argument>(file: &File, argument: &mut T) -> io::Result<()> {
    // SAFETY: `T::REQUEST` keeps to the bytes of `argument`, as the trait's implementer promised;
    // it is borrowed exclusively for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), T::REQUEST, ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A request whose argument is a number.
fn plain(file: &File, request: c_ulong, value: c_ulong) -> io::Result<c_int> {
    // SAFETY: the requests this is called with take a number and no address.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_container(group: &File, container: &File) -> io::Result<()> {
    let fd: c_int = container.as_raw_fd();
    // SAFETY: VFIO_GROUP_SET_CONTAINER reads one int, which lives through the call.
    let result = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_SET_CONTAINER, ptr::from_ref(&fd)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn device_fd(group: &File, address: &str) -> io::Result<File> {
    let name = std::ffi::CString::new(address)?;
    // SAFETY: VFIO_GROUP_GET_DEVICE_FD reads a string that ends with 0 and lives through the call.
    let fd: RawFd = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for us just now; nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn region(device: &File, index: u32) -> io::Result<RegionInfo> {
    let mut info = RegionInfo { argsz: size::<RegionInfo>(), index, ..RegionInfo::default() };
    call(device, &mut info)?;
    Ok(info)
}

/// Sets Memory Space Enable and Bus Master Enable in the PCI command register.
fn allow_memory_and_dma(device: &File, config: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;

    let mut command = [0; 2];
    device.read_exact_at(&mut command, config + 4)?;
    command[0] |= 0b110;
    device.write_all_at(&command, config + 4)
}

/// A mapped range of registers.
pub(super) struct Bar {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process; registers are meant to be used from any thread.
unsafe impl Send for Bar {}
// SAFETY: as for Send; loads and stores of a register are single volatile accesses, and what two
// threads do to one register at a time the device sees in some order.
unsafe impl Sync for Bar {}

impl Bar {
    fn map(device: &File, region: &RegionInfo) -> io::Result<Self> {
        let bytes = usize::try_from(region.size).map_err(io::Error::other)?;
        let offset = libc::off_t::try_from(region.offset).map_err(io::Error::other)?;
        let start = mmap(bytes, libc::MAP_SHARED, device.as_raw_fd(), offset)?;
        Ok(Self { start, bytes })
    }

    /// Reads a register; `None` outside of the mapping.
    pub(super) fn read32(&self, at: usize) -> Option<u32> {
        let register = self.register(at)?;
        // SAFETY: `register` gives aligned addresses within the mapping, which lives as long as
        // `self`. Memory decoding stays enabled while the device is open, so there is no SIGBUS.
        let value = unsafe { register.as_ptr().read_volatile() };
        // What the device wrote to memory before it changed the register is read after it.
        fence(Ordering::Acquire);
        Some(u32::from_le(value))
    }

    /// Writes a register; nothing outside of the mapping.
    pub(super) fn write32(&self, at: usize, value: u32) {
        let Some(register) = self.register(at) else { return };
        publish();
        // SAFETY: as in `read32`; see the module's header for why no value does harm.
        unsafe { register.as_ptr().write_volatile(value.to_le()) };
    }

    /// Puts memory of ones into the place of the registers, which is what those of a device read as
    /// that is gone. Errors: no memory; nothing has changed.
    fn forsake(&self) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let ones = mmap(self.bytes, flags, -1, 0)?;
        // SAFETY: `ones` is this long and was mapped just now; nobody else knows it.
        unsafe { ones.write_bytes(u8::MAX, self.bytes) };
        let (from, to) = (ones.as_ptr().cast(), self.start.as_ptr().cast::<c_void>());
        let options = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both ranges are ours and this long. The kernel puts one into the other's place as
        // one step, so accesses of a register, which are single ones, meet either.
        let moved = unsafe { libc::mremap(from, self.bytes, self.bytes, options, to) };
        if moved == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            unmap(ones, self.bytes);
            return Err(error);
        }
        Ok(())
    }

    fn register(&self, at: usize) -> Option<NonNull<u32>> {
        if !at.is_multiple_of(4) || at.checked_add(4)? > self.bytes {
            return None;
        }
        // SAFETY: `at + 4` is within the mapping.
        let register = unsafe { self.start.add(at) };
        Some(register.cast())
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        unmap(self.start, self.bytes);
    }
}

/// Makes what was written to memory visible to devices before what is written to registers next.
fn publish() {
    fence(Ordering::Release);
    // x86 keeps the order of writes to memory and to uncached registers. ARM's ordinary fences are
    // for other cores only.
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier changes no register and no memory.
    unsafe {
        std::arch::asm!("dsb st", options(nostack, preserves_flags))
    };
}

/// Zeroed pages that a device may write to.
#[derive(Debug)]
pub(super) struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread.
unsafe impl Send for Pages {}
// SAFETY: all access goes through atomics.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `bytes`, a multiple of the page size, all there from the start.
    pub(super) fn new(bytes: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let pages = Self { start: mmap(bytes, flags, -1, 0)?, bytes };
        // A child's copy-on-write would part us from the pages that the device knows, and packets
        // may pass through here.
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            // SAFETY: the range is mapped and owned by `pages`; both advices keep its content.
            let result = unsafe { libc::madvise(pages.start.as_ptr().cast(), bytes, advice) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(pages)
    }

    pub(super) fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is aligned to pages, holds this many words, is zeroed at first and
        // lives as long as `self`; whoever changes it meanwhile, atomics allow for it.
        unsafe { std::slice::from_raw_parts(self.start.cast().as_ptr(), self.bytes / 4) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        unmap(self.start, self.bytes);
    }
}

fn mmap(bytes: usize, flags: c_int, fd: RawFd, offset: libc::off_t) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, fd, offset) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))
}

fn unmap(start: NonNull<u8>, bytes: usize) {
    // SAFETY: called once, by the drop of the value that owns the range that `mmap` gave.
    let result = unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
    debug_assert_eq!(result, 0, "munmap of a range that mmap gave");
}
