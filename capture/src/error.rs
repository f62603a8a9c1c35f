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
    /// Misuse: somebody else's XDP program is on the interface. It is never replaced.
    #[error(
        "interface {interface}: XDP program {program} is on it already (`bpftool prog show id \
         {program}` says whose); end the program that put it there (`ip link set {interface} xdp \
         off` if nobody is left to ask), or capture with packet_mmap"
    )]
    XdpOccupied {
        /// Name of the interface.
        interface: String,
        /// The kernel's number of the program.
        program: u32,
    },
    /// Misuse: another AF_XDP socket has the queue.
    #[error(
        "interface {interface}: another AF_XDP socket has receive queue {queue}; end the program \
         that opened it, or capture with packet_mmap"
    )]
    QueueTaken {
        /// Name of the interface.
        interface: String,
        /// Number of the queue.
        queue: u32,
        /// EBUSY.
        #[source]
        source: io::Error,
    },
    /// Misuse: AF_XDP serves whole queues.
    #[error(
        "interface {interface} has {queues} receive queues for {lanes} lanes; ask for fewer lanes, \
         give it more queues (`ethtool -L {interface}`), or capture with packet_mmap"
    )]
    Queues {
        /// Name of the interface.
        interface: String,
        /// Receive queues in use.
        queues: u32,
        /// Lanes asked for.
        lanes: usize,
    },
    /// Privilege: the process may not use XDP programs.
    #[error(
        "interface {interface}: {step} was refused; AF_XDP needs CAP_NET_RAW, CAP_NET_ADMIN and \
         CAP_BPF in the first user namespace (run as root, or AmbientCapabilities= in the unit), \
         or capture with packet_mmap"
    )]
    XdpPermission {
        /// Name of the interface.
        interface: String,
        /// What was being done.
        step: &'static str,
        /// EPERM or EACCES.
        #[source]
        source: io::Error,
    },
    /// Machine: no memory for packets.
    #[error(
        "interface {interface}: no memory for {bytes} bytes of packets; ask for a smaller ring"
    )]
    XdpMemory {
        /// Name of the interface.
        interface: String,
        /// Bytes of one lane.
        bytes: usize,
        /// Why.
        #[source]
        source: wirevault_buffer::BufferError,
    },
    /// Machine: the limit on locked memory is lower than the packet memory.
    #[error(
        "interface {interface}: the limit on locked memory is below the {bytes} bytes of packet \
         memory; set LimitMEMLOCK=infinity in the unit (ulimit -l), or give CAP_IPC_LOCK"
    )]
    XdpLocked {
        /// Name of the interface.
        interface: String,
        /// Bytes of one lane.
        bytes: usize,
        /// ENOBUFS.
        #[source]
        source: io::Error,
    },
    /// Unsupported: XDP gives no whole frames on such an interface.
    #[error(
        "interface {interface}: hardware type {hardware} (ARPHRD) is not Ethernet, so AF_XDP gives \
         no whole frames; capture with packet_mmap"
    )]
    XdpHardware {
        /// Name of the interface.
        interface: String,
        /// ARPHRD number.
        hardware: u16,
    },
    /// Device: a step of using an XDP program failed.
    #[error("interface {interface}: {step} failed{log}; packet_mmap captures without a program")]
    Xdp {
        /// Name of the interface.
        interface: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel's verifier said, in brackets; often nothing.
        log: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Unsupported: the card cannot stamp packets.
    #[error("interface {interface}: {what}; without `hardware_time` the kernel stamps packets")]
    HardwareTime {
        /// Name of the interface.
        interface: String,
        /// What it lacks, and the way out.
        what: String,
    },
    /// Device: a capture file cannot be opened or read.
    #[error("{path}: {step} failed{}", after(*at))]
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

/// How far a file was read, if at all.
fn after(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { format!(" after {bytes} bytes") }
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
