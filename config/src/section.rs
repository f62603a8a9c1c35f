//! Reads the keys of one section of the tree, as the table says.
//!
//! Every method gives a usable value in any case and notes a fault where there is one, so that
//! checking goes on. What is made from such values is thrown away if there was a fault at all.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::access::{CertificateName, Principal};
use crate::fault::{Fault, Mark, quote};
use crate::keys::{CPU_MAX, INTERFACE_NAME_BYTES_MAX, Key, Kind, TABLE, Without};
use crate::tree::{Body, Entry, Node};
use crate::units::{parse_duration, parse_size, size_text};

/// Faults found so far.
pub(crate) type Faults = RefCell<Vec<Fault>>;

/// A checked scalar.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Number(u64),
    Duration(Duration),
    Switch(bool),
    Text(String),
    Address(SocketAddr),
    Principal(Principal),
    Cpus { first: u16, last: u16 },
    Certificate(CertificateName),
}

/// A checked scalar of a list, and where it stands.
pub(crate) struct Item {
    pub(crate) mark: Mark,
    pub(crate) path: String,
    pub(crate) value: Value,
}

/// One mapping of the tree and the keys that it may hold.
pub(crate) struct Section<'a> {
    entries: &'a [Entry],
    /// Where the mapping stands.
    pub(crate) mark: Mark,
    /// Path for people: `capture[0]`.
    pub(crate) path: String,
    /// Path in the table: `capture[]`.
    table_path: String,
    /// Whether it is a mapping at all; what is missing in anything else is of no interest.
    is_map: bool,
    faults: &'a Faults,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(crate) fn root(node: &'a Node, faults: &'a Faults) -> Self {
        let is_map = matches!(node.body, Body::Map(_) | Body::Nothing);
        Self { is_map, ..Self::new(node, String::new(), String::new(), faults) }
    }

    fn new(node: &'a Node, path: String, table_path: String, faults: &'a Faults) -> Self {
        let entries = match &node.body {
            Body::Map(entries) => entries.as_slice(),
            Body::Nothing | Body::Broken => &[],
            Body::Scalar(_) | Body::List(_) => {
                let problem = format!("{} stands where `key: value` is expected", node.describe());
                let fault = Fault::new(node.mark, &path, problem);
                faults.borrow_mut().push(fault.allowed(names_in(&table_path)));
                &[]
            }
        };
        let is_map = matches!(node.body, Body::Map(_));
        let section = Self { entries, mark: node.mark, path, table_path, is_map, faults };
        section.check_names();
        section
    }

    /// Whether the key stands in the file, be it without a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == name)
    }

    /// Whether it is a mapping in which none of these keys stands.
    pub(crate) fn is_bare(&self, names: &[&str]) -> bool {
        self.is_map && !names.iter().any(|name| self.has(name))
    }

    /// Where the key's value stands, or else the section.
    pub(crate) fn mark_of(&self, name: &str) -> Mark {
        self.given(name).map_or(self.mark, |node| node.mark)
    }

    /// Notes a fault of the key `name` that its value alone does not show.
    pub(crate) fn fault(&self, name: &str, problem: String, way_out: String) {
        let fault = Fault::new(self.mark_of(name), &self.path_of(name), problem);
        self.push(fault.way_out(way_out));
    }

    /// The section `name`; an empty one if it is absent.
    pub(crate) fn section(&self, name: &str) -> Section<'a> {
        static EMPTY: Node = Node { mark: Mark::START, body: Body::Nothing };
        let node = self.given(name).unwrap_or(&EMPTY);
        Section::new(node, self.path_of(name), self.table_path_of(name), self.faults)
    }

    /// As `section`, for a second look: its names are not checked again.
    pub(crate) fn section_quiet(&self, name: &str) -> Section<'a> {
        let (entries, mark) = match self.given(name) {
            Some(Node { mark, body: Body::Map(entries) }) => (entries.as_slice(), *mark),
            _ => (&[][..], self.mark),
        };
        let (path, table_path) = (self.path_of(name), self.table_path_of(name));
        Section { entries, mark, path, table_path, is_map: true, faults: self.faults }
    }

    /// The sections of the list `name`; none if it is absent.
    pub(crate) fn sections(&self, name: &str) -> Vec<Section<'a>> {
        let Some(node) = self.given(name) else { return Vec::new() };
        let Kind::Sections(max) = self.key(name).kind else { return Vec::new() };
        let path = self.path_of(name);
        if matches!(node.body, Body::Broken) {
            return Vec::new();
        }
        let Body::List(items) = &node.body else {
            let problem = format!("{} stands where a list is expected", node.describe());
            let fault =
                Fault::new(node.mark, &path, problem).allowed(self.key(name).kind.allowed());
            self.push(fault.way_out("start every entry with `- `"));
            return Vec::new();
        };
        if items.is_empty() || items.len() > max {
            let problem = format!("the list has {} entries", items.len());
            let fault = Fault::new(node.mark, &path, problem);
            self.push(fault.allowed(self.key(name).kind.allowed()));
        }
        let table_path = format!("{}[]", self.table_path_of(name));
        let section = |(at, item)| {
            Section::new(item, format!("{path}[{at}]"), table_path.clone(), self.faults)
        };
        items.iter().take(max).enumerate().map(section).collect()
    }

    /// A number of bytes, of things or of hundredths.
    pub(crate) fn number(&self, name: &str) -> u64 {
        match self.value(name) {
            Some(Value::Number(number)) => number,
            _ => 0,
        }
    }

    /// A length of time.
    pub(crate) fn duration(&self, name: &str) -> Duration {
        match self.value(name) {
            Some(Value::Duration(duration)) => duration,
            _ => Duration::ZERO,
        }
    }

    /// A switch.
    pub(crate) fn switch(&self, name: &str) -> bool {
        self.value(name) == Some(Value::Switch(true))
    }

    /// Any text; `None` if it is absent.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        match self.value(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// An address to listen on; `None` if it is absent.
    pub(crate) fn address(&self, name: &str) -> Option<SocketAddr> {
        match self.value(name) {
            Some(Value::Address(address)) => Some(address),
            _ => None,
        }
    }

    /// A path; `None` if it is absent.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    /// The values of a list, of which one may stand alone.
    pub(crate) fn list(&self, name: &str) -> Vec<Item> {
        let key = self.key(name);
        let (Kind::List(kind, max), path) = (&key.kind, self.path_of(name)) else {
            return Vec::new();
        };
        let Some(node) = self.given_or_fault(name) else { return Vec::new() };
        let item = |node: &Node, path: String| {
            let value = self.scalar(node, &path, kind)?;
            Some(Item { mark: node.mark, path, value })
        };
        let Body::List(nodes) = &node.body else {
            return item(node, path).into_iter().collect();
        };
        let too_few = nodes.is_empty() && key.without == Without::Fault;
        if too_few || nodes.len() > *max {
            let problem = format!("the list has {} values", nodes.len());
            self.push(Fault::new(node.mark, &path, problem).allowed(key.kind.allowed()));
        }
        let items = nodes.iter().take(*max).enumerate();
        items.filter_map(|(at, node)| item(node, format!("{path}[{at}]"))).collect()
    }

    /// The value of a key that holds one: as given, or its default.
    fn value(&self, name: &str) -> Option<Value> {
        let key = self.key(name);
        match (self.given_or_fault(name), key.without) {
            (Some(node), _) => self.scalar(node, &self.path_of(name), &key.kind),
            (None, Without::Value(default)) => read_scalar(&key.kind, default).ok(),
            (None, _) => None,
        }
    }

    fn scalar(&self, node: &Node, path: &str, kind: &Kind) -> Option<Value> {
        let refusal = match &node.body {
            Body::Broken => return None,
            Body::Scalar(text) => match read_scalar(kind, text) {
                Ok(value) => return Some(value),
                Err(refusal) => refusal,
            },
            _ => Refusal::new(format!("{} stands where one value is expected", node.describe())),
        };
        let mut fault = Fault::new(node.mark, path, refusal.problem).allowed(kind.allowed());
        fault.way_out = refusal.way_out;
        self.push(fault);
        None
    }

    fn given(&self, name: &str) -> Option<&'a Node> {
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        (!matches!(entry.value.body, Body::Nothing)).then_some(&entry.value)
    }

    /// As `given`; absence is a fault if the table says so.
    fn given_or_fault(&self, name: &str) -> Option<&'a Node> {
        let given = self.given(name);
        let key = self.key(name);
        if given.is_none() && self.is_map && key.without == Without::Fault {
            let fault = Fault::new(self.mark, &self.path_of(name), "the key is missing");
            let way_out = format!("add `{name}: {}`, for example", key.example);
            self.push(fault.allowed(key.kind.allowed()).way_out(way_out));
        }
        given
    }

    fn check_names(&self) {
        for (at, entry) in self.entries.iter().enumerate() {
            let path = self.path_of(&entry.key);
            let earlier = self.entries[..at].iter().find(|other| other.key == entry.key);
            if let Some(earlier) = earlier {
                let Mark { line, column } = earlier.mark;
                let problem = format!("the key is there twice; first at {line}:{column}");
                let fault = Fault::new(entry.mark, &path, problem);
                self.push(fault.way_out("keep one of the two"));
            }
            let known = keys_in(&self.table_path).find(|key| key.name() == entry.key);
            let problem = match known {
                None => format!("{} is not a key here", quote(&entry.key)),
                Some(key) if matches!(entry.value.body, Body::Nothing) => {
                    let fault = Fault::new(entry.mark, &path, "the key has no value");
                    let way_out = "write a value, or remove the key for its default";
                    self.push(fault.allowed(key.kind.allowed()).way_out(way_out));
                    continue;
                }
                Some(_) => continue,
            };
            let fault = Fault::new(entry.mark, &path, problem).allowed(names_in(&self.table_path));
            self.push(match suggestion(&self.table_path, &entry.key) {
                Some(way_out) => fault.way_out(way_out),
                None => fault,
            });
        }
    }

    fn push(&self, fault: Fault) {
        self.faults.borrow_mut().push(fault);
    }

    fn path_of(&self, name: &str) -> String {
        join(&self.path, name)
    }

    fn table_path_of(&self, name: &str) -> String {
        join(&self.table_path, name)
    }

    /// The row of the table. The names come from this crate, and a test reads every row.
    fn key(&self, name: &str) -> &'static Key {
        let key = keys_in(&self.table_path).find(|key| key.name() == name);
        key.expect("the checks ask only for keys that are in the table")
    }
}

