//! `init` and `import`: a store, and files into it.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;
use wirevault_daemon::input::import::Tunnel;
use wirevault_format::VxlanPorts;

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Directory or block device of the store: its first volume. A directory is made if it is
    /// missing; a device must be empty, see `wirevault volume`.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Store packets unencrypted: tshark and tcpdump then open segments as they are.
    #[arg(long, conflicts_with = "key")]
    pub(crate) plaintext: bool,
    /// What all volumes together may take: bytes, `500GiB` for example, or a share of their file
    /// systems and devices, such as `80%` [default: half of what is free in directories, and 90 %
    /// of devices].
    #[arg(long, value_name = "SIZE", value_parser = quota)]
    pub(crate) quota: Option<Quota>,
    /// Key file. It is used if it is there, else made. It must lie outside the store
    /// [default: /etc/wirevault/keys/ID.key, or in the user's configuration directory].
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// A key of AWS KMS instead of a key file: ARN, id or `alias/NAME`. It never leaves KMS, which
    /// must be reached to make, open and read the store. Region and credentials are found as by any
    /// AWS program.
    #[arg(long, value_name = "KEY", conflicts_with_all = ["key", "plaintext"])]
    pub(crate) kms_key: Option<String>,
    /// Seal with the public half of an RSA key, in a PEM file: this machine then records and cannot
    /// read it. Reading needs the private half: `--key FILE`, or the key of KMS that `--kms-key`
    /// names.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "plaintext"])]
    pub(crate) seal_to: Option<PathBuf>,
    /// A further volume: a directory on another device, or a device. May be given several times.
    #[arg(long = "volume", value_name = "DIR")]
    pub(crate) volumes: Vec<PathBuf>,
    /// Two machines have the device: one records, the other takes over when that falls silent.
    #[arg(long, conflicts_with = "volumes")]
    pub(crate) shared: bool,
    /// Lanes that will record at the same time; it decides the size of segments.
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) lanes: u16,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Directory of the store: its first volume.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// Files, in the order of their packets.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Key file of a sealed store, where it is not where `init` put it.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Store what is inside tunnels, and ids and addresses of the outer headers beside it.
    #[arg(long)]
    pub(crate) strip: bool,
    /// What --strip removes. Without it all but VLAN tags.
    #[arg(long, value_name = "TUNNEL,...", value_delimiter = ',', value_parser = tunnel)]
    #[arg(requires = "strip")]
    pub(crate) decap_tunnels: Option<Vec<Tunnel>>,
    /// UDP ports of VXLAN, for --strip and for the index; up to 8.
    #[arg(long, value_name = "PORT,...", value_parser = vxlan_ports, default_value = "4789,8472")]
    pub(crate) vxlan_ports: VxlanPorts,
    /// Report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn tunnel(name: &str) -> Result<Tunnel, String> {
    let known = || format!("one of {}", Tunnel::NAMES.join(", "));
    Tunnel::from_name(name).ok_or_else(known)
}

fn vxlan_ports(text: &str) -> Result<VxlanPorts, String> {
    let ports: Option<Vec<u16>> =
        text.split(',').map(|port| port.trim().parse().ok().filter(|port| *port != 0)).collect();
    match ports.filter(|ports| ports.len() <= VxlanPorts::MAX) {
        Some(ports) => Ok(VxlanPorts::new(&ports)),
        None => Err(format!("up to {} ports from 1 to 65535, with commas", VxlanPorts::MAX)),
    }
}

/// What a store may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quota {
    /// So many bytes.
    Bytes(u64),
    /// So much of the file systems and devices of its volumes.
    Percent(u8),
}

fn quota(text: &str) -> Result<Quota, String> {
    let Some(share) = text.strip_suffix('%') else { return size(text).map(Quota::Bytes) };
    match share.trim_end().parse() {
        Ok(percent @ 1..=100) => Ok(Quota::Percent(percent)),
        _ => Err("a share is a whole number from 1 to 100 and %, such as 80%".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let size = text.parse::<ByteSize>().map(|size| size.as_u64());
    size.map_err(|_| "a size is a number and a unit, such as 512MiB, 1.5TiB or 100GB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_size_or_a_share() {
        assert_eq!(quota("1GiB"), Ok(Quota::Bytes(1 << 30)));
        assert_eq!(quota("80%"), Ok(Quota::Percent(80)));
        for text in ["0%", "101%", "%", "half", "1.5%"] {
            assert!(quota(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("1GB"), Ok(1_000_000_000));
        assert_eq!(size("4096"), Ok(4096));
        assert!(size("much").is_err());
        assert!(size("-1").is_err());
    }
}
