//! The answer to a pop: the messages' bytes, from memory or from disk, and what clients make receipts of.

use super::super::Shard;
use super::super::cold::{LogRange, Purpose};
use super::super::effects::{Effects, ReplyTo};
use super::flights::encode_done;
use super::{Given, Kind, Pop, Section, TIMED_OUT};
use bytes::Bytes;
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::message::{Limits, MessageParts, StoredMessage, encode_into, encoded_len};
use ringmq_protocol::properties::{self, names};
use ringmq_protocol::receipt::{PopSource, REVIVE_QUEUE_ORDERED, Receipt};
use ringmq_protocol::request::PopMessageResponse;
use ringmq_protocol::types::{PhysicalOffset, QueueOffset};
use ringmq_storage::BlockSeq;
use std::fmt::Write;

/// A pop whose messages are in flight, and whose answer waits for their bytes.
#[derive(Debug)]
pub(in crate::shard) struct PopRead {
    pub(super) pop: Box<Pop>,
    pub(super) pop_time: i64,
    /// The block of the record, and a place behind the record; `None` if there is none.
    pub(super) staged: Option<(BlockSeq, PhysicalOffset)>,
    pub(super) sections: Vec<Section>,
    pub(super) rest: u64,
}

impl PopRead {
    pub(in crate::shard) fn to(&self) -> ReplyTo {
        self.pop.to
    }

    /// The messages whose bytes are still to be read.
    pub(in crate::shard) fn wanted(
        &mut self,
    ) -> impl Iterator<Item = (LogRange, &mut Option<Bytes>, &mut bool)> {
        let given = self.sections.iter_mut().flat_map(|section| &mut section.messages);
        given
            .filter(|given| given.bytes.is_none() && !given.is_lost)
            .map(|given| (given.range, &mut given.bytes, &mut given.is_lost))
    }
}

impl Shard {
    /// Reads what of the messages is not in memory; then the pop is answered.
    pub(in crate::shard) fn read_popped(&mut self, mut read: Box<PopRead>, fx: &mut Effects) {
        let next = read.wanted().next().map(|(range, ..)| range.block);
        match next {
            Some(block) => self.read_cold(block, Purpose::Popped(read), fx),
            None => self.answer_pop(*read, fx),
        }
    }

    /// All bytes are here: the answer, for when the record is durable.
    fn answer_pop(&mut self, read: PopRead, fx: &mut Effects) {
        let PopRead { pop, pop_time, staged, sections, rest } = read;
        let (mut start_info, mut offset_info, mut count_info) = (String::new(), String::new(), String::new());
        let mut done_body = Vec::new();
        let mut body = Vec::new();
        for section in &sections {
            let topic = pop.topic(section.source);
            let (flag, queue_id) = (section.source.flag(), section.queue_id.0);
            let (lost, given): (Vec<&Given>, Vec<&Given>) =
                section.messages.iter().partition(|given| given.is_lost);
            if !lost.is_empty() && staged.is_some() {
                let offsets: Vec<QueueOffset> = lost.iter().map(|given| given.range.offset).collect();
                encode_done(&pop.group, topic, section.queue_id, &offsets, &mut done_body);
            }
            let Some(first) = given.first() else { continue };
            let start = first.range.offset.0;
            put_info(&mut start_info, format_args!("{flag} {queue_id} {start}"));
            let mut offsets = String::new();
            for message in &given {
                let separator = if offsets.is_empty() { "" } else { "," };
                write!(offsets, "{separator}{}", message.range.offset.0).expect("a String takes it");
                if pop.is_ordered && message.times > 0 {
                    let (offset, times) = (message.range.offset.0, message.times);
                    put_info(&mut count_info, format_args!("{flag} qo{queue_id}%{offset} {times}"));
                }
                let bytes = message.bytes.as_ref().expect("read, as it is not lost");
                body.push(match section.source {
                    PopSource::Topic => bytes.clone(),
                    _ => self.as_of_topic(&pop, pop_time, section, QueueOffset(start), message, bytes),
                });
            }
            put_info(&mut offset_info, format_args!("{flag} {queue_id} {offsets}"));
            if pop.is_ordered {
                // Old clients know a count of the queue only: what all of its messages have in common.
                let times = given.iter().map(|message| message.times).min().unwrap_or(0);
                put_info(&mut count_info, format_args!("{flag} {queue_id} {times}"));
            }
        }
        if !done_body.is_empty() {
            self.append_done(&done_body);
        }
        if body.is_empty() {
            // All of it was damaged, which has been reported.
            let code = if pop.kind == Kind::Peek {
                ResponseCode::PULL_NOT_FOUND
            } else {
                ResponseCode::POLLING_TIMEOUT
            };
            return self.reply_nothing(&pop, code, TIMED_OUT, fx);
        }
        self.counts.messages_out += body.len() as u64;
        let info = |text: String| (!text.is_empty()).then(|| text.into());
        let response = PopMessageResponse {
            pop_time,
            invisible_time: pop.invisible_ms,
            revive_qid: if pop.is_ordered { REVIVE_QUEUE_ORDERED } else { 0 },
            rest_num: rest as i64,
            start_offset_info: info(start_info),
            msg_offset_info: info(offset_info),
            order_count_info: info(count_info),
        };
        let replies = match staged {
            Some((_, end)) if self.log.durable() >= end => &mut fx.replies,
            None => &mut fx.replies,
            Some((block, _)) => match self.pending_block(block) {
                Some(pending) => &mut pending.replies,
                // It will never be durable: a write has failed since.
                None => {
                    let remark = "the commit log stopped after a failed write; the messages are given again after a restart";
                    let code = ResponseCode::SERVICE_NOT_AVAILABLE;
                    return fx.replies.push(pop.to, code, Some(remark), &(), &[]);
                }
            },
        };
        replies.push_ranges(pop.to, Some("FOUND"), &response, body);
    }

