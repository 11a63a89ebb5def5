//! The owned form of a frame, for clients and tools.

use bytes::Bytes;

use super::{Codec, Ext, FLAG_RESPONSE, Fields, Frame, FrameError, Head, Header, Language, VERSION_REPORTED};
use crate::types::Opaque;

/// A request or response that owns what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemotingCommand {
    pub code: i32,
    pub language: Language,
    pub version: i32,
    pub opaque: Opaque,
    pub flag: i32,
    pub remark: Option<String>,
    pub ext: Vec<(String, String)>,
    /// Empty means "no body".
    pub body: Bytes,
}

impl RemotingCommand {
    /// A request. Its opaque is 0 until the sender chooses one.
    pub fn request(code: impl Into<i32>, ext: &dyn Fields, body: impl Into<Bytes>) -> Self {
        Self {
            code: code.into(),
            language: Language::Rust,
            version: VERSION_REPORTED,
            opaque: Opaque(0),
            flag: 0,
            remark: None,
            ext: ext.to_pairs(),
            body: body.into(),
        }
    }

    /// The response to the request with this opaque.
    pub fn response(
        code: impl Into<i32>,
        opaque: Opaque,
        remark: Option<String>,
        ext: &dyn Fields,
        body: impl Into<Bytes>,
    ) -> Self {
        Self { opaque, remark, flag: FLAG_RESPONSE, ..Self::request(code, ext, body) }
    }

    /// Reads exactly one frame; the body is a slice of `bytes`, not a copy.
    pub fn decode(bytes: &Bytes) -> Result<Self, FrameError> {
        let frame = Frame::decode(bytes)?;
        let header = frame.header;
        Ok(Self {
            code: header.code,
            language: header.language,
            version: header.version,
            opaque: header.opaque,
            flag: header.flag,
            remark: header.remark.map(|remark| remark.into_owned()),
            ext: header.ext.iter().map(|(key, value)| (key.into_owned(), value.into_owned())).collect(),
            body: bytes.slice(bytes.len() - frame.body.len()..),
        })
    }

    /// Appends the whole frame, body included.
    ///
    /// # Panics
    /// As [`super::encode`].
    pub fn encode(&self, codec: Codec, out: &mut Vec<u8>) {
        super::encode(out, &self.head(codec), &self.ext, self.body.len());
        out.extend_from_slice(&self.body);
    }

    /// What this command says about itself, to be sent in this codec.
    pub fn head(&self, codec: Codec) -> Head<'_> {
        Head {
            codec,
            code: self.code,
            language: self.language,
            version: self.version,
            opaque: self.opaque,
            flag: self.flag,
            remark: self.remark.as_deref(),
        }
    }

    /// A view like that of a received frame, so that typed headers decode from it.
    pub fn header(&self) -> Header<'_> {
        Header {
            codec: Codec::Json,
            code: self.code,
            language: self.language,
            version: self.version,
            opaque: self.opaque,
            flag: self.flag,
            remark: self.remark.as_deref().map(Into::into),
            ext: Ext::pairs(&self.ext),
        }
    }

    /// The value of a field; the last one if a key occurs twice.
    pub fn ext(&self, key: &str) -> Option<&str> {
        self.ext.iter().rfind(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    pub fn is_response(&self) -> bool {
        self.flag & FLAG_RESPONSE != 0
    }

    pub fn is_oneway(&self) -> bool {
        self.flag & super::FLAG_ONEWAY != 0
    }
}
