//! A shard: the whole broker of one core, as a deterministic state machine.
//!
//!   the driver says      begin_turn · on_frame · on_closed · on_written · on_read · on_prepared · on_registered · on_tick
//!   the shard answers    Effects { replies, reads, news } · next_write · prepare_wanted · next_deadline_ms
//!
//!   send      the write path             pull      the read path            hold      pulls that wait
//!   cold      reads of old data          groups    members, subscriptions   offsets   how far groups are
//!   topics    topics and their queues    admin     what operators ask       query     look-ups
//!   locks     strict order               records   settings in the log      recovery  all of it, from the log
//!   progress  how far groups are         group_admin  settings of groups    relay     questions to clients
//!   find      messages by key            lookups   reads of sealed indexes  checkpoint  the small state, again and again
//!   retention what may be deleted      expiry    topics with a time of their own    attributes what a topic has of its own
//!   pop       messages one by one      assignment  who consumes which queues
//!   delay     messages for later       retry     what consumers could not process
//!
//! S1  Nothing here does I/O, reads a clock, draws a random number or starts a thread: the same events give the same
//!     effects, byte for byte. No iteration order of a hash map reaches a decision.
//! S2  Every change that must survive is a record of the log before anyone is told of it.
//! S3  Every table and queue has a bound in `limits`; beyond it the client is told, nobody else notices.

mod admin;
mod assignment;
mod attributes;
mod checkpoint;
mod cold;
mod delay;
mod effects;
mod expiry;
mod filter;
mod find;
mod group_admin;
mod groups;
mod hold;
pub mod limits;
mod locks;
mod lookups;
mod offsets;
mod pop;
mod progress;
mod pull;
mod query;
mod records;
mod recovery;
mod relay;
mod retention;
mod retry;
mod send;
pub mod sql;
mod topics;

#[cfg(test)]
mod tests;

pub use attributes::own_retention_ms;
pub use delay::DelayTable;
pub use effects::{ConnectionId, Effects, FileRead, LogFile, News, Replies, ReplyTo};
pub use recovery::Boot;
pub use send::FlushDiskType;

use assignment::Assignments;
use bytes::BytesMut;
use checkpoint::Checkpoints;
use cold::ColdReads;
use delay::Delays;
use filter::Filters;
use groups::Groups;
use hold::Holds;
use limits::{CLIENT_SCAN_MS, FROZEN_SEGMENTS_MAX, OFFSETS_FLUSH_MS};
use locks::Locks;
use lookups::{Lookups, Waiter};
use offsets::Offsets;
use pop::Pops;
use relay::Relay;
use ringmq_protocol::body::TopicConfig;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{Frame, Header};
use ringmq_protocol::id::{OffsetMessageIds, UniqueKeys};
use ringmq_protocol::request::{FieldError, NotifyConsumerIdsChangedRequest};
use ringmq_protocol::types::PhysicalOffset;
use ringmq_storage::{
    AppendError, BlockSeq, CommitLog, IndexHeader, Missing, Prepare, QueueIndex, SealedSegments, SegmentBase,
    SegmentIndex,
};
use send::{Batch, PendingBlock};
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use topics::{QueueState, Topics};

/// RocketMQ's `regionId`.
const REGION: &str = "DefaultRegion";

/// What a shard is told about itself.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Name under which the shard is a broker: `broker-a-0`.
    pub broker_name: String,
    pub cluster_name: String,
    /// Where clients reach it. Part of every message id, so it must not be a wildcard.
    pub address: SocketAddr,
    pub flush: FlushDiskType,
    /// Whether a send to an unknown topic makes the topic.
    pub auto_create_topics: bool,
    pub delays: DelayTable,
    /// Tells the unique keys made here from those made elsewhere or earlier.
    pub key_salt: u32,
}

/// The time, as the driver read it at the start of a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Time {
    /// Of a clock that never goes back; for deadlines.
    pub monotonic_ms: i64,
    /// Milliseconds since 1970; for time stamps.
    pub wall_ms: i64,
}

