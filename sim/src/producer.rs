//! A producer: single messages and batches, to several topics and queues, pipelined, some of them one-way.

use ringmq_protocol::batch::BatchEntry;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::id::OffsetMessageId;
use ringmq_protocol::properties::{self, names};
use ringmq_protocol::request::{SendMessageRequest, SendMessageResponse};
use ringmq_ring::sim::Random;

use crate::checker::{MessageId, Queue, Sent, TopicId, body_of, position_in};
use crate::client::{Asked, Context, TAGS};
use crate::wire::Wire;

/// A send under way.
#[derive(Debug)]
pub(crate) struct Sending {
    /// In the order in which they lie in the request.
    messages: Vec<MessageId>,
    topic: TopicId,
    /// `None` if the broker chooses.
    queue: Option<u32>,
    /// Empty, or longer than a record may be.
    is_illegal: bool,
}

#[derive(Clone)]
pub(crate) struct Producer {
    number: u32,
    next_number: u32,
    next_at: u64,
    pipeline: usize,
    /// Longest pause between two sends.
    think: u64,
    body_bytes_max: u32,
    /// Most bodies are not longer.
    body_bytes_usual: u32,
    batch_percent: u64,
}

impl Producer {
    pub(crate) fn new(number: u32, random: &mut Random) -> Producer {
        let body_bytes_max = [64, 1024, 4096, 40_000][random.below(4) as usize];
        Producer {
            number,
            next_number: 0,
            next_at: 0,
            pipeline: [1, 4, 16, 64][random.below(4) as usize],
            think: [20_000, 200_000, 3_000_000][random.below(3) as usize],
            body_bytes_max,
            body_bytes_usual: body_bytes_max / 8,
            batch_percent: random.below(40),
        }
    }

    /// Fills segments faster.
    pub(crate) fn send_more(&mut self) {
        (self.body_bytes_max, self.body_bytes_usual) = (40_000, 20_000);
    }

    pub(crate) fn next_at(&self, wire: &Wire<Asked>) -> u64 {
        if wire.outstanding() < self.pipeline { self.next_at } else { u64::MAX }
    }

    pub(crate) fn act(&mut self, wire: &mut Wire<Asked>, ctx: &mut Context<'_>) {
        while ctx.now >= self.next_at && wire.outstanding() < self.pipeline {
            let ready: Vec<(TopicId, u32)> =
                ctx.open_topics().map(|topic| (topic.id, topic.queues)).collect();
            self.next_at = ctx.now.max(self.next_at + ctx.random.below(self.think));
            let Some((topic, queues)) = ready.get(ctx.random.below(ready.len() as u64) as usize) else {
                self.next_at = ctx.now + 1_000_000;
                return;
            };
            let queue = (!ctx.random.chance(5)).then(|| ctx.random.below(u64::from(*queues)) as u32);
            let count = if ctx.random.chance(self.batch_percent) { ctx.random.between(1, 12) } else { 0 };
            self.send(wire, ctx, *topic, queue, count as usize);
        }
    }

