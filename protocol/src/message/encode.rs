//! Writing a record, in one pass and in place.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::{BODY_BYTES_MAX, MESSAGE_MAGIC_V1, MESSAGE_MAGIC_V2, TOPIC_BYTES_MAX_V1, body_crc};
use crate::properties::PROPERTIES_BYTES_MAX;
use crate::types::{BornTimestamp, PhysicalOffset, QueueId, QueueOffset, StoreTimestamp, SysFlag};

/// What a message consists of before the log has given it a place.
#[derive(Clone, Copy, Debug)]
pub struct MessageParts<'a> {
    pub topic: &'a str,
    pub queue_id: QueueId,
    /// The user's flag.
    pub flag: i32,
    /// Its two bits about host addresses are ignored and written as the hosts require.
    pub sys_flag: SysFlag,
    pub born_timestamp: BornTimestamp,
    pub born_host: SocketAddr,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    pub prepared_transaction_offset: i64,
    /// As it is stored: compressed if `sys_flag` says so.
    pub body: &'a [u8],
    /// Encoded properties, written one behind the other; see [`crate::properties::separator`].
    pub properties: &'a [&'a [u8]],
}

/// What a broker accepts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub body_bytes_max: usize,
    pub topic_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body_bytes_max: BODY_BYTES_MAX, topic_bytes_max: 255 }
    }
}

/// Why a message cannot be stored (MESSAGE_ILLEGAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageIllegal {
    #[error("the message body is empty")]
    BodyEmpty,
    #[error("the message body of {len} bytes exceeds the limit of {max} bytes")]
    BodyTooLong { len: usize, max: usize },
    #[error("the message properties of {len} bytes exceed the limit of {max} bytes")]
    PropertiesTooLong { len: usize, max: usize },
    #[error("the topic of {len} bytes exceeds the limit of {max} bytes")]
    TopicTooLong { len: usize, max: usize },
    #[error("the topic is empty")]
    TopicEmpty,
}

impl MessageParts<'_> {
    fn properties_len(&self) -> usize {
        self.properties.iter().map(|part| part.len()).sum()
    }

    /// Checks what `encode_into` takes for granted, and the limits of the broker.
    pub fn check(&self, limits: &Limits) -> Result<(), MessageIllegal> {
        let within = |len, max| if len > max { Some((len, max)) } else { None };
        if self.body.is_empty() {
            return Err(MessageIllegal::BodyEmpty);
        }
        if self.topic.is_empty() {
            return Err(MessageIllegal::TopicEmpty);
        }
        if let Some((len, max)) = within(self.body.len(), limits.body_bytes_max.min(1 << 30)) {
            return Err(MessageIllegal::BodyTooLong { len, max });
        }
        if let Some((len, max)) = within(self.topic.len(), limits.topic_bytes_max.min(i16::MAX as usize)) {
            return Err(MessageIllegal::TopicTooLong { len, max });
        }
        if let Some((len, max)) = within(self.properties_len(), PROPERTIES_BYTES_MAX) {
            return Err(MessageIllegal::PropertiesTooLong { len, max });
        }
        Ok(())
    }
}

fn host_len(host: &SocketAddr) -> usize {
    if host.ip().to_canonical().is_ipv4() { 8 } else { 20 }
}

/// Bytes that the record of a message takes.
pub fn encoded_len(parts: &MessageParts<'_>) -> usize {
    let topic_len_bytes = if parts.topic.len() > TOPIC_BYTES_MAX_V1 { 2 } else { 1 };
    // The fixed fields, with each host counted by itself.
    let fixed = 4 + 4 + 4 + 4 + 4 + 8 + 8 + 4 + 8 + 8 + 4 + 8 + 4 + 2;
    fixed
        + host_len(&parts.born_host)
        + host_len(&parts.store_host)
        + parts.body.len()
        + topic_len_bytes
        + parts.topic.len()
        + parts.properties_len()
}

/// Bytes in front of the body, with hosts of IPv6.
const FIXED_BYTES_MAX: usize = 112;

/// The rest of a buffer that is being filled.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let (head, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        self.0 = rest;
    }

    fn put_i32(&mut self, number: i32) {
        self.put(&number.to_be_bytes());
    }

    fn put_i64(&mut self, number: i64) {
        self.put(&number.to_be_bytes());
    }

    fn put_host(&mut self, host: &SocketAddr) {
        match host.ip().to_canonical() {
            IpAddr::V4(ip) => self.put(&ip.octets()),
            IpAddr::V6(ip) => self.put(&ip.octets()),
        }
        self.put_i32(i32::from(host.port()));
    }
}

/// Writes the record of a message that has passed [`MessageParts::check`] into `dst`.
///
/// # Panics
/// If `dst` is not exactly [`encoded_len`] bytes long, or the message would not pass `check`.
pub fn encode_into(
    parts: &MessageParts<'_>,
    queue_offset: QueueOffset,
    physical_offset: PhysicalOffset,
    store_timestamp: StoreTimestamp,
    dst: &mut [u8],
) {
    assert_eq!(dst.len(), encoded_len(parts), "the room for a record is its length");
    let total = i32::try_from(dst.len()).expect("a record below 2 GiB");
    let properties_len = i16::try_from(parts.properties_len()).expect("properties that were checked");
    let sys_flag = parts
        .sys_flag
        .with(SysFlag::BORN_HOST_V6, host_len(&parts.born_host) == 20)
        .with(SysFlag::STORE_HOST_V6, host_len(&parts.store_host) == 20);
    let is_v2 = parts.topic.len() > TOPIC_BYTES_MAX_V1;

    // Fields of fixed length are put together where the compiler knows the room.
    let mut fixed = [0; FIXED_BYTES_MAX];
    let mut w = Writer(&mut fixed);
    w.put_i32(total);
    w.put_i32(if is_v2 { MESSAGE_MAGIC_V2 } else { MESSAGE_MAGIC_V1 });
    w.put_i32(body_crc(parts.body));
    w.put(&parts.queue_id.0.to_be_bytes());
    w.put_i32(parts.flag);
    w.put(&queue_offset.0.to_be_bytes());
    w.put(&physical_offset.0.to_be_bytes());
    w.put_i32(sys_flag.0);
    w.put_i64(parts.born_timestamp.0);
    w.put_host(&parts.born_host);
    w.put_i64(store_timestamp.0);
    w.put_host(&parts.store_host);
    w.put_i32(parts.reconsume_times);
    w.put_i64(parts.prepared_transaction_offset);
    w.put_i32(parts.body.len() as i32); // less than `total`
    let unused = w.0.len();

    let mut w = Writer(dst);
    w.put(&fixed[..FIXED_BYTES_MAX - unused]);
    w.put(parts.body);
    if is_v2 {
        w.put(&i16::try_from(parts.topic.len()).expect("a topic that was checked").to_be_bytes());
    } else {
        w.put(&[parts.topic.len() as u8]); // at most 127
    }
    w.put(parts.topic.as_bytes());
    w.put(&properties_len.to_be_bytes());
    for part in parts.properties {
        w.put(part);
    }
    debug_assert!(w.0.is_empty(), "encoded_len and encode_into agree");
}
