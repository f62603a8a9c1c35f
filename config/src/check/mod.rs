//! From the tree to a [`Config`]: one function for each section, then the rules between keys.

mod access;
mod audit;
mod input;
mod policies;
mod retention;
mod snapshots;
mod tier;

use std::cell::RefCell;
use std::path::PathBuf;

use wirevault_format::limits::CHUNK_BYTES;

use crate::fault::Fault;
use crate::input::Input;
use crate::section::{Faults, Item, Section, Value};
use crate::settings::{
    Buffer, Cloud, CloudWatch, Config, Hugepages, Imds, Kms, LogLevel, OnNotice, Sandbox, Topology,
    WhenOut,
};
use crate::tree::{self, Body, Node};
use crate::units::size_text;
use crate::{Given, LANE_CHUNKS_MIN, LANES_MAX};

/// Checks a whole text.
pub(crate) fn config(text: &str, given: &Given) -> Result<Config, Vec<Fault>> {
    let (tree, faults) = tree::read(text);
    let Some(tree) = tree else { return Err(faults) };
    let faults: Faults = RefCell::new(faults);
    let config = whole(text, &tree, given, &faults);
    match (config, faults.into_inner()) {
        (Some(config), faults) if faults.is_empty() => Ok(config),
        (_, faults) => Err(faults),
    }
}

/// `None` only if there is a fault.
fn whole(text: &str, tree: &Node, given: &Given, faults: &Faults) -> Option<Config> {
    let root = Section::root(tree, faults);
    if !matches!(tree.body, Body::Map(_) | Body::Nothing) {
        // What is missing in a text that is no mapping is of no interest.
        return None;
    }
    let cpu_keys = root.section("cpus");
    // The missing input must not hide the faults of the keys after it.
    let input = input::input(&root, faults).unwrap_or(Input::Live(Vec::new()));
    let retention = retention::rules(&root);
    let (policies, pressure) = policies::policies(&root, &input);
    let stores = stores(&root, given, faults);
    let config = Config {
        text: text.to_owned(),
        snapshots: snapshots::snapshots(&root, &stores),
        stores,
        vfio: paths(&root.list("vfio"), faults, "the volume"),
        spares: paths(&root.list("spares"), faults, "the directory"),
        reserve_percent: root.number("reserve").try_into().unwrap_or(u8::MAX),
        standby: root.switch("standby"),
        hold_percent: root.number("hold_share").try_into().unwrap_or(u8::MAX),
        key_file: root.path("key_file"),
        kms: kms(&root.section("kms")),
        input,
        policies,
        pressure,
        buffer: buffer(&root.section("buffer")),
        flush_age: root.duration("flush_age"),
        commit_interval: root.duration("commit_interval"),
        segment_age: root.duration("segment_age"),
        tier: tier::tier(&root, &retention),
        retention,
        audit: audit::audit(&root.section("audit")),
        cloudwatch: cloudwatch(&root.section("cloudwatch")),
        backup: snapshots::backup(&root),
        cloud: cloud(&root.section("cloud")),
        api: access::api(&root.section("api")),
        lane_cpus: cpus(&cpu_keys.list("lanes"), faults),
        topology: choice(&cpu_keys, "topology", Topology::from_name, Topology::Auto),
        log: choice(&root, "log", LogLevel::from_name, LogLevel::Info),
        sandbox: choice(&root, "sandbox", Sandbox::from_name, Sandbox::Auto),
    };
    lanes_fit(&config, &root);
    Some(config)
}

fn stores(root: &Section<'_>, given: &Given, faults: &Faults) -> Vec<PathBuf> {
    if !given.store.is_empty() {
        if root.has("store") {
            root.list("store");
        }
        return given.store.clone();
    }
    paths(&root.list("store"), faults, "the directory")
}

