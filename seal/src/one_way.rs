//! Keys that seal and do not open: the public half of an RSA pair.
//!
//! Whoever has only that half draws epoch keys and wraps them, without any service and without
//! being able to open one again once its process has ended. Opening needs the private half: in a
//! file that never was on the recorder, or in a key service that keeps it (`RSA_4096` for
//! encryption in AWS KMS, whose `Decrypt` takes what is wrapped here).
//!
//! Name of such a key, in rings and superblocks: `seal:`, 16 hexadecimal digits of the SHA-256 of
//! the public half (DER, SubjectPublicKeyInfo), and, if a service keeps the private half, `:` and
//! the key's name there. Wrapping: RSAES-OAEP with SHA-256 and MGF1 of SHA-256, no label. There is
//! no context as with a service's own epoch keys; the ring binds its root to store and volume.
//!
//! Source: RFC 8017, section 7.1; RFC 7468 for the files; AWS KMS Developer Guide, "Asymmetric
//! keys".

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey, PublicEncryptingKey,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use wirevault_format::StoreId;
use wirevault_telemetry::clock::SystemClock;
use zeroize::Zeroizing;

use crate::locked::LockedBytes;
use crate::provider::hex;
use crate::service::{Context, DataKey, KeyService, Refusal, ServiceFailure};
use crate::{EpochKeys, EpochOptions, KEY_BYTES, SealError, ServiceKeys};

/// First part of such a key's name.
pub const KIND: &str = "seal";
/// Bits of an RSA key at least: what is sealed today is to stay closed for decades.
const BITS_MIN: usize = 3072;
/// Bytes of a key file at most; one of 8192 bits has 6 KiB.
const FILE_BYTES_MAX: u64 = 16 << 10;
/// Hexadecimal digits of a key in its name.
const FINGERPRINT_BYTES: usize = 8;

const MAKE: &str = "make an epoch key";
const OPEN: &str = "open an epoch key";

/// An RSA pair, or its public half only.
pub struct OneWayKey {
    path: PathBuf,
    public: OaepPublicEncryptingKey,
    private: Option<OaepPrivateDecryptingKey>,
    fingerprint: String,
    /// Name of the pair at the service that keeps its private half.
    kept_as: Option<String>,
    /// Opens what the private half is needed for, if it is not here.
    service: Option<Arc<dyn KeyService>>,
}

impl OneWayKey {
    /// Reads a PEM file with one half, `PUBLIC KEY`, or with both, `PRIVATE KEY` (PKCS #8).
    ///
    /// # Errors
    /// `KeyMissing`, `KeyIo`; `KeyExposed` for a private half that others may read;
    /// `KeyMalformed` if there is no such key in it, or one of fewer than 3072 bits.
    pub fn read(path: &Path) -> Result<Self, SealError> {
        let malformed = |reason| SealError::KeyMalformed { path: path.to_owned(), line: 1, reason };
        let text = read_file(path)?;
        let private = match PrivatePkcs8KeyDer::from_pem_slice(&text) {
            Err(_) => None,
            Ok(der) => {
                check_mode(path)?;
                let der = Zeroizing::new(der.secret_pkcs8_der().to_vec());
                let key = PrivateDecryptingKey::from_pkcs8(&der);
                Some(key.map_err(|_| malformed("its private key is no RSA key"))?)
            }
        };
        let public = match &private {
            Some(private) => private.public_key(),
            None => {
                let der = SubjectPublicKeyInfoDer::from_pem_slice(&text).map_err(|_| {
                    malformed("a PEM block `PUBLIC KEY` or `PRIVATE KEY` is expected")
                })?;
                let key = PublicEncryptingKey::from_der(&der);
                key.map_err(|_| malformed("its public key is no RSA key"))?
            }
        };
        if public.key_size_bits() < BITS_MIN {
            return Err(malformed("the RSA key is too short; 3072 bits at least, better 4096"));
        }
        let failed = |_| SealError::Cipher { doing: "use an RSA key" };
        let der: PublicKeyX509Der<'_> = public.as_der().map_err(failed)?;
        let fingerprint = hex(&digest(&SHA256, der.as_ref()).as_ref()[..FINGERPRINT_BYTES]);
        Ok(Self {
            path: path.to_owned(),
            public: OaepPublicEncryptingKey::new(public).map_err(failed)?,
            private: private.map(OaepPrivateDecryptingKey::new).transpose().map_err(failed)?,
            fingerprint,
            kept_as: None,
            service: None,
        })
    }

