//! Keys of a store whose key is kept by a service: epoch keys, fetched ahead.
//!
//! ```text
//!  key in the service ──generate(store, epoch)──► epoch key ──wraps──► root of a ring ─► ...
//!                                 │ `ahead` of them wait in locked memory
//!  tend (a thread of its own) ────┘            wrap never waits for the service while it has one
//! ```
//! Invariants:
//!
//! 1. While this process has an epoch key, [`KeyProvider::wrap`] does not call the service: an
//!    outage is felt by [`EpochKeys::tend`] alone.
//! 2. An epoch key wraps for `age`; then the next one does. So an outage of `ahead` times `age`
//!    changes nothing. A longer one is met as [`WhenOut`] says; nothing is ever stored unencrypted.
//! 3. A ring names the key and the wrapped epoch key that it hangs from: it opens by itself.

mod wrapped;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wirevault_format::StoreId;
use wirevault_telemetry::clock::{Clock, SECOND_NS};

use crate::locked::{LockedBytes, Secret};
use crate::one_way::{self, OneWayKey};
use crate::service::{Context, DataKey, EpochId, KeyService, Refusal, ServiceFailure};
use crate::{ForgetLevel, KEY_BYTES, KeyProvider, SealError, random};
use wrapped::Wrapped;

/// Epoch keys remembered after they were opened or used: two rings of each of eight volumes.
const KNOWN_MAX: usize = 16;

/// So long after it was last heard of, the service is asked whether the key still opens. A
/// revocation is noticed within this time; it costs 288 calls a day.
const CHECK_NS: u64 = 300 * SECOND_NS;

/// Pauses between attempts that fail: the first, and the longest.
const PAUSE_NS: (u64, u64) = (SECOND_NS, 60 * SECOND_NS);

/// How epoch keys are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochOptions {
    /// Keys that wait for their turn, at least 1.
    pub ahead: usize,
    /// For how long a key wraps.
    pub age: Duration,
    /// What to do when the last one is older than that and the service does not answer.
    pub when_exhausted: WhenOut,
    /// What to do when the service says that the key may not be used.
    pub when_revoked: WhenOut,
}

impl Default for EpochOptions {
    fn default() -> Self {
        let (ahead, age) = (3, Duration::from_secs(3600));
        Self { ahead, age, when_exhausted: WhenOut::Extend, when_revoked: WhenOut::Extend }
    }
}

/// What to do without new epoch keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenOut {
    /// Epoch keys are made here and hang from a [`OneWayKey`]: this process goes on as before, and
    /// the next one records without being able to read them. As `Extend` if there is no such key.
    Seal,
    /// The last epoch key goes on. What it wraps is as strong as before; only more hangs from it.
    Extend,
    /// No segment is begun.
    Stop,
}

/// How it stands with a store's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyCondition {
    /// The service answers, and epoch keys wait.
    Ready,
    /// The service does not answer as it should; epoch keys still wait, or the last one is young.
    Waiting,
    /// The last epoch key is older than it should get.
    Exhausted,
    /// The service says that the key may not be used. After a restart nothing of the store opens.
    Revoked,
}

impl KeyCondition {
    /// All of them, the best first.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Waiting, Self::Exhausted, Self::Revoked];

    /// Its name in status, metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Waiting => "waiting",
            Self::Exhausted => "exhausted",
            Self::Revoked => "revoked",
        }
    }
}

/// What [`EpochKeys::status`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStatus {
    /// Name of the key at its service.
    pub key: String,
    /// How it stands.
    pub condition: KeyCondition,
    /// Epoch keys that wait for their turn.
    pub ahead: usize,
    /// The epoch that wraps now, and since when, Unix ns; nothing before the first wrapping.
    pub epoch: Option<(EpochId, u64)>,
    /// Why the service did not do what it was asked, if it did not.
    pub trouble: Option<ServiceFailure>,
    /// Whether no segment may be begun.
    pub stopped: bool,
    /// The key that only seals, if the epoch that wraps now hangs from it.
    pub one_way: Option<String>,
}

