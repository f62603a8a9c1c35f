//! `wirevault doctor`: what limits this machine, before it records in earnest.
//!
//! ```text
//!  a folder that stands for / ──► machine, network, disks ──┐
//!  configuration ──► what is wanted ──────▲                 ├──► findings ──► lines, JSON
//!              └───► the daemon's probe (as `validate`) ────┘
//! ```
//! A check reads what the kernel shows as files, so tests give it a folder of their own. What is
//! not there is told as unknown; nothing is changed, and no question fails the others. Services
//! that the configuration names are asked for what the recorder will ask (`services`, `aws`), side
//! by side and for some seconds (`asking`).

mod asking;
mod aws;
mod disks;
mod machine;
mod network;
mod root;
mod services;

use std::iter;
use std::path::Path;

use serde::Serialize;
use serde_json::json;
use wirevault_config::{Config, Input, LiveSource};
use wirevault_daemon::cloud::keys;
use wirevault_daemon::input::cards;
use wirevault_daemon::probe::{self, Level};
use wirevault_daemon::sandbox::{self, Landlock};

use self::asking::{Check, PATIENCE, side_by_side};
use self::root::Root;
use crate::args::DoctorArgs;
use crate::error::CliError;
use crate::outcome::Outcome;
use crate::output::{Paint, put, put_json};

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// Nothing to do.
    Ok,
    /// It records, but less well than it could, or it cannot be told.
    Warn,
    /// It will not record.
    Fail,
}

/// A line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    verdict: Verdict,
    /// What was looked at.
    about: String,
    /// What was seen.
    seen: String,
    /// What to do about it; nothing if all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

impl Finding {
    fn ok(about: impl Into<String>, seen: impl Into<String>) -> Self {
        let (about, seen) = (about.into(), seen.into());
        Self { verdict: Verdict::Ok, about, seen, advice: String::new() }
    }

    fn warn(about: impl Into<String>, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, advice: advice.into(), ..Self::ok(about, seen) }
    }

    /// A warning where something is amiss, else the same as good.
    fn judged(about: impl Into<String>, seen: String, amiss: bool, advice: &str) -> Self {
        match amiss {
            true => Self::warn(about, seen, advice),
            false => Self::ok(about, seen),
        }
    }
}

/// What the recorder is to do here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    /// Bytes of packet buffer.
    buffer_bytes: u64,
    /// Interfaces and how many lanes each has; nothing where no configuration says.
    interfaces: Option<Vec<(String, u16)>>,
    /// CPUs of the lanes.
    lane_cpus: Vec<u16>,
    /// The largest socket buffer that a mirror's target asks for.
    socket_buffer_bytes: u64,
}

impl Wanted {
    /// Without a configuration: the default buffer, and every card.
    fn nothing() -> Self {
        Self {
            buffer_bytes: 64 << 20,
            interfaces: None,
            lane_cpus: Vec::new(),
            socket_buffer_bytes: 0,
        }
    }

    fn of(config: &Config) -> Self {
        let live = match &config.input {
            Input::Live(live) => live.as_slice(),
            Input::Replay(_) => &[],
        };
        let interfaces = live.iter().filter_map(|live| match &live.source {
            LiveSource::Capture(capture) => Some((capture.interface.clone(), live.lanes)),
            LiveSource::PcapOverIp(_) | LiveSource::MirrorTarget(_) => None,
        });
        let buffers = live.iter().filter_map(|live| match &live.source {
            LiveSource::MirrorTarget(target) => Some(target.buffer_bytes),
            LiveSource::Capture(_) | LiveSource::PcapOverIp(_) => None,
        });
        Self {
            buffer_bytes: config.buffer.size_bytes,
            interfaces: Some(interfaces.collect()),
            lane_cpus: config.lane_cpus.iter().copied().take(config.lanes()).collect(),
            socket_buffer_bytes: buffers.max().unwrap_or(0),
        }
    }
}

/// Looks, and tells.
pub(crate) fn doctor(args: &DoctorArgs) -> Result<Outcome, CliError> {
    let root = Root::new(Path::new("/"));
    let mut findings = Vec::new();
    let wanted = match args.config.as_deref().map(wirevault_config::load) {
        None => {
            let instance = services::instance().into_iter().collect();
            findings.extend(side_by_side(instance, PATIENCE));
            Wanted::nothing()
        }
        Some(Ok(config)) => {
            let checks = iter::once(of_store(&config)).chain(services::checks(&config));
            findings.extend(side_by_side(checks.collect(), PATIENCE));
            Wanted::of(&config)
        }
        Some(Err(error)) => {
            let seen = wirevault_index::error::chain(&error);
            findings.push(Finding {
                verdict: Verdict::Fail,
                ..Finding::warn("configuration", seen, "mend it; the machine is looked at anyway")
            });
            Wanted::nothing()
        }
    };
    findings.extend(machine::check(&root, &wanted));
    findings.extend(network::check(&root, &wanted, &cards::facts));
    findings.extend(disks::check(&root));
    findings.extend(aws::check(&root));
    findings.push(sandbox(sandbox::landlock()));
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
    match args.json {
        true => put_json(&json!({"verdict": worst, "findings": findings}))?,
        false => put(&text(&findings, Paint::stdout()))?,
    }
    Ok(if worst == Verdict::Fail { Outcome::Nothing } else { Outcome::Found })
}

