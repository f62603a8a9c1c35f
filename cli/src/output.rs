//! Terminal manners: colours, tables, sizes, and where packets are written to.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::CliError;

/// Whether text is coloured. Only on a terminal, and not if `NO_COLOR` is set (no-color.org) or the
/// terminal cannot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    /// For standard output.
    pub(crate) fn stdout() -> Self {
        Self::when(io::stdout().is_terminal())
    }

    /// For standard error.
    pub(crate) fn stderr() -> Self {
        Self::when(io::stderr().is_terminal())
    }

    fn when(terminal: bool) -> Self {
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { on: terminal && !forbidden && !dumb }
    }

    /// For what is well.
    pub(crate) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// For what deserves a look.
    pub(crate) fn warn(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// For what is lost or broken.
    pub(crate) fn bad(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    /// For headings.
    pub(crate) fn strong(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        match self.on {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// Tells people something on standard error. If nobody listens there is nothing to be done.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes to standard output.
pub(crate) fn put(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes a value to standard output as indented JSON.
pub(crate) fn put_json<T: Serialize>(value: &T) -> Result<(), CliError> {
    put(&json_text(value)?)
}

/// Writes a value into a file as indented JSON.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), CliError> {
    std::fs::write(path, json_text(value)?).map_err(CliError::file(path))
}

fn json_text<T: Serialize>(value: &T) -> Result<String, CliError> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    text.push('\n');
    Ok(text)
}

/// A table without lines, as `ps` and `ls` write them. Columns in `numbers` are aligned right.
pub(crate) fn table(headings: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings);
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The lines of a table, without blanks at their ends, each behind `indent`.
pub(crate) fn table_text(table: &Table, indent: &str) -> String {
    table.lines().map(|line| format!("{}\n", format!("{indent}{line}").trim_end())).collect()
}

/// A size for people: `1.5 GiB`.
pub(crate) fn size_text(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A count with its noun: `1 packet`, `2 packets`.
pub(crate) fn count_text(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Where packets go: a file, made when the first byte is written, or standard output.
///
/// A question that is refused before its first packet leaves a file of that name as it was.
#[derive(Debug)]
pub(crate) enum Target {
    /// Standard output.
    Stdout(io::Stdout),
    /// A file not made yet.
    Path(PathBuf),
    /// A file.
    File(File, PathBuf),
}

impl Target {
    /// The target of `-w`.
    ///
    /// # Errors
    /// `Usage` if packets would go to a terminal, or the file can surely not be made: it would be a
    /// pity to learn that after the search.
    pub(crate) fn packets(path: &Path) -> Result<Self, CliError> {
        if path != Path::new("-") {
            let name = path.display();
            if path.is_dir() {
                let text = format!("-w {name}: that is a directory; name a file in it");
                return Err(CliError::Usage(text));
            }
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            if let Some(dir) = dir.filter(|dir| !dir.is_dir()) {
                let dir = dir.display();
                return Err(CliError::Usage(format!(
                    "-w {name}: there is no directory {dir}; make it, or name another file"
                )));
            }
            return Ok(Self::Path(path.to_owned()));
        }
        if io::stdout().is_terminal() {
            return Err(CliError::Usage(
                "-w -: packets are not for a terminal; pipe them into a program, or name a file"
                    .to_owned(),
            ));
        }
        Ok(Self::Stdout(io::stdout()))
    }

    fn writer(&mut self) -> io::Result<&mut dyn Write> {
        if let Self::Path(path) = self {
            let file = File::create(&*path).map_err(|error| named(error, path))?;
            *self = Self::File(file, std::mem::take(path));
        }
        match self {
            Self::Stdout(out) => Ok(out),
            Self::File(file, _) => Ok(file),
            Self::Path(path) => Err(named(io::ErrorKind::NotFound.into(), path)),
        }
    }

    fn name(&self, error: io::Error) -> io::Error {
        match self {
            Self::File(_, path) => named(error, path),
            _ => error,
        }
    }
}

impl Write for Target {
    #[expect(
        clippy::disallowed_methods,
        reason = "it hands the call on, its caller sees the count"
    )]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer()?.write(bytes).map_err(|error| self.name(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer()?.flush().map_err(|error| self.name(error))
    }
}

/// The same kind of error, with the file's name; a closed pipe stays what it is.
fn named(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_off_where_they_should_be() {
        assert_eq!(Paint { on: false }.bad("x"), "x");
        assert_eq!(Paint { on: true }.bad("x"), "\x1b[1;31mx\x1b[0m");
        assert!(!Paint::when(false).on);
    }

    #[test]
    fn tables_have_neither_lines_nor_blanks_at_the_end() {
        let mut table = table(&["name", "packets"], &[1]);
        table.add_row(["a", "1"]).add_row(["long name", "12345678"]);
        let text = table_text(&table, "");
        assert_eq!(
            text, "name        packets\na                 1\nlong name  12345678\n",
            "{text}"
        );
    }

    #[test]
    fn a_file_is_made_when_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pcapng");
        let mut target = Target::packets(&path).unwrap();
        assert!(!path.exists());
        target.write_all(b"abc").unwrap();
        target.flush().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
    }

    #[test]
    fn an_unwritable_file_is_named() {
        let error = Target::packets(Path::new("/nowhere/x.pcapng")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/x.pcapng"), "{error}");
        // The directory may go while the store is searched.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pcapng");
        let mut target = Target::packets(&path).unwrap();
        drop(dir);
        let error = target.write_all(b"abc").unwrap_err();
        assert!(error.to_string().contains("x.pcapng"), "{error}");
    }

    #[test]
    fn counts_have_a_plural() {
        assert_eq!(count_text(1, "packet"), "1 packet");
        assert_eq!(count_text(0, "packet"), "0 packets");
    }
}
