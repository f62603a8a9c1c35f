//! Who asks, what he may ask, and how much at a time.
//!
//! ```text
//!  unix socket ─► user and group, as the kernel attests them ─┐
//!  TLS ─────────► names in a certificate that was checked ────┴─► first rule that fits ─► Asker
//! ```
//! Root and the daemon's own user are `admin`; then the rules of `api.access` count, in order; then
//! `api.users` and `api.groups`, who are `export`. Nobody else gets an answer. An [`Asker`] carries
//! what holds for him: his role, the filter that narrows his questions, and his limits, which all
//! his connections share. Root and the daemon's own user have none.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use wirevault_config::{Api, CertificateName, Principal, Role, Rule};
use wirevault_format::LinkType;
use wirevault_lifecycle::audit::Who;
use wirevault_query::filter;

use crate::DaemonError;

/// Identities whose limits are remembered; those that ask nothing are forgotten first.
const IDENTITIES_MAX: usize = 4096;
const MINUTE: Duration = Duration::from_secs(60);

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// User and group; nothing where the kernel does not tell.
    User(Option<(u32, u32)>),
    /// Whoever has the key of this certificate.
    Certificate(Arc<Subject>),
}

/// What a certificate says of its owner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Subject {
    pub(crate) names: Vec<CertificateName>,
    /// The subject as a whole; empty if there is none.
    pub(crate) shown: String,
    /// Who vouches for him.
    pub(crate) issuer: String,
    pub(crate) serial: String,
    pub(crate) address: String,
    /// SHA-256 of issuer, subject and alternative names: the same once it is renewed.
    pub(crate) identity: [u8; 32],
}

impl Subject {
    /// The first name that is not one of many's.
    fn own_name(&self) -> Option<&CertificateName> {
        self.names.iter().find(|name| is_of_one(name))
    }
}

/// Whether a name is of one owner, not of all in a unit.
fn is_of_one(name: &CertificateName) -> bool {
    matches!(name, CertificateName::CommonName(_) | CertificateName::Alternative(_))
}

/// Whose limits are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Identity {
    User(Option<u32>),
    Certificate([u8; 32]),
}

impl Origin {
    /// As the audit log has it, of whom no rule names.
    pub(crate) fn who(&self) -> Who {
        self.who_by(None)
    }

    /// As the audit log has it; `rule` is the name that the rule has for the certificate.
    fn who_by(&self, rule: Option<&CertificateName>) -> Who {
        match self {
            Self::User(ids) => ids.map_or(Who::Unknown, |(uid, gid)| Who::User { uid, gid }),
            Self::Certificate(subject) => {
                let name = rule.filter(|name| is_of_one(name)).or(subject.own_name());
                Who::Certificate {
                    subject: subject.shown.clone(),
                    name: name.map(ToString::to_string),
                    issuer: Some(subject.issuer.clone()),
                    serial: subject.serial.clone(),
                    address: subject.address.clone(),
                }
            }
        }
    }

    fn identity(&self) -> Identity {
        match self {
            Self::User(ids) => Identity::User(ids.map(|(uid, _)| uid)),
            Self::Certificate(subject) => Identity::Certificate(subject.identity),
        }
    }

    /// For people.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::User(None) => "an unknown user".to_owned(),
            Self::User(Some((uid, _))) => format!("user {uid}"),
            Self::Certificate(subject) => match subject.own_name() {
                Some(name) if subject.shown.is_empty() => format!("the certificate `{name}`"),
                _ => format!("the certificate `{}`", subject.shown),
            },
        }
    }

    fn way_in(&self) -> &'static str {
        match self {
            Self::User(_) => {
                "be root, or have the user put into `api.users` or one of its groups into \
                 `api.groups` of the configuration, or either into a rule of `api.access`"
            }
            Self::Certificate(_) => "have one of its names put into a rule of `api.access`",
        }
    }
}

/// Somebody who may ask, and what.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) who: Who,
    pub(crate) role: Role,
    /// What every question of his is narrowed to; empty for no narrowing.
    pub(crate) within: String,
    /// Nothing for root and the daemon's own user.
    turns: Option<Arc<Turns>>,
}