    /// A service keeps the private half under this name.
    pub fn kept_as(self, name: Option<&str>) -> Self {
        Self { kept_as: name.map(ToOwned::to_owned), ..self }
    }

    /// This service is asked to open what the private half is needed for.
    pub fn opened_by(self, service: Arc<dyn KeyService>) -> Self {
        Self { service: Some(service), ..self }
    }

    /// Keys of a store that hang from this one alone.
    pub fn keys_of(self, store: StoreId) -> Arc<EpochKeys> {
        let (name, clock) = (self.name(), Arc::new(SystemClock));
        ServiceKeys::new(Arc::new(self), EpochOptions::default(), clock).of(store, &name)
    }

    /// Its name; see the module's description.
    pub fn name(&self) -> String {
        let kept_as = self.kept_as.as_ref().map_or_else(String::new, |name| format!(":{name}"));
        format!("{KIND}:{}{kept_as}", self.fingerprint)
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn wrap(&self, key: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut wrapped = vec![0; self.public.ciphertext_size()];
        let done = self.public.encrypt(&OAEP_SHA256_MGF1SHA256, key, &mut wrapped, None);
        done.map_err(|_| SealError::Cipher { doing: "wrap an epoch key" })?;
        Ok(wrapped)
    }

    /// `None` if it is not what the private half of this key opens.
    fn unwrap(&self, private: &OaepPrivateDecryptingKey, wrapped: &[u8]) -> Option<LockedBytes> {
        let mut plain = LockedBytes::zeroed(private.min_output_size()).ok()?;
        let opened = private.decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut plain, None).ok()?;
        LockedBytes::copy_of(opened).ok().filter(|key| key.len() == KEY_BYTES)
    }

    fn failure(&self, doing: &'static str, code: &str, refusal: Refusal) -> ServiceFailure {
        let (key, endpoint) = (self.name(), self.path.display().to_string());
        let (code, message) = (code.to_owned(), String::new());
        ServiceFailure { doing, key, endpoint, code, message, refusal }
    }
}

/// Parts of a name: the fingerprint, and the key's name at the service that keeps its private half.
/// `None` if it is no name of such a key.
pub fn parts(name: &str) -> Option<(&str, Option<&str>)> {
    let rest = name.strip_prefix(KIND)?.strip_prefix(':')?;
    Some(rest.split_once(':').map_or((rest, None), |(print, kept)| (print, Some(kept))))
}

/// Why nothing that such a key wrapped opens here.
pub(crate) fn refused(name: &str) -> ServiceFailure {
    let code = "only its public half is here, and no service is asked".to_owned();
    let (endpoint, message) = ("this machine".to_owned(), String::new());
    let (doing, key, refusal) = (OPEN, name.to_owned(), Refusal::OneWay);
    ServiceFailure { doing, key, endpoint, code, message, refusal }
}

impl KeyService for OneWayKey {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn generate(&self, _key: &str, _context: &Context) -> Result<DataKey, ServiceFailure> {
        let made = || {
            let mut plaintext = LockedBytes::zeroed(KEY_BYTES)?;
            crate::random::fill(&mut plaintext)?;
            let wrapped = self.wrap(&plaintext)?;
            Ok(DataKey { key: self.name(), plaintext, wrapped })
        };
        made().map_err(|error: SealError| self.failure(MAKE, &error.to_string(), Refusal::Failing))
    }

