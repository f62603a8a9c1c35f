//! Capabilities that are dropped, and those that recording goes on needing.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use wirevault_config::Config;

use super::{captures, may_use_xdp};

/// Keeps what recording needs of what there is; gives the names of what is left, sorted.
///
/// # Errors
/// The system's.
pub(super) fn give_up(config: &Config) -> Result<Vec<String>, CapsError> {
    let kept = kept(config);
    let left = |set| -> Result<CapsHashSet, CapsError> {
        Ok(caps::read(None, set)?.intersection(&kept).copied().collect())
    };
    let (effective, permitted) = (left(CapSet::Effective)?, left(CapSet::Permitted)?);
    // What is effective must be permitted, so it goes first. No program is started from here, and
    // with nothing inheritable nothing is ambient.
    caps::set(None, CapSet::Effective, &effective)?;
    caps::set(None, CapSet::Permitted, &permitted)?;
    caps::clear(None, CapSet::Inheritable)?;
    let mut names: Vec<_> = effective.iter().map(ToString::to_string).collect();
    names.sort();
    Ok(names)
}

fn kept(config: &Config) -> CapsHashSet {
    let mut kept = CapsHashSet::from([
        // Files of a store that belongs to another user.
        Capability::CAP_DAC_OVERRIDE,
        // Keys stay out of swap.
        Capability::CAP_IPC_LOCK,
        // Log pages and queues of NVMe devices.
        Capability::CAP_SYS_ADMIN,
    ]);
    // An interface may go and come back, and is opened anew then.
    if captures(config).next().is_some() {
        kept.insert(Capability::CAP_NET_RAW);
    }
    if may_use_xdp(config) {
        let xdp = [Capability::CAP_NET_ADMIN, Capability::CAP_BPF, Capability::CAP_PERFMON];
        kept.extend(xdp);
    }
    if !config.vfio.is_empty() {
        // VFIO without an IOMMU.
        kept.insert(Capability::CAP_SYS_RAWIO);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept_of(rest: &str) -> CapsHashSet {
        kept(&wirevault_config::parse(&format!("store: /a\n{rest}"), "t").unwrap())
    }

    #[test]
    fn rights_are_those_of_the_sources() {
        let senders = kept_of("pcap_over_ip:\n  - listen: 127.0.0.1:57012\n");
        for of_network in [Capability::CAP_NET_RAW, Capability::CAP_NET_ADMIN] {
            assert!(!senders.contains(&of_network), "{of_network}");
        }
        let packet = kept_of("capture:\n  - interface: eth0\n    source: packet_mmap\n");
        assert!(packet.contains(&Capability::CAP_NET_RAW));
        assert!(!packet.contains(&Capability::CAP_BPF));
        let any = kept_of("capture:\n  - interface: eth0\n");
        assert!(any.contains(&Capability::CAP_BPF));
        for never in [Capability::CAP_SYS_PTRACE, Capability::CAP_SYS_MODULE] {
            assert!(!any.contains(&never), "{never}");
        }
    }
}
