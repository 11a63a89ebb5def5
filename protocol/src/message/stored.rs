//! Reading a record without copying it.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::{MESSAGE_MAGIC_V1, MESSAGE_MAGIC_V2, MessageParts, body_crc};
use crate::id::OffsetMessageId;
use crate::properties::Properties;
use crate::types::{BornTimestamp, PhysicalOffset, QueueId, QueueOffset, StoreTimestamp, SysFlag};

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    #[error("the record says {total} bytes, {available} are there")]
    Length { total: i32, available: usize },
    #[error("unknown magic {0:#010x}")]
    Magic(i32),
    #[error("{field} does not fit the record")]
    Field { field: &'static str },
    #[error("the record leaves {0} bytes over")]
    Trailing(usize),
}

/// One record, borrowed; every length in it has been checked against its bytes, and its topic is UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredMessage<'a> {
    bytes: &'a [u8],
    born_host: SocketAddr,
    store_host: SocketAddr,
    /// Where the store timestamp begins; its place depends on the length of the born host.
    store_timestamp_at: usize,
    reconsume_times: i32,
    prepared_transaction_offset: i64,
    body: &'a [u8],
    topic: &'a str,
    properties: &'a [u8],
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], MessageError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(MessageError::Field { field })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], MessageError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(MessageError::Field { field })?;
        self.rest = rest;
        Ok(*taken)
    }

    fn counted(&mut self, len: i32, field: &'static str) -> Result<&'a [u8], MessageError> {
        self.take(usize::try_from(len).map_err(|_| MessageError::Field { field })?, field)
    }

    fn host(&mut self, is_v6: bool, field: &'static str) -> Result<SocketAddr, MessageError> {
        let ip = if is_v6 {
            IpAddr::from(self.array::<16>(field)?)
        } else {
            IpAddr::from(self.array::<4>(field)?)
        };
        let port = i32::from_be_bytes(self.array(field)?);
        Ok(SocketAddr::new(ip, u16::try_from(port).map_err(|_| MessageError::Field { field })?))
    }
}

