//! Ethernet with VLAN tags and MPLS labels: what is removed behind a frame's addresses.

use wirevault_format::LinkType;

use super::{
    ADDRESSES_BYTES, Carried, Cut, ETHERNET_BYTES, Found, HEAD_BYTES_MAX, Inner, TAGS_MAX, Tunnel,
    Walk,
};
use crate::outer::OuterKind;
use crate::tunnel::{Pseudowire, pseudowire};
use crate::walk::half;

/// MPLS labels of one frame at most; real stacks have three or four.
const LABELS_MAX: usize = 8;

impl<'a> Walk<'_, 'a, '_> {
    #[inline]
    pub(super) fn ethernet(&mut self, at: usize, end: usize, tag: Option<[u8; 4]>) -> Found<'a> {
        let Some(head) = self.head::<ETHERNET_BYTES>(at) else { return Found::Nothing };
        let before = self.outer.mark();
        let kind = half(head, ADDRESSES_BYTES);
        // Most frames: IP at once.
        let plain = tag.is_none() && (kind == 0x0800 || kind == 0x86dd);
        if plain {
            let carried = self.ip(at + ETHERNET_BYTES, end);
            return match carried {
                Carried::Tunnel(cut) => Found::Tunnel(cut),
                Carried::Fragment => Found::Fragment,
                Carried::Other => {
                    self.outer.back_to(before);
                    Found::Nothing
                }
            };
        }
        let Some(tagged) = self.tags(at + ADDRESSES_BYTES, tag) else { return Found::Nothing };
        self.tagged(at, end, &tagged)
    }

    /// Reads VLAN tags from the type field at `type_at` on. `None`: there are too many, or they
    /// were cut off.
    fn tags(&self, type_at: usize, tag: Option<[u8; 4]>) -> Option<Tags> {
        let mut tags = Tags { tags: [[0; 4]; TAGS_MAX], count: 0, type_at, taken_out: false };
        if let Some(tag) = tag {
            tags.tags[0] = tag;
            (tags.count, tags.taken_out) = (1, true);
        }
        loop {
            let kind = half(self.head::<2>(tags.type_at)?, 0);
            if !matches!(kind, 0x8100 | 0x88a8 | 0x9100) {
                return Some(tags);
            }
            *tags.tags.get_mut(tags.count)? = *self.head::<4>(tags.type_at)?;
            tags.count += 1;
            tags.type_at += 4;
        }
    }

    fn tagged(&mut self, at: usize, end: usize, tags: &Tags) -> Found<'a> {
        let before = self.outer.mark();
        let Some(kind) = self.head::<2>(tags.type_at) else { return Found::Nothing };
        let (mut kind, mut payload) = (*kind, tags.type_at + 2);
        let fits = tags.list().iter().all(|tag| self.outer.push(OuterKind::Vlan, tag));
        let labels = self.outer.mark();
        let mpls = matches!(half(&kind, 0), 0x8847 | 0x8848) && self.decap.has(Tunnel::Mpls);
        let mut unlabelled = false;
        if fits && mpls {
            match self.labels(payload, end) {
                Some(Labelled::Frame(cut)) => return Found::Tunnel(cut),
                Some(Labelled::Ip { at, v6 }) => {
                    (kind, payload) = (if v6 { [0x86, 0xdd] } else { [0x08, 0x00] }, at);
                    unlabelled = true;
                }
                None => self.outer.back_to(labels),
            }
        }
        if fits && matches!(kind, [0x08, 0x00] | [0x86, 0xdd]) {
            let here = self.outer.mark();
            match self.ip(payload, end) {
                Carried::Tunnel(cut) => return Found::Tunnel(cut),
                Carried::Fragment if !unlabelled && !self.decap.has(Tunnel::Vlan) => {
                    self.outer.back_to(before);
                    return Found::Fragment;
                }
                Carried::Fragment | Carried::Other => self.outer.back_to(here),
            }
        }
        let untagged = tags.count > 0 && self.decap.has(Tunnel::Vlan);
        if !fits || !(untagged || unlabelled) {
            self.outer.back_to(before);
            return Found::Nothing;
        }
        if !untagged {
            // The tags stay in the frame, so they are no outer headers.
            self.outer.remove(before, labels);
        }
        Found::Rewritten(self.rewrite(at, end, tags, untagged, kind, payload))
    }

    /// The frame at `at` with its addresses, without tags if `untagged`, then `kind` and what lies
    /// behind `payload`.
    fn rewrite(
        &self,
        at: usize,
        end: usize,
        tags: &Tags,
        untagged: bool,
        kind: [u8; 2],
        payload: usize,
    ) -> Inner<'a> {
        let mut inner = Inner {
            link: LinkType::ETHERNET,
            head: [0; HEAD_BYTES_MAX],
            head_bytes: 0,
            data: &self.data[at..],
            wire_len: (end - at) as u32,
            truncated: false,
        };
        let only_taken_out = untagged && tags.taken_out && tags.count == 1;
        if !(only_taken_out && payload == at + ETHERNET_BYTES) {
            let mut put = |bytes: &[u8]| {
                inner.head[inner.head_bytes..inner.head_bytes + bytes.len()].copy_from_slice(bytes);
                inner.head_bytes += bytes.len();
            };
            put(&self.data[at..at + ADDRESSES_BYTES]);
            if !untagged {
                tags.list().iter().for_each(|tag| put(tag));
            }
            put(&kind);
            inner.data = &self.data[payload..];
            inner.wire_len = (end.saturating_sub(payload) + inner.head_bytes) as u32;
        }
        let most = end.saturating_sub(self.data.len() - inner.data.len());
        inner.data = &inner.data[..inner.data.len().min(most)];
        inner
    }

    /// Records a label stack and says what it carries; `None` if nothing known.
    fn labels(&mut self, at: usize, end: usize) -> Option<Labelled> {
        let mut at = at;
        for _ in 0..LABELS_MAX {
            let entry = self.head::<4>(at)?;
            if !self.outer.push(OuterKind::Mpls, entry) {
                return None;
            }
            at += 4;
            if entry[2] & 1 == 0 {
                continue;
            }
            let payload = self.data.get(at..)?;
            match pseudowire(payload) {
                Some(Pseudowire::Plain) => {}
                Some(Pseudowire::ControlWord) => {
                    if !self.outer.push(OuterKind::ControlWord, payload.get(..4)?) {
                        return None;
                    }
                    at += 4;
                }
                None => {
                    self.holds_ip(at, end)?;
                    return Some(Labelled::Ip { at, v6: payload.first()? >> 4 == 6 });
                }
            }
            return self.cut(LinkType::ETHERNET, at, end).map(Labelled::Frame);
        }
        None
    }
}

/// VLAN tags of a frame.
struct Tags {
    tags: [[u8; 4]; TAGS_MAX],
    count: usize,
    /// Where the type behind them stands.
    type_at: usize,
    /// The first one is not in the frame: the kernel took it out.
    taken_out: bool,
}

impl Tags {
    fn list(&self) -> &[[u8; 4]] {
        &self.tags[..self.count.min(TAGS_MAX)]
    }
}

/// What a label stack carries.
enum Labelled {
    Frame(Cut),
    Ip { at: usize, v6: bool },
}