/// A condition that a key came to. See [`EpochKeys::changes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// Name of the key at its service.
    pub key: String,
    /// How it stood before.
    pub from: KeyCondition,
    /// How it stood then.
    pub to: KeyCondition,
    /// Why the service did not do what it was asked, if it did not.
    pub trouble: Option<ServiceFailure>,
}

/// The keys of one store. Made by [`ServiceKeys`].
pub struct EpochKeys {
    service: Arc<dyn KeyService>,
    one_way: OneWay,
    store: StoreId,
    options: EpochOptions,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

/// Keys that only seal, beside a service.
#[derive(Clone, Default)]
struct OneWay {
    /// What epoch keys hang from while the service gives none, where the options say so.
    seal: Option<Arc<OneWayKey>>,
    /// The service is asked to open what hangs from such keys. A recorder does not: a start would
    /// wait for a service that it is to do without.
    opens: bool,
}

struct State {
    /// Name of the key that new epoch keys hang from.
    key: String,
    current: Option<Current>,
    /// One ring was written when the epoch before was over: the others still hang from that.
    owed: bool,
    ahead: VecDeque<Arc<Epoch>>,
    /// Opened or used, the newest last.
    known: VecDeque<Arc<Epoch>>,
    trouble: Option<ServiceFailure>,
    /// Monotonic time of the last answer.
    heard_ns: Option<u64>,
    /// Monotonic time before which the service is not asked again, and the pause that led to it.
    retry_ns: u64,
    pause_ns: u64,
    /// The condition that `changes` ends with, or ended with before they were taken.
    noted: KeyCondition,
    changes: Vec<KeyChange>,
}

struct Current {
    epoch: Arc<Epoch>,
    /// Monotonic; nothing for one of an earlier process, which is as old as can be.
    began_ns: Option<u64>,
    began_unix_ns: u64,
}

/// An epoch key in the clear.
struct Epoch {
    id: EpochId,
    key: String,
    wrapped: Vec<u8>,
    secret: Secret,
}

impl EpochKeys {
    fn new(
        (service, one_way): (Arc<dyn KeyService>, OneWay),
        store: StoreId,
        key: &str,
        options: EpochOptions,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let state = State {
            key: key.to_owned(),
            current: None,
            owed: false,
            ahead: VecDeque::new(),
            known: VecDeque::new(),
            trouble: None,
            heard_ns: None,
            retry_ns: 0,
            pause_ns: PAUSE_NS.0,
            noted: KeyCondition::Ready,
            changes: Vec::new(),
        };
        Self { service, one_way, store, options, clock, state: Mutex::new(state) }
    }

    /// Name of the key at its service, in full once the service has answered.
    pub fn key(&self) -> String {
        self.state().key.clone()
    }

    /// Fetches what is missing, and asks now and then whether the key still opens. To be called
    /// every second or so by a thread that may wait for the service.
    pub fn tend(&self) {
        let now_ns = self.clock.monotonic_ns();
        loop {
            let (missing, check) = {
                let state = self.state();
                if now_ns < state.retry_ns {
                    return;
                }
                // A fetch of an earlier round was heard of after `now_ns`.
                let silence = |heard_ns| now_ns.saturating_sub(heard_ns);
                let silent = state.heard_ns.is_none_or(|heard| silence(heard) >= CHECK_NS);
                let known = state.known.back().or(state.ahead.front());
                (state.ahead.len() < self.options.ahead, known.filter(|_| silent).cloned())
            };
            match (missing, check) {
                (true, _) => match self.fetch() {
                    Ok(epoch) => self.state().ahead.push_back(epoch),
                    Err(_) => return,
                },
                (false, Some(epoch)) => {
                    let context = Context { store: self.store, epoch: epoch.id };
                    let opened = self.service.decrypt(&epoch.key, &context, &epoch.wrapped);
                    return drop(self.heard(opened));
                }
                (false, None) => return,
            }
        }
    }

