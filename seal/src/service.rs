//! A service that keeps a key and never gives it away: what this crate asks of one, and how it
//! refuses.
//!
//! A service makes *epoch keys*: random keys that it hands out once in the clear and once wrapped
//! under its own key and a [`Context`]. Only the service opens the wrapped form again, and only for
//! whoever it allows, with the same context. [`EpochKeys`](crate::EpochKeys) does the rest here.

use std::fmt;

use wirevault_format::StoreId;

use crate::locked::LockedBytes;

/// Names an epoch key. Random, never used again.
pub type EpochId = [u8; 16];

/// What an epoch key is bound to. Services write it into their logs in the clear, so it names ids
/// only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Context {
    /// The store whose rings it wraps.
    pub store: StoreId,
    /// The epoch.
    pub epoch: EpochId,
}

impl Context {
    /// The pairs that a service is given; their order means nothing.
    pub fn pairs(&self) -> [(&'static str, String); 3] {
        let epoch = self.epoch.iter().map(|byte| format!("{byte:02x}")).collect();
        [("app", "wirevault".to_owned()), ("store", self.store.to_string()), ("epoch", epoch)]
    }
}

/// A new epoch key.
#[derive(Debug)]
pub struct DataKey {
    /// The service's full name of the key that wrapped it, also where an alias was asked for.
    pub key: String,
    /// [`KEY_BYTES`](crate::KEY_BYTES) random bytes.
    pub plaintext: LockedBytes,
    /// The same, as only the service opens it.
    pub wrapped: Vec<u8>,
}

/// A service that keeps keys. A call may take long, but it must end.
pub trait KeyService: Send + Sync {
    /// Kind of the service, `kms` for example: the first part of a key's id.
    fn kind(&self) -> &'static str;

    /// Draws a key under `key`, bound to `context`.
    ///
    /// # Errors
    /// What the service says, or that it says nothing.
    fn generate(&self, key: &str, context: &Context) -> Result<DataKey, ServiceFailure>;

    /// Opens what `generate` wrapped under `key` and `context`.
    ///
    /// # Errors
    /// As for `generate`.
    fn decrypt(
        &self,
        key: &str,
        context: &Context,
        wrapped: &[u8],
    ) -> Result<LockedBytes, ServiceFailure>;
}

/// A code that a service made of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mac {
    /// The service's full name of the key, also where an alias was asked for.
    pub key: String,
    /// HMAC-SHA-256 of the message.
    pub code: Vec<u8>,
}

/// A service that keeps keys which codes are made with. Nobody has such a key: whoever holds
/// message and code, and may ask, knows that somebody who was allowed to has made it.
pub trait MacService: Send + Sync {
    /// Makes the code of a message of at most 4096 bytes.
    ///
    /// # Errors
    /// What the service says, or that it says nothing.
    fn make_mac(&self, key: &str, message: &[u8]) -> Result<Mac, ServiceFailure>;

    /// Whether the code is that of the message, under this key.
    ///
    /// # Errors
    /// As for `make_mac`; that it is not is none.
    fn is_mac(&self, key: &str, message: &[u8], code: &[u8]) -> Result<bool, ServiceFailure>;
}

/// Why a service did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceFailure {
    /// What was tried.
    pub doing: &'static str,
    /// The key, as it was named.
    pub key: String,
    /// Where the service was asked: region or address.
    pub endpoint: String,
    /// The service's own code, or what happened before it could give one.
    pub code: String,
    /// The service's own words.
    pub message: String,
    /// What kind of refusal it is.
    pub refusal: Refusal,
}

impl fmt::Display for ServiceFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { doing, key, endpoint, code, message, refusal } = self;
        write!(f, "key {key} at {endpoint}: cannot {doing}: {code}")?;
        if !message.is_empty() {
            write!(f, " ({message})")?;
        }
        write!(f, "; {}", refusal.way_out())
    }
}

impl std::error::Error for ServiceFailure {}

