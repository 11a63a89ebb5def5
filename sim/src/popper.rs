//! Consumers that pop: what one is given it acknowledges, alone or with others, wants for longer or shorter, or forgets. Two of a group
//! compete on a shard; the groups of some worlds pop in order.

use std::collections::BTreeMap;

use ringmq_protocol::body::{BatchAck, BatchAckBody, Body};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::{StoredMessage, messages};
use ringmq_protocol::name;
use ringmq_protocol::properties::names;
use ringmq_protocol::receipt::{PopSource, Receipt};
use ringmq_protocol::request::{
    AckMessageRequest, ChangeInvisibleTimeRequest, ChangeInvisibleTimeResponse, PollingInfoRequest,
    PopMessageRequest, PopMessageResponse,
};
use ringmq_protocol::types::QueueOffset;
use ringmq_ring::sim::Random;

use crate::checker::{Anomaly, MessageId, Queue, TopicId, position_in};
use crate::client::{Asked, Context, Topic};
use crate::ring::Planted;
use crate::wire::Wire;

/// The topic that is popped, of each shard.
pub(crate) const TOPIC: &str = "orders";
const OUTSTANDING_MAX: usize = 12;
const INVISIBLE_MS: [i64; 4] = [50, 500, 5_000, 60_000];

pub(crate) fn group(core: u64) -> String {
    format!("popper-{core}")
}

/// A message that somebody has a receipt for.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    id: MessageId,
    position: u64,
    /// The topic and queue that it was popped from.
    topic: String,
    queue_id: i32,
    offset: i64,
    /// As the checker counts them.
    turn: usize,
    receipt: String,
}

impl Given {
    /// The auditor takes it, and nobody is to have it again.
    pub(crate) fn keep(&self, ctx: &mut Context<'_>) {
        ctx.checker.acknowledging(ctx.core, self.id, self.turn);
    }
}

/// What was asked.
#[derive(Debug)]
pub(crate) enum Popping {
    Pop(TopicId),
    /// With one request, or one alone.
    Acks(Vec<Given>),
    Change(Given),
}

pub(crate) struct Popper {
    invisible_ms: i64,
    poll_ms: i64,
    messages_max: i32,
    forget_percent: u64,
    is_ordered: bool,
    /// Of the pops of this popper, told from those of others: the same until there is an answer.
    attempt: u64,
    planted: Option<Planted>,
    is_asked: bool,
    pop_at: u64,
    /// What is to be said of messages, and when.
    to_say: Vec<(u64, Given)>,
}

impl Popper {
    pub(crate) fn new(random: &mut Random, is_ordered: bool, planted: Option<Planted>) -> Popper {
        Popper {
            invisible_ms: INVISIBLE_MS[random.below(4) as usize],
            poll_ms: [0, 50, 2_000, 15_000][random.below(4) as usize],
            messages_max: [1, 8, 32][random.below(3) as usize],
            forget_percent: [0, 10, 50][random.below(3) as usize],
            is_ordered,
            attempt: random.next_u64(),
            planted,
            is_asked: false,
            pop_at: 0,
            to_say: Vec::new(),
        }
    }

    pub(crate) fn next_at(&self) -> u64 {
        let pop = if self.is_asked { u64::MAX } else { self.pop_at };
        self.to_say.iter().map(|(at, _)| *at).min().unwrap_or(u64::MAX).min(pop)
    }

    /// What it holds may still be said on the new connection.
    pub(crate) fn on_connected(&mut self) {
        self.is_asked = false;
    }

    pub(crate) fn act(&mut self, wire: &mut Wire<Asked>, ctx: &mut Context<'_>) {
        let topic = ctx.open_topics().find(|topic| topic.name == TOPIC).map(|topic| topic.id);
        let Some(topic) = topic else { return self.pop_at = ctx.now + 1_000_000 };
        if !self.is_asked && ctx.now >= self.pop_at {
            self.is_asked = true;
            let request = pop_request(ctx.core, self.messages_max, self.invisible_ms, self.poll_ms);
            let attempt_id = Some(self.attempt.to_string().into()).filter(|_| self.is_ordered);
            let request = PopMessageRequest { order: self.is_ordered, attempt_id, ..request };
            let asked = Asked::Popping(Popping::Pop(topic));
            ctx.counts.requests += 1;
            wire.ask(ctx.now, RequestCode::POP_MESSAGE, &request, Vec::new(), asked);
        }
        let now = ctx.now;
        let due = self.to_say.extract_if(.., |(at, _)| *at <= now);
        let mut done: Vec<Given> = Vec::new();
        for (_, given) in due {
            // Too busy to say more: that is forgotten.
            if wire.outstanding() + done.len() >= OUTSTANDING_MAX {
                continue;
            }
            if ctx.random.chance(20) {
                ask_change(wire, ctx, given);
            } else {
                ctx.checker.acknowledging(ctx.core, given.id, given.turn);
                done.push(given);
            }
        }
        if self.planted == Some(Planted::IdleAcks) {
            done.into_iter().for_each(|given| only_pretend_to_ack(wire, ctx, given));
        } else if done.len() > 1 || !done.is_empty() && ctx.random.chance(20) {
            ask_acks(wire, ctx, done);
        } else {
            done.into_iter().for_each(|given| ask_ack(wire, ctx, given));
        }
    }

