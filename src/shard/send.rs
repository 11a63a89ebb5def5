//! The write path, in the order it happens:
//!
//!   on_send → admit → stage ──write──▶ on_written → acknowledge → wake held pulls
//!
//! A1  A success leaves this file only from `acknowledge`, and, in sync mode, only for what is durable.
//! A2  acknowledged ≤ durable ≤ staged; each only grows.
//! A3  A message is visible to a pull only from the moment at which its send is acknowledged.
//! A4  After the first failed write nothing more is acknowledged, and who waits is told.
//! A5  A batch lies in one block: all of it survives a crash, or nothing.

use super::delay;
use super::effects::{Effects, Replies, ReplyTo};
use super::limits::{ASYNC_UNDURABLE_PART, MESSAGE_BYTES_MAX};
use super::{Announcement, Refusal, Request, Shard};
use ringmq_protocol::batch::BatchEntries;
use ringmq_protocol::body::{TopicConfig, perm};
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::message::{Limits, MessageParts, encode_into, encoded_len};
use ringmq_protocol::name;
use ringmq_protocol::properties::{self, Properties, names};
use ringmq_protocol::request::{SendMessageRequest, SendMessageResponse};
use ringmq_protocol::types::{
    BornTimestamp, QueueId, QueueOffset, StoreTimestamp, SysFlag, TagsCode, TransactionKind,
};
use ringmq_storage::{
    AppendError, Appended, BlockSeq, Entry, KeyHash, LogWrite, QueueIx, TopicHash, WriteError, keys_of,
};
use std::borrow::Cow;

/// How a send is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushDiskType {
    /// Once it is on disk.
    Sync,
    /// At once, as long as little waits for the disk (`ASYNC_UNDURABLE_PART`). A crash may undo that much.
    Async,
}

/// What becomes true when a block of the log is durable.
#[derive(Default)]
pub(super) struct PendingBlock {
    block: BlockSeq,
    /// Answers that wait for the block.
    pub(super) replies: Replies,
    /// Queues and the ends that they reach with this block.
    visible: Vec<(QueueIx, QueueOffset)>,
    /// Topics made or changed in the block.
    pub(super) announcements: Vec<Announcement>,
    /// Nothing here but sends in async mode that came when the disk was far behind: they wait until it has caught up, not for the block.
    is_async: bool,
}

impl PendingBlock {
    /// Consumers may see the queue up to `end` then.
    pub(super) fn show(&mut self, queue: QueueIx, end: QueueOffset) {
        match self.visible.last_mut() {
            Some(last) if last.0 == queue => last.1 = end,
            _ => self.visible.push((queue, end)),
        }
    }
}

/// The queue that a send goes to.
#[derive(Clone, Copy)]
struct Target {
    queue: QueueIx,
    queue_id: QueueId,
    flush: FlushDiskType,
}

/// What the index gets of the messages of a batch, found when they are checked and kept until they are appended. Reused.
#[derive(Default)]
pub(super) struct Batch {
    messages: Vec<Checked>,
    /// Of all messages, one behind the other.
    keys: Vec<KeyHash>,
}

struct Checked {
    /// As it will be stored.
    len: usize,
    tags_code: TagsCode,
    /// Where its keys end, and those of the next message begin.
    keys_end: usize,
}

impl Batch {
    /// Room that is kept for the next batch; larger ones have to make their own.
    const KEPT: usize = 16 << 10;

    fn clear(&mut self) {
        self.messages.clear();
        self.messages.shrink_to(Self::KEPT);
        self.keys.clear();
        self.keys.shrink_to(Self::KEPT);
    }
}

/// One or more messages in the open block, and who waits for them.
struct Staged<'a> {
    to: ReplyTo,
    target: Target,
    block: BlockSeq,
    first: QueueOffset,
    count: u64,
    message_ids: &'a str,
    unique_key: Option<&'a str>,
}

