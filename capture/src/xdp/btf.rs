//! The kernel's description of its own types (BTF), of which one thing is asked: the number under
//! which a program may call one of its functions.
//!
//! ```text
//!  header │ types: 12 bytes each, and what their kind adds │ strings, zero-terminated
//! ```
//! Types are numbered from 1 in the order in which they stand, so they are walked once; a kind that
//! is not known here has an unknown length and ends the walk with an error.
//!
//! Source: Linux Documentation/bpf/btf.rst.

use std::io;

/// Where the kernel shows it. Absent without CONFIG_DEBUG_INFO_BTF.
pub(super) const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const TYPE_BYTES: usize = 12;
const KIND_FUNCTION: u32 = 12;

/// Numbers of functions by name; `None` for those that the kernel does not have.
///
/// Errors: `InvalidData` if the bytes are no BTF of this machine's byte order, or hold a kind of
/// type that is not known.
pub(super) fn functions<const N: usize>(
    btf: &[u8],
    names: [&str; N],
) -> io::Result<[Option<u32>; N]> {
    let (types, strings) = sections(btf).ok_or_else(|| invalid("no header of BTF".to_owned()))?;
    let mut found = [None; N];
    let (mut at, mut number) = (0, 1);
    while at < types.len() {
        let cut = || invalid(format!("type {number} is cut off"));
        let name_at = word(types, at).ok_or_else(cut)?;
        let info = word(types, at + 4).ok_or_else(cut)?;
        let (members, kind) = (info as usize & 0xffff, info >> 24 & 0x1f);
        if kind == KIND_FUNCTION {
            let name = name(strings, name_at as usize);
            if let Some(place) = names.iter().position(|wanted| name == Some(wanted.as_bytes())) {
                found[place] = Some(number);
            }
        }
        let more = added_bytes(kind, members)
            .ok_or_else(|| invalid(format!("type {number} is of the unknown kind {kind}")))?;
        at += TYPE_BYTES + more;
        number += 1;
    }
    Ok(found)
}

/// Bytes behind a type, by its kind and number of members.
fn added_bytes(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // Pointers, forward declarations, names and qualifiers of types, functions, floats, tags.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, sections of data, enumerations of 64 bits.
        4 | 5 | 15 | 19 => 12 * members,
        // Enumerations, prototypes.
        6 | 13 => 8 * members,
        _ => return None,
    })
}

/// The types and the strings.
fn sections(btf: &[u8]) -> Option<(&[u8], &[u8])> {
    let magic = u16::from_ne_bytes(*btf.first_chunk()?);
    let header_bytes = word(btf, 4)? as usize;
    let body = btf.get(header_bytes..).filter(|_| magic == MAGIC)?;
    let part = |at| {
        let (from, bytes) = (word(btf, at)? as usize, word(btf, at + 4)? as usize);
        body.get(from..from.checked_add(bytes)?)
    };
    Some((part(8)?, part(16)?))
}

fn name(strings: &[u8], at: usize) -> Option<&[u8]> {
    strings.get(at..)?.split(|byte| *byte == 0).next()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A structure of two members, a function `ab` and a function `b`, whose name is a part of the
    /// other's.
    fn sample() -> Vec<u8> {
        let types: Vec<u32> =
            [&[0, 4 << 24 | 2, 8][..], &[0; 6], &[1, 12 << 24, 0], &[2, 12 << 24, 0]].concat();
        let strings = b"\0ab\0";
        let bytes = types.len() as u32 * 4;
        let header = [0x0001_0000 | u32::from(MAGIC), 24, 0, bytes, bytes, strings.len() as u32];
        let words = header.into_iter().chain(types);
        words.flat_map(u32::to_ne_bytes).chain(strings.iter().copied()).collect()
    }

    #[test]
    fn functions_are_found_by_their_names() {
        let found = functions(&sample(), ["b", "ab", "a"]).unwrap();
        assert_eq!(found, [Some(3), Some(2), None]);
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let mut bytes = sample();
        bytes[24 + 7] = 31;
        let error = functions(&bytes, ["ab"]).unwrap_err().to_string();
        assert_eq!(error, "type 1 is of the unknown kind 31");
        assert!(functions(b"\x7fELF", ["ab"]).is_err());
        let short = sample().len() - 8;
        assert!(functions(&sample()[..short], ["ab"]).is_err());
    }

    #[test]
    fn the_running_kernel_is_understood() {
        let Ok(bytes) = std::fs::read(KERNEL) else {
            return eprintln!("SKIPPED: this kernel does not show its types");
        };
        let [call, none] = functions(&bytes, ["bpf_prog_run_generic_xdp", "no such"]).unwrap();
        assert!(call.is_some() && none.is_none(), "{call:?} {none:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_end(at in 0usize..100, value: u8, end in 0usize..100) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(end);
            let _ = functions(&bytes, ["ab"]);
        }
    }
}
