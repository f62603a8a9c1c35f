//! A segment goes to the tier. Nothing counts before it was read back.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wirevault_format::LifeId;
use wirevault_index::tier::{content_bytes, encode_key, hangs_from, key_object, segment_object};
use wirevault_index::volume::segment_file_name;
use wirevault_index::{IndexError, Segment};
use wirevault_lifecycle::audit::{Event, Who};
use wirevault_lifecycle::tier::Row;
use wirevault_media::{MediaFile, ObjectError, ObjectFault, ObjectFile, OpenMode};
use wirevault_storage::Store;

use super::{Tier, is_here};
use crate::DaemonError;
use crate::lifecycle::audit::Audit;

/// Bytes that are read, sent and compared at a time.
const PIECE_BYTES: u64 = 4 << 20;

impl Tier {
    /// Moves a closed segment. One that is there already only loses what lies on its volume, if
    /// that is to go.
    ///
    /// # Errors
    /// `Object`, `Unlike`, `Read`, `Store`, `Audit`: it lies where it lay, and is listed as coming
    /// at most.
    pub(super) fn take(
        &self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        segment: &Segment,
        reason: &str,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), DaemonError> {
        let moved = self.put(store, audit, who, segment, reason, stop);
        let moved = moved.and_then(|lies_there| {
            if !lies_there {
                // It was deleted meanwhile, and so has what lies in the tier to be.
                return self.resume(store, audit);
            }
            // While they can be had of what lies here.
            self.put_flows(store, segment.entry.life)?;
            match self.options.keep_local {
                true => Ok(()),
                false => Ok(store.let_go(segment.entry.life).map(drop)?),
            }
        });
        self.watched(|trouble| &mut trouble.moving, moved)
    }

    /// Says whether it lies there; if not, it is nowhere else either.
    fn put(
        &self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        segment: &Segment,
        reason: &str,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<bool, DaemonError> {
        let _alone = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = &segment.entry;
        let listed = |tier: &Self| tier.list().content().rows.contains_key(&entry.life);
        let Some(media) = segment.media().filter(|_| !listed(self)) else { return Ok(true) };
        let _under_way = UnderWay::new(self, entry.life);
        if !is_here(store, entry) {
            return Ok(false);
        }
        // The quota leaves copies for holds alone.
        let _pinned = (entry.hold == 0).then(|| store.pin(segment)).transpose()?;
        let file = media.open(&segment_file_name(segment.place), OpenMode::Read);
        let file = file.map_err(|source| unread(segment, source))?;
        let name = segment_object(store.id(), entry.life);
        let mut row = Row::coming(entry.clone(), segment.volume, segment.place);
        let is_news = self.list().coming(&row)?;
        let mut here = Pieces::new(&*file, content_bytes(entry), self.options.rate, stop);
        let put = self.objects.put(&name, &mut || here.next());
        let is_new = match put {
            Ok(()) => true,
            // Of an attempt that was cut off; whether it is whole shows below.
            Err(error) if error.fault == ObjectFault::Exists => false,
            Err(error) => {
                if is_news && is_turned_away(&error) {
                    // Nothing lies there, and the configuration may name another place next.
                    self.list().gone(entry.life)?;
                }
                return Err(error.into());
            }
        };
        // If nothing was sent, nothing was summed up.
        while here.next().map_err(|source| unread(segment, source))?.is_some() {}
        if let Err(error) = self.compare(&name, &here, stop) {
            if is_new && matches!(error, DaemonError::Unlike { .. }) {
                // Nobody else can have made it. If it stays, the next attempt says what is wrong.
                let _ = self.objects.delete(&name);
            }
            return Err(error);
        }
        if !is_here(store, entry) {
            return Ok(false);
        }
        if let (Some(keys), Some(Ok(provider))) = (segment.keys()?, self.keys.get(&None)) {
            let sealed = encode_key(store.id(), &keys, &**provider);
            let sealed = sealed
                .map_err(|source| IndexError::Key { volume: self.objects.describe(), source })?;
            let wrapped_by = hangs_from(&sealed, &**provider);
            let (name, mut pieces) = (key_object(store.id(), entry.life, false), Some(sealed));
            match self.objects.put(&name, &mut || Ok(pieces.take())) {
                Ok(()) => row.key.hangs_from = wrapped_by,
                // Of an attempt that was cut off, perhaps under a former key; that is seen later.
                Err(error) if error.fault == ObjectFault::Exists => {}
                Err(error) => return Err(error.into()),
            }
        }
        (row.crc, row.flows) = (Some(here.crc), self.flows_wanted(entry));
        let tiered = self.tiered(store, &row);
        // As a reader will: with the key that lies there, from header to index.
        Segment::tiered(&tiered).open()?;

        let mut list = self.list();
        if !is_here(store, entry) {
            return Ok(false);
        }
        audit.write(
            who,
            Event::Tiered {
                segment: entry.ordinal,
                life: entry.life.to_string(),
                reason: reason.to_owned(),
                place: self.objects.describe(),
                bytes: here.bytes,
                crc: format!("{:08x}", here.crc),
            },
        )?;
        list.add(row)?;
        self.show(&list);
        store.show_tiered(&[tiered]);
        let (segment, bytes) = (segment.name(), here.bytes);
        tracing::info!(segment, bytes, reason, "a segment lies in the tier");
        Ok(true)
    }

    /// Whether the object is what was read here.
    fn compare(
        &self,
        name: &str,
        here: &Pieces<'_>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), DaemonError> {
        let unlike = |what: String| DaemonError::Unlike {
            name: name.to_owned(),
            place: self.objects.describe(),
            what,
        };
        let bytes = self.objects.bytes(name)?.unwrap_or(0);
        if bytes != here.bytes {
            return Err(unlike(format!("it has {bytes} bytes instead of {}", here.bytes)));
        }
        let file = ObjectFile::new(Arc::clone(&self.objects), name, bytes);
        let mut there = Pieces::new(&file, bytes, self.options.rate, stop);
        let failed = |source: io::Error| match ObjectError::behind(&source) {
            Some(_) => DaemonError::Read(IndexError::Io { what: name.to_owned(), source }),
            None => DaemonError::System { what: "reading an object back", source },
        };
        while there.next().map_err(failed)?.is_some() {}
        match there.crc == here.crc {
            true => Ok(()),
            false => Err(unlike(format!("its CRC32C is {:08x}, not {:08x}", there.crc, here.crc))),
        }
    }
}

/// This segment is being moved: what it leaves in the tier is not taken for left over.
struct UnderWay<'a>(&'a Mutex<Option<LifeId>>);