impl Shard {
    /// 1. A send has arrived: codes 10, 310 and 320.
    pub(super) fn on_send(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let mut send = SendMessageRequest::decode(request.code(), &request.header.ext)?;
        if SysFlag(send.sys_flag).transaction() != TransactionKind::None {
            return Err(Refusal::no_transactions());
        }
        let is_dead = !send.batch && self.is_dead(&send, request.header.version, fx)?;
        if is_dead {
            let group = name::group_of_retry_topic(&send.topic).expect("only what is retried can be dead");
            let place = self.dead_letter_place(group)?;
            (send.topic, send.queue_id) = (place.topic.into(), 0);
        }
        let target = self.admit(&send)?;
        if send.batch {
            self.stage_batch(request, &send, target, fx)
        } else {
            self.stage_single(request, &send, target, is_dead, fx)
        }
    }

    /// 2. Is the topic there, may it be sent to, and is there such a queue?
    fn admit(&mut self, send: &SendMessageRequest<'_>) -> Result<Target, Refusal> {
        if name::is_send_forbidden(&send.topic) {
            let remark = format!("Sending message to topic[{}] is forbidden.", send.topic);
            return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
        }
        let topic = match self.topics.get_mut(&send.topic) {
            Some(topic) => topic,
            None => {
                self.create_on_send(send)?;
                self.topics.get_mut(&send.topic).expect("just made")
            }
        };
        let queue_id = match u32::try_from(send.queue_id) {
            Ok(id) if id < topic.queue_count() => QueueId(id),
            Err(_) if topic.config.write_queue_nums > 0 => {
                self.round_robin = self.round_robin.wrapping_add(1);
                QueueId(self.round_robin % topic.config.write_queue_nums)
            }
            _ => {
                let (asked, topic, last) = (send.queue_id, &send.topic, topic.queue_count() as i32 - 1);
                let remark =
                    format!("request queueId[{asked}] is illegal, topic {topic} has queues 0 to {last}");
                return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
            }
        };
        let flush = topic.policy.flush.unwrap_or(self.config.flush);
        let queue = topic.queue(queue_id, &mut self.index, &mut self.queues);
        Ok(Target { queue, queue_id, flush })
    }

    /// 2a. An unknown topic is made from the template that the sender names, if that allows it.
    fn create_on_send(&mut self, send: &SendMessageRequest<'_>) -> Result<(), Refusal> {
        let config = if name::is_retry_topic(&send.topic) {
            TopicConfig::new(&*send.topic, 1, perm::READ | perm::WRITE)
        } else {
            let template = self.topics.get(&send.default_topic.to_text());
            let template =
                template.filter(|template| template.config.perm & perm::INHERIT != 0).ok_or_else(|| {
                    let remark = format!("topic[{}] not exist, apply first please!", send.topic);
                    Refusal::new(ResponseCode::TOPIC_NOT_EXIST, remark)
                })?;
            let count = u32::try_from(send.default_topic_queue_nums).unwrap_or(1);
            let count = count.clamp(1, template.config.write_queue_nums.max(1));
            TopicConfig::new(&*send.topic, count, template.config.perm & !perm::INHERIT)
        };
        self.put_topic(config, None)
    }

