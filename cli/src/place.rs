//! Where an answer comes from, and which packets are meant.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use wirevault_daemon::lifecycle::snapshots::lost_stores;
use wirevault_daemon::lifecycle::tier;
use wirevault_index::error::chain;
use wirevault_index::{KeySource, StoreReader, open_store};
use wirevault_lifecycle::audit::folder_of;
use wirevault_query::Request;
use wirevault_query::time::{local_zone, parse};
use wirevault_seal::{EpochOptions, ServiceKeys};
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::args::{Place, Question};
use crate::client::{Client, Endpoint};
use crate::error::CliError;
use crate::interrupt::Cancel;
use crate::output::tell;

/// Who is asked.
pub(crate) enum Asked {
    /// The store itself.
    Store(StoreReader),
    /// The daemon.
    Daemon(Client),
}

/// Opens the store, or connects to the daemon.
///
/// # Errors
/// `Index`, `Connect`.
pub(crate) fn ask(place: &Place, cancel: &Cancel) -> Result<Asked, CliError> {
    if let Some(dir) = &place.store {
        return Ok(Asked::Store(open(dir, place.key.as_deref())?));
    }
    let endpoint = Endpoint::new(&place.daemon, place.key.as_deref());
    Ok(Asked::Daemon(Client::connect(&endpoint, cancel)?))
}

/// Opens a store for reading, with what lies in its tier.
///
/// # Errors
/// `Index`; `Import` if the list of the tier does not read.
pub(crate) fn open(dir: &Path, key: Option<&Path>) -> Result<StoreReader, CliError> {
    let key = key_source(key)?;
    let mut store = open_store(dir, &key)?;
    let shut = store.volumes.iter().find_map(|volume| volume.ring.as_ref()?.as_ref().err());
    if let Some(why) = shut {
        // What is not sealed can still be told; and a store without a segment has nothing to miss.
        tell(&format!("nothing sealed can be read: {}", chain(why)));
    }
    tier::attach(&mut store, dir, &key)?;
    let (lost, troubles) = lost_stores(&folder_of(dir, &store.store.to_string()));
    store.lost = lost;
    troubles.iter().for_each(|trouble| tell(trouble));
    Ok(store)
}

/// The key that was named, or the one that the store recorded: a file, or a key of a service.
///
/// # Errors
/// `Start`.
pub(crate) fn key_source(key: Option<&Path>) -> Result<KeySource, CliError> {
    Ok(match (key, key_services()?) {
        (Some(path), _) => KeySource::File(PathBuf::from(path)),
        (None, Some(services)) => KeySource::Service(services),
        (None, None) => KeySource::Recorded,
    })
}

/// Keys that a service keeps, if this build knows one. Nothing is asked of it yet.
///
/// # Errors
/// `Start`.
pub(crate) fn key_services() -> Result<Option<Arc<ServiceKeys>>, CliError> {
    let service = wirevault_cloud::key_service(None).map_err(CliError::Start)?;
    let keys = |service| {
        let clock = Arc::new(SystemClock);
        Arc::new(ServiceKeys::new(service, EpochOptions::default(), clock).opening_all())
    };
    Ok(service.map(keys))
}

/// A path as a store records it.
///
/// # Errors
/// `Usage` if it is not UTF-8.
pub(crate) fn text(path: &Path) -> Result<String, CliError> {
    path.to_str().map(ToOwned::to_owned).ok_or_else(|| {
        CliError::Usage(format!(
            "{} is not UTF-8; a store records its paths as text",
            path.display()
        ))
    })
}

/// The question as the query crate takes it.
///
/// # Errors
/// `Time`.
pub(crate) fn request(question: &Question) -> Result<Request, CliError> {
    Ok(Request {
        filter: question.filter.join(" "),
        since_ns: time("since", question.since.as_deref())?,
        until_ns: time("until", question.until.as_deref())?,
        skip_link_types: question.skip_linktype,
        tunnel: question.tunnel,
        without_duplicates: question.without_duplicates,
        ..Request::default()
    })
}

/// The time that a flag names, ns.
///
/// # Errors
/// `Time`.
pub(crate) fn time(flag: &'static str, text: Option<&str>) -> Result<Option<u64>, CliError> {
    let read = |text: &str| parse(text, SystemClock.unix_ns(), &local_zone());
    text.map(read).transpose().map_err(|source| CliError::Time { flag, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(filter: &[&str], since: Option<&str>) -> Question {
        Question {
            filter: filter.iter().map(ToString::to_string).collect(),
            since: since.map(ToOwned::to_owned),
            until: None,
            skip_linktype: true,
            tunnel: None,
            without_duplicates: false,
        }
    }

    #[test]
    fn words_of_a_filter_are_joined() {
        let request = request(&question(&["tcp", "port", "80"], Some("@1.5"))).unwrap();
        assert_eq!(request.filter, "tcp port 80");
        assert_eq!(request.since_ns, Some(1_500_000_000));
        assert!(request.skip_link_types && request.until_ns.is_none());
    }

    #[test]
    fn a_wrong_time_names_its_flag() {
        let error = request(&question(&[], Some("soon"))).unwrap_err();
        assert!(error.to_string().starts_with("--since: `soon` is not a time"), "{error}");
    }
}
