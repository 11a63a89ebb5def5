//! A client that sends messages to come later, and cannot process what it gets: it sends back what comes, again and again, to the end
//! in the dead letter topic.

use std::collections::VecDeque;

use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::messages;
use ringmq_protocol::properties::{self, names};
use ringmq_protocol::request::{
    ConsumerSendMsgBackRequest, PullMessageRequest, PullMessageResponse, SendMessageRequest,
};
use ringmq_protocol::types::PhysicalOffset;
use ringmq_ring::sim::Random;

use crate::checker::retries::Retry;
use crate::checker::{Anomaly, MessageId, Queue, SHARD_SHIFT, Sent, TopicId, body_of, position_in};
use crate::client::{Asked, Context, Purpose, TopicState};
use crate::wire::Wire;

/// What a level delays, as the brokers of these worlds are told.
pub(crate) const DELAYS_MS: [i64; 4] = [30, 150, 600, 2_000];
/// Number of the retrier as a producer, on the first shard, and of its group.
const NUMBER: u32 = 300;
/// A message that came so often is dead when it is sent back.
const RETRIES_MAX: i32 = 2;
const OUTSTANDING_MAX: usize = 12;

/// What was asked.
#[derive(Debug)]
pub(crate) enum Late {
    Send(MessageId),
    Pull { is_retry: bool, from: u64 },
    Back { retry: Retry, position: u64 },
}

#[derive(Default)]
struct Cursor {
    next: u64,
    is_asked: bool,
    at: u64,
}

pub(crate) struct Retrier {
    number: u32,
    next_number: u32,
    send_at: u64,
    /// Of the topic of delayed messages, and of the group's retry topic.
    cursors: [Cursor; 2],
    to_send_back: VecDeque<(Retry, u64)>,
    back_percent: u64,
}

impl Retrier {
    pub(crate) fn new(core: u64, random: &mut Random) -> Retrier {
        Retrier {
            number: NUMBER + core as u32,
            next_number: 0,
            send_at: 0,
            cursors: Default::default(),
            to_send_back: VecDeque::new(),
            back_percent: [20, 60, 100][random.below(3) as usize],
        }
    }

    pub(crate) fn group(core: u64) -> (u32, String) {
        (NUMBER + core as u32, format!("retrier-{core}"))
    }

    pub(crate) fn next_at(&self) -> u64 {
        let pulls = self.cursors.iter().filter(|cursor| !cursor.is_asked).map(|cursor| cursor.at);
        pulls.min().unwrap_or(u64::MAX).min(self.send_at)
    }

    pub(crate) fn on_connected(&mut self) {
        self.cursors.iter_mut().for_each(|cursor| cursor.is_asked = false);
    }

    pub(crate) fn act(&mut self, wire: &mut Wire<Asked>, ctx: &mut Context<'_>) {
        let is_late =
            |topic: &&crate::client::Topic| topic.core == ctx.core && topic.purpose == Purpose::Late;
        let topic = ctx.topics.iter().find(is_late).filter(|topic| topic.state == TopicState::Ready);
        let Some(topic) = topic.map(|topic| topic.id) else {
            self.send_at = ctx.now + 1_000_000;
            self.cursors.iter_mut().for_each(|cursor| cursor.at = ctx.now + 1_000_000);
            return;
        };
        if ctx.now >= self.send_at {
            self.send_at = ctx.now + ctx.random.below(20_000_000);
            if wire.outstanding() < OUTSTANDING_MAX {
                self.send(wire, ctx, topic);
            }
        }
        for is_retry in [false, true] {
            let cursor = &self.cursors[usize::from(is_retry)];
            if !cursor.is_asked && ctx.now >= cursor.at {
                self.pull(wire, ctx, topic, is_retry);
            }
        }
        while wire.outstanding() < OUTSTANDING_MAX
            && let Some((retry, position)) = self.to_send_back.pop_front()
        {
            send_back(wire, ctx, retry, position);
        }
    }

    fn send(&mut self, wire: &mut Wire<Asked>, ctx: &mut Context<'_>, topic: TopicId) {
        let id = MessageId { producer: self.number, number: self.next_number };
        self.next_number += 1;
        let level = ctx.random.below(DELAYS_MS.len() as u64) as usize;
        let body_bytes = ctx.random.between(1, 2_000) as u32;
        // Of no connection: what is delayed comes in another order.
        let connection = u64::from(self.number) << 32 | u64::from(id.number) | 1 << 60;
        ctx.checker.sent(id, Sent { topic, tag: 0, body_bytes, connection, at: ctx.now });
        let (key, level) = (id.to_string(), (level + 1).to_string());
        let pairs = [(names::KEYS, &*key), (names::DELAY_TIME_LEVEL, &*level)];
        let properties = properties::encode(pairs).expect("keys and levels have no separators");
        let request = SendMessageRequest {
            producer_group: "producers".into(),
            topic: ctx.topics[topic.0].name.clone().into(),
            default_topic: "TBW102".into(),
            default_topic_queue_nums: 1,
            queue_id: 0,
            sys_flag: 0,
            born_timestamp: ctx.wall_ms,
            flag: 0,
            properties: Some(String::from_utf8(properties).expect("made of text").into()),
            reconsume_times: 0,
            unit_mode: false,
            max_reconsume_times: None,
            batch: false,
            broker_name: None,
        };
        ctx.counts.requests += 1;
        let fields = request.fields_v2();
        let asked = Asked::Late(Late::Send(id));
        wire.ask(ctx.now, RequestCode::SEND_MESSAGE_V2, &fields, body_of(id, body_bytes), asked);
    }