    /// 3. One message: encoded straight into the open block, and indexed.
    fn stage_single(
        &mut self,
        request: &Request<'_>,
        send: &SendMessageRequest<'_>,
        mut target: Target,
        is_dead: bool,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let sent = send.encoded_properties();
        let scan = Scan::of(sent);
        scan.refuse_unsupported()?;
        let level = scan.delay_level()?.filter(|_| !is_dead).map(|level| self.delays.table().clamp(level));
        let mut kept = Vec::new();
        let sent = if scan.has_receipt || level.is_some() || is_dead {
            // A message that was popped and is sent again is a new one.
            let keep = |name: &[u8]| {
                let is_replaced = (level.is_some() && delay::is_of_delay(name))
                    || (is_dead && name == names::DELAY_TIME_LEVEL.as_bytes());
                !is_replaced && name != names::POP_CK.as_bytes()
            };
            properties::put_filtered(&mut kept, Properties::new(sent), keep);
            &kept
        } else {
            sent
        };
        let made_key = scan.unique_key.is_empty().then(|| self.unique_keys.next_key(self.now.wall_ms));
        let unique_key = made_key.as_deref().unwrap_or(scan.unique_key);
        let key_property = match &made_key {
            Some(key) => [&b"UNIQ_KEY\x01"[..], key.as_bytes(), &b"\x02"[..]],
            None => [&[][..]; 3],
        };
        let mut made = Vec::new();
        if is_dead {
            properties::put(&mut made, names::DELAY_TIME_LEVEL, "-1").expect("no separators");
        }
        // A delayed message is stored elsewhere; its sender is told the queue that it asked for.
        let (mut topic, mut queue_id) = (&*send.topic, target.queue_id);
        let schedule = level.map(|level| self.schedule_place(level));
        if let Some(place) = &schedule {
            delay::put_real(&mut made, topic, queue_id);
            (topic, queue_id, target.queue) = (&place.topic, place.queue_id, place.queue);
        }
        // Ours come last: of two properties of one name the later one counts.
        let own = self.own_properties.clone();
        let [name, key, end] = key_property;
        let all = [sent, properties::separator(sent), &own, name, key, end, &made];
        let place = (topic, queue_id);
        let parts = self.parts(request, send, place, send.flag, request.body, &all);
        parts.check(&Limits::default()).map_err(Refusal::illegal)?;
        if level.is_some() {
            // The delay counts from when the message is stored, which is not to be before it was sent.
            self.log.stamp_from(self.store_now());
        }
        let first = self.index.max(target.queue);
        let Appended { block, position, store_timestamp } =
            self.append(&parts, target.queue, &Scan { unique_key, ..scan })?;
        if let Some(level) = level {
            self.delays.on_staged(level, store_timestamp);
        }
        let mut ids = std::mem::take(&mut self.ids);
        ids.clear();
        self.message_ids.push(position, &mut ids);
        self.prepare_answer(
            Staged {
                to: request.to,
                target,
                block,
                first,
                count: 1,
                message_ids: &ids,
                unique_key: Some(unique_key),
            },
            fx,
        );
        self.ids = ids;
        Ok(())
    }

    /// 3a. A batch: every entry an ordinary message of the same queue, all in one block. All are checked before the
    /// first one is staged.
    fn stage_batch(
        &mut self,
        request: &Request<'_>,
        send: &SendMessageRequest<'_>,
        target: Target,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        if name::is_retry_topic(&send.topic) || send.topic.len() > 127 {
            return Err(Refusal::illegal(
                "a batch cannot go to a retry topic or to one with a name over 127 bytes",
            ));
        }
        let place = (&*send.topic, target.queue_id);
        let topic = self.index.topic_hash(target.queue);
        let mut batch = std::mem::take(&mut self.batch);
        let mut bytes = 0;
        for entry in BatchEntries::new(request.body) {
            let entry = entry.map_err(Refusal::illegal)?;
            let scan = Scan::of(entry.properties);
            scan.refuse_unsupported()?;
            if scan.delay_level()?.is_some() {
                return Err(Refusal::illegal(
                    "messages of a batch cannot be delayed (property DELAY): send them one by one; nothing was stored",
                ));
            }
            let properties = [entry.properties];
            let parts = self.parts(request, send, place, entry.flag, entry.body, &properties);
            parts.check(&Limits::default()).map_err(Refusal::illegal)?;
            let len = encoded_len(&parts);
            batch.keys.extend(scan.key_hashes(topic));
            let (tags_code, keys_end) = (TagsCode::of(scan.tags), batch.keys.len());
            batch.messages.push(Checked { len, tags_code, keys_end });
            bytes += len;
        }
        let count = batch.messages.len();
        if count == 0 || bytes > MESSAGE_BYTES_MAX {
            return Err(Refusal::illegal(format!(
                "a batch holds at least one message and takes at most {MESSAGE_BYTES_MAX} bytes; this one has {count} and takes {bytes}"
            )));
        }
        self.log.reserve(bytes, self.store_now()).map_err(Refusal::of_append)?;
        let first = self.index.max(target.queue);
        let mut ids = std::mem::take(&mut self.ids);
        ids.clear();
        let (mut in_block, mut keys_start) = (None, 0);
        for (entry, checked) in BatchEntries::new(request.body).flatten().zip(&batch.messages) {
            let properties = [entry.properties];
            let parts = self.parts(request, send, place, entry.flag, entry.body, &properties);
            let Checked { len, tags_code, keys_end } = *checked;
            let keys = batch.keys[keys_start..keys_end].iter().copied();
            keys_start = keys_end;
            let appended = self.append_indexed(&parts, len, target.queue, tags_code, keys);
            let Appended { block, position, .. } = appended.expect("room was reserved");
            assert_eq!(*in_block.get_or_insert(block), block, "A5: a batch lies in one block");
            if !ids.is_empty() {
                ids.push(',');
            }
            self.message_ids.push(position, &mut ids);
        }
        let unique_key = Properties::new(send.encoded_properties()).get(names::UNIQ_KEY);
        let block = in_block.expect("the batch is not empty");
        self.prepare_answer(
            Staged {
                to: request.to,
                target,
                block,
                first,
                count: count as u64,
                message_ids: &ids,
                unique_key,
            },
            fx,
        );
        batch.clear();
        (self.ids, self.batch) = (ids, batch);
        Ok(())
    }