/// See the head of this file.
pub struct Shard {
    config: ShardConfig,
    now: Time,
    log: CommitLog,
    index: QueueIndex,
    /// The segment that the log is in.
    active: Option<SegmentBase>,
    /// Full segments that are to be sealed once they are durable.
    frozen: VecDeque<Arc<SegmentIndex>>,
    sealed: SealedSegments,
    lookups: Lookups,
    checkpoints: Checkpoints,
    /// Segments that were given up and are still being read.
    releasing: Vec<SegmentBase>,
    /// How often segments were given up: what is known of first offsets is as old as this.
    releases: u64,
    next_read: u64,
    /// By `QueueIx`.
    queues: Vec<QueueState>,
    topics: Topics,
    groups: Groups,
    filters: Filters,
    offsets: Offsets,
    locks: Locks,
    delays: Delays,
    holds: Holds,
    relay: Relay,
    pops: Pops,
    assignments: Assignments,
    cold: ColdReads,
    /// What waits for blocks of the log, oldest first.
    pending: VecDeque<PendingBlock>,
    spare_pending: Vec<PendingBlock>,
    unique_keys: UniqueKeys,
    /// Encoded properties that every message gets.
    own_properties: Rc<[u8]>,
    /// Of the messages of a send; reused.
    ids: String,
    /// Of a batch that is being sent; reused.
    batch: Batch,
    message_ids: OffsetMessageIds,
    round_robin: u32,
    has_reported_poison: bool,
    is_preparing: bool,
    /// Answers that wait for the name servers to know a topic.
    registrations: BTreeMap<u64, ReplyTo>,
    next_ticket: u64,
    booted_ms: i64,
    counts: Counts,
    flush_offsets_at_ms: Option<i64>,
    scan_clients_at_ms: i64,
}

/// What has gone through the shard since its start.
#[derive(Default)]
struct Counts {
    messages_in: u64,
    bytes_in: u64,
    messages_out: u64,
    /// Bytes that the disk has back from segments that were rewritten.
    room_given_back: u64,
}

/// A topic to be announced once its record is durable, and who waits for that.
struct Announcement {
    news: News,
    waiter: Option<ReplyTo>,
}

/// A request that is not carried out, and why.
#[derive(Debug)]
struct Refusal {
    code: ResponseCode,
    remark: String,
    /// Not refused, but to be asked again when these pages of sealed indexes are there.
    missing: Option<Missing>,
    /// RocketMQ's number for what a pull is not permitted.
    forbidden_type: Option<i32>,
}

impl Refusal {
    fn new(code: ResponseCode, remark: impl Into<String>) -> Self {
        Refusal { code, remark: remark.into(), missing: None, forbidden_type: None }
    }

    /// A pull that is not permitted.
    fn forbidden(forbidden_type: i32, remark: String) -> Self {
        Refusal { forbidden_type: Some(forbidden_type), ..Refusal::new(ResponseCode::NO_PERMISSION, remark) }
    }

    fn no_topic(topic: &str) -> Self {
        let remark = format!("topic[{topic}] not exist, apply first please!");
        Refusal::new(ResponseCode::TOPIC_NOT_EXIST, remark)
    }
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        Refusal::new(ResponseCode::SYSTEM_ERROR, format!("the request cannot be read: {error}"))
    }
}

/// A request on its way through the shard.
struct Request<'a> {
    to: ReplyTo,
    peer: SocketAddr,
    header: &'a Header<'a>,
    body: &'a [u8],
}

impl Request<'_> {
    fn code(&self) -> RequestCode {
        RequestCode(self.header.code)
    }
}

impl Shard {
    /// A turn begins: the time, until the next one.
    pub fn begin_turn(&mut self, now: Time) {
        self.now = now;
        self.holds.begin_turn();
        self.locks.on_started(now.monotonic_ms);
    }

