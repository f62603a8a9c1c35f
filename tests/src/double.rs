//! Services of a cloud on loopback: a script of `tests/aws` each, which needs nothing but Python.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::aws::http;

/// A script that runs. Dropping it ends it.
pub(crate) struct Double {
    child: Child,
    pub(crate) port: u16,
}

impl Double {
    /// Starts a script, whose first line is its port.
    ///
    /// # Panics
    /// If it does not start.
    pub(crate) fn start(script: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("aws").join(script);
        let mut command = Command::new("python3");
        let mut child = command.arg(script).stdout(Stdio::piped()).spawn().expect("Python");
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
        said.read_line(&mut line).expect("its port");
        Self { child, port: line.trim().parse().expect("a port") }
    }

    /// Asks it, or tells it something.
    pub(crate) fn tell(&self, request: &str, body: &Value) -> Value {
        http(self.port, request, &[], body)
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
