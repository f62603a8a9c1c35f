//! Where packets go, and the key that they are sealed with.

use super::Without::{Fault, Nothing, Value};
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
    key(
        "reserve",
        Kind::Percent { min: 0, max: 90 },
        Value("10%"),
        "10%",
        "Part of each file system below the store that stays free for others, at most as much as \
         the quota. What others write beyond it costs the oldest packets, whatever the quota; four \
         segments of a volume stay.",
    ),
    hidden(key(
        "hold_share",
        Kind::Percent { min: 0, max: 50 },
        Value("10%"),
        "10%",
        "Part of the quota of each volume that copies for holds may take. What a hold wants beyond \
         it is not held, which the status tells, and no rule deletes it.",
    )),
    hidden(key(
        "vfio",
        Kind::List(&DIRECTORY, VOLUMES_MAX),
        Nothing,
        "/dev/disk/by-id/nvme-Amazon_EC2_NVMe_Instance_Storage_AWS1A4FC2",
        "Volumes of the store, by their paths there, whose NVMe devices the recorder drives \
         itself: it takes them from the kernel (VFIO), which then has no device of that name, and \
         hands them back when it ends. It needs root and an IOMMU. Where that cannot be had the \
         kernel's driver is used, and `wirevault status` says why.",
    )),
    hidden(key(
        "spares",
        Kind::List(&DIRECTORY, VOLUMES_MAX),
        Nothing,
        "/data/spare",
        "Directories that may take the place of a volume that failed, while it records (`wirevault \
         volume replace`). They must be there when it starts. With a sandbox no others can; \
         devices always can where the store has one.",
    )),
    key(
        "standby",
        Kind::Switch,
        Value("false"),
        "false",
        "For a store on a device that two machines have (`wirevault init --shared`): `true` on one \
         of them. It answers from the store, and records once it has missed five beats of the \
         other, which are a second apart.",
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
