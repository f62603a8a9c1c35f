//! Where the daemon is, and how it is reached.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use wirevault_daemon::api::DEFAULT_SOCKET;

use crate::args::Daemon;

/// How long it may take until a daemon on another machine is spoken to.
const CONNECT_MAX: Duration = Duration::from_secs(20);

/// Where a daemon is.
#[derive(Debug, Clone)]
pub(crate) enum Endpoint {
    /// On this machine.
    Socket(PathBuf),
    /// Anywhere.
    Tls { address: String, cert: PathBuf, key: PathBuf, ca: PathBuf },
}

/// A stream of bytes to and from a daemon.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Endpoint {
    /// The one that the arguments name.
    pub(crate) fn new(daemon: &Daemon, key: Option<&Path>) -> Self {
        let Daemon { socket, connect, cert, ca } = daemon.clone();
        match (connect, cert, key, ca) {
            (Some(address), Some(cert), Some(key), Some(ca)) => {
                Self::Tls { address, cert, key: key.to_owned(), ca }
            }
            // The arguments are taken together or not at all.
            _ => Self::Socket(socket.unwrap_or_else(|| DEFAULT_SOCKET.into())),
        }
    }

    /// Connects. Errors: `InvalidData` if a certificate is at fault.
    pub(crate) async fn open(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Socket(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Self::Tls { address, cert, key, ca } => {
                let connector = TlsConnector::from(Arc::new(config(cert, key, ca)?));
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(host).map_err(invalid)?;
                let opened = timeout(CONNECT_MAX, async {
                    connector.connect(name, TcpStream::connect(address).await?).await
                });
                Ok(Box::new(opened.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??))
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Tls { address, .. } => f.write_str(address),
        }
    }
}

fn config(cert: &Path, key: &Path, ca: &Path) -> io::Result<ClientConfig> {
    let file = |path: &Path, error: &dyn fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
    };
    let all = |path: &Path| {
        let found: Result<Vec<_>, pem::Error> =
            CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        found.map_err(|error| file(path, &error))
    };
    let mut roots = RootCertStore::empty();
    for authority in all(ca)? {
        roots.add(authority).map_err(|error| file(ca, &error))?;
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| file(key, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(invalid)?;
    config
        .with_root_certificates(roots)
        .with_client_auth_cert(all(cert)?, private)
        .map_err(|error| file(cert, &error))
}

fn invalid(error: impl Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What TLS says of a connection that broke off, if it is that. With TLS 1.3 the daemon judges our
/// certificate after we began to ask.
pub(crate) fn alert(error: &hyper::Error) -> Option<String> {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(at) = cause {
        if let Some(io) = at.downcast_ref::<io::Error>()
            && let Some(tls) = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            return Some(tls.to_string());
        }
        cause = at.source();
    }
    None
}
