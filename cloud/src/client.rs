//! What the clients of all services of AWS have in common: where credentials and region come from,
//! and how long anything may take.

use std::error::Error;
use std::thread;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use tokio::runtime::Runtime;

use crate::NO_CREDENTIALS;

/// For opening a connection. AWS is a few milliseconds away, or nobody answers.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// For one attempt. Without it a silent endpoint would be waited for without end: the SDK sets a
/// connect timeout only.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// For a call with all its attempts, and so for what a start waits for a silent service.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(6);

/// What a client is made of. Without a region that of the environment, the profile or the instance
/// holds, as for any program that uses the SDK. Throttling and failures of the service are tried
/// again by the SDK, with pauses of its own, `attempts` times in all.
pub(crate) async fn config(region: Option<&str>, attempts: u32) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT);
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .timeout_config(timeouts.build())
        .retry_config(RetryConfig::standard().with_max_attempts(attempts));
    if let Some(region) = region {
        loader = loader.region(Region::new(region.to_owned()));
    }
    // Tests of this crate ask ports without a server, which takes something to sign with.
    #[cfg(test)]
    let loader = {
        let (key, secret) = ("AKIDTEST", "secret");
        loader.credentials_provider(aws_credential_types::Credentials::new(
            key, secret, None, None, "test",
        ))
    };
    loader.load().await
}

/// Where credentials are looked for. Source: AWS SDK for Rust Developer Guide, "Credential provider
/// chain".
pub(crate) const LOOKED_FOR: &str = "they are looked for in the environment (AWS_ACCESS_KEY_ID), \
                                     a profile (AWS_PROFILE, ~/.aws), a web identity, and the \
                                     role of the container or the instance";

/// Nothing can be signed.
#[derive(Debug, thiserror::Error)]
#[error("nothing can be signed")]
pub(crate) struct Unsigned(#[source] pub(crate) CredentialsError);

/// Where credentials were looked for and what was found there, if it is for want of them that
/// nothing was sent: the SDK says that the service was not reached, and tells of the last place
/// only.
pub(crate) fn unsigned(error: &dyn Error) -> Option<String> {
    let mut next = error.source();
    while let Some(cause) = next {
        if cause.is::<CredentialsError>() {
            return Some(format!("{LOOKED_FOR}: {}", told(cause)));
        }
        next = cause.source();
    }
    None
}

/// What an error came from, outermost first; where there are no credentials, only that, and the way
/// out.
pub(crate) fn causes(error: &dyn Error) -> String {
    match unsigned(error) {
        Some(looked_for) => format!("{NO_CREDENTIALS}; give this machine some: {looked_for}"),
        None => error.source().map(told).unwrap_or_default(),
    }
}

/// An error and what it came from.
fn told(error: &dyn Error) -> String {
    // The SDK puts each place on a line of its own.
    let text = error.to_string().replace("\n  ", " ");
    let source = error.source().map(|source| format!(": {}", told(source)));
    text + &source.unwrap_or_default()
}

/// Waits on a thread of its own: whoever asks may be within another runtime, where waiting is
/// forbidden. Nothing comes back if the SDK panicked.
pub(crate) fn wait<T: Send>(runtime: &Runtime, work: impl Future<Output = T> + Send) -> Option<T> {
    thread::scope(|scope| scope.spawn(|| runtime.block_on(work)).join()).ok()
}

/// The region in an ARN, `arn:PARTITION:SERVICE:REGION:ACCOUNT:...`.
pub(crate) fn region_of(arn: &str) -> Option<&str> {
    let mut parts = arn.strip_prefix("arn:")?.split(':').skip(2);
    parts.next().filter(|region| !region.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_credentials_are_told_with_the_places_and_the_way_out() {
        let told = causes(&Unsigned(CredentialsError::not_loaded("one:\n  two")));
        assert!(told.starts_with("no credentials; give this machine some"), "{told}");
        assert!(told.contains("AWS_ACCESS_KEY_ID") && told.ends_with("one: two"), "{told}");
        assert_eq!(causes(&std::io::Error::other("x")), "");
    }

    #[test]
    fn an_arn_says_the_region() {
        let arn = "arn:aws-us-gov:kms:us-gov-west-1:123456789012:key/1234";
        assert_eq!(region_of(arn), Some("us-gov-west-1"));
        for none in ["alias/recorder", "1234abcd-12ab", "arn:aws:kms", "arn:aws:kms::1:key/1"] {
            assert_eq!(region_of(none), None, "{none}");
        }
    }
}
