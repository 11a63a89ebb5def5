//! The frame around every request and response, with its two header codecs.
//!
//! ```text
//! totalLength i32 | type u8, headerLength u24 | header | body
//! ```
//!
//!   frame_len      how many bytes the next frame takes, from its first eight
//!   Frame::decode  bytes → borrowed view; strings are copied only if JSON escaped them
//!   encode         head and fields → bytes, appended to a buffer that the caller keeps
//!
//! The JSON header is read and written by hand (`json`): it is on the path of every message.

mod binary;
mod command;
mod ext;
pub(crate) mod json;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use thiserror::Error;

use crate::types::Opaque;

pub use command::RemotingCommand;
pub use ext::{Both, Ext, ExtIter, Fields, Text, Value};

/// The largest `totalLength` a RocketMQ peer accepts by default, in bytes.
pub const FRAME_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// The largest header accepted, in bytes: 32767 bytes of properties of which JSON escapes each as `\u00XX`, and
/// about 64 KiB for all the rest.
pub const HEADER_BYTES_MAX: u32 = 256 * 1024;
/// What this implementation reports as its `MQVersion` (V5_3_3).
pub const VERSION_REPORTED: i32 = 479;
/// Bit of `flag` that marks a response.
pub const FLAG_RESPONSE: i32 = 1;
/// Bit of `flag` that says: do not answer.
pub const FLAG_ONEWAY: i32 = 2;

/// Bytes before the header: totalLength and the header word.
const PREFIX_BYTES: usize = 8;

/// How the header of a frame is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Json = 0,
    RocketMq = 1,
}

/// The language of the peer, informational.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Java = 0,
    Cpp = 1,
    DotNet = 2,
    Python = 3,
    Delphi = 4,
    Erlang = 5,
    Ruby = 6,
    Other = 7,
    Http = 8,
    Go = 9,
    Php = 10,
    Oms = 11,
    Rust = 12,
    NodeJs = 13,
}

const LANGUAGES: [(Language, &str); 14] = [
    (Language::Java, "JAVA"),
    (Language::Cpp, "CPP"),
    (Language::DotNet, "DOTNET"),
    (Language::Python, "PYTHON"),
    (Language::Delphi, "DELPHI"),
    (Language::Erlang, "ERLANG"),
    (Language::Ruby, "RUBY"),
    (Language::Other, "OTHER"),
    (Language::Http, "HTTP"),
    (Language::Go, "GO"),
    (Language::Php, "PHP"),
    (Language::Oms, "OMS"),
    (Language::Rust, "RUST"),
    (Language::NodeJs, "NODE_JS"),
];

impl Language {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        LANGUAGES[self as usize].1
    }

    /// The language of a name; `Other` if it is unknown.
    pub fn from_name(name: &str) -> Self {
        LANGUAGES.iter().find(|(_, known)| *known == name).map_or(Self::Other, |(language, _)| *language)
    }

    /// The language of a byte of the binary codec; `Other` if it is unknown.
    pub fn from_byte(byte: u8) -> Self {
        LANGUAGES.get(usize::from(byte)).map_or(Self::Other, |(language, _)| *language)
    }
}

