//! Who may ask what, over TLS: every role against every endpoint, certificates that are missing,
//! wrong or expired, narrowed questions, limits, and the document that describes the API.

#[expect(dead_code, reason = "the other tests use the rest of it")]
mod support;

use std::io::Read;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use support::{Answer, PATIENCE, Place, Recorder};
use wirevault_config::Role;
use wirevault_daemon::api::{self, ENDPOINTS};
use wirevault_testkit::certificates::{Authority, Pair, Wish};

const PACKETS: u64 = 300;

/// A recorder that listens for TLS, and everybody who may come.
struct Scene {
    place: Place,
    recorder: Recorder,
    port: u16,
    authority: Authority,
}

impl Scene {
    /// `rules` are those of `api.access`.
    fn new(rules: &str) -> Self {
        let place = Place::new(false);
        let authority = Authority::new("Fleet");
        let wish = Wish { name: "server", alternatives: &["127.0.0.1"], ..Wish::default() };
        let server = authority.issue(&place.path(""), &wish);
        authority.write(&place.path("ca.pem"));
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let file = place.capture("a.pcap", PACKETS as u32, 1000);
        let config = place.config(&file, "");
        let text = std::fs::read_to_string(&config).unwrap();
        let tls = format!(
            "api:\n  tls:\n    listen: 127.0.0.1:{port}\n    certificate: {}\n    key: {}\n    \
             client_ca: {}\n  access:\n{rules}",
            server.certificate.display(),
            server.key.display(),
            place.path("ca.pem").display()
        );
        std::fs::write(&config, text.replace("api:\n", &tls)).unwrap();
        let recorder = place.start(&config);
        recorder.wait("all packets are stored", |status| status["lanes"][0]["stored"] == PACKETS);
        Self { place, recorder, port, authority }
    }

    fn issue(&self, wish: &Wish<'_>) -> Pair {
        self.authority.issue(&self.place.path(""), wish)
    }

    /// curl, with this question.
    fn curl(&self, pair: Option<&Pair>, method: &str, path: &str, body: &str) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-m", "120", "-w", "\n%{http_code}"]);
        match method {
            // Waits for no body, which it is told the length of.
            "HEAD" => curl.arg("--head"),
            _ => curl.args(["-X", method]),
        };
        curl.arg("--cacert");
        curl.arg(self.place.path("ca.pem"));
        if let Some(pair) = pair {
            curl.arg("--cert").arg(&pair.certificate).arg("--key").arg(&pair.key);
        }
        if method == "POST" {
            curl.args(["-H", "content-type: application/json", "-d", body]);
        }
        curl.arg(format!("https://127.0.0.1:{}{path}", self.port));
        curl
    }

    /// What curl is answered; `None` if no HTTP was spoken.
    fn ask(&self, pair: Option<&Pair>, method: &str, path: &str, body: &str) -> Option<Answer> {
        let output = self.curl(pair, method, path, body).output().unwrap();
        let end = output.stdout.iter().rposition(|byte| *byte == b'\n')?;
        let status = String::from_utf8_lossy(&output.stdout[end + 1..]).parse().unwrap();
        let body = output.stdout[..end].to_vec();
        (status != 0).then(|| Answer { status, body, whole: output.status.success() })
    }

    /// Has the recorder read another configuration; gives what systemd is told.
    fn reload(&self, text: &str) -> String {
        std::fs::write(self.place.path("wirevaultd.yaml"), text).unwrap();
        self.recorder.told();
        kill(self.recorder.pid(), Signal::SIGHUP).unwrap();
        let (since, mut told) = (Instant::now(), String::new());
        while !told.contains("READY=1") {
            assert!(since.elapsed() < PATIENCE, "never ready again: {told}");
            std::thread::sleep(Duration::from_millis(20));
            told += &self.recorder.told();
        }
        assert!(told.contains("RELOADING=1") && told.contains("MONOTONIC_USEC="), "{told}");
        told
    }

    /// Text of the audit log.
    fn audit_text(&self) -> String {
        std::fs::read_to_string(self.place.store.join("audit/audit-00000001.log")).unwrap()
    }

    /// Lines of the audit log.
    fn audit(&self) -> Vec<Value> {
        let lines = self.audit_text().lines().map(str::to_owned).collect::<Vec<_>>();
        let json = lines.iter().filter_map(|line| line.find('{').map(|at| &line[at..]));
        json.filter_map(|json| serde_json::from_str(json).ok()).collect()
    }
}

