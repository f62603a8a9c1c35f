//! The instance metadata service of EC2, version 2: a token first, then questions with it.
//!
//! A path that is not there (404) is the usual answer: no notice, no tags. Everything else that is
//! no success is an error.
//!
//! Source: Amazon EC2 User Guide, "Instance metadata categories", "Spot Instance interruption
//! notices", "Use instance identity documents".

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use aws_config::imds::client::Client;
use aws_config::imds::client::error::ImdsError;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::client;
use crate::instance::{Instance, Metadata, Notice, NoticeKind};

/// The service is on the machine's own host.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// For one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// For a question with all its attempts.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 2;
/// Tags that are read at most: EC2 allows no more.
const TAGS_MAX: usize = 50;

/// Where the service is, and the variable that names another place.
const LINK_LOCAL: &str = "http://169.254.169.254";
const ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const IDENTITY: &str = "/latest/dynamic/instance-identity/document";
const TAGS: &str = "/latest/meta-data/tags/instance";
const SPOT: &str = "/latest/meta-data/spot/instance-action";
const REBALANCE: &str = "/latest/meta-data/events/recommendations/rebalance";
const MAINTENANCE: &str = "/latest/meta-data/events/maintenance/scheduled";
const SCALING: &str = "/latest/meta-data/autoscaling/target-lifecycle-state";

/// The service of this machine.
pub(crate) struct Imds {
    runtime: Runtime,
    client: Client,
}

impl Imds {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// The operating system gives no descriptor to wait with.
    pub(crate) fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = Client::builder()
            .max_attempts(ATTEMPTS)
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        Ok(Self { runtime, client })
    }

    /// What stands there; nothing if there is no such path.
    fn get(&self, path: &str) -> Result<Option<String>, String> {
        let failed = |why: String| format!("instance metadata {path}: {why}");
        let answer = client::wait(&self.runtime, self.client.get(path));
        match answer.ok_or_else(|| failed("the SDK panicked".to_owned()))? {
            Ok(text) => Ok(Some(text.into())),
            Err(ImdsError::ErrorResponse(error)) if error.response().status().as_u16() == 404 => {
                Ok(None)
            }
            Err(error) => Err(failed(format!("{error}: {}", client::causes(&error)))),
        }
    }
}

impl Metadata for Imds {
    fn instance(&self) -> Result<Instance, String> {
        let document = self.get(IDENTITY)?.ok_or("the instance metadata have no identity")?;
        let document: Value = serde_json::from_str(&document)
            .map_err(|error| format!("instance metadata {IDENTITY}: {error}"))?;
        let field = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        let mut tags = Vec::new();
        for name in self.get(TAGS)?.unwrap_or_default().lines().take(TAGS_MAX) {
            let value = self.get(&format!("{TAGS}/{name}"))?.unwrap_or_default();
            tags.push((name.to_owned(), value));
        }
        Ok(Instance {
            id: field("instanceId"),
            kind: field("instanceType"),
            region: field("region"),
            zone: field("availabilityZone"),
            account: field("accountId"),
            tags,
        })
    }

    /// By hand: the SDK asks for a token first.
    fn answers_without_token(&self) -> Option<bool> {
        let set = std::env::var(ENDPOINT).ok().filter(|endpoint| !endpoint.is_empty());
        let endpoint = set.as_deref().unwrap_or(LINK_LOCAL);
        let host = endpoint.strip_prefix("http://")?.trim_end_matches('/');
        let port = if host.contains(':') { "" } else { ":80" };
        let address = format!("{host}{port}").parse().ok()?;
        let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).ok()?;
        stream.set_read_timeout(Some(ATTEMPT_TIMEOUT)).ok()?;
        let request = format!("GET {IDENTITY} HTTP/1.0\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut status = [0; "HTTP/1.1 200".len()];
        stream.read_exact(&mut status).ok()?;
        Some(status.ends_with(b" 200"))
    }

    fn notices(&self) -> Result<Vec<Notice>, String> {
        let mut notices = Vec::new();
        for (kind, path) in [
            (NoticeKind::Spot, SPOT),
            (NoticeKind::Scaling, SCALING),
            (NoticeKind::Maintenance, MAINTENANCE),
            (NoticeKind::Rebalance, REBALANCE),
        ] {
            let text = self.get(path)?.unwrap_or_default();
            if is_notice(kind, text.trim()) {
                notices.push(Notice { kind, text: text.trim().to_owned() });
            }
        }
        Ok(notices)
    }
}

/// Whether the text announces something: an empty list does not, nor does a group that wants the
/// machine to stay.
fn is_notice(kind: NoticeKind, text: &str) -> bool {
    match kind {
        NoticeKind::Scaling => text == "Terminated",
        NoticeKind::Maintenance => !text.is_empty() && text != "[]",
        NoticeKind::Spot | NoticeKind::Rebalance => !text.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_answers_are_no_notices() {
        for (kind, text, is) in [
            (NoticeKind::Scaling, "InService", false),
            (NoticeKind::Scaling, "Terminated", true),
            (NoticeKind::Maintenance, "[]", false),
            (NoticeKind::Maintenance, "[{\"Code\":\"system-reboot\"}]", true),
            (NoticeKind::Spot, "", false),
            (NoticeKind::Spot, "{\"action\":\"terminate\"}", true),
        ] {
            assert_eq!(is_notice(kind, text), is, "{kind:?} {text}");
        }
    }
}
