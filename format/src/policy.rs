//! Names of policies, as gaps carry them.

use std::fmt;

/// Name of the policy that left packets out. Short, because it stands in every gap that tells of
/// them, so that a store explains its holes without the configuration of its time.
///
/// Layout: UTF-8 without zeros, then zeros up to [`PolicyName::BYTES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName([u8; Self::BYTES_MAX]);

impl PolicyName {
    /// Bytes of a name at most: what was free in a gap.
    pub const BYTES_MAX: usize = 12;

    /// The name; `None` if it is empty, too long, or has a zero.
    pub fn new(name: &str) -> Option<Self> {
        let fits = !name.is_empty() && name.len() <= Self::BYTES_MAX && !name.contains('\0');
        let mut bytes = [0; Self::BYTES_MAX];
        fits.then(|| bytes[..name.len()].copy_from_slice(name.as_bytes()))?;
        Some(Self(bytes))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(Self::BYTES_MAX);
        std::str::from_utf8(&self.0[..end]).expect("only UTF-8 becomes a name")
    }

    pub(crate) fn bytes(name: Option<Self>) -> [u8; Self::BYTES_MAX] {
        name.map_or([0; Self::BYTES_MAX], |name| name.0)
    }

    /// What [`PolicyName::bytes`] gave; `Err` if it cannot have.
    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES_MAX]) -> Result<Option<Self>, ()> {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(Self::BYTES_MAX);
        let padded = bytes[end..].iter().all(|byte| *byte == 0);
        match std::str::from_utf8(&bytes[..end]) {
            Ok(_) if padded => Ok((end > 0).then_some(Self(bytes))),
            _ => Err(()),
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyName({})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_nothing_else_does() {
        for name in ["a", "twelve-bytes", "säge"] {
            let kept = PolicyName::new(name).unwrap();
            assert_eq!(kept.as_str(), name);
            assert_eq!(PolicyName::from_bytes(PolicyName::bytes(Some(kept))), Ok(Some(kept)));
        }
        assert_eq!(PolicyName::from_bytes(PolicyName::bytes(None)), Ok(None));
        for none in ["", "thirteen-byte", "a\0b"] {
            assert_eq!(PolicyName::new(none), None);
        }
        let with = |place: usize, byte: u8| {
            let mut bytes = PolicyName::bytes(PolicyName::new("abc"));
            bytes[place] = byte;
            PolicyName::from_bytes(bytes)
        };
        assert_eq!((with(5, 1), with(1, 0xff), with(0, 0)), (Err(()), Err(()), Err(())));
    }
}
