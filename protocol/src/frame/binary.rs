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

/// Takes one entry of the ext, which should be UTF-8; `None` at its end.
pub(super) fn next_entry<'a>(entries: &mut &'a [u8]) -> Result<Option<(&'a [u8], &'a [u8])>, FrameError> {
    if entries.is_empty() {
        return Ok(None);
    }
    let key_len = take_i16(entries, "key length")?;
    let key = take_bytes(entries, i32::from(key_len), "key")?;
    let value_len = take_i32(entries, "value length")?;
    Ok(Some((key, take_bytes(entries, value_len, "value")?)))
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
    while next_entry(&mut entries)?.is_some() {}
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
