//! AWS Backup on loopback: `tests/aws/backup.py`.

use serde_json::{Value, json};

use crate::aws;
use crate::double::Double;

/// Name of the vault that is there.
pub const VAULT: &str = "recorders";
/// The role that AWS Backup may take on.
pub const ROLE: &str = "arn:aws:iam::123456789012:role/wirevault-backup";
/// The volume that the state is on.
pub const VOLUME: &str = "arn:aws:ec2:eu-central-1:123456789012:volume/vol-0123456789abcdef0";

/// The service. Dropping it ends it.
pub struct Vault {
    double: Double,
}

impl Vault {
    /// Starts it; jobs go through these states.
    ///
    /// # Panics
    /// If it does not start: it needs nothing but Python.
    pub fn start(states: &[&str]) -> Self {
        let vault = Self { double: Double::start("backup.py") };
        vault.script(&[VAULT], &[ROLE], states, None);
        vault
    }

    /// Which vaults and roles there are, which states jobs go through, and what is said of them.
    pub fn script(&self, vaults: &[&str], roles: &[&str], states: &[&str], message: Option<&str>) {
        let script =
            json!({"vaults": vaults, "roles": roles, "states": states, "message": message});
        self.double.tell("POST /_fake/script", &script);
    }

    /// The orders: `order` as it came, how often it was `given`, and `asked` for.
    pub fn jobs(&self) -> Vec<Value> {
        let jobs = self.double.tell("GET /_fake/jobs", &Value::Null);
        serde_json::from_value(jobs).expect("jobs")
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.double.port)
    }

    /// What programs need in their environment to find it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        aws::environment_of(self.double.port).into()
    }
}
