//! Memory for secrets: locked against swapping, left out of core dumps and of child processes,
//! zeroed after use.
//!
//! The only module of this crate that contains `unsafe`. Where the kernel refuses to lock pages
//! (`RLIMIT_MEMLOCK`), secrets are kept in unlocked pages and [`report`] says so; the other three
//! properties hold all the same.
//!
//! Source: mlock(2), madvise(2), prctl(2).

use std::io;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use zeroize::Zeroize;

use crate::{KEY_BYTES, SealError};

/// Bytes of one slab of small secrets: 512 keys. Small enough for a memlock limit of 64 KiB, the
/// default of old kernels; large enough that the 100,000 segments of a big store need few mappings.
const SLAB_BYTES: usize = 16 << 10;
const _: () = assert!(SLAB_BYTES.is_multiple_of(KEY_BYTES), "a slab is whole keys");

/// Small secrets a process holds at most: four full rings.
const SECRETS_MAX: usize = 4 * crate::ring::ENTRIES_MAX;

static LOCKED_BYTES: AtomicUsize = AtomicUsize::new(0);
static UNLOCKED_BYTES: AtomicUsize = AtomicUsize::new(0);
static LOCK_ERRNO: AtomicI32 = AtomicI32::new(0);
static FREE: Mutex<FreeList> = Mutex::new(FreeList { slots: Vec::new(), made: 0 });

/// How the secrets of this process are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockReport {
    /// Bytes in pages locked into memory.
    pub locked_bytes: usize,
    /// Bytes in pages that the kernel may write to swap.
    pub unlocked_bytes: usize,
    /// Why some pages are not locked, with the way out; `None` if all are.
    pub why_not: Option<String>,
}

/// Says how the secrets of this process are held.
pub fn report() -> LockReport {
    let unlocked_bytes = UNLOCKED_BYTES.load(Relaxed);
    let why_not = (unlocked_bytes > 0).then(|| {
        let reason = io::Error::from_raw_os_error(LOCK_ERRNO.load(Relaxed));
        format!(
            "mlock of {unlocked_bytes} bytes of keys failed: {reason}; \
             raise LimitMEMLOCK, or turn swap off"
        )
    });
    LockReport { locked_bytes: LOCKED_BYTES.load(Relaxed), unlocked_bytes, why_not }
}

/// Keeps all memory of this process out of core dumps and away from debuggers of other users.
///
/// Side effect: files under `/proc/self` then belong to root, so an unprivileged process can no
/// longer open its own `/proc/self/fd` entries; call this after start-up work that needs them.
///
/// # Errors
/// The operating system's reason.
pub fn make_process_undumpable() -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes one integer and touches no memory of ours.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// User id whose rights this process has.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: geteuid takes no arguments, always succeeds and touches no memory of ours.
    unsafe { libc::geteuid() }
}

/// A buffer of secret bytes in pages of its own. Zeroed and unmapped on drop.
pub struct LockedBytes {
    bytes: &'static mut [u8],
    locked: bool,
}

impl LockedBytes {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// [`SealError::Memory`] when there is no memory. A refused lock is not an error; see
    /// [`report`].
    pub fn zeroed(len: usize) -> Result<Self, SealError> {
        let bytes = map(len).map_err(|source| SealError::Memory { bytes: len, source })?;
        advise(bytes, libc::MADV_DONTDUMP);
        advise(bytes, libc::MADV_DONTFORK);
        let locked = lock(bytes);
        gauge(locked).fetch_add(len, Relaxed);
        Ok(Self { bytes, locked })
    }

    /// A copy of `source`, which stays with the caller to be zeroed.
    ///
    /// # Errors
    /// As [`LockedBytes::zeroed`].
    pub fn copy_of(source: &[u8]) -> Result<Self, SealError> {
        let mut copy = Self::zeroed(source.len())?;
        copy.copy_from_slice(source);
        Ok(copy)
    }

    /// Gives up the handle; the pages stay for the life of the process.
    fn leak(mut self) -> &'static mut [u8] {
        mem::take(&mut self.bytes)
    }
}

impl Deref for LockedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl DerefMut for LockedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

impl Drop for LockedBytes {
    fn drop(&mut self) {
        // The reference is taken out first: none may exist once the pages are gone.
        let bytes = mem::take(&mut self.bytes);
        if bytes.is_empty() {
            return;
        }
        bytes.zeroize();
        let (start, len) = (bytes.as_mut_ptr(), bytes.len());
        gauge(self.locked).fetch_sub(len, Relaxed);
        // SAFETY: `start` and `len` are those of the mapping made in `map`, which this object alone
        // owns, and the only reference to it ended on the line above. A failure leaves zeroed pages
        // mapped, which is harmless.
        unsafe { libc::munmap(start.cast(), len) };
    }
}

impl std::fmt::Debug for LockedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LockedBytes({} bytes)", self.len())
    }
}

/// One key of [`KEY_BYTES`] bytes in a shared slab. Zeroed and handed back on drop.
///
/// Slabs are never unmapped: a process keeps as many as its largest number of keys at one time
/// needed.
pub(crate) struct Secret {
    slot: &'static mut [u8],
}