/// curl is not part of what the workspace installs.
fn curl_is_missing() -> bool {
    let missing = Command::new("curl").arg("--version").output().is_err();
    if missing {
        eprintln!("skipped: this test needs curl");
        assert!(std::env::var_os("WIREVAULT_NO_SKIP").is_none(), "skips are failures here");
    }
    missing
}

#[test]
fn every_role_gets_what_it_may_from_every_endpoint() {
    if curl_is_missing() {
        return;
    }
    let scene = Scene::new(
        "    - {certificates: 'cn:status', role: status}\n    \
         - {certificates: 'san:query.example', role: query}\n    \
         - {certificates: 'ou:Export', role: export}\n    \
         - {certificates: 'cn:admin', role: admin}\n",
    );
    let with =
        |name, unit, alternatives| scene.issue(&Wish { name, unit, alternatives, expired: false });
    let askers = [
        (Some(Role::Status), with("status", "", &[])),
        (Some(Role::Query), with("anybody", "", &["query.example"])),
        (Some(Role::Export), with("exporter", "Export", &[])),
        (Some(Role::Admin), with("admin", "", &[])),
        // Names count in their own field only.
        (None, with("stranger", "status", &["admin"])),
    ];
    // Method, path, body, the least role, and what that gets. A live view without end is not
    // waited for: its filter is wrong.
    let table = [
        ("GET", api::OPENAPI, "", Role::Status, 200),
        ("GET", api::STATUS, "", Role::Status, 200),
        ("GET", api::SEGMENTS, "", Role::Status, 200),
        ("GET", api::METRICS, "", Role::Status, 200),
        ("GET", api::PLAN, "", Role::Status, 200),
        ("POST", api::APPLY, "{}", Role::Admin, 200),
        // There is no tier, and no folder for checkpoints.
        ("POST", api::DRAIN, r#"{"within_ms":0}"#, Role::Admin, 409),
        ("POST", api::SNAPSHOT, "", Role::Admin, 409),
        ("POST", api::DELETE, "{}", Role::Admin, 200),
        ("POST", api::REPLACE, r#"{"volume":9,"path":"/new"}"#, Role::Admin, 422),
        ("POST", api::DELETE, r#"{"segments":[999]}"#, Role::Admin, 422),
        ("GET", api::HOLDS, "", Role::Admin, 200),
        ("POST", api::HOLD_ADD, r#"{"name":"a","filter":"arp"}"#, Role::Admin, 200),
        ("POST", api::HOLD_RELEASE, r#"{"name":"a"}"#, Role::Admin, 200),
        ("POST", api::HOLD_RELEASE, r#"{"name":"a"}"#, Role::Admin, 422),
        // No service keeps this store's key.
        ("GET", api::KEY, "", Role::Status, 409),
        ("POST", api::ROTATE, "{}", Role::Admin, 409),
        ("POST", api::FLOWS, "{}", Role::Query, 200),
        ("POST", api::QUERY, r#"{"count_only":true}"#, Role::Query, 200),
        ("POST", api::QUERY, "{}", Role::Export, 200),
        ("GET", "/v1/tail?filter=tcpp", "", Role::Export, 400),
        ("GET", "/v1/nothing", "", Role::Status, 404),
        ("POST", api::STATUS, "", Role::Status, 405),
    ];
    // Whoever answers GET would answer HEAD: that opens live views, and tells how long answers are.
    let heads = ["/v1/tail?filter=arp"].into_iter().chain(ENDPOINTS.iter().map(|it| it.path));
    let heads = heads.map(|path| ("HEAD", path, "", Role::Status, 405));
    for endpoint in ENDPOINTS {
        let tested = |(method, path, ..): &(&str, &str, &str, Role, u16)| {
            *method == endpoint.method && path.split('?').next() == Some(endpoint.path)
        };
        assert!(table.iter().any(tested), "{endpoint:?} has no row here");
    }
    for (role, pair) in &askers {
        for (method, path, body, least, status) in table.into_iter().chain(heads.clone()) {
            let expected = if *role >= Some(least) { status } else { 403 };
            let answer = scene.ask(Some(pair), method, path, body).expect("HTTP");
            let text = answer.text();
            assert_eq!(answer.status, expected, "{role:?}, {method} {path} {body}: {text}");
            if expected == 403 && method != "HEAD" {
                assert!(text.contains("role") || text.contains("may not ask"), "{text}");
            }
        }
    }
    let denied: Vec<_> =
        scene.audit().into_iter().filter(|entry| entry["event"] == "denied").collect();
    let first = &denied.first().expect("denials are written down")["who"]["certificate"];
    assert_eq!(first["subject"], "CN=status");
    assert_eq!(scene.recorder.end(Signal::SIGTERM).0, Some(0));
}

/// What GET needs a role for was answered to HEAD without it.
#[test]
fn head_opened_a_live_view_and_told_of_holds_whatever_the_role() {
    if curl_is_missing() {
        return;
    }
    let scene = Scene::new("    - {certificates: 'cn:status', role: status}\n");
    let pair = scene.issue(&Wish { name: "status", ..Wish::default() });
    for path in ["/v1/tail?filter=arp", api::HOLDS] {
        let answer = scene.ask(Some(&pair), "HEAD", path, "").expect("HTTP");
        assert_eq!(answer.status, 405, "{path}");
        assert!(answer.text().to_lowercase().contains("allow: get\r"), "{}", answer.text());
    }
    let asked = |entry: &Value| entry["event"] == "asked";
    assert!(!scene.audit().iter().any(asked), "nothing was begun");
}

#[test]
fn junk_questions_filled_the_audit_log() {
    if curl_is_missing() {
        return;
    }
    let scene = Scene::new("    - {certificates: 'cn:status', role: status}\n");
    let body = |bytes| serde_json::json!({"filter": "x".repeat(bytes)}).to_string();
    assert_eq!(scene.recorder.post(api::QUERY, &body(60_000)).status, 400);
    let frame = body(0).len();
    let too_long = scene.recorder.post(api::FLOWS, &body((64 << 10) + 1 - frame));
    assert!(too_long.text().contains("it may have 65536 bytes"), "{}", too_long.text());
    let pair = scene.issue(&Wish { name: "status", ..Wish::default() });
    let path = format!("/v1/tail?filter={}", "x".repeat(20_000));
    assert_eq!(scene.ask(Some(&pair), "GET", &path, "").expect("HTTP").status, 403);

    let entries = scene.audit();
    let [asked, denied] = ["asked", "denied"]
        .map(|event| entries.iter().find(|entry| entry["event"] == event).expect("an entry"));
    let filter = asked["question"]["filter"].as_str().expect("a text");
    assert!(filter.starts_with("xxx") && filter.contains("(60000 bytes, SHA-256 "), "{filter}");
    let request = denied["request"].as_str().expect("a text");
    assert!(request.starts_with("GET /v1/tail?filter=xxx") && request.contains(" bytes, SHA-256 "));
    assert!(denied["why"].as_str().unwrap().ends_with("; GET /v1/tail needs export"), "{denied}");
    assert!(scene.audit_text().len() < 8 << 10, "{}", scene.audit_text());
}

#[test]
fn nobody_comes_in_without_a_good_certificate() {
    if curl_is_missing() {
        return;
    }
    let scene = Scene::new("    - {certificates: ['cn:alice', 'issuer_ou:Fleet'], role: admin}\n");
    let alice = Wish { name: "alice", ..Wish::default() };
    let good = scene.issue(&alice);
    let ask = |pair: Option<&Pair>| scene.ask(pair, "GET", api::STATUS, "");
    assert_eq!(ask(Some(&good)).expect("HTTP").status, 200);
    assert!(ask(None).is_none(), "no certificate");
    let expired = scene.issue(&Wish { name: "late", expired: true, ..alice });
    assert!(ask(Some(&expired)).is_none(), "an expired one");
    // The same name and unit, of another authority.
    let forged = Authority::new("Fleet").issue(&scene.place.path("store"), &alice);
    assert!(ask(Some(&forged)).is_none(), "one of another authority");
    let mut swapped = good.clone();
    swapped.key = forged.key;
    assert!(ask(Some(&swapped)).is_none(), "somebody else's");
    // Nothing is said without TLS.
    let plain = format!("http://127.0.0.1:{}/v1/status", scene.port);
    let plain = Command::new("curl").args(["-s", "-m", "60", &plain]).output().unwrap();
    assert!(!plain.status.success());
    assert_eq!(ask(Some(&good)).expect("HTTP").status, 200, "the others go on");
    let (code, log) = scene.recorder.end(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("TLS from 127.0.0.1"), "{log}");
}

#[test]
fn a_revoked_certificate_is_refused_and_an_old_list_shuts_the_door() {
    if curl_is_missing() {
        return;
    }
    let scene = Scene::new("    - {certificates: 'issuer_ou:Fleet', role: status}\n");
    let [alice, bob] = ["alice", "bob"].map(|name| scene.issue(&Wish { name, ..Wish::default() }));
    let (file, list) = (scene.place.path("wirevaultd.yaml"), scene.place.path("clients.crl"));
    let text = std::fs::read_to_string(&file).unwrap();
    let with = format!("    crl: {}\n    listen:", list.display());
    let with = text.replace("    listen:", &with);
    let ask =
        |pair: &Pair| scene.ask(Some(pair), "GET", api::STATUS, "").map(|answer| answer.status);
    let revoked = |serials: &[u64], expired| scene.authority.revoke(&list, serials, expired);
    assert_eq!((ask(&alice), ask(&bob)), (Some(200), Some(200)), "nobody asks for lists");
    revoked(&[bob.serial], false);
    scene.reload(&with);
    assert_eq!((ask(&alice), ask(&bob)), (Some(200), None));
    // Only the file is another one: bob was revoked by mistake, and nobody renews the list.
    revoked(&[], false);
    scene.reload(&with);
    assert_eq!((ask(&alice), ask(&bob)), (Some(200), Some(200)));
    revoked(&[], true);
    scene.reload(&with);
    assert_eq!((ask(&alice), ask(&bob)), (None, None));
    scene.recorder.wait("it is told", |status| {
        let reasons = status["reasons"].to_string();
        reasons.contains("OU=Fleet") && reasons.contains("out of date")
    });
    // A list of others only is none of this authority's.
    Authority::new("Other").revoke(&list, &[], false);
    assert!(scene.reload(&with).contains("another configuration was refused"));
    let (code, log) = scene.recorder.end(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("OU=Fleet of `client_ca` has no list there"), "{log}");
}

/// A signal, and nobody waits in vain for what has changed.
#[test]
fn another_configuration_holds_as_a_whole_or_not_at_all() {
    if curl_is_missing() {
        return;
    }
    let scene = Scene::new("    - {certificates: 'cn:alice', role: status}\n");
    let old = std::fs::read_to_string(scene.place.path("wirevaultd.yaml")).unwrap();
    let reload = |text: &str| scene.reload(text);
    let bob = scene.issue(&Wish { name: "bob", ..Wish::default() });
    let ask = || scene.ask(Some(&bob), "GET", api::STATUS, "").map(|answer| answer.status);
    assert_eq!(ask(), Some(403));
    let with_bob = format!("{}log: warn\n", old.replace("cn:alice", "cn:bob"));
    assert!(reload(&with_bob).contains("STATUS=recording\n"));
    assert_eq!(ask(), Some(200));

    // A certificate of an authority that curl does not know.
    let wish = Wish { name: "other", alternatives: &["127.0.0.1"], ..Wish::default() };
    let other = Authority::new("Other").issue(&scene.place.path(""), &wish);
    let shown = |text: &str, pair: &Pair| {
        let part = |key: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(key));
            line.expect("it is there").to_owned()
        };
        text.replace(
            &part("certificate:"),
            &format!("    certificate: {}", pair.certificate.display()),
        )
        .replace(&part("key:"), &format!("    key: {}", pair.key.display()))
    };
    reload(&shown(&with_bob, &other));
    assert_eq!(ask(), None);
    reload(&with_bob);
    assert_eq!(ask(), Some(200));

    // One key that takes a new start, and nothing of the rest holds either.
    let refused = reload(&old.replace("size: 4MiB", "size: 8MiB"));
    assert!(refused.contains("another configuration was refused"), "{refused}");
    assert!(reload("store: [").contains("another configuration was refused"));
    assert!(reload(&with_bob.replace(&old_key(&old), "/nowhere")).contains("refused"));
    assert_eq!(ask(), Some(200));
    let entries = scene.audit();
    let reloads: Vec<_> = entries.iter().filter(|entry| entry["event"] == "reloaded").collect();
    assert_eq!(reloads.len(), 6, "{reloads:?}");
    assert_eq!(reloads[0]["changed"], serde_json::json!(["api.access", "log"]));
    assert!(reloads[3]["refused"].as_str().unwrap().starts_with("buffer.size changed"));
    assert!(reloads[5]["refused"].as_str().unwrap().contains("api.tls.key"));
    let (code, log) = scene.recorder.end(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("SIGTERM: draining"), "no more than warnings: {log}");
}

/// Path of the server's key in a configuration.
fn old_key(text: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix("    key: "));
    line.expect("it is there").to_owned()
}

#[test]
fn an_identity_sees_what_its_filter_takes_and_no_more() {
    if curl_is_missing() {
        return;
    }
    let scene = Scene::new("    - {certificates: 'cn:arp', role: export, filter: arp}\n");
    let pair = scene.issue(&Wish { name: "arp", ..Wish::default() });
    let ask = |path, body: &str| scene.ask(Some(&pair), "POST", path, body).expect("HTTP");
    let found = |filter: &str| {
        let body = serde_json::json!({"filter": filter}).to_string();
        ask(api::QUERY, &body).packets().0.len() as u64
    };
    assert_eq!(found(""), PACKETS / 3);
    assert_eq!(found("arp or udp"), PACKETS / 3);
    assert_eq!(found("udp"), 0);
    assert_eq!(found("not arp"), 0);
    for filter in ["udp) or (udp", "arp) or udp or (arp"] {
        let body = serde_json::json!({"filter": filter}).to_string();
        assert_eq!(ask(api::QUERY, &body).status, 400, "{filter}");
    }
    let flows = ask(api::FLOWS, "{}").text();
    assert!(flows.lines().count() > 1 && !flows.contains(r#""protocol":"udp""#), "{flows}");
    let counted = ask(api::QUERY, r#"{"count_only":true,"filter":"udp"}"#).packets();
    assert_eq!(counted.1["packets"], 0);
    // It cannot be asked away, and it stands in the log.
    assert_eq!(ask(api::QUERY, r#"{"within":""}"#).status, 422);
    let asked = scene.audit().into_iter().find(|entry| entry["event"] == "asked").unwrap();
    assert_eq!(asked["question"]["within"], "arp");
    assert_eq!(asked["who"]["certificate"]["subject"], "CN=arp");
    let all = scene.recorder.post(api::QUERY, "{}").packets().0.len() as u64;
    assert_eq!(all, PACKETS, "root on the socket sees everything");
}

#[test]
fn who_asks_too_often_is_told_to_come_later() {
    if curl_is_missing() {
        return;
    }
    let rule = "    - {certificates: 'cn:eager', role: status, per_minute: 1}\n    \
                - {certificates: 'cn:calm', role: status}\n";
    let scene = Scene::new(rule);
    let [eager, calm] =
        ["eager", "calm"].map(|name| scene.issue(&Wish { name, ..Wish::default() }));
    let ask = |pair| scene.ask(Some(pair), "GET", api::STATUS, "").expect("HTTP");
    // One comes back each minute, so of many in a row some are refused however slow this is.
    let answers: Vec<_> = (0..8).map(|_| ask(&eager)).collect();
    assert_eq!(answers[0].status, 200);
    let refused = answers.iter().find(|answer| answer.status == 429).expect("a refusal");
    assert!(refused.text().contains("may ask 1 times a minute"), "{}", refused.text());
    assert_eq!(ask(&calm).status, 200, "others have their own");
}

#[test]
fn certificates_without_a_subject_were_one_identity_without_a_name() {
    if curl_is_missing() {
        return;
    }
    let rules = "    - {certificates: 'san:calm.example', role: status}\n    \
                 - {certificates: 'san:eager.example', role: status, per_minute: 1}\n";
    let scene = Scene::new(rules);
    let [calm, eager] = [["calm.example"], ["eager.example"]]
        .map(|names| scene.issue(&Wish { alternatives: &names, ..Wish::default() }));
    let ask = |pair| scene.ask(Some(pair), "GET", api::STATUS, "").expect("HTTP");
    assert_eq!(ask(&calm).status, 200);
    let answers: Vec<_> = (0..8).map(|_| ask(&eager)).collect();
    let refused = answers.iter().find(|answer| answer.status == 429).expect("a refusal");
    assert!(refused.text().contains("`san:eager.example` may ask 1 times"), "{}", refused.text());
    let denied = scene.audit().into_iter().find(|entry| entry["event"] == "denied");
    let who = denied.expect("it is written down")["who"]["certificate"].clone();
    assert_eq!((&who["subject"], &who["name"]), (&"".into(), &"san:eager.example".into()), "{who}");
    assert!(who["issuer"].as_str().is_some_and(|issuer| issuer.contains("OU=Fleet")), "{who}");
}

#[test]
fn too_many_answers_at_a_time_left_no_trace_in_the_audit_log() {
    if curl_is_missing() {
        return;
    }
    let scene = Scene::new("    - {certificates: 'cn:alice', role: export, answers: 1}\n");
    let alice = scene.issue(&Wish { name: "alice", ..Wish::default() });
    let mut viewing = scene.curl(Some(&alice), "GET", "/v1/tail?filter=arp", "");
    let mut viewing = viewing.arg("--no-buffer").stdout(Stdio::piped()).spawn().unwrap();
    let begun = viewing.stdout.as_mut().unwrap().read_exact(&mut [0; 28]);
    begun.expect("the live view has its turn");
    let refused = scene.ask(Some(&alice), "POST", api::FLOWS, "{}").expect("HTTP");
    assert_eq!(refused.status, 429, "{}", refused.text());
    let denied = scene.audit().into_iter().find(|entry| entry["event"] == "denied");
    let denied = denied.expect("it is written down");
    assert_eq!(denied["request"], "POST /v1/flows");
    assert_eq!(denied["who"]["certificate"]["subject"], "CN=alice");
    assert!(denied["why"].as_str().unwrap().starts_with("1 answers are as many"), "{denied}");
    viewing.kill().unwrap();
    viewing.wait().unwrap();
}

#[test]
fn the_document_describes_the_api_as_it_is() {
    let place = Place::new(true);
    let file = place.capture("a.pcap", PACKETS as u32, 1000);
    let recorder = place.start(&place.config(&file, ""));
    recorder.wait("all packets are stored", |status| status["lanes"][0]["stored"] == PACKETS);
    let document = recorder.json(api::OPENAPI);
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().expect("paths");
    assert_eq!(paths.len(), ENDPOINTS.len());
    for endpoint in ENDPOINTS {
        let operation = &paths[endpoint.path][endpoint.method.to_lowercase()];
        assert_eq!(operation["x-role"], endpoint.role.name(), "{endpoint:?}");
        let kinds = operation["responses"]["200"]["content"].as_object().expect("an answer");
        let (kind, content) = kinds.iter().next().expect("a type");
        let answer = match (endpoint.method, endpoint.path) {
            // One has no end; for the others a volume must have failed, a service have the key, or
            // the configuration name a tier and a folder.
            (_, api::TAIL | api::REPLACE | api::KEY | api::ROTATE) => continue,
            (_, api::DRAIN | api::SNAPSHOT) => continue,
            ("POST", api::HOLD_ADD | api::HOLD_RELEASE) => {
                recorder.post(endpoint.path, r#"{"name":"a"}"#)
            }
            ("POST", path) => recorder.post(path, "{}"),
            (_, path) => recorder.get(path),
        };
        assert_eq!(answer.status, 200, "{endpoint:?}");
        let text = answer.text();
        let values: Vec<&str> = match kind.as_str() {
            "application/json" => vec![&text],
            "application/x-ndjson" => text.lines().collect(),
            _ => continue,
        };
        assert!(!values.is_empty());
        for value in values {
            let value = serde_json::from_str(value).expect("JSON");
            fits(&document, &content["schema"], &value, endpoint.path).unwrap();
        }
    }
    // The check is one.
    let status = &paths[api::STATUS]["get"]["responses"]["200"]["content"]["application/json"];
    let mut wrong = recorder.json(api::STATUS);
    wrong["lanes"][0]["received"] = "many".into();
    assert!(fits(&document, &status["schema"], &wrong, "").is_err());
    let mut more = recorder.json(api::STATUS);
    more["unheard_of"] = 1.into();
    assert!(fits(&document, &status["schema"], &more, "").is_err());
    // What the document says of a request holds.
    let body = &document["components"]["schemas"]["QueryBody"]["properties"];
    let whole = r#"{"filter":"arp","since_ns":1,"until_ns":2,"limit":3,"sort":true,
        "skip_link_types":true,"count_only":true,"tunnel":"vni=5","without_duplicates":true}"#;
    let whole: Value = serde_json::from_str(whole).unwrap();
    let names = |value: &Value| {
        let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(body), names(&whole));
    assert_eq!(recorder.post(api::QUERY, &whole.to_string()).status, 200);
    let error: Value = serde_json::from_str(&recorder.post(api::QUERY, "[").text()).unwrap();
    fits(&document, &serde_json::json!({"$ref": "#/components/schemas/ErrorBody"}), &error, "")
        .unwrap();
}

/// Whether a value is what a schema says: the part of JSON Schema that the document uses. Members
/// that the schema does not name are faults, although JSON Schema allows them.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let target = document.pointer(name.trim_start_matches('#')).ok_or("a broken reference")?;
        return fits(document, target, value, at);
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(options) = schema[key].as_array() {
            let tried = options.iter().map(|option| fits(document, option, value, at));
            let tried: Vec<_> = tried.collect();
            let none = || Err(format!("{at}: {value} is none of {tried:?}"));
            return if tried.iter().any(Result::is_ok) { Ok(()) } else { none() };
        }
    }
    if let Some(constant) = schema.get("const") {
        return if constant == value { Ok(()) } else { Err(format!("{at} is {value}")) };
    }
    if let Some(values) = schema["enum"].as_array() {
        return if values.contains(value) { Ok(()) } else { Err(format!("{at} is {value}")) };
    }
    let kinds = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return Err(format!("{at}: a schema without a type: {schema}")),
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let suits = |wanted: &&str| *wanted == kind || (*wanted == "number" && kind == "integer");
    if !kinds.iter().any(suits) {
        return Err(format!("{at} is {value}, not of {kinds:?}"));
    }
    if let Some(items) = value.as_array() {
        let item = |(number, item): (usize, &Value)| {
            // A tuple has a schema for each place.
            let schema = schema["prefixItems"].get(number).unwrap_or(&schema["items"]);
            fits(document, schema, item, &format!("{at}[{number}]"))
        };
        items.iter().enumerate().try_for_each(item)?;
    }
    let Some(members) = value.as_object().filter(|_| schema.get("properties").is_some()) else {
        return Ok(());
    };
    for required in schema["required"].as_array().into_iter().flatten() {
        let name = required.as_str().unwrap_or_default();
        members.get(name).ok_or_else(|| format!("{at}.{name} is missing"))?;
    }
    members.iter().try_for_each(|(name, member)| match schema["properties"].get(name) {
        Some(schema) => fits(document, schema, member, &format!("{at}.{name}")),
        None => Err(format!("{at}.{name} is not described")),
    })
}
