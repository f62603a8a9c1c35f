//! One simulated file: what reads see, what is durable, and every unsynced version between the two.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fault::Chooser;

/// Bytes a drive writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

const SECTOR: u64 = SECTOR_BYTES as u64;

/// Content of a sector; absent means zeros.
type Sector = Option<Arc<[u8; SECTOR_BYTES]>>;
type Sectors = BTreeMap<u64, Arc<[u8; SECTOR_BYTES]>>;

/// What one unsynced operation made of one sector.
#[derive(Clone)]
struct Version {
    op: u64,
    data: Sector,
    /// Made by shortening the file, so it comes and goes together with that length.
    cut: bool,
}

/// A write or change of length that no sync has covered yet.
#[derive(Clone)]
struct Op {
    first_sector: u64,
    sectors: u64,
    /// When the caller was told of its success; `None` while it runs, after it failed, or after a
    /// failed sync.
    completed: Option<u64>,
}

#[derive(Clone, Default)]
pub(super) struct Image {
    live: Sectors,
    live_len: u64,
    durable: Sectors,
    durable_len: u64,
    /// Oldest first, per sector.
    versions: BTreeMap<u64, Vec<Version>>,
    /// (operation, length), oldest first.
    lengths: Vec<(u64, u64)>,
    ops: BTreeMap<u64, Op>,
}

impl Image {
    /// A file whose bytes are all durable.
    pub(super) fn durable(bytes: &[u8]) -> Self {
        let mut image = Self::default();
        image.write(0, bytes, 0, true);
        image.complete(0, 0);
        image.sync(0);
        image
    }

    pub(super) fn len(&self) -> u64 {
        self.live_len
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let count = self.live_len.saturating_sub(offset).min(buf.len() as u64) as usize;
        for piece in pieces(offset, count) {
            let into = &mut buf[piece.from..piece.from + piece.bytes];
            match self.live.get(&piece.sector) {
                Some(data) => into.copy_from_slice(&data[piece.start..piece.start + piece.bytes]),
                None => into.fill(0),
            }
        }
        count
    }

    /// Starts write `op`. With `visible` off, reads keep the old content (a write that will be
    /// reported as failed).
    pub(super) fn write(&mut self, op: u64, data: &[u8], offset: u64, visible: bool) {
        let first_sector = offset / SECTOR;
        let end = offset + data.len() as u64;
        let sectors = end.div_ceil(SECTOR) - first_sector;
        self.ops.insert(op, Op { first_sector, sectors, completed: None });
        for piece in pieces(offset, data.len()) {
            let mut bytes = self.live.get(&piece.sector).map_or([0; SECTOR_BYTES], |s| **s);
            bytes[piece.start..piece.start + piece.bytes]
                .copy_from_slice(&data[piece.from..piece.from + piece.bytes]);
            let bytes = Arc::new(bytes);
            if visible {
                self.live.insert(piece.sector, Arc::clone(&bytes));
            }
            let version = Version { op, data: Some(bytes), cut: false };
            self.versions.entry(piece.sector).or_default().push(version);
        }
        if visible && end > self.live_len && !data.is_empty() {
            self.live_len = end;
            self.lengths.push((op, end));
        }
    }

    /// Sets the length as operation `op`; bytes beyond it are zeros if the file grows again.
    pub(super) fn set_len(&mut self, op: u64, len: u64) {
        self.ops.insert(op, Op { first_sector: 0, sectors: 0, completed: None });
        for (sector, data) in self.live.split_off(&(len / SECTOR)) {
            let kept = if sector == len / SECTOR { (len % SECTOR) as usize } else { 0 };
            let data = (kept > 0).then(|| {
                let mut bytes = *data;
                bytes[kept..].fill(0);
                Arc::new(bytes)
            });
            if let Some(data) = &data {
                self.live.insert(sector, Arc::clone(data));
            }
            self.versions.entry(sector).or_default().push(Version { op, data, cut: true });
        }
        self.live_len = len;
        self.lengths.push((op, len));
    }

    /// The caller learns at time `now` that operation `op` succeeded.
    pub(super) fn complete(&mut self, op: u64, now: u64) {
        if let Some(op) = self.ops.get_mut(&op) {
            op.completed = Some(now);
        }
    }

