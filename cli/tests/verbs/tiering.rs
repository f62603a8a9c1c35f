//! The object tier: segments go to a folder, are asked there, and go from it.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use wirevault_daemon::reload::ConfigFile;

use crate::common::{Lab, Said, pcap, run, tcpdump};

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
const FILTERS: [&str; 4] = ["", "udp port 53", "host 10.0.0.3", "not arp"];

/// A store with packets, a folder for the tier, and a configuration that moves everything there.
struct Site {
    lab: Lab,
    more: String,
}

impl Site {
    fn new(plaintext: bool, more: &str) -> Self {
        let lab = Lab::filled(plaintext, 500);
        fs::create_dir(lab.path("tier")).unwrap();
        Self { lab, more: more.to_owned() }
    }

    fn config(&self) -> String {
        let text = format!(
            "store: {}\nsandbox: off\nreplay:\n  file: {}\napi:\n  socket: {}\nbuffer:\n  \
             size: 16MiB\ntier:\n  url: file://{}\n{}retention:\n  - name: cold\n    \
             action: tier\n",
            self.lab.store(),
            self.lab.text("b.pcap"),
            self.lab.text("s.sock"),
            self.lab.text("tier"),
            self.more
        );
        fs::write(self.lab.path("c.yaml"), text).unwrap();
        self.lab.text("c.yaml")
    }

    fn lifecycle(&self, verb: &str) -> Said {
        run(["lifecycle", verb, "--store", self.lab.store(), "--config", &self.config(), "--json"])
    }

    /// Where each segment is.
    fn places(&self) -> Vec<String> {
        let rows = json(&self.lab.ask("segments", &["--json"]));
        let at = |row: &Value| row["at"].as_str().unwrap().to_owned();
        rows.as_array().unwrap().iter().map(at).collect()
    }

    /// What is found, line by line as tcpdump prints it, with the exit code and the summary.
    fn query(&self, filter: &str) -> (Vec<String>, Option<i32>, Value) {
        let (out, summary) = (self.lab.text("out.pcapng"), self.lab.text("summary.json"));
        let said = self.lab.ask("query", &["-w", &out, "--summary", &summary, filter]);
        let summary = serde_json::from_slice(&fs::read(summary).unwrap()).unwrap();
        (tcpdump(Path::new(&out), ""), said.code, summary)
    }
}

fn json(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

fn objects(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).map(|entries| entries.map(|it| it.unwrap().path()));
    entries
        .map_or(0, |paths| paths.map(|path| if path.is_dir() { objects(&path) } else { 1 }).sum())
}

#[test]
fn answers_from_the_tier_are_those_of_tcpdump() {
    for plaintext in [false, true] {
        let site = Site::new(plaintext, "  keep_local: false\n");
        let planned = json(&site.lifecycle("plan"));
        let step = &planned["steps"][0];
        assert!(step["action"] == "tier" && step["reason"] == "rule cold", "{planned}");
        assert_eq!((site.places(), objects(&site.lab.path("tier"))), (vec!["local".into()], 0));
        let done = json(&site.lifecycle("apply"));
        assert_eq!(
            (&done["moved"], done["certificates"].as_array().unwrap().len()),
            (&1.into(), 0)
        );
        assert_eq!((site.places(), site.lab.segments().len()), (vec!["tiered".to_owned()], 0));
        assert_eq!(objects(&site.lab.path("tier")), if plaintext { 1 } else { 2 });
        for filter in FILTERS {
            let (found, code, summary) = site.query(filter);
            assert_eq!(found, tcpdump(&site.lab.path("a.pcap"), filter), "{filter}");
            assert!(code == Some(0) && summary["complete"] == true, "{summary}");
            assert!(summary["tier_bytes"].as_u64() > Some(0), "{summary}");
        }
        assert_eq!(site.lifecycle("plan").code, Some(1), "and nothing is left to do");
        assert_eq!(site.lab.ask("verify", &[]).code, Some(0));
        let log = run(["audit", "show", "--store", site.lab.store()]).out;
        assert!(
            log.contains("segment 1 lies in file://") && log.contains("for rule cold"),
            "{log}"
        );
    }
}