    fn parts<'a>(
        &self,
        request: &Request<'_>,
        send: &SendMessageRequest<'_>,
        (topic, queue_id): (&'a str, QueueId),
        flag: i32,
        body: &'a [u8],
        properties: &'a [&'a [u8]],
    ) -> MessageParts<'a> {
        MessageParts {
            topic,
            queue_id,
            flag,
            sys_flag: SysFlag(send.sys_flag),
            born_timestamp: BornTimestamp(send.born_timestamp),
            born_host: request.peer,
            store_host: self.config.address,
            reconsume_times: send.reconsume_times,
            prepared_transaction_offset: 0,
            body,
            properties,
        }
    }

    /// 3b. Into the log and into the index.
    pub(super) fn append(
        &mut self,
        parts: &MessageParts<'_>,
        queue: QueueIx,
        scan: &Scan<'_>,
    ) -> Result<Appended, Refusal> {
        let keys = scan.key_hashes(self.index.topic_hash(queue));
        self.append_indexed(parts, encoded_len(parts), queue, TagsCode::of(scan.tags), keys)
    }

    /// The same for who knows what the index needs: `len` is the message's [`encoded_len`].
    fn append_indexed(
        &mut self,
        parts: &MessageParts<'_>,
        len: usize,
        queue: QueueIx,
        tags_code: TagsCode,
        keys: impl Iterator<Item = KeyHash>,
    ) -> Result<Appended, Refusal> {
        let offset = self.index.max(queue);
        let encode = |position, stored, dst: &mut [u8]| encode_into(parts, offset, position, stored, dst);
        let appended = self.log.append(len, self.store_now(), encode).map_err(Refusal::of_append)?;
        let size = u32::try_from(len).expect("a record is smaller than a block");
        self.on_appended(appended.position);
        self.index.push(queue, Entry { position: appended.position, size, tags_code });
        for key in keys {
            self.index.push_key(key, appended.position);
        }
        self.counts.messages_in += 1;
        self.counts.bytes_in += u64::from(size);
        Ok(appended)
    }

    /// 4. The answer is made now; it leaves with `acknowledge`.
    fn prepare_answer(&mut self, staged: Staged<'_>, fx: &mut Effects) {
        let response = SendMessageResponse {
            msg_id: Cow::Borrowed(staged.message_ids),
            queue_id: staged.target.queue_id.0 as i32,
            queue_offset: staged.first.0 as i64,
            transaction_id: staged.unique_key.map(Cow::Borrowed),
            batch_uniq_id: None,
            recall_handle: None,
            region_id: Some(Cow::Borrowed(super::REGION)),
            trace_on: Some(true),
        };
        let queue = staged.target.queue;
        let end = QueueOffset(staged.first.0 + staged.count);
        let is_async = staged.target.flush == FlushDiskType::Async;
        // A producer that is faster than the disk learns it by waiting, not by being refused when the memory is full. And A3: not
        // before messages of the queue that wait.
        if is_async && self.disk_keeps_up() && self.queues[queue.0 as usize].visible == staged.first {
            fx.replies.push(staged.to, ResponseCode::SUCCESS, None, &response, &[]);
            return self.make_visible(queue, end, fx);
        }
        let pending = self.pending_of(staged.block, is_async);
        pending.replies.push(staged.to, ResponseCode::SUCCESS, None, &response, &[]);
        pending.show(queue, end);
    }

    /// What waits for a block; made when the first thing does.
    pub(super) fn pending(&mut self, block: BlockSeq) -> &mut PendingBlock {
        self.pending_of(block, false)
    }

    fn pending_of(&mut self, block: BlockSeq, is_async: bool) -> &mut PendingBlock {
        if self.pending.back().is_none_or(|last| last.block != block) {
            let spare = self.spare_pending.pop().unwrap_or_default();
            self.pending.push_back(PendingBlock { block, is_async: true, ..spare });
        }
        let pending = self.pending.back_mut().expect("just made");
        pending.is_async &= is_async;
        pending
    }

    /// So little waits for the disk that async sends need not.
    fn disk_keeps_up(&self) -> bool {
        self.log.staged_bytes() <= self.log.config().staged_bytes_max / ASYNC_UNDURABLE_PART
    }

    /// What waits for a block that is not durable, if anything does.
    pub(super) fn pending_block(&mut self, block: BlockSeq) -> Option<&mut PendingBlock> {
        let at = self.pending.binary_search_by_key(&block, |pending| pending.block).ok()?;
        self.pending.get_mut(at)
    }

    /// The driver asks at the end of a turn, until there is none: what is to be written now?
    pub fn next_write(&mut self) -> Option<LogWrite> {
        self.log.next_write()
    }

    /// 5. A write has ended.
    pub fn on_written(&mut self, block: BlockSeq, result: Result<(), String>, fx: &mut Effects) {
        if let Some(advance) = self.log.on_written(block, result.map_err(WriteError)) {
            self.acknowledge(advance.block, fx);
        }
        if let Some(reason) = self.log.poisoned() {
            if !self.has_reported_poison {
                self.has_reported_poison = true;
                fx.log_error(format!(
                    "{}: writing the commit log failed: {reason}. No send is accepted any more, pulls are still served. Mend the disk, then restart",
                    self.config.broker_name
                ));
            }
            // A4: success can no longer be told from failure, which is what the sender has to know.
            let refusal = Refusal::of_append(AppendError::Poisoned { reason: reason.to_owned() });
            for mut pending in std::mem::take(&mut self.pending) {
                pending.replies.refuse_all(refusal.code, &refusal.remark, &mut fx.replies);
                for to in pending.announcements.drain(..).filter_map(|announcement| announcement.waiter) {
                    fx.replies.push(to, refusal.code, Some(&refusal.remark), &(), &[]);
                }
            }
        }
    }

    /// 6. Everything up to `durable` is on disk: the answers leave, and the messages are there for consumers. So are those
    ///    behind that only waited for the disk to catch up.
    fn acknowledge(&mut self, durable: BlockSeq, fx: &mut Effects) {
        let keeps_up = self.disk_keeps_up();
        let is_due = |pending: &PendingBlock| pending.block <= durable || pending.is_async && keeps_up;
        while self.pending.front().is_some_and(is_due) {
            let mut pending = self.pending.pop_front().expect("just seen");
            fx.replies.append(&mut pending.replies);
            for (queue, end) in pending.visible.drain(..) {
                self.make_visible(queue, end, fx);
            }
            for announcement in pending.announcements.drain(..) {
                self.announce(announcement, fx);
            }
            self.spare_pending.push(pending);
        }
    }

    /// 7. Consumers may see the queue up to `end`; who waits there is woken.
    fn make_visible(&mut self, queue: QueueIx, end: QueueOffset, fx: &mut Effects) {
        let state = &mut self.queues[queue.0 as usize];
        if state.is_removed {
            return;
        }
        assert!(state.visible <= end, "A2: what is visible only grows");
        state.visible = end;
        self.wake(queue, fx);
        if self.pops.holds.len() > 0 {
            self.wake_pops(self.index.topic_hash(queue), fx);
        }
    }

    pub(super) fn store_now(&self) -> StoreTimestamp {
        StoreTimestamp(self.now.wall_ms)
    }
}