    /// Lets the next epoch begin, whatever the age of this one. What hangs from this one stays so
    /// until its ring is written again.
    ///
    /// # Errors
    /// `Service` if none waits and none can be made, or if nothing may be written with one.
    pub fn turn(&self) -> Result<(), SealError> {
        let stopped = self.check(&self.state()).is_err();
        // No ring could hang from one that waits, unless the service answers again.
        let epoch = if stopped { self.fetch()? } else { self.next()? };
        self.begin(epoch, Some(self.clock.monotonic_ns()), false);
        Ok(())
    }

    /// The epoch key that is to take over. Those that wait are none when the key was taken away and
    /// the options say to seal then.
    fn next(&self) -> Result<Arc<Epoch>, SealError> {
        let seals = self.seals(&self.state());
        if let Some(sealed) = seals.then(|| self.sealed()).transpose()?.flatten() {
            return Ok(sealed);
        }
        let waiting = self.state().ahead.pop_front();
        match waiting.map_or_else(|| self.fetch(), Ok) {
            Ok(epoch) => Ok(epoch),
            Err(failure) => self.sealed()?.ok_or(failure),
        }
    }

    /// Goes over to another key of the service: the next epoch begins under it. Rings written
    /// before go on to name the key that they hang from.
    ///
    /// # Errors
    /// `Service` if that key makes none; then all stays as it is.
    pub fn move_to(&self, key: &str) -> Result<(), SealError> {
        let (epoch, name) = self.generate(key)?;
        {
            let mut state = self.state();
            state.key = name;
            state.ahead.clear();
        }
        self.begin(epoch, Some(self.clock.monotonic_ns()), false);
        Ok(())
    }

    /// Whether another epoch key should take over: rings are to be written again. While nothing may
    /// be written, it waits.
    pub fn is_due(&self) -> bool {
        let state = self.state();
        let sealed = state.current.as_ref().is_some_and(|it| it.epoch.is_one_way());
        match self.seals(&state) {
            true => !sealed,
            false if self.check(&state).is_err() || state.ahead.is_empty() => false,
            // What is sealed one way is so no longer than it must be.
            false => sealed || state.owed || self.overdue(&state),
        }
    }

    /// Whether epoch keys are to hang from the key that only seals.
    fn seals(&self, state: &State) -> bool {
        let policy = match self.condition(state) {
            KeyCondition::Revoked => self.options.when_revoked,
            KeyCondition::Exhausted => self.options.when_exhausted,
            KeyCondition::Ready | KeyCondition::Waiting => return false,
        };
        policy == WhenOut::Seal && self.one_way.seal.is_some()
    }

    /// A new epoch key that hangs from the key that only seals, if the options say so after what
    /// the service answered last.
    fn sealed(&self) -> Result<Option<Arc<Epoch>>, SealError> {
        let policy = match &self.state().trouble {
            Some(failure) => self.policy(failure),
            None => return Ok(None),
        };
        let Some(seal) = self.one_way.seal.as_ref().filter(|_| policy == WhenOut::Seal) else {
            return Ok(None);
        };
        let id: EpochId = random::array()?;
        let made = seal.generate("", &Context { store: self.store, epoch: id })?;
        let DataKey { key, plaintext, wrapped } = made;
        Ok(Some(Arc::new(Epoch { id, key, wrapped, secret: secret(&plaintext)? })))
    }

    /// What the options say when the service ends like this for long.
    fn policy(&self, failure: &ServiceFailure) -> WhenOut {
        match failure.refusal.is_revocation() {
            true => self.options.when_revoked,
            false => self.options.when_exhausted,
        }
    }

    /// How it stands. Asks nobody.
    pub fn status(&self) -> KeyStatus {
        let state = self.state();
        KeyStatus {
            key: state.key.clone(),
            condition: self.condition(&state),
            ahead: state.ahead.len(),
            epoch: state.current.as_ref().map(|it| (it.epoch.id, it.began_unix_ns)),
            trouble: state.trouble.clone(),
            stopped: self.check(&state).is_err(),
            one_way: {
                let epoch = state.current.as_ref().map(|it| &it.epoch);
                epoch.filter(|epoch| epoch.is_one_way()).map(|epoch| epoch.key.clone())
            },
        }
    }