    fn decrypt(
        &self,
        key: &str,
        context: &Context,
        wrapped: &[u8],
    ) -> Result<LockedBytes, ServiceFailure> {
        let (fingerprint, kept_as) = parts(key).unwrap_or((key, None));
        match (&self.private, &self.service) {
            _ if fingerprint != self.fingerprint => {
                Err(self.failure(OPEN, &format!("{key} wrapped it"), Refusal::WrongKey))
            }
            (Some(private), _) => self.unwrap(private, wrapped).ok_or_else(|| {
                self.failure(OPEN, "it is not what this key wrapped", Refusal::WrongContext)
            }),
            (None, Some(service)) if kept_as.is_some() => service.decrypt(key, context, wrapped),
            (None, _) => Err(self.failure(OPEN, "only the public half is here", Refusal::OneWay)),
        }
    }
}

impl fmt::Debug for OneWayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let half = if self.private.is_some() { "pair" } else { "public half" };
        write!(f, "OneWayKey({}, {half} in {})", self.name(), self.path.display())
    }
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => SealError::KeyMissing { path: path.to_owned() },
        _ => SealError::KeyIo { path: path.to_owned(), doing: "read it", source },
    };
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize));
    File::open(path)
        .map_err(failed)?
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(failed)?;
    Ok(text)
}

fn check_mode(path: &Path) -> Result<(), SealError> {
    let failed = |source| SealError::KeyIo { path: path.to_owned(), doing: "look at it", source };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
    match mode & 0o077 {
        0 => Ok(()),
        _ => Err(SealError::KeyExposed { path: path.to_owned(), mode }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};

    use super::*;

    const CONTEXT: Context = Context { store: StoreId([1; 16]), epoch: [2; 16] };

    /// A new pair, and its public half, in files of this directory.
    pub(crate) fn halves(dir: &Path) -> (OneWayKey, OneWayKey) {
        let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072).unwrap();
        let file = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            OneWayKey::read(&path).unwrap()
        };
        (file("pair.pem", pair.serialize_pem()), file("public.pem", pair.public_key_pem()))
    }

    #[test]
    fn the_public_half_wraps_and_only_the_private_one_opens() {
        let dir = tempfile::tempdir().unwrap();
        let (pair, public) = halves(dir.path());
        assert_eq!(pair.name(), public.name());
        let made = public.generate("", &CONTEXT).unwrap();
        assert_eq!((made.key.clone(), made.wrapped.len()), (pair.name(), 384));
        let opened = pair.decrypt(&made.key, &CONTEXT, &made.wrapped).unwrap();
        assert_eq!(*opened, *made.plaintext);
        let refused = public.decrypt(&made.key, &CONTEXT, &made.wrapped).unwrap_err();
        assert_eq!(refused.refusal, Refusal::OneWay);
        assert!(refused.to_string().contains("only the public half is here"), "{refused}");
        let other = pair.decrypt("seal:0011223344556677", &CONTEXT, &made.wrapped).unwrap_err();
        assert_eq!(other.refusal, Refusal::WrongKey);
        let mut damaged = made.wrapped;
        damaged[7] ^= 1;
        let damaged = pair.decrypt(&made.key, &CONTEXT, &damaged).unwrap_err();
        assert_eq!(damaged.refusal, Refusal::WrongContext);
    }

    #[test]
    fn names_tell_fingerprint_and_service() {
        let dir = tempfile::tempdir().unwrap();
        let (_, public) = halves(dir.path());
        let arn = "arn:aws:kms:eu-central-1:123456789012:key/k";
        let (bare, kept) = (public.name(), public.kept_as(Some(arn)).name());
        let fingerprint = bare.strip_prefix("seal:").unwrap();
        assert_eq!(fingerprint.len(), 2 * FINGERPRINT_BYTES);
        assert_eq!(parts(&bare), Some((fingerprint, None)));
        assert_eq!(parts(&kept), Some((fingerprint, Some(arn))));
        assert_eq!((parts("kms:x"), parts("sealed:x")), (None, None));
    }

    #[test]
    fn files_that_are_no_such_key_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        assert!(matches!(OneWayKey::read(&path), Err(SealError::KeyMissing { .. })));
        fs::write(&path, "no key").unwrap();
        assert!(matches!(OneWayKey::read(&path), Err(SealError::KeyMalformed { .. })));
        let (pair, _) = halves(dir.path());
        let path = pair.path().to_owned();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(OneWayKey::read(&path), Err(SealError::KeyExposed { .. })));
    }
}