impl<'a> StoredMessage<'a> {
    /// Reads the record at the start of `bytes`; also gives what follows it.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), MessageError> {
        let available = bytes.len();
        let total = bytes.first_chunk().map_or(0, |total| i32::from_be_bytes(*total));
        let (record, rest) = usize::try_from(total)
            .ok()
            .filter(|total| *total >= 8)
            .and_then(|total| bytes.split_at_checked(total))
            .ok_or(MessageError::Length { total, available })?;
        Ok((Self::parse_record(record)?, rest))
    }

    fn parse_record(record: &'a [u8]) -> Result<Self, MessageError> {
        let mut reader = Reader { rest: record };
        let head: [u8; 48] = reader.array("the head")?;
        let magic = i32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        if magic != MESSAGE_MAGIC_V1 && magic != MESSAGE_MAGIC_V2 {
            return Err(MessageError::Magic(magic));
        }
        let sys_flag = SysFlag(i32::from_be_bytes([head[36], head[37], head[38], head[39]]));
        let born_host = reader.host(sys_flag.is_born_host_v6(), "born host")?;
        let store_timestamp_at = record.len() - reader.rest.len();
        reader.array::<8>("store timestamp")?;
        let store_host = reader.host(sys_flag.is_store_host_v6(), "store host")?;
        let reconsume_times = i32::from_be_bytes(reader.array("reconsume times")?);
        let prepared_transaction_offset = i64::from_be_bytes(reader.array("prepared transaction offset")?);
        let body_len = i32::from_be_bytes(reader.array("body length")?);
        let body = reader.counted(body_len, "body")?;
        let topic_len = if magic == MESSAGE_MAGIC_V1 {
            i32::from(u8::from_be_bytes(reader.array("topic length")?))
        } else {
            i32::from(i16::from_be_bytes(reader.array("topic length")?))
        };
        let topic = std::str::from_utf8(reader.counted(topic_len, "topic")?)
            .map_err(|_| MessageError::Field { field: "topic" })?;
        let properties_len = i16::from_be_bytes(reader.array("properties length")?);
        let properties = reader.counted(i32::from(properties_len), "properties")?;
        if !reader.rest.is_empty() {
            return Err(MessageError::Trailing(reader.rest.len()));
        }
        Ok(Self {
            bytes: record,
            born_host,
            store_host,
            store_timestamp_at,
            reconsume_times,
            prepared_transaction_offset,
            body,
            topic,
            properties,
        })
    }

    /// A field at a place that `parse_record` has found to exist.
    fn at<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[at..at + N]);
        field
    }

    /// The whole record.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn magic(&self) -> i32 {
        i32::from_be_bytes(self.at(4))
    }

    pub fn body_crc(&self) -> i32 {
        i32::from_be_bytes(self.at(8))
    }

    pub fn queue_id(&self) -> QueueId {
        QueueId(u32::from_be_bytes(self.at(12)))
    }

    pub fn flag(&self) -> i32 {
        i32::from_be_bytes(self.at(16))
    }

    pub fn queue_offset(&self) -> QueueOffset {
        QueueOffset(u64::from_be_bytes(self.at(20)))
    }

    pub fn physical_offset(&self) -> PhysicalOffset {
        PhysicalOffset(u64::from_be_bytes(self.at(28)))
    }

    pub fn sys_flag(&self) -> SysFlag {
        SysFlag(i32::from_be_bytes(self.at(36)))
    }

    pub fn born_timestamp(&self) -> BornTimestamp {
        BornTimestamp(i64::from_be_bytes(self.at(40)))
    }

    pub fn born_host(&self) -> SocketAddr {
        self.born_host
    }

    pub fn store_timestamp(&self) -> StoreTimestamp {
        StoreTimestamp(i64::from_be_bytes(self.at(self.store_timestamp_at)))
    }

    pub fn store_host(&self) -> SocketAddr {
        self.store_host
    }

    pub fn reconsume_times(&self) -> i32 {
        self.reconsume_times
    }

    pub fn prepared_transaction_offset(&self) -> i64 {
        self.prepared_transaction_offset
    }

    /// The body as stored, compressed if `sys_flag` says so.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    pub fn topic(&self) -> &'a str {
        self.topic
    }

    pub fn properties(&self) -> Properties<'a> {
        Properties::new(self.properties)
    }

    /// The value of one property.
    pub fn property(&self, name: &str) -> Option<&'a str> {
        self.properties().get(name)
    }

    /// The id made of store host and physical offset.
    pub fn offset_message_id(&self) -> OffsetMessageId {
        OffsetMessageId { store_host: self.store_host, physical_offset: self.physical_offset() }
    }

    /// What the message consists of, with other properties: to store it again, or a changed copy of it.
    pub fn parts<'p>(&self, properties: &'p [&'p [u8]]) -> MessageParts<'p>
    where
        'a: 'p,
    {
        MessageParts {
            topic: self.topic,
            queue_id: self.queue_id(),
            flag: self.flag(),
            sys_flag: self.sys_flag(),
            born_timestamp: self.born_timestamp(),
            born_host: self.born_host,
            store_host: self.store_host,
            reconsume_times: self.reconsume_times,
            prepared_transaction_offset: self.prepared_transaction_offset,
            body: self.body,
            properties,
        }
    }

    /// Whether the body is what the broker stored.
    pub fn verify_crc(&self) -> bool {
        body_crc(self.body) == self.body_crc()
    }
}

/// The records that `bytes` consists of. After an error the iterator ends: what follows cannot be found.
pub fn messages(bytes: &[u8]) -> Messages<'_> {
    Messages { rest: bytes }
}

/// See [`messages`].
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<StoredMessage<'a>, MessageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed = StoredMessage::parse(self.rest);
        self.rest = parsed.as_ref().map_or(&[], |(_, rest)| rest);
        Some(parsed.map(|(message, _)| message))
    }
}
