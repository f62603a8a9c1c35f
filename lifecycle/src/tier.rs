//! The list of what lies in the object tier. A segment that its own volume has let go of is found
//! by nothing else.
//!
//! # Format
//! File `tier.log` in the folder of the audit log: lines of text, each eight hexadecimal digits
//! (CRC32C of what follows the space), a space, and a JSON object of a [`Line`]. A line is durable
//! before what it tells of counts. A last line without its end was cut off by a crash and is left
//! out; any other line that does not read is an error, because a segment may hang from it.
//!
//! | line | means |
//! |---|---|
//! | `tier` | everything lies at this place from here on; the first line |
//! | `coming` | segment and key may lie there, or parts of them; nobody reads them yet |
//! | `kept` | segment and key lie there, read back; with `flows` their Parquet file may, too |
//! | `flows` | it does, read back |
//! | `key` | its key lies in the object that is named, read back |
//! | `forgetting` | they are to go, and nobody reads them any more |
//! | `gone` | they are not there |
//!
//! Opening the list for writing leaves out what is gone: it is then written anew, to a file of
//! another name, which is renamed. A list that is put back from a checkpoint leaves out what was
//! coming: that may have come since, and be all that is left of its segment.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wirevault_format::ids::ParseIdError;
use wirevault_format::table::{ENTRY_BYTES, Entry, SegmentEntry};
use wirevault_format::{LifeId, StoreId};
use wirevault_media::place_of;

use crate::holds::replace;
use crate::{AuditError, hex};

/// Name of the list within the folder of the audit log.
pub const FILE: &str = "tier.log";

/// A segment in the tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Entry of the segment table, as it was when the segment was closed.
    pub entry: SegmentEntry,
    /// Number of the volume that it lay on.
    pub volume: u16,
    /// Its place there.
    pub place: u32,
    /// CRC32C of its object; nothing if it never was read back.
    pub crc: Option<u32>,
    /// The store that put it there, if that is not the one whose list this is: its volumes are
    /// gone, and this one took its place.
    pub store: Option<StoreId>,
    /// Where its key lies.
    pub key: RowKey,
    /// Whether its flows lie beside it.
    pub flows: Flows,
    /// It is to go.
    pub forgetting: bool,
}

/// Where the key of a segment lies, which has two objects in turn.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RowKey {
    /// It is the second of them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub second: bool,
    /// Id of the key that it hangs from; nothing as long as nobody has looked, and of a plain
    /// segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hangs_from: Option<String>,
    /// The other one may lie there as well.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub other: bool,
}

/// Whether the flows of a segment lie beside it as Parquet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Flows {
    /// They do not, and nobody wants them there.
    #[default]
    None,
    /// They have to be put; an attempt that was cut off may have done so.
    Due,
    /// They do.
    There,
}

/// One line, as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Line {
    /// Where all of it lies.
    Tier {
        /// The place, as the configuration names it.
        url: String,
    },
    /// A segment is on its way there.
    Coming {
        /// The entry of the segment table, hex.
        entry: String,
        /// Number of the volume that it lies on.
        volume: u16,
        /// Its place there.
        place: u32,
        /// Id of the store that was to put it there, hex; nothing for the list's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        store: Option<String>,
    },
    /// A segment lies there.
    Kept {
        /// The entry of the segment table, hex.
        entry: String,
        /// Number of the volume that it lay on.
        volume: u16,
        /// Its place there.
        place: u32,
        /// CRC32C of its object.
        crc: u32,
        /// Id of the store that put it there, hex; nothing for the list's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        store: Option<String>,
        /// Its flows come there, too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        flows: bool,
        /// Where its key lies.
        #[serde(default, skip_serializing_if = "RowKey::is_unknown")]
        key: RowKey,
    },
    /// The key of a segment lies there.
    Key {
        /// Its life id, hex.
        life: String,
        /// Where.
        key: RowKey,
    },
    /// The flows of a segment lie there.
    Flows {
        /// Its life id, hex.
        life: String,
    },
    /// A segment is to go.
    Forgetting {
        /// Its life id, hex.
        life: String,
    },
    /// A segment is not there any more.
    Gone {
        /// Its life id, hex.
        life: String,
    },
}