/// How a service refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No answer, in time or at all.
    Unreachable,
    /// Too many requests of this account.
    Throttled,
    /// The service itself failed.
    Failing,
    /// The key is disabled.
    Disabled,
    /// The key is to be deleted, or is not usable in another way.
    PendingDeletion,
    /// These credentials may not use the key.
    Denied,
    /// The credentials are not, or no longer, good.
    Credentials,
    /// There are no credentials to ask with.
    NoCredentials,
    /// There is no such key.
    NotFound,
    /// What is to be opened was changed, or was wrapped with another context.
    WrongContext,
    /// What is to be opened was wrapped under another key.
    WrongKey,
    /// Only the half of the key that wraps is at hand.
    OneWay,
    /// Anything else.
    Other,
}

impl Refusal {
    /// Its name in status and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Throttled => "throttled",
            Self::Failing => "failing",
            Self::Disabled => "disabled",
            Self::PendingDeletion => "pending_deletion",
            Self::Denied => "denied",
            Self::Credentials => "credentials",
            Self::NoCredentials => "no_credentials",
            Self::NotFound => "not_found",
            Self::WrongContext => "wrong_context",
            Self::WrongKey => "wrong_key",
            Self::OneWay => "one_way",
            Self::Other => "other",
        }
    }

    /// Whether somebody took the key away, as opposed to a fault that passes by itself.
    pub fn is_revocation(self) -> bool {
        matches!(self, Self::Disabled | Self::PendingDeletion | Self::Denied | Self::NotFound)
    }

    /// Whether it may be over at the next attempt, without anybody's doing: rights of an instance
    /// come and are renewed by themselves.
    pub fn passes(self) -> bool {
        let of_credentials = matches!(self, Self::Credentials | Self::NoCredentials);
        of_credentials || matches!(self, Self::Unreachable | Self::Throttled | Self::Failing)
    }

    /// Whether nobody was heard: the next question would be waited for as long.
    pub fn is_no_answer(self) -> bool {
        matches!(self, Self::Unreachable | Self::NoCredentials)
    }

    fn way_out(self) -> &'static str {
        match self {
            Self::Unreachable => "check network, region and endpoint",
            Self::Throttled => "it is tried again; raise the account's quota if this stays",
            Self::Failing => "it is tried again",
            Self::Disabled => "enable the key",
            Self::PendingDeletion => "cancel the deletion, then enable the key",
            Self::Denied => "check the credentials, their account, and the key's policy",
            Self::Credentials => "renew the credentials",
            Self::NoCredentials => "give this machine some",
            Self::NotFound => "check the key's name, region and account",
            Self::WrongContext => {
                "the ring is damaged, or another store's was copied here: restore the volume"
            }
            Self::WrongKey => "name the key that the store was sealed with",
            Self::OneWay => "read with the private key, elsewhere",
            Self::Other => "see the service's documentation of that code",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_key_place_code_and_way_out() {
        let failure = ServiceFailure {
            doing: "open an epoch key",
            key: "arn:1".into(),
            endpoint: "eu-central-1".into(),
            code: "DisabledException".into(),
            message: "arn:1 is disabled.".into(),
            refusal: Refusal::Disabled,
        };
        assert_eq!(
            failure.to_string(),
            "key arn:1 at eu-central-1: cannot open an epoch key: DisabledException (arn:1 is \
             disabled.); enable the key"
        );
    }

    #[test]
    fn only_what_somebody_did_to_the_key_is_a_revocation() {
        let all = [
            (Refusal::Unreachable, false),
            (Refusal::Throttled, false),
            (Refusal::Failing, false),
            (Refusal::Disabled, true),
            (Refusal::PendingDeletion, true),
            (Refusal::Denied, true),
            (Refusal::Credentials, false),
            (Refusal::NoCredentials, false),
            (Refusal::NotFound, true),
            (Refusal::WrongContext, false),
            (Refusal::WrongKey, false),
            (Refusal::OneWay, false),
            (Refusal::Other, false),
        ];
        for (refusal, revoked) in all {
            assert_eq!(refusal.is_revocation(), revoked, "{}", refusal.name());
        }
    }

    #[test]
    fn a_context_is_made_of_ids() {
        let context = Context { store: StoreId([0xab; 16]), epoch: [0x01; 16] };
        assert_eq!(
            context.pairs(),
            [
                ("app", "wirevault".to_owned()),
                ("store", "ab".repeat(16)),
                ("epoch", "01".repeat(16)),
            ]
        );
    }
}
