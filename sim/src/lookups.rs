//! Look-ups that consumers make now and then: the ends of a queue, a message by its place or its key, an offset by time.
//!
//! U1  What is found is what the checker knows; what is known and not deleted is found.
//! U2  A look-up may be refused while something is wrong with reads or indexes, and not otherwise.

use std::borrow::Cow;

use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::messages;
use ringmq_protocol::request::{
    BoundaryType, GetMaxOffsetRequest, GetMinOffsetRequest, OffsetResponse, QueryMessageRequest,
    SearchOffsetRequest, ViewMessageByIdRequest,
};
use ringmq_protocol::types::{PhysicalOffset, QueueId};

use crate::checker::{Anomaly, MessageId, Queue, SHARD_SHIFT};
use crate::client::{Asked, Context};
use crate::wire::Wire;

/// A question, and what has to come of it.
#[derive(Clone, Debug)]
pub(crate) enum LookUp {
    MaxOffset {
        queue: Queue,
        at_least: u64,
    },
    MinOffset {
        queue: Queue,
        at_least: u64,
    },
    View {
        id: MessageId,
        position: u64,
    },
    Key {
        id: MessageId,
        position: u64,
    },
    Time {
        queue: Queue,
        ms: i64,
        boundary: BoundaryType,
        /// Messages below this offset had been seen when it was asked.
        seen_end: u64,
    },
}

impl LookUp {
    /// A question about a queue of this shard, or any message there.
    pub(crate) fn draw(queue: Queue, ctx: &mut Context<'_>) -> Option<LookUp> {
        let kind = ctx.random.below(5);
        match kind {
            0 => Some(LookUp::MaxOffset { queue, at_least: ctx.checker.known_end(queue) }),
            1 => Some(LookUp::MinOffset { queue, at_least: ctx.checker.first_at_least(queue) }),
            2 => {
                let (ms, seen_end) = ctx.checker.any_time(queue, ctx.random.next_u64())?;
                let ms = ms + ctx.random.below(3) as i64 - 1;
                let boundary = if ctx.random.chance(50) { BoundaryType::Lower } else { BoundaryType::Upper };
                Some(LookUp::Time { queue, ms, boundary, seen_end })
            }
            _ => {
                let (id, position) = ctx.checker.any_known(ctx.random.next_u64())?;
                let topic = ctx.checker.topic_of(id)?;
                let is_here = position >> SHARD_SHIFT == ctx.core && !ctx.checker.is_forsaken(topic);
                let look_up =
                    || if kind == 3 { LookUp::View { id, position } } else { LookUp::Key { id, position } };
                is_here.then(look_up)
            }
        }
    }

    pub(crate) fn ask(self, wire: &mut Wire<Asked>, ctx: &mut Context<'_>) {
        let name = |queue: &Queue| Cow::from(ctx.topics[queue.topic.0].name.clone());
        let now = ctx.now;
        let mut ask = |code, fields: &dyn ringmq_protocol::frame::Fields| {
            wire.ask(now, code, fields, Vec::new(), Asked::LookUp(self.clone()));
        };
        match &self {
            LookUp::MaxOffset { queue, .. } => {
                let (topic, queue_id) = (name(queue), QueueId(queue.id));
                let request = GetMaxOffsetRequest { topic, queue_id, committed: true };
                ask(RequestCode::GET_MAX_OFFSET, &request);
            }
            LookUp::MinOffset { queue, .. } => {
                let request = GetMinOffsetRequest { topic: name(queue), queue_id: QueueId(queue.id) };
                ask(RequestCode::GET_MIN_OFFSET, &request);
            }
            LookUp::View { position, .. } => {
                let offset = PhysicalOffset(position & ((1 << SHARD_SHIFT) - 1));
                ask(RequestCode::VIEW_MESSAGE_BY_ID, &ViewMessageByIdRequest { topic: None, offset });
            }
            LookUp::Key { id, .. } => {
                let topic = ctx.checker.topic_of(*id).expect("it was sent");
                let request = QueryMessageRequest {
                    topic: ctx.topics[topic.0].name.clone().into(),
                    key: id.to_string().into(),
                    max_num: 32,
                    begin_timestamp: 0,
                    end_timestamp: i64::MAX,
                    unique_key_query: false,
                };
                ask(RequestCode::QUERY_MESSAGE, &request);
            }
            LookUp::Time { queue, ms, boundary, .. } => {
                let request = SearchOffsetRequest {
                    topic: name(queue),
                    queue_id: QueueId(queue.id),
                    timestamp: *ms,
                    boundary_type: *boundary,
                };
                ask(RequestCode::SEARCH_OFFSET_BY_TIMESTAMP, &request);
            }
        }
    }