#[test]
fn a_tier_that_is_away_makes_answers_incomplete_and_says_so() {
    let site = Site::new(false, "  keep_local: false\n");
    assert_eq!(site.lifecycle("apply").code, Some(0));
    fs::rename(site.lab.path("tier"), site.lab.path("away")).unwrap();
    let (found, code, summary) = site.query("");
    assert_eq!((found.len(), code), (0, Some(3)), "{summary}");
    assert_eq!(summary["gaps"][0]["cause"], "tier_unreachable", "{summary}");
    assert_eq!(summary["gaps"][0]["packets"], 500, "{summary}");
    let said = site.lab.ask("delete", &["--segment", "1", "--yes"]);
    assert!(said.code == Some(2) && said.err.contains("mount it, or make it"), "{said:?}");
    fs::rename(site.lab.path("away"), site.lab.path("tier")).unwrap();
    // The deletion was begun, and nothing else happens to the segment.
    assert_eq!(site.query("").0.len(), 0);
    assert_eq!(objects(&site.lab.path("tier")), 2);
}

#[test]
fn what_is_deleted_goes_from_the_tier_as_well() {
    let site = Site::new(false, "");
    assert_eq!(site.lifecycle("apply").code, Some(0));
    assert_eq!((site.places(), site.lab.segments().len()), (vec!["both".to_owned()], 1));
    let said = site.lab.ask("delete", &["--segment", "1", "--yes", "--json"]);
    let done = json(&said);
    let paths: Vec<_> =
        done["certificates"].as_array().unwrap().iter().map(|it| &it["path"]).collect();
    assert!(paths.len() == 2 && paths[1].as_str().unwrap().starts_with("file://"), "{done}");
    assert_eq!((objects(&site.lab.path("tier")), site.lab.segments().len()), (0, 0));
    let said = run(["certificate", "verify", "--store", site.lab.store()]);
    assert_eq!((said.code, said.out.matches("so it is").count()), (Some(0), 2), "{said:?}");
    let file = site.lab.text("a.pcap");
    assert_eq!(site.lab.ask("import", &[&file]).code, Some(0));
    assert_eq!(site.query("").0.len(), 500, "and the store goes on");
}

/// A recorder moves by itself what its rules say, answers from there, and goes on where segments
/// lie that its configuration does not name.
#[test]
fn a_recorder_moves_what_its_rules_say() {
    let site = Site::new(false, "  keep_local: false\n");
    fs::write(site.lab.path("b.pcap"), pcap(1, 40)).unwrap();
    let socket = site.lab.text("s.sock");
    let config = wirevault_config::load(Path::new(&site.config())).unwrap();
    let file = ConfigFile::new(Path::new(&site.config()), Vec::new());
    thread::spawn(move || {
        let services = wirevault_index::KeySource::Recorded.into();
        if let Err(error) = wirevault_daemon::serve::run(&config, &file, &services) {
            eprintln!("daemon: {}", error.chain());
        }
    });
    let ask = |verb: &str, more: &[&str]| {
        run([verb, "--socket", &socket].iter().copied().chain(more.iter().copied()))
    };
    let started = Instant::now();
    let wait_for = |what: &str, seen: &dyn Fn() -> bool| {
        while !seen() {
            assert!(started.elapsed() < PATIENCE, "{what}: {:?}", ask("segments", &[]));
            thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for("it moves", &|| ask("segments", &[]).out.contains("tiered"));
    wait_for("all is found", &|| ask("query", &["--count"]).out == "540\n");
    let said = ask("status", &[]);
    assert!(said.out.contains("tier      file://") && said.out.contains("1 segment"), "{said:?}");
    let said = run(["lifecycle", "drain", "--within", "60", "--socket", &socket]);
    let all = ["0 segments moved to the tier, 0 left\n", "1 segment moved to the tier, 0 left\n"];
    assert!(said.code == Some(0) && all.contains(&said.out.as_str()), "{said:?}");
    let status = json(&ask("status", &["--json"]));
    assert!(
        status["tier"]["segments"].as_u64() >= Some(1) && status["tier"]["trouble"].is_null(),
        "{status}"
    );
}

#[test]
fn a_recorder_does_not_start_without_the_tier_of_its_segments() {
    let site = Site::new(false, "  keep_local: false\n");
    assert_eq!(site.lifecycle("apply").code, Some(0));
    fs::write(site.lab.path("b.pcap"), pcap(1, 40)).unwrap();
    let text = fs::read_to_string(site.config()).unwrap();
    let (head, _) = text.split_once("tier:").unwrap();
    let config = wirevault_config::parse(head, "test").unwrap_or_else(|faults| panic!("{faults}"));
    let file = ConfigFile::new(Path::new("test.yaml"), Vec::new());
    let services = wirevault_index::KeySource::Recorded.into();
    let error = wirevault_daemon::serve::run(&config, &file, &services).unwrap_err().chain();
    assert!(error.contains("tier.url is absent") && error.contains("1 segments"), "{error}");
}
