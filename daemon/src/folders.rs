//! Folders beside the store that a configuration has the recorder write to.

use std::path::{Path, PathBuf};

use wirevault_config::{Anchor, Config};
use wirevault_media::Address;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folder {
    /// What names it in the configuration.
    pub(crate) key: &'static str,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// The recorder makes it if it is not there.
    pub(crate) is_made: bool,
}

/// All of them; what is no folder of this machine is left out.
pub(crate) fn of(config: &Config) -> Vec<Folder> {
    let folder = |key, path, is_made| Folder { key, path, is_made };
    let local = |url: &str| match url.parse() {
        Ok(Address::Folder(path)) => Some(path),
        _ => None,
    };
    let snapshots = config.snapshots.iter();
    let snapshots = snapshots.map(|it| folder("snapshots.folder", it.folder.clone(), true));
    let tier = config.tier.iter().filter_map(|tier| local(&tier.url));
    let tier = tier.map(|path| folder("tier.url", path, false));
    let anchors = config.audit.anchors.iter().filter_map(|anchor| match anchor {
        Anchor::File(file) => of_file(file),
        Anchor::Objects(url) => local(url),
        Anchor::Key(_) => None,
    });
    let anchors = anchors.map(|path| folder("audit.anchor", path, false));
    snapshots.chain(tier).chain(anchors).collect()
}

/// The folder of a file. That of a file of the root is nobody's.
pub(crate) fn of_file(file: &Path) -> Option<PathBuf> {
    file.parent().filter(|folder| folder.parent().is_some()).map(Path::to_owned)
}