    pub(crate) fn on_answer(&mut self, asked: Asked, answer: &RemotingCommand, ctx: &mut Context<'_>) {
        let Asked::Popping(asked) = asked else { unreachable!("poppers ask for nothing else") };
        let code = ResponseCode(answer.code);
        match asked {
            Popping::Pop(topic) => self.on_popped(topic, answer, ctx),
            Popping::Acks(all) if code == ResponseCode::SUCCESS => {
                for given in all {
                    ctx.checker.acknowledged_pop(ctx.core, given.id, given.turn, ctx.wall_ms);
                }
            }
            Popping::Change(given) if code == ResponseCode::SUCCESS => self.on_changed(given, answer, ctx),
            // The receipt does not count any more.
            Popping::Change(_) if code == ResponseCode::MESSAGE_ILLEGAL => {}
            Popping::Change(given)
                if code == ResponseCode::NO_MESSAGE && ctx.checker.is_deletable(given.position) => {}
            Popping::Acks(all)
                if code == ResponseCode::NO_MESSAGE
                    && all.iter().any(|given| ctx.checker.is_deletable(given.position)) => {}
            _ if ctx.may_refuse_write(answer) || ctx.may_refuse_read(answer) => {}
            _ => ctx.unexpected("what was said of a popped message", answer),
        }
    }

    fn on_popped(&mut self, topic: TopicId, answer: &RemotingCommand, ctx: &mut Context<'_>) {
        self.is_asked = false;
        self.attempt = self.attempt.wrapping_add(1);
        self.pop_at = ctx.now + ctx.random.below(5_000_000);
        match ResponseCode(answer.code) {
            ResponseCode::SUCCESS => {}
            ResponseCode::POLLING_TIMEOUT | ResponseCode::POLLING_FULL => return,
            _ if ctx.may_refuse_write(answer) || ctx.may_refuse_read(answer) => {
                return self.pop_at = ctx.now + 20_000_000;
            }
            _ => return ctx.unexpected("pop", answer),
        }
        let all = take(topic, answer, ctx);
        if self.is_ordered {
            for given in &all {
                let queue = (ctx.core, given.queue_id);
                ctx.checker.popped_in_order(queue, given.offset as u64, given.id, given.turn, self.attempt);
            }
        }
        for given in all {
            if !ctx.random.chance(self.forget_percent) {
                self.to_say.push((ctx.now + ctx.random.below(300_000_000), given));
            }
        }
    }

    fn on_changed(&mut self, given: Given, answer: &RemotingCommand, ctx: &mut Context<'_>) {
        let changed = ChangeInvisibleTimeResponse::decode(&answer.header().ext);
        let (Ok(changed), Ok(old)) = (changed, Receipt::parse(&given.receipt)) else {
            return ctx.unexpected("change of a time, without its fields", answer);
        };
        let until = changed.pop_time + changed.invisible_time;
        ctx.checker.changed(ctx.core, given.id, given.turn, changed.pop_time, until);
        let receipt = Receipt {
            start_offset: QueueOffset(given.offset as u64),
            pop_time: changed.pop_time,
            invisible_time: changed.invisible_time,
            ..old
        };
        let given = Given { receipt: receipt.to_string(), ..given };
        self.to_say.push((ctx.now + ctx.random.below(300_000_000), given));
    }
}

pub(crate) fn pop_request(
    core: u64,
    max: i32,
    invisible_ms: i64,
    poll_ms: i64,
) -> PopMessageRequest<'static> {
    PopMessageRequest { poll_time: poll_ms, ..PopMessageRequest::new(group(core), TOPIC, max, invisible_ms) }
}

/// Wants another time for a message.
fn ask_change(wire: &mut Wire<Asked>, ctx: &mut Context<'_>, given: Given) {
    let request = ChangeInvisibleTimeRequest {
        consumer_group: group(ctx.core).into(),
        topic: given.topic.clone().into(),
        queue_id: given.queue_id,
        extra_info: given.receipt.clone().into(),
        offset: given.offset,
        invisible_time: [0, 50, 1_000, 20_000][ctx.random.below(4) as usize],
    };
    ctx.counts.requests += 1;
    ctx.checker.changing(ctx.core, given.id, given.turn);
    let code = RequestCode::CHANGE_MESSAGE_INVISIBLETIME;
    wire.ask(ctx.now, code, &request, Vec::new(), Asked::Popping(Popping::Change(given.clone())));
}

fn ask_ack(wire: &mut Wire<Asked>, ctx: &mut Context<'_>, given: Given) {
    let request = AckMessageRequest {
        consumer_group: group(ctx.core).into(),
        topic: given.topic.clone().into(),
        queue_id: given.queue_id,
        extra_info: given.receipt.clone().into(),
        offset: given.offset,
    };
    ctx.counts.requests += 1;
    let asked = Asked::Popping(Popping::Acks(vec![given.clone()]));
    wire.ask(ctx.now, RequestCode::ACK_MESSAGE, &request, Vec::new(), asked);
}

