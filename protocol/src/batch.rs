//! The body of a batch send: entries one behind the other, without a count.
//!
//! ```text
//! size i32 (of the whole entry) | magic i32 | crc i32 | flag i32 | body (i32 length) | properties (i16 length)
//! ```
//!
//! Magic and CRC are written as 0 and not read.

use thiserror::Error;

use crate::properties::PROPERTIES_BYTES_MAX;

/// Bytes of an entry besides its body and properties.
pub const ENTRY_OVERHEAD: usize = 4 + 4 + 4 + 4 + 4 + 2;

/// One message of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchEntry<'a> {
    /// The user's flag.
    pub flag: i32,
    pub body: &'a [u8],
    /// Encoded properties, stored exactly as they are.
    pub properties: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("batch entry at byte {at}: {field} does not fit")]
pub struct BatchError {
    pub at: usize,
    pub field: &'static str,
}

impl BatchEntry<'_> {
    pub fn encoded_len(&self) -> usize {
        ENTRY_OVERHEAD + self.body.len() + self.properties.len()
    }

    /// Appends the entry.
    ///
    /// # Errors
    /// If the properties exceed 32767 bytes, or the entry 2 GiB; then nothing is appended.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), BatchError> {
        let too_long = |field| BatchError { at: out.len(), field };
        let size = i32::try_from(self.encoded_len()).map_err(|_| too_long("body"))?;
        if self.properties.len() > PROPERTIES_BYTES_MAX {
            return Err(too_long("properties"));
        }
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&self.flag.to_be_bytes());
        out.extend_from_slice(&(self.body.len() as i32).to_be_bytes()); // less than `size`
        out.extend_from_slice(self.body);
        out.extend_from_slice(&(self.properties.len() as i16).to_be_bytes()); // at most i16::MAX
        out.extend_from_slice(self.properties);
        Ok(())
    }
}

/// Iterator over the entries of a batch. After an error it ends.
#[derive(Clone, Debug)]
pub struct BatchEntries<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> BatchEntries<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn entry(&mut self) -> Result<BatchEntry<'a>, &'static str> {
        let rest = &self.bytes[self.at..];
        let size = rest.first_chunk().map(|size| i32::from_be_bytes(*size)).ok_or("size")?;
        let entry = usize::try_from(size).ok().and_then(|size| rest.get(..size)).ok_or("size")?;
        let (head, rest) = entry.split_first_chunk::<20>().ok_or("head")?;
        let flag = i32::from_be_bytes([head[12], head[13], head[14], head[15]]);
        let body_len = i32::from_be_bytes([head[16], head[17], head[18], head[19]]);
        let (body, rest) =
            usize::try_from(body_len).ok().and_then(|len| rest.split_at_checked(len)).ok_or("body")?;
        let (properties_len, properties) = rest.split_first_chunk().ok_or("properties length")?;
        if i16::from_be_bytes(*properties_len) as isize != properties.len() as isize {
            return Err("properties");
        }
        self.at += entry.len();
        Ok(BatchEntry { flag, body, properties })
    }
}

impl<'a> Iterator for BatchEntries<'a> {
    type Item = Result<BatchEntry<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.bytes.len() {
            return None;
        }
        let at = self.at;
        Some(self.entry().map_err(|field| {
            self.at = self.bytes.len();
            BatchError { at, field }
        }))
    }
}

#[cfg(test)]
mod tests;