impl Refusal {
    pub(super) fn illegal(problem: impl ToString) -> Refusal {
        Refusal::new(ResponseCode::MESSAGE_ILLEGAL, problem.to_string())
    }

    fn no_transactions() -> Refusal {
        let remark = "the broker's sending transaction message is forbidden: this version of RingMQ has no transactions";
        Refusal::new(ResponseCode::NO_PERMISSION, remark)
    }

    pub(super) fn of_append(error: AppendError) -> Refusal {
        let code = match error {
            AppendError::Busy { .. } => ResponseCode::SYSTEM_BUSY,
            AppendError::Size { .. } => ResponseCode::MESSAGE_ILLEGAL,
            AppendError::Poisoned { .. } | AppendError::NoSpace { .. } => ResponseCode::SERVICE_NOT_AVAILABLE,
        };
        Refusal::new(code, error.to_string())
    }
}

/// What a broker needs to know of a message's properties, found in one pass.
#[derive(Default)]
pub(super) struct Scan<'a> {
    /// Empty if there is none, like the next.
    tags: &'a str,
    unique_key: &'a str,
    keys: &'a str,
    /// The receipt of an earlier pop.
    has_receipt: bool,
    is_transaction: bool,
    /// Empty if there is none.
    delay: &'a str,
    unsupported: Option<&'static str>,
}