    /// A frame has arrived. What it asks for happens now; the answer may take a while.
    pub fn on_frame(
        &mut self,
        connection: ConnectionId,
        peer: SocketAddr,
        frame: &Frame<'_>,
        fx: &mut Effects,
    ) {
        let header = &frame.header;
        if header.is_response() {
            return self.on_answer(connection, frame, fx);
        }
        let request = Request { to: ReplyTo::new(connection, header), peer, header, body: frame.body };
        let done = match request.code() {
            RequestCode::SEND_MESSAGE | RequestCode::SEND_MESSAGE_V2 | RequestCode::SEND_BATCH_MESSAGE => {
                self.on_send(&request, fx)
            }
            RequestCode::PULL_MESSAGE | RequestCode::LITE_PULL_MESSAGE => self.on_pull(&request, fx),
            RequestCode::CONSUMER_SEND_MSG_BACK => self.on_send_back(&request, fx),
            RequestCode::HEART_BEAT => self.on_heartbeat(&request, fx),
            RequestCode::UNREGISTER_CLIENT => self.on_unregister(&request, fx),
            RequestCode::GET_CONSUMER_LIST_BY_GROUP => self.on_consumer_list(&request, fx),
            RequestCode::QUERY_CONSUMER_OFFSET => self.on_query_offset(&request, fx),
            RequestCode::UPDATE_CONSUMER_OFFSET => self.on_update_offset(&request, fx),
            RequestCode::GET_MAX_OFFSET => self.on_max_offset(&request, fx),
            RequestCode::GET_MIN_OFFSET => self.on_min_offset(&request, fx),
            RequestCode::SEARCH_OFFSET_BY_TIMESTAMP => self.on_search_offset(&request, fx),
            RequestCode::GET_EARLIEST_MSG_STORETIME => self.on_earliest_store_time(&request, fx),
            RequestCode::VIEW_MESSAGE_BY_ID => self.on_view_message(&request, fx),
            RequestCode::QUERY_MESSAGE => self.on_query_message(&request, fx),
            RequestCode::LOCK_BATCH_MQ => self.on_lock(&request, fx),
            RequestCode::UNLOCK_BATCH_MQ => self.on_unlock(&request, fx),
            RequestCode::POP_MESSAGE => self.on_pop(&request, fx),
            RequestCode::ACK_MESSAGE => self.on_ack(&request, fx),
            RequestCode::BATCH_ACK_MESSAGE => self.on_batch_ack(&request, fx),
            RequestCode::CHANGE_MESSAGE_INVISIBLETIME => self.on_change_invisible(&request),
            RequestCode::PEEK_MESSAGE => self.on_peek(&request, fx),
            RequestCode::NOTIFICATION => self.on_notification(&request, fx),
            RequestCode::POLLING_INFO => self.on_polling_info(&request, fx),
            RequestCode::QUERY_ASSIGNMENT => self.on_query_assignment(&request, fx),
            RequestCode::SET_MESSAGE_REQUEST_MODE => self.on_set_request_mode(&request, fx),
            RequestCode::GET_ALL_MESSAGE_REQUEST_MODE => self.on_request_modes(&request, fx),
            RequestCode::CHECK_CLIENT_CONFIG => self.on_check_client(&request, fx),
            _ => self.on_admin(&request, fx),
        };
        match done {
            Ok(()) => {}
            Err(Refusal { code, remark, forbidden_type: Some(forbidden_type), .. }) => {
                let fields = vec![("forbiddenType".to_owned(), forbidden_type.to_string())];
                fx.replies.push(request.to, code, Some(&remark), &fields, &[]);
            }
            Err(Refusal { missing: Some(missing), .. }) => {
                let waiter = Waiter::Request { connection, peer, frame: frame.bytes.into() };
                self.wait_for(missing, waiter, fx);
            }
            Err(refusal) => fx.replies.push(request.to, refusal.code, Some(&refusal.remark), &(), &[]),
        }
    }

    /// A connection is gone.
    pub fn on_closed(&mut self, connection: ConnectionId, fx: &mut Effects) {
        self.holds.on_closed(connection);
        self.forget_questions_to(connection, fx);
        self.pops.holds.on_closed(connection);
        for group in self.groups.on_closed(connection) {
            self.notify_group(&group, fx);
        }
    }

    /// See [`CommitLog::prepare_memory_with`].
    pub fn prepare_memory_with(&mut self, prepare: fn(&mut BytesMut)) {
        self.log.prepare_memory_with(prepare);
    }