impl Asker {
    /// A place for one more answer, until what is given back is dropped. Errors: he has them all.
    pub(crate) fn turn(&self) -> Result<Option<Turn>, String> {
        self.turns.as_ref().map(|turns| turns.begin()).transpose()
    }
}

/// Why somebody gets no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// He may not ask.
    Denied(Box<Who>, String),
    /// He asks too often.
    TooOften(Box<Who>, String),
}

/// Who may ask.
#[derive(Debug)]
pub(crate) struct Access {
    own_uid: u32,
    grants: RwLock<Vec<Grant>>,
    /// By the number of the rule, which says how much, and by who it is.
    known: Mutex<HashMap<(usize, Identity), Arc<Turns>>>,
}

/// A rule whose users and groups are numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    uids: Vec<u32>,
    gids: Vec<u32>,
    certificates: Vec<CertificateName>,
    role: Role,
    within: String,
    limits: Limits,
}

/// What one identity may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    answers: u32,
    per_minute: u32,
}

impl Limits {
    fn new(answers: NonZeroU32, per_minute: NonZeroU32) -> Self {
        Self { answers: answers.get(), per_minute: per_minute.get() }
    }
}

impl Access {
    /// Looks the configured names up, and tries the filters.
    ///
    /// # Errors
    /// `Setting` for a name that this machine does not know; `Filter`.
    pub(crate) fn new(api: &Api) -> Result<Self, DaemonError> {
        let mut grants = Vec::with_capacity(api.access.len() + 1);
        for (number, rule) in api.access.iter().enumerate() {
            grants.push(Grant::new(rule, &format!("api.access[{number}]"))?);
        }
        grants.push(Grant {
            uids: uids(&api.users, "api")?,
            gids: gids(&api.groups, "api")?,
            certificates: Vec::new(),
            role: Role::Export,
            within: String::new(),
            limits: Limits::new(Rule::ANSWERS, Rule::PER_MINUTE),
        });
        let grants = RwLock::new(grants);
        Ok(Self { own_uid: Uid::effective().as_raw(), grants, known: Mutex::default() })
    }

    /// From here on the other's rules hold. Who has asked under the old ones begins anew; what he
    /// is being answered goes on.
    pub(crate) fn take_over(&self, other: Self) {
        let new = other.grants.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.grants.write().unwrap_or_else(PoisonError::into_inner) = new;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What holds for whoever is there, who asks once more. May ask the user database.
    pub(crate) fn admit(&self, origin: &Origin, now: Instant) -> Result<Asker, Refusal> {
        if let Origin::User(Some((uid, _))) = origin
            && (*uid == 0 || *uid == self.own_uid)
        {
            let (who, within) = (origin.who(), String::new());
            return Ok(Asker { who, role: Role::Admin, within, turns: None });
        }
        let mut groups = None;
        let grants = self.grants.read().unwrap_or_else(PoisonError::into_inner);
        let mut rules = grants.iter().enumerate();
        let Some((rule, grant)) = rules.find(|it| it.1.is_for(origin, &mut groups)) else {
            let (name, way_in) = (origin.name(), origin.way_in());
            let why = format!("{name} may not ask this recorder: {way_in}");
            return Err(Refusal::Denied(Box::new(origin.who()), why));
        };
        let who = origin.who_by(grant.name_of(origin));
        let turns = self.turns_of((rule, origin.identity()), grant.limits);
        if !turns.ask(now) {
            let (name, most) = (origin.name(), turns.limits.per_minute);
            let why = format!("{name} may ask {most} times a minute");
            return Err(Refusal::TooOften(Box::new(who), why));
        }
        Ok(Asker { who, role: grant.role, within: grant.within.clone(), turns: Some(turns) })
    }

    fn turns_of(&self, key: (usize, Identity), limits: Limits) -> Arc<Turns> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= IDENTITIES_MAX {
            known.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        Arc::clone(known.entry(key).or_insert_with(|| Arc::new(Turns::new(limits))))
    }
}

impl Grant {
    fn new(rule: &Rule, path: &str) -> Result<Self, DaemonError> {
        let within = rule.filter.clone().unwrap_or_default();
        filter::compile(&within, LinkType::ETHERNET)
            .map_err(|source| DaemonError::Filter { path: format!("{path}.filter"), source })?;
        Ok(Self {
            uids: uids(&rule.users, path)?,
            gids: gids(&rule.groups, path)?,
            certificates: rule.certificates.clone(),
            role: rule.role,
            within,
            limits: Limits::new(rule.answers, rule.per_minute),
        })
    }

