//! The table of keys as an example file and as a page of documentation.

use crate::keys::{Key, Kind, TABLE, Without};

/// Columns of the example file.
const COLUMNS: usize = 90;

const HEAD: &str = "\
# Every key of a Wirevault configuration, with its default where it has one. This file is generated
# from the table in config/src/keys/. Lines that start with `#` and no space are keys that are
# not set here: remove the `#` to set them. minimal.yaml, beside this file, is enough to start with.
";

/// The text of `config/examples/full.yaml`: every key, what it means, its range, and its default.
pub fn example_yaml() -> String {
    let mut text = HEAD.to_owned();
    for key in TABLE {
        let depth = key.path.matches('.').count();
        // Entries of a list stand one level further in, behind their dash.
        let in_list = key.parent().ends_with("[]");
        let indent = 2 * depth + if in_list { 2 } else { 0 };
        if depth == 0 {
            text.push('\n');
        }
        let first_in_list = in_list && first_of_its_section(key);
        let (indent, dash) = if first_in_list { (indent - 2, "- ") } else { (indent, "") };
        for line in wrapped(&comment(key), COLUMNS - indent) {
            text.push_str(&format!("{:indent$}# {line}\n", ""));
        }
        let hash = if key.shown { "" } else { "#" };
        let space = if key.example.is_empty() { "" } else { " " };
        let (name, example) = (key.name(), key.example);
        text.push_str(&format!("{:indent$}{hash}{dash}{name}:{space}{example}\n", ""));
    }
    text
}

/// The keys as a table in Markdown, for the documentation.
pub fn markdown() -> String {
    let mut text = "| key | allowed | default | meaning |\n|---|---|---|---|\n".to_owned();
    for key in TABLE {
        let default = match key.without {
            Without::Fault => "must be there".to_owned(),
            Without::Value(value) => format!("`{value}`"),
            Without::Nothing => String::new(),
        };
        let (path, allowed, meaning) = (key.path, key.kind.allowed(), key.meaning);
        text.push_str(&format!("| `{path}` | {allowed} | {default} | {meaning} |\n"));
    }
    text
}

fn comment(key: &Key) -> String {
    let must = if key.without == Without::Fault { " Must be there." } else { "" };
    match key.kind {
        Kind::Section | Kind::Sections(_) => format!("{}{must}", key.meaning),
        _ => format!("{}{must} Allowed: {}.", key.meaning, key.kind.allowed()),
    }
}

fn first_of_its_section(key: &Key) -> bool {
    TABLE.iter().find(|other| other.parent() == key.parent()).is_some_and(|k| k.path == key.path)
}

/// `text` in lines of at most `columns` characters, broken at spaces.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Input, parse};

    const FILE: &str = include_str!("../examples/full.yaml");

    #[test]
    fn the_example_file_is_the_generated_text() {
        assert!(
            FILE == example_yaml(),
            "examples/full.yaml is not what the table says; write it anew with \
             `cargo test -p wirevault-config -- --ignored write_the_example_file`"
        );
    }

    #[test]
    #[ignore = "not a test: writes examples/full.yaml from the table"]
    fn write_the_example_file() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/full.yaml");
        std::fs::write(path, example_yaml()).unwrap();
    }

    #[test]
    fn the_example_lists_every_key_and_says_what_the_minimal_one_means() {
        for key in TABLE {
            let name = format!("{}:", key.name());
            assert!(
                FILE.lines()
                    .any(|line| line.trim_start_matches([' ', '#', '-']).starts_with(&name))
            );
        }
        let minimal = include_str!("../examples/minimal.yaml");
        let said = |text| parse(text, "it").map(|it| Config { text: String::new(), ..it });
        assert_eq!(said(FILE), said(minimal), "defaults are defaults");
    }

    #[test]
    fn the_hidden_keys_of_the_example_are_valid_too() {
        // Of a policy these belong to another action than the example's.
        let excluded = |key: &str| key.starts_with("one_in") || key.starts_with("snaplen");
        let shown = |line: &str| match line.trim_start().strip_prefix('#') {
            Some(key) if !key.starts_with(' ') && !excluded(key) => line.replacen('#', "", 1),
            _ => line.to_owned(),
        };
        let all = FILE.lines().map(shown).collect::<Vec<_>>().join("\n");
        let faults = parse(&all, "all").unwrap_err();
        assert_eq!(faults.faults().len(), 2, "{faults}");
        assert!(faults.to_string().contains("both `capture` and `replay`"));
        assert!(faults.to_string().contains("both `listen` and `connect`"));

        // Without what comes now, and what is left out of it, the file replays.
        let (before, rest) = all.split_once("\ncapture:").unwrap();
        let (_, after) = rest.split_once("\nreplay:").unwrap();
        let config = parse(&format!("{before}\nreplay:{after}"), "replay").unwrap();
        assert!(matches!(config.input, Input::Replay(_)) && config.key_file.is_some());
        assert_eq!(config.lane_cpus, [2, 3, 4, 5]);
    }

    #[test]
    fn every_key_is_documented() {
        let page = markdown();
        assert_eq!(page.lines().count(), TABLE.len() + 2);
        assert!(page.contains("| `flush_age` | 1ms to 10s | `250ms` |"));
        assert!(page.lines().skip(2).all(|line| line.matches(" | ").count() == 3), "{page}");
    }
}
