//! Mutations of seeds: small and repeatable.

use wirevault_media::sim::SplitMix64;

/// Numbers at which length fields break.
const EDGES: [u32; 8] = [0, 1, 4, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000, u32::MAX];
/// Bytes that one input may have.
const BYTES_MAX: usize = 1 << 16;

/// Changes `input` in one to four places.
pub fn mutate(input: &mut Vec<u8>, random: &mut SplitMix64) {
    for _ in 0..=random.next_u64() % 4 {
        let len = input.len().max(1) as u64;
        let at = (random.next_u64() % len) as usize;
        match random.next_u64() % 7 {
            0 => input.truncate(at),
            1 => flip(input, at, random),
            2 => {
                let edge = EDGES[(random.next_u64() % 8) as usize].to_le_bytes();
                overwrite(input, at & !3, &edge);
            }
            3 => {
                let edge = EDGES[(random.next_u64() % 8) as usize].to_be_bytes();
                overwrite(input, at, &edge[..2]);
            }
            4 => {
                let bytes = random.next_u64().to_le_bytes();
                let extra = bytes[..(random.next_u64() % 8) as usize].to_vec();
                input.splice(at..at, extra);
            }
            5 => {
                let end = (at + (random.next_u64() % 64) as usize).min(input.len());
                let copy = input[at.min(end)..end].to_vec();
                input.splice(at..at, copy);
            }
            _ => {
                let end = (at + (random.next_u64() % 16) as usize).min(input.len());
                input.drain(at.min(end)..end);
            }
        }
        input.truncate(BYTES_MAX);
    }
}

fn flip(input: &mut [u8], at: usize, random: &mut SplitMix64) {
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << (random.next_u64() % 8);
    }
}

fn overwrite(input: &mut [u8], at: usize, bytes: &[u8]) {
    for (byte, new) in input.iter_mut().skip(at).zip(bytes) {
        *byte = *new;
    }
}
