//! Options of PCAP-over-IP.

use std::net::SocketAddr;

/// Where senders are met, and what becomes of what they say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcapOverIpOptions {
    /// Who begins.
    pub rendezvous: Rendezvous,
    /// Interface name to store all packets under; `None` keeps the names in the streams.
    pub interface: Option<String>,
}

/// Who begins a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rendezvous {
    /// Senders connect to this address.
    Listen(SocketAddr),
    /// We connect to this host and port, and again when the connection ends.
    Connect(String),
}
