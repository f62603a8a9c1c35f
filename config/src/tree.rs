//! YAML text as a tree whose every value knows its line and column.
//!
//! A configuration uses the plain part of YAML: mappings, lists and scalars in one document.
//! Anchors, aliases, tags and further documents are faults, so that no file is larger in memory
//! than on disk, and none means something else than it looks like. Scalars stay text here: `no`,
//! `1e3` and `0x1f` are given their kind by the table of keys.

use granit_parser::{Event, Parser, ScalarStyle, Span};

use crate::TEXT_BYTES_MAX;
use crate::fault::{Fault, Mark, quote};
use crate::units::size_text;

/// Levels of nesting at most; the table of keys needs three. Bounds the recursion.
const DEPTH_MAX: usize = 16;

/// Values of a file at most. Bounds the number of faults, too.
const NODES_MAX: usize = 20_000;

/// A value and its place.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) mark: Mark,
    pub(crate) body: Body,
}

/// What a value is.
#[derive(Debug)]
pub(crate) enum Body {
    /// No value: an empty place, `~` or `null`.
    Nothing,
    /// Any text, quoted or not.
    Scalar(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file, duplicates included.
    Map(Vec<Entry>),
    /// Something that a fault tells of already.
    Broken,
}

impl Node {
    /// What the value is, for people.
    pub(crate) fn describe(&self) -> String {
        match &self.body {
            Body::Nothing | Body::Broken => "no value".to_owned(),
            Body::Scalar(text) => quote(text),
            Body::List(_) => "a list".to_owned(),
            Body::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// One `key: value` of a mapping.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) mark: Mark,
    pub(crate) value: Node,
}

/// Reads `text`. The tree is as complete as the faults allow; `None` when there is no making sense
/// of the text.
pub(crate) fn read(text: &str) -> (Option<Node>, Vec<Fault>) {
    if text.len() > TEXT_BYTES_MAX {
        let limit = size_text(TEXT_BYTES_MAX as u64);
        let problem = format!("the text is longer than {limit}, so it is no configuration");
        return (None, vec![Fault::new(Mark::START, "", problem)]);
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder { parser: Parser::new_from_str(text), faults: Vec::new(), nodes: 0 };
    let root = builder.document();
    let mut faults = builder.faults;
    let root = root.map_err(|fatal| faults.push(*fatal)).ok();
    (root, faults)
}

type Fatal = Box<Fault>;

struct Builder<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    faults: Vec<Fault>,
    nodes: usize,
}

impl<'a> Builder<'a> {
    fn document(&mut self) -> Result<Node, Fatal> {
        let mut root = None;
        while let Some((event, mark)) = self.next()? {
            match event {
                Event::StreamStart | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                Event::DocumentStart(..) if root.is_some() => {
                    let fault = Fault::new(mark, "", "a second document starts here");
                    self.faults.push(fault.way_out("write one document; remove the line `---`"));
                    break;
                }
                Event::DocumentStart(..) => {}
                other => root = Some(self.node(other, mark, 0)?),
            }
        }
        Ok(root.unwrap_or(Node { mark: Mark::START, body: Body::Nothing }))
    }

    fn next(&mut self) -> Result<Option<(Event<'a>, Mark)>, Fatal> {
        match self.parser.next() {
            None => Ok(None),
            Some(Ok((event, span))) => Ok(Some((event, mark_of(&span)))),
            Some(Err(error)) => {
                let marker = error.marker();
                let mark = Mark { line: marker.line().max(1), column: marker.col() + 1 };
                let problem = format!("this is not YAML: {}", error.info());
                Err(Box::new(
                    Fault::new(mark, "", problem)
                        .way_out("look for a wrong indentation, a tab, or a missing `:` or quote"),
                ))
            }
        }
    }

    /// The next event of an open list or mapping; the parser closes all of them before it ends.
    fn inner(&mut self) -> Result<(Event<'a>, Mark), Fatal> {
        let ended = || Box::new(Fault::new(Mark::START, "", "the text ends within a value"));
        self.next()?.ok_or_else(ended)
    }

    fn node(&mut self, event: Event<'a>, mark: Mark, depth: usize) -> Result<Node, Fatal> {
        self.nodes += 1;
        if self.nodes > NODES_MAX || depth > DEPTH_MAX {
            let problem = format!(
                "more than {NODES_MAX} values or {DEPTH_MAX} levels, so it is no configuration"
            );
            return Err(Box::new(Fault::new(mark, "", problem)));
        }
        let body = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse(mark, anchor, tag.is_some());
                match &*text {
                    "" | "~" | "null" if style == ScalarStyle::Plain => Body::Nothing,
                    text => Body::Scalar(text.to_owned()),
                }
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse(mark, anchor, tag.is_some());
                self.list(depth)?
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse(mark, anchor, tag.is_some());
                self.map(depth)?
            }
            Event::Alias(_) => {
                let fault = Fault::new(mark, "", "an alias (`*name`) is not understood here");
                self.faults.push(fault.way_out("write the value out"));
                Body::Broken
            }
            _ => Body::Broken,
        };
        Ok(Node { mark, body })
    }

