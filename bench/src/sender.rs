//! A cable, and sequence-stamped packets on it at a steady rate.

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;
use wirevault_testkit::net::Namespace;

use crate::live_frames;
use crate::sys::{FRAMES_MAX, RawSocket};

/// The end that is recorded.
pub(crate) const RECEIVER: &str = "wvb0";
/// The end that packets are sent on.
pub(crate) const SENDER: &str = "wvb1";
/// UDP source ports, and so flows.
pub(crate) const FLOWS: u64 = 1024;
pub(crate) const PORT_AT: usize = 34;
pub(crate) const NUMBER_AT: usize = 42;
/// Headers and number.
pub(crate) const FRAME_BYTES_MIN: usize = NUMBER_AT + 8;

/// Who makes the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Maker {
    /// A socket, 64 packets a call.
    #[value(name = "socket")]
    Socket,
    /// An XDP program over live frames: two to three times as many. The receiving end then takes
    /// its packets by NAPI.
    #[value(name = "xdp")]
    Xdp,
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) maker: Maker,
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
pub(crate) fn cable(maker: Maker) -> Result<Namespace> {
    let namespace = Namespace::enter().context("this needs root")?;
    namespace.add_veth(RECEIVER, SENDER);
    if maker == Maker::Xdp {
        // Without it a veth silently drops frames of XDP.
        let gro = Command::new("ethtool").args(["-K", RECEIVER, "gro", "on"]).status();
        ensure!(gro.context("ethtool")?.success(), "{RECEIVER} takes no frames of XDP");
    }
    Ok(namespace)
}

/// Sends on an interface of the thread's namespace. A sender that falls behind makes up for it.
pub(crate) fn send(interface: &str, load: Load) -> Result<Sent> {
    if let Some(cpu) = load.cpu {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set).context("pinning the sender")?;
    }
    if load.maker == Maker::Xdp {
        let Load { packets_per_s, time, frame_bytes, .. } = load;
        let sent = live_frames::send(interface, frame(frame_bytes), packets_per_s, time);
        let (packets, time) = sent.context("sending live frames of XDP")?;
        return Ok(Sent { packets, time });
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

/// A packet of a flow of its own.
pub(crate) fn probe(bytes: usize, port: u16) -> Vec<u8> {
    let mut frame = frame(bytes);
    frame[PORT_AT..PORT_AT + 2].copy_from_slice(&port.to_be_bytes());
    frame
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
