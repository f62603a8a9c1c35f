//! Memory for chunks: a hugepage arena with a part on every NUMA node that has lanes, cut into
//! chunk buffers, handed out by a bounded pool.
//!
//! ```text
//!  Arena::new ──► Pool::new ──► Pool::take ──► ChunkBuf ──► lane, sealer, queue
//!   (mapping,                     ▲                              │
//!    report)                      └───────── drop ◄──────────────┘
//! ```
//!
//! # Invariants
//! - A chunk has one owner: [`ChunkBuf`] is not `Clone`, and its memory returns to the pool only
//!   when it is dropped.
//! - The mapping lives until the last chunk, pool and [`Arena`] handle of it is gone.
//! - After construction nothing here allocates, locks or calls the system.
//!
//! All memory is touched when the arena is made, so lack of memory shows at the start and not under
//! load. Chunks hold what their last owner left in them; whoever writes a chunk to a device fills
//! the padding.
//!
//! - [`arena`]: mapping, hugepages, report (the only unsafe code). [`pool`]: free list, pressure.
//!   [`hugepages`]: what the kernel has. [`error`]: [`BufferError`].

#![deny(unsafe_code)]

#[expect(unsafe_code, reason = "the mapping and its chunks")]
pub mod arena;
pub mod error;
pub mod hugepages;
pub mod pool;

pub use arena::{Arena, ArenaId, ArenaOptions, ArenaPart, ArenaReport, Region};
pub use error::BufferError;
pub use hugepages::{Hugepages, PageKind};
pub use pool::{ChunkBuf, Pool};
