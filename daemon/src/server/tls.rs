//! The API over TCP: TLS 1.3, and nobody without a certificate.
//!
//! A connection gets a place, then shakes hands within [`HANDSHAKE_MAX`], each beside the others;
//! only then it is handed to HTTP. What fails before is written down as a denial. Handshakes are
//! never shortened from earlier ones: that would let an expired certificate in again.
//!
//! Source: RFC 8446; RFC 5280 for certificates.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use wirevault_config::{CertificateName, Tls};
use wirevault_seal::chain::Chain;
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

use crate::DaemonError;
use crate::lifecycle::audit::shortened;
use crate::server::access::{Origin, Subject};
use crate::server::connections::{Connection, Holder, Places};
use crate::server::revocation::Lists;
use crate::server::{App, Peer};

/// How long a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Connections whose handshake is done and that HTTP has not taken yet.
const READY_MAX: usize = 16;

/// Bytes of a subject, or an issuer, at most that the log shows whole: it has them in every line.
const NAME_BYTES_MAX: usize = 512;

/// What is listened on before anything else is started.
pub(crate) struct Bound {
    listener: std::net::TcpListener,
    certificates: Arc<Certificates>,
}

impl Bound {
    /// The same listener, for another who answers.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn again(&self) -> io::Result<Self> {
        let listener = self.listener.try_clone()?;
        Ok(Self { listener, certificates: Arc::clone(&self.certificates) })
    }

    /// What it shows, which may be changed.
    pub(crate) fn certificates(&self) -> Arc<Certificates> {
        Arc::clone(&self.certificates)
    }
}

/// Reads the certificates, and listens.
///
/// # Errors
/// As [`Certificates::read`], and `Setting`: the address cannot be had.
pub(crate) fn bind(tls: &Tls) -> Result<Bound, DaemonError> {
    let certificates = Arc::new(Certificates::read(tls)?);
    Ok(Bound { listener: listen("tls.listen", tls.listen)?, certificates })
}

/// Listens at the address of this key of `api`.
///
/// # Errors
/// `Setting`: the address cannot be had.
pub(crate) fn listen(key: &str, address: SocketAddr) -> Result<std::net::TcpListener, DaemonError> {
    std::net::TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|error| {
            let way_out = "name an address of this machine and a port that is free";
            wrong(key, address.to_string(), error.to_string(), way_out)
        })
}

fn wrong(key: &str, value: String, problem: String, way_out: &str) -> DaemonError {
    let (path, way_out) = (format!("api.{key}"), way_out.to_owned());
    DaemonError::Setting { path, value, problem, way_out }
}

/// What the recorder shows, and whom it believes.
pub(crate) struct Certificates(RwLock<Arc<Files>>);

/// What the files of a configuration hold.
struct Files {
    config: Arc<ServerConfig>,
    revoked: Lists,
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// `Setting`: a file cannot be read, is not what it should be, or may be read by others.
    pub(crate) fn read(tls: &Tls) -> Result<Self, DaemonError> {
        let revoked = revoked(tls)?;
        let config = Arc::new(server_config(tls, &revoked)?);
        Ok(Self(RwLock::new(Arc::new(Files { config, revoked }))))
    }

    /// Shakes hands with the other's from here on.
    pub(crate) fn take_over(&self, other: Self) {
        let new = other.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// Why somebody with a good certificate does not come in now.
    pub(crate) fn trouble(&self, now_ns: u64) -> Option<String> {
        self.files().revoked.trouble(now_ns)
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.files().config))
    }

    fn files(&self) -> Arc<Files> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A fault of a file.
fn file(key: &'static str, path: &Path) -> impl FnOnce(String) -> DaemonError {
    let path = path.display().to_string();
    move |problem| {
        wrong(&format!("tls.{key}"), path, problem, "name a PEM file that this user may read")
    }
}

/// The lists of revoked certificates: of all authorities, or none at all.
fn revoked(tls: &Tls) -> Result<Lists, DaemonError> {
    let mut lists = Lists::default();
    for path in &tls.crl {
        lists.add(path).map_err(file("crl", path))?;
    }
    let authorities = certificates(&tls.client_ca).map_err(file("client_ca", &tls.client_ca))?;
    let without = lists.without(&authorities).map_err(file("client_ca", &tls.client_ca))?;
    match without {
        None => Ok(lists),
        Some(authority) => {
            let files: Vec<_> = tls.crl.iter().map(|path| path.display().to_string()).collect();
            let problem = format!("{authority} of `client_ca` has no list there");
            Err(wrong("tls.crl", files.join(", "), problem, "add its list, or remove it"))
        }
    }
}

