//! The socket that questions come by: `api`.

use super::Without::{Nothing, Value};
use super::{Key, Kind, key};

/// Bytes of a socket's path at most. Source: `sun_path` in unix(7), less the closing zero byte.
const SOCKET_BYTES_MAX: usize = 107;
/// Users or groups at most.
const PRINCIPALS_MAX: usize = 256;
const PRINCIPAL: Kind = Kind::Principal;

pub(super) const KEYS: &[Key] = &[
    key("api", Kind::Section, Nothing, "", "The socket that the command line talks to."),
    key(
        "api.socket",
        Kind::Path(SOCKET_BYTES_MAX),
        Value("/run/wirevault/wirevault.sock"),
        "/run/wirevault/wirevault.sock",
        "Path of the unix socket.",
    ),
    key(
        "api.users",
        Kind::List(&PRINCIPAL, PRINCIPALS_MAX),
        Value("[]"),
        "[]",
        "Users, by name or number, who may ask questions, beside root and the daemon's own user.",
    ),
    key(
        "api.groups",
        Kind::List(&PRINCIPAL, PRINCIPALS_MAX),
        Value("[]"),
        "[]",
        "Groups, by name or number, whose members may ask questions.",
    ),
];