/// Why a value is refused.
pub(crate) struct Refusal {
    problem: String,
    way_out: Option<String>,
}

impl Refusal {
    fn new(problem: String) -> Self {
        Self { problem, way_out: None }
    }

    fn way_out(mut self, way_out: impl Into<String>) -> Self {
        self.way_out = Some(way_out.into());
        self
    }
}

/// Reads one value as its kind demands.
pub(crate) fn read_scalar(kind: &Kind, text: &str) -> Result<Value, Refusal> {
    let is_no = |what: &str| Refusal::new(format!("{} is not {what}", quote(text)));
    let outside = || Refusal::new(format!("{} is outside the range", quote(text)));
    match kind {
        Kind::Size { min, max, step } => {
            let unit = "write a number and a unit, 64MiB or 512KiB for example";
            let bytes = parse_size(text).ok_or_else(|| is_no("a size").way_out(unit))?;
            if bytes < *min || bytes > *max {
                return Err(outside());
            }
            if !bytes.is_multiple_of(*step) {
                let problem = format!("{} is {bytes} bytes, which does not fit", quote(text));
                let fitting = size_text((bytes / step * step).max(*min));
                return Err(Refusal::new(problem).way_out(format!("write {fitting}")));
            }
            Ok(Value::Number(bytes))
        }
        Kind::Duration { min, max } => {
            let unit = "write a number and a unit, 250ms or 1h for example";
            let duration =
                parse_duration(text).ok_or_else(|| is_no("a length of time").way_out(unit))?;
            let fits = (*min..=*max).contains(&duration);
            if fits { Ok(Value::Duration(duration)) } else { Err(outside()) }
        }
        Kind::Percent { min, max } => {
            let unit = "write a whole number and %, 10% for example";
            let percent = text.strip_suffix('%').and_then(|number| number.trim_end().parse().ok());
            let percent = percent.ok_or_else(|| is_no("a share").way_out(unit))?;
            let fits = (*min..=*max).contains(&percent);
            if fits { Ok(Value::Number(percent)) } else { Err(outside()) }
        }
        Kind::Count { min, max } => {
            let count = text.parse().map_err(|_| is_no("a whole number"))?;
            let fits = (*min..=*max).contains(&count);
            if fits { Ok(Value::Number(count)) } else { Err(outside()) }
        }
        Kind::Switch => match text {
            "true" => Ok(Value::Switch(true)),
            "false" => Ok(Value::Switch(false)),
            _ => Err(is_no("a switch").way_out("write true or false")),
        },
        Kind::Choice(names) if names.contains(&text) => Ok(Value::Text(text.to_owned())),
        Kind::Choice(names) => {
            let refusal = is_no("one of the words known here");
            Err(match closest(text, names.iter().copied()) {
                Some(name) => refusal.way_out(format!("did you mean `{name}`?")),
                None => refusal,
            })
        }
        Kind::Path(max) => read_path(text, *max),
        Kind::Word(max) => {
            match text.is_empty() || text.len() > *max || text.contains(char::is_whitespace) {
                true => Err(is_no("a word")),
                false => Ok(Value::Text(text.to_owned())),
            }
        }
        Kind::Interface => read_interface(text),
        Kind::Filter(max) if text.trim().is_empty() || text.len() > *max => {
            let refusal = Refusal::new(format!("the filter has {} bytes", text.len()));
            Err(refusal.way_out("shorten it, or remove the key to record all packets"))
        }
        Kind::Filter(_) if text.contains('\0') => Err(is_no("a filter")),
        Kind::Filter(_) => Ok(Value::Text(text.to_owned())),
        Kind::Address => read_address(text),
        Kind::Endpoint => read_endpoint(text),
        Kind::Principal => read_principal(text),
        Kind::Cpus => read_cpus(text),
        Kind::CertificateName(max) => CertificateName::read(text)
            .filter(|_| text.len() <= *max)
            .map(Value::Certificate)
            .ok_or_else(|| is_no("a name in a certificate").way_out("write cn:alice, for example")),
        Kind::Section | Kind::Sections(_) | Kind::List(..) => {
            Err(is_no("a list or a mapping, as it should be"))
        }
    }
}

