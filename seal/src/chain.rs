//! One hash over all chunks of a segment: what the footer holds and what goes into the audit log.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};

/// SHA-256 over what identifies each chunk, in order: the GCM tag (16 bytes) of a sealed chunk, the
/// CRC-32C of the body (4 bytes, as it stands in the tail) of a plain one.
///
/// A tag authenticates its chunk, so under one key the hash stands for every byte of every chunk
/// and for their order.
#[derive(Clone)]
pub struct Chain {
    context: Context,
}

impl Chain {
    /// A chain of no chunk.
    pub fn new() -> Self {
        Self { context: Context::new(&SHA256) }
    }

    /// Adds the next chunk. Allocates nothing.
    pub fn add(&mut self, link: &[u8]) {
        self.context.update(link);
    }

    /// The hash over everything that was added.
    pub fn finish(self) -> [u8; 32] {
        let mut hash = [0; 32];
        // SHA-256 gives 32 bytes: the lengths agree.
        hash.copy_from_slice(self.context.finish().as_ref());
        hash
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chain")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected value: `printf abc | sha256sum` (FIPS 180-4, example B.1).
    #[test]
    fn it_is_sha256_over_the_links() {
        let mut chain = Chain::new();
        chain.add(b"a");
        chain.add(b"bc");
        let hex: String = chain.finish().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
