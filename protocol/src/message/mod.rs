//! The stored message: one record of the commit log, and of the body of a pull response.
//!
//! ```text
//! totalSize i32 | magic i32 | bodyCRC i32 | queueId i32 | flag i32 | queueOffset i64 | physicalOffset i64
//! | sysFlag i32 | bornTimestamp i64 | bornHost 8 or 20 | storeTimestamp i64 | storeHost 8 or 20
//! | reconsumeTimes i32 | preparedTransactionOffset i64 | body (i32 length) | topic (u8, in V2 i16 length)
//! | properties (i16 length)
//! ```
//!
//!   MessageParts → check → encode_into     one pass, in place
//!   StoredMessage::parse                   borrowed view, every length checked
//!   Message, MessageExt                    what applications send and receive

mod encode;
mod owned;
mod stored;
#[cfg(test)]
mod tests;

pub use encode::{Limits, MessageIllegal, MessageParts, encode_into, encoded_len};
pub use owned::{DecompressError, Message, MessageExt, compress, decompress};
pub use stored::{MessageError, Messages, StoredMessage, messages};

/// Magic of a record whose topic has a length of one byte.
pub const MESSAGE_MAGIC_V1: i32 = 0xDAA3_20A7_u32 as i32;
/// Magic of a record whose topic has a length of two bytes; only for topics longer than 127 bytes.
pub const MESSAGE_MAGIC_V2: i32 = 0xDAA3_20AB_u32 as i32;
/// Magic of the filler at the end of a RocketMQ log file; never sent to clients.
pub const BLANK_MAGIC: i32 = 0xCBD4_3194_u32 as i32;
/// The longest topic that a V1 record can hold, in bytes.
pub const TOPIC_BYTES_MAX_V1: usize = 127;
/// The largest body that brokers and clients accept by default, in bytes.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// CRC-32 (IEEE) without its sign bit, as the record and REGISTER_BROKER have it.
pub fn body_crc(body: &[u8]) -> i32 {
    (crc32fast::hash(body) & 0x7FFF_FFFF) as i32
}
