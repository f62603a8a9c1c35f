//! What another text means for a recorder that runs already.

use crate::access::Api;
use crate::settings::Config;
use crate::tree::{self, Body, Node};

/// Keys whose change holds without a new start, with all that stands below them.
const LIVE: [&str; 9] = [
    "retention",
    "log",
    "api.users",
    "api.groups",
    "api.access",
    "api.tls.certificate",
    "api.tls.key",
    "api.tls.client_ca",
    "api.tls.crl",
];

/// Keys that two configurations differ by, as paths of the table without `[]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Changes {
    /// Those that hold at once.
    pub live: Vec<String>,
    /// Those that take a new start.
    pub fixed: Vec<String>,
}

impl Config {
    /// How `new` differs. A key that is written out now, or left out, and means the same as before
    /// makes no difference.
    pub fn changes(&self, new: &Self) -> Changes {
        let mut keys = Vec::new();
        if let (Some(old), Some(new)) = (tree::read(&self.text).0, tree::read(&new.text).0) {
            differ(Some(&old), Some(&new), "", &mut keys);
        }
        let is_live = |key: &String| {
            let below = |live| {
                key.strip_prefix(live).is_some_and(|it| it.is_empty() || it.starts_with('.'))
            };
            LIVE.into_iter().any(below)
        };
        let (live, mut fixed): (Vec<_>, Vec<_>) = keys.into_iter().partition(is_live);
        let same = self.with_live_of(new) == *new;
        match (same, fixed.is_empty()) {
            (true, _) => fixed.clear(),
            // The command line says it, or a name of this machine.
            (false, true) => fixed.push("store".to_owned()),
            (false, false) => {}
        }
        Changes { live, fixed }
    }

    /// This configuration, and what may change of the other one.
    fn with_live_of(&self, new: &Self) -> Self {
        let mut tls = self.api.tls.clone();
        if let (Some(own), Some(new)) = (&mut tls, &new.api.tls) {
            own.certificate.clone_from(&new.certificate);
            own.key.clone_from(&new.key);
            own.client_ca.clone_from(&new.client_ca);
            own.crl.clone_from(&new.crl);
        }
        let api = &new.api;
        Self {
            text: new.text.clone(),
            retention: new.retention.clone(),
            log: new.log,
            api: Api {
                socket: self.api.socket.clone(),
                users: api.users.clone(),
                groups: api.groups.clone(),
                access: api.access.clone(),
                tls,
                metrics_listen: self.api.metrics_listen,
            },
            ..self.clone()
        }
    }
}

/// Adds the paths of values that differ. What stands in lists is told by the list's own path.
fn differ(old: Option<&Node>, new: Option<&Node>, path: &str, keys: &mut Vec<String>) {
    let maps = (old.map(|node| &node.body), new.map(|node| &node.body));
    let (Some(Body::Map(old_map)), Some(Body::Map(new_map))) = maps else {
        if !same(old, new) {
            keys.push(path.to_owned());
        }
        return;
    };
    let names = old_map.iter().chain(new_map.iter().filter(|entry| {
        // Those of both were compared with the old ones.
        !old_map.iter().any(|old| old.key == entry.key)
    }));
    for name in names.map(|entry| &entry.key) {
        let of = |map: &'_ [tree::Entry]| map.iter().position(|entry| entry.key == *name);
        let old = of(old_map).map(|at| &old_map[at].value);
        let new = of(new_map).map(|at| &new_map[at].value);
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        differ(old, new, &path, keys);
    }
}

/// Whether two values read alike, wherever they stand.
fn same(one: Option<&Node>, other: Option<&Node>) -> bool {
    match (one.map(|node| &node.body), other.map(|node| &node.body)) {
        (None, None) | (Some(Body::Nothing), Some(Body::Nothing)) => true,
        (Some(Body::Scalar(one)), Some(Body::Scalar(other))) => one == other,
        (Some(Body::List(one)), Some(Body::List(other))) => {
            let pairs = || one.iter().zip(other);
            one.len() == other.len() && pairs().all(|(one, other)| same(Some(one), Some(other)))
        }
        (Some(Body::Map(one)), Some(Body::Map(other))) => {
            let alike = |(one, other): (&tree::Entry, &tree::Entry)| {
                one.key == other.key && same(Some(&one.value), Some(&other.value))
            };
            one.len() == other.len() && one.iter().zip(other).all(alike)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use crate::parse;

    const OLD: &str = "store: /a\nreserve: 10%\nlog: info\ncapture:\n  - interface: eth0\n\
        api:\n  socket: /s\n  users: ops\n";

    fn changes(new: &str) -> (Vec<String>, Vec<String>) {
        let [old, new] = [OLD, new].map(|text| parse(text, "t").unwrap());
        let changes = old.changes(&new);
        (changes.live, changes.fixed)
    }

    #[test]
    fn what_may_change_is_told_apart() {
        let (live, fixed) = changes(&OLD.replace("ops", "dev").replace("info", "debug"));
        assert_eq!((live, fixed), (vec!["log".to_owned(), "api.users".to_owned()], vec![]));
        let more = "retention:\n  - name: old\n    action: delete\n    age: 2day\n";
        assert_eq!(changes(&format!("{OLD}{more}")), (vec!["retention".to_owned()], vec![]));
        let (live, fixed) = changes(&OLD.replace("eth0", "eth1").replace("/s", "/t"));
        assert_eq!((live, fixed), (vec![], vec!["capture".to_owned(), "api.socket".to_owned()]));
        let tls = "  tls:\n    listen: 127.0.0.1:1\n    certificate: /c\n    key: /k\n    \
            client_ca: /d\n";
        let (_, fixed) = changes(&format!("{OLD}{tls}"));
        assert_eq!(fixed, ["api.tls"], "a new door is a new start");
    }

    #[test]
    fn what_means_the_same_is_no_change() {
        let told = changes(&OLD.replace("reserve: 10%\n", "").replace("eth0", "'eth0' # the tap"));
        assert_eq!(told, (vec![], vec![]));
    }
}
