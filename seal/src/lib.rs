//! Keys and ciphers: nothing of a sealed store reaches a device but through this crate.
//!
//! ```text
//!  key file ──HKDF──► wrapping key ──wraps──► root (fresh at every writing of the ring)
//!  or epoch key of                             │ encrypts
//!  a key service, or                           │
//!  of a public key                             │
//!                                              ▼
//!                             key ring: life id ─► segment key (random, one per life)
//!                                                      │ HKDF(purpose, life, salt)
//!                      ┌───────────────────────────────┼──────────────────────────┐
//!                      ▼                               ▼                          ▼
//!                 data subkey              segment header subkey         index, footer subkeys
//!              nonce = chunk number        fresh 128-bit salt            fresh 128-bit salt
//! ```
//!
//! Invariants:
//!
//! 1. No (key, nonce) pair is used twice for encryption; [`segment`] gives the argument.
//! 2. A segment key that was read from a ring opens data and seals records, but never seals data.
//!    So a crash, a restored backup or a second reader of the same ring cannot repeat a nonce.
//! 3. Secrets of this crate live in [`locked`] memory and are overwritten before the memory is used
//!    again. Error messages and `Debug` texts carry ids, sizes and fingerprints, never key bytes.
//! 4. Whatever fails to authenticate is never returned: the buffer is overwritten with zeros.
//!
//! Not covered: the cipher library keeps its expanded keys on the heap. It overwrites them when it
//! frees them, but the pages are not locked; [`locked::make_process_undumpable`] keeps them out of
//! core dumps.
//!
//! Plaintext stores have no ring and do not need this crate but for [`random`].

pub mod chain;
pub mod epoch;
pub mod error;
pub mod forget;
mod hkdf;
pub mod locked;
pub mod one_way;
pub mod provider;
pub mod random;
pub mod ring;
pub mod segment;
pub mod service;
pub mod sim;

pub use epoch::{EpochKeys, EpochOptions, ServiceKeys};
pub use error::SealError;
pub use forget::{ForgetLevel, ForgetStore, Forgetful};
pub use one_way::OneWayKey;
pub use provider::{FileProvider, KeyProvider, default_key_path};
pub use ring::KeyRing;
pub use segment::{DataOpener, DataSealer, Purpose, Sealed, SegmentKeys};
pub use service::{KeyService, MacService, ServiceFailure};

/// Bytes of every key in this crate: AES-256 and HKDF-SHA256 both take 32.
pub const KEY_BYTES: usize = 32;

/// Bytes of an authentication tag: the full GCM tag, never shortened.
pub const TAG_BYTES: usize = 16;

/// Bytes of the salt that makes the subkey of one record. Random salts of 128 bits repeat with a
/// chance below 2^-64 even after 2^32 records under one segment key.
pub const SALT_BYTES: usize = 16;