fn read_path(text: &str, max: usize) -> Result<Value, Refusal> {
    let is = |what: &str| Refusal::new(format!("{} {what}", quote(text)));
    if !text.starts_with('/') {
        let way_out =
            "write the whole path, starting with /; a service has no directory of its own";
        return Err(is("is not an absolute path").way_out(way_out));
    }
    if text.len() > max || text.contains('\0') {
        return Err(is(&format!("has {} bytes, or a zero byte", text.len())));
    }
    Ok(Value::Text(text.to_owned()))
}

/// Source: `dev_valid_name` of the Linux kernel.
fn read_interface(text: &str) -> Result<Value, Refusal> {
    let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
    let length = 1..=INTERFACE_NAME_BYTES_MAX;
    if !length.contains(&text.len()) || text == "." || text == ".." || text.contains(bad) {
        let refusal = Refusal::new(format!("{} cannot be an interface's name", quote(text)));
        return Err(refusal.way_out("`ip link` lists the names"));
    }
    Ok(Value::Text(text.to_owned()))
}

fn read_address(text: &str) -> Result<Value, Refusal> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() > 0 => Ok(Value::Address(address)),
        _ => Err(Refusal::new(format!("{} is not an address and a port", quote(text)))
            .way_out("write 127.0.0.1:57012, [::1]:57012 or 0.0.0.0:57012, for example")),
    }
}

