//! The metadata service of EC2 on loopback: `tests/aws/imds.py`, and an instance that it tells of.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::aws::http;

/// Id of the instance.
pub const INSTANCE: &str = "i-0123456789abcdef0";

/// The service. Dropping it ends it.
pub struct Imds {
    child: Child,
    port: u16,
}

impl Imds {
    /// Starts it, with an instance to which nothing is about to happen.
    ///
    /// # Panics
    /// If it does not start: it needs nothing but Python.
    pub fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("aws/imds.py");
        let mut command = Command::new("python3");
        command.arg(script).stdout(Stdio::piped());
        let mut child = command.spawn().expect("Python");
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
        said.read_line(&mut line).expect("its port");
        let imds = Self { child, port: line.trim().parse().expect("a port") };
        imds.announce(&[]);
        imds
    }

    /// What is about to happen from now on: paths below `/latest/meta-data/` and their texts.
    pub fn announce(&self, notices: &[(&str, &str)]) {
        let document = json!({
            "accountId": "123456789012", "availabilityZone": "eu-central-1b",
            "instanceId": INSTANCE, "instanceType": "i7ie.12xlarge", "region": "eu-central-1",
        });
        let mut paths = json!({
            "/latest/dynamic/instance-identity/document": document.to_string(),
            "/latest/meta-data/tags/instance": "Name\nrack",
            "/latest/meta-data/tags/instance/Name": "recorder-7",
            "/latest/meta-data/tags/instance/rack": "b",
            "/latest/meta-data/autoscaling/target-lifecycle-state": "InService",
            "/latest/meta-data/events/maintenance/scheduled": "[]",
        });
        for (path, text) in notices {
            paths[format!("/latest/meta-data/{path}")] = (*text).into();
        }
        http(self.port, "POST /_fake/paths", &[], &paths);
    }

    /// What programs need in their environment to find it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://127.0.0.1:{}", self.port))]
    }

    /// Method, path and status of the calls since the last time this was asked.
    pub fn calls(&self) -> Vec<String> {
        let calls = http(self.port, "GET /_fake/calls", &[], &Value::Null);
        serde_json::from_value(calls).expect("calls")
    }
}

impl Drop for Imds {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