/// What the list says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Where all of it lies; nothing if nothing ever did.
    pub url: Option<String>,
    /// By life.
    pub rows: BTreeMap<LifeId, Row>,
    /// What is on its way there, or was when that was cut off: nothing of it counts, but it may lie
    /// there.
    pub coming: BTreeMap<LifeId, Row>,
}

/// The list, for its one writer.
#[derive(Debug)]
pub struct TierList {
    path: PathBuf,
    file: File,
    content: Content,
    /// A write failed: nobody knows what its last line is.
    failed: bool,
}

/// Reads the list in the folder of an audit log; there may be none.
///
/// # Errors
/// The system's; a line that does not read counts as unreadable.
pub fn read(folder: &Path) -> Result<Content, AuditError> {
    let path = folder.join(FILE);
    let failed = |source| AuditError::Io { path: path.clone(), what: "read", source };
    match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Content::default()),
        text => text.and_then(|text| decode(&text)).map_err(failed),
    }
}

/// A list of a checkpoint as bytes, as it is put back: without what was coming then. With `former`
/// it is that of a store which takes the place of this one, whose list it was.
///
/// # Errors
/// A line that does not read.
pub fn put_back(list: &[u8], former: Option<StoreId>) -> io::Result<Vec<u8>> {
    let mut content = decode(list)?;
    content.coming.clear();
    for row in content.rows.values_mut() {
        row.store = row.store.or(former);
    }
    Ok(content.encode()?.into_bytes())
}

fn decode(text: &[u8]) -> io::Result<Content> {
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut content = Content::default();
    for (number, line) in (1..).zip(text[..whole].split_inclusive(|byte| *byte == b'\n')) {
        let done = parse(line.trim_ascii_end()).and_then(|line| content.take(line));
        done.map_err(|why| io::Error::other(format!("line {number}: {why}")))?;
    }
    Ok(content)
}

impl TierList {
    /// Opens the list of a tier for writing. It is made if it is not there.
    ///
    /// # Errors
    /// As [`read`]; segments lie at another place.
    pub fn open(folder: &Path, url: &str) -> Result<Self, AuditError> {
        let mut content = read(folder)?;
        let path = folder.join(FILE);
        let failed = |source| AuditError::Io { path: path.clone(), what: "write", source };
        if let Some(other) = content.url.as_ref().filter(|other| place_of(other) != place_of(url))
            && !content.is_empty()
        {
            let segments = content.len();
            let why = format!("{segments} segments lie at {other}; `tier.url` has to stay that");
            return Err(failed(io::Error::other(why)));
        }
        content.url = Some(url.to_owned());
        content.encode().and_then(|text| replace(&path, text.as_bytes())).map_err(failed)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(failed)?;
        Ok(Self { path, file, content, failed: false })
    }

    /// What it says.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// A segment is on its way to the tier. Durable on return. Says whether that is news.
    ///
    /// # Errors
    /// The system's: nothing may be put there then.
    pub fn coming(&mut self, row: &Row) -> Result<bool, AuditError> {
        match self.content.coming.contains_key(&row.entry.life) {
            true => Ok(false),
            false => self.write(Row { crc: None, ..row.clone() }.line()).map(|()| true),
        }
    }

    /// A segment and its key lie in the tier. Durable on return.
    ///
    /// # Errors
    /// The system's: the segment does not count as tiered then.
    pub fn add(&mut self, row: Row) -> Result<(), AuditError> {
        self.write(row.line())
    }

    /// The flows of a segment lie beside it. Durable on return.
    ///
    /// # Errors
    /// The system's: they are put again.
    pub fn flows(&mut self, life: LifeId) -> Result<(), AuditError> {
        self.write(Line::Flows { life: life.to_string() })
    }

    /// The key of a segment lies there. Durable on return.
    ///
    /// # Errors
    /// The system's: nothing that was listed before may go then.
    pub fn key(&mut self, life: LifeId, key: RowKey) -> Result<(), AuditError> {
        self.write(Line::Key { life: life.to_string(), key })
    }