fn server_config(tls: &Tls, revoked: &Lists) -> Result<ServerConfig, DaemonError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in certificates(&tls.client_ca).map_err(file("client_ca", &tls.client_ca))? {
        roots
            .add(authority)
            .map_err(|error| file("client_ca", &tls.client_ca)(error.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
        .with_crls(revoked.ders())
        .enforce_revocation_expiration()
        .build()
        .map_err(|error| file("client_ca", &tls.client_ca)(error.to_string()))?;
    let chain = certificates(&tls.certificate).map_err(file("certificate", &tls.certificate))?;
    let key = private_key(&tls.key).map_err(file("key", &tls.key))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|config| config.with_client_cert_verifier(verifier).with_single_cert(chain, key));
    let mut config =
        config.map_err(|error| file("certificate", &tls.certificate)(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> = found.map_err(|error: rustls::pki_types::pem::Error| error.to_string())?;
    if found.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let mode = fs::metadata(path).map_err(|error| error.to_string())?.mode();
    if mode & 0o077 != 0 {
        return Err(format!("others may use it (mode {:o}); `chmod 600` it", mode & 0o777));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| error.to_string())
}

/// Gives out connections whose handshake is done.
pub(crate) struct TlsDoor {
    ready: Receiver<(TlsConnection, SocketAddr)>,
    address: SocketAddr,
    accepting: AbortHandle,
}

type TlsConnection = Connection<TlsStream<TcpStream>>;

impl TlsDoor {
    /// Takes connections from now on.
    pub(crate) fn open(bound: Bound, app: App) -> io::Result<Self> {
        let listener = TcpListener::from_std(bound.listener)?;
        let address = listener.local_addr()?;
        let (sender, ready) = channel(READY_MAX);
        let accepting = tokio::spawn(accept(listener, bound.certificates, sender, app));
        let accepting = accepting.abort_handle();
        Ok(Self { ready, address, accepting })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for TlsDoor {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Listener for TlsDoor {
    type Io = TlsConnection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TlsConnection, SocketAddr) {
        match self.ready.recv().await {
            Some(ready) => ready,
            // Whoever sends ends with this value only.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Connected<IncomingStream<'_, TlsDoor>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsDoor>) -> Self {
        Self::of(stream.io())
    }
}

async fn accept(
    mut listener: TcpListener,
    certificates: Arc<Certificates>,
    sender: Sender<(TlsConnection, SocketAddr)>,
    app: App,
) {
    let places = Places::of_addresses();
    loop {
        let (stream, address) = Listener::accept(&mut listener).await;
        // Whoever has no place learns it by the end of his connection: nothing is said before TLS.
        let Ok(place) = places.take(Holder::Address(address.ip())) else { continue };
        let (acceptor, sender, app) = (certificates.acceptor(), sender.clone(), app.clone());
        tokio::spawn(async move {
            let why = match timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => match subject(&stream, address) {
                    Ok(subject) => {
                        let origin = Origin::Certificate(Arc::new(subject));
                        let connection = Connection::new(stream, origin, place);
                        // The listener is gone when the recorder stops.
                        let _ = sender.send((connection, address)).await;
                        return;
                    }
                    Err(why) => why,
                },
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("it took longer than {} s", HANDSHAKE_MAX.as_secs()),
            };
            let request = format!("TLS from {address}");
            tracing::info!("{request} was refused: {why}");
            let deny = move || app.audit().denied(Origin::User(None).who(), request, &why);
            drop(tokio::task::spawn_blocking(deny));
        });
    }
}

/// What the checked certificate at the other end says.
fn subject(stream: &TlsStream<TcpStream>, address: SocketAddr) -> Result<Subject, String> {
    let (_, session) = stream.get_ref();
    let first = session.peer_certificates().and_then(<[_]>::first);
    read(first.ok_or("it has no certificate")?, address)
}

fn read(der: &[u8], address: SocketAddr) -> Result<Subject, String> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| format!("its certificate cannot be read: {error}"))?;
    let texts =
        |entries: &mut dyn Iterator<Item = &x509_parser::prelude::AttributeTypeAndValue<'_>>| {
            entries.filter_map(|it| it.as_str().ok().map(str::to_owned)).collect::<Vec<_>>()
        };
    let units = |name: &X509Name<'_>| texts(&mut name.iter_organizational_unit());
    let common = texts(&mut certificate.subject().iter_common_name());
    let mut names: Vec<_> = common.into_iter().map(CertificateName::CommonName).collect();
    names.extend(units(certificate.subject()).into_iter().map(CertificateName::Unit));
    names.extend(units(certificate.issuer()).into_iter().map(CertificateName::IssuerUnit));
    let alternatives = certificate.get_extension_unique(&OID_X509_EXT_SUBJECT_ALT_NAME);
    let alternatives = alternatives.map_err(|error| error.to_string())?;
    let mut identity = Chain::new();
    identity.add(certificate.issuer().as_raw());
    identity.add(certificate.subject().as_raw());
    identity.add(alternatives.map_or(&[], |extension| extension.value));
    let alternatives = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let alternatives = alternatives.iter().flat_map(|it| &it.value.general_names);
    names.extend(alternatives.filter_map(alternative).map(CertificateName::Alternative));
    Ok(Subject {
        names,
        shown: shortened(certificate.subject().to_string(), NAME_BYTES_MAX),
        issuer: shortened(certificate.issuer().to_string(), NAME_BYTES_MAX),
        serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        address: address.to_string(),
        identity: identity.finish(),
    })
}

fn alternative(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => {
            Some((*text).to_owned())
        }
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            _ => {
                let bytes: [u8; 16] = (*bytes).try_into().ok()?;
                Some(std::net::Ipv6Addr::from(bytes).to_string())
            }
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use wirevault_testkit::certificates::{Authority, Wish};

    use super::*;

    #[test]
    fn an_identity_is_the_same_once_its_certificate_is_renewed() {
        let folder = tempfile::tempdir().unwrap();
        let (authority, other) = (Authority::new("Fleet"), Authority::new("Other"));
        let identity = |authority: &Authority, name, alternatives: &[&str]| {
            let wish = Wish { name, alternatives, ..Wish::default() };
            let pair = authority.issue(folder.path(), &wish);
            let der = certificates(&pair.certificate).unwrap().remove(0);
            let subject = read(&der, "127.0.0.1:1".parse().unwrap()).unwrap();
            assert_eq!(subject.shown.is_empty(), name.is_empty());
            subject.identity
        };
        let probe = identity(&authority, "", &["probe"]);
        assert_eq!(identity(&authority, "", &["probe"]), probe);
        let others = [
            identity(&authority, "", &["probe", "more"]),
            identity(&authority, "", &[]),
            identity(&authority, "probe", &["probe"]),
            identity(&other, "", &["probe"]),
        ];
        assert!(!others.contains(&probe));
    }
}