    /// Once a turn: what is due by now.
    pub fn on_tick(&mut self, fx: &mut Effects) {
        self.answer_holds(fx);
        self.serve_ready(fx);
        self.read_waiting(fx);
        self.expire_flights(fx);
        self.expire_pop_holds(fx);
        self.deliver_due(fx);
        self.expire_questions(fx);
        self.write_checkpoint();
        self.seal_segments(fx);
        self.release_segments(fx);
        if self.groups.has_clients() && self.now.monotonic_ms >= self.scan_clients_at_ms {
            self.scan_clients_at_ms = self.now.monotonic_ms + CLIENT_SCAN_MS;
            for group in self.groups.expire(self.now.monotonic_ms) {
                self.notify_group(&group, fx);
            }
        }
        match self.flush_offsets_at_ms {
            None if self.offsets.has_unwritten() => {
                self.flush_offsets_at_ms = Some(self.now.monotonic_ms + OFFSETS_FLUSH_MS);
            }
            Some(at_ms) if self.now.monotonic_ms >= at_ms => {
                // A log that takes no record now may take one later; until then the offsets wait.
                let flushed = self.flush_offsets().is_ok();
                self.flush_offsets_at_ms = (!flushed).then_some(self.now.monotonic_ms + OFFSETS_FLUSH_MS);
            }
            _ => {}
        }
    }

    /// Monotonic time at which `on_tick` has something to do, if nothing else happens before.
    pub fn next_deadline_ms(&self) -> Option<i64> {
        let scan = self.groups.has_clients().then_some(self.scan_clients_at_ms);
        let is_alive = self.log.poisoned().is_none();
        let goes_on = self.checkpoints.pause_ms().filter(|_| is_alive);
        let checkpoint = goes_on.map(|pause_ms| self.now.monotonic_ms + pause_ms);
        let due = self.delays.wake_ms().filter(|_| is_alive);
        let due = due.map(|ms| self.now.monotonic_ms + ms.saturating_sub(self.now.wall_ms).max(0));
        let hold = self.holds.next_deadline_ms(self.now.monotonic_ms);
        let question = self.relay.next_deadline_ms();
        let popped = self.next_flight_ms().into_iter().chain(self.pops.holds.next_deadline_ms()).min();
        let ready = self.has_ready().then_some(self.now.monotonic_ms);
        let all = [hold, popped, self.flush_offsets_at_ms, scan, checkpoint, due, question, ready];
        all.into_iter().flatten().min()
    }

    /// The shard is to stop: what is noted only in memory goes to the log.
    pub fn on_stop(&mut self, fx: &mut Effects) {
        if let Err(refusal) = self.flush_offsets() {
            fx.log_error(format!("consumer offsets of the last second are not saved: {}", refusal.remark));
        }
    }

    /// True while nothing waits for the disk.
    pub fn is_quiet(&self) -> bool {
        self.log.poisoned().is_some() || (self.log.staged_bytes() == 0 && self.pending.is_empty())
    }

    /// Zeros wanted ahead of the log's end, asked for once.
    pub fn prepare_wanted(&mut self) -> Option<Prepare> {
        if self.is_preparing || self.index.frozen_count() >= FROZEN_SEGMENTS_MAX {
            return None;
        }
        let wanted = self.log.prepare_wanted();
        self.is_preparing = wanted.is_some();
        wanted
    }

    /// The segment's file is zeroed up to here.
    pub fn on_prepared(&mut self, segment: SegmentBase, to: u64) {
        self.is_preparing = false;
        self.log.on_prepared(segment, to);
    }

    /// There is no room for more of the log.
    pub fn on_prepare_failed(&mut self, reason: String) {
        self.log.on_prepare_failed(reason);
    }

    /// It is time to ask for room again.
    pub fn on_prepare_again(&mut self) {
        self.is_preparing = false;
    }

    /// The segment that holds a position, and where in its file.
    pub fn locate(&self, position: PhysicalOffset) -> (SegmentBase, u64) {
        let segment = SegmentBase::of(position, self.log.config().segment_bytes);
        (segment, position.0 - segment.0)
    }

    /// Headers of the sealed indexes, oldest first.
    pub fn sealed_headers(&self) -> Vec<IndexHeader> {
        self.sealed.headers().cloned().collect()
    }

    /// Settings of all topics, by name.
    pub fn topic_configs(&self) -> Vec<TopicConfig> {
        self.topics.sorted().into_iter().map(|topic| topic.config.clone()).collect()
    }

