//! Sources on real interfaces: veth pairs in a network namespace of the test's own.
//!
//! They need root. Without it they say so and pass, unless `CI=true`: then they fail.

mod packet_mmap;
mod wire;
mod xdp;
