//! What consumers could not process: stored again with a delay, and after the last time in the group's dead letter topic.
//!
//!   on_send_back → the message is read (memory or disk) → stored again ──durable──▶ answer
//!
//! T1  The answer leaves when the message is durable in its new place. If it is lost the consumer sends it back again: a copy too
//!     many, never one too few.
//! T2  Whatever is stored again keeps its body, flags, keys and the time and place of its birth.

use super::cold::Purpose;
use super::delay::{self, DelayLevel};
use super::effects::{Effects, ReplyTo};
use super::send::Scan;
use super::{Refusal, Request, Shard};
use bytes::Bytes;
use ringmq_protocol::body::{TopicConfig, perm};
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::message::{Limits, MessageParts, StoredMessage, encoded_len};
use ringmq_protocol::name;
use ringmq_protocol::properties::{self, names};
use ringmq_protocol::request::{ConsumerSendMsgBackRequest, SendMessageRequest};
use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset};
use ringmq_storage::{BlockSeq, QueueIx, metadata_bytes};
use std::borrow::Cow;

/// Requests of clients from this version on (3.4.9) may say how often a message is retried.
const VERSION_WITH_MAX: i32 = 121;
/// The level of the first retry, if its consumer leaves that to the broker.
const FIRST_RETRY_LEVEL: i32 = 3;

/// A queue to store a message in.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) topic: String,
    pub(super) queue_id: QueueId,
    pub(super) queue: QueueIx,
    /// If it is a queue of the schedule topic.
    pub(super) level: Option<DelayLevel>,
}

/// A stored message that is stored again.
#[derive(Debug)]
pub(super) struct Again<'a> {
    pub(super) message: StoredMessage<'a>,
    pub(super) place: Place,
    pub(super) reconsume_times: i32,
    /// Encoded, with everything that is to be there.
    pub(super) properties: Cow<'a, [u8]>,
}

impl Again<'_> {
    /// T2.
    pub(super) fn parts<'p>(&'p self, shard: &Shard, properties: &'p [&'p [u8]]) -> MessageParts<'p> {
        MessageParts {
            topic: &self.place.topic,
            queue_id: self.place.queue_id,
            store_host: shard.config.address,
            reconsume_times: self.reconsume_times,
            prepared_transaction_offset: 0,
            ..self.message.parts(properties)
        }
    }
}

/// Properties that say where a message was first. Those of these names that it has are to be left out before, see [`is_of_origin`].
pub(super) fn put_origin(out: &mut Vec<u8>, message: &StoredMessage<'_>, topic: &str) {
    let id = message.offset_message_id().to_string();
    for (name, value) in [(names::RETRY_TOPIC, topic), (names::ORIGIN_MESSAGE_ID, &*id)] {
        let known = message.property(name).is_some_and(|known| properties::put(out, name, known).is_ok());
        if !known {
            let _ = properties::put(out, name, value); // names of topics and ids have no separators
        }
    }
}

/// True for properties that [`put_origin`] writes.
pub(super) fn is_of_origin(name: &[u8]) -> bool {
    matches!(name, b"RETRY_TOPIC" | b"ORIGIN_MESSAGE_ID")
}

/// A message on its way back.
#[derive(Debug)]
pub(super) struct SendBack {
    pub(super) to: ReplyTo,
    group: Box<str>,
    /// 0: the broker decides; below 0: dead letter.
    delay_level: i32,
    reconsume_times_max: i32,
}

impl Shard {
    /// The queue of a topic, made at its first use; `None` if there is no such topic.
    pub(super) fn place(
        &mut self,
        topic: &str,
        queue_id: QueueId,
        level: Option<DelayLevel>,
    ) -> Option<Place> {
        let known = self.topics.get_mut(topic)?;
        let queue = known.queue(queue_id, &mut self.index, &mut self.queues);
        Some(Place { topic: topic.to_owned(), queue_id, queue, level })
    }

