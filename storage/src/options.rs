//! What a new store is made with.

use std::fmt;
use std::sync::Arc;

use wirevault_seal::KeyProvider;
use wirevault_telemetry::clock::Clock;

/// How to make a store.
#[derive(Clone)]
pub struct CreateOptions {
    /// Bytes that all volumes together may occupy; `None`: half of what is free on them.
    pub quota_bytes: Option<u64>,
    /// Lanes that will write at the same time; at least 1.
    pub lanes: u16,
    /// Wraps the key rings; `None` makes a plain store.
    pub key: Option<Arc<dyn KeyProvider>>,
    /// Path of the key file, for those who open the store later. Empty in plain stores.
    pub key_path: String,
    /// Tells the time of creation.
    pub clock: Arc<dyn Clock>,
}

impl fmt::Debug for CreateOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateOptions")
            .field("quota_bytes", &self.quota_bytes)
            .field("lanes", &self.lanes)
            .field("key", &self.key.as_ref().map(|key| key.id()))
            .field("key_path", &self.key_path)
            .finish_non_exhaustive()
    }
}
