//! What no compiler checks: line lengths, banned words, big and binary files, Rust files that no
//! target reaches, and links of the documents that lead nowhere.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use cargo_metadata::Metadata;

use crate::{reach, root};

/// Columns of a line of Rust.
const COLUMNS_MAX: usize = 100;
/// Bytes of any file: a repository is for sources.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Folders that may hold binary files: packets for tests, and inputs for fuzzers.
const BINARY_FOLDERS: &[&str] = &["data", "corpus"];
const BANNED_WORDS: &str = "xtask/banned-words.txt";

/// Checks all files that git tracks or would track.
pub(crate) fn check(metadata: &Metadata) -> Result<Vec<String>> {
    let root = root();
    let banned = Banned::read(&root.join(BANNED_WORDS))?;
    let reached = reach::reached(metadata);
    let files = tracked(&root)?;
    let mut faults = Vec::new();
    for name in &files {
        let path = root.join(name);
        let Ok(facts) = fs::symlink_metadata(&path) else { continue };
        if !facts.is_file() {
            continue;
        }
        if facts.len() > FILE_BYTES_MAX {
            faults.push(format!("{name}: {} bytes; at most {FILE_BYTES_MAX}", facts.len()));
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {name}"))?;
        let Some(text) = as_text(&bytes) else {
            if !name.split('/').any(|folder| BINARY_FOLDERS.contains(&folder)) {
                faults.push(format!("{name}: a binary file outside {BINARY_FOLDERS:?}"));
            }
            continue;
        };
        if name.ends_with(".rs") {
            faults.extend(long_lines(name, text));
            if !reached.contains(&path) {
                faults.push(format!("{name}: no target reaches it; declare or delete it"));
            }
        }
        if name.ends_with(".md") {
            faults.extend(dead_links(&root, name, text));
        }
        if name != BANNED_WORDS && name != "Cargo.lock" {
            faults.extend(banned.faults(name, text));
        }
    }
    println!("{} files", files.len());
    Ok(faults)
}

/// Files that are tracked, or are neither tracked nor ignored and so may be forgotten.
fn tracked(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        // The checkout may belong to someone else, as on a build server.
        .args(["-c", "safe.directory=*", "ls-files", "-z"])
        .args(["--cached", "--others", "--exclude-standard", "--deduplicate"])
        .current_dir(root)
        .output()
        .context("cannot start git; tidy asks it for the list of files")?;
    ensure!(
        output.status.success(),
        "`git ls-files` failed in {}: {}",
        root.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(names.split_terminator('\0').map(str::to_owned).collect())
}

fn as_text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

fn long_lines(name: &str, text: &str) -> Vec<String> {
    let long = |line: &str| line.chars().count() > COLUMNS_MAX && !may_be_long(line);
    text.lines()
        .enumerate()
        .filter(|(_, line)| long(line))
        .map(|(at, line)| {
            format!("{name}:{}: {} columns; at most {COLUMNS_MAX}", at + 1, line.chars().count())
        })
        .collect()
}

/// Addresses cannot be broken, and rows of a table or drawing in a comment must not be.
fn may_be_long(line: &str) -> bool {
    let comment = line.trim_start().starts_with("//");
    let row = comment && line.matches('|').count() >= 2;
    line.contains("https://") || line.contains("http://") || row
}

/// Links of a document to files: `[text](path)`, outside of code.
fn dead_links(root: &Path, name: &str, text: &str) -> Vec<String> {
    let folder = root.join(name).parent().map(Path::to_owned).unwrap_or_default();
    let mut faults = Vec::new();
    let mut in_code = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for target in links(line) {
            let file = target.split(['#', '?']).next().unwrap_or_default();
            let elsewhere = target.contains("://") || target.starts_with("mailto:");
            if elsewhere || file.is_empty() {
                continue;
            }
            let path: PathBuf = match file.strip_prefix('/') {
                Some(from_root) => root.join(from_root),
                None => folder.join(file),
            };
            if !path.exists() {
                faults.push(format!("{name}:{}: the link to {target} leads nowhere", at + 1));
            }
        }
    }
    faults
}

/// Link targets of one line; whatever stands in backticks is code.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let prose = line.split('`').step_by(2);
    prose.flat_map(|part| {
        part.split("](").skip(1).filter_map(|rest| {
            let target = rest.split_once(')')?.0;
            // A title may follow the address.
            target.split_whitespace().next()
        })
    })
}

/// The table of banned words.
struct Banned(Vec<(String, String)>);

impl Banned {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the banned words in {}", path.display()))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let rows = text.lines().filter(|line| !line.is_empty() && !line.starts_with("# "));
        let rows = rows.map(|row| {
            let (word, way_out) =
                row.split_once('\t').with_context(|| format!("`{row}`: a tab is missing"))?;
            Ok((word.to_owned(), way_out.to_owned()))
        });
        Ok(Self(rows.collect::<Result<_>>()?))
    }

    fn faults(&self, name: &str, text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        for (word, way_out) in self.0.iter().filter(|(word, _)| text.contains(word)) {
            for (at, line) in text.lines().enumerate() {
                if stands_in(word, line) {
                    faults.push(format!("{name}:{}: `{word}`; {way_out}", at + 1));
                }
            }
        }
        faults
    }
}

/// Whether the word stands in the line by itself, not as a part of a longer one.
fn stands_in(word: &str, line: &str) -> bool {
    let letter = |letter: Option<char>| letter.is_some_and(|it| it.is_alphanumeric() || it == '_');
    line.match_indices(word).any(|(at, _)| {
        let before = letter(line[..at].chars().next_back()) && letter(word.chars().next());
        let after =
            letter(line[at + word.len()..].chars().next()) && letter(word.chars().next_back());
        !before && !after
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole_words() {
        assert!(stands_in("NONO", "// NONO: odd"));
        assert!(!stands_in("NONO", "mktemp /tmp/a.NONONO"));
        assert!(!stands_in("NONO", "a NONO_B"));
        assert!(stands_in("no!", "    no!(x);"));
        assert!(stands_in("#[no(", "#[no(unused)]"));
    }

    #[test]
    fn the_table_of_words_is_read() {
        let banned = Banned::parse("# a note\n\n#[no(\tyes\nNO\tmaybe\n").expect("is a table");
        assert_eq!(banned.faults("f", "a\nNO #[no(x)]"), ["f:2: `#[no(`; yes", "f:2: `NO`; maybe"]);
        assert!(Banned::parse("word without a reason").is_err());
    }

    #[test]
    fn addresses_and_tables_may_be_long() {
        let long = "x".repeat(101);
        assert_eq!(long_lines("f", &long).len(), 1);
        assert_eq!(long_lines("f", &"ö".repeat(100)).len(), 0);
        assert_eq!(long_lines("f", &format!("// https://{long}")).len(), 0);
        assert_eq!(long_lines("f", &format!("    //! | {long} |")).len(), 0);
    }

    #[test]
    fn links_are_found_outside_code() {
        let line = "see [a](b.md#c), `[no](x)` and [d](e/f.md \"title\")";
        assert_eq!(links(line).collect::<Vec<_>>(), ["b.md#c", "e/f.md"]);
        let root = root();
        let text = "[here](Cargo.toml) [web](https://a.b) [gone](no/such.md)\n```\n[x](y)\n```\n";
        assert_eq!(
            dead_links(&root, "README.md", text),
            ["README.md:1: the link to no/such.md leads nowhere"]
        );
    }
}
