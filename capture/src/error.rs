//! Errors of capture and replay, grouped by whom they ask to act.

use std::io;

use wirevault_format::pcapng::PcapngError;

/// Why a source cannot be opened or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// Misuse: options that cannot work.
    #[error("{name} is {value}; {rule}")]
    Option {
        /// Name of the option.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// Privilege: the process may not open packet sockets.
    #[error(
        "interface {interface}: opening a packet socket was refused; the process needs CAP_NET_RAW \
         (run as root, or `AmbientCapabilities=CAP_NET_RAW` in the unit), and neither seccomp nor \
         an LSM may forbid AF_PACKET"
    )]
    Permission {
        /// Name of the interface.
        interface: String,
        /// EPERM or EACCES.
        #[source]
        source: io::Error,
    },
    /// Machine: no interface has this name.
    #[error("interface {interface} does not exist here; present are: {present}")]
    NoInterface {
        /// Name asked for.
        interface: String,
        /// Names of the interfaces in this network namespace.
        present: String,
    },
    /// Machine: the kernel cannot give the ring its memory.
    #[error(
        "interface {interface}: the kernel has no memory for a ring of {ring_bytes} bytes in \
         blocks of {block_bytes}; ask for a smaller ring, or fewer lanes"
    )]
    RingMemory {
        /// Name of the interface.
        interface: String,
        /// Bytes of one lane's ring.
        ring_bytes: usize,
        /// Bytes of one block.
        block_bytes: usize,
        /// ENOMEM.
        #[source]
        source: io::Error,
    },
    /// Unsupported: the kind of interface has no link type that can be written.
    #[error(
        "interface {interface}: hardware type {hardware} (ARPHRD) has no supported link type; \
         capture on the interface below it"
    )]
    Hardware {
        /// Name of the interface.
        interface: String,
        /// ARPHRD number.
        hardware: u16,
    },
    /// Device: a step of using the packet socket failed.
    #[error("interface {interface}: {step} failed")]
    Socket {
        /// Name of the interface.
        interface: String,
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Device: the kernel's ring holds a frame that lies outside its block. Nothing in the ring can
    /// be trusted.
    #[error(
        "interface {interface}: the kernel's ring describes a frame outside its block \
         (offset {offset} of {block_bytes} bytes)"
    )]
    Ring {
        /// Name of the interface.
        interface: String,
        /// Where the frame was said to be.
        offset: usize,
        /// Bytes of the block.
        block_bytes: usize,
    },
    /// Device: a step of taking packets from a TCP connection failed.
    #[error("PCAP-over-IP {address}: {step} failed: {source}")]
    Stream {
        /// Address that is listened on or connected to, and the sender's if there is one.
        address: String,
        /// What was being done.
        step: &'static str,
        /// The kernel's or the resolver's answer.
        #[source]
        source: io::Error,
    },
    /// Device: a capture file cannot be opened or read.
    #[error("{path}: {step} failed after {at} bytes")]
    File {
        /// Path of the file, or the name of the stream.
        path: String,
        /// What was being done.
        step: &'static str,
        /// Bytes read before, after decompression.
        at: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Unsupported: the file is not a capture, or of a kind that cannot be read without guessing.
    #[error("{path}: {what}")]
    Unsupported {
        /// Path of the file.
        path: String,
        /// What it is, and the way out.
        what: String,
    },
    /// Corrupt: a classic pcap file breaks off or lies about a length.
    #[error("{path}: record at byte {at}: {what}; {packets} packets came before it")]
    Record {
        /// Path of the file.
        path: String,
        /// Offset of the record, after decompression.
        at: u64,
        /// What is wrong.
        what: String,
        /// Whole packets before it.
        packets: u64,
    },
    /// Corrupt: a pcapng file breaks off or lies about a length.
    #[error("{path}: {source}")]
    Pcapng {
        /// Path of the file.
        path: String,
        /// What is wrong and where, after decompression.
        source: PcapngError,
    },
}

impl CaptureError {
    /// Whether the input is damaged, as opposed to the machine or the options being wrong. What
    /// came before the damage was given out.
    pub fn is_corrupt(&self) -> bool {
        match self {
            Self::Record { .. } | Self::Pcapng { .. } => true,
            // What a decompressor says of damaged input.
            Self::File { source, .. } => {
                use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
                matches!(source.kind(), InvalidData | InvalidInput | UnexpectedEof)
            }
            _ => false,
        }
    }
}
