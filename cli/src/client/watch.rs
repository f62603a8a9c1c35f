//! Looks at a pcapng stream as it passes: where whole blocks end, and what its closing comment
//! says.
//!
//! The stream is the daemon's own: one section, little-endian. Whatever is not so is an error; the
//! bytes themselves are never changed.

use wirevault_format::pcapng::{
    BLOCK_EPB, BLOCK_FRAME_BYTES, BLOCK_ISB, BLOCK_SHB, OPTION_COMMENT, READ_BLOCK_BYTES_MAX,
    options,
};
use wirevault_query::export::COMMENT_PREFIX;
use wirevault_query::summary::Summary;

/// Bytes before the options of an Interface Statistics Block: type, length, interface, time.
const ISB_OPTIONS_AT: usize = 20;

/// The stream is not pcapng as our daemon writes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not pcapng at byte {at}: {what}")]
pub(crate) struct NotPcapng {
    at: u64,
    what: &'static str,
}

/// Follows the blocks of a stream.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Head of the current block, or the whole of it where it is an Interface Statistics Block.
    held: Vec<u8>,
    kind: u32,
    /// Bytes of the current block still to come; 0 while its head is incomplete.
    left: usize,
    at: u64,
    packets: u64,
    comments: Vec<String>,
    closing: Option<String>,
}

impl Watch {
    /// Takes the next bytes; returns how many of them belong to whole blocks, counted up to the end
    /// of the last block that they complete.
    ///
    /// # Errors
    /// [`NotPcapng`].
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<usize, NotPcapng> {
        let (mut at, mut whole) = (0, 0);
        while at < bytes.len() {
            if self.left == 0 {
                let take = (8 - self.held.len()).min(bytes.len() - at);
                self.held.extend_from_slice(&bytes[at..at + take]);
                at += take;
                if let Some(head) = self.held.first_chunk::<8>().copied() {
                    self.left = self.begin(head)?;
                }
                continue;
            }
            let take = self.left.min(bytes.len() - at);
            if self.kind == BLOCK_ISB {
                self.held.extend_from_slice(&bytes[at..at + take]);
            }
            at += take;
            self.left -= take;
            if self.left == 0 {
                self.end();
                whole = at;
            }
        }
        self.at += bytes.len() as u64;
        Ok(whole)
    }

    /// Packets of the whole blocks so far.
    pub(crate) fn packets(&self) -> u64 {
        self.packets
    }

    /// Comments met since the last call that are no closing statement: what `tail` missed.
    pub(crate) fn take_comments(&mut self) -> Vec<String> {
        std::mem::take(&mut self.comments)
    }

    /// The statement at the stream's end; `None` if the stream does not end with one.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let closing = self.closing.as_ref().filter(|_| self.held.is_empty() && self.left == 0)?;
        serde_json::from_str(closing).ok()
    }

    fn begin(&mut self, head: [u8; 8]) -> Result<usize, NotPcapng> {
        let [a, b, c, d, length @ ..] = head;
        let first = self.kind == 0;
        self.kind = u32::from_le_bytes([a, b, c, d]);
        let length = u32::from_le_bytes(length);
        let wrong = |what| NotPcapng { at: self.at, what };
        if first && self.kind != BLOCK_SHB {
            return Err(wrong("it does not begin with a section header"));
        }
        let possible = BLOCK_FRAME_BYTES as u32..=READ_BLOCK_BYTES_MAX;
        if !possible.contains(&length) || !length.is_multiple_of(4) {
            return Err(wrong("a block has an impossible length"));
        }
        self.closing = None;
        Ok(length as usize - head.len())
    }

    fn end(&mut self) {
        match self.kind {
            BLOCK_EPB => self.packets += 1,
            BLOCK_ISB => self.statistics(),
            _ => {}
        }
        self.held.clear();
    }

    fn statistics(&mut self) {
        let end = self.held.len() - 4;
        let encoded = self.held.get(ISB_OPTIONS_AT..end).unwrap_or_default();
        let comments = options(encoded)
            .map_while(Result::ok)
            .filter(|option| option.code == OPTION_COMMENT)
            .map(|option| String::from_utf8_lossy(option.value).into_owned());
        for comment in comments {
            match comment.lines().find_map(|line| line.strip_prefix(COMMENT_PREFIX)) {
                Some(json) => self.closing = Some(json.to_owned()),
                None => self.comments.push(comment),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use proptest::prelude::*;
    use wirevault_format::pcapng::put_isb_comment;
    use wirevault_format::{Interface, LinkType};
    use wirevault_query::export::{PacketOut, PcapngSink, Sink};

    use super::*;

    fn stream(packets: u64) -> Vec<u8> {
        let mut sink = PcapngSink::new(Vec::new()).unwrap();
        let link_type = LinkType::ETHERNET;
        sink.interface(0, &Interface::unnamed(link_type)).unwrap();
        for ts_ns in 0..packets {
            let (flags, options) = (None, &[][..]);
            let data = &[7; 61][..];
            let packet =
                PacketOut { interface: 0, link_type, ts_ns, orig_len: 61, data, flags, options };
            assert_eq!(sink.packet(&packet).unwrap(), ControlFlow::Continue(()));
        }
        sink.finish(&Summary { packets, complete: true, ..Summary::default() }).unwrap()
    }

    proptest! {
        #[test]
        fn any_pieces_give_the_same(
            packets in 0u64..5,
            cuts in prop::collection::vec(1usize..200, 1..9),
        ) {
            let bytes = stream(packets);
            let mut watch = Watch::default();
            let (mut rest, mut whole, mut fed) = (&bytes[..], 0, 0);
            for cut in cuts.iter().cycle() {
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                let done = watch.feed(piece).unwrap();
                whole = if done > 0 { fed + done } else { whole };
                fed += piece.len();
                rest = more;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(whole, bytes.len());
            prop_assert_eq!(watch.packets(), packets);
            let summary = watch.summary().unwrap();
            prop_assert!(summary.complete && summary.packets == packets);
        }

        #[test]
        fn any_bytes_are_taken_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut watch = Watch::default();
            let _ = watch.feed(&bytes);
            let mut begun = BLOCK_SHB.to_le_bytes().to_vec();
            begun.extend_from_slice(&28u32.to_le_bytes());
            begun.extend_from_slice(&[0; 20]);
            begun.extend_from_slice(&bytes);
            let _ = Watch::default().feed(&begun);
        }
    }

    #[test]
    fn a_stream_cut_anywhere_has_no_closing_statement() {
        let bytes = stream(2);
        for end in 0..bytes.len() {
            let mut watch = Watch::default();
            assert!(watch.feed(&bytes[..end]).unwrap() <= end);
            assert_eq!(watch.summary(), None, "{end}");
        }
    }

    #[test]
    fn what_comes_behind_the_statement_takes_it_back() {
        let mut bytes = stream(1);
        put_isb_comment(&mut bytes, 0, 5, "7 packets missed");
        let mut watch = Watch::default();
        assert_eq!(watch.feed(&bytes), Ok(bytes.len()));
        assert_eq!(watch.summary(), None);
        assert_eq!(watch.take_comments(), ["7 packets missed"]);
        assert!(watch.take_comments().is_empty());
    }

    #[test]
    fn other_bytes_are_refused() {
        let error = Watch::default().feed(b"{\"error\":1}").unwrap_err();
        assert!(error.to_string().contains("section header"), "{error}");
    }
}
