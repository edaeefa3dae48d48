//! Takes fields from the front of a value.

use super::DecodeError;

/// The rest of a value.
pub(super) struct Take<'a>(pub(super) &'a [u8]);

impl<'a> Take<'a> {
    pub(super) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let (array, rest) = self
            .0
            .split_first_chunk()
            .ok_or(DecodeError::Short { field })?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// The next `len` bytes as text of at most `max` bytes.
    pub(super) fn text(
        &mut self,
        field: &'static str,
        len: u64,
        max: usize,
    ) -> Result<&'a str, DecodeError> {
        let too_long = DecodeError::FieldLength { field, len };
        let len = usize::try_from(len)
            .ok()
            .filter(|len| *len <= max)
            .ok_or(too_long)?;
        let (text, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(DecodeError::Short { field })?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| DecodeError::Utf8 { field })
    }

    pub(super) fn end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Excess)
        }
    }
}