/// Why bytes are not a frame. The connection they came from cannot be used further.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("frame length {length} is outside 4..={max}")]
    Length { length: i32, max: u32 },
    #[error("{got} bytes are not one frame of {expected} bytes")]
    NotOneFrame { got: usize, expected: usize },
    #[error("header length {length} exceeds {max}")]
    HeaderLength { length: u32, max: u32 },
    #[error("unknown header codec {0}")]
    UnknownCodec(u8),
    #[error("header is not UTF-8")]
    NotUtf8,
    #[error("JSON header, byte {at}: {problem}")]
    Json { at: usize, problem: &'static str },
    #[error("binary header: {field} does not fit")]
    Binary { field: &'static str },
}

/// Length of the frame that `buf` starts with, including its own four bytes of length; `None` until the eight bytes
/// are there that tell. The frame may be longer than `buf`. Both lengths and the codec have been checked.
pub fn frame_len(buf: &[u8], frame_bytes_max: u32) -> Result<Option<usize>, FrameError> {
    let Some((total, rest)) = buf.split_first_chunk::<4>() else { return Ok(None) };
    let length = i32::from_be_bytes(*total);
    let total = match u32::try_from(length) {
        Ok(total) if (4..=frame_bytes_max).contains(&total) => total,
        _ => return Err(FrameError::Length { length, max: frame_bytes_max }),
    };
    let Some(word) = rest.first_chunk::<4>() else { return Ok(None) };
    header_word(*word, total)?;
    Ok(Some(total as usize + 4))
}

fn header_word(word: [u8; 4], total: u32) -> Result<(Codec, usize), FrameError> {
    let codec = match word[0] {
        0 => Codec::Json,
        1 => Codec::RocketMq,
        other => return Err(FrameError::UnknownCodec(other)),
    };
    let length = u32::from_be_bytes(word) & 0x00FF_FFFF;
    let max = HEADER_BYTES_MAX.min(total - 4);
    if length > max {
        return Err(FrameError::HeaderLength { length, max });
    }
    Ok((codec, length as usize))
}

/// One frame, borrowed from the bytes it came in.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    pub header: Header<'a>,
    /// Empty means "no body": the protocol cannot tell the two apart.
    pub body: &'a [u8],
    /// The whole frame.
    pub bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads exactly one frame, prefix included. Nothing is allocated but a remark that JSON escaped.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let not_one = |expected| FrameError::NotOneFrame { got: bytes.len(), expected };
        let expected = frame_len(bytes, i32::MAX as u32)?.ok_or(not_one(PREFIX_BYTES))?;
        if bytes.len() != expected {
            return Err(not_one(expected));
        }
        let (prefix, rest) = bytes.split_at(PREFIX_BYTES);
        let word = [prefix[4], prefix[5], prefix[6], prefix[7]];
        let (codec, header_len) = header_word(word, (expected - 4) as u32)?;
        let (header, body) = rest.split_at(header_len);
        let header = match codec {
            Codec::Json => json::decode_header(header)?,
            Codec::RocketMq => binary::decode_header(header)?,
        };
        Ok(Self { header, body, bytes })
    }
}

/// What a frame says about itself.
#[derive(Clone, Debug)]
pub struct Header<'a> {
    pub codec: Codec,
    /// A request code, or a response code if `is_response`.
    pub code: i32,
    pub language: Language,
    pub version: i32,
    pub opaque: Opaque,
    pub flag: i32,
    pub remark: Option<Cow<'a, str>>,
    pub ext: Ext<'a>,
}

impl Header<'_> {
    pub fn is_response(&self) -> bool {
        self.flag & FLAG_RESPONSE != 0
    }

    /// Whether the sender wants no answer, not even an error.
    pub fn is_oneway(&self) -> bool {
        self.flag & FLAG_ONEWAY != 0
    }

    /// The head of the response to this request: its opaque, in its codec.
    pub fn reply<'r>(&self, code: impl Into<i32>, remark: Option<&'r str>) -> Head<'r> {
        Head {
            codec: self.codec,
            code: code.into(),
            language: Language::Rust,
            version: VERSION_REPORTED,
            opaque: self.opaque,
            flag: FLAG_RESPONSE,
            remark,
        }
    }
}

/// What the sender of a frame says besides the fields and the body.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The codec asked for. JSON is taken instead if `code` or `version` does not fit the binary codec's 16 bits.
    pub codec: Codec,
    pub code: i32,
    pub language: Language,
    pub version: i32,
    pub opaque: Opaque,
    pub flag: i32,
    pub remark: Option<&'a str>,
}

impl Head<'_> {
    /// The head of a request that wants an answer.
    pub fn request(codec: Codec, code: impl Into<i32>, opaque: Opaque) -> Self {
        Self {
            codec,
            code: code.into(),
            language: Language::Rust,
            version: VERSION_REPORTED,
            opaque,
            flag: 0,
            remark: None,
        }
    }

    /// The same head, asking for no answer.
    #[must_use]
    pub fn oneway(self) -> Self {
        Self { flag: self.flag | FLAG_ONEWAY, ..self }
    }
}

/// Appends prefix and header of a frame. The `body_len` bytes of the body follow, from the caller or from elsewhere.
///
/// # Panics
/// If the header takes 16 MiB or the frame 2 GiB: senders bound what they put into either.
pub fn encode(out: &mut Vec<u8>, head: &Head<'_>, ext: &dyn Fields, body_len: usize) {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    let fits = i16::try_from(head.code).is_ok() && i16::try_from(head.version).is_ok();
    let codec = if fits { head.codec } else { Codec::Json };
    match codec {
        Codec::Json => json::encode_header(out, head, ext),
        Codec::RocketMq => binary::encode_header(out, head, ext),
    }
    let header_len = out.len() - start - PREFIX_BYTES;
    assert!(header_len <= 0x00FF_FFFF, "a header of {header_len} bytes");
    let total = i32::try_from(4 + header_len + body_len).expect("a frame below 2 GiB");
    out[start..start + 4].copy_from_slice(&total.to_be_bytes());
    let word = (codec as u32) << 24 | header_len as u32; // asserted above
    out[start + 4..start + 8].copy_from_slice(&word.to_be_bytes());
}