fn paths(items: &[Item], faults: &Faults, what: &str) -> Vec<PathBuf> {
    without_repeats(items, faults, what, |item| match &item.value {
        Value::Text(text) => Some(PathBuf::from(text).components().collect::<PathBuf>()),
        _ => None,
    })
}

fn buffer(section: &Section<'_>) -> Buffer {
    let hugepages = choice(section, "hugepages", Hugepages::from_name, Hugepages::Auto);
    Buffer { size_bytes: section.number("size"), hugepages }
}

fn kms(section: &Section<'_>) -> Kms {
    let policy = |name| choice(section, name, WhenOut::from_name, WhenOut::Extend);
    for name in ["when_exhausted", "when_revoked"] {
        if policy(name) == WhenOut::Seal && !section.has("public_key") {
            let problem = "`seal` needs a key to seal with".to_owned();
            section.fault(name, problem, "add `kms.public_key`".to_owned());
        }
    }
    Kms {
        endpoint: section.text("endpoint"),
        epoch_age: section.duration("epoch_age"),
        epochs_ahead: section.number("epochs_ahead") as usize,
        when_exhausted: policy("when_exhausted"),
        when_revoked: policy("when_revoked"),
        public_key: section.path("public_key"),
        public_key_of: section.text("public_key_of"),
    }
}

fn cloud(section: &Section<'_>) -> Cloud {
    Cloud {
        imds: choice(section, "imds", Imds::from_name, Imds::Auto),
        on_notice: choice(section, "on_notice", OnNotice::from_name, OnNotice::Record),
    }
}

fn cloudwatch(section: &Section<'_>) -> CloudWatch {
    let (namespace, period) = (section.text("namespace"), section.duration("period"));
    if namespace.as_deref().is_some_and(|it| it.starts_with("AWS/")) {
        let problem = "names that begin with `AWS/` are AWS's own".to_owned();
        section.fault("namespace", problem, "name another one".to_owned());
    }
    if period.subsec_nanos() != 0 {
        let problem = "it is no whole number of seconds".to_owned();
        section.fault("period", problem, "write 60s, for example".to_owned());
    }
    CloudWatch {
        publish: section.switch("publish"),
        namespace: namespace.unwrap_or_default(),
        appliance: section.text("appliance"),
        period,
        region: section.text("region"),
        endpoint: section.text("endpoint"),
    }
}

fn cpus(items: &[Item], faults: &Faults) -> Vec<u16> {
    let mut cpus = Vec::new();
    for item in items {
        let Value::Cpus { first, last } = item.value else { continue };
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                let fault = Fault::new(item.mark, &item.path, format!("CPU {cpu} is there twice"));
                let way_out = "name another CPU: two lanes on one halve each other's speed";
                faults.borrow_mut().push(fault.way_out(way_out));
                break;
            }
            cpus.push(cpu);
        }
    }
    cpus
}

/// The rules that tie lanes to the machine's means.
fn lanes_fit(config: &Config, root: &Section<'_>) {
    let lanes = config.lanes();
    if lanes > LANES_MAX {
        let problem = format!("all inputs together have {lanes} lanes; {LANES_MAX} is the most");
        root.fault("capture", problem, "lower `lanes` of some of them".to_owned());
        return;
    }
    let (size, needed) = (config.buffer.size_bytes, buffer_needed(lanes));
    // A size of 0 stands for one that is refused already.
    if size != 0 && size < needed {
        let (size, needed) = (size_text(size), size_text(needed));
        let problem = format!(
            "{size} are too little for {lanes} lanes of {LANE_CHUNKS_MIN} chunks of {} each",
            size_text(CHUNK_BYTES as u64)
        );
        let section = root.section_quiet("buffer");
        let way_out = format!("write {needed} or more");
        section.fault("size", problem, way_out);
    }
    let cpus = config.lane_cpus.len();
    if cpus != 0 && cpus < lanes {
        let problem = format!("{cpus} CPUs are named for {lanes} lanes");
        let way_out = "name a CPU for every lane, or remove `cpus.lanes`".to_owned();
        root.section_quiet("cpus").fault("lanes", problem, way_out);
    }
}

