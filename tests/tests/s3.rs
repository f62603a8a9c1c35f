//! The object tier in a bucket: answers, and all that a bucket refuses. The double is moto behind a
//! check of signatures and checksums; see `tests/aws/buckets.py` for what nobody checks.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Command, Output};

use serde_json::{Value, json};
use wirevault_index::tier::segment_object;
use wirevault_index::{KeySource, open_store};
use wirevault_tests::aws::Aws;
use wirevault_tests::captures::{Packet, parse_pcap};
use wirevault_tests::frames::{Fragment, ethernet, ipv4, udp};
use wirevault_tests::oracle::{compare, tcpdump};
use wirevault_tests::recorder::program;
use wirevault_tests::store::{TestStore, code, succeed, text, words};

const START_NS: u64 = 1_700_000_000_000_000_000;
/// More than are sent in one piece: an upload of two.
const MANY: u64 = 7_000;
const FEW: u64 = 100;

fn packets(count: u64) -> Vec<Packet> {
    let packet = |number: u64| {
        let from = Ipv4Addr::new(10, 0, 0, (number % 7) as u8);
        let body = udp(5_000, if number.is_multiple_of(3) { 53 } else { 443 }, &[7; 1_300]);
        let to = Ipv4Addr::new(10, 0, 9, 9);
        let data = ethernet(1, 2, 0x0800, &ipv4(from, to, 17, &[], Fragment::Whole, &body));
        Packet { ts_ns: START_NS + number * 1_001, orig_len: data.len() as u32, data }
    };
    (0..count).map(packet).collect()
}

/// A store, and a bucket for what is in it.
struct Site {
    store: TestStore,
    aws: Aws,
    bucket: &'static str,
}

impl Site {
    /// Nothing where the emulator is not installed.
    fn new(sealed: bool, count: u64) -> Option<Self> {
        let aws = Aws::start()?;
        let bucket = aws.create_bucket();
        Some(Self { store: TestStore::holding(sealed, &packets(count)), aws, bucket })
    }

    /// `wirevault` with this store, and with these variables beside those of the service.
    fn run(&self, verb: &[&str], args: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new(program("wirevault"));
        command.envs(self.aws.environment()).envs(environment.iter().copied());
        command.args(verb).arg("--store").arg(self.store.dir()).args(args);
        command.output().expect("wirevault")
    }

    /// Moves what the rules name, which is everything, to a tier in this bucket.
    fn apply(&self, bucket: &str, environment: &[(&str, &str)]) -> Output {
        let config = self.store.path("tier.yaml");
        let yaml = format!(
            "store: {}\nreplay:\n  file: /x\ntier:\n  url: s3://{bucket}/site-1\n  \
             keep_local: false\nretention:\n  - name: cold\n    action: tier\n",
            text(&self.store.dir())
        );
        fs::write(&config, yaml).expect("a configuration");
        self.run(&["lifecycle", "apply"], &["--config", &text(&config)], environment)
    }

    /// Names of all objects.
    fn objects(&self, change: &Value) -> Vec<String> {
        self.aws.objects(change).into_keys().collect()
    }

    /// Where its one segment is.
    fn place(&self) -> String {
        let listed = self.run(&["segments"], &["--json"], &[]);
        let rows: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
        rows[0]["at"].as_str().unwrap_or_else(|| panic!("{}", words(&listed))).to_owned()
    }

    /// Name of the object that it goes to.
    fn object(&self) -> String {
        let store = open_store(&self.store.dir(), &KeySource::Recorded).expect("the store opens");
        let life = store.catalog(0).segments[0].entry.life;
        format!("site-1/{}", segment_object(store.store, life))
    }

    fn found(&self, filter: &str) -> Vec<Packet> {
        let output = self.run(&["query"], &["--format", "pcap", "-w", "-", filter], &[]);
        succeed(&output);
        parse_pcap(&output.stdout)
    }
}

