//! Messages as applications have them, and the compression of their bodies.

use std::io::{Read, Write};
use std::net::SocketAddr;

use bytes::Bytes;
use lz4_flex::frame::{BlockMode, FrameEncoder, FrameInfo};
use ruzstd::decoding::StreamingDecoder;
use thiserror::Error;

use super::StoredMessage;
use crate::id::OffsetMessageId;
use crate::properties::{self, PropertyError, names};
use crate::types::{
    BornTimestamp, Compression, PhysicalOffset, QueueId, QueueOffset, StoreTimestamp, SysFlag,
};

/// A message to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub body: Bytes,
    /// The user's flag.
    pub flag: i32,
    /// Names and values; `set` keeps the names unique.
    pub properties: Vec<(String, String)>,
}

impl Message {
    pub fn new(topic: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { topic: topic.into(), body: body.into(), ..Self::default() }
    }

    #[must_use]
    pub fn with_tag(self, tag: &str) -> Self {
        self.with(names::TAGS, tag)
    }

    /// Keys must not contain spaces, which separate them.
    #[must_use]
    pub fn with_keys<'k>(self, keys: impl IntoIterator<Item = &'k str>) -> Self {
        let keys = keys.into_iter().collect::<Vec<_>>().join(" ");
        self.with(names::KEYS, &keys)
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    /// Sets a property; an empty value removes it.
    pub fn set(&mut self, name: &str, value: &str) {
        self.properties.retain(|(known, _)| known != name);
        if !value.is_empty() {
            self.properties.push((name.to_owned(), value.to_owned()));
        }
    }

    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    pub fn tag(&self) -> Option<&str> {
        self.property(names::TAGS)
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.property(names::KEYS).unwrap_or_default().split(' ').filter(|key| !key.is_empty())
    }

    /// The properties as the wire has them.
    pub fn encode_properties(&self) -> Result<Vec<u8>, PropertyError> {
        properties::encode(self.properties.iter().map(|(name, value)| (&**name, &**value)))
    }
}

/// A message that was stored, as its consumer has it: on its own, and decompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageExt {
    /// Topic, decompressed body, flag and properties.
    pub message: Message,
    pub queue_id: QueueId,
    pub queue_offset: QueueOffset,
    pub physical_offset: PhysicalOffset,
    pub sys_flag: SysFlag,
    pub born_timestamp: BornTimestamp,
    pub born_host: SocketAddr,
    pub store_timestamp: StoreTimestamp,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    pub prepared_transaction_offset: i64,
    /// Bytes of the record.
    pub store_size: usize,
}

impl MessageExt {
    /// Copies a record and decompresses its body to at most `body_bytes_max` bytes.
    pub fn decode(stored: &StoredMessage<'_>, body_bytes_max: usize) -> Result<Self, DecompressError> {
        let sys_flag = stored.sys_flag();
        let body = match sys_flag.compression().map_err(DecompressError::UnknownType)? {
            None => Bytes::copy_from_slice(stored.body()),
            Some(compression) => decompress(compression, stored.body(), body_bytes_max)?.into(),
        };
        let mut message =
            Message { topic: stored.topic().to_owned(), body, flag: stored.flag(), properties: Vec::new() };
        stored.properties().iter().for_each(|(name, value)| message.set(name, value));
        Ok(Self {
            message,
            queue_id: stored.queue_id(),
            queue_offset: stored.queue_offset(),
            physical_offset: stored.physical_offset(),
            sys_flag,
            born_timestamp: stored.born_timestamp(),
            born_host: stored.born_host(),
            store_timestamp: stored.store_timestamp(),
            store_host: stored.store_host(),
            reconsume_times: stored.reconsume_times(),
            prepared_transaction_offset: stored.prepared_transaction_offset(),
            store_size: stored.as_bytes().len(),
        })
    }

    /// The id made of store host and physical offset.
    pub fn offset_message_id(&self) -> OffsetMessageId {
        OffsetMessageId { store_host: self.store_host, physical_offset: self.physical_offset }
    }

    /// The id that RocketMQ shows: the producer's unique key, or the offset message id if there is none.
    pub fn message_id(&self) -> String {
        match self.message.property(names::UNIQ_KEY) {
            Some(key) => key.to_owned(),
            None => self.offset_message_id().to_string(),
        }
    }
}

/// Why a body could not be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecompressError {
    #[error("unknown compression type {0}")]
    UnknownType(u8),
    #[error("the body is no whole {0:?} stream")]
    Damaged(Compression),
    #[error("the decompressed body exceeds {max} bytes")]
    TooLong { max: usize },
}

/// The window that a Zstandard stream may always ask for, in bytes: what its specification recommends to support.
const ZSTD_WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// Decompresses a body, and stops at `body_bytes_max` bytes, however far the stream would go. The memory this takes is bounded by
/// a small multiple of that: a Zstandard stream whose window exceeds it (and 8 MiB) counts as damaged.
pub fn decompress(
    compression: Compression,
    body: &[u8],
    body_bytes_max: usize,
) -> Result<Vec<u8>, DecompressError> {
    let damaged = DecompressError::Damaged(compression);
    match compression {
        Compression::Zlib => read_bounded(flate2::read::ZlibDecoder::new(body), body_bytes_max, damaged),
        Compression::Lz4 => read_bounded(lz4_flex::frame::FrameDecoder::new(body), body_bytes_max, damaged),
        Compression::Zstd => {
            let window_max = ZSTD_WINDOW_BYTES.max(body_bytes_max as u64);
            let decoder =
                StreamingDecoder::new_with_max_window_size(body, window_max).map_err(|_| damaged)?;
            read_bounded(decoder, body_bytes_max, damaged)
        }
    }
}

fn read_bounded(reader: impl Read, max: usize, damaged: DecompressError) -> Result<Vec<u8>, DecompressError> {
    let mut out = Vec::new();
    reader.take(max as u64 + 1).read_to_end(&mut out).map_err(|_| damaged)?;
    if out.len() > max {
        return Err(DecompressError::TooLong { max });
    }
    Ok(out)
}

/// Compresses a body so that RocketMQ's clients can read it: as one ZLIB stream (RFC 1950), one LZ4 frame of independent
/// blocks (Java's library reads no others), or one Zstandard frame. The level, 0 to 9, is ZLIB's; RocketMQ's default is 5.
pub fn compress(compression: Compression, body: &[u8], level: u32) -> Vec<u8> {
    // Writing to a Vec cannot fail.
    match compression {
        Compression::Zlib => {
            let level = flate2::Compression::new(level.min(9));
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(body).and_then(|()| encoder.finish()).expect("a Vec takes all bytes")
        }
        Compression::Lz4 => {
            let frame = FrameInfo::new().block_mode(BlockMode::Independent);
            let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
            encoder.write_all(body).expect("a Vec takes all bytes");
            encoder.finish().expect("a Vec takes all bytes")
        }
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(body, ruzstd::encoding::CompressionLevel::Fastest)
        }
    }
}
