//! Keeping what different cores write off each other's cache lines.

use std::ops::{Deref, DerefMut};

/// Bytes that nothing else may share: two lines, because processors fetch the neighbour as well.
pub const LINES_BYTES: usize = 128;

/// A value on cache lines of its own. One core may write it as often as it likes without taking
/// other values away from the cores that read or write those.
///
/// Layout: aligned to [`LINES_BYTES`], and a multiple of it in size.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct OwnLines<T>(pub T);

const _: () = assert!(
    align_of::<OwnLines<u8>>() == LINES_BYTES && size_of::<OwnLines<u8>>() == LINES_BYTES,
    "the number in `repr` is the constant"
);

impl<T> Deref for OwnLines<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for OwnLines<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
