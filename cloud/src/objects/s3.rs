//! A bucket of Amazon S3, or of a service that speaks like it.
//!
//! Credentials and region are found as by the clients of the SDK, and by the same code. What is put
//! carries its CRC32C, piece by piece, which the service checks before it keeps anything; a name
//! that is taken is refused by the service itself (`If-None-Match`), also at the end of an upload
//! of several pieces. An upload that breaks off leaves pieces that no name leads to: a rule of the
//! bucket has to remove them.
//!
//! Source: Amazon S3 API Reference, `PutObject`, `CompleteMultipartUpload`, "Error responses".

use std::error::Error;
use std::time::{Duration, UNIX_EPOCH};

use aws_config::SdkConfig;
use aws_sdk_kms::config::{ProvideCredentials, SharedCredentialsProvider};
use aws_types::service_config::ServiceConfigKey;
use opendal::{HttpTransporter, Operator, services};
use opendal_http_transport_reqwest::ReqwestTransport;
use reqsign_aws_v4::Credential;
use reqsign_core::time::Timestamp;
use reqsign_core::{Context, ProvideCredential, ProvideCredentialChain};
use wirevault_media::{Bucket, ObjectFault};

use super::Unopened;
use crate::client;

/// For opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Times that instance metadata and the like are asked for credentials.
const ATTEMPTS: u32 = 3;
/// Variable and line of a profile that name another address.
const ENDPOINT: &str = "AWS_ENDPOINT_URL";
const ENDPOINT_PROFILE: &str = "endpoint_url";
/// What the service computes of each piece, and compares.
const CHECKSUM: &str = "crc32c";

/// # Errors
/// `Failed`: nothing says which region it is in; the TLS library does not start.
pub(super) async fn operator(bucket: &Bucket) -> Result<Operator, Unopened> {
    let config = client::config(bucket.region.as_deref(), ATTEMPTS).await;
    let Some(region) = config.region() else {
        let why = "no region; write s3://BUCKET/PREFIX?region=REGION, or set AWS_REGION";
        return Err(Unopened::new(ObjectFault::Failed, why));
    };
    let chain = config.credentials_provider().map(|chain| Chain { chain });
    let mut service = services::S3::default()
        .bucket(&bucket.name)
        .root(&bucket.prefix)
        .region(region.as_ref())
        .checksum_algorithm(CHECKSUM)
        .disable_config_load()
        .credential_provider_chain(
            chain.into_iter().fold(ProvideCredentialChain::new(), ProvideCredentialChain::push),
        );
    match bucket.endpoint.clone().or_else(|| endpoint(&config)) {
        Some(endpoint) => service = service.endpoint(endpoint.trim_end_matches('/')),
        // The certificate of the service covers names of one label.
        None if !bucket.name.contains('.') => service = service.enable_virtual_host_style(),
        None => {}
    }
    if let Some(class) = &bucket.storage_class {
        service = service.default_storage_class(class);
    }
    let http = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| Unopened::new(ObjectFault::Failed, &client::causes(&error)))?;
    let operator = Operator::new(service)?;
    let transport = HttpTransporter::new(ReqwestTransport::new(http));
    let context = operator.context().with_http_transport(transport);
    Ok(operator.with_context(context))
}

/// Address of the service that environment or profile name in place of the region's own, for S3 or
/// else for all services, as the SDK's own clients take it. Source: AWS SDKs and Tools Reference
/// Guide, "Service-specific endpoints".
fn endpoint(config: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id("S3").env(ENDPOINT).profile(ENDPOINT_PROFILE);
    let of_s3 = config.service_config().zip(key.build().ok());
    let of_s3 = of_s3.and_then(|(known, key)| known.load_config(key));
    of_s3.or_else(|| config.endpoint_url().map(ToOwned::to_owned))
}

/// Whether nothing was sent, because it could not be signed.
pub(super) fn has_no_credentials(error: &opendal::Error) -> bool {
    let signer = error.source().and_then(|source| source.downcast_ref::<reqsign_core::Error>());
    signer.is_some_and(|error| error.kind() == reqsign_core::ErrorKind::CredentialInvalid)
}

/// Whether bytes changed on the way, each time they were sent. OpenDAL keeps the service's code in
/// its message only.
pub(super) fn came_in_wrong(error: &opendal::Error) -> bool {
    error.message().contains("BadDigest")
}

/// The SDK's way to credentials: environment, profile, web identity, container, instance.
#[derive(Debug)]
struct Chain {
    chain: SharedCredentialsProvider,
}

impl ProvideCredential for Chain {
    type Credential = Credential;

    async fn provide_credential(&self, _: &Context) -> reqsign_core::Result<Option<Credential>> {
        let found = self.chain.provide_credentials().await.map_err(|error| {
            let why = client::causes(&client::Unsigned(error));
            reqsign_core::Error::credential_invalid(why)
        })?;
        let expires_in = found.expiry().and_then(|expiry| {
            let left = expiry.duration_since(UNIX_EPOCH).ok()?;
            Timestamp::from_second(left.as_secs().try_into().ok()?).ok()
        });
        Ok(Some(Credential {
            access_key_id: found.access_key_id().to_owned(),
            secret_access_key: found.secret_access_key().to_owned(),
            session_token: found.session_token().map(ToOwned::to_owned),
            expires_in,
        }))
    }
}