    fn pull(&mut self, wire: &mut Wire<Asked>, ctx: &mut Context<'_>, topic: TopicId, is_retry: bool) {
        let (_, group) = Retrier::group(ctx.core);
        let topic = if is_retry { format!("%RETRY%{group}") } else { ctx.topics[topic.0].name.clone() };
        let cursor = &mut self.cursors[usize::from(is_retry)];
        cursor.is_asked = true;
        let request = PullMessageRequest {
            max_msg_nums: 8,
            ..PullMessageRequest::new(group, topic, 0, cursor.next as i64).filtered("*")
        };
        let asked = Asked::Late(Late::Pull { is_retry, from: cursor.next });
        wire.ask(ctx.now, RequestCode::PULL_MESSAGE, &request, Vec::new(), asked);
    }

    pub(crate) fn on_answer(&mut self, asked: Asked, answer: &RemotingCommand, ctx: &mut Context<'_>) {
        let Asked::Late(asked) = asked else { unreachable!("retriers ask for nothing else") };
        let is_ok = answer.code == ResponseCode::SUCCESS.0;
        match asked {
            Late::Pull { is_retry, from } => self.on_pulled(is_retry, from, answer, ctx),
            Late::Send(id) if is_ok => ctx.checker.accepted(ctx.core, id),
            Late::Back { retry, .. } if is_ok => ctx.checker.sent_back(retry),
            Late::Back { retry, position }
                if answer.code == ResponseCode::SYSTEM_ERROR.0
                    && (ctx.trouble.reads_failed || ctx.checker.is_deletable(position)) =>
            {
                ctx.checker.not_sent_back(retry);
            }
            Late::Send(_) | Late::Back { .. } if !ctx.may_refuse_write(answer) => {
                ctx.unexpected("delayed send or send-back", answer);
            }
            // After a failed write nobody can say what is stored.
            _ if ctx.trouble.log_failed && answer.code != ResponseCode::SYSTEM_BUSY.0 => {}
            Late::Send(id) => ctx.checker.refused(id),
            Late::Back { retry, .. } => ctx.checker.not_sent_back(retry),
        }
    }

    fn on_pulled(&mut self, is_retry: bool, from: u64, answer: &RemotingCommand, ctx: &mut Context<'_>) {
        let cursor = &mut self.cursors[usize::from(is_retry)];
        cursor.is_asked = false;
        cursor.at = ctx.now + 2_000_000;
        let next =
            PullMessageResponse::decode(&answer.header().ext).map(|next| next.next_begin_offset as u64);
        match (ResponseCode(answer.code), next) {
            (ResponseCode::SUCCESS | ResponseCode::PULL_RETRY_IMMEDIATELY, Ok(next)) if next > from => {
                cursor.next = next;
                self.take(is_retry, from..next, answer, ctx);
            }
            (ResponseCode::PULL_OFFSET_MOVED, Ok(next)) => cursor.next = next,
            (ResponseCode::PULL_NOT_FOUND, _) => {}
            // Nothing was sent back so far.
            (ResponseCode::TOPIC_NOT_EXIST, _) if is_retry => cursor.at = ctx.now + 20_000_000,
            // Only a new group needs a record.
            _ if ctx.may_refuse_read(answer) || ctx.may_refuse_write(answer) => {
                cursor.at = ctx.now + 20_000_000
            }
            _ => ctx.unexpected("pull of what is late", answer),
        }
    }

    fn take(
        &mut self,
        is_retry: bool,
        range: std::ops::Range<u64>,
        answer: &RemotingCommand,
        ctx: &mut Context<'_>,
    ) {
        let is_late =
            |topic: &&crate::client::Topic| topic.core == ctx.core && topic.purpose == Purpose::Late;
        let topic = ctx.topics.iter().find(is_late).expect("it was asked for").id;
        let queue = Queue { topic, id: 0 };
        let mut seen = Vec::new();
        for message in messages(&answer.body) {
            let Ok(message) = message else { return ctx.unexpected("pull, without messages", answer) };
            let Some(id) = message.property(names::KEYS).and_then(MessageId::parse) else {
                return ctx.checker.report(Anomaly::WrongBytes, "a late message without its key");
            };
            if is_retry {
                ctx.checker.received_again(id, message.body());
            } else {
                seen.extend(ctx.look_at(queue, &message));
            }
            if ctx.random.chance(self.back_percent) {
                let (group, _) = Retrier::group(ctx.core);
                let position = position_in(ctx.core, message.physical_offset().0);
                self.to_send_back.push_back(((group, id, message.reconsume_times()), position));
            }
        }
        if !is_retry {
            ctx.checker.pulled(queue, range, &[], &seen);
        }
    }
}

fn send_back(wire: &mut Wire<Asked>, ctx: &mut Context<'_>, retry: Retry, position: u64) {
    let (_, group) = Retrier::group(ctx.core);
    let request = ConsumerSendMsgBackRequest {
        offset: PhysicalOffset(position & ((1 << SHARD_SHIFT) - 1)),
        group: group.into(),
        delay_level: ctx.random.below(6) as i32 - 1,
        origin_msg_id: None,
        origin_topic: None,
        unit_mode: false,
        max_reconsume_times: Some(RETRIES_MAX),
        broker_name: None,
    };
    ctx.checker.sending_back(retry);
    ctx.counts.requests += 1;
    let asked = Asked::Late(Late::Back { retry, position });
    wire.ask(ctx.now, RequestCode::CONSUMER_SEND_MSG_BACK, &request, Vec::new(), asked);
}
