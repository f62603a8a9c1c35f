//! Certificates for tests of TLS: an authority in memory, and files of what it vouches for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
    RevokedCertParams, RsaKeySize, SerialNumber, date_time_ymd,
};

/// Somebody who vouches for others.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// Certificates so far, which are their numbers.
    issued: AtomicU64,
}

/// PEM files of a certificate and its key.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, which only its owner may read.
    pub key: PathBuf,
    /// The certificate's number with its authority.
    pub serial: u64,
}

/// What a certificate says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// Common name, if not empty.
    pub name: &'a str,
    /// Organizational unit, if not empty.
    pub unit: &'a str,
    /// DNS names and addresses.
    pub alternatives: &'a [&'a str],
    /// It was good until 2001.
    pub expired: bool,
}

impl Authority {
    /// A new one, of this organizational unit.
    ///
    /// # Panics
    /// If no key can be made.
    pub fn new(unit: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem, issued: AtomicU64::new(0) }
    }

    /// Writes its certificate.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, path: &Path) {
        fs::write(path, &self.pem).expect("the authority's certificate");
    }

    /// Vouches for somebody, and writes `NAME.pem` and `NAME.key` into the folder; who has no
    /// common name goes by his number.
    ///
    /// # Panics
    /// If the wish makes no certificate, or it cannot be written.
    pub fn issue(&self, folder: &Path, wish: &Wish<'_>) -> Pair {
        let alternatives: Vec<_> = wish.alternatives.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(alternatives).expect("names");
        params.distinguished_name = DistinguishedName::new();
        if !wish.name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, wish.name);
        }
        if !wish.unit.is_empty() {
            params.distinguished_name.push(DnType::OrganizationalUnitName, wish.unit);
        }
        if wish.expired {
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let serial = self.issued.fetch_add(1, Ordering::Relaxed) + 1;
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let number = serial.to_string();
        let name = if wish.name.is_empty() { &number } else { wish.name };
        let file = |kind: &str, pem: String| write(folder, name, kind, &pem);
        let certificate = file("pem", certificate.pem());
        Pair { certificate, key: file("key", key.serialize_pem()), serial }
    }

    /// Writes the list of those certificates that it vouches for no more; an expired one should
    /// have been renewed in 2001.
    ///
    /// # Panics
    /// If it cannot be made or written.
    pub fn revoke(&self, path: &Path, serials: &[u64], expired: bool) {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2000, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2000, 1, 1),
            next_update: date_time_ymd(if expired { 2001 } else { 4096 }, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = list.signed_by(&self.issuer).and_then(|list| list.pem()).expect("a list");
        fs::write(path, pem).expect("the list");
    }
}

fn write(folder: &Path, name: &str, kind: &str, pem: &str) -> PathBuf {
    let path = folder.join(format!("{name}.{kind}"));
    fs::write(&path, pem).expect("a PEM file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    path
}

/// Writes a new RSA key of 3072 bits, `NAME.key`, and its public half, `NAME.pub`.
///
/// # Panics
/// If it cannot be made or written.
pub fn rsa_halves(folder: &Path, name: &str) -> [PathBuf; 2] {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072).expect("a key");
    [("key", key.serialize_pem()), ("pub", key.public_key_pem())]
        .map(|(kind, pem)| write(folder, name, kind, &pem))
}