    /// A sync that was submitted at time `until` succeeds: operations completed by then are
    /// durable.
    pub(super) fn sync(&mut self, until: u64) {
        let ops = &self.ops;
        let covered = |op: &u64| ops.get(op).and_then(|o| o.completed).is_some_and(|t| t <= until);
        self.versions.retain(|sector, versions| {
            if let Some(last) = versions.iter().rposition(|v| covered(&v.op)) {
                match &versions[last].data {
                    Some(data) => _ = self.durable.insert(*sector, Arc::clone(data)),
                    None => _ = self.durable.remove(sector),
                }
                // Versions that were submitted earlier and have not completed are dropped with the
                // rest: nobody overlaps writes in flight, so they cannot land on top of a later
                // one.
                versions.drain(..=last);
            }
            !versions.is_empty()
        });
        if let Some(last) = self.lengths.iter().rposition(|(op, _)| covered(op)) {
            self.durable_len = self.lengths[last].1;
            self.lengths.drain(..=last);
        }
        self.ops.retain(|_, op| op.completed.is_none_or(|t| t > until));
    }

    /// A sync that was submitted at time `until` fails: what it should have covered is never
    /// covered again.
    pub(super) fn sync_failed(&mut self, until: u64) {
        for op in self.ops.values_mut() {
            op.completed = op.completed.filter(|t| *t > until);
        }
    }

    /// What no sync has covered so far is never covered.
    pub(super) fn drop_cache(&mut self) {
        self.versions.clear();
        self.lengths.clear();
        self.ops.clear();
    }

    /// Overwrites bytes on the medium itself, for bit rot and old content. The length stays.
    pub(super) fn poke(&mut self, data: &[u8], offset: u64) {
        let flat = |sectors: &mut Sectors| {
            for piece in pieces(offset, data.len()) {
                let sector =
                    sectors.entry(piece.sector).or_insert_with(|| Arc::new([0; SECTOR_BYTES]));
                Arc::make_mut(sector)[piece.start..piece.start + piece.bytes]
                    .copy_from_slice(&data[piece.from..piece.from + piece.bytes]);
            }
        };
        flat(&mut self.live);
        flat(&mut self.durable);
        for piece in pieces(offset, data.len()) {
            self.versions.remove(&piece.sector);
        }
    }

    /// The file as found after a crash.
    pub(super) fn crash(&self, inode: u64, chooser: &Chooser) -> Self {
        let (length_op, len) = self
            .lengths
            .iter()
            .rfind(|(op, _)| chooser.keeps_len(inode, *op))
            .map_or((None, self.durable_len), |(op, len)| (Some(*op), *len));
        let mut sectors = self.durable.clone();
        for (sector, versions) in &self.versions {
            // Changes of length are journalled: a shortening happened exactly if it, or a later
            // length, was kept.
            let kept = versions.iter().rev().find(|v| {
                if v.cut {
                    return length_op.is_some_and(|op| v.op <= op);
                }
                let op = self.ops.get(&v.op);
                let (first, count) = op.map_or((*sector, 1), |op| (op.first_sector, op.sectors));
                chooser.keeps_sector(inode, v.op, sector.saturating_sub(first), count)
            });
            match kept.map(|v| &v.data) {
                Some(Some(data)) => _ = sectors.insert(*sector, Arc::clone(data)),
                Some(None) => _ = sectors.remove(sector),
                None => {}
            }
        }
        let tail = sectors.split_off(&(len / SECTOR));
        if !len.is_multiple_of(SECTOR)
            && let Some(data) = tail.get(&(len / SECTOR))
        {
            let mut bytes = **data;
            bytes[(len % SECTOR) as usize..].fill(0);
            sectors.insert(len / SECTOR, Arc::new(bytes));
        }
        Self {
            live: sectors.clone(),
            live_len: len,
            durable: sectors,
            durable_len: len,
            ..Self::default()
        }
    }
}

/// A part of a byte range that lies within one sector.
struct Piece {
    sector: u64,
    /// First byte within the sector.
    start: usize,
    /// First byte within the caller's buffer.
    from: usize,
    bytes: usize,
}

