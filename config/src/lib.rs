//! Configuration: YAML text in, a checked [`Config`] out, or every fault of the text at once.
//!
//! ```text
//!  file ──► tree (values with line and column) ──► check against the table ──► Config
//!                                                     ▲
//!                                             keys::TABLE: name, kind, default, range, meaning
//!                                                     ▼
//!                              examples/full.yaml, reference table of the documentation
//! ```
//!
//! [`keys::TABLE`] is the one place that knows a key's kind, default, range and meaning. The
//! checks, the example file and the documentation are made from it, so they cannot disagree.
//!
//! Faults quote the file, so a configuration never holds secrets; `key_file` names one instead.
//!
//! Only the daemon, the command line and the build tasks read this crate; every other crate takes
//! a small options struct of its own.

#![forbid(unsafe_code)]

pub mod access;
mod audit;
mod changes;
mod check;
mod fault;
mod input;
pub mod keys;
mod policies;
pub mod reference;
mod section;
mod settings;
mod tree;
mod units;

use std::io;
use std::path::{Path, PathBuf};

pub use access::{Api, CertificateName, Principal, Role, Rule, Tls};
pub use audit::{Anchor, Audit};
pub use changes::Changes;
pub use fault::{ConfigFaults, Fault};
pub use input::{Capture, Input, Live, LiveSource, MirrorTarget, PcapOverIp, Replay, Sender};
pub use policies::{Policy, PolicyAction, Rung};
pub use settings::{
    Backup, Buffer, Cloud, CloudWatch, Config, DecapMode, Duplicates, Hugepages, Imds, Kms,
    LogLevel, MirrorTunnel, OnNotice, RetentionAction, RetentionRule, Sandbox, Snapshots,
    SourceKind, Speed, Tier, TierFlows, Topology, Tunnel, WhenOut,
};
pub use units::size_text;

/// Bytes a configuration file has at most. Real ones have a few thousand.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// Lanes of all interfaces together at most. A lane owns a thread, so no machine has use for more.
pub const LANES_MAX: usize = 256;

/// Chunks every lane needs in the buffer: one being filled, one being sealed, two being written.
pub const LANE_CHUNKS_MIN: u64 = 4;

/// A configuration could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}; name another file with --config", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is not a valid configuration.
    #[error(transparent)]
    Faults(#[from] ConfigFaults),
}

/// What the command line says already; it goes before the file.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// `--store`: the directories of the store. The file then needs no `store`.
    pub store: Vec<PathBuf>,
}

/// Reads the configuration in `path`.
///
/// # Errors
/// [`ConfigError::Read`], or [`ConfigError::Faults`] with every fault of the text.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    load_with(path, &Given::default())
}

/// As [`load`]; what `given` holds goes before the file.
///
/// # Errors
/// As [`load`].
pub fn load_with(path: &Path, given: &Given) -> Result<Config, ConfigError> {
    let read = read_limited(path);
    let bytes = read.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    Ok(parse_bytes_with(&bytes, &path.display().to_string(), given)?)
}

/// Checks the text of a configuration. `source_name` is the name that faults carry.
///
/// # Errors
/// Every fault of the text.
pub fn parse(text: &str, source_name: &str) -> Result<Config, ConfigFaults> {
    parse_with(text, source_name, &Given::default())
}

/// As [`parse`]; what `given` holds goes before the text.
///
/// # Errors
/// As [`parse`].
pub fn parse_with(text: &str, source_name: &str, given: &Given) -> Result<Config, ConfigFaults> {
    check::config(text, given).map_err(|faults| ConfigFaults::new(source_name, faults))
}

/// As [`parse_with`], for bytes of unknown origin.
///
/// # Errors
/// As [`parse`], and a fault at the first byte that is not UTF-8.
pub fn parse_bytes_with(
    bytes: &[u8],
    source_name: &str,
    given: &Given,
) -> Result<Config, ConfigFaults> {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse_with(text, source_name, given),
        Err(error) => {
            let fault = fault::not_utf8(bytes, error.valid_up_to());
            Err(ConfigFaults::new(source_name, vec![fault]))
        }
    }
}

/// Reads one byte more than allowed at most; the check of the text then tells.
fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read;

    let mut bytes = Vec::new();
    let limit = TEXT_BYTES_MAX as u64 + 1;
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_is_read_and_its_name_is_in_the_faults() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("w.yaml");
        assert!(matches!(load(&path), Err(ConfigError::Read { .. })));
        std::fs::write(&path, "store: /a\ncapture:\n  - interface: eth0\n").unwrap();
        assert_eq!(load(&path).unwrap().stores, [Path::new("/a")]);
        std::fs::write(&path, b"store: /a\n# gr\xfcn\n").unwrap();
        let text = load(&path).unwrap_err().to_string();
        assert!(text.contains("w.yaml:2:5: "), "{text}");
        std::fs::write(&path, " ".repeat(TEXT_BYTES_MAX + 1)).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("1MiB"));
    }

    #[test]
    fn what_the_command_line_gives_goes_first() {
        let given = Given { store: vec!["/cli".into()] };
        let text = "capture:\n  - interface: eth0\n";
        assert!(parse(text, "t").is_err());
        assert_eq!(parse_with(text, "t", &given).unwrap().stores, [Path::new("/cli")]);
        let both = format!("store: /file\n{text}");
        assert_eq!(parse_with(&both, "t", &given).unwrap().stores, [Path::new("/cli")]);
    }

    /// Pieces that get further into the checks than random bytes do.
    fn piece() -> impl Strategy<Value = String> {
        let names = keys::TABLE.iter().map(|key| key.name().to_owned()).collect::<Vec<_>>();
        let marks = ["\n", "\n  ", "\n  - ", ": ", "- ", "[", "]", "{", "}", ",", "\"", "'", "|"];
        let odd =
            ["&a ", "*a", "!!int ", "---", "...", "#", "0", "-1", "1e9", "99999999999999999999"];
        let values = ["64MiB", "1.5GB", "250ms", "1h", "/x", "eth0", "true", "~", "2-5", "\u{fe}"];
        let pick = |list: &[&str]| {
            prop::sample::select(list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
        };
        prop_oneof![prop::sample::select(names), pick(&marks), pick(&odd), pick(&values)]
    }

    /// Refusing a text without saying why would be as bad as a panic.
    fn told(result: Result<Config, ConfigFaults>) {
        if let Err(faults) = result {
            assert!(!faults.faults().is_empty() && !faults.to_string().is_empty());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            told(parse_bytes_with(&bytes, "t", &Given::default()));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
            told(parse(&text, "t"));
        }

        #[test]
        fn likely_text_never_panics(pieces in prop::collection::vec(piece(), 0..40)) {
            told(parse(&pieces.concat(), "t"));
        }

        #[test]
        fn damaged_examples_never_panic(at in any::<prop::sample::Index>(), with: Vec<u8>) {
            let mut bytes = include_bytes!("../examples/full.yaml").to_vec();
            let at = at.index(bytes.len());
            let end = (at + 3).min(bytes.len());
            bytes.splice(at..end, with);
            told(parse_bytes_with(&bytes, "t", &Given::default()));
        }
    }
}
