//! A bare reader of the kernel's packet ring: takes packets, copies each once, counts them, and
//! does nothing else. What a recorder costs beyond it is the recorder's own.
//!
//! It shares no code with the recorder's source, so a slow walk there would show.

use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

use crate::sys::PacketRing;

/// Fields of a block's header and of a packet's (`linux/if_packet.h`, `tpacket_block_desc` and
/// `tpacket3_hdr`): offsets.
const BLOCK_PACKETS_AT: usize = 12;
const BLOCK_FIRST_AT: usize = 16;
const PACKET_NEXT_AT: usize = 0;
const PACKET_CAPTURED_AT: usize = 12;
const PACKET_MAC_AT: usize = 24;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Interface to read from.
    interface: String,
    /// MiB of the ring, and of the memory that packets are copied to.
    ring_mib: usize,
}

/// Where packets are copied to, again and again from its beginning.
struct Memory {
    bytes: Vec<u8>,
    end: usize,
}

/// Runs until SIGINT, then prints how many packets it took.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let signals = SigSet::from_iter([Signal::SIGINT]);
    signals.thread_block()?;
    let signals = SignalFd::new(&signals)?;
    // Its pages are there before the first packet is.
    let mut memory = Memory { bytes: vec![1; options.ring_mib << 20], end: 0 };
    let mut ring = PacketRing::on(&options.interface, options.ring_mib)
        .with_context(|| format!("reading from {}", options.interface))?;
    let (mut at, mut packets) = (0, 0);
    loop {
        while let Some(block) = ring.block(at) {
            packets += memory.take(block).context("the kernel's block is out of bounds")?;
            ring.give_back(at);
            at = (at + 1) % ring.blocks();
        }
        let mut fds = [
            PollFd::new(ring.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE)?;
        let is = |fd: &PollFd<'_>, flags| fd.revents().is_some_and(|it| it.intersects(flags));
        ensure!(!is(&fds[0], PollFlags::POLLERR), "{} is gone", options.interface);
        if is(&fds[1], PollFlags::POLLIN) && !is(&fds[0], PollFlags::POLLIN) {
            println!("{packets}");
            return Ok(true);
        }
    }
}

impl Memory {
    /// Copies the packets of a block; gives their number.
    fn take(&mut self, block: &[u8]) -> Option<u64> {
        let packets = u32_at(block, BLOCK_PACKETS_AT)?;
        let mut at = u32_at(block, BLOCK_FIRST_AT)? as usize;
        for _ in 0..packets {
            let header = block.get(at..)?;
            let captured = u32_at(header, PACKET_CAPTURED_AT)? as usize;
            let mac = header.get(PACKET_MAC_AT..PACKET_MAC_AT + 2)?;
            let mac = usize::from(u16::from_ne_bytes([mac[0], mac[1]]));
            let data = header.get(mac..mac + captured)?;
            if self.end + captured > self.bytes.len() {
                self.end = 0;
            }
            self.bytes.get_mut(self.end..self.end + captured)?.copy_from_slice(data);
            self.end += captured;
            at += u32_at(header, PACKET_NEXT_AT)? as usize;
        }
        Some(u64::from(packets))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block with packets of these bytes.
    fn block(packets: &[&[u8]]) -> Vec<u8> {
        const HEADER_BYTES: usize = 48;
        let mut block = vec![0; HEADER_BYTES];
        block[BLOCK_PACKETS_AT..][..4].copy_from_slice(&(packets.len() as u32).to_ne_bytes());
        block[BLOCK_FIRST_AT..][..4].copy_from_slice(&(HEADER_BYTES as u32).to_ne_bytes());
        for packet in packets {
            let mut header = [0; HEADER_BYTES];
            let (next, captured) = ((HEADER_BYTES + packet.len()) as u32, packet.len() as u32);
            header[PACKET_NEXT_AT..][..4].copy_from_slice(&next.to_ne_bytes());
            header[PACKET_CAPTURED_AT..][..4].copy_from_slice(&captured.to_ne_bytes());
            header[PACKET_MAC_AT..][..2].copy_from_slice(&(HEADER_BYTES as u16).to_ne_bytes());
            block.extend(header.iter().chain(*packet));
        }
        block
    }

    #[test]
    fn every_packet_of_a_block_is_copied_and_the_memory_is_used_again() {
        let mut memory = Memory { bytes: vec![0; 8], end: 0 };
        assert_eq!(memory.take(&block(&[b"abc", b"de"])), Some(2));
        assert_eq!((&memory.bytes[..5], memory.end), (&b"abcde"[..], 5));
        assert_eq!(memory.take(&block(&[b"fghi"])), Some(1));
        assert_eq!((&memory.bytes[..5], memory.end), (&b"fghie"[..], 4));
    }

    #[test]
    fn a_block_that_lies_is_refused() {
        let whole = block(&[b"abc"]);
        let mut memory = Memory { bytes: vec![0; 8], end: 0 };
        for end in 0..whole.len() {
            assert_eq!(memory.take(&whole[..end]), None, "cut at {end}");
        }
    }
}