impl<'a> UnderWay<'a> {
    fn new(tier: &'a Tier, life: LifeId) -> Self {
        *tier.under_way.lock().unwrap_or_else(PoisonError::into_inner) = Some(life);
        Self(&tier.under_way)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Whether the place took nothing of what it was given.
fn is_turned_away(error: &ObjectError) -> bool {
    use ObjectFault::{NoCredentials, NoPlace, Refused};
    matches!(error.fault, NoPlace | Refused | NoCredentials)
}

fn unread(segment: &Segment, source: io::Error) -> DaemonError {
    DaemonError::Read(IndexError::Io { what: format!("segment {}", segment.name()), source })
}

/// A file piece by piece, no faster than it may go, with the checksum of what was read.
struct Pieces<'a> {
    file: &'a dyn MediaFile,
    at: u64,
    bytes: u64,
    crc: u32,
    rate: Option<u64>,
    began: Instant,
    stop: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Pieces<'a> {
    fn new(
        file: &'a dyn MediaFile,
        bytes: u64,
        rate: Option<u64>,
        stop: &'a (dyn Fn() -> bool + Sync),
    ) -> Self {
        Self { file, at: 0, bytes, crc: 0, rate, began: Instant::now(), stop }
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.at as f64 / rate.max(1) as f64);
            std::thread::sleep(due.saturating_sub(self.began.elapsed()));
        }
        if self.at == self.bytes {
            return Ok(None);
        }
        if (self.stop)() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the recorder stops"));
        }
        let mut piece = vec![0; (self.bytes - self.at).min(PIECE_BYTES) as usize];
        self.file.read_exact_at(&mut piece, self.at)?;
        self.crc = crc32c::crc32c_append(self.crc, &piece);
        self.at += piece.len() as u64;
        Ok(Some(piece))
    }
}
