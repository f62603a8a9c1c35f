//! The starts for the keys of `api.tls` and `api.access`: a recorder of a short file that is asked
//! over its socket and, by `wirevault --connect`, over TLS.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use wirevault_testkit::certificates::{Authority, Pair, Wish};
use wirevault_testkit::net::{Stamp, wait_for};
use wirevault_tests::captures::{Packet, write_pcap};
use wirevault_tests::recorder::{Site, program};

use crate::runs::{GROUP, PATIENCE, USER, site, status_for};

/// Where the recorder listens, in the test's own namespace.
const LISTEN: &str = "127.0.0.1:8443";
const METRICS_LISTEN: &str = "127.0.0.1:9479";
/// Packets of the file, half of them to each of two ports.
pub(crate) const ACCESS_PACKETS: u64 = 40;

/// What those who ask were told.
pub(crate) struct Access {
    pub(crate) to_user: String,
    pub(crate) to_member: String,
    /// Who has a certificate of the rules, and who has another.
    pub(crate) known: Output,
    pub(crate) stranger: Output,
    /// Packets are counted for, and refused to, the role `query`.
    pub(crate) counted: Output,
    pub(crate) packets: Output,
    /// A question that is narrowed.
    pub(crate) narrowed: Output,
    /// A question beside a live view, of one who may have one answer at a time.
    pub(crate) second: Output,
    /// Many questions in a row, of one who may ask once a minute.
    pub(crate) often: Vec<Output>,
    pub(crate) without_certificate: Output,
    pub(crate) with_open_key: Output,
    pub(crate) with_foreign_ca: Output,
    /// What the port for metrics says to a stranger.
    pub(crate) scraped: String,
    /// Who has a certificate of the rules that is on the list.
    pub(crate) revoked: Output,
    pub(crate) with_foreign_list: Output,
}

impl Access {
    pub(crate) fn make() -> Self {
        let site = site(1);
        let authority = Authority::new("Fleet");
        authority.write(&site.file("ca.pem"));
        let issue = |name| {
            let wish = Wish { name, alternatives: &["127.0.0.1"], ..Wish::default() };
            authority.issue(&site.file(""), &wish)
        };
        let server = issue("server");
        let pairs = ["all", "counts", "narrow", "single", "rare", "stranger", "revoked"].map(issue);
        let [all, counts, narrow, single, rare, stranger, revoked] = &pairs;
        authority.revoke(&site.file("revoked.crl"), &[revoked.serial], false);
        write_pcap(&site.file("in.pcap"), &packets());
        let socket = site.file("socket");
        let (certificate, key, ca) = (server.certificate, server.key, site.file("ca.pem"));
        let crl = site.file("revoked.crl").display().to_string();
        let config =
            |certificate: &str, key: &str, ca: &str| config(&site, [certificate, key, ca, &crl]);
        let [certificate, key, ca] = [certificate, key, ca].map(|path| path.display().to_string());
        let recorder = site.start(&config(&certificate, &key, &ca), &socket);
        wait_for("the replay", PATIENCE, || {
            (recorder.status()["lanes"][0]["stored"] == ACCESS_PACKETS).then_some(())
        });
        let ask = |pair: &Pair, args: &[&str]| connect(&site, pair, args).output().expect("asked");
        let mut view = connect(&site, single, &["tail", "-w", "-"]);
        let mut view = view.stdout(Stdio::piped()).spawn().expect("a live view");
        let out = view.stdout.as_mut().expect("its output");
        out.read_exact(&mut [0; 28]).expect("it has begun");
        let second = ask(single, &["query", "--count"]);
        view.kill().and_then(|()| view.wait()).expect("it ends");
        let made = Self {
            to_user: status_for(&socket, USER, 64_000),
            to_member: status_for(&socket, 64_000, GROUP),
            known: ask(all, &["status", "--json"]),
            stranger: ask(stranger, &["status", "--json"]),
            counted: ask(counts, &["query", "--count"]),
            packets: ask(counts, &["query", "-w", "-"]),
            narrowed: ask(narrow, &["query", "--count"]),
            second,
            scraped: scraped(),
            often: (0..6).map(|_| ask(rare, &["status", "--json"])).collect(),
            without_certificate: site.refuse(&config("/nowhere.pem", &key, &ca)),
            with_foreign_ca: site.refuse(&config(&certificate, &key, "/etc/hostname")),
            revoked: ask(revoked, &["status", "--json"]),
            with_foreign_list: site.refuse(&config(&certificate, &key, &ca).replace(&crl, &ca)),
            with_open_key: {
                let open = site.file("open.key");
                fs::copy(&key, &open).expect("a copy");
                fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).expect("its mode");
                site.refuse(&config(&certificate, &open.display().to_string(), &ca))
            },
        };
        assert!(recorder.terminate().success());
        made
    }
}

fn config(site: &Site, [certificate, key, ca, crl]: [&str; 4]) -> String {
    let (store, socket) = (site.store(), site.file("socket"));
    format!(
        "store: {}\nreplay:\n  file: {}\napi:\n  socket: {}\n  \
         metrics_listen: {METRICS_LISTEN}\n  tls:\n    listen: {LISTEN}\n    \
         certificate: {certificate}\n    key: {key}\n    client_ca: {ca}\n    crl: {crl}\n  \
         access:\n    - {{users: [{USER}], groups: [{GROUP}], role: status, \
         certificates: ['cn:all', 'cn:revoked']}}\n    \
         - {{certificates: 'cn:counts', role: query}}\n    \
         - {{certificates: 'cn:narrow', role: export, filter: udp dst port {}}}\n    \
         - {{certificates: 'cn:single', role: export, answers: 1}}\n    \
         - {{certificates: 'cn:rare', role: status, per_minute: 1}}\n",
        store.display(),
        site.file("in.pcap").display(),
        socket.display(),
        Stamp::port(1)
    )
}

fn connect(site: &Site, pair: &Pair, args: &[&str]) -> Command {
    let mut command = Command::new(program("wirevault"));
    command.arg(args[0]).args(["--connect", LISTEN, "--ca"]).arg(site.file("ca.pem"));
    command.arg("--cert").arg(&pair.certificate).arg("--key").arg(&pair.key).args(&args[1..]);
    command
}

fn scraped() -> String {
    let mut stream = TcpStream::connect(METRICS_LISTEN).expect("the port for metrics");
    stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: x\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn packets() -> Vec<Packet> {
    let packet = |number: u64| {
        let run = u16::from(number.is_multiple_of(2));
        let stamp = Stamp { run, number, sent_ns: 0, flow: 1, bytes: 100, vlan: 0 };
        let ts_ns = 1_700_000_000_000_000_000 + number * 1_000_000;
        Packet { ts_ns, orig_len: 100, data: stamp.frame() }
    };
    (0..ACCESS_PACKETS).map(packet).collect()
}
