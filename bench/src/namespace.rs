//! A network namespace with the two ends of a cable.

use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// The interface that is recorded.
pub(crate) const RECEIVER: &str = "wvb0";
/// The interface that packets are sent on.
pub(crate) const SENDER: &str = "wvb1";

/// A namespace with a veth pair, which the calling thread and those it starts are in.
pub(crate) struct Namespace {
    name: String,
    before: File,
}

impl Namespace {
    /// Makes it and enters it.
    pub(crate) fn new() -> Result<Self> {
        let name = format!("wvbench-{}", std::process::id());
        ip(&["netns", "add", &name]).context("this needs root")?;
        let before = File::open("/proc/thread-self/ns/net")?;
        let namespace = Self { name, before };
        let inside = File::open(format!("/run/netns/{}", namespace.name))?;
        setns(inside, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
        for scope in ["all", "default"] {
            // Without it the kernel speaks between our packets.
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
        }
        ip(&["link", "add", RECEIVER, "type", "veth", "peer", "name", SENDER])?;
        ip(&["link", "set", RECEIVER, "address", "02:00:00:00:00:01", "up"])?;
        ip(&["link", "set", SENDER, "address", "02:00:00:00:00:02", "up"])?;
        Ok(namespace)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = setns(&self.before, CloneFlags::CLONE_NEWNET);
        let _ = ip(&["netns", "del", &self.name]);
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("ip")?;
    ensure!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