impl<'a> Scan<'a> {
    pub(super) fn of(sent: &'a [u8]) -> Self {
        let mut scan = Scan::default();
        for (name, value) in Properties::new(sent).raw() {
            let text = || std::str::from_utf8(value).unwrap_or_default();
            match name {
                b"TAGS" => scan.tags = text(),
                b"UNIQ_KEY" => scan.unique_key = text(),
                b"KEYS" => scan.keys = text(),
                b"POP_CK" => scan.has_receipt = true,
                b"DELAY" => scan.delay = text(),
                b"TIMER_DELAY_SEC" | b"TIMER_DELAY_MS" | b"TIMER_DELIVER_MS" => {
                    scan.unsupported = Some("timed messages (properties TIMER_*)");
                }
                b"TRAN_MSG" => scan.is_transaction = value.eq_ignore_ascii_case(b"true"),
                _ => {}
            }
        }
        scan
    }

    /// The keys under which it is found.
    fn key_hashes(&self, topic: TopicHash) -> impl Iterator<Item = KeyHash> {
        keys_of(self.unique_key, self.keys).map(move |key| KeyHash::of(topic, key.as_bytes()))
    }

    /// The level that the sender wants, from 1; `None` if the message is not to be delayed.
    fn delay_level(&self) -> Result<Option<u32>, Refusal> {
        if self.delay.is_empty() {
            return Ok(None);
        }
        let level: i32 = self.delay.parse().map_err(|_| {
            Refusal::illegal(format!(
                "property DELAY {:?} is no delay level: it must be a number",
                self.delay
            ))
        })?;
        Ok(u32::try_from(level).ok().filter(|level| *level > 0))
    }

    /// What this broker cannot do yet is refused, never done differently.
    fn refuse_unsupported(&self) -> Result<(), Refusal> {
        if self.is_transaction {
            return Err(Refusal::no_transactions());
        }
        match self.unsupported {
            Some(what) => {
                Err(Refusal::illegal(format!("this version of RingMQ has no {what}; nothing was stored")))
            }
            None => Ok(()),
        }
    }
}