    /// Stores messages again, and records that belong to that, all in one block: all of it survives a crash, or nothing. Consumers
    /// see the messages when they are durable. Nothing is staged if it fails.
    ///
    /// The messages must have passed `MessageParts::check`.
    pub(super) fn stage_together(
        &mut self,
        again: &[Again<'_>],
        settings: &[(u16, &[u8])],
    ) -> Result<BlockSeq, Refusal> {
        let messages = again.iter().map(|again| encoded_len(&again.parts(self, &[&again.properties])));
        let settings_bytes = settings.iter().map(|(_, body)| metadata_bytes(body.len()));
        let bytes = messages.chain(settings_bytes).sum();
        if again.iter().any(|again| again.place.level.is_some()) {
            self.log.stamp_from(self.store_now());
        }
        self.log.reserve(bytes, self.store_now()).map_err(Refusal::of_append)?;
        let mut in_block = None;
        for again in again {
            let properties: [&[u8]; 1] = [&again.properties];
            let parts = again.parts(self, &properties);
            let queue = again.place.queue;
            let offset = self.index.max(queue);
            let appended =
                self.append(&parts, queue, &Scan::of(&again.properties)).expect("room was reserved");
            let block = *in_block.get_or_insert(appended.block);
            assert_eq!(appended.block, block, "what belongs together lies in one block");
            if let Some(level) = again.place.level {
                self.delays.on_staged(level, appended.store_timestamp);
            }
            self.pending(block).show(queue, QueueOffset(offset.0 + 1));
        }
        for (kind, body) in settings {
            let block = self.append_record(*kind, body).expect("room was reserved");
            assert_eq!(block, *in_block.get_or_insert(block), "what belongs together lies in one block");
        }
        Ok(in_block.expect("there is something to store"))
    }

    /// The dead letter topic of a group, made at its first use.
    pub(super) fn dead_letter_place(&mut self, group: &str) -> Result<Place, Refusal> {
        let topic = name::dlq_topic(group);
        if self.topics.get(&topic).is_none() {
            self.put_topic(TopicConfig::new(&*topic, 1, perm::READ | perm::WRITE), None)?;
        }
        Ok(self.place(&topic, QueueId(0), None).expect("it is there or was just made"))
    }

    /// A send to a retry topic: a consumer could not send the message back, and publishes it itself. True if it has been retried
    /// often enough, or its group is in strict order and must not see it again: then it goes to the dead letter topic.
    pub(super) fn is_dead(
        &mut self,
        send: &SendMessageRequest<'_>,
        version: i32,
        fx: &mut Effects,
    ) -> Result<bool, Refusal> {
        let Some(group) = name::group_of_retry_topic(&send.topic) else { return Ok(false) };
        self.ensure_group(group, fx)?;
        let asked = send.max_reconsume_times.filter(|_| version >= VERSION_WITH_MAX);
        let max = asked.unwrap_or(self.groups.configs[group].retry_max_times);
        Ok(send.reconsume_times > max || self.locks.is_any_held(group, self.now.monotonic_ms))
    }

    /// CONSUMER_SEND_MSG_BACK (36).
    pub(super) fn on_send_back(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = ConsumerSendMsgBackRequest::decode(&request.header.ext)?;
        self.ensure_group(&asked.group, fx)?;
        let config = &self.groups.configs[&*asked.group];
        if config.retry_queue_nums <= 0 {
            fx.replies.push(request.to, ResponseCode::SUCCESS, None, &(), &[]);
            return Ok(());
        }
        let asked_max = asked.max_reconsume_times.filter(|_| request.header.version >= VERSION_WITH_MAX);
        let back = SendBack {
            to: request.to,
            group: (&*asked.group).into(),
            delay_level: asked.delay_level,
            reconsume_times_max: asked_max.unwrap_or(config.retry_max_times),
        };
        self.ensure_retry_topic(&asked.group, false)?;
        let position = asked.offset;
        match (self.block_before(position)?, self.message_in_memory(position)) {
            (Some(_), Some(message)) => self.send_back(&back, position, Some(message), fx),
            (Some(block), None) => {
                self.read_cold(block, Purpose::SendBack { back: Box::new(back), position }, fx);
            }
            (None, _) => self.send_back(&back, position, None, fx),
        }
        Ok(())
    }

    /// The message was read, or is not there.
    pub(super) fn send_back(
        &mut self,
        back: &SendBack,
        position: PhysicalOffset,
        message: Option<Bytes>,
        fx: &mut Effects,
    ) {
        let message = message.as_deref().and_then(|bytes| StoredMessage::parse(bytes).ok());
        let stored = match message {
            // While the message was read the group may have been deleted: its consumers are still there.
            Some((message, _)) => {
                self.ensure_group(&back.group, fx).and_then(|()| self.store_back(back, &message))
            }
            None => {
                let remark = format!("look message by offset failed, {position}");
                Err(Refusal::new(ResponseCode::SYSTEM_ERROR, remark))
            }
        };
        match stored {
            Ok(block) => self.pending(block).replies.push(back.to, ResponseCode::SUCCESS, None, &(), &[]),
            Err(refusal) => fx.replies.push(back.to, refusal.code, Some(&refusal.remark), &(), &[]),
        }
    }

    fn store_back(&mut self, back: &SendBack, message: &StoredMessage<'_>) -> Result<BlockSeq, Refusal> {
        let reconsume_times = message.reconsume_times();
        let is_dead = back.delay_level < 0 || reconsume_times >= back.reconsume_times_max;
        let mut properties = Vec::new();
        let is_ours = |name: &[u8]| delay::is_of_delay(name) || is_of_origin(name) || name == b"DELAY";
        properties::put_filtered(&mut properties, message.properties(), |name| !is_ours(name));
        put_origin(&mut properties, message, message.topic());
        let mut put = |name, value: &str| {
            properties::put(&mut properties, name, value).map_err(|error| {
                Refusal::new(ResponseCode::SYSTEM_ERROR, format!("property {name}: {error}"))
            })
        };
        let place = if is_dead {
            put(names::DELAY_TIME_LEVEL, "0")?;
            put(names::WAIT_STORE_MSG_OK, "false")?;
            self.dead_letter_place(&back.group)?
        } else {
            let level = match back.delay_level {
                0 => FIRST_RETRY_LEVEL.saturating_add(reconsume_times.max(0)),
                level => level,
            };
            put(names::DELAY_TIME_LEVEL, &level.to_string())?;
            let (topic, queue_id) = self.retry_queue(&back.group)?;
            delay::put_real(&mut properties, &topic, queue_id);
            self.schedule_place(self.delays.table().clamp(level.unsigned_abs()))
        };
        let again = Again {
            message: *message,
            place,
            reconsume_times: reconsume_times.saturating_add(1),
            properties: Cow::Owned(properties),
        };
        again.parts(self, &[&again.properties]).check(&Limits::default()).map_err(|problem| {
            Refusal::new(ResponseCode::SYSTEM_ERROR, format!("the message cannot be stored again: {problem}"))
        })?;
        self.stage_together(&[again], &[])
    }

    /// The queue of the group's retry topic that comes next.
    fn retry_queue(&mut self, group: &str) -> Result<(String, QueueId), Refusal> {
        self.ensure_retry_topic(group, false)?;
        let topic = name::retry_topic(group);
        let config = &self.topics.get(&topic).expect("it is there or was just made").config;
        if config.perm & perm::WRITE == 0 || config.write_queue_nums == 0 {
            let remark = format!("the topic[{topic}] sending message is forbidden");
            return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
        }
        self.round_robin = self.round_robin.wrapping_add(1);
        Ok((topic, QueueId(self.round_robin % config.write_queue_nums)))
    }
}
