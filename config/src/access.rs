//! Where questions come in, and who may ask what.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

/// The API. Root and the daemon's own user may always ask everything over its socket.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Api {
    /// Path of the unix socket, absolute.
    pub socket: PathBuf,
    /// Users who may ask all questions as well.
    pub users: Vec<Principal>,
    /// Groups whose members may ask all questions as well.
    pub groups: Vec<Principal>,
    /// Questions over TCP, if they are wanted.
    pub tls: Option<Tls>,
    /// Where on loopback metrics are told to everybody, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Rules, of which the first that fits who asks holds.
    pub access: Vec<Rule>,
}

/// Questions over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tls {
    /// Where to listen.
    pub listen: SocketAddr,
    /// PEM file of the recorder's certificate and those above it.
    pub certificate: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
    /// PEM file of the authorities that vouch for those who ask.
    pub client_ca: PathBuf,
    /// PEM files of lists of revoked certificates; none: nothing is asked of them.
    pub crl: Vec<PathBuf>,
}

/// What some may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// Users it is for.
    pub users: Vec<Principal>,
    /// Groups it is for.
    pub groups: Vec<Principal>,
    /// Certificates it is for.
    pub certificates: Vec<CertificateName>,
    /// What they may ask.
    pub role: Role,
    /// Packets that they may see; all if there is none.
    pub filter: Option<String>,
    /// Answers that each of them may have at a time.
    pub answers: NonZeroU32,
    /// Questions that each of them may ask in a minute.
    pub per_minute: NonZeroU32,
}

impl Rule {
    /// Answers that each may have at a time who is not told otherwise.
    pub const ANSWERS: NonZeroU32 = NonZeroU32::new(8).unwrap();
    /// Questions that each may ask in a minute who is not told otherwise.
    pub const PER_MINUTE: NonZeroU32 = NonZeroU32::new(600).unwrap();
}

/// A user or a group. Names are looked up when the daemon starts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// By name.
    Name(String),
    /// By number.
    Id(u32),
}

/// What somebody may ask. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// How it goes: status, metrics, segments.
    Status,
    /// Which flows there were, and how many packets.
    Query,
    /// Packets.
    Export,
    /// What changes something.
    Admin,
}

impl Role {
    /// All of them, the least first.
    pub const ALL: [Self; 4] = [Self::Status, Self::Query, Self::Export, Self::Admin];
    /// Their names, in the same order.
    pub const NAMES: &'static [&'static str] = &["status", "query", "export", "admin"];

    /// The role of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// The name of this role.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that stands in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertificateName {
    /// Common name of the subject.
    CommonName(String),
    /// Organizational unit of the subject.
    Unit(String),
    /// A subject alternative name: DNS name, e-mail, address or URI.
    Alternative(String),
    /// Organizational unit of the issuer.
    IssuerUnit(String),
}

impl CertificateName {
    /// Reads `cn:NAME` and such; `None` if it is nothing of the kind.
    pub fn read(text: &str) -> Option<Self> {
        let (field, name) = text.split_once(':')?;
        let name = name.trim();
        if name.is_empty() || name.contains(char::is_control) {
            return None;
        }
        let name = name.to_owned();
        Some(match field {
            "cn" => Self::CommonName(name),
            "ou" => Self::Unit(name),
            "san" => Self::Alternative(name),
            "issuer_ou" => Self::IssuerUnit(name),
            _ => return None,
        })
    }
}

impl fmt::Display for CertificateName {
    /// As [`CertificateName::read`] takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommonName(name) => write!(f, "cn:{name}"),
            Self::Unit(name) => write!(f, "ou:{name}"),
            Self::Alternative(name) => write!(f, "san:{name}"),
            Self::IssuerUnit(name) => write!(f, "issuer_ou:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_ordered_as_they_are_named() {
        assert!(Role::ALL.is_sorted());
        for role in Role::ALL {
            assert_eq!(Role::from_name(role.name()), Some(role));
        }
        assert_eq!(Role::from_name("root"), None);
    }

    #[test]
    fn names_stand_behind_their_field() {
        let read = CertificateName::read;
        assert_eq!(read("cn:Alice B"), Some(CertificateName::CommonName("Alice B".to_owned())));
        assert_eq!(
            read("san:https://a/b"),
            Some(CertificateName::Alternative("https://a/b".into()))
        );
        for text in ["cn:Alice B", "ou:a", "san:https://a/b", "issuer_ou:a:b"] {
            assert_eq!(read(text).map(|name| name.to_string()).as_deref(), Some(text));
        }
        for text in ["", "alice", "cn:", "cn: ", "CN:alice", "o:x", "cn:a\nb"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
