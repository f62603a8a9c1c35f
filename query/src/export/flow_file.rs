//! Flows as a Parquet file, for programs that ask many files at once.
//!
//! The low-level writer of the `parquet` crate is used, without Arrow: the schema is text, and each
//! column is written from the rows of a group, in the order of the schema. Rows are what
//! `flows --json` has; names and meaning are the same, and so a reader of one knows the other.
//!
//! A file counts only with its footer, which is written last: an answer that breaks off leaves
//! nothing that reads as a whole one.

use std::io::{self, Write};
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnWriterImpl;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::Result;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use crate::flows::FlowRow;
use crate::summary::Summary;

/// The columns. Integers are signed, because many readers know no others; none reaches its limit.
/// Times stand there twice, because many readers cut timestamps to microseconds.
pub const FLOW_SCHEMA: &str = "\
message flows {
  required binary link_type (STRING);
  required int32 segments;
  required int64 first (TIMESTAMP(NANOS, true));
  required int64 last (TIMESTAMP(NANOS, true));
  required int64 first_ns;
  required int64 last_ns;
  required int64 packets;
  required int64 bytes;
  required binary protocol (STRING);
  optional binary a_addr (STRING);
  optional int32 a_port;
  optional binary b_addr (STRING);
  optional int32 b_port;
  required boolean a_to_b;
  required boolean b_to_a;
  required group vlans (LIST) { repeated group list { required int32 element; } }
  required group mpls (LIST) { repeated group list { required int32 element; } }
  optional int32 vni;
  required group layers (LIST) { repeated group list { required binary element (STRING); } }
  optional binary tcp_flags (STRING);
}
";

/// Rows of a group, but for the last one: some 15 MB of memory until they are written.
const GROUP_ROWS: usize = 1 << 15;

/// Where the footer has the summary.
const SUMMARY_NOTE: &str = "wirevault.summary";
/// Bytes of it at most: readers take the whole footer into memory.
const SUMMARY_BYTES_MAX: usize = 64 << 10;

/// Writes a Parquet file of flows.
///
/// Nothing goes to the target before there is something to be written, so that a refused question
/// leaves a file of that name as it was.
pub struct FlowFile<W: Write + Send> {
    /// Until it is written to.
    target: Option<W>,
    /// From then on.
    writer: Option<SerializedFileWriter<W>>,
    rows: Vec<FlowRow>,
}

impl<W: Write + Send> FlowFile<W> {
    /// A file that will be written to `target`.
    pub fn new(target: W) -> Self {
        Self { target: Some(target), writer: None, rows: Vec::new() }
    }

    /// Adds a flow.
    ///
    /// # Errors
    /// Writing failed.
    pub fn row(&mut self, row: &FlowRow) -> io::Result<()> {
        self.rows.push(row.clone());
        if self.rows.len() >= GROUP_ROWS { self.flush_group() } else { Ok(()) }
    }

    /// Writes the rest and the footer, and in it what the answer says of itself.
    ///
    /// # Errors
    /// Writing failed.
    pub fn finish(mut self, summary: &Summary) -> io::Result<W> {
        if !self.rows.is_empty() {
            self.flush_group()?;
        }
        let summary = summary.json_within(SUMMARY_BYTES_MAX);
        let note = KeyValue::new(SUMMARY_NOTE.to_owned(), summary);
        self.writer()?.append_key_value_metadata(note);
        let writer = self.writer.ok_or_else(failed_before)?;
        Ok(writer.into_inner()?)
    }

    fn writer(&mut self) -> io::Result<&mut SerializedFileWriter<W>> {
        if let Some(target) = self.target.take() {
            let schema = Arc::new(parse_message_type(FLOW_SCHEMA)?);
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::default()))
                .set_created_by(format!("wirevault version {}", env!("CARGO_PKG_VERSION")))
                .build();
            let writer = SerializedFileWriter::new(target, schema, Arc::new(properties))?;
            self.writer = Some(writer);
        }
        self.writer.as_mut().ok_or_else(failed_before)
    }

    fn flush_group(&mut self) -> io::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let mut group = Group(self.writer()?.next_row_group()?);
        group.write(&rows)?;
        group.0.close()?;
        Ok(())
    }
}