    /// The conditions that it came to since this was last asked, in order; it is [`Ready`] at
    /// first. Those that lasted for a moment are among them: a service that answers once between
    /// an outage and a revocation was there.
    ///
    /// [`Ready`]: KeyCondition::Ready
    pub fn changes(&self) -> Vec<KeyChange> {
        let mut state = self.state();
        // Keys grow old without a call.
        self.note(&mut state);
        std::mem::take(&mut state.changes)
    }

    fn note(&self, state: &mut State) {
        let to = self.condition(state);
        let from = std::mem::replace(&mut state.noted, to);
        if from != to {
            let (key, trouble) = (state.key.clone(), state.trouble.clone());
            state.changes.push(KeyChange { key, from, to, trouble });
        }
    }

    fn condition(&self, state: &State) -> KeyCondition {
        match &state.trouble {
            None => KeyCondition::Ready,
            Some(failure) if failure.refusal.is_revocation() => KeyCondition::Revoked,
            Some(_) if state.ahead.is_empty() && self.overdue(state) => KeyCondition::Exhausted,
            Some(_) => KeyCondition::Waiting,
        }
    }

    /// Whether the epoch that wraps is older than it should get.
    fn overdue(&self, state: &State) -> bool {
        let now_ns = self.clock.monotonic_ns();
        let age_ns = self.options.age.as_nanos();
        let old = |began_ns: u64| u128::from(now_ns.saturating_sub(began_ns)) >= age_ns;
        state.current.as_ref().is_some_and(|it| it.began_ns.is_none_or(old))
    }

    /// Refuses as the options say.
    fn check(&self, state: &State) -> Result<(), SealError> {
        let (policy, setting) = match self.condition(state) {
            KeyCondition::Revoked => (self.options.when_revoked, "when_revoked"),
            KeyCondition::Exhausted => (self.options.when_exhausted, "when_exhausted"),
            KeyCondition::Ready | KeyCondition::Waiting => return Ok(()),
        };
        match (policy, &state.trouble) {
            (WhenOut::Stop, Some(failure)) => {
                Err(SealError::Stopped { setting, failure: Box::new(failure.clone()) })
            }
            _ => Ok(()),
        }
    }

    /// The epoch key that wraps now.
    fn current(&self) -> Result<Arc<Epoch>, SealError> {
        let now_ns = self.clock.monotonic_ns();
        let (spent, owed) = {
            let state = self.state();
            self.check(&state)?;
            match &state.current {
                Some(it) if !self.overdue(&state) || state.ahead.is_empty() => {
                    return Ok(Arc::clone(&it.epoch));
                }
                current => (state.known.back().cloned(), current.is_some()),
            }
        };
        let (epoch, began_ns) = match self.next() {
            Ok(epoch) => (epoch, Some(now_ns)),
            // One that an earlier process used: the service opened it a moment ago.
            Err(failure) => (spent.ok_or(failure)?, None),
        };
        self.begin(Arc::clone(&epoch), began_ns, owed);
        self.check(&self.state()).map(|()| epoch)
    }

    fn begin(&self, epoch: Arc<Epoch>, began_ns: Option<u64>, owed: bool) {
        let began_unix_ns = self.clock.unix_ns();
        let mut state = self.state();
        state.remember(&epoch);
        state.owed = owed;
        state.current = Some(Current { epoch, began_ns, began_unix_ns });
    }

    /// A new epoch key under the key of now.
    fn fetch(&self) -> Result<Arc<Epoch>, SealError> {
        let key = self.key();
        let (epoch, name) = self.generate(&key)?;
        self.state().key = name;
        Ok(epoch)
    }

    fn generate(&self, key: &str) -> Result<(Arc<Epoch>, String), SealError> {
        let id: EpochId = random::array()?;
        let made = self.service.generate(key, &Context { store: self.store, epoch: id });
        let DataKey { key, plaintext, wrapped } = self.heard(made)?;
        let epoch = Epoch { id, key: key.clone(), wrapped, secret: secret(&plaintext)? };
        Ok((Arc::new(epoch), key))
    }

