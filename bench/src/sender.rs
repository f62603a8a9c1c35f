//! A cable, and sequence-stamped packets on it at a steady rate.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use wirevault_testkit::net::Namespace;

use crate::sys::{FRAMES_MAX, RawSocket};

/// The end that is recorded.
pub(crate) const RECEIVER: &str = "wvb0";
/// The end that packets are sent on.
pub(crate) const SENDER: &str = "wvb1";
/// UDP source ports, and so flows.
const FLOWS: u64 = 1024;
const PORT_AT: usize = 34;
const NUMBER_AT: usize = 42;
/// Headers and number.
pub(crate) const FRAME_BYTES_MIN: usize = NUMBER_AT + 8;

/// What to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) frame_bytes: usize,
    pub(crate) packets_per_s: u64,
    pub(crate) time: Duration,
    /// Core to send from.
    pub(crate) cpu: Option<usize>,
}

/// What was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) packets: u64,
    pub(crate) time: Duration,
}

/// The cable, in a namespace that the thread and what it starts are in until this is dropped.
pub(crate) fn cable() -> Result<Namespace> {
    let namespace = Namespace::enter().context("this needs root")?;
    namespace.add_veth(RECEIVER, SENDER);
    Ok(namespace)
}

/// Sends on an interface of the thread's namespace. A sender that falls behind makes up for it.
pub(crate) fn send(interface: &str, load: Load) -> Result<Sent> {
    if let Some(cpu) = load.cpu {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set).context("pinning the sender")?;
    }
    let socket = RawSocket::on(interface).with_context(|| format!("sending on {interface}"))?;
    let mut frames: Vec<Vec<u8>> = (0..FRAMES_MAX).map(|_| frame(load.frame_bytes)).collect();
    let begin = Instant::now();
    let mut packets = 0;
    while begin.elapsed() < load.time {
        let due =
            (begin.elapsed().as_nanos() * u128::from(load.packets_per_s) / 1_000_000_000) as u64;
        if due < packets + FRAMES_MAX as u64 {
            std::hint::spin_loop();
            continue;
        }
        for (number, frame) in (packets..).zip(&mut frames) {
            frame[NUMBER_AT..NUMBER_AT + 8].copy_from_slice(&number.to_be_bytes());
            let port = 1024 + (number % FLOWS) as u16;
            frame[PORT_AT..PORT_AT + 2].copy_from_slice(&port.to_be_bytes());
        }
        let mut done = 0;
        while done < FRAMES_MAX {
            match socket.send(&frames[done..]) {
                Ok(sent) => done += sent,
                Err(error) if is_busy(&error) => std::hint::spin_loop(),
                Err(error) => return Err(error).context("sending"),
            }
        }
        packets += FRAMES_MAX as u64;
    }
    Ok(Sent { packets, time: begin.elapsed() })
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR))
}

fn frame(bytes: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    frame.extend(((bytes - 14) as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 99, 0, 1, 10, 99, 0, 2, 0, 0, 0x27, 0x0f]);
    frame.extend(((bytes - 34) as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.resize(bytes, 0x5a);
    frame
}
