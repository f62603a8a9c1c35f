//! Undoes whole-file compression, told by the first bytes and not by the file's name.

use std::io::{self, Cursor, Read};

use flate2::read::MultiGzDecoder;
use lz4_flex::frame::FrameDecoder;

/// Bytes looked at.
const MAGIC_BYTES: usize = 4;

/// A stream as it was before compression.
pub(super) struct Plain {
    /// The bytes.
    pub(super) reader: Box<dyn Read + Send>,
    /// Name of the compression undone.
    pub(super) compression: Option<&'static str>,
    /// First bytes of `reader`, which still gives them out; fewer if it ends before.
    pub(super) first: Vec<u8>,
}

/// Looks at the beginning of `raw` and undoes gzip, zstd or lz4 (frame format), also several
/// members in a row.
pub(super) fn open(raw: Box<dyn Read + Send>) -> io::Result<Plain> {
    let (first, raw) = peek(raw)?;
    let (reader, compression): (Box<dyn Read + Send>, _) = match first[..] {
        [0x1f, 0x8b, ..] => (Box::new(MultiGzDecoder::new(raw)), Some("gzip")),
        [0x28, 0xb5, 0x2f, 0xfd] => (Box::new(zstd::Decoder::new(raw)?), Some("zstd")),
        [0x04, 0x22, 0x4d, 0x18] => (Box::new(Lz4Frames::new(raw)), Some("lz4")),
        _ => return Ok(Plain { reader: raw, compression: None, first }),
    };
    let (first, reader) = peek(reader)?;
    Ok(Plain { reader, compression, first })
}

/// lz4 frames in a row, cut ones refused.
///
/// The decoder answers 0 at the end of each frame, and also where its input breaks off between two
/// blocks. They differ in this: after an end mark the input has not been asked beyond it.
struct Lz4Frames<R: Read> {
    decoder: FrameDecoder<Watched<R>>,
    /// Input bytes up to the last end mark.
    border: Option<u64>,
}

/// Counts what is read, and notes the end.
struct Watched<R> {
    input: R,
    bytes: u64,
    ended: bool,
}

impl<R: Read> Lz4Frames<R> {
    fn new(input: R) -> Self {
        let decoder = FrameDecoder::new(Watched { input, bytes: 0, ended: false });
        Self { decoder, border: None }
    }
}

impl<R: Read> Read for Lz4Frames<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let count = self.decoder.read(buf)?;
            let Watched { bytes, ended, .. } = *self.decoder.get_ref();
            if count > 0 || (ended && self.border == Some(bytes)) {
                return Ok(count);
            }
            if ended || self.border == Some(bytes) {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "incomplete lz4 frame"));
            }
            self.border = Some(bytes);
        }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buf)?;
        self.bytes += count as u64;
        self.ended |= count == 0 && !buf.is_empty();
        Ok(count)
    }
}

fn peek(mut raw: Box<dyn Read + Send>) -> io::Result<(Vec<u8>, Box<dyn Read + Send>)> {
    let mut first = Vec::with_capacity(MAGIC_BYTES);
    (&mut raw).take(MAGIC_BYTES as u64).read_to_end(&mut first)?;
    Ok((first.clone(), Box::new(Cursor::new(first).chain(raw))))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: Vec<u8>) -> (Vec<u8>, Option<&'static str>) {
        let mut plain = open(Box::new(Cursor::new(bytes))).unwrap();
        let mut out = Vec::new();
        plain.reader.read_to_end(&mut out).unwrap();
        assert_eq!(plain.first, out[..out.len().min(4)]);
        (out, plain.compression)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut out = lz4_flex::frame::FrameEncoder::new(Vec::new());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    #[test]
    fn members_in_a_row_are_read_on() {
        let text: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let (a, b) = text.split_at(500_001);
        type Packer = fn(&[u8]) -> Vec<u8>;
        let packers: [(&str, Packer); 3] = [("gzip", gzip), ("zstd", zstd_frame), ("lz4", lz4)];
        for (name, pack) in packers {
            assert_eq!(read(pack(&text)), (text.clone(), Some(name)));
            assert_eq!(read([pack(a), pack(b)].concat()), (text.clone(), Some(name)));
        }
    }

    #[test]
    fn other_bytes_pass_through() {
        for text in [&b""[..], b"a", b"abcd", b"abcdefgh"] {
            assert_eq!(read(text.to_vec()), (text.to_vec(), None));
        }
    }

    #[test]
    fn a_member_cut_anywhere_is_an_error() {
        let text: Vec<u8> = (0..40_000u32).flat_map(|n| (n * n).to_le_bytes()).collect();
        for packed in [gzip(&text), zstd_frame(&text), lz4(&text), lz4(b"short")] {
            let near_the_end = (packed.len() - 12..packed.len()).rev();
            for cut in near_the_end.chain((4..packed.len()).step_by(packed.len() / 100 + 1)) {
                // A small member fails when its beginning is looked at, a large one when it is
                // read.
                let read = open(Box::new(Cursor::new(packed[..cut].to_vec())))
                    .and_then(|mut plain| plain.reader.read_to_end(&mut Vec::new()));
                assert!(read.is_err(), "{:02x?} cut to {cut} of {}", &packed[..4], packed.len());
            }
        }
    }
}
