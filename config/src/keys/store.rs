//! Where packets go, and the key that they are sealed with.

use super::Without::{Fault, Nothing};
use super::{Key, Kind, PATH_BYTES_MAX, VOLUMES_MAX, hidden, key};

const DIRECTORY: Kind = Kind::Path(PATH_BYTES_MAX);

pub(super) const KEYS: &[Key] = &[
    key(
        "store",
        Kind::List(&DIRECTORY, VOLUMES_MAX),
        Fault,
        "/var/lib/wirevault",
        "Directory of the store, or a list of directories, one on each disk. The first names the \
         others. `wirevault init` makes it. `--store` on the command line goes before this key.",
    ),
    hidden(key(
        "key_file",
        Kind::Path(PATH_BYTES_MAX),
        Nothing,
        "/etc/wirevault/keys/store.key",
        "File of the key that the store is sealed with. It must not lie in the store. Without this \
         key it is /etc/wirevault/keys/ID.key, where ID is the store's id.",
    )),
];