fn failed_before() -> io::Error {
    io::Error::other("an earlier write failed")
}

struct Group<'a, W: Write + Send>(SerializedRowGroupWriter<'a, W>);

impl<W: Write + Send> Group<'_, W> {
    /// Writes all columns, in the order of [`FLOW_SCHEMA`].
    fn write(&mut self, rows: &[FlowRow]) -> Result<()> {
        self.required::<ByteArrayType>(rows, |row| text(&row.link_type))?;
        self.required::<Int32Type>(rows, |row| row.segments.cast_signed())?;
        self.required::<Int64Type>(rows, |row| count(row.first.ns))?;
        self.required::<Int64Type>(rows, |row| count(row.last.ns))?;
        self.required::<Int64Type>(rows, |row| count(row.first.ns))?;
        self.required::<Int64Type>(rows, |row| count(row.last.ns))?;
        self.required::<Int64Type>(rows, |row| count(row.packets))?;
        self.required::<Int64Type>(rows, |row| count(row.bytes))?;
        self.required::<ByteArrayType>(rows, |row| text(&row.protocol))?;
        self.optional::<ByteArrayType>(rows, |row| row.a_addr.map(|addr| text(&addr.to_string())))?;
        self.optional::<Int32Type>(rows, |row| row.a_port.map(i32::from))?;
        self.optional::<ByteArrayType>(rows, |row| row.b_addr.map(|addr| text(&addr.to_string())))?;
        self.optional::<Int32Type>(rows, |row| row.b_port.map(i32::from))?;
        self.required::<BoolType>(rows, |row| row.a_to_b)?;
        self.required::<BoolType>(rows, |row| row.b_to_a)?;
        self.list::<Int32Type, _>(rows, |row| &row.vlans, |vlan| i32::from(*vlan))?;
        self.list::<Int32Type, _>(rows, |row| &row.mpls, |label| label.cast_signed())?;
        self.optional::<Int32Type>(rows, |row| row.vni.map(u32::cast_signed))?;
        self.list::<ByteArrayType, _>(rows, |row| &row.layers, |layer| text(layer))?;
        self.optional::<ByteArrayType>(rows, |row| row.tcp_flags.as_deref().map(text))
    }

    fn required<T: DataType>(
        &mut self,
        rows: &[FlowRow],
        value: impl Fn(&FlowRow) -> T::T,
    ) -> Result<()> {
        let values: Vec<T::T> = rows.iter().map(value).collect();
        self.column::<T>(|column| column.write_batch(&values, None, None))
    }

    fn optional<T: DataType>(
        &mut self,
        rows: &[FlowRow],
        value: impl Fn(&FlowRow) -> Option<T::T>,
    ) -> Result<()> {
        let values: Vec<Option<T::T>> = rows.iter().map(value).collect();
        let defined: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
        let values: Vec<T::T> = values.into_iter().flatten().collect();
        self.column::<T>(|column| column.write_batch(&values, Some(&defined), None))
    }

    /// A list is a row's elements, of which all but the first repeat; an empty one is one place
    /// that nothing defines.
    fn list<T: DataType, E>(
        &mut self,
        rows: &[FlowRow],
        elements: impl Fn(&FlowRow) -> &[E],
        value: impl Fn(&E) -> T::T,
    ) -> Result<()> {
        let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
        for elements in rows.iter().map(elements) {
            let places = elements.len().max(1);
            defined.extend(std::iter::repeat_n(i16::from(!elements.is_empty()), places));
            repeated.extend((0..places).map(|place| i16::from(place > 0)));
            values.extend(elements.iter().map(&value));
        }
        self.column::<T>(|column| column.write_batch(&values, Some(&defined), Some(&repeated)))
    }

    fn column<T: DataType>(
        &mut self,
        fill: impl FnOnce(&mut ColumnWriterImpl<'_, T>) -> Result<usize>,
    ) -> Result<()> {
        let column = self.0.next_column()?;
        let mut column = column.expect("a call for each column of the schema, by `write`");
        fill(column.typed::<T>())?;
        column.close()
    }
}

fn text(text: &str) -> ByteArray {
    text.into()
}

