//! What the keys of `tier` do, to stores of their own: segments move without a recorder, too.

use std::time::{Duration, Instant};

use serde_json::Value;
use wirevault_tests::store::{TestStore, succeed, text, wirevault};

use crate::runs::file_packets;

/// A store after everything was moved.
pub(crate) struct Moved {
    store: TestStore,
    /// How long it took, and the bytes that moved.
    pub(crate) elapsed: Duration,
    pub(crate) bytes: u64,
    /// Where its segment is.
    pub(crate) at: Value,
}

impl Moved {
    /// With these keys beside the `url`.
    pub(crate) fn with(more: &str) -> Self {
        let store = TestStore::holding(true, &file_packets()[..1000]);
        let (folder, config) = (store.path("tier"), store.path("tier.yaml"));
        std::fs::create_dir(&folder).expect("a folder");
        let yaml = format!(
            "store: {}\nreplay:\n  file: /x\ntier:\n  url: file://{}\n{more}\
             retention:\n  - name: cold\n    action: tier\n",
            text(&store.dir()),
            text(&folder)
        );
        std::fs::write(&config, yaml).expect("a configuration");
        let began = Instant::now();
        let (dir, config) = (text(&store.dir()), text(&config));
        succeed(&wirevault(&["lifecycle", "apply", "--store", &dir, "--config", &config]));
        let elapsed = began.elapsed();
        let listed = wirevault(&["segments", "--store", &dir, "--json"]);
        let rows: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
        let at = rows[0]["at"].clone();
        let bytes = walk(&folder.join("segments")).iter().map(|(_, bytes)| bytes).sum();
        Self { store, elapsed, bytes, at }
    }

    /// Objects in the folder.
    pub(crate) fn objects(&self) -> usize {
        walk(&self.store.path("tier")).len()
    }
}

/// Files below a folder, with their bytes.
fn walk(folder: &std::path::Path) -> Vec<(std::path::PathBuf, u64)> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let below = paths.map(|path| match path.is_dir() {
        true => walk(&path),
        false => vec![(path.clone(), path.metadata().map_or(0, |it| it.len()))],
    });
    below.flatten().collect()
}
