//! The object tier in a bucket: answers, and all that a bucket refuses. There are two doubles that
//! share no code: moto behind a check of signatures and checksums, which has faults and knows calls
//! (see `tests/aws/buckets.py` for what nobody checks), and `s3s-fs`, whose objects are files.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Command, Output};

use serde_json::{Value, json};
use wirevault_index::tier::segment_object;
use wirevault_index::{KeySource, open_store};
use wirevault_tests::aws::{Aws, BUCKET};
use wirevault_tests::captures::{Packet, parse_pcap};
use wirevault_tests::frames::{Fragment, ethernet, ipv4, udp};
use wirevault_tests::oracle::{compare, tcpdump};
use wirevault_tests::recorder::program;
use wirevault_tests::s3s::S3s;
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

/// A store, and a service with a bucket for what is in it.
struct Site<S> {
    store: TestStore,
    service: S,
    environment: [(&'static str, String); 5],
}

impl Site<Aws> {
    /// Nothing where the emulator is not installed.
    fn with_moto(sealed: bool, count: u64) -> Option<Self> {
        let service = Aws::start()?;
        service.create_bucket();
        let (store, environment) = (stored(sealed, count), service.environment());
        Some(Self { store, service, environment })
    }

    /// Names of all objects.
    fn objects(&self, change: &Value) -> Vec<String> {
        self.service.objects(change).into_keys().collect()
    }
}

impl Site<S3s> {
    /// Nothing where the server is not installed.
    fn with_files(sealed: bool, count: u64) -> Option<Self> {
        let service = S3s::start()?;
        let (store, environment) = (stored(sealed, count), service.environment());
        Some(Self { store, service, environment })
    }
}

fn stored(sealed: bool, count: u64) -> TestStore {
    TestStore::holding(sealed, &packets(count))
}

impl<S> Site<S> {
    /// `wirevault` with this store, and with these variables beside those of the service.
    fn run(&self, verb: &[&str], args: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new(program("wirevault"));
        command.envs(self.environment.clone()).envs(environment.iter().copied());
        command.args(verb).arg("--store").arg(self.store.dir()).args(args);
        command.output().expect("wirevault")
    }

    /// Moves what the rules name, which is everything, to a tier in this bucket.
    fn apply(&self, bucket: &str, environment: &[(&str, &str)]) -> Output {
        self.apply_to(&format!("s3://{bucket}/site-1"), environment)
    }

    /// The same, to a tier at this address.
    fn apply_to(&self, url: &str, environment: &[(&str, &str)]) -> Output {
        let config = self.store.path("tier.yaml");
        let yaml = format!(
            "store: {}\nreplay:\n  file: /x\ntier:\n  url: {url}\n  \
             keep_local: false\nretention:\n  - name: cold\n    action: tier\n",
            text(&self.store.dir())
        );
        fs::write(&config, yaml).expect("a configuration");
        self.run(&["lifecycle", "apply"], &["--config", &text(&config)], environment)
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

    /// Moves everything to its bucket and compares what is found there.
    fn answers_from_its_bucket(&self) {
        succeed(&self.apply(BUCKET, &[]));
        assert_eq!((self.place().as_str(), self.store.segment_files().len()), ("tiered", 0));
        for filter in ["", "udp port 53", "host 10.0.0.3", "arp or port 443"] {
            let wanted = tcpdump(&self.store.path("original.pcap"), filter).expect("tcpdump");
            compare(&wanted, &self.found(filter)).unwrap_or_else(|what| panic!("{filter}: {what}"));
        }
        succeed(&self.run(&["verify"], &[], &[]));
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
        let Some(site) = Site::with_moto(sealed, MANY) else { return };
        site.answers_from_its_bucket();
        let calls = site.service.calls();
        assert_eq!(calls.iter().filter(|call| *call == "UploadPart").count(), 2, "{calls:?}");
        assert_eq!(site.objects(&json!({})).len(), if sealed { 2 } else { 1 });
        succeed(&site.run(&["delete"], &["--segment", "1", "--yes"], &[]));
        assert_eq!(site.objects(&json!({})), Vec::<String>::new());
    }
}

#[test]
fn objects_are_sealed_files_and_altered_ones_are_told() {
    for sealed in [true, false] {
        let Some(site) = Site::with_files(sealed, MANY) else { return };
        let segment = fs::read(&site.store.segment_files()[0]).expect("a segment");
        let name = site.object();
        site.answers_from_its_bucket();
        let objects = site.service.objects();
        assert_eq!(objects.len(), if sealed { 2 } else { 1 }, "{objects:?}");
        let object = &objects[&name];
        let mut bytes = fs::read(object).expect("an object");
        assert!(segment.starts_with(&bytes), "the copy is the same bytes");
        let payload = [7; 1_300];
        let readable = bytes.windows(payload.len()).any(|window| window == payload);
        assert_eq!(readable, !sealed);

        let stranger = [("AWS_SECRET_ACCESS_KEY", "another")];
        let said = site.run(&["query"], &["--count"], &stranger);
        let told = words(&said).contains("tier_unreachable");
        assert!(code(&said) == 3 && told, "{}", words(&said));

        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(object, &bytes).expect("an altered object");
        let said = site.run(&["query"], &["--count"], &[]);
        assert!(code(&said) == 3 && words(&said).contains("damaged"), "{}", words(&said));
        assert_ne!(code(&site.run(&["verify"], &[], &[])), 0);
        succeed(&site.run(&["delete"], &["--segment", "1", "--yes"], &[]));
        assert!(site.service.objects().is_empty());
    }
}

/// Bucket, environment and fault; words of the answer.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Value, [&'a str; 2]);

#[test]
fn what_a_bucket_refuses_is_told_and_nothing_is_lost() {
    let Some(site) = Site::with_moto(true, FEW) else { return };
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
        (BUCKET, &nobody, json!([]), ["there are no credentials", "AWS_ACCESS_KEY_ID"]),
        (BUCKET, &stranger, json!([]), ["access is refused", "SignatureDoesNotMatch"]),
        ("another-bucket", &[], json!([]), ["no such place", "NoSuchBucket"]),
        (BUCKET, &[], denied, ["access is refused", "AccessDenied"]),
        (BUCKET, &[], put(json!({ "cut": true })), ["nobody answers in time", "request"]),
        (BUCKET, &[], put(json!({ "flip": true })), ["it failed", "BadDigest"]),
    ];
    for (bucket, environment, fault, wanted) in cases {
        site.service.set_faults(&fault);
        let said = site.apply(bucket, environment);
        let told = wanted.iter().all(|what| words(&said).contains(what));
        assert!(code(&said) == 2 && told, "{fault}, {wanted:?}: {}", words(&said));
        assert_eq!((site.place().as_str(), site.store.segment_files().len()), ("local", 1));
        assert_eq!(site.objects(&json!({})), Vec::<String>::new());
    }
    // What breaks off and what is busy for a moment is tried again.
    site.service.set_faults(&json!([
        { "op": "PutObject", "code": "SlowDown", "status": 503 },
        { "op": "GetObject", "cut": true },
    ]));
    succeed(&site.apply(BUCKET, &[]));
    assert_eq!(site.place(), "tiered");

    site.service.set_faults(&json!([{ "op": "*", "count": 9, "delay_s": 0.1 }]));
    assert_eq!(site.found("").len() as u64, FEW);
    let said = site.run(&["query"], &["--count"], &stranger);
    assert_eq!(code(&said), 3, "{}", words(&said));
}

/// `AWS_ENDPOINT_URL_S3` was not heeded, and Amazon asked for a bucket of another service.
#[test]
fn a_bucket_is_looked_for_where_the_environment_says() {
    const NOBODY: &str = "http://127.0.0.1:9";
    let Some(site) = Site::with_moto(false, FEW) else { return };
    let here = site.service.endpoint();
    let (url, of_s3) = (format!("s3://{}/site-1", BUCKET), "AWS_ENDPOINT_URL_S3");
    let of_all = ("AWS_ENDPOINT_URL", NOBODY);
    let elsewhere = format!("{url}?endpoint={NOBODY}");
    for (url, environment) in [(&url, (of_s3, NOBODY)), (&elsewhere, (of_s3, here.as_str()))] {
        let said = site.apply_to(url, &[environment]);
        assert!(words(&said).contains("nobody answers in time"), "{}", words(&said));
        assert_eq!(site.place(), "local");
    }
    let ours = format!("{url}?endpoint={here}");
    succeed(&site.apply_to(&ours, &[of_all, (of_s3, NOBODY)]));
    assert_eq!(site.place(), "tiered");

    let Some(site) = Site::with_moto(false, FEW) else { return };
    let here = site.service.endpoint();
    let environment = [of_all, (of_s3, here.as_str())];
    succeed(&site.apply(BUCKET, &environment));
    let said = site.run(&["query"], &["--count"], &environment);
    assert!(code(&said) == 0, "{}", words(&said));
    assert_eq!(site.objects(&json!({})).len(), 1);
}

#[test]
fn what_has_the_name_of_an_object_is_not_overwritten() {
    let Some(site) = Site::with_moto(true, FEW) else { return };
    let name = site.object();
    site.objects(&json!({ "put": { &name: "of somebody else" } }));
    let said = site.apply(BUCKET, &[]);
    let told = words(&said).contains("is not the segment that it is named after");
    assert!(code(&said) == 2 && told, "{}", words(&said));
    let sizes = site.service.objects(&json!({}));
    assert_eq!((site.place().as_str(), sizes[&name]), ("local", 16));
    site.objects(&json!({ "delete": [name] }));
    succeed(&site.apply(BUCKET, &[]));
    assert_eq!(site.place(), "tiered");
}