    fn list(&mut self, depth: usize) -> Result<Body, Fatal> {
        let mut items = Vec::new();
        loop {
            match self.inner()? {
                (Event::SequenceEnd, _) => return Ok(Body::List(items)),
                (event, mark) => items.push(self.node(event, mark, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Body, Fatal> {
        let mut entries = Vec::new();
        loop {
            let (event, mark) = self.inner()?;
            if event == Event::MappingEnd {
                return Ok(Body::Map(entries));
            }
            let key = self.node(event, mark, depth + 1)?;
            let (event, value_mark) = self.inner()?;
            let value = self.node(event, value_mark, depth + 1)?;
            match key.body {
                Body::Scalar(key) => entries.push(Entry { key, mark, value }),
                Body::Broken => {}
                _ => {
                    let problem = format!("{} stands where a key is expected", key.describe());
                    self.faults.push(Fault::new(mark, "", problem));
                }
            }
        }
    }

    fn refuse(&mut self, mark: Mark, anchor: usize, tagged: bool) {
        if anchor != 0 {
            let fault = Fault::new(mark, "", "an anchor (`&name`) is not understood here");
            self.faults.push(fault.way_out("remove it, and write the value out where it is used"));
        }
        if tagged {
            let fault = Fault::new(mark, "", "a tag (`!name`) is not understood here");
            self.faults.push(fault.way_out("remove it; every key knows what its value is"));
        }
    }
}

fn mark_of(span: &Span) -> Mark {
    Mark { line: span.start.line().max(1), column: span.start.col() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        read(text).1.iter().map(Fault::to_string).collect()
    }

    #[test]
    fn values_know_their_places() {
        let (root, faults) = read("a: 1\nb:\n  - x\n  - y: null\n");
        assert!(faults.is_empty());
        let Body::Map(entries) = root.unwrap().body else { panic!() };
        let place = |mark: Mark| (mark.line, mark.column);
        assert_eq!(place(entries[0].value.mark), (1, 4));
        assert_eq!((entries[1].key.as_str(), place(entries[1].mark)), ("b", (2, 1)));
        let Body::List(items) = &entries[1].value.body else { panic!() };
        assert_eq!(place(items[0].mark), (3, 5));
        let Body::Map(inner) = &items[1].body else { panic!() };
        assert!(matches!(inner[0].value.body, Body::Nothing));
    }

    #[test]
    fn the_parts_of_yaml_that_surprise_are_faults() {
        let all = faults("a: &x 1\nb: *x\nc: !!str 2\n[1]: 3\n--- \nd: 4\n");
        assert_eq!(all.len(), 5, "{all:#?}");
        assert!(all[0].starts_with("1:") && all[0].contains("anchor"));
        assert!(all[1].starts_with("2:4: ") && all[1].contains("alias"));
        assert!(all[2].starts_with("3:") && all[2].contains("tag"));
        assert!(all[3].starts_with("4:1: ") && all[3].contains("key is expected"));
        assert!(all[4].starts_with("5:1: ") && all[4].contains("second document"));
    }

    #[test]
    fn broken_yaml_is_told_with_its_place() {
        let all = faults("a: 1\nb: [1, 2\nc: 3\n");
        assert_eq!(all.len(), 1);
        assert!(all[0].contains("not YAML") && all[0].contains("way out"), "{all:?}");
    }

    #[test]
    fn deep_and_long_texts_are_refused() {
        assert!(faults(&format!("{}a", "- ".repeat(100))).concat().contains("levels"));
        assert!(faults(&"- a\n".repeat(NODES_MAX + 1)).concat().contains("values"));
        assert!(faults(&" ".repeat(TEXT_BYTES_MAX + 1)).concat().contains("1MiB"));
    }

    #[test]
    fn an_empty_text_has_no_value() {
        for text in ["", "# only a comment\n", "---\n", "~", "\u{feff}"] {
            let (root, faults) = read(text);
            assert!(faults.is_empty() && matches!(root.unwrap().body, Body::Nothing), "{text:?}");
        }
    }
}
