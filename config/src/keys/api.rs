//! Where questions come in, and who may ask what: `api`.

use super::Without::{Fault, Nothing, Value};
use super::{FILTER_BYTES_MAX, Key, Kind, PATH_BYTES_MAX, hidden, key};
use crate::access::Role;

/// Bytes of a socket's path at most. Source: `sun_path` in unix(7), less the closing zero byte.
const SOCKET_BYTES_MAX: usize = 107;
/// Answers that the recorder makes at a time, for everybody.
const ANSWERS_MAX: u64 = 32;
/// Questions in a minute at most that a limit may allow: a thousand a second.
const QUESTIONS_PER_MINUTE_MAX: u64 = 60_000;
/// Users or groups at most.
const PRINCIPALS_MAX: usize = 256;
/// Files of revoked certificates at most.
const LISTS_MAX: usize = 64;
/// Rules of access at most. They are looked through in order at every question.
const RULES_MAX: usize = 64;
/// Bytes of a name in a certificate at most: twice the longest DNS name.
const NAME_BYTES_MAX: usize = 512;
const PRINCIPAL: Kind = Kind::Principal;
const SUBJECT: Kind = Kind::CertificateName(NAME_BYTES_MAX);
const FILE: Kind = Kind::Path(PATH_BYTES_MAX);

pub(super) const KEYS: &[Key] = &[
    key("api", Kind::Section, Nothing, "", "Where questions come in, and who may ask what."),
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
        "Users, by name or number, who may ask all questions, beside root and the daemon's own \
         user. Their role is `export`; each has 8 answers at a time and 600 questions a minute.",
    ),
    key(
        "api.groups",
        Kind::List(&PRINCIPAL, PRINCIPALS_MAX),
        Value("[]"),
        "[]",
        "Groups, by name or number, whose members may ask all questions, as those of `users`.",
    ),
    hidden(key(
        "api.metrics_listen",
        Kind::Address,
        Nothing,
        "127.0.0.1:9479",
        "Address of loopback, and port, at which everybody on this machine gets the metrics, over \
         plain HTTP at `/metrics`. Other machines get them over `tls`.",
    )),
    hidden(key(
        "api.tls",
        Kind::Section,
        Nothing,
        "",
        "Questions over TCP as well, with TLS 1.3. Who asks must have a certificate, and a rule in \
         `access`.",
    )),
    hidden(key(
        "api.tls.listen",
        Kind::Address,
        Fault,
        "0.0.0.0:8443",
        "Address and port to listen on.",
    )),
    hidden(key(
        "api.tls.certificate",
        FILE,
        Fault,
        "/etc/wirevault/tls/server.pem",
        "File of the recorder's certificate and those between it and its authority, as PEM.",
    )),
    hidden(key(
        "api.tls.key",
        FILE,
        Fault,
        "/etc/wirevault/tls/server.key",
        "File of the certificate's private key, as PEM. Only the daemon's user may read it.",
    )),
    hidden(key(
        "api.tls.client_ca",
        FILE,
        Fault,
        "/etc/wirevault/tls/clients.pem",
        "File of the authorities whose certificates are taken from those who ask, as PEM.",
    )),
    hidden(key(
        "api.tls.crl",
        Kind::List(&FILE, LISTS_MAX),
        Nothing,
        "[/etc/wirevault/tls/clients.crl]",
        "Files of lists of revoked certificates, as PEM: one of each authority in `client_ca`, and \
         of those below them. Who is on one is refused, and so is everybody whose authority's list \
         is out of date. SIGHUP reads them again.",
    )),
    hidden(key(
        "api.access",
        Kind::Sections(RULES_MAX),
        Nothing,
        "",
        "Who may ask what. The first rule that names who asks holds, before `users` and `groups`; \
         root and the daemon's own user have the role `admin` always.",
    )),
    hidden(key(
        "api.access[].users",
        Kind::List(&PRINCIPAL, PRINCIPALS_MAX),
        Nothing,
        "[alice]",
        "Users of this machine, by name or number.",
    )),
    hidden(key(
        "api.access[].groups",
        Kind::List(&PRINCIPAL, PRINCIPALS_MAX),
        Nothing,
        "[soc]",
        "Groups of this machine, by name or number.",
    )),
    hidden(key(
        "api.access[].certificates",
        Kind::List(&SUBJECT, PRINCIPALS_MAX),
        Nothing,
        "[cn:alice, issuer_ou:SOC]",
        "Certificates: `cn:NAME` and `ou:NAME` of the subject, `san:NAME` (DNS name, e-mail, \
         address or URI), `issuer_ou:NAME` of the issuer.",
    )),
    hidden(key(
        "api.access[].role",
        Kind::Choice(Role::NAMES),
        Fault,
        "query",
        "`status` sees status, metrics and segments; `query` also flows and counts; `export` also \
         packets; `admin` also what changes something.",
    )),
    hidden(key(
        "api.access[].filter",
        Kind::Filter(FILTER_BYTES_MAX),
        Nothing,
        "not net 10.9.0.0/16",
        "Packets and flows that they may see: every question is narrowed to it.",
    )),
    hidden(key(
        "api.access[].answers",
        Kind::Count { min: 1, max: ANSWERS_MAX },
        Value("8"),
        "8",
        "Answers and live views that each of them may have at a time.",
    )),
    hidden(key(
        "api.access[].per_minute",
        Kind::Count { min: 1, max: QUESTIONS_PER_MINUTE_MAX },
        Value("600"),
        "600",
        "Questions that each of them may ask in a minute, of whatever kind.",
    )),
];