    /// `groups` are those of the user once they were asked for.
    fn is_for(&self, origin: &Origin, groups: &mut Option<Vec<u32>>) -> bool {
        match origin {
            Origin::User(None) => false,
            Origin::User(Some((uid, gid))) => {
                self.uids.contains(uid)
                    || self.gids.contains(gid)
                    || !self.gids.is_empty()
                        && groups
                            .get_or_insert_with(|| groups_of(*uid))
                            .iter()
                            .any(|gid| self.gids.contains(gid))
            }
            Origin::Certificate(_) => self.name_of(origin).is_some(),
        }
    }

    /// The name that it has for this certificate.
    fn name_of(&self, origin: &Origin) -> Option<&CertificateName> {
        match origin {
            Origin::User(_) => None,
            Origin::Certificate(subject) => {
                self.certificates.iter().find(|name| subject.names.contains(name))
            }
        }
    }
}

/// What one identity has and may have.
#[derive(Debug)]
struct Turns {
    limits: Limits,
    state: Mutex<TurnState>,
}

#[derive(Debug)]
struct TurnState {
    running: u32,
    /// Questions that may be asked now, in parts of one.
    left: f64,
    since: Instant,
}

impl Turns {
    fn new(limits: Limits) -> Self {
        let left = limits.per_minute.into();
        let state = TurnState { running: 0, left, since: Instant::now() };
        Self { limits, state: Mutex::new(state) }
    }

    /// Takes one of the questions that come back evenly over a minute; `false` if there is none.
    fn ask(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let most = f64::from(self.limits.per_minute);
        let back = now.saturating_duration_since(state.since).as_secs_f64() / MINUTE.as_secs_f64();
        state.left = (state.left + back * most).min(most);
        state.since = now.max(state.since);
        let may = state.left >= 1.0;
        if may {
            state.left -= 1.0;
        }
        may
    }

    fn begin(self: &Arc<Self>) -> Result<Turn, String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.running >= self.limits.answers {
            let most = self.limits.answers;
            return Err(format!("{most} answers are as many as you may have at a time"));
        }
        state.running += 1;
        Ok(Turn(Arc::clone(self)))
    }
}

/// One answer of somebody, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Turns>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).running -= 1;
    }
}

fn uids(users: &[Principal], path: &str) -> Result<Vec<u32>, DaemonError> {
    let known = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    numbers(users, &format!("{path}.users"), "user", known)
}

fn gids(groups: &[Principal], path: &str) -> Result<Vec<u32>, DaemonError> {
    let known = |name: &str| Group::from_name(name).ok().flatten().map(|it| it.gid.as_raw());
    numbers(groups, &format!("{path}.groups"), "group", known)
}

fn numbers(
    principals: &[Principal],
    path: &str,
    what: &str,
    known: impl Fn(&str) -> Option<u32>,
) -> Result<Vec<u32>, DaemonError> {
    let number = |(at, principal): (usize, &Principal)| match principal {
        Principal::Id(number) => Ok(*number),
        Principal::Name(name) => known(name).ok_or_else(|| DaemonError::Setting {
            path: format!("{path}[{at}]"),
            value: name.clone(),
            problem: format!("this machine has no such {what}"),
            way_out: format!("make the {what}, or remove it from the list"),
        }),
    };
    principals.iter().enumerate().map(number).collect()
}

