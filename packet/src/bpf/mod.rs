//! Classic BPF: the programs that libpcap compiles filters to.
//!
//! - `insn`: instructions and their checking.
//! - `run`: a program on a packet, as libpcap's `bpf_filter` does it.
//! - `value`, `decide`: a program on a [`crate::Template`], as three-valued logic.

mod decide;
mod insn;
mod run;
mod value;

pub use decide::{AnyAddress, Oracle, Verdict};
pub use insn::{Insn, Program};