    /// A segment is to go. Durable on return. One that is not listed is none of ours.
    ///
    /// # Errors
    /// The system's: nothing may go then.
    pub fn forgetting(&mut self, life: LifeId) -> Result<(), AuditError> {
        self.write(Line::Forgetting { life: life.to_string() })
    }

    /// A segment is not there any more. Durable on return.
    ///
    /// # Errors
    /// The system's: it is looked for again.
    pub fn gone(&mut self, life: LifeId) -> Result<(), AuditError> {
        self.write(Line::Gone { life: life.to_string() })
    }

    fn write(&mut self, line: Line) -> Result<(), AuditError> {
        let failed = |source| AuditError::Io { path: self.path.clone(), what: "write", source };
        if self.failed {
            let why = "an earlier write failed; the next start opens it again";
            return Err(failed(io::Error::other(why)));
        }
        let text = encode(&line).map_err(failed)?;
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            self.failed = true;
            return Err(AuditError::Io { path: self.path.clone(), what: "write", source });
        }
        // What we have just made reads back.
        let _ = self.content.take(line);
        Ok(())
    }
}

impl Row {
    /// A segment of the list's own store that goes to the tier, from this place on this volume.
    pub fn coming(entry: SegmentEntry, volume: u16, place: u32) -> Self {
        let (key, flows) = Default::default();
        Self { entry, volume, place, crc: None, store: None, key, flows, forgetting: false }
    }

    fn line(&self) -> Line {
        let entry = hex::encode(&self.entry.encode());
        let Self { volume, place, crc, flows, store, .. } = *self;
        let (store, flows) = (store.map(|store| store.to_string()), flows != Flows::None);
        let Some(crc) = crc else { return Line::Coming { entry, volume, place, store } };
        Line::Kept { entry, volume, place, crc, store, flows, key: self.key.clone() }
    }
}

impl RowKey {
    fn is_unknown(&self) -> bool {
        *self == Self::default()
    }
}

impl Content {
    /// Nothing lies there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Segments of which something lies there, or may.
    pub fn len(&self) -> usize {
        self.rows.len() + self.coming.len()
    }

    fn take(&mut self, line: Line) -> Result<(), String> {
        match line {
            Line::Tier { url } => self.url = Some(url),
            Line::Coming { entry, volume, place, store } => {
                let store = decode_store(store)?;
                let row = Row { store, ..Row::coming(decode_entry(&entry)?, volume, place) };
                self.coming.insert(row.entry.life, row);
            }
            Line::Kept { entry, volume, place, crc, store, flows, key } => {
                let store = decode_store(store)?;
                let flows = if flows { Flows::Due } else { Flows::None };
                let came = Row::coming(decode_entry(&entry)?, volume, place);
                let row = Row { crc: Some(crc), store, key, flows, ..came };
                self.coming.remove(&row.entry.life);
                self.rows.insert(row.entry.life, row);
            }
            Line::Flows { life } => {
                if let Some(row) = self.rows.get_mut(&decode_life(&life)?) {
                    row.flows = Flows::There;
                }
            }
            Line::Key { life, key } => {
                if let Some(row) = self.rows.get_mut(&decode_life(&life)?) {
                    row.key = key;
                }
            }
            Line::Forgetting { life } => {
                let life = decode_life(&life)?;
                self.rows.extend(self.coming.remove_entry(&life));
                if let Some(row) = self.rows.get_mut(&life) {
                    row.forgetting = true;
                }
            }
            Line::Gone { life } => {
                let life = decode_life(&life)?;
                self.coming.remove(&life);
                self.rows.remove(&life);
            }
        }
        Ok(())
    }

    fn encode(&self) -> io::Result<String> {
        self.lines().map(|line| encode(&line)).collect()
    }

