//! The catalog that a process keeps while it writes a store: always the newest, taken without
//! waiting.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::catalog::Catalog;

/// The newest catalog. Whoever changes the store changes it here; whoever asks takes it as it is at
/// that moment. Neither waits for the other, nor for a lock.
pub struct SharedCatalog {
    newest: ArcSwap<Catalog>,
}

impl SharedCatalog {
    /// Begins with this catalog.
    pub fn new(catalog: Catalog) -> Self {
        Self { newest: ArcSwap::from_pointee(catalog) }
    }

    /// The newest catalog, taken at `now_ns`.
    pub fn take(&self, now_ns: u64) -> Catalog {
        Catalog { now_ns, ..Catalog::clone(&self.newest.load()) }
    }

    /// Puts a changed catalog into the place of the newest. `change` may run more than once, if
    /// others change it at the same time; only its last result counts.
    pub fn change(&self, change: impl Fn(&mut Catalog)) {
        self.newest.rcu(|newest| {
            let mut next = Catalog::clone(newest);
            change(&mut next);
            Arc::new(next)
        });
    }
}
