//! Volumes, quotas and segments: the one writer of a store, and its recovery.
//!
//! ```text
//!   create ──► volume files ◄── open: lock, recover, fresh keys
//!                                 │
//!   lane ──► Store::open_segment ─┤ gives up the oldest for the quota, takes a durable key
//!     │                           ▼
//!     └── chunks ──► file    OpenSegment
//!                                 │
//!   closer ──► finish_segment ────┴──► Store::close_segment
//!              index, footer           table entry
//! ```
//!
//! Every step is durable before the next begins, in the order that `docs/RECOVERY.md` lists with
//! what a crash between two steps leaves and who repairs it. `tests/store/crash.rs` cuts
//! the power at every one of them.
//!
//! - [`plan`](mod@plan): sizes. [`create`](mod@create): making a store. [`open`]: opening one.
//!   [`adopt`](mod@adopt): a volume that has another path now. [`replace`](mod@replace): a new one
//!   for one that is gone.
//! - [`store`]: the writer. `choose`: which volume takes the next segment. `room`: what goes for
//!   quota, reserve and budgets. `allocate`: which key, and in which order. `standing`: a volume
//!   under its lock, and what is known without. [`view`]: catalog and status. [`finish`]: index and
//!   footer of a segment. `digests`: what stands for them outside of it. [`reindex`]: its index
//!   from its chunks. [`recovery`]: closing what a crash left open. [`forget`]: deleting segments
//!   so that nobody can read them again. [`hold`]: copies that neither
//!   quota nor retention takes. [`tier`]: segments of which there is a copy in the object tier.
//! - [`condition`]: how volumes and store are, in one word.
//! - `volume`: superblock, table pages and key ring of one volume. `ledger`: what its table adds up
//!   to. `bad`: places that do not take what is written to them.

#![forbid(unsafe_code)]

pub mod adopt;
mod allocate;
mod bad;
mod choose;
pub mod condition;
pub mod create;
mod digests;
pub mod error;
pub mod finish;
pub mod forget;
pub mod hold;
mod keys;
mod ledger;
pub mod open;
pub mod options;
pub mod plan;
pub mod recovery;
pub mod reindex;
pub mod replace;
mod room;
mod standing;
pub mod store;
pub mod tier;
pub mod view;
mod volume;

pub use adopt::{Adoption, Announce, adopt};
pub use bad::Verdict;
pub use choose::{Load, Wear};
pub use create::{create, create_planned, share_bytes};
pub use digests::{Mended, mend_digests};
pub use error::StorageError;
pub use finish::{ClosingFacts, Finished, finish_segment};
pub use forget::{DeletedSegment, Deletion};
pub use hold::{HOLD_PERCENT, HoldUse, Pinned};
pub use ledger::Wanted;
pub use open::VolumeOpener;
pub use options::CreateOptions;
pub use plan::{Plan, Space, VolumePlan, plan, volume_file_bytes};
pub use recovery::{RecoveredSegment, RecoveryReport};
pub use reindex::rebuild_index;
pub use replace::replace;
pub use room::{Budget, RESERVE_PERCENT, SEGMENTS_PER_BUDGET_LANE};
pub use store::{OpenRequest, OpenSegment, Store, Witness};
pub use view::{StoreStatus, VolumeStatus};
