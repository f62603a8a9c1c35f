//! Random bytes and identifiers, from the cipher library's generator (seeded by the kernel).

use wirevault_format::{LifeId, RunId, StoreId, VolumeId};

use crate::SealError;

/// Fills `bytes` with random bytes fit for keys.
///
/// # Errors
/// [`SealError::Cipher`] when the generator fails; nothing may then be sealed.
pub fn fill(bytes: &mut [u8]) -> Result<(), SealError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| SealError::Cipher { doing: "draw random bytes" })
}

/// A new life id.
///
/// # Errors
/// As [`fill`].
pub fn life_id() -> Result<LifeId, SealError> {
    array().map(LifeId)
}

/// A new store id.
///
/// # Errors
/// As [`fill`].
pub fn store_id() -> Result<StoreId, SealError> {
    array().map(StoreId)
}

/// A new volume id.
///
/// # Errors
/// As [`fill`].
pub fn volume_id() -> Result<VolumeId, SealError> {
    array().map(VolumeId)
}

/// A new run id.
///
/// # Errors
/// As [`fill`].
pub fn run_id() -> Result<RunId, SealError> {
    array().map(|bytes| RunId(u64::from_le_bytes(bytes)))
}

/// `N` random bytes that are not secret.
pub(crate) fn array<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn identifiers_do_not_repeat() {
        let lives: HashSet<_> = (0..1000).map(|_| life_id().unwrap()).collect();
        assert_eq!(lives.len(), 1000);
        assert_ne!(run_id().unwrap(), run_id().unwrap());
        assert_ne!(store_id().unwrap().0, volume_id().unwrap().0);
    }
}