/// Source of the length: RFC 1035, section 2.3.4.
fn read_endpoint(text: &str) -> Result<Value, Refusal> {
    let host = |host: &str| {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let odd = |c: char| c.is_whitespace() || c.is_control() || "/@[]".contains(c);
        let bad = |c: char| odd(c) || (bare.is_none() && c == ':');
        (1..=253).contains(&host.len()) && !bare.unwrap_or(host).contains(bad)
    };
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    match text.rsplit_once(':') {
        Some((name, number)) if host(name) && port(number) => Ok(Value::Text(text.to_owned())),
        _ => Err(Refusal::new(format!("{} is not a host and a port", quote(text)))
            .way_out("write sensor.example:57012 or [2001:db8::1]:57012, for example")),
    }
}

/// Source: the strict names of systemd's documentation on users and groups, with dots and capitals
/// allowed as directories serve them.
fn read_principal(text: &str) -> Result<Value, Refusal> {
    if let Ok(id) = text.parse() {
        return Ok(Value::Principal(Principal::Id(id)));
    }
    let start = |c: char| c.is_ascii_alphabetic() || c == '_';
    let inner = |c: char| c.is_ascii_alphanumeric() || "_-.@$".contains(c);
    if !text.starts_with(start) || !text.chars().all(inner) || text.len() > 255 {
        let problem = format!("{} is neither a name nor a number", quote(text));
        return Err(
            Refusal::new(problem).way_out("`getent passwd` and `getent group` list the names")
        );
    }
    Ok(Value::Principal(Principal::Name(text.to_owned())))
}