/// [`Planted::IdleAcks`]: another request, which is answered in the same way.
fn only_pretend_to_ack(wire: &mut Wire<Asked>, ctx: &mut Context<'_>, given: Given) {
    let request =
        PollingInfoRequest { consumer_group: group(ctx.core).into(), topic: TOPIC.into(), queue_id: 0 };
    let asked = Asked::Popping(Popping::Acks(vec![given]));
    wire.ask(ctx.now, RequestCode::POLLING_INFO, &request, Vec::new(), asked);
}

/// One request for all, with those together that came from one queue with one pop.
fn ask_acks(wire: &mut Wire<Asked>, ctx: &mut Context<'_>, all: Vec<Given>) {
    let mut queues: BTreeMap<(PopSource, i32, i64), (Receipt<'_>, Vec<i64>)> = BTreeMap::new();
    for given in &all {
        let receipt = Receipt::parse(&given.receipt).expect("of the broker, or made here");
        let key = (receipt.source, given.queue_id, receipt.pop_time);
        queues.entry(key).or_insert_with(|| (receipt, Vec::new())).1.push(given.offset);
    }
    let acks = queues.into_iter().map(|((source, queue_id, pop_time), (receipt, offsets))| {
        let start_offset = *offsets.iter().min().expect("one is there");
        BatchAck {
            offsets: offsets.iter().map(|offset| (offset - start_offset) as u32).collect(),
            consumer_group: group(ctx.core),
            invisible_time: receipt.invisible_time,
            pop_time,
            queue_id,
            retry: source.flag().to_string(),
            revive_queue_id: receipt.revive_queue_id,
            start_offset,
            topic: TOPIC.to_owned(),
        }
    });
    let body = BatchAckBody { acks: acks.collect(), broker_name: format!("broker-a-{}", ctx.core) };
    ctx.counts.requests += 1;
    let asked = Asked::Popping(Popping::Acks(all.clone()));
    wire.ask(ctx.now, RequestCode::BATCH_ACK_MESSAGE, &(), body.to_json(), asked);
}

/// The messages of an answer, checked, with their receipts: those that came with them, or made as clients make them.
pub(crate) fn take(topic: TopicId, answer: &RemotingCommand, ctx: &mut Context<'_>) -> Vec<Given> {
    let Ok(response) = PopMessageResponse::decode(&answer.header().ext) else {
        ctx.unexpected("pop, without its fields", answer);
        return Vec::new();
    };
    let starts = starts(response.start_offset_info.as_deref().unwrap_or_default());
    let mut all = Vec::new();
    for message in messages(&answer.body) {
        let given = message.ok().and_then(|message| given(&message, &response, &starts, topic, ctx));
        let Some(given) = given else {
            ctx.checker.report(Anomaly::WrongBytes, "a popped message without its key or receipt");
            break;
        };
        all.push(given);
    }
    all
}

fn given(
    message: &StoredMessage<'_>,
    response: &PopMessageResponse<'_>,
    starts: &BTreeMap<(PopSource, u32), u64>,
    topic: TopicId,
    ctx: &mut Context<'_>,
) -> Option<Given> {
    let id = message.property(names::KEYS).and_then(MessageId::parse)?;
    let known = message.property(names::POP_CK);
    let is_retry = known.is_some() || name::is_retry_topic(message.topic());
    let source = if is_retry { PopSource::RetryV1 } else { PopSource::Topic };
    let queue_id = message.queue_id();
    if is_retry {
        ctx.checker.received_again(id, message.body());
    } else {
        ctx.look_at(Queue { topic, id: queue_id.0 }, message)?;
    }
    let broker_name = format!("broker-a-{}", ctx.core);
    let made = Receipt {
        start_offset: QueueOffset(*starts.get(&(source, queue_id.0))?),
        pop_time: response.pop_time,
        invisible_time: response.invisible_time,
        revive_queue_id: response.revive_qid,
        source,
        broker_name: &broker_name,
        queue_id,
        queue_offset: Some(message.queue_offset()),
    };
    let until = response.pop_time + response.invisible_time;
    Some(Given {
        id,
        turn: ctx.checker.popped(ctx.core, id, response.pop_time, until),
        position: position_in(ctx.core, message.physical_offset().0),
        topic: source.topic_of(&group(ctx.core), TOPIC),
        queue_id: queue_id.0 as i32,
        offset: message.queue_offset().0 as i64,
        receipt: known.map_or_else(|| made.to_string(), str::to_owned),
    })
}

/// `flag queue start;…`
fn starts(infos: &str) -> BTreeMap<(PopSource, u32), u64> {
    let start = |info: &str| {
        let mut parts = info.split(' ');
        let source = PopSource::from_flag(parts.next()?)?;
        Some(((source, parts.next()?.parse().ok()?), parts.next()?.parse().ok()?))
    };
    infos.split(';').filter_map(start).collect()
}

/// Whether it is the topic that is popped.
pub(crate) fn is_popped(topic: &Topic, core: u64) -> bool {
    topic.core == core && topic.name == TOPIC
}
