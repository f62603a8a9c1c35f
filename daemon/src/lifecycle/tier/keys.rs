//! Key objects follow the store to another key: as long as one hangs from the former key, that is
//! needed to read its segment.
//!
//! | step | does | a crash behind it leaves |
//! |---|---|---|
//! | 1 | the other object goes, if it may lie there; it is looked for, and not there | the same |
//! | 2 | list: the one that counts is alone | the same |
//! | 3 | the other object is put, under the key of now, and read back | one that no line names: the next attempt removes it |
//! | 4 | list: that one counts, and the one before may lie there | two, of which one needs the former key; step 1 |
//! | 5 | the one before goes; it is looked for, and not there | the same |
//! | 6 | list: the one that counts is alone | a segment that needs the key of now only |
//!
//! A deletion waits for the segment at hand, and removes both objects.

use std::sync::PoisonError;

use wirevault_format::{LifeId, StoreId};
use wirevault_index::IndexError;
use wirevault_index::tier::{encode_key, hangs_from, key_object};
use wirevault_lifecycle::tier::{Row, RowKey};
use wirevault_media::{ObjectError, ObjectFault};
use wirevault_seal::KeyProvider;
use wirevault_storage::Store;

use super::{Tier, is_of_segment};
use crate::DaemonError;

impl Tier {
    /// Has keys hang from the key that their store is sealed with now. Ends early at `stop`. One
    /// that does not open does not keep others from following.
    ///
    /// # Errors
    /// The first that did not follow; if the tier was why, those behind it were not tried.
    pub(crate) fn follow_key(
        &self,
        store: &Store,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), DaemonError> {
        let rows = self.list().content().rows.clone();
        let (mut stays, mut followed) = (None, 0_u64);
        for row in rows.values().take_while(|_| !stop()) {
            let Some(Ok(provider)) = self.keys.get(&row.store) else { continue };
            if !is_behind(row, &provider.id()) {
                continue;
            }
            match self.rewrap(store, row.entry.life, &**provider) {
                Ok(()) => followed += 1,
                Err(error) if is_of_segment(&error) => drop(stays.get_or_insert(error)),
                Err(error) => return self.watched(|trouble| &mut trouble.keys, Err(error)),
            }
        }
        if followed > 0 {
            tracing::info!(segments = followed, "keys in the tier hang from the key of now");
        }
        self.watched(|trouble| &mut trouble.keys, stays.map_or(Ok(()), Err))
    }

    /// Segments whose keys hang, or may hang, from another key than the store's.
    pub(crate) fn behind(&self) -> u64 {
        let Some(Ok(own)) = self.keys.get(&None) else { return 0 };
        let (own, list) = (own.id(), self.list());
        list.content().rows.values().filter(|row| is_behind(row, &own)).count() as u64
    }

    /// Deletes the key of a segment, wherever it lies.
    pub(super) fn erase_keys(&self, of: StoreId, life: LifeId) -> Result<(), DaemonError> {
        let _alone = self.rekeying.lock().unwrap_or_else(PoisonError::into_inner);
        [false, true].iter().try_for_each(|second| self.erase(&key_object(of, life, *second)))
    }

    /// All steps, for one segment.
    fn rewrap(
        &self,
        store: &Store,
        life: LifeId,
        provider: &dyn KeyProvider,
    ) -> Result<(), DaemonError> {
        let _alone = self.rekeying.lock().unwrap_or_else(PoisonError::into_inner);
        let row = self.list().content().rows.get(&life).cloned();
        let Some(row) = row.filter(|row| !row.forgetting) else { return Ok(()) };
        let of = row.store.unwrap_or(store.id());
        let names = [false, true].map(|second| key_object(of, life, second));
        let (now, other) = (&names[usize::from(row.key.second)], !row.key.second);
        let mut key = row.key.clone();
        if key.other {
            self.erase(&names[usize::from(other)])?;
            key.other = false;
            self.list().key(life, key.clone())?;
        }
        let copy = self.tiered(store, &row).copy;
        let segment = row.entry.ordinal.to_string();
        let Some(object) = copy.key_bytes(now, &segment)? else {
            let why = format!("{} has no {now}", self.objects.describe());
            return Err(IndexError::NoKey { segment, why }.into());
        };
        let found = hangs_from(&object, provider);
        if found.as_ref().is_some_and(|found| !is_former(found, &provider.id())) {
            if key.hangs_from != found {
                self.list().key(life, RowKey { hangs_from: found, ..key })?;
            }
            return Ok(());
        }
        let keys = copy.opened(now, &object, provider, &segment)?;
        let failed = |source| IndexError::Key { volume: self.objects.describe(), source };
        let sealed = encode_key(of, &keys, provider).map_err(failed)?;
        self.put_key(&names[usize::from(other)], &sealed)?;
        let hangs_from = hangs_from(&sealed, provider);
        self.list()
            .key(life, RowKey { second: other, hangs_from: hangs_from.clone(), other: true })?;
        self.erase(now)?;
        Ok(self.list().key(life, RowKey { second: other, hangs_from, other: false })?)
    }

    /// Puts a key object and reads it back. One that is there already no line names.
    fn put_key(&self, name: &str, sealed: &[u8]) -> Result<(), DaemonError> {
        let put = || {
            let mut pieces = Some(sealed.to_vec());
            self.objects.put(name, &mut || Ok(pieces.take()))
        };
        match put() {
            Err(error) if error.fault == ObjectFault::Exists => {
                self.erase(name)?;
                put()?;
            }
            put => put?,
        }
        match self.objects.read(name, 0..sealed.len() as u64)? == sealed {
            true => Ok(()),
            false => Err(DaemonError::Object(ObjectError {
                place: self.objects.describe(),
                doing: "read back",
                name: name.to_owned(),
                fault: ObjectFault::Failed,
                why: "it is not what was put there".to_owned(),
            })),
        }
    }
}

/// Whether a key is to follow to the key of this id, or nobody knows what it hangs from.
fn is_behind(row: &Row, now: &str) -> bool {
    let former = |id: &String| is_former(id, now);
    let due = row.key.other || row.key.hangs_from.as_ref().is_none_or(former);
    row.entry.sealed && !row.forgetting && due
}

/// Whether a key is one that the store had at the same service. What hangs from a key that only
/// seals stays so: nobody here can open it.
fn is_former(id: &str, now: &str) -> bool {
    let kind = |id: &str| id.split_once(':').map(|(kind, _)| kind.to_owned());
    id != now && kind(id) == kind(now)
}
