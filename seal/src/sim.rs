//! A key service in memory, for tests: it holds keys in any state, counts what it is asked, and can
//! be taken away.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::chain::Chain;
use crate::locked::LockedBytes;
use crate::service::{Context, DataKey, KeyService, Mac, MacService, Refusal, ServiceFailure};
use crate::{KEY_BYTES, random};

/// The service. Its keys exist from the first time that they are named.
#[derive(Default)]
pub struct SimService {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    made: HashMap<Vec<u8>, (String, Context, [u8; KEY_BYTES])>,
    refusals: HashMap<String, Refusal>,
    away: Option<Refusal>,
    calls: Calls,
}

/// What it was asked, refused calls included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// Keys to be made.
    pub generate: u64,
    /// Keys to be opened.
    pub decrypt: u64,
    /// Codes to be made or checked.
    pub mac: u64,
}

impl SimService {
    /// From now on every call ends like this; with nothing the service is back.
    pub fn set_away(&self, refusal: Option<Refusal>) {
        self.inner().away = refusal;
    }

    /// From now on this key is refused; with nothing it is usable again.
    pub fn set_refused(&self, key: &str, refusal: Option<Refusal>) {
        let mut inner = self.inner();
        match refusal {
            Some(refusal) => inner.refusals.insert(key.to_owned(), refusal),
            None => inner.refusals.remove(key),
        };
    }

    /// What it was asked so far.
    pub fn calls(&self) -> Calls {
        self.inner().calls
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn check(&self, doing: &'static str, key: &str) -> Result<(), ServiceFailure> {
        match self.away.or_else(|| self.refusals.get(key).copied()) {
            Some(refusal) => Err(failure(doing, key, refusal)),
            None => Ok(()),
        }
    }
}

fn failure(doing: &'static str, key: &str, refusal: Refusal) -> ServiceFailure {
    let (code, message) = (format!("Sim({})", refusal.name()), String::new());
    ServiceFailure { doing, key: key.into(), endpoint: "sim".into(), code, message, refusal }
}

impl KeyService for SimService {
    fn kind(&self) -> &'static str {
        "sim"
    }

    fn generate(&self, key: &str, context: &Context) -> Result<DataKey, ServiceFailure> {
        let doing = "make an epoch key";
        let mut inner = self.inner();
        inner.calls.generate += 1;
        inner.check(doing, key)?;
        let broken = |_| failure(doing, key, Refusal::Failing);
        let (wrapped, secret) =
            (random::array::<40>().map_err(broken)?, random::array().map_err(broken)?);
        inner.made.insert(wrapped.to_vec(), (key.to_owned(), *context, secret));
        let plaintext = LockedBytes::copy_of(&secret).map_err(broken)?;
        Ok(DataKey { key: key.to_owned(), plaintext, wrapped: wrapped.to_vec() })
    }

    fn decrypt(
        &self,
        key: &str,
        context: &Context,
        wrapped: &[u8],
    ) -> Result<LockedBytes, ServiceFailure> {
        let failed = |refusal| failure("open an epoch key", key, refusal);
        let mut inner = self.inner();
        inner.calls.decrypt += 1;
        inner.check("open an epoch key", key)?;
        let made = inner.made.get(wrapped).ok_or_else(|| failed(Refusal::WrongContext))?;
        let (by, bound, secret) = made;
        match (by == key, bound == context) {
            (false, _) => Err(failed(Refusal::WrongKey)),
            (true, false) => Err(failed(Refusal::WrongContext)),
            (true, true) => LockedBytes::copy_of(secret).map_err(|_| failed(Refusal::Failing)),
        }
    }
}

impl MacService for SimService {
    fn make_mac(&self, key: &str, message: &[u8]) -> Result<Mac, ServiceFailure> {
        let mut inner = self.inner();
        inner.calls.mac += 1;
        inner.check("make a code", key)?;
        Ok(Mac { key: key.to_owned(), code: code(key, message) })
    }

    fn is_mac(&self, key: &str, message: &[u8], code: &[u8]) -> Result<bool, ServiceFailure> {
        let mut inner = self.inner();
        inner.calls.mac += 1;
        inner.check("check a code", key)?;
        Ok(self::code(key, message) == code)
    }
}

/// Whoever reads this file can make it; a test does not try.
fn code(key: &str, message: &[u8]) -> Vec<u8> {
    let mut chain = Chain::new();
    [key.as_bytes(), message].iter().for_each(|part| chain.add(part));
    chain.finish().to_vec()
}
