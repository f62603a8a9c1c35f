//! Messages of the kernel's netlink and the attributes in them: one question at a time.
//!
//! Source: netlink(7).

use std::io;

pub(crate) use crate::link::netlink as ask;

const MESSAGE_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_REQUEST: u16 = 1;

/// A request of this kind.
pub(crate) fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let bytes = (MESSAGE_BYTES + body.len()) as u32;
    let mut message = bytes.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(NLM_REQUEST.to_ne_bytes());
    // Sequence and port: one question at a time, so nothing has to be matched.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Appends an attribute.
pub(crate) fn put_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Attributes of an answer, behind its header and the family's own.
pub(crate) fn payload(answer: &[u8], header_bytes: usize) -> io::Result<&[u8]> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let kind = answer.get(4..6).and_then(|kind| kind.first_chunk()).ok_or_else(short)?;
    let body = answer.get(MESSAGE_BYTES..).ok_or_else(short)?;
    if u16::from_ne_bytes(*kind) == NLMSG_ERROR {
        let number = body.first_chunk().ok_or_else(short)?;
        return Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(*number)));
    }
    body.get(header_bytes..).ok_or_else(short)
}

/// Kind and value of each attribute; ends at the first that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND_MASK: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let kind = u16::from_ne_bytes(*rest.first_chunk()?) & KIND_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut body = Vec::new();
        put_attribute(&mut body, 2, b"netdev\0");
        put_attribute(&mut body, 1 | 0x8000, &7u32.to_ne_bytes());
        let read: Vec<_> = attributes(&body).collect();
        assert_eq!(read, [(2, &b"netdev\0"[..]), (1, &7u32.to_ne_bytes())]);
    }

    #[test]
    fn an_error_is_the_kernels() {
        let mut answer = message(NLMSG_ERROR, &(-libc::ENODEV).to_ne_bytes());
        assert_eq!(payload(&answer, 4).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        answer.truncate(17);
        assert!(payload(&answer, 4).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(attributes(&bytes).count() <= bytes.len());
            let _ = payload(&bytes, 4);
        }
    }
}
