//! The tier without a recorder: readers take no lock and write nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use wirevault_format::StoreId;
use wirevault_index::error::chain;
use wirevault_index::{KeySource, StoreReader, TierCopy, TierKey, Tiered, Volume};
use wirevault_lifecycle::{audit, tier};
use wirevault_storage::Store;

use super::{Tier, TierOptions, objects};
use crate::DaemonError;

/// Tells a store that was opened for reading what lies in its tier, as the list beside its audit
/// log says. `volume` is its first volume. Nothing is asked of the tier yet.
///
/// # Errors
/// `Audit`: the list does not read. `System`: this build cannot open such a place.
pub fn attach(store: &mut StoreReader, volume: &Path, key: &KeySource) -> Result<(), DaemonError> {
    let content = tier::read(&audit::folder_of(volume, &store.store.to_string()))?;
    let Some(url) = content.url.filter(|_| !content.rows.is_empty()) else { return Ok(()) };
    let objects = objects(&url)?;
    let first = store.volumes.first().filter(|first| first.superblock.sealed);
    let mut keys: BTreeMap<StoreId, TierKey> = BTreeMap::new();
    let kept = content.rows.into_values().filter(|row| !row.forgetting);
    store.tiered = kept
        .map(|row| {
            let of = row.store.unwrap_or(store.store);
            let open = |first: &&Volume| first.open_key_of(of, key).map_err(|error| chain(&error));
            let key = first.as_ref().map(|first| &*keys.entry(of).or_insert_with(|| open(first)));
            let copy = TierCopy::new(Arc::clone(&objects), of, &row.entry, key);
            let (entry, volume, place) = (row.entry, row.volume, row.place);
            Tiered { entry, volume, place, copy: Arc::new(copy) }
        })
        .collect();
    Ok(())
}

/// The tier of a store that was opened to be written without a recorder, if anything lies there,
/// or may.
///
/// # Errors
/// As [`attach`].
pub(crate) fn of_store(
    store: &Store,
    key: &KeySource,
    folder: &Path,
) -> Result<Option<Arc<Tier>>, DaemonError> {
    let content = tier::read(folder)?;
    let something = !content.is_empty();
    let Some(url) = content.url.filter(|_| something) else { return Ok(None) };
    let objects = objects(&url)?;
    let options = TierOptions { url, rate: None, keep_local: true, flows: false };
    Ok(Some(Arc::new(Tier::open(options, objects, store, key, folder)?)))
}