impl Secret {
    /// A key that `fill` writes.
    pub(crate) fn filled_by(
        fill: impl FnOnce(&mut [u8]) -> Result<(), SealError>,
    ) -> Result<Self, SealError> {
        let slot = FREE.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let secret = Self { slot };
        fill(secret.slot)?;
        Ok(secret)
    }

    /// A random key.
    pub(crate) fn random() -> Result<Self, SealError> {
        Self::filled_by(crate::random::fill)
    }

    /// The key's bytes, [`KEY_BYTES`] of them.
    pub(crate) fn expose(&self) -> &[u8] {
        self.slot
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.slot.zeroize();
        let slot = mem::take(&mut self.slot);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).slots.push(slot);
    }
}

struct FreeList {
    slots: Vec<&'static mut [u8]>,
    made: usize,
}

impl FreeList {
    fn take(&mut self) -> Result<&'static mut [u8], SealError> {
        if let Some(slot) = self.slots.pop() {
            return Ok(slot);
        }
        if self.made >= SECRETS_MAX {
            let got = self.made + 1;
            return Err(SealError::Exhausted { what: "keys in memory", got, max: SECRETS_MAX });
        }
        let mut slots = LockedBytes::zeroed(SLAB_BYTES)?.leak().chunks_exact_mut(KEY_BYTES);
        self.made += slots.len();
        let first = slots.next().unwrap_or_default();
        self.slots.extend(slots);
        Ok(first)
    }
}

fn gauge(locked: bool) -> &'static AtomicUsize {
    if locked { &LOCKED_BYTES } else { &UNLOCKED_BYTES }
}

/// Maps `len` zero bytes; none at all for `len` 0.
fn map(len: usize) -> io::Result<&'static mut [u8]> {
    if len == 0 {
        return Ok(&mut []);
    }
    let (rights, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory in use.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, rights, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave `len` readable, writable, zeroed bytes at `start` that nothing
    // else refers to; they stay mapped until `LockedBytes::drop` unmaps them, which takes this
    // reference out first.
    Ok(unsafe { std::slice::from_raw_parts_mut(start.cast(), len) })
}

/// Asks for one of the `MADV_DONT*` properties. Kernels without it ignore the wish; nothing depends
/// on it.
fn advise(bytes: &mut [u8], advice: i32) {
    // SAFETY: the range is a whole mapping of ours, and the two kinds of advice used change neither
    // its contents nor its mapping in this process.
    unsafe { libc::madvise(bytes.as_mut_ptr().cast(), bytes.len(), advice) };
}

/// Locks the pages; notes the reason when the kernel refuses.
fn lock(bytes: &[u8]) -> bool {
    // SAFETY: the range is a whole mapping of ours; locking does not change its contents.
    if unsafe { libc::mlock(bytes.as_ptr().cast(), bytes.len()) } == 0 {
        return true;
    }
    LOCK_ERRNO.store(io::Error::last_os_error().raw_os_error().unwrap_or(0), Relaxed);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_hold_what_is_put_in() {
        let copy = LockedBytes::copy_of(b"secret").unwrap();
        assert_eq!(&*copy, b"secret");
        assert_eq!(format!("{copy:?}"), "LockedBytes(6 bytes)");
        assert!(LockedBytes::zeroed(0).unwrap().is_empty());
        assert!(LockedBytes::zeroed(10_000).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_key_given_back_is_zeroed_and_used_again() {
        let mut held: Vec<_> = (0..2000).map(|_| Secret::random().unwrap()).collect();
        assert!(held.iter().all(|key| key.expose().len() == KEY_BYTES));
        held.clear();
        let free = FREE.lock().unwrap();
        assert!(free.slots.iter().all(|slot| slot.iter().all(|byte| *byte == 0)));
        assert!(free.slots.len() >= 2000);
    }

    #[test]
    fn a_failed_filling_gives_the_slot_back() {
        let failed = Secret::filled_by(|slot| {
            slot.fill(0xff);
            Err(SealError::KeyHome)
        });
        assert!(failed.is_err());
        let free = FREE.lock().unwrap();
        assert!(free.slots.iter().all(|slot| slot.iter().all(|byte| *byte == 0)));
    }

    #[test]
    fn secrets_are_left_out_of_core_dumps() {
        let secret = LockedBytes::zeroed(64 << 10).unwrap();
        let start = format!("{:x}-", secret.as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        // Mappings of the same kind that lie side by side are shown as one.
        let flags = maps
            .lines()
            .skip_while(|line| !contains(line, &secret))
            .find(|l| l.starts_with("VmFlags"));
        let flags = flags.unwrap_or_else(|| panic!("no mapping holds {start}"));
        assert!(flags.contains(" dd"), "not MADV_DONTDUMP: {flags}");
        assert!(flags.contains(" dc"), "not MADV_DONTFORK: {flags}");
    }

    fn contains(line: &str, secret: &LockedBytes) -> bool {
        let address = secret.as_ptr() as u64;
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let parsed = range.and_then(|(from, to)| {
            Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
        });
        parsed.is_some_and(|(from, to)| (from..to).contains(&address))
    }
}
