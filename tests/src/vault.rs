//! AWS Backup on loopback: `tests/aws/backup.py`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::aws::{self, http};

/// Name of the vault that is there.
pub const VAULT: &str = "recorders";
/// The role that AWS Backup may take on.
pub const ROLE: &str = "arn:aws:iam::123456789012:role/backup";
/// The volume that the state is on.
pub const VOLUME: &str = "arn:aws:ec2:eu-central-1:123456789012:volume/vol-0123456789abcdef0";

/// The service. Dropping it ends it.
pub struct Vault {
    child: Child,
    port: u16,
}

impl Vault {
    /// Starts it; jobs go through these states.
    ///
    /// # Panics
    /// If it does not start: it needs nothing but Python.
    pub fn start(states: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("aws/backup.py");
        let mut command = Command::new("python3");
        command.arg(script).stdout(Stdio::piped());
        let mut child = command.spawn().expect("Python");
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
        said.read_line(&mut line).expect("its port");
        let vault = Self { child, port: line.trim().parse().expect("a port") };
        vault.script(&[VAULT], &[ROLE], states, None);
        vault
    }

    /// Which vaults and roles there are, which states jobs go through, and what is said of them.
    pub fn script(&self, vaults: &[&str], roles: &[&str], states: &[&str], message: Option<&str>) {
        let script =
            json!({"vaults": vaults, "roles": roles, "states": states, "message": message});
        http(self.port, "POST /_fake/script", &[], &script);
    }

    /// The orders: `order` as it came, how often it was `given`, and `asked` for.
    pub fn jobs(&self) -> Vec<Value> {
        let jobs = http(self.port, "GET /_fake/jobs", &[], &Value::Null);
        serde_json::from_value(jobs).expect("jobs")
    }

    /// What programs need in their environment to find it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        aws::environment_of(self.port).into()
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