/// All groups of a user, as the user database has them now.
fn groups_of(uid: u32) -> Vec<u32> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return Vec::new() };
    let Ok(name) = std::ffi::CString::new(user.name) else { return Vec::new() };
    let groups = getgrouplist(&name, user.gid).unwrap_or_default();
    groups.into_iter().map(Gid::as_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(api: &str) -> Result<Access, DaemonError> {
        let text = format!("store: /a\ncapture:\n  - interface: eth0\napi:\n{api}");
        Access::new(&wirevault_config::parse(&text, "t").unwrap().api)
    }

    fn role(access: &Access, origin: &Origin) -> Option<Role> {
        access.admit(origin, Instant::now()).ok().map(|asker| asker.role)
    }

    fn user(uid: u32, gid: u32) -> Origin {
        Origin::User(Some((uid, gid)))
    }

    const TLS: &str = "  tls: {listen: '127.0.0.1:1', certificate: /c, key: /k, client_ca: /a}\n";

    #[test]
    fn root_the_own_user_and_those_named_may_ask() {
        let mut nobody_else = access("  users: []\n").unwrap();
        nobody_else.own_uid = 500;
        assert_eq!(role(&nobody_else, &user(0, 0)), Some(Role::Admin));
        assert_eq!(role(&nobody_else, &user(500, 7)), Some(Role::Admin));
        assert_eq!(role(&nobody_else, &user(501, 0)), None);
        assert_eq!(role(&nobody_else, &Origin::User(None)), None);
        let named = access("  users: [77]\n  groups: [88]\n").unwrap();
        assert_eq!(role(&named, &user(77, 1)), Some(Role::Export));
        assert_eq!(role(&named, &user(78, 88)), Some(Role::Export));
        assert_eq!(role(&named, &user(78, 77)), None);
    }

    #[test]
    fn the_first_rule_that_fits_holds() {
        let access = access(&format!(
            "{TLS}  users: [7]\n  access:\n    - {{users: 7, role: status}}\n    - {{groups: 9, \
             certificates: 'ou:Ops', role: query, filter: arp}}\n    - {{certificates: ['cn:eve', \
             'issuer_ou:Fleet'], role: admin}}\n"
        ))
        .unwrap();
        assert_eq!(role(&access, &user(7, 9)), Some(Role::Status));
        assert_eq!(role(&access, &user(8, 9)), Some(Role::Query));
        assert_eq!(role(&access, &user(8, 8)), None);
        let with = |names: &[CertificateName]| {
            let names = names.to_vec();
            Origin::Certificate(Arc::new(Subject { names, ..Subject::default() }))
        };
        let ops = CertificateName::Unit("Ops".to_owned());
        let eve = CertificateName::CommonName("eve".to_owned());
        let fleet = CertificateName::IssuerUnit("Fleet".to_owned());
        assert_eq!(role(&access, &with(&[eve.clone(), ops])), Some(Role::Query));
        assert_eq!(role(&access, &with(&[eve])), Some(Role::Admin));
        assert_eq!(role(&access, &with(&[fleet])), Some(Role::Admin));
        // A name counts in its own field only.
        let elsewhere = CertificateName::Alternative("eve".to_owned());
        assert_eq!(role(&access, &with(&[elsewhere])), None);
        let asker = access.admit(&user(8, 9), Instant::now()).unwrap();
        assert_eq!(asker.within, "arp");
    }

    #[test]
    fn limits_are_of_one_identity_and_come_back() {
        let rule = "  access:\n    - {users: [7, 8], role: export, answers: 2, per_minute: 3}\n";
        let access = access(rule).unwrap();
        let begin = Instant::now();
        let asker = access.admit(&user(7, 7), begin).unwrap();
        let first = asker.turn().unwrap();
        let again = access.admit(&user(7, 1), begin).unwrap();
        let second = again.turn().unwrap();
        assert!(asker.turn().unwrap_err().starts_with("2 answers are as many"));
        assert!(access.admit(&user(8, 7), begin).unwrap().turn().is_ok(), "he has his own");
        drop(first);
        assert!(asker.turn().is_ok());
        drop(second);
        assert!(access.admit(&user(7, 7), begin).is_ok());
        let often = access.admit(&user(7, 7), begin).unwrap_err();
        assert!(matches!(often, Refusal::TooOften(_, why) if why.contains("3 times a minute")));
        assert!(access.admit(&user(8, 8), begin).is_ok());
        let later = begin + MINUTE / 3 + Duration::from_millis(100);
        assert!(access.admit(&user(7, 7), later).is_ok());
        assert!(access.admit(&user(7, 7), later).is_err());
        // Root is never kept out.
        let root = (0..10).map(|_| access.admit(&user(0, 0), begin).unwrap().turn());
        assert!(root.collect::<Result<Vec<_>, _>>().is_ok());
    }

    /// What says who the owner is, is the alternative name: the subjects are all the same.
    #[test]
    fn certificates_without_a_subject_shared_their_turns() {
        let rules = "  access:\n    - {certificates: 'san:calm', role: status}\n    \
                     - {certificates: 'san:eager', role: query, per_minute: 1}\n    \
                     - {certificates: 'issuer_ou:Fleet', role: admin, per_minute: 2}\n";
        let access = access(&format!("{TLS}{rules}")).unwrap();
        let with = |alternative: &str| {
            let alternative = CertificateName::Alternative(alternative.to_owned());
            let mut identity = [0; 32];
            identity[..4].copy_from_slice(&alternative.to_string().as_bytes()[4..8]);
            let names = vec![CertificateName::IssuerUnit("Fleet".to_owned()), alternative];
            Origin::Certificate(Arc::new(Subject { names, identity, ..Subject::default() }))
        };
        let begin = Instant::now();
        let name = |origin: &Origin| match access.admit(origin, begin) {
            Ok(Asker { who: Who::Certificate { name, .. }, .. }) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(name(&with("calm")).as_deref(), Some("san:calm"));
        assert_eq!(name(&with("eager")).as_deref(), Some("san:eager"));
        let often = access.admit(&with("eager"), begin).unwrap_err();
        let Refusal::TooOften(who, why) = often else { panic!("{often:?}") };
        let Who::Certificate { name: refused, .. } = *who else { panic!("{who:?}") };
        assert_eq!(refused.as_deref(), Some("san:eager"));
        assert_eq!(why, "the certificate `san:eager` may ask 1 times a minute");
        // A rule of many is of each: their unit is not who they are.
        for one in ["first", "other"] {
            assert_eq!(name(&with(one)), Some(format!("san:{one}")));
            assert!(access.admit(&with(one), begin).is_ok());
            assert!(access.admit(&with(one), begin).is_err());
        }
    }

    #[test]
    fn users_and_groups_without_a_rule_had_no_limits() {
        let access = access("  users: [77]\n  groups: [88]\n").unwrap();
        let begin = Instant::now();
        for who in [user(77, 1), user(78, 88)] {
            let asker = access.admit(&who, begin).unwrap();
            let held: Vec<_> = (0..8).map(|_| asker.turn().unwrap()).collect();
            assert!(asker.turn().unwrap_err().starts_with("8 answers are as many"));
            drop(held);
            assert!((1..600).all(|_| access.admit(&who, begin).is_ok()));
            assert!(matches!(access.admit(&who, begin), Err(Refusal::TooOften(..))));
        }
    }

    #[test]
    fn names_and_filters_are_tried_at_start() {
        let found = access("  users: [root]\n  groups: [root]\n").unwrap();
        let grants = found.grants.read().unwrap();
        assert_eq!((&grants[0].uids, &grants[0].gids), (&vec![0], &vec![0]));
        let text = access("  groups: [no-such-group]\n").unwrap_err().to_string();
        assert!(text.contains("api.groups[0]") && text.contains("no-such-group"), "{text}");
        let rule = "  access:\n    - {users: no-such-user, role: query}\n";
        let text = access(rule).unwrap_err().to_string();
        assert!(text.contains("api.access[0].users[0]"), "{text}");
        let rule = "  access:\n    - {users: 1, role: query, filter: tcpp}\n";
        let text = access(rule).unwrap_err().to_string();
        assert!(text.starts_with("api.access[0].filter: "), "{text}");
    }
}
