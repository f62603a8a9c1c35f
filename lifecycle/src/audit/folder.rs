//! Names of the files, and their lines.

use std::fs;
use std::path::{Path, PathBuf};

use wirevault_seal::chain::Chain;

use crate::audit::entry::Entry;
use crate::{AuditError, hex};

/// What stands before the first line of the first file.
pub(super) const BEGINNING: &str =
    "0000000000000000000000000000000000000000000000000000000000000000";
/// Hex digits of a hash.
const HASH_DIGITS: usize = BEGINNING.len();

/// Path of the file of this number.
pub(super) fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("audit-{number:08}.log"))
}

/// Numbers of the files that are there, rising. Other names are left alone.
///
/// Errors: the folder cannot be read; one that is not there holds no file.
pub(super) fn files(folder: &Path) -> Result<Vec<u32>, AuditError> {
    let failed = |source| AuditError::Io { path: folder.into(), what: "list the folder", source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let digits =
            name.to_str().and_then(|name| name.strip_prefix("audit-")?.strip_suffix(".log"));
        numbers.extend(
            digits.filter(|digits| digits.len() == 8).and_then(|it| it.parse::<u32>().ok()),
        );
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The hash of a line, of the hash before it and its entry.
pub(super) fn hash(before: &str, entry: &str) -> String {
    let mut chain = Chain::new();
    [before, " ", entry].iter().for_each(|part| chain.add(part.as_bytes()));
    hex::encode(&chain.finish())
}

/// One line, taken apart.
pub(super) struct Line<'a> {
    pub(super) hash: &'a str,
    pub(super) text: &'a str,
    pub(super) entry: Entry,
}

/// Takes a line apart, without its end. Errors: why it is none.
pub(super) fn parse(line: &[u8]) -> Result<Line<'_>, String> {
    let line = std::str::from_utf8(line).map_err(|error| error.to_string())?;
    let (hash, text) = line.split_once(' ').ok_or("it has no hash and entry")?;
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if hash.len() != HASH_DIGITS || !hash.bytes().all(is_hex) {
        return Err("it does not begin with 64 hex digits".into());
    }
    let entry = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(Line { hash, text, entry })
}