    /// Sends one message, or a batch if `batch` is not 0.
    pub(crate) fn send(
        &mut self,
        wire: &mut Wire<Asked>,
        ctx: &mut Context<'_>,
        topic: TopicId,
        queue: Option<u32>,
        batch: usize,
    ) {
        let is_illegal = batch == 0 && ctx.random.below(300) == 0;
        let is_oneway = ctx.random.chance(8);
        let mut messages = Vec::new();
        let mut body = Vec::new();
        let mut sent_properties = Vec::new();
        for _ in 0..batch.max(1) {
            let id = MessageId { producer: self.number, number: self.next_number };
            self.next_number += 1;
            let body_bytes = match ctx.random.below(100) {
                0..50 if is_illegal => ctx.record_bytes_max,
                50.. if is_illegal => 0,
                0..90 => ctx.random.between(1, u64::from(self.body_bytes_usual)) as u32,
                _ => ctx.random.between(1, u64::from(self.body_bytes_max)) as u32,
            };
            let tag = ctx.random.below(TAGS.len() as u64) as u8;
            let (topic, at) = (topic, ctx.now);
            ctx.checker.sent(id, Sent { topic, tag, body_bytes, connection: wire.number, at });
            let key = id.to_string();
            let pairs = [(names::KEYS, &*key), (names::TAGS, TAGS[usize::from(tag)])];
            let pairs = pairs.into_iter().filter(|(_, value)| !value.is_empty());
            sent_properties = properties::encode(pairs).expect("keys and tags have no separators");
            let content = body_of(id, body_bytes);
            if batch == 0 {
                body = content;
            } else {
                let entry = BatchEntry { flag: 0, body: &content, properties: &sent_properties };
                entry.encode(&mut body).expect("entries are small");
            }
            messages.push(id);
            if body.len() > 80_000 {
                // One more entry and the headers of all still fit in a record.
                break;
            }
        }
        let sent_properties = String::from_utf8(sent_properties).expect("made of text");
        let name = ctx.topics[topic.0].name.clone();
        let request = SendMessageRequest {
            producer_group: "producers".into(),
            topic: name.into(),
            default_topic: "TBW102".into(),
            default_topic_queue_nums: ctx.topics[topic.0].queues as i32,
            queue_id: queue.map_or(-1, |queue| queue as i32),
            sys_flag: 0,
            born_timestamp: ctx.wall_ms,
            flag: 0,
            properties: (batch == 0).then(|| sent_properties.into()),
            reconsume_times: 0,
            unit_mode: false,
            max_reconsume_times: None,
            batch: batch > 0,
            broker_name: None,
        };
        let code = match batch {
            0 if ctx.random.chance(30) => RequestCode::SEND_MESSAGE,
            0 => RequestCode::SEND_MESSAGE_V2,
            _ => RequestCode::SEND_BATCH_MESSAGE,
        };
        let (long, short) = (&request, request.fields_v2());
        let fields: &dyn ringmq_protocol::frame::Fields =
            if code == RequestCode::SEND_MESSAGE { long } else { &short };
        ctx.counts.requests += 1;
        if is_oneway {
            wire.tell(code, fields, body);
        } else {
            let sending = Sending { messages, topic, queue, is_illegal };
            wire.ask(ctx.now, code, fields, body, Asked::Send(sending));
        }
    }

    pub(crate) fn on_answer(&mut self, asked: Asked, answer: &RemotingCommand, ctx: &mut Context<'_>) {
        let Asked::Send(sending) = asked else { unreachable!("producers only send") };
        if answer.code != ResponseCode::SUCCESS.0 {
            self.next_at = self.next_at.max(ctx.now + 1_000_000);
        }
        on_send_answer(sending, answer, ctx);
    }
}

pub(crate) fn on_send_answer(sending: Sending, answer: &RemotingCommand, ctx: &mut Context<'_>) {
    let Sending { messages, topic, queue, is_illegal } = sending;
    match ResponseCode(answer.code) {
        ResponseCode::SUCCESS => on_success(&messages, topic, queue, answer, ctx),
        ResponseCode::MESSAGE_ILLEGAL if is_illegal => {
            messages.iter().for_each(|id| ctx.checker.refused(*id));
        }
        ResponseCode::TOPIC_NOT_EXIST if ctx.checker.is_forsaken(topic) => {}
        _ if ctx.may_refuse_write(answer) => {
            // After a failed write nobody can say what is stored.
            let is_unknown = ctx.trouble.log_failed && answer.code != ResponseCode::SYSTEM_BUSY.0;
            if !is_unknown {
                messages.iter().for_each(|id| ctx.checker.refused(*id));
            }
        }
        _ => ctx.unexpected("send", answer),
    }
}

fn on_success(
    messages: &[MessageId],
    topic: TopicId,
    queue: Option<u32>,
    answer: &RemotingCommand,
    ctx: &mut Context<'_>,
) {
    let header = answer.header();
    let Ok(response) = SendMessageResponse::decode(&header.ext) else {
        return ctx.unexpected("send, without its fields", answer);
    };
    let positions: Vec<u64> = response
        .msg_id
        .split(',')
        .filter_map(|id| id.parse::<OffsetMessageId>().ok())
        .map(|id| position_in(ctx.core, id.physical_offset.0))
        .collect();
    let (Ok(got), Ok(first)) = (u32::try_from(response.queue_id), u64::try_from(response.queue_offset))
    else {
        return ctx.unexpected("send, with a strange place", answer);
    };
    if positions.len() != messages.len() || queue.is_some_and(|queue| queue != got) {
        return ctx.unexpected("send, with other messages or another queue", answer);
    }
    for (index, (id, position)) in messages.iter().zip(positions).enumerate() {
        ctx.checker.acknowledged(*id, Queue { topic, id: got }, first + index as u64, position);
    }
}