/// Times behind 2262 are shown as its end.
fn count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Mutex;

    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    use super::*;

    fn row(number: u64) -> FlowRow {
        FlowRow {
            link_type: "EN10MB".to_owned(),
            segments: 1,
            first: number.into(),
            last: (number + 5).into(),
            packets: 3,
            bytes: 180,
            protocol: "TCP".to_owned(),
            a_addr: number.is_multiple_of(3).then(|| [10, 0, 0, 1].into()),
            a_port: number.is_multiple_of(3).then_some(65_535),
            b_addr: Some("2001:db8::1".parse().unwrap()),
            b_port: None,
            a_to_b: true,
            b_to_a: false,
            vlans: (0..number as u16 % 4).collect(),
            mpls: vec![],
            vni: Some(0xff_ffff),
            layers: vec![format!("vlan {number}"), "x".to_owned()],
            tcp_flags: Some("S".to_owned()),
        }
    }

    fn file(rows: u64) -> Vec<u8> {
        let mut file = FlowFile::new(Vec::new());
        (0..rows).for_each(|number| file.row(&row(number)).unwrap());
        file.finish(&Summary { packets: rows, ..Summary::default() }).unwrap()
    }

    fn reader(bytes: &[u8]) -> Result<SerializedFileReader<File>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        SerializedFileReader::new(file)
    }

    /// The values of a row, lists in brackets.
    fn shown(field: &Field) -> String {
        match field {
            Field::Null => "-".to_owned(),
            Field::Str(text) => text.clone(),
            Field::ListInternal(list) => {
                let elements: Vec<_> = list.elements().iter().map(shown).collect();
                format!("[{}]", elements.join(" "))
            }
            other => other.to_string(),
        }
    }

    #[test]
    fn what_was_written_is_read_in_order_over_several_groups() {
        let rows = GROUP_ROWS as u64 + 7;
        let reader = reader(&file(rows)).unwrap();
        let metadata = reader.metadata();
        assert_eq!(metadata.num_row_groups(), 2);
        let notes = metadata.file_metadata().key_value_metadata().unwrap();
        let summary: Summary = serde_json::from_str(notes[0].value.as_deref().unwrap()).unwrap();
        assert_eq!((notes[0].key.as_str(), summary.packets), (SUMMARY_NOTE, rows));
        let mut read = 0;
        for (number, found) in (0..).zip(reader.get_row_iter(None).unwrap()) {
            let found = found.unwrap();
            let fields: Vec<String> = found.get_column_iter().map(|(_, it)| shown(it)).collect();
            let row = row(number);
            let vlans: Vec<_> = row.vlans.iter().map(ToString::to_string).collect();
            let addr = row.a_addr.map_or("-".to_owned(), |addr| addr.to_string());
            assert_eq!((&fields[9], &fields[15]), (&addr, &format!("[{}]", vlans.join(" "))));
            assert_eq!(
                (fields[18].as_str(), fields[12].as_str()),
                (&*format!("[vlan {number} x]"), "-")
            );
            read += 1;
        }
        assert_eq!(read, rows);
    }

    #[test]
    fn no_flow_is_a_file_without_rows() {
        let reader = reader(&file(0)).unwrap();
        assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
    }

    #[test]
    fn nothing_is_written_before_the_first_group_and_no_file_without_its_footer_reads() {
        /// Says what reached it.
        struct Shared<'a>(&'a Mutex<Vec<u8>>);
        impl Write for Shared<'_> {
            #[expect(clippy::disallowed_methods, reason = "it hands the call on")]
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let reached = Mutex::new(Vec::new());
        let mut file = FlowFile::new(Shared(&reached));
        file.row(&row(1)).unwrap();
        drop(file);
        assert!(reached.lock().unwrap().is_empty());
        let mut file = FlowFile::new(Shared(&reached));
        (0..GROUP_ROWS as u64).for_each(|number| file.row(&row(number)).unwrap());
        drop(file);
        let cut = reached.into_inner().unwrap();
        assert!(!cut.is_empty() && reader(&cut).is_err());
    }

    #[test]
    fn the_schema_is_the_documented_one() {
        let page = include_str!("../../../docs/FORMAT.md");
        assert!(page.contains(FLOW_SCHEMA), "docs/FORMAT.md, flows as Parquet");
    }
}
