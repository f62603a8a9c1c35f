//! Epoch keys from AWS KMS: `GenerateDataKey` and `Decrypt`, with the encryption context and always
//! with the key's name, so that KMS refuses what another key wrapped. And codes of messages, under
//! keys for nothing else: `GenerateMac` and `VerifyMac`.
//!
//! The client of a region is made when a key there is first named. A key's ARN says its region; for
//! a bare id or an alias it is that of the environment, the profile or the instance, as for any
//! program that uses the SDK; so are credentials.
//!
//! Not covered: the SDK keeps an answer of KMS in ordinary memory until it is decoded, and does not
//! overwrite it. What it hands out is overwritten here.
//!
//! Source: AWS KMS API Reference, `GenerateDataKey`, `Decrypt`, `GenerateMac`, `VerifyMac`,
//! "Common errors".

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::{Mutex, PoisonError};

use aws_sdk_kms::Client;
use aws_sdk_kms::config::Builder;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, EncryptionAlgorithmSpec, MacAlgorithmSpec};
use tokio::runtime::Runtime;
use wirevault_seal::locked::LockedBytes;
use wirevault_seal::service::{
    Context, DataKey, KeyService, Mac, MacService, Refusal, ServiceFailure,
};
use wirevault_seal::{KEY_BYTES, one_way};
use zeroize::Zeroizing;

use crate::{NO_CREDENTIALS, client};

/// Throttling and failures of the service are tried again by the SDK, with pauses of its own.
const ATTEMPTS: u32 = 3;

const GENERATE: &str = "make an epoch key";
const DECRYPT: &str = "open an epoch key";
const MAKE_MAC: &str = "make a code";
const CHECK_MAC: &str = "check a code";
/// What KMS says of a code that is another message's, or another key's.
const WRONG_MAC: &str = "KMSInvalidMacException";

/// AWS KMS.
pub struct Kms {
    endpoint: Option<String>,
    runtime: Runtime,
    /// By region; that of the environment has no name.
    clients: Mutex<HashMap<Option<String>, Client>>,
}

impl Kms {
    /// KMS of whatever region a key names; `endpoint` replaces its address.
    ///
    /// # Errors
    /// The operating system gives no descriptor to wait with.
    pub fn new(endpoint: Option<&str>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (endpoint, clients) = (endpoint.map(ToOwned::to_owned), Mutex::default());
        Ok(Self { endpoint, runtime, clients })
    }

    /// Asks with the client of the key's region. On a thread of its own: whoever waits here may be
    /// within another runtime, where waiting is forbidden.
    fn ask<T, E, F>(
        &self,
        doing: &'static str,
        key: &str,
        call: impl FnOnce(Client) -> F + Send,
    ) -> Result<T, ServiceFailure>
    where
        T: Send,
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
        F: Future<Output = Result<T, SdkError<E>>> + Send,
    {
        let region = client::region_of(key);
        let work = async {
            let client = self.client(region).await;
            let place = client.config().region().map(ToString::to_string);
            (call(client).await, place)
        };
        let Some((answer, place)) = client::wait(&self.runtime, work) else {
            let (code, message) = ("the SDK panicked".to_owned(), String::new());
            let (key, endpoint) = (key.to_owned(), self.place(None));
            let refusal = Refusal::Failing;
            return Err(ServiceFailure { doing, key, endpoint, code, message, refusal });
        };
        answer.map_err(|error| failure(doing, key, self.place(place), &error))
    }

    async fn client(&self, region: Option<&str>) -> Client {
        let named = region.map(ToOwned::to_owned);
        let known = |clients: &HashMap<_, Client>| clients.get(&named).cloned();
        if let Some(client) = known(&self.clients.lock().unwrap_or_else(PoisonError::into_inner)) {
            return client;
        }
        let mut config = Builder::from(&client::config(region, ATTEMPTS).await);
        if let Some(endpoint) = &self.endpoint {
            config = config.endpoint_url(endpoint);
        }
        let client = Client::from_conf(config.build());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.insert(named, client.clone());
        client
    }

    fn place(&self, region: Option<String>) -> String {
        let region = region.unwrap_or_else(|| "no region".to_owned());
        match &self.endpoint {
            Some(endpoint) => format!("{endpoint} ({region})"),
            None => region,
        }
    }
}

impl KeyService for Kms {
    fn kind(&self) -> &'static str {
        "kms"
    }

    fn generate(&self, key: &str, context: &Context) -> Result<DataKey, ServiceFailure> {
        let answer = self.ask(GENERATE, key, |client| {
            client
                .generate_data_key()
                .key_id(key)
                .key_spec(DataKeySpec::Aes256)
                .set_encryption_context(Some(pairs(context)))
                .send()
        })?;
        let plaintext = self.secret(GENERATE, key, answer.plaintext)?;
        let wrapped = answer.ciphertext_blob.map(Blob::into_inner).unwrap_or_default();
        Ok(DataKey { key: answer.key_id.unwrap_or_else(|| key.to_owned()), plaintext, wrapped })
    }

    fn decrypt(
        &self,
        key: &str,
        context: &Context,
        wrapped: &[u8],
    ) -> Result<LockedBytes, ServiceFailure> {
        let one_way = one_way::parts(key).and_then(|(_, kept_as)| kept_as);
        let key = one_way.unwrap_or(key);
        let answer = self.ask(DECRYPT, key, |client| {
            let order = client.decrypt().key_id(key).ciphertext_blob(Blob::new(wrapped));
            match one_way {
                None => order.set_encryption_context(Some(pairs(context))),
                // KMS takes a context for symmetric keys only.
                Some(_) => order.encryption_algorithm(EncryptionAlgorithmSpec::RsaesOaepSha256),
            }
            .send()
        })?;
        self.secret(DECRYPT, key, answer.plaintext)
    }
}