    /// Notes how a call ended.
    fn heard<T>(&self, answer: Result<T, ServiceFailure>) -> Result<T, SealError> {
        let now_ns = self.clock.monotonic_ns();
        // Recorders that lost the service together do not come back together.
        let jitter = random::array::<1>()?[0];
        let mut state = self.state();
        match &answer {
            Ok(_) => {
                (state.trouble, state.heard_ns) = (None, Some(now_ns));
                (state.retry_ns, state.pause_ns) = (0, PAUSE_NS.0);
            }
            Err(failure) => {
                state.trouble = Some(failure.clone());
                state.retry_ns = now_ns + state.pause_ns * (256 + u64::from(jitter)) / 256;
                state.pause_ns = (state.pause_ns * 2).min(PAUSE_NS.1);
            }
        }
        self.note(&mut state);
        Ok(answer?)
    }

    /// An epoch key that a ring names.
    fn opened(&self, wrapped: &Wrapped<'_>) -> Result<Arc<Epoch>, SealError> {
        {
            let state = self.state();
            if let Some(epoch) = state.known.iter().find(|epoch| epoch.id == wrapped.epoch) {
                return Ok(Arc::clone(epoch));
            }
            if one_way::parts(wrapped.key).is_some() {
                drop(state);
                return self.opened_one_way(wrapped);
            }
            // A start reads two rings of each volume; one that must fail is not to wait for each.
            let silent = state.trouble.as_ref().filter(|it| it.refusal.is_no_answer());
            if let Some(failure) = silent
                && self.clock.monotonic_ns() < state.retry_ns
            {
                return Err(failure.clone().into());
            }
        }
        let context = Context { store: self.store, epoch: wrapped.epoch };
        let opened = self.service.decrypt(wrapped.key, &context, wrapped.epoch_key);
        let opened = self.heard(opened)?;
        self.known(wrapped, &opened)
    }

    /// One that hangs from a key that only seals. That it does not open says nothing about the
    /// service.
    fn opened_one_way(&self, wrapped: &Wrapped<'_>) -> Result<Arc<Epoch>, SealError> {
        let context = Context { store: self.store, epoch: wrapped.epoch };
        let kept = one_way::parts(wrapped.key).is_some_and(|(_, kept_as)| kept_as.is_some());
        let opened = match self.service.kind() == one_way::KIND || (kept && self.one_way.opens) {
            true => self.service.decrypt(wrapped.key, &context, wrapped.epoch_key),
            false => Err(one_way::refused(wrapped.key)),
        };
        self.known(wrapped, &opened?)
    }

    fn known(&self, wrapped: &Wrapped<'_>, plaintext: &[u8]) -> Result<Arc<Epoch>, SealError> {
        let secret = secret(plaintext)?;
        let (key, epoch_key) = (wrapped.key.to_owned(), wrapped.epoch_key.to_vec());
        let epoch = Arc::new(Epoch { id: wrapped.epoch, key, wrapped: epoch_key, secret });
        self.state().remember(&epoch);
        Ok(epoch)
    }

    /// The id of a key of this name.
    fn id_named(&self, key: &str) -> String {
        if one_way::parts(key).is_some() {
            return key.to_owned();
        }
        let last = key.rsplit(['/', ':']).next().unwrap_or_default();
        format!("{}:{last}", self.service.kind())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Epoch {
    fn is_one_way(&self) -> bool {
        one_way::parts(&self.key).is_some()
    }
}

impl State {
    fn remember(&mut self, epoch: &Arc<Epoch>) {
        self.known.retain(|known| known.id != epoch.id);
        self.known.push_back(Arc::clone(epoch));
        if self.known.len() > KNOWN_MAX {
            self.known.pop_front();
        }
    }
}

fn secret(plaintext: &[u8]) -> Result<Secret, SealError> {
    let plaintext: &[u8; KEY_BYTES] = plaintext.try_into().map_err(|_| SealError::Damaged {
        what: "an epoch key",
        detail: "it has not the length of a key",
    })?;
    Secret::filled_by(|slot| {
        slot.copy_from_slice(plaintext);
        Ok(())
    })
}

impl fmt::Debug for EpochKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EpochKeys({} of store {})", self.id(), self.store)
    }
}

impl KeyProvider for EpochKeys {
    fn id(&self) -> String {
        self.id_named(&self.key())
    }

