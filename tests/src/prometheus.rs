//! A real Prometheus, from Debian's package, and promtool that comes with it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use wirevault_testkit::net::wait_for;

use crate::vm::packages;

/// It scrapes every 15 s, and many people may share this machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(90);
/// Where it answers, in the namespace of the test.
const ADDRESS: &str = "127.0.0.1:9090";

/// A running Prometheus. Dropping it ends it.
pub struct Prometheus {
    process: Child,
    folder: TempDir,
}

impl Prometheus {
    /// Starts one with this configuration in the thread's namespace, and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn start(config: &Path) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let log = File::create(folder.path().join("log")).expect("log");
        let mut command = Command::new(program("prometheus"));
        command.arg("--config.file").arg(config).arg("--storage.tsdb.path").arg(folder.path());
        command.args(["--web.listen-address", ADDRESS, "--log.level=warn"]);
        command.stdout(log.try_clone().expect("log")).stderr(log);
        let prometheus = Self { process: command.spawn().expect("prometheus"), folder };
        wait_for("an answer of Prometheus", PATIENCE, || get("/-/ready", &[]));
        prometheus
    }

    /// What it answers to a question over its HTTP API.
    ///
    /// # Panics
    /// If it refuses.
    pub fn api(&self, path: &str, arguments: &[(&str, &str)]) -> Value {
        let answer = get(&format!("/api/v1/{path}"), arguments).expect("an answer of Prometheus");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["status"], "success", "{path} {arguments:?}: {answer}");
        answer["data"].clone()
    }

    /// The value of an expression that has one value now.
    pub fn value(&self, expression: &str) -> Option<f64> {
        let data = self.api("query", &[("query", expression)]);
        let [only] = data["result"].as_array()?.as_slice() else { return None };
        only["value"][1].as_str()?.parse().ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log"));
            eprintln!("log of Prometheus:\n{}", log.unwrap_or_default());
        }
    }
}

/// What promtool says to these arguments and this input.
///
/// # Panics
/// If it does not like what it sees.
pub fn promtool(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(program("promtool"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool");
    // It need not read what it is given.
    let _ = child.stdin.take().expect("its input").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("promtool");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

fn program(name: &str) -> PathBuf {
    packages::unpacked("prometheus").join("usr/bin").join(name)
}

fn get(path: &str, arguments: &[(&str, &str)]) -> Option<String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--fail", "--get"]).arg(format!("http://{ADDRESS}{path}"));
    for (name, value) in arguments {
        command.arg("--data-urlencode").arg(format!("{name}={value}"));
    }
    let output = command.output().expect("curl");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