impl MacService for Kms {
    fn make_mac(&self, key: &str, message: &[u8]) -> Result<Mac, ServiceFailure> {
        let answer = self.ask(MAKE_MAC, key, |client| {
            let order = client.generate_mac().key_id(key).message(Blob::new(message));
            order.mac_algorithm(MacAlgorithmSpec::HmacSha256).send()
        })?;
        let code = answer.mac.map(Blob::into_inner).unwrap_or_default();
        Ok(Mac { key: answer.key_id.unwrap_or_else(|| key.to_owned()), code })
    }

    fn is_mac(&self, key: &str, message: &[u8], code: &[u8]) -> Result<bool, ServiceFailure> {
        let answer = self.ask(CHECK_MAC, key, |client| {
            let order = client.verify_mac().key_id(key).message(Blob::new(message));
            order.mac(Blob::new(code)).mac_algorithm(MacAlgorithmSpec::HmacSha256).send()
        });
        match answer {
            Ok(answer) => Ok(answer.mac_valid),
            Err(failure) if failure.code == WRONG_MAC => Ok(false),
            Err(failure) => Err(failure),
        }
    }
}

impl Kms {
    /// Moves a key out of an answer into locked memory.
    fn secret(
        &self,
        doing: &'static str,
        key: &str,
        plaintext: Option<Blob>,
    ) -> Result<LockedBytes, ServiceFailure> {
        let plaintext = Zeroizing::new(plaintext.map(Blob::into_inner).unwrap_or_default());
        let failed = |code: String| {
            let (key, endpoint, message) = (key.to_owned(), self.place(None), String::new());
            let refusal = Refusal::Failing;
            ServiceFailure { doing, key, endpoint, code, message, refusal }
        };
        match plaintext.len() {
            KEY_BYTES => {
                LockedBytes::copy_of(&plaintext).map_err(|error| failed(error.to_string()))
            }
            len => Err(failed(format!("the answer holds {len} bytes of key, not {KEY_BYTES}"))),
        }
    }
}

fn pairs(context: &Context) -> HashMap<String, String> {
    context.pairs().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn failure<E>(
    doing: &'static str,
    key: &str,
    endpoint: String,
    error: &SdkError<E>,
) -> ServiceFailure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let key = key.to_owned();
    match error.code() {
        Some(code) => {
            let (refusal, code) = (refusal(code), code.to_owned());
            let message = error.message().unwrap_or_default().to_owned();
            ServiceFailure { doing, key, endpoint, code, message, refusal }
        }
        None => {
            if let Some(message) = client::unsigned(error) {
                let (code, refusal) = (NO_CREDENTIALS.to_owned(), Refusal::NoCredentials);
                return ServiceFailure { doing, key, endpoint, code, message, refusal };
            }
            let code = match error {
                SdkError::TimeoutError(_) => "no answer in time",
                SdkError::ResponseError(_) | SdkError::ServiceError(_) => "no answer of KMS",
                _ => "KMS was not reached",
            };
            let (code, message, refusal) =
                (code.to_owned(), client::causes(error), Refusal::Unreachable);
            ServiceFailure { doing, key, endpoint, code, message, refusal }
        }
    }
}

fn refusal(code: &str) -> Refusal {
    match code {
        "DisabledException" => Refusal::Disabled,
        "KMSInvalidStateException" => Refusal::PendingDeletion,
        "AccessDeniedException" => Refusal::Denied,
        "NotFoundException" | "InvalidArnException" | "InvalidKeyUsageException" => {
            Refusal::NotFound
        }
        "InvalidCiphertextException" => Refusal::WrongContext,
        "IncorrectKeyException" => Refusal::WrongKey,
        "ThrottlingException" | "Throttling" | "LimitExceededException" => Refusal::Throttled,
        "KMSInternalException"
        | "DependencyTimeoutException"
        | "KeyUnavailableException"
        | "InternalFailure"
        | "ServiceUnavailable" => Refusal::Failing,
        "ExpiredTokenException"
        | "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "IncompleteSignatureException"
        | "MissingAuthenticationTokenException" => Refusal::Credentials,
        _ => Refusal::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_without_a_server_is_no_refusal_of_the_key() {
        let kms = Kms::new(Some("http://127.0.0.1:9")).unwrap();
        let context = Context { store: Default::default(), epoch: [0; 16] };
        let key = "arn:aws:kms:eu-central-1:123456789012:key/1234";
        let failure = kms.generate(key, &context).unwrap_err();
        assert_eq!(failure.refusal, Refusal::Unreachable, "{failure}");
        let text = failure.to_string();
        assert!(text.contains(key) && text.contains("http://127.0.0.1:9 (eu-central-1)"), "{text}");
    }
}
