//! The file of a [`super::FileProvider`]: writing it durably, reading it strictly.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::locked::{LockedBytes, Secret};
use crate::{KEY_BYTES, SealError};

/// Bytes a key file has at most; a longer file is something else.
const FILE_BYTES_MAX: usize = 4096;
const NAME: &[u8] = b"wirevault-key ";
const VERSION: u16 = 1;

/// Writes `key` to a new file. `fingerprint` goes into the comment.
pub(super) fn create(path: &Path, key: &[u8], fingerprint: &str) -> Result<(), SealError> {
    make_parents(path)?;
    let io = |doing, source| SealError::KeyIo { path: path.to_owned(), doing, source };
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file = opened.map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => SealError::KeyExists { path: path.to_owned() },
        _ => io("create it", source),
    })?;
    write(&file, path, &text(key, fingerprint)).map_err(|source| {
        // Half a key file would stand in the way of the next attempt; the first error is the one to
        // report.
        let _ = fs::remove_file(path);
        io("write it", source)
    })
}

/// Reads the key in `path`.
pub(super) fn read(path: &Path) -> Result<Secret, SealError> {
    let io = |doing, source| SealError::KeyIo { path: path.to_owned(), doing, source };
    let mut file = File::open(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => SealError::KeyMissing { path: path.to_owned() },
        _ => io("open it", source),
    })?;
    let meta = file.metadata().map_err(|source| io("examine it", source))?;
    if !meta.is_file() {
        return Err(malformed(path, 1, "a regular file is expected"));
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SealError::KeyExposed { path: path.to_owned(), mode });
    }
    let mut bytes = LockedBytes::zeroed(FILE_BYTES_MAX + 1)?;
    let len = read_all(&mut file, &mut bytes).map_err(|source| io("read it", source))?;
    if len > FILE_BYTES_MAX {
        return Err(malformed(path, 1, "a key file has at most 4096 bytes"));
    }
    parse(path, &bytes[..len])
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Secret, SealError> {
    let mut line_number = 0;
    let mut lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| {
        line_number += 1;
        let line = line.trim_ascii();
        (!line.is_empty() && !line.starts_with(b"#")).then_some((line_number, line))
    });
    let Some((number, name)) = lines.next() else {
        return Err(malformed(
            path,
            1,
            "the line `wirevault-key 1` is expected, but the file is empty",
        ));
    };
    let version = name.strip_prefix(NAME).and_then(|text| std::str::from_utf8(text).ok());
    match version.and_then(|text| text.parse().ok()) {
        Some(VERSION) => {}
        Some(version) => {
            return Err(SealError::Newer { what: "the key file", version, supported: VERSION });
        }
        None => return Err(malformed(path, number, "the line `wirevault-key 1` is expected")),
    }
    let Some((digits_line, digits)) = lines.next() else {
        return Err(malformed(
            path,
            number,
            "64 hexadecimal digits are expected on the line after it",
        ));
    };
    if let Some((number, _)) = lines.next() {
        return Err(malformed(path, number, "nothing is expected after the key"));
    }
    let wrong = || malformed(path, digits_line, "64 hexadecimal digits are expected");
    if digits.len() != 2 * KEY_BYTES {
        return Err(wrong());
    }
    Secret::filled_by(|key| {
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            *byte =
                digit(pair[0]).zip(digit(pair[1])).map(|(h, l)| h << 4 | l).ok_or_else(wrong)?;
        }
        Ok(())
    })
}

fn digit(text: u8) -> Option<u8> {
    char::from(text).to_digit(16).and_then(|digit| digit.try_into().ok())
}

fn text(key: &[u8], fingerprint: &str) -> Zeroizing<Vec<u8>> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let comment = format!(
        "# Key {fingerprint} of a Wirevault store. Keep a copy away from this machine: without it\n\
         # nothing in the store can be read.\nwirevault-key {VERSION}\n"
    );
    // Room for all of it: a vector that grows would leave a copy of the key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(comment.len() + 2 * key.len() + 1));
    text.extend_from_slice(comment.as_bytes());
    for byte in key {
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 15)]);
    }
    text.push(b'\n');
    text
}