    /// A message of the retry topic, as one of the topic that was asked for, with its receipt: clients cannot make that one.
    fn as_of_topic(
        &self,
        pop: &Pop,
        pop_time: i64,
        section: &Section,
        start_offset: QueueOffset,
        given: &Given,
        bytes: &Bytes,
    ) -> Bytes {
        let Ok((message, _)) = StoredMessage::parse(bytes) else { return bytes.clone() };
        let receipt = Receipt {
            start_offset,
            pop_time,
            invisible_time: pop.invisible_ms,
            revive_queue_id: 0,
            source: section.source,
            broker_name: &self.config.broker_name,
            queue_id: section.queue_id,
            queue_offset: Some(given.range.offset),
        };
        let mut added = Vec::new();
        if pop.kind == Kind::Pop {
            properties::put(&mut added, names::POP_CK, &receipt.to_string()).expect("no separators in it");
        }
        let stored = message.properties().as_bytes();
        let all = [stored, properties::separator(stored), &added];
        let parts = MessageParts { topic: &pop.topic, ..message.parts(&all) };
        if parts.check(&Limits::default()).is_err() {
            // No room for the receipt. As a message of the retry topic it needs none: clients make one of the answer's fields.
            return bytes.clone();
        }
        let mut copy = vec![0; encoded_len(&parts)];
        encode_into(
            &parts,
            message.queue_offset(),
            message.physical_offset(),
            message.store_timestamp(),
            &mut copy,
        );
        copy.into()
    }

    pub(super) fn reply_nothing(&self, pop: &Pop, code: ResponseCode, remark: &str, fx: &mut Effects) {
        let response = PopMessageResponse {
            pop_time: self.now.wall_ms,
            invisible_time: pop.invisible_ms,
            revive_qid: if pop.is_ordered { REVIVE_QUEUE_ORDERED } else { 0 },
            rest_num: 0,
            start_offset_info: None,
            msg_offset_info: None,
            order_count_info: None,
        };
        fx.replies.push(pop.to, code, Some(remark), &response, &[]);
    }
}

/// Adds to a list of infos.
fn put_info(infos: &mut String, info: std::fmt::Arguments<'_>) {
    let separator = if infos.is_empty() { "" } else { ";" };
    write!(infos, "{separator}{info}").expect("a String takes it");
}
