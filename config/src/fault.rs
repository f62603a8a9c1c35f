//! What is wrong with a configuration, and where.

use std::fmt;

/// Faults shown at most; a file with more is better started afresh.
const SHOWN_MAX: usize = 50;

/// Characters of the file that one fault quotes at most.
const QUOTE_CHARS_MAX: usize = 60;

/// A place in the text, both counted from 1. A column is a character, not a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl Mark {
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

/// One fault of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// Where in the structure, `capture[0].lanes` for example; empty for the whole file.
    pub path: String,
    /// What is wrong; names the value.
    pub problem: String,
    /// What may stand there, if that is a matter of a range or a list.
    pub allowed: Option<String>,
    /// What to do about it.
    pub way_out: Option<String>,
}

impl Fault {
    pub(crate) fn new(mark: Mark, path: &str, problem: impl Into<String>) -> Self {
        Self {
            line: mark.line,
            column: mark.column,
            path: path.to_owned(),
            problem: problem.into(),
            allowed: None,
            way_out: None,
        }
    }

    pub(crate) fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }

    pub(crate) fn way_out(mut self, way_out: impl Into<String>) -> Self {
        self.way_out = Some(way_out.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.problem)?;
        if let Some(allowed) = &self.allowed {
            write!(f, "\n    allowed: {allowed}")?;
        }
        if let Some(way_out) = &self.way_out {
            write!(f, "\n    way out: {way_out}")?;
        }
        Ok(())
    }
}

/// Every fault of a configuration, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFaults {
    source_name: String,
    faults: Vec<Fault>,
}

impl ConfigFaults {
    pub(crate) fn new(source_name: &str, mut faults: Vec<Fault>) -> Self {
        faults.sort_by_key(|fault| (fault.line, fault.column));
        Self { source_name: source_name.to_owned(), faults }
    }

    /// The name of the file or text.
    pub fn source_name(&self) -> &str {
        &self.source_name
    }

    /// The faults; never empty.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

/// One paragraph a fault, each starting `NAME:LINE:COLUMN: `, as compilers and editors use it.
impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.faults.iter().take(SHOWN_MAX).enumerate() {
            let line_break = if at == 0 { "" } else { "\n" };
            write!(f, "{line_break}{}:{fault}", self.source_name)?;
        }
        match self.faults.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "\n{}: {more} more faults", self.source_name),
        }
    }
}

impl std::error::Error for ConfigFaults {}

/// A piece of the file as a fault shows it: in backticks, escaped, not too long.
pub(crate) fn quote(text: &str) -> String {
    let mut shown: String =
        text.chars().take(QUOTE_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTE_CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    format!("`{shown}`")
}

/// The fault of bytes that are text up to `valid` only.
pub(crate) fn not_utf8(bytes: &[u8], valid: usize) -> Fault {
    let before = String::from_utf8_lossy(&bytes[..valid]);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = 1 + before.matches('\n').count();
    let mark = Mark { line, column: 1 + before[line_start..].chars().count() };
    let byte = bytes.get(valid).copied().unwrap_or_default();
    Fault::new(mark, "", format!("byte {byte:#04x} is not UTF-8 text"))
        .way_out("save the file in UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_come_in_the_order_of_the_file() {
        let at = |line, column| Fault::new(Mark { line, column }, "a.b", "is wrong");
        let faults = vec![at(3, 1), at(1, 5).allowed("1 to 2").way_out("change it"), at(1, 2)];
        let shown = ConfigFaults::new("f.yaml", faults).to_string();
        let expected = "f.yaml:1:2: a.b: is wrong\n\
            f.yaml:1:5: a.b: is wrong\n    allowed: 1 to 2\n    way out: change it\n\
            f.yaml:3:1: a.b: is wrong";
        assert_eq!(shown, expected);
    }

    #[test]
    fn too_many_faults_are_counted() {
        let faults = vec![Fault::new(Mark::START, "", "is wrong"); SHOWN_MAX + 3];
        let shown = ConfigFaults::new("f", faults).to_string();
        assert!(shown.ends_with("\nf: 3 more faults"), "{shown}");
    }

    #[test]
    fn quotes_are_short_and_on_one_line() {
        assert_eq!(quote("a\nb"), "`a\\nb`");
        assert_eq!(quote(&"x".repeat(61)), format!("`{}...`", "x".repeat(60)));
    }

    #[test]
    fn the_place_of_a_bad_byte_counts_characters() {
        let fault = not_utf8("a\n\u{fc}\u{fc}".as_bytes(), 6);
        assert_eq!((fault.line, fault.column), (2, 3));
    }
}