    /// Tells every member of a group that the group has changed.
    fn notify_group(&mut self, group: &str, fx: &mut Effects) {
        let notice = NotifyConsumerIdsChangedRequest { consumer_group: Cow::Borrowed(group) };
        for connection in self.groups.connections_to_notify(group) {
            fx.replies.push_request(connection, RequestCode::NOTIFY_CONSUMER_IDS_CHANGED, &notice);
        }
    }

    /// Puts a settings record into the log.
    fn append_record(&mut self, kind: u16, body: &[u8]) -> Result<BlockSeq, Refusal> {
        let appended = self.log.append_record(kind, body, self.store_now()).map_err(Refusal::of_append)?;
        self.on_appended(appended.position);
        Ok(appended.block)
    }

    /// Answers a request once all that is staged by now is durable.
    fn reply_when_durable(&mut self, to: ReplyTo, fx: &mut Effects) -> Result<(), Refusal> {
        self.body_when_durable(to, &[], fx)
    }

    /// The same with a body.
    fn body_when_durable(&mut self, to: ReplyTo, body: &[u8], fx: &mut Effects) -> Result<(), Refusal> {
        let is_behind = self.log.staged_bytes() > 0;
        if let Some(reason) = self.log.poisoned().filter(|_| is_behind) {
            // What is staged will never be durable.
            return Err(Refusal::of_append(AppendError::Poisoned { reason: reason.to_owned() }));
        }
        match self.last_staged() {
            Some(block) => self.pending(block).replies.push(to, ResponseCode::SUCCESS, None, &(), body),
            None => fx.replies.push(to, ResponseCode::SUCCESS, None, &(), body),
        }
        Ok(())
    }

    /// The last block that is not durable yet, if there is any.
    fn last_staged(&self) -> Option<BlockSeq> {
        let last =
            self.log.open_block_seq().or_else(|| Some(BlockSeq(self.log.next_block().0.checked_sub(1)?)));
        last.filter(|_| self.log.staged_bytes() > 0)
    }

    /// Writes the offsets that are only noted, and names the last block that holds one, if there were any.
    fn flush_offsets(&mut self) -> Result<Option<BlockSeq>, Refusal> {
        let mut last = None;
        for body in records::encode_commits(self.offsets.unwritten()) {
            last = Some(self.append_record(records::kind::OFFSETS, &body)?);
        }
        self.offsets.on_written();
        Ok(last)
    }

    // ---- segments

    /// A record went to a position. If it is the first one of a segment, the segment before it is full.
    fn on_appended(&mut self, position: PhysicalOffset) {
        self.cold.on_appended();
        let segment = SegmentBase::of(position, self.log.config().segment_bytes);
        if let Some(full) = self.active.replace(segment).filter(|full| *full != segment) {
            let blocks =
                self.log.blocks().segment(full).expect("its blocks are in memory until it is sealed").clone();
            let end = self.log.sealed_end();
            self.frozen.push_back(self.index.freeze(blocks, end, self.checkpoints.replay_from));
        }
    }

    /// Hands over the full segments that are durable now.
    fn seal_segments(&mut self, fx: &mut Effects) {
        while self.frozen.front().is_some_and(|index| index.end.position <= self.log.durable()) {
            fx.news.extend(self.frozen.pop_front().map(News::Seal));
        }
    }

    /// The index of a segment is in its file.
    pub fn on_sealed(&mut self, header: IndexHeader) {
        self.index.on_sealed(header.base);
        self.log.forget_blocks(header.base);
        self.sealed.push(header);
    }

    /// An index cannot be written for now: what the disk has no room for is refused, with the reason.
    pub fn on_seal_failed(&mut self, reason: &str) {
        if self.index.frozen_count() >= FROZEN_SEGMENTS_MAX {
            self.log.on_prepare_failed(format!("the index of a full segment cannot be written: {reason}"));
        }
    }

    /// Where the oldest segment begins.
    fn log_start(&self) -> PhysicalOffset {
        let oldest = self.sealed.headers().next().map(|header| header.base);
        let in_memory = || self.log.blocks().first().unwrap_or_default();
        PhysicalOffset(oldest.unwrap_or_else(in_memory).0)
    }

    fn next_read_id(&mut self) -> u64 {
        self.next_read += 1;
        self.next_read
    }
}