fn buffer_needed(lanes: usize) -> u64 {
    lanes as u64 * LANE_CHUNKS_MIN * CHUNK_BYTES as u64
}

fn choice<T>(
    section: &Section<'_>,
    name: &str,
    from_name: impl Fn(&str) -> Option<T>,
    refused: T,
) -> T {
    section.text(name).and_then(|text| from_name(&text)).unwrap_or(refused)
}

/// The values that `read` makes of `items`; a fault for each that repeats an earlier one.
fn without_repeats<T: PartialEq>(
    items: &[Item],
    faults: &Faults,
    what: &str,
    read: impl Fn(&Item) -> Option<T>,
) -> Vec<T> {
    let mut unique = Vec::new();
    for item in items {
        match read(item) {
            Some(value) if unique.contains(&value) => {
                let problem = format!("{what} is there twice");
                let fault = Fault::new(item.mark, &item.path, problem);
                faults.borrow_mut().push(fault.way_out("remove one of the two"));
            }
            value => unique.extend(value),
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::access::Principal;
    use crate::input::{Capture, Live, LiveSource};
    use crate::settings::SourceKind;

    pub(in crate::check) const MINIMAL: &str = include_str!("../../examples/minimal.yaml");

    pub(in crate::check) fn read(text: &str) -> Config {
        config(text, &Given::default()).unwrap_or_else(|faults| panic!("{faults:#?}"))
    }

    pub(in crate::check) fn live(config: &Config) -> &[Live] {
        let Input::Live(inputs) = &config.input else { panic!("{:?}", config.input) };
        inputs
    }

    /// Faults as `LINE:COLUMN: ...`, in the order of the file.
    pub(in crate::check) fn faults(text: &str) -> Vec<String> {
        let mut faults = config(text, &Given::default()).expect_err(text);
        faults.sort_by_key(|fault| (fault.line, fault.column));
        faults.iter().map(Fault::to_string).collect()
    }

    pub(in crate::check) fn one_fault(text: &str) -> String {
        let all = faults(text);
        assert_eq!(all.len(), 1, "{all:#?}");
        all.concat()
    }

    #[test]
    fn three_lines_are_enough() {
        assert_eq!(MINIMAL.lines().count(), 3);
        let config = read(MINIMAL);
        assert_eq!(config.stores, [Path::new("/var/lib/wirevault")]);
        let capture = Capture {
            interface: "eth0".into(),
            promiscuous: true,
            budget_bytes: None,
            ring_bytes: 64 << 20,
            source: SourceKind::Auto,
            udp_ports: Vec::new(),
            busy_poll: false,
            hardware_time: false,
        };
        let expected = Live {
            path: "capture[0]".into(),
            lanes: 1,
            snaplen_bytes: 262_144,
            filter: None,
            decap: None,
            vxlan_ports: vec![4789, 8472],
            duplicates_window: None,
            source: LiveSource::Capture(capture),
        };
        assert_eq!(config.input, Input::Live(vec![expected]));
        assert_eq!(config.buffer, Buffer { size_bytes: 64 << 20, hugepages: Hugepages::Auto });
        assert_eq!(config.flush_age, Duration::from_millis(250));
        assert_eq!(config.commit_interval, Duration::from_millis(100));
        assert_eq!(config.segment_age, Duration::from_secs(3600));
        assert_eq!(config.api.socket, Path::new("/run/wirevault/wirevault.sock"));
        assert!(config.api.users.is_empty() && config.api.groups.is_empty());
        assert!(config.vfio.is_empty() && config.spares.is_empty());
        assert!(config.key_file.is_none() && config.lane_cpus.is_empty());
        assert_eq!(config.topology, Topology::Auto);
        assert_eq!((config.log, config.lanes()), (LogLevel::Info, 1));
        assert_eq!(config.sandbox, Sandbox::Auto);
    }

    #[test]
    fn every_key_is_taken_over() {
        let config = read(
            "store: [/a, /b]\nreserve: 0%\nhold_share: 50%\nvfio: /b\nspares: /c\nkey_file: /k\n\
             capture:\n  - {interface: eth0, lanes: 2, \
             snaplen: 128, promiscuous: false, filter: 'tcp port 80', ring: 8MiB, source: af_xdp, \
             udp_ports: [4789, 6081], busy_poll: true, budget: 1GiB}\n  \
             - {interface: lo, hardware_time: true}\nbuffer: {size: 128MiB, \
             hugepages: 1GiB}\nflush_age: 10ms\n\
             commit_interval: 1s\nsegment_age: 2h\napi: {socket: /s, users: [ops, 1000], \
             groups: wheel}\ncpus: {topology: split, \
             lanes: [4, 6-8]}\nlog: debug\nsandbox: 'on'\n",
        );
        assert_eq!(config.stores, [Path::new("/a"), Path::new("/b")]);
        assert_eq!(config.vfio, [Path::new("/b")]);
        assert_eq!(config.spares, [Path::new("/c")]);
        assert_eq!((config.reserve_percent, read(MINIMAL).reserve_percent), (0, 10));
        assert_eq!((config.hold_percent, read(MINIMAL).hold_percent), (50, 10));
        assert!(
            one_fault(&format!("{MINIMAL}reserve: 10\n")).contains("write a whole number and %")
        );
        assert_eq!(config.key_file.as_deref(), Some(Path::new("/k")));
        let capture = Capture {
            interface: "eth0".into(),
            promiscuous: false,
            budget_bytes: Some(1 << 30),
            ring_bytes: 8 << 20,
            source: SourceKind::AfXdp,
            udp_ports: vec![4789, 6081],
            busy_poll: true,
            hardware_time: false,
        };
        let expected = Live {
            path: "capture[0]".into(),
            lanes: 2,
            snaplen_bytes: 128,
            filter: Some("tcp port 80".into()),
            decap: None,
            vxlan_ports: vec![4789, 8472],
            duplicates_window: None,
            source: LiveSource::Capture(capture),
        };
        let inputs = live(&config);
        assert_eq!(inputs[0], expected);
        let LiveSource::Capture(second) = &inputs[1].source else { panic!() };
        assert_eq!((second.interface.as_str(), second.hardware_time), ("lo", true));
        assert_eq!(config.lanes(), 3);
        assert_eq!(config.buffer, Buffer { size_bytes: 128 << 20, hugepages: Hugepages::Size1GiB });
        assert_eq!(config.flush_age, Duration::from_millis(10));
        assert_eq!(config.commit_interval, Duration::from_secs(1));
        assert_eq!(config.segment_age, Duration::from_secs(7200));
        assert_eq!(config.api.socket, Path::new("/s"));
        assert_eq!(config.api.users, [Principal::Name("ops".into()), Principal::Id(1000)]);
        assert_eq!(config.api.groups, [Principal::Name("wheel".into())]);
        assert_eq!(config.lane_cpus, [4, 6, 7, 8]);
        assert_eq!(config.topology, Topology::Split);
        assert_eq!((config.log, config.sandbox), (LogLevel::Debug, Sandbox::On));
    }

    #[test]
    fn all_faults_are_told_together_with_their_places() {
        let all = faults(
            "store: relative\ncapture:\n  - inteface: eth0\n    lanes: 64\n    ring: 64MB\n\
             flush_age: 250\nlog: verbose\nlog: info\nlanes: 3\n",
        );
        let starts = [
            "1:8: store: `relative` is not an absolute path",
            "3:5: capture[0].inteface: `inteface` is not a key here",
            "3:5: capture[0].interface: the key is missing",
            "4:12: capture[0].lanes: `64` is outside the range\n    allowed: 1 to 32",
            "5:11: capture[0].ring: `64MB` is 64000000 bytes, which does not fit",
            "6:12: flush_age: `250` is not a length of time",
            "7:6: log: `verbose` is not one of the words known here",
            "8:1: log: the key is there twice; first at 7:1",
            "9:1: lanes: `lanes` is not a key here",
        ];
        assert_eq!(all.len(), starts.len(), "{all:#?}");
        for (fault, start) in all.iter().zip(starts) {
            assert!(fault.starts_with(start), "{fault}\nis not\n{start}");
        }
        assert!(all[1].contains("allowed: interface, lanes,"));
        assert!(all[1].ends_with("way out: did you mean `interface`?"));
        assert!(all[4].ends_with("way out: write 61MiB"));
        assert!(all[5].contains("allowed: 1ms to 10s") && all[5].contains("250ms"));
        assert!(all[6].contains("allowed: error, warn, info, debug, trace"));
        assert!(all[8].ends_with("way out: `lanes` belongs into `capture`"));
    }

    #[test]
    fn a_text_of_another_shape_is_told_once() {
        assert!(one_fault("just words").contains("`just words` stands where `key: value`"));
        assert!(one_fault("- store: /a\n").contains("a list stands where"));
        let misplaced = faults("store: /a\ncapture:\n  - eth0\nbuffer: 64MiB\n");
        assert_eq!(misplaced.len(), 2, "{misplaced:#?}");
        assert!(misplaced[0].starts_with("3:5: capture[0]: `eth0` stands where"));
        assert!(misplaced[1].ends_with("allowed: size, hugepages"));
        assert!(one_fault("store: /a\nreplay: ~\n").contains("replay: the key has no value"));
    }

    #[test]
    fn repeated_things_are_faults() {
        let stores = one_fault("store: [/a, /b, /a/]\ncapture: [{interface: e}]\n");
        assert!(stores.starts_with("1:17: store[2]: the directory is there twice"), "{stores}");
        let twice = "store: /a\ncapture: [{interface: e}, {interface: e}]\n";
        assert!(one_fault(twice).contains("capture[1].interface: `e` is captured already"));
        let cpus = one_fault(&format!("{MINIMAL}cpus: {{lanes: [1-3, 2]}}\n"));
        assert!(cpus.contains("cpus.lanes[1]: CPU 2 is there twice"), "{cpus}");
    }

    #[test]
    fn lanes_must_fit_the_buffer_and_the_cpus() {
        let lanes = "store: /a\ncapture: [{interface: e, lanes: 32}]\n";
        let small = one_fault(&format!("{lanes}buffer: {{size: 16MiB}}\n"));
        assert!(
            small.starts_with("3:16: buffer.size: 16MiB are too little for 32 lanes"),
            "{small}"
        );
        assert!(small.ends_with("write 32MiB or more"));
        let cpus = one_fault(&format!("{lanes}cpus: {{lanes: [0-30]}}\n"));
        assert!(cpus.starts_with("3:15: cpus.lanes: 31 CPUs are named for 32 lanes"), "{cpus}");
        let many: String =
            (0..9).map(|n| format!("  - {{interface: e{n}, lanes: 32}}\n")).collect();
        assert!(one_fault(&format!("store: /a\ncapture:\n{many}")).contains("288 lanes; 256"));
    }

    #[test]
    fn words_of_older_yaml_keep_their_letters() {
        assert!(
            one_fault(&format!("{MINIMAL}    promiscuous: yes\n")).contains("write true or false")
        );
        assert!(
            read(&format!("{MINIMAL}buffer: {{hugepages: off}}\n")).buffer.hugepages
                == Hugepages::Off
        );
        let config = read("store: /a\ncapture: [{interface: no}]\n");
        let LiveSource::Capture(capture) = &live(&config)[0].source else { panic!() };
        assert_eq!(capture.interface, "no");
    }
}