fn write(mut file: &File, path: &Path, text: &[u8]) -> io::Result<()> {
    file.write_all(text)?;
    file.sync_all()?;
    sync_dir(parent(path))
}

/// Makes the missing directories above `path`, private to the user, and makes their names durable.
fn make_parents(path: &Path) -> Result<(), SealError> {
    let missing: Vec<&Path> = parent(path)
        .ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
        .collect();
    for dir in missing.into_iter().rev() {
        let made = DirBuilder::new().mode(0o700).create(dir).and_then(|()| sync_dir(parent(dir)));
        made.map_err(|source| {
            let path = PathBuf::from(dir);
            SealError::KeyIo { path, doing: "make this directory", source }
        })?;
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads until the end of the file or of `bytes`; gives the number of bytes read.
fn read_all(file: &mut File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < bytes.len() {
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

fn malformed(path: &Path, line: u32, reason: &'static str) -> SealError {
    SealError::KeyMalformed { path: path.to_owned(), line, reason }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use tempfile::TempDir;

    use super::*;

    const DIGITS: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";

    fn read_text(text: &[u8]) -> Result<Secret, SealError> {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("k");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        read(&path)
    }

    fn refused_line(text: &str) -> u32 {
        match read_text(text.as_bytes()).map(|_| ()) {
            Err(SealError::KeyMalformed { line, .. }) => line,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("deep/er/a.key");
        create(&path, &[0xd7; 32], "fp").unwrap();
        assert_eq!(read(&path).unwrap().expose(), [0xd7; 32]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&dir.path().join("deep")), 0o700);
        assert_eq!(mode(&dir.path().join("deep/er")), 0o700);
        assert!(matches!(create(&path, &[0; 32], ""), Err(SealError::KeyExists { .. })));
        assert_eq!(read(&path).unwrap().expose(), [0xd7; 32], "the first key is still there");
    }

    #[test]
    fn comments_empty_lines_and_windows_line_ends_are_read_over() {
        let key =
            read_text(format!("# a\r\n\r\nwirevault-key 1\r\n# b\r\n{DIGITS}\r\n").as_bytes());
        assert_eq!(key.unwrap().expose()[14..18], [0xee, 0xff, 0x00, 0x11]);
        assert!(read_text(format!("wirevault-key 1\n{DIGITS}").as_bytes()).is_ok());
    }

    #[test]
    fn malformed_files_are_refused_with_their_line() {
        assert_eq!(refused_line(""), 1);
        assert_eq!(refused_line("# only a comment\n"), 1);
        assert_eq!(refused_line(&format!("# c\n{DIGITS}\n")), 2);
        assert_eq!(refused_line("# c\nwirevault-key 1\n"), 2);
        assert_eq!(refused_line(&format!("wirevault-key one\n{DIGITS}\n")), 1);
        assert_eq!(refused_line(&format!("wirevault-key 1\n\n{}\n", &DIGITS[1..])), 3);
        assert_eq!(refused_line(&format!("wirevault-key 1\n{}x\n", &DIGITS[1..])), 2);
        assert_eq!(refused_line(&format!("wirevault-key 1\n{DIGITS}\nmore\n")), 3);
        assert_eq!(refused_line(&"#".repeat(5000)), 1);
        let newer = read_text(format!("wirevault-key 2\n{DIGITS}\n").as_bytes());
        assert!(matches!(newer, Err(SealError::Newer { version: 2, supported: 1, .. })));
    }

    #[test]
    fn absent_exposed_and_odd_files_are_refused() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("k");
        let absent = read(&path).map(|_| ()).unwrap_err();
        assert!(matches!(absent, SealError::KeyMissing { .. }));
        assert!(absent.to_string().contains("backup") && absent.to_string().contains("/k"));
        assert!(matches!(read(dir.path()), Err(SealError::KeyMalformed { .. })));

        create(&path, &[1; 32], "").unwrap();
        for mode in [0o640, 0o604, 0o660, 0o610, 0o601] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let exposed = read(&path).map(|_| ()).unwrap_err();
            assert!(matches!(exposed, SealError::KeyExposed { .. }), "{mode:o}: {exposed}");
            assert!(exposed.to_string().contains("chmod 600"));
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert!(read(&path).is_ok());
    }
}
