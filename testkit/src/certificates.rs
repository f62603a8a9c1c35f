//! Certificates for tests of TLS: an authority in memory, and files of what it vouches for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};

/// Somebody who vouches for others.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// PEM files of a certificate and its key.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, which only its owner may read.
    pub key: PathBuf,
}

/// What a certificate says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// Common name.
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
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes its certificate.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, path: &Path) {
        fs::write(path, &self.pem).expect("the authority's certificate");
    }

    /// Vouches for somebody, and writes `NAME.pem` and `NAME.key` into the folder.
    ///
    /// # Panics
    /// If the wish makes no certificate, or it cannot be written.
    pub fn issue(&self, folder: &Path, wish: &Wish<'_>) -> Pair {
        let alternatives: Vec<_> = wish.alternatives.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(alternatives).expect("names");
        params.distinguished_name.push(DnType::CommonName, wish.name);
        if !wish.unit.is_empty() {
            params.distinguished_name.push(DnType::OrganizationalUnitName, wish.unit);
        }
        if wish.expired {
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let file = |kind: &str, pem: String| write(folder, wish.name, kind, &pem);
        Pair { certificate: file("pem", certificate.pem()), key: file("key", key.serialize_pem()) }
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
