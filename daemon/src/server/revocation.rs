//! Lists of revoked certificates, which the authorities of those who ask give out.
//!
//! As soon as there are lists, every certificate between an authority of `api.tls.client_ca` and
//! the one that is shown must be on none of them, and its issuer's list must be there and not be
//! out of date: otherwise whoever keeps a new list away would keep a stolen key good. So a list
//! that is not renewed in time shuts the door, which the status tells; recording and the unix
//! socket go on.
//!
//! Source: RFC 5280, section 5.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use wirevault_query::summary::Instant;
use wirevault_telemetry::clock::SECOND_NS;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

/// The lists of a configuration; none if it names no file.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    lists: Vec<List>,
}

#[derive(Debug)]
struct List {
    der: CertificateRevocationListDer<'static>,
    path: PathBuf,
    /// Name of the authority, as DER and to be read.
    issuer: (Vec<u8>, String),
    /// When the authority gives out the next one.
    next_update_ns: u64,
}

impl Lists {
    /// Adds the lists of a PEM file.
    ///
    /// # Errors
    /// In words: it cannot be read, holds no list, or one that says not until when it is good.
    pub(crate) fn add(&mut self, path: &Path) -> Result<(), String> {
        let found = CertificateRevocationListDer::pem_file_iter(path).and_then(Iterator::collect);
        let found: Vec<_> =
            found.map_err(|error: rustls::pki_types::pem::Error| error.to_string())?;
        if found.is_empty() {
            return Err("it holds no list of revoked certificates".to_owned());
        }
        for der in found {
            let list = List::read(der, path)?;
            self.lists.push(list);
        }
        Ok(())
    }

    /// The authority that has no list here although others do, if there is one.
    ///
    /// # Errors
    /// In words: one of the certificates cannot be read.
    pub(crate) fn without(
        &self,
        authorities: &[CertificateDer<'_>],
    ) -> Result<Option<String>, String> {
        if self.lists.is_empty() {
            return Ok(None);
        }
        for authority in authorities {
            let (_, read) =
                X509Certificate::from_der(authority).map_err(|error| error.to_string())?;
            let name = read.subject();
            if !self.lists.iter().any(|list| list.issuer.0 == name.as_raw()) {
                return Ok(Some(name.to_string()));
            }
        }
        Ok(None)
    }

    /// What handshakes are checked against.
    pub(crate) fn ders(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.lists.iter().map(|list| list.der.clone()).collect()
    }

    /// Why nobody comes in over TLS, or not everybody who should, at this time.
    pub(crate) fn trouble(&self, now_ns: u64) -> Option<String> {
        let old = self.lists.iter().find(|list| list.next_update_ns <= now_ns)?;
        let (path, issuer, until) =
            (old.path.display(), &old.issuer.1, Instant::from(old.next_update_ns));
        Some(format!(
            "api.tls.crl: the list of {issuer} in {path} is out of date since {until}: nobody with \
             its certificates comes in; put its new list there, and reload"
        ))
    }
}

impl List {
    fn read(der: CertificateRevocationListDer<'static>, path: &Path) -> Result<Self, String> {
        let (_, list) =
            CertificateRevocationList::from_der(&der).map_err(|error| error.to_string())?;
        let next = list.next_update().ok_or("a list does not say until when it is good")?;
        let next_s = u64::try_from(next.timestamp()).unwrap_or(0);
        let issuer = (list.issuer().as_raw().to_vec(), list.issuer().to_string());
        let next_update_ns = next_s.saturating_mul(SECOND_NS);
        Ok(Self { path: path.to_owned(), issuer, next_update_ns, der })
    }
}

#[cfg(test)]
mod tests {
    use wirevault_testkit::certificates::Authority;

    use super::*;

    #[test]
    fn a_list_is_known_by_its_authority_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (fleet, other) = (Authority::new("Fleet"), Authority::new("Other"));
        fleet.write(&path("fleet.pem"));
        other.write(&path("other.pem"));
        let [of_fleet, of_other] = ["fleet.pem", "other.pem"]
            .map(|name| CertificateDer::from_pem_file(path(name)).unwrap());

        let mut lists = Lists::default();
        assert!(lists.add(&path("nowhere")).is_err());
        assert!(lists.add(&path("fleet.pem")).unwrap_err().contains("no list"));
        assert_eq!(
            lists.without(std::slice::from_ref(&of_other)),
            Ok(None),
            "no lists are asked for"
        );
        fleet.revoke(&path("fleet.crl"), &[], false);
        lists.add(&path("fleet.crl")).unwrap();
        assert_eq!(lists.without(std::slice::from_ref(&of_fleet)), Ok(None));
        let missing = lists.without(&[of_fleet, of_other]).unwrap().expect("one has none");
        assert!(missing.contains("OU=Other"), "{missing}");

        let year_2001_ns = 978_307_200 * 1_000_000_000;
        assert_eq!(lists.trouble(year_2001_ns), None);
        other.revoke(&path("other.crl"), &[], true);
        lists.add(&path("other.crl")).unwrap();
        assert_eq!(lists.trouble(year_2001_ns - 1), None);
        let told = lists.trouble(year_2001_ns).expect("one is out of date");
        assert!(told.contains("OU=Other") && told.contains("2001"), "{told}");
    }
}