    pub(crate) fn on_answer(self, answer: &RemotingCommand, ctx: &mut Context<'_>) {
        let code = ResponseCode(answer.code);
        let is_ok = code == ResponseCode::SUCCESS;
        let offset = || OffsetResponse::decode(&answer.header().ext).map(|response| response.offset as u64);
        ctx.counts.look_ups += 1;
        match self {
            _ if !is_ok && ctx.may_refuse_read(answer) => {}
            LookUp::MaxOffset { queue, at_least } => match offset() {
                Ok(offset) if is_ok && offset < at_least && !ctx.checker.has_rot() => {
                    let text = format!("{queue} ends at {offset}, {at_least} was known");
                    ctx.checker.report(Anomaly::Phantom, text);
                }
                Ok(_) if is_ok => {}
                _ => ctx.unexpected("query of a queue's end", answer),
            },
            LookUp::MinOffset { queue, at_least } => match offset() {
                Ok(offset) if is_ok && offset >= at_least => ctx.checker.moved(queue, 0, offset),
                Ok(offset) if is_ok && !ctx.checker.has_rot() && !ctx.checker.is_shortened(queue) => {
                    let text = format!("{queue} begins at {offset}, all below {at_least} is released");
                    ctx.checker.report(Anomaly::Resurrected, text);
                }
                Ok(_) if is_ok => {}
                _ => ctx.unexpected("query of a queue's beginning", answer),
            },
            LookUp::Time { queue, ms, boundary, seen_end } => match offset() {
                Ok(offset) if is_ok => {
                    let is_upper = boundary == BoundaryType::Upper;
                    ctx.checker.found_by_time(queue, ms, is_upper, seen_end, offset);
                }
                _ => ctx.unexpected("look-up by time", answer),
            },
            LookUp::View { id, position } | LookUp::Key { id, position } => {
                let is_absent = matches!(code, ResponseCode::SYSTEM_ERROR | ResponseCode::QUERY_NOT_FOUND);
                if is_ok {
                    return on_found(id, position, answer, ctx);
                }
                // It is there only when the disk has it.
                let is_excused = ctx.checker.is_deletable(position)
                    || ctx.checker.has_rot()
                    || ctx.checker.is_async()
                    || ctx.trouble.reads_failed;
                if !is_absent || !is_excused {
                    ctx.unexpected(&format!("look-up of {id} at {position}"), answer);
                }
            }
        }
    }
}

fn on_found(id: MessageId, position: u64, answer: &RemotingCommand, ctx: &mut Context<'_>) {
    let mut count = 0;
    for message in messages(&answer.body) {
        count += 1;
        let Ok(message) = message else { return ctx.unexpected("look-up, without messages", answer) };
        let is_of = |topic: &&crate::client::Topic| {
            topic.name == message.topic() && ctx.checker.topic_of(id) == Some(topic.id)
        };
        let Some(topic) = ctx.topics.iter().find(is_of).map(|topic| topic.id) else {
            return ctx.unexpected("look-up, of another topic", answer);
        };
        let seen = ctx.look_at(Queue { topic, id: message.queue_id().0 }, &message);
        if seen.is_some_and(|seen| seen.id != id || seen.position != position) {
            ctx.checker.report(Anomaly::WrongBytes, format!("look-up of {id} gave {seen:?}"));
        }
    }
    if count != 1 {
        ctx.unexpected(&format!("look-up of {id}: {count} messages"), answer);
    }
}