#[test]
fn answers_from_a_bucket_are_those_of_tcpdump() {
    for sealed in [true, false] {
        let Some(site) = Site::new(sealed, MANY) else { return };
        succeed(&site.apply(site.bucket, &[]));
        assert_eq!((site.place().as_str(), site.store.segment_files().len()), ("tiered", 0));
        let calls = site.aws.calls();
        assert_eq!(calls.iter().filter(|call| *call == "UploadPart").count(), 2, "{calls:?}");
        for filter in ["", "udp port 53", "host 10.0.0.3", "arp or port 443"] {
            let wanted = tcpdump(&site.store.path("original.pcap"), filter).expect("tcpdump");
            compare(&wanted, &site.found(filter)).unwrap_or_else(|what| panic!("{filter}: {what}"));
        }
        succeed(&site.run(&["verify"], &[], &[]));
        assert_eq!(site.objects(&json!({})).len(), if sealed { 2 } else { 1 });
        succeed(&site.run(&["delete"], &["--segment", "1", "--yes"], &[]));
        assert_eq!(site.objects(&json!({})), Vec::<String>::new());
    }
}

/// Bucket, environment and fault; words of the answer.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Value, [&'a str; 2]);

#[test]
fn what_a_bucket_refuses_is_told_and_nothing_is_lost() {
    let Some(site) = Site::new(true, FEW) else { return };
    let (nobody, stranger) = (
        [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", ""), ("HOME", "/nonexistent")],
        [("AWS_SECRET_ACCESS_KEY", "another")],
    );
    let put = |fault: Value| {
        let mut fault = fault;
        (fault["op"], fault["count"]) = ("PutObject".into(), 9.into());
        json!([fault])
    };
    let denied = put(json!({ "code": "AccessDenied", "status": 403 }));
    let cases: [Case<'_>; 6] = [
        (site.bucket, &nobody, json!([]), ["access is refused", "load signing credential"]),
        (site.bucket, &stranger, json!([]), ["access is refused", "SignatureDoesNotMatch"]),
        ("another-bucket", &[], json!([]), ["no such place", "NoSuchBucket"]),
        (site.bucket, &[], denied, ["access is refused", "AccessDenied"]),
        (site.bucket, &[], put(json!({ "cut": true })), ["nobody answers in time", "request"]),
        (site.bucket, &[], put(json!({ "flip": true })), ["it failed", "BadDigest"]),
    ];
    for (bucket, environment, fault, wanted) in cases {
        site.aws.set_faults(&fault);
        let said = site.apply(bucket, environment);
        let told = wanted.iter().all(|what| words(&said).contains(what));
        assert!(code(&said) == 2 && told, "{fault}, {wanted:?}: {}", words(&said));
        assert_eq!((site.place().as_str(), site.store.segment_files().len()), ("local", 1));
        assert_eq!(site.objects(&json!({})), Vec::<String>::new());
    }
    // What breaks off and what is busy for a moment is tried again.
    site.aws.set_faults(&json!([
        { "op": "PutObject", "code": "SlowDown", "status": 503 },
        { "op": "GetObject", "cut": true },
    ]));
    succeed(&site.apply(site.bucket, &[]));
    assert_eq!(site.place(), "tiered");

    site.aws.set_faults(&json!([{ "op": "*", "count": 9, "delay_s": 0.1 }]));
    assert_eq!(site.found("").len() as u64, FEW);
    let said = site.run(&["query"], &["--count"], &stranger);
    assert_eq!(code(&said), 3, "{}", words(&said));
}

#[test]
fn what_has_the_name_of_an_object_is_not_overwritten() {
    let Some(site) = Site::new(true, FEW) else { return };
    let name = site.object();
    site.objects(&json!({ "put": { &name: "of somebody else" } }));
    let said = site.apply(site.bucket, &[]);
    let told = words(&said).contains("is not the segment that it is named after");
    assert!(code(&said) == 2 && told, "{}", words(&said));
    let sizes = site.aws.objects(&json!({}));
    assert_eq!((site.place().as_str(), sizes[&name]), ("local", 16));
    site.objects(&json!({ "delete": [name] }));
    succeed(&site.apply(site.bucket, &[]));
    assert_eq!(site.place(), "tiered");
}
