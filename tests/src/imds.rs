//! The metadata service of EC2 on loopback: `tests/aws/imds.py`, and an instance that it tells of.

use serde_json::{Value, json};

use crate::double::Double;

/// Id of the instance.
pub const INSTANCE: &str = "i-0123456789abcdef0";

/// The service. Dropping it ends it.
pub struct Imds {
    double: Double,
}

impl Imds {
    /// Starts it, with an instance to which nothing is about to happen.
    ///
    /// # Panics
    /// If it does not start: it needs nothing but Python.
    pub fn start() -> Self {
        let imds = Self { double: Double::start("imds.py") };
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
        self.double.tell("POST /_fake/paths", &paths);
    }

    /// What programs need in their environment to find it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![(
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            format!("http://127.0.0.1:{}", self.double.port),
        )]
    }

    /// Method, path and status of the calls since the last time this was asked.
    pub fn calls(&self) -> Vec<String> {
        let calls = self.double.tell("GET /_fake/calls", &Value::Null);
        serde_json::from_value(calls).expect("calls")
    }
}
