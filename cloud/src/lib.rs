//! Services of others, behind traits that the crates below declare; the only crate with an AWS SDK.
//!
//! ```text
//!  seal::KeyService ◄── kms ──► AWS KMS
//! ```
//! Programs hand what they find here to the libraries, which never name this crate. Without the
//! feature `aws` there is nothing to find.

#![forbid(unsafe_code)]

#[cfg(feature = "aws")]
pub mod kms;

use std::io;
use std::sync::Arc;

use wirevault_seal::KeyService;

/// The service for keys that this build has; nothing if it has none. `endpoint` replaces the
/// region's own address.
///
/// # Errors
/// The operating system gives no thread or descriptor for it. Nothing is connected yet.
#[cfg(feature = "aws")]
pub fn key_service(endpoint: Option<&str>) -> io::Result<Option<Arc<dyn KeyService>>> {
    Ok(Some(Arc::new(kms::Kms::new(endpoint)?)))
}

/// The service for keys that this build has; nothing if it has none. `endpoint` replaces the
/// region's own address.
///
/// # Errors
/// None in this build.
#[cfg(not(feature = "aws"))]
pub fn key_service(_endpoint: Option<&str>) -> io::Result<Option<Arc<dyn KeyService>>> {
    Ok(None)
}
