//! What a shard wants done: replies, reads, closes, news for the housekeeping thread.

use bytes::Bytes;
use ringmq_protocol::body::TopicConfig;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{Codec, Fields, Head, Header, Language, VERSION_REPORTED, encode};
use ringmq_protocol::types::Opaque;
use ringmq_storage::{ChainPoint, SegmentBase, SegmentIndex};
use std::sync::Arc;

/// A connection of the driver's table. Never reused: a late effect for a closed connection goes nowhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionId(pub u64);

/// Where the answer to a request goes, and in which form.
#[derive(Clone, Copy, Debug)]
pub struct ReplyTo {
    pub connection: ConnectionId,
    codec: Codec,
    opaque: Opaque,
    oneway: bool,
}

impl ReplyTo {
    pub fn new(connection: ConnectionId, header: &Header<'_>) -> Self {
        ReplyTo { connection, codec: header.codec, opaque: header.opaque, oneway: header.is_oneway() }
    }

    /// True if the sender expects no answer, whatever happens.
    pub fn is_oneway(&self) -> bool {
        self.oneway
    }
}

/// Encoded frames for connections, in order. Frames lie one behind the other in one buffer; ranges of the log that
/// follow a frame's header as its body are kept by reference.
#[derive(Debug, Default)]
pub struct Replies {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    to: ReplyTo,
    end: usize,
    body: Vec<Bytes>,
}

impl Replies {
    /// Adds the answer to a request, unless it was sent one-way.
    pub fn push(
        &mut self,
        to: ReplyTo,
        code: ResponseCode,
        remark: Option<&str>,
        fields: &dyn Fields,
        body: &[u8],
    ) {
        if to.oneway {
            return;
        }
        encode(&mut self.bytes, &head(to, code.0, 1, remark), fields, body.len());
        self.bytes.extend_from_slice(body);
        self.entries.push(Entry { to, end: self.bytes.len(), body: Vec::new() });
    }

    /// Adds a success whose body is ranges of the log.
    pub fn push_ranges(&mut self, to: ReplyTo, remark: Option<&str>, fields: &dyn Fields, body: Vec<Bytes>) {
        let body_bytes = body.iter().map(Bytes::len).sum();
        encode(&mut self.bytes, &head(to, ResponseCode::SUCCESS.0, 1, remark), fields, body_bytes);
        self.entries.push(Entry { to, end: self.bytes.len(), body });
    }

    /// Adds a one-way request of ours to a client.
    pub fn push_request(&mut self, connection: ConnectionId, code: RequestCode, fields: &dyn Fields) {
        let to = ReplyTo { connection, codec: Codec::Json, opaque: Opaque(0), oneway: true };
        encode(&mut self.bytes, &head(to, code.0, 2, None), fields, 0);
        self.entries.push(Entry { to, end: self.bytes.len(), body: Vec::new() });
    }

    /// Adds a request of ours to a client, whose answer will carry `opaque`.
    pub fn push_call(
        &mut self,
        connection: ConnectionId,
        opaque: Opaque,
        code: RequestCode,
        fields: &dyn Fields,
        body: Vec<Bytes>,
    ) {
        let to = ReplyTo { connection, codec: Codec::Json, opaque, oneway: false };
        let body_bytes = body.iter().map(Bytes::len).sum();
        encode(&mut self.bytes, &head(to, code.0, 0, None), fields, body_bytes);
        self.entries.push(Entry { to, end: self.bytes.len(), body });
    }

    /// Moves everything from `other` behind what is here, and leaves `other` empty with its memory.
    pub fn append(&mut self, other: &mut Replies) {
        if self.entries.is_empty() {
            return std::mem::swap(self, other);
        }
        let shift = self.bytes.len();
        self.bytes.append(&mut other.bytes);
        self.entries.extend(other.entries.drain(..).map(|entry| Entry { end: entry.end + shift, ..entry }));
    }

    /// Calls `deliver` for each frame in order (connection, header and inline body, ranges of the body) and empties.
    pub fn drain(&mut self, mut deliver: impl FnMut(ConnectionId, &[u8], Vec<Bytes>)) {
        let mut start = 0;
        for entry in self.entries.drain(..) {
            deliver(entry.to.connection, &self.bytes[start..entry.end], entry.body);
            start = entry.end;
        }
        self.bytes.clear();
    }

    /// The same requests refused: for answers prepared for a success that did not come.
    pub fn refuse_all(&mut self, code: ResponseCode, remark: &str, into: &mut Replies) {
        for entry in self.entries.drain(..) {
            into.push(entry.to, code, Some(remark), &(), &[]);
        }
        self.bytes.clear();
    }
}

fn head<'a>(to: ReplyTo, code: i32, flag: i32, remark: Option<&'a str>) -> Head<'a> {
    Head {
        codec: to.codec,
        code,
        language: Language::Rust,
        version: VERSION_REPORTED,
        opaque: to.opaque,
        flag,
        remark,
    }
}

/// A segment of the log, or the index beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFile {
    Segment,
    Index,
}

/// A read that the shard waits for; the answer comes back as `on_read` with the same id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileRead {
    pub id: u64,
    pub file: LogFile,
    pub segment: SegmentBase,
    pub offset: u64,
    pub len: u32,
}

/// What the housekeeping thread should know.
#[derive(Clone, Debug)]
pub enum News {
    /// A topic is there or has changed: tell the name servers. `ticket` comes back with `on_registered` when they know.
    TopicChanged {
        config: TopicConfig,
        ticket: Option<u64>,
    },
    /// Someone wants to know where the topic is. The answer is `on_route` with the ticket.
    RouteWanted {
        topic: String,
        ticket: u64,
    },
    TopicDeleted {
        topic: String,
    },
    /// A segment is full and durable: its index is to be written. The answer is `on_sealed`.
    Seal(Arc<SegmentIndex>),
    /// An index cannot be read as it should: it is to be written anew from its segment. The answer is `on_rebuilt`.
    Rebuild {
        segment: SegmentBase,
        replay_from: ChainPoint,
    },
    /// Nobody reads the segment any more: its files may go.
    Released(SegmentBase),
    /// The segment cannot go yet, and why.
    Kept {
        segment: SegmentBase,
        reason: String,
    },
    /// These topics have given up for good what they have in a segment: it can be rewritten without that. In answer to `on_give_up`.
    GivenUp {
        segment: SegmentBase,
        topics: Vec<String>,
    },
    /// A line for the operator.
    Log {
        error: bool,
        line: String,
    },
}

/// Everything that one turn of a shard wants done. The driver empties it.
#[derive(Debug, Default)]
pub struct Effects {
    pub replies: Replies,
    pub reads: Vec<FileRead>,
    pub news: Vec<News>,
}

impl Effects {
    pub fn log(&mut self, line: String) {
        self.news.push(News::Log { error: false, line });
    }

    pub fn log_error(&mut self, line: String) {
        self.news.push(News::Log { error: true, line });
    }
}