/// What `wirevaultd validate` would say, and whether the store has room where it is. A disk may
/// hang, and the service of the store's key be silent.
fn of_store(config: &Config) -> Check {
    let seen = format!("neither volumes nor key are open within {} s", PATIENCE.as_secs());
    let advice = "look whether the disks answer, and the service that keeps the key";
    let late = Finding { verdict: Verdict::Fail, ..Finding::warn("store", seen, advice) };
    let config = config.clone();
    Check::new(late, move || {
        let mut findings = probed(&config);
        findings.extend(disks::room(&config.stores));
        findings
    })
}

/// What `wirevaultd validate` would say.
fn probed(config: &Config) -> Vec<Finding> {
    // Where a client cannot be made, a store that needs one is told to be without its service.
    let service = wirevault_cloud::key_service(config.kms.endpoint.as_deref()).ok().flatten();
    let key = match keys::source(config, service.clone()) {
        Ok(key) => key,
        Err(error) => {
            let text = error.to_string();
            let fault = Finding::ok("kms.public_key", text);
            return vec![Finding { verdict: Verdict::Fail, ..fault }];
        }
    };
    let found = probe::all(config, &key);
    let faults = found.iter().any(|finding| finding.level == Level::Fault);
    let start = (!faults).then(|| Finding::ok("configuration", "the recorder can start with it"));
    let told = found.iter().map(|finding| {
        let verdict = match finding.level {
            Level::Note => Verdict::Ok,
            Level::Warning => Verdict::Warn,
            Level::Fault => Verdict::Fail,
        };
        Finding { verdict, ..Finding::ok(finding.path.clone(), finding.text.clone()) }
    });
    start.into_iter().chain(told).chain(aws::key(config, &key, service.as_ref())).collect()
}

/// Whether the recorder can be kept to its own files.
fn sandbox(landlock: Landlock) -> Finding {
    match landlock {
        Landlock::Version(version) => {
            Finding::ok("sandbox", format!("Landlock {version}, and filters of system calls"))
        }
        Landlock::Absent(why) => {
            let advice = "a recorder that is taken over can open whatever its user may; a kernel \
                          with Landlock (5.13 and later) keeps it to its own files";
            Finding::warn("sandbox", why, advice)
        }
    }
}

fn text(findings: &[Finding], paint: Paint) -> String {
    let lines = findings.iter().map(|finding| {
        let word = match finding.verdict {
            Verdict::Ok => paint.good("ok  "),
            Verdict::Warn => paint.warn("warn"),
            Verdict::Fail => paint.bad("FAIL"),
        };
        let advice = match finding.advice.as_str() {
            "" => String::new(),
            advice => format!("      {advice}\n"),
        };
        format!("{word}  {}: {}\n{advice}", finding.about, finding.seen)
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_root_is_no_reason_to_fail() {
        let dir = tempfile::tempdir().unwrap();
        let (root, wanted) = (Root::new(dir.path()), Wanted::nothing());
        let nobody = |_: &str| None;
        let mut findings = machine::check(&root, &wanted);
        findings.extend(network::check(&root, &wanted, &nobody));
        findings.extend(disks::check(&root));
        assert!(findings.iter().all(|it| it.verdict != Verdict::Fail), "{findings:?}");
        let told = text(&findings, Paint::stdout());
        for about in ["huge pages", "cores", "clock", "interfaces", "disks"] {
            assert!(told.contains(about), "{about} is not in\n{told}");
        }
        let warnings = findings.iter().filter(|it| it.verdict == Verdict::Warn);
        warnings.for_each(|it| assert!(!it.advice.is_empty(), "{it:?}"));
    }

    #[test]
    fn what_is_wanted_comes_from_the_configuration() {
        let text = "store: /a\nbuffer:\n  size: 1GiB\ncpus:\n  lanes: [2-3]\ncapture:\n  \
                    - interface: eth7\n    lanes: 2\n";
        let wanted = Wanted::of(&wirevault_config::parse(text, "t").unwrap());
        assert_eq!(wanted.interfaces, Some(vec![("eth7".to_owned(), 2)]));
        assert_eq!((wanted.buffer_bytes, wanted.lane_cpus), (1 << 30, vec![2, 3]));
    }
}
