//! Which of its programs an interface gets: the one that can say most of a packet and that kernel
//! and driver accept.
//!
//! | program | stamps | card's part | needs |
//! |---|---|---|---|
//! | that asks the card | yes | what its driver tells | to be in the driver; Linux 6.3 (6.8 for tags) that shows its types |
//! | that stamps | yes | | Linux 6.1 |
//! | plain | | | |

use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use super::XdpOptions;
use super::bpf::{self, For, Hook};
use super::btf;
use super::facts::Facts;
use super::program::{CardCalls, Task, assemble};
use crate::link::Link;

/// Longest packet without its link header that is never in several buffers, in a page with what
/// drivers keep beside it.
const ONE_BUFFER_MTU: u32 = 3_400;

/// What stamps tell of the card.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Card {
    pub(super) time: bool,
    pub(super) vlan: bool,
    /// Why not all that its driver knows, or that is wanted; nothing if it is so.
    pub(super) why_not: Option<String>,
}

/// A program in the kernel.
pub(super) struct Loaded {
    pub(super) program: OwnedFd,
    pub(super) stamps: bool,
    pub(super) card: Card,
}

/// What is to be loaded, and where it is to run.
pub(super) struct Wanted<'a> {
    pub(super) options: &'a XdpOptions,
    pub(super) link: Link,
    pub(super) facts: &'a Facts,
    pub(super) hook: Hook,
    pub(super) map: RawFd,
}

impl Wanted<'_> {
    /// Loads the best that is accepted. Errors: the kernel's answer to the plainest.
    pub(super) fn load(&self) -> Result<Loaded, (io::Error, String)> {
        let mut card = Card::default();
        if self.options.stamps {
            match self.load_asking() {
                Ok(loaded) => return Ok(loaded),
                Err(why) => card.why_not = Some(why),
            }
            let any = For { fragments: true, interface: None };
            if let Ok(program) = self.load_task(true, CardCalls::default(), any) {
                return Ok(Loaded { program, stamps: true, card });
            }
        }
        let any = For { fragments: true, interface: None };
        let program = self.load_task(false, CardCalls::default(), any)?;
        Ok(Loaded { program, stamps: false, card })
    }

    /// The program that asks the card. Errors: why there is none.
    fn load_asking(&self) -> Result<Loaded, String> {
        let driver = self.facts.driver.unwrap_or_default();
        if self.hook != Hook::Native {
            return Err("only a program in the driver can ask it".to_owned());
        }
        let time = self.options.hardware_time && driver.card_time;
        if !time && !driver.card_vlan {
            return Err("its driver tells nothing".to_owned());
        }
        let types = fs::read(btf::KERNEL)
            .map_err(|error| format!("the kernel does not show its types: {error}"))?;
        let [time_call, vlan_call] = btf::functions(&types, CardCalls::NAMES)
            .map_err(|error| format!("the kernel's types are not understood: {error}"))?
            .map(|number| number.map(u32::cast_signed));
        let calls = CardCalls {
            time: time_call.filter(|_| time),
            vlan: vlan_call.filter(|_| driver.card_vlan),
        };
        if calls.is_empty() {
            return Err("this kernel has no functions for it".to_owned());
        }
        let (time, vlan) = (calls.time.is_some(), calls.vlan.is_some());
        let interface = Some(self.link.index);
        // Kernels before 6.16 take no program that is both for one interface and for fragments.
        let whole = self.facts.mtu <= ONE_BUFFER_MTU;
        let loaded = self.load_task(true, calls, For { fragments: true, interface });
        let loaded = match loaded {
            Err(_) if whole => self.load_task(true, calls, For { fragments: false, interface }),
            other => other,
        };
        let program =
            loaded.map_err(|(error, log)| format!("the kernel refuses: {error} {log}"))?;
        Ok(Loaded { program, stamps: true, card: Card { time, vlan, why_not: None } })
    }

    fn load_task(
        &self,
        stamps: bool,
        card: CardCalls,
        aim: For,
    ) -> Result<OwnedFd, (io::Error, String)> {
        let task = Task { udp_ports: self.options.udp_ports.clone(), stamps, card };
        bpf::load(&assemble(&task, self.map), aim)
    }
}
