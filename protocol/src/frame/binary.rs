//! The binary ("ROCKETMQ") header codec.
//!
//! ```text
//! code i16 | language u8 | version i16 | opaque i32 | flag i32 | remark (i32 length) | ext (i32 bytes)
//! ext entry: key (i16 length) | value (i32 length)
//! ```
//!
//! An empty value stays empty here; Java turns it into null.

use std::borrow::Cow;

use super::{Codec, Ext, Fields, FrameError, Head, Header, Language};
use crate::types::Opaque;

fn take<'a>(bytes: &mut &'a [u8], len: usize, field: &'static str) -> Result<&'a [u8], FrameError> {
    let (taken, rest) = bytes.split_at_checked(len).ok_or(FrameError::Binary { field })?;
    *bytes = rest;
    Ok(taken)
}

fn take_array<const N: usize>(bytes: &mut &[u8], field: &'static str) -> Result<[u8; N], FrameError> {
    let (taken, rest) = bytes.split_first_chunk::<N>().ok_or(FrameError::Binary { field })?;
    *bytes = rest;
    Ok(*taken)
}

fn take_i32(bytes: &mut &[u8], field: &'static str) -> Result<i32, FrameError> {
    take_array(bytes, field).map(i32::from_be_bytes)
}

fn take_i16(bytes: &mut &[u8], field: &'static str) -> Result<i16, FrameError> {
    take_array(bytes, field).map(i16::from_be_bytes)
}

fn take_bytes<'a>(bytes: &mut &'a [u8], len: i32, field: &'static str) -> Result<&'a [u8], FrameError> {
    let len = usize::try_from(len).map_err(|_| FrameError::Binary { field })?;
    take(bytes, len, field)
}

/// The key and the value of the entry that `entries` begin with, and what is behind it; `None` if it is not whole.
#[inline]
pub(super) fn split_entry(entries: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (key_len, rest) = entries.split_first_chunk()?;
    let (key, rest) = rest.split_at_checked(usize::try_from(i16::from_be_bytes(*key_len)).ok()?)?;
    let (value_len, rest) = rest.split_first_chunk()?;
    let (value, rest) = rest.split_at_checked(usize::try_from(i32::from_be_bytes(*value_len)).ok()?)?;
    Some((key, value, rest))
}

/// What is wrong with an entry that is not whole.
#[cold]
fn broken_entry(mut entry: &[u8]) -> FrameError {
    fn read(entry: &mut &[u8]) -> Result<(), FrameError> {
        let key_len = take_i16(entry, "key length")?;
        take_bytes(entry, i32::from(key_len), "key")?;
        let value_len = take_i32(entry, "value length")?;
        take_bytes(entry, value_len, "value").map(drop)
    }
    read(&mut entry).err().unwrap_or(FrameError::Binary { field: "ext" })
}

pub(super) fn decode_header(mut bytes: &[u8]) -> Result<Header<'_>, FrameError> {
    let bytes = &mut bytes;
    let code = take_i16(bytes, "code")?;
    let [language] = take_array(bytes, "language")?;
    let version = take_i16(bytes, "version")?;
    let opaque = take_i32(bytes, "opaque")?;
    let flag = take_i32(bytes, "flag")?;
    let remark_len = take_i32(bytes, "remark length")?;
    let remark = take_bytes(bytes, remark_len, "remark")?;
    let remark = std::str::from_utf8(remark).map_err(|_| FrameError::NotUtf8)?;
    let ext_len = take_i32(bytes, "ext length")?;
    let ext_len = usize::try_from(ext_len).map_err(|_| FrameError::Binary { field: "ext length" })?;
    let ext = take(bytes, ext_len, "ext")?;
    if !bytes.is_empty() {
        return Err(FrameError::Binary { field: "what follows ext" });
    }
    let mut entries = ext;
    while !entries.is_empty() {
        let (_, _, rest) = split_entry(entries).ok_or_else(|| broken_entry(entries))?;
        entries = rest;
    }
    Ok(Header {
        codec: Codec::RocketMq,
        code: i32::from(code),
        language: Language::from_byte(language),
        version: i32::from(version),
        opaque: Opaque(opaque),
        flag,
        remark: (!remark.is_empty()).then_some(Cow::Borrowed(remark)),
        ext: Ext::binary(ext),
    })
}

/// `head.code` and `head.version` fit 16 bits. A field whose key is longer than 32767 bytes cannot be said in this
/// codec and is left out.
pub(super) fn encode_header(out: &mut Vec<u8>, head: &Head<'_>, ext: &dyn Fields) {
    out.extend_from_slice(&(head.code as i16).to_be_bytes());
    out.push(head.language as u8);
    out.extend_from_slice(&(head.version as i16).to_be_bytes());
    out.extend_from_slice(&head.opaque.0.to_be_bytes());
    out.extend_from_slice(&head.flag.to_be_bytes());
    put_str(out, head.remark.unwrap_or_default());
    let ext_at = out.len();
    out.extend_from_slice(&[0; 4]);
    ext.for_each(&mut |key, value| {
        let Ok(key_len) = i16::try_from(key.len()) else { return };
        out.extend_from_slice(&key_len.to_be_bytes());
        out.extend_from_slice(key.as_bytes());
        value.with_text(|text| put_str(out, text));
    });
    let ext_len = (out.len() - ext_at - 4) as u32; // `encode` asserts that the header is below 16 MiB
    out[ext_at..ext_at + 4].copy_from_slice(&ext_len.to_be_bytes());
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_be_bytes()); // below 16 MiB, as above
    out.extend_from_slice(text.as_bytes());
}
