//! Numbers in index sections: LEB128, and a cursor that trusts no length.

use crate::IndexError;

#[inline]
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_ascending(out: &mut Vec<u8>, numbers: &[u32]) {
    put(out, numbers.len() as u64);
    let mut before = 0;
    for number in numbers {
        put(out, u64::from(number - before));
        before = *number;
    }
}

pub(crate) fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads a section front to back; every length is checked against what is left.
pub(crate) struct Cursor<'a> {
    pub(crate) section: &'static str,
    pub(crate) rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(section: &'static str, rest: &'a [u8]) -> Self {
        Self { section, rest }
    }

    pub(crate) fn wrong(&self, what: impl ToString) -> IndexError {
        IndexError::Section { section: self.section, what: what.to_string() }
    }

    #[inline]
    pub(crate) fn take(&mut self, bytes: usize) -> Result<&'a [u8], IndexError> {
        let Some((taken, rest)) = self.rest.split_at_checked(bytes) else {
            return Err(self.wrong(format!("{bytes} bytes are wanted, {} left", self.rest.len())));
        };
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], IndexError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    #[inline]
    pub(crate) fn number(&mut self) -> Result<u64, IndexError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.wrong("a number has more than 64 bits"))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, IndexError> {
        let number = self.number()?;
        u32::try_from(number).map_err(|_| self.wrong(format!("{number} is above 32 bits")))
    }

    /// A count of things that take at least `bytes_each`: no more than the bytes left can hold.
    pub(crate) fn count(&mut self, bytes_each: usize) -> Result<usize, IndexError> {
        let count = self.number()?;
        let most = self.rest.len() / bytes_each;
        match usize::try_from(count).ok().filter(|count| *count <= most) {
            Some(count) => Ok(count),
            None => Err(self.wrong(format!("{count} things in {} bytes", self.rest.len()))),
        }
    }

    /// Ascending numbers below `limit`.
    pub(crate) fn ascending(&mut self, limit: usize) -> Result<Vec<u32>, IndexError> {
        let mut numbers = Vec::new();
        self.ascending_into(limit, &mut numbers)?;
        Ok(numbers)
    }

    /// Appends ascending numbers below `limit`.
    pub(crate) fn ascending_into(
        &mut self,
        limit: usize,
        numbers: &mut Vec<u32>,
    ) -> Result<(), IndexError> {
        let count = self.count(1)?;
        let mut value = 0u64;
        for n in 0..count {
            let step = self.number()?;
            value = value.saturating_add(step);
            if (n > 0 && step == 0) || value >= limit as u64 {
                return Err(
                    self.wrong(format!("number {value} is out of order or not below {limit}"))
                );
            }
            numbers.push(value as u32);
        }
        Ok(())
    }

    pub(crate) fn end(&self) -> Result<(), IndexError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(self.wrong(format!("{bytes} bytes too many"))),
        }
    }
}
