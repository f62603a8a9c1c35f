//! What a frame's bytes say: headers, flow keys, templates and classic BPF. No I/O happens here.
//!
//! ```text
//!            dissect                 template              bpf::Program::decide
//!   frame ───────────► FlowKey ───────────────► Template ───────────────────────► No / Yes / Maybe
//!     │                 │  └─ shape + values                       ▲
//!     │                 └───► describe (for people)                │ the same program
//!     └──────────────────────────── bpf::Program::run ─────────────┘ keeps or drops the frame
//! ```
//!
//! One filter program answers three questions: does this packet match, can any packet of this flow
//! match, can any packet of this segment match. The last two run the program on a [`Template`], a
//! packet of which only some bits are known. The answers can therefore never disagree with what
//! libpcap does to VLAN tags, extension headers and fragments, and negation needs no special care.
//!
//! Invariants, all of them property-tested:
//! - every known bit of `dissect(p).key.template(direction)` equals that bit of `p`, and the
//!   length of `p` lies within the template's bounds;
//! - `No` means that the program returns 0 for every packet the template stands for, `Yes` that
//!   it returns something else for every one;
//! - no function here panics, whatever the bytes; [`dissect()`] and [`bpf::Program::run`] do not
//!   allocate.
//!
//! - [`key`]: the flow key, its directions and its hash.
//! - [`shape`]: the layers of a frame as a compact byte string.
//! - [`mod@dissect`]: frame to key; `walk` has the general way.
//! - [`template`]: key or shape to the packet of partly known bits.
//! - [`describe`]: a key in words. [`summary`]: a packet in one line.
//! - [`bpf`]: the interpreter, concrete and abstract.
//! - [`fingerprint()`]: what two copies of a packet share.
//! - [`decap`]: removes outer headers before a frame is stored; [`outer`]: what they said.

#![forbid(unsafe_code)]

pub mod bpf;
pub mod decap;
pub mod describe;
pub mod dissect;
pub mod error;
mod fingerprint;
pub mod key;
pub mod outer;
pub mod shape;
pub mod summary;
pub mod template;
mod tunnel;
mod walk;

pub use decap::{Decap, Inner, Stripped, Tunnel};
pub use describe::FlowText;
pub use dissect::{Dissected, dissect, dissect_with};
pub use error::PacketError;
pub use fingerprint::fingerprint;
pub use key::{Direction, FlowKey, MAX_KEY_BYTES};
pub use outer::{
    OuterHeaders, OuterKind, OuterText, TunnelId, is_in_tunnel, outer_headers, tunnel_ids,
};
pub use shape::{ValueKind, shape_template, value_layout};
pub use template::Template;