fn read_cpus(text: &str) -> Result<Value, Refusal> {
    let number = |text: &str| text.trim().parse().ok().filter(|cpu| *cpu <= CPU_MAX);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(Value::Cpus { first, last }),
        _ => Err(Refusal::new(format!("{} names no CPU", quote(text)))
            .way_out("`lscpu --extended` lists the CPUs")),
    }
}

fn keys_in(table_path: &str) -> impl Iterator<Item = &'static Key> {
    TABLE.iter().filter(move |key| key.parent() == table_path)
}

fn names_in(table_path: &str) -> String {
    keys_in(table_path).map(Key::name).collect::<Vec<_>>().join(", ")
}

/// What was probably meant by an unknown key: a similar name here, or the same name elsewhere.
fn suggestion(table_path: &str, name: &str) -> Option<String> {
    if let Some(similar) = closest(name, keys_in(table_path).map(Key::name)) {
        return Some(format!("did you mean `{similar}`?"));
    }
    let elsewhere = TABLE.iter().find(|key| key.name() == name)?;
    Some(match elsewhere.parent() {
        "" => format!("`{name}` belongs to the top of the file"),
        parent => format!("`{name}` belongs into `{}`", parent.trim_end_matches("[]")),
    })
}

/// The most similar of `names`, if one is similar: a third of the letters may differ.
fn closest<'n>(text: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let lower = text.to_lowercase().replace('-', "_");
    // Long texts are never similar, and comparing them costs their length squared.
    if lower.len() > 64 {
        return None;
    }
    let distance = |name: &str| strsim::osa_distance(&lower, &name.to_lowercase());
    let nearest = names.map(|name| (distance(name), name)).min_by_key(|(distance, _)| *distance);
    nearest.filter(|(distance, name)| *distance <= name.len().div_ceil(3)).map(|(_, name)| name)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_and_example_is_within_its_own_range() {
        for key in TABLE {
            let kind = match &key.kind {
                Kind::Section | Kind::Sections(_) => continue,
                Kind::List(item, _) => item,
                kind => kind,
            };
            let inner = key.example.trim_matches(['[', ']']);
            for text in inner.split(", ").filter(|text| !text.is_empty()) {
                let read = read_scalar(kind, text).map_err(|refusal| refusal.problem);
                assert!(read.is_ok(), "{}: {read:?}", key.path);
            }
        }
    }

    #[test]
    fn similar_names_are_found_and_others_are_not() {
        let names = ["interface", "lanes", "ring"];
        assert_eq!(closest("inteface", names.into_iter()), Some("interface"));
        assert_eq!(closest("Lanes", names.into_iter()), Some("lanes"));
        assert_eq!(closest("lane", names.into_iter()), Some("lanes"));
        assert_eq!(closest("queues", names.into_iter()), None);
        assert_eq!(closest(&"x".repeat(100_000), names.into_iter()), None);
    }

    #[test]
    fn names_follow_the_kernel_and_the_user_database() {
        let interface = |text| read_interface(text).is_ok();
        assert!(interface("eth0") && interface("br-1a2b3c4d5e6f") && interface("wlan0.7"));
        assert!(!interface("") && !interface("..") && !interface("a b") && !interface("eth0:1"));
        assert!(!interface("a123456789012345"));
        assert!(matches!(read_principal("1000"), Ok(Value::Principal(Principal::Id(1000)))));
        assert!(read_principal("net.admin-1").is_ok() && read_principal("-x").is_err());
        assert!(read_principal("4294967296").is_err() && read_principal("").is_err());
    }

    #[test]
    fn addresses_and_hosts_have_a_port() {
        for text in ["127.0.0.1:57012", "[::1]:1", "0.0.0.0:65535"] {
            assert!(read_address(text).is_ok() && read_endpoint(text).is_ok(), "{text}");
        }
        assert!(read_address("localhost:57012").is_err(), "it may stand for several");
        assert!(read_endpoint("localhost:57012").is_ok());
        for text in ["", ":", ":1", "57012", "a", "a:", "a:0", "a:65536", "a b:1", "::1:5", "[a:1"]
        {
            assert!(read_address(text).is_err() && read_endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpus_are_numbers_and_ranges() {
        assert!(matches!(read_cpus("3"), Ok(Value::Cpus { first: 3, last: 3 })));
        assert!(matches!(read_cpus("2-5"), Ok(Value::Cpus { first: 2, last: 5 })));
        for text in ["", "-", "5-2", "-1", "1-", "8192", "a"] {
            assert!(read_cpus(text).is_err(), "{text}");
        }
    }
}