    /// The lines that say this and no more.
    fn lines(&self) -> impl Iterator<Item = Line> {
        let tier = self.url.iter().map(|url| Line::Tier { url: url.clone() });
        let rows = self.rows.iter().flat_map(|(life, row)| {
            let flows = Line::Flows { life: life.to_string() };
            let forgetting = Line::Forgetting { life: life.to_string() };
            std::iter::once(row.line())
                .chain((row.flows == Flows::There).then_some(flows))
                .chain(row.forgetting.then_some(forgetting))
        });
        tier.chain(self.coming.values().map(Row::line)).chain(rows)
    }
}

fn encode(line: &Line) -> io::Result<String> {
    let text = serde_json::to_string(line)?;
    Ok(format!("{:08x} {text}\n", crc32c::crc32c(text.as_bytes())))
}

/// Errors: why it is no line.
fn parse(line: &[u8]) -> Result<Line, String> {
    let line = std::str::from_utf8(line).map_err(|error| error.to_string())?;
    let (crc, text) = line.split_once(' ').ok_or("it has no checksum")?;
    let crc = u32::from_str_radix(crc, 16).map_err(|error| error.to_string())?;
    if crc32c::crc32c(text.as_bytes()) != crc {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn decode_life(hex: &str) -> Result<LifeId, String> {
    hex.parse().map_err(|error: ParseIdError| error.to_string())
}

fn decode_store(hex: Option<String>) -> Result<Option<StoreId>, String> {
    hex.map(|hex| hex.parse()).transpose().map_err(|error: ParseIdError| error.to_string())
}

fn decode_entry(text: &str) -> Result<SegmentEntry, String> {
    let bytes = hex::decode(text).and_then(|bytes| <[u8; ENTRY_BYTES]>::try_from(bytes).ok());
    let entry = bytes.and_then(|bytes| SegmentEntry::decode(&bytes).ok());
    entry.ok_or_else(|| "its entry does not read".to_owned())
}

#[cfg(test)]
mod tests {
    use wirevault_format::table::SegmentState;

    use super::*;

    fn life(ordinal: u64) -> LifeId {
        LifeId([ordinal as u8; 16])
    }

    fn row(ordinal: u64) -> Row {
        let life = life(ordinal);
        let state = SegmentState::Closed;
        let entry = SegmentEntry { state, ordinal, life, packets: 7, ..SegmentEntry::default() };
        Row { crc: Some(9), ..Row::coming(entry, 1, 4) }
    }

    #[test]
    fn a_list_says_what_is_there_and_forgets_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Content::default());
        let mut list = TierList::open(dir.path(), "file:///t").unwrap();
        for ordinal in 1..=3 {
            list.add(row(ordinal)).unwrap();
        }
        list.add(Row { flows: Flows::Due, ..row(4) }).unwrap();
        list.add(Row { flows: Flows::Due, ..row(5) }).unwrap();
        list.flows(life(5)).unwrap();
        let key = RowKey { second: true, hangs_from: Some("sim:2".to_owned()), other: true };
        list.key(life(5), key.clone()).unwrap();
        list.forgetting(life(1)).unwrap();
        list.forgetting(life(2)).unwrap();
        list.gone(life(2)).unwrap();
        let said = list.content().clone();
        assert_eq!(said.rows.keys().copied().collect::<Vec<_>>(), [1, 3, 4, 5].map(life));
        let flows: Vec<_> = said.rows.values().map(|row| row.flows).collect();
        assert_eq!(flows, [Flows::None, Flows::None, Flows::Due, Flows::There]);
        assert!(said.rows[&life(1)].forgetting && said.rows[&life(5)].key == key);
        assert_eq!(said.rows[&life(3)], row(3));
        assert_eq!(read(dir.path()).unwrap(), said);
        let again = TierList::open(dir.path(), "file:///t").unwrap();
        assert_eq!((again.content(), &read(dir.path()).unwrap()), (&said, &said));
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(text.lines().count(), 7, "{text}");
    }

    #[test]
    fn what_is_coming_is_listed_until_it_is_kept_or_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = TierList::open(dir.path(), "file:///t").unwrap();
        let lines = || std::fs::read_to_string(dir.path().join(FILE)).unwrap().lines().count();
        for ordinal in 1..=4 {
            assert!(list.coming(&row(ordinal)).unwrap());
        }
        assert!(!list.coming(&row(3)).unwrap());
        list.gone(life(4)).unwrap();
        assert_eq!((lines(), list.content().len()), (6, 3), "what is listed is not listed again");
        assert!(list.content().rows.is_empty() && list.content().coming[&life(1)].crc.is_none());
        let error = TierList::open(dir.path(), "file:///u").unwrap_err().to_string();
        assert!(error.contains("3 segments lie at file:///t"), "{error}");
        list.add(Row { flows: Flows::Due, ..row(1) }).unwrap();
        list.forgetting(life(2)).unwrap();
        let said = list.content().clone();
        assert_eq!(said.coming.keys().copied().collect::<Vec<_>>(), [life(3)]);
        assert!(said.rows[&life(2)].forgetting && said.rows[&life(2)].crc.is_none());
        let reopened = TierList::open(dir.path(), "file:///t").unwrap().content().clone();
        assert_eq!((&reopened, &read(dir.path()).unwrap()), (&said, &said));
        let mut list = TierList::open(dir.path(), "file:///t").unwrap();
        list.gone(life(2)).unwrap();
        assert_eq!(list.content().len(), 2);
        // What came since a checkpoint may be whole, and the last of its segment.
        let text = std::fs::read(dir.path().join(FILE)).unwrap();
        let kept = decode(&put_back(&text, None).unwrap()).unwrap();
        assert_eq!((kept.rows, kept.coming.len()), (list.content().rows.clone(), 0));
        // But what is to go goes, from where it was put.
        list.forgetting(life(3)).unwrap();
        let text = std::fs::read(dir.path().join(FILE)).unwrap();
        let kept = decode(&put_back(&text, Some(StoreId([9; 16]))).unwrap()).unwrap();
        assert_eq!((kept.rows[&life(3)].store, kept.len()), (Some(StoreId([9; 16])), 2));
    }

    #[test]
    fn a_line_that_a_crash_cut_off_is_left_out_and_a_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = TierList::open(dir.path(), "file:///t").unwrap();
        list.add(row(1)).unwrap();
        let one = list.content().clone();
        list.add(row(2)).unwrap();
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        let lines: Vec<_> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        let two = lines[0].len() + lines[1].len();
        for cut in two..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(read(dir.path()).unwrap(), one, "cut at {cut}");
        }
        let mut damaged = whole;
        damaged[two - 20] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn a_list_is_handed_on_and_says_whose_segments_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = TierList::open(dir.path(), "file:///t").unwrap();
        list.add(row(1)).unwrap();
        list.add(Row { store: Some(StoreId([7; 16])), ..row(2) }).unwrap();
        let before = std::fs::read(dir.path().join(FILE)).unwrap();
        let after = put_back(&before, Some(StoreId([9; 16]))).unwrap();
        std::fs::write(dir.path().join(FILE), after).unwrap();
        let content = read(dir.path()).unwrap();
        let stores: Vec<_> = content.rows.values().map(|row| row.store).collect();
        assert_eq!(stores, [Some(StoreId([9; 16])), Some(StoreId([7; 16]))]);
        assert_eq!(content.url.as_deref(), Some("file:///t"));
        assert!(put_back(b"00000000 {}\n", None).is_err());
    }

    #[test]
    fn another_place_is_refused_while_segments_lie_at_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let at = |url: &str| TierList::open(dir.path(), url);
        at("file:///u").unwrap();
        let mut list = at("file:///t").unwrap();
        list.add(row(1)).unwrap();
        let error = at("file:///u").unwrap_err().to_string();
        assert!(error.contains("1 segments lie at file:///t"), "{error}");
        list.gone(life(1)).unwrap();
        let mut list = at("s3://bucket/u").unwrap();
        list.add(row(1)).unwrap();
        let nearer = "s3://bucket/u?endpoint=http://10.0.0.1";
        assert_eq!(at(nearer).unwrap().content().url.as_deref(), Some(nearer));
        assert!(at("s3://bucket/v").is_err());
    }
}