    fn id_of(&self, wrapped: &[u8]) -> Option<String> {
        Some(self.id_named(Wrapped::read(wrapped).ok()?.key))
    }

    fn wrap(&self, plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, SealError> {
        wrapped::wrap(&*self.current()?, plaintext, aad)
    }

    fn unwrap(&self, wrapped: &[u8], aad: &[u8]) -> Result<LockedBytes, SealError> {
        let wrapped = Wrapped::read(wrapped)?;
        wrapped.open(&self.opened(&wrapped)?.secret, aad)
    }

    fn writes_parts(&self) -> bool {
        self.one_way.seal.is_some() || self.service.kind() == one_way::KIND
    }

    fn may_leave_shut(&self, why: &SealError) -> bool {
        match why {
            SealError::Service(failure) if failure.refusal == Refusal::OneWay => true,
            SealError::Service(failure) => {
                self.one_way.seal.is_some() && self.policy(failure) == WhenOut::Seal
            }
            _ => false,
        }
    }

    fn forget_level(&self) -> ForgetLevel {
        ForgetLevel::L1
    }

    fn may_begin(&self) -> Result<(), SealError> {
        self.check(&self.state())
    }
}

/// A service, and the stores of this process whose keys it keeps.
pub struct ServiceKeys {
    service: Arc<dyn KeyService>,
    one_way: OneWay,
    options: EpochOptions,
    clock: Arc<dyn Clock>,
    stores: Mutex<Vec<Arc<EpochKeys>>>,
}

impl ServiceKeys {
    /// No store yet.
    pub fn new(service: Arc<dyn KeyService>, options: EpochOptions, clock: Arc<dyn Clock>) -> Self {
        let one_way = OneWay::default();
        Self { service, one_way, options, clock, stores: Mutex::default() }
    }

    /// Epoch keys hang from this key while the service gives none, where the options say so.
    pub fn sealing_with(mut self, seal: Option<Arc<OneWayKey>>) -> Self {
        self.one_way.seal = seal;
        self
    }

    /// The service is also asked to open what hangs from keys that only seal.
    pub fn opening_all(mut self) -> Self {
        self.one_way.opens = true;
        self
    }

    /// Whether it is.
    pub fn opens_all(&self) -> bool {
        self.one_way.opens
    }

    /// The service itself.
    pub fn service(&self) -> &Arc<dyn KeyService> {
        &self.service
    }

    /// The keys of a store, the same for all its volumes; `key` is what it hangs from if this is
    /// the first time that it is named.
    pub fn of(&self, store: StoreId, key: &str) -> Arc<EpochKeys> {
        let mut stores = self.stores();
        if let Some(keys) = stores.iter().find(|keys| keys.store == store) {
            return Arc::clone(keys);
        }
        let (service, clock) = (Arc::clone(&self.service), Arc::clone(&self.clock));
        let from = (service, self.one_way.clone());
        let keys = Arc::new(EpochKeys::new(from, store, key, self.options, clock));
        stores.push(Arc::clone(&keys));
        keys
    }

    /// The keys of a store, if they were named before.
    pub fn known(&self, store: StoreId) -> Option<Arc<EpochKeys>> {
        self.stores().iter().find(|keys| keys.store == store).cloned()
    }

    /// Whether a key's id names a key of this service.
    pub fn keeps(&self, key_id: &str) -> bool {
        key_id.split_once(':').is_some_and(|(kind, _)| kind == self.service.kind())
    }

    fn stores(&self) -> MutexGuard<'_, Vec<Arc<EpochKeys>>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
