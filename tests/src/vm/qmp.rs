//! QEMU's control socket: JSON, a line each (its "QMP" protocol).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Longest wait for an answer: a machine that drains a stalled device answers nobody.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects and leaves the negotiating mode.
    ///
    /// # Errors
    /// The socket is not there yet.
    pub fn connect(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self { stream: BufReader::new(stream), events: Vec::new() };
        qmp.receive();
        qmp.run("qmp_capabilities", json!({}));
        Ok(qmp)
    }

    /// Runs a command; gives what it returns.
    ///
    /// # Panics
    /// If QEMU refuses it or does not answer.
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        let answer = self.try_run(command, arguments.clone());
        answer.unwrap_or_else(|error| panic!("QEMU refuses {command} {arguments}: {error}"))
    }

    /// Runs a command.
    ///
    /// # Errors
    /// What QEMU says.
    pub fn try_run(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|error| error.to_string())?;
        loop {
            let mut message = self.receive();
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                return Err(error["desc"].as_str().unwrap_or_default().to_owned());
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Whether this event was reported for this device, now or before. Asks QEMU for news.
    pub fn has_happened(&mut self, event: &str, device: &str) -> bool {
        self.run("query-status", json!({}));
        let of_device = |it: &Value| it["event"] == event && it["data"]["device"] == device;
        self.events.iter().any(of_device)
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        let bytes = read.unwrap_or_else(|error| panic!("QEMU does not answer: {error}"));
        assert!(bytes > 0, "QEMU has ended");
        serde_json::from_str(&line).expect("JSON of QEMU")
    }
}