fn pieces(offset: u64, count: usize) -> impl Iterator<Item = Piece> {
    let mut from = 0;
    std::iter::from_fn(move || {
        if from == count {
            return None;
        }
        let at = offset + from as u64;
        let start = (at % SECTOR) as usize;
        let bytes = (SECTOR_BYTES - start).min(count - from);
        let piece = Piece { sector: at / SECTOR, start, from, bytes };
        from += bytes;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fault::Survival;
    use super::*;

    fn bytes(image: &Image) -> Vec<u8> {
        let mut out = vec![0xEE; image.len() as usize];
        assert_eq!(image.read(&mut out, 0), out.len());
        out
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write { offset: u64, len: usize, fill: u8 },
        SetLen(u64),
        Sync,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u64..3000, 0usize..1500, any::<u8>())
                .prop_map(|(offset, len, fill)| Step::Write { offset, len, fill }),
            1 => (0u64..4000).prop_map(Step::SetLen),
            1 => Just(Step::Sync),
        ]
    }

    proptest! {
        /// Against a plain vector: reads see every write; a crash that keeps everything equals the
        /// live file, one that keeps nothing equals the last synced file; any other crash has,
        /// sector by sector, old or new bytes.
        #[test]
        fn image_equals_a_vector(steps in prop::collection::vec(step(), 1..40), seed: u64) {
            let mut image = Image::default();
            let (mut model, mut synced) = (Vec::<u8>::new(), Vec::<u8>::new());
            let mut history: Vec<Vec<u8>> = vec![Vec::new()];
            for (n, step) in steps.into_iter().enumerate() {
                let n = n as u64 + 1;
                match step {
                    Step::Write { offset, len, fill } => {
                        image.write(n, &vec![fill; len], offset, true);
                        let end = offset as usize + len;
                        if len > 0 {
                            model.resize(model.len().max(end), 0);
                            model[offset as usize..end].fill(fill);
                        }
                    }
                    Step::SetLen(len) => {
                        image.set_len(n, len);
                        model.resize(len as usize, 0);
                    }
                    Step::Sync => {
                        image.sync(n);
                        synced = model.clone();
                        history.clear();
                    }
                }
                image.complete(n, n);
                history.push(model.clone());
                prop_assert_eq!(bytes(&image), model.clone());
            }
            let crash = |survival| bytes(&image.crash(1, &Chooser::new(survival, seed)));
            prop_assert_eq!(crash(Survival::Everything), model);
            prop_assert_eq!(crash(Survival::Nothing), synced.clone());
            history.push(synced);
            for survival in [Survival::Writes, Survival::Torn, Survival::Sectors, Survival::Any] {
                let found = crash(survival);
                prop_assert!(history.iter().any(|h| h.len() == found.len()));
                for (at, sector) in found.chunks(SECTOR_BYTES).enumerate() {
                    let old = |h: &Vec<u8>| {
                        let from = (at * SECTOR_BYTES).min(h.len());
                        let mut s = h[from..(from + SECTOR_BYTES).min(h.len())].to_vec();
                        s.resize(SECTOR_BYTES, 0);
                        s[..sector.len()] == *sector
                    };
                    prop_assert!(
                        sector.iter().all(|b| *b == 0) || history.iter().any(old)
                            || at == found.len() / SECTOR_BYTES,
                        "sector {} was never like this", at
                    );
                }
            }
        }
    }

    #[test]
    fn sync_covers_only_what_was_complete_when_it_was_submitted() {
        let mut image = Image::default();
        image.write(1, &[1; 512], 0, true);
        image.write(2, &[2; 512], 512, true);
        image.complete(1, 10);
        image.complete(2, 12);
        image.sync(11);
        let found = image.crash(1, &Chooser::new(Survival::Nothing, 0));
        assert_eq!(bytes(&found), vec![1; 512]);
    }

    #[test]
    fn failed_sync_is_never_made_good() {
        let mut image = Image::default();
        image.write(1, &[1; 512], 0, true);
        image.complete(1, 1);
        image.sync_failed(1);
        image.sync(5);
        assert_eq!(image.crash(1, &Chooser::new(Survival::Nothing, 0)).len(), 0);
        assert_eq!(image.crash(1, &Chooser::new(Survival::Everything, 0)).len(), 512);
    }
}
