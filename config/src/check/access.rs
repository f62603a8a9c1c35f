//! Where questions come in, and who may ask what.

use std::num::NonZeroU32;
use std::path::PathBuf;

use super::choice;
use crate::access::{Api, CertificateName, Principal, Role, Rule, Tls};
use crate::section::{Item, Section, Value};

pub(super) fn api(section: &Section<'_>) -> Api {
    let rules = section.sections("access");
    let api = Api {
        socket: section.path("socket").unwrap_or_default(),
        users: principals(section, "users"),
        groups: principals(section, "groups"),
        tls: section.has("tls").then(|| tls(&section.section("tls"))).flatten(),
        metrics_listen: section.address("metrics_listen"),
        access: rules.iter().map(rule).collect(),
    };
    if let Some(address) = api.metrics_listen.filter(|address| !address.ip().is_loopback()) {
        let problem = format!("{address} can be reached from other machines, without a question");
        let way_out = "name an address of loopback, such as 127.0.0.1; others come over `api.tls`";
        section.fault("metrics_listen", problem, way_out.to_owned());
    }
    for (rule, section) in api.access.iter().zip(&rules) {
        if rule.users.is_empty() && rule.groups.is_empty() && rule.certificates.is_empty() {
            let way_out = "name `users`, `groups` or `certificates`, or remove the rule";
            section.fault("role", "the rule is for nobody".to_owned(), way_out.to_owned());
        }
        if api.tls.is_none() && !rule.certificates.is_empty() {
            let problem = "nobody comes with a certificate as long as there is no `api.tls`";
            let way_out = "add the section `tls`, or remove the certificates";
            section.fault("certificates", problem.to_owned(), way_out.to_owned());
        }
        if rule.role == Role::Admin && rule.filter.is_some() {
            let problem = "a filter narrows questions, and an admin deletes whole segments";
            let way_out = "remove it, or give the role `export`";
            section.fault("filter", problem.to_owned(), way_out.to_owned());
        }
    }
    api
}

/// `None` only if there is a fault.
fn tls(section: &Section<'_>) -> Option<Tls> {
    let [certificate, key, client_ca] =
        ["certificate", "key", "client_ca"].map(|name| section.path(name));
    let listen = section.address("listen");
    let crl = section.list("crl").into_iter().filter_map(|item| match item.value {
        Value::Text(path) => Some(PathBuf::from(path)),
        _ => None,
    });
    let crl = crl.collect();
    Some(Tls { listen: listen?, certificate: certificate?, key: key?, client_ca: client_ca?, crl })
}

fn rule(section: &Section<'_>) -> Rule {
    let names = section.list("certificates").into_iter().filter_map(|item| match item.value {
        Value::Certificate(name) => Some(name),
        _ => None,
    });
    let certificates: Vec<CertificateName> = names.collect();
    // 0 stands for one that is refused already.
    let count = |name| {
        let count = u32::try_from(section.number(name)).unwrap_or(u32::MAX);
        NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN)
    };
    Rule {
        users: principals(section, "users"),
        groups: principals(section, "groups"),
        certificates,
        role: choice(section, "role", Role::from_name, Role::Status),
        filter: section.text("filter"),
        answers: count("answers"),
        per_minute: count("per_minute"),
    }
}

fn principals(section: &Section<'_>, name: &str) -> Vec<Principal> {
    let principal = |item: Item| match item.value {
        Value::Principal(principal) => Some(principal),
        _ => None,
    };
    section.list(name).into_iter().filter_map(principal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    const TLS: &str =
        "  tls: {listen: '127.0.0.1:8443', certificate: /c, key: /k, client_ca: /a}\n";

    fn read(api: &str) -> Result<Api, String> {
        let text = format!("store: /a\ncapture:\n  - interface: e\napi:\n{api}");
        parse(&text, "t").map(|config| config.api).map_err(|error| error.to_string())
    }

    #[test]
    fn rules_say_who_what_and_how_much() {
        let api = read(&format!(
            "{TLS}  access:\n    - users: alice\n      groups: [7]\n      role: query\n      \
             filter: not port 22\n      answers: 2\n      per_minute: 5\n    \
             - certificates: ['cn:bob', 'issuer_ou:Fleet']\n      role: admin\n"
        ));
        let api = api.unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(api.tls.map(|tls| tls.listen.port()), Some(8443));
        let [first, second] = &api.access[..] else { panic!("{:?}", api.access) };
        assert_eq!(first.users, [Principal::Name("alice".to_owned())]);
        assert_eq!((first.role, first.filter.as_deref()), (Role::Query, Some("not port 22")));
        assert_eq!((first.answers.get(), first.per_minute.get()), (2, 5));
        assert_eq!((second.role, second.filter.as_deref()), (Role::Admin, None));
        assert_eq!(second.certificates[0], CertificateName::CommonName("bob".to_owned()));
        assert_eq!((second.answers, second.per_minute), (Rule::ANSWERS, Rule::PER_MINUTE));
    }

    #[test]
    fn what_would_let_nobody_in_or_is_half_said_is_a_fault() {
        let fault = |api: &str| read(api).expect_err("a fault");
        assert!(fault("  access:\n    - role: query\n").contains("the rule is for nobody"));
        assert!(read("  metrics_listen: '[::1]:9479'\n").is_ok());
        let open = fault("  metrics_listen: 0.0.0.0:9479\n");
        assert!(open.contains("can be reached from other machines"), "{open}");
        let lonely = fault("  access:\n    - {role: query, certificates: 'cn:a'}\n");
        assert!(lonely.contains("as long as there is no `api.tls`"), "{lonely}");
        let half = fault("  tls:\n    listen: 127.0.0.1:8443\n");
        for key in ["certificate", "key", "client_ca"] {
            assert!(half.contains(&format!("api.tls.{key}: the key is missing")), "{half}");
        }
        assert!(fault("  access:\n    - {users: 1, role: root}\n").contains("api.access[0].role"));
        let wide = fault("  access:\n    - {users: 1, role: admin, filter: port 1}\n");
        assert!(wide.contains("an admin deletes whole segments"), "{wide}");
        let odd = fault(&format!("{TLS}  access:\n    - {{certificates: alice, role: query}}\n"));
        assert!(odd.contains("is not a name in a certificate"), "{odd}");
    }
}
