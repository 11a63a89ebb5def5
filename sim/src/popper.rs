//! Consumers that pop: what one is given it acknowledges, wants for longer or shorter, or forgets. Two of a group compete on a shard.

use std::collections::BTreeMap;

use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::{StoredMessage, messages};
use ringmq_protocol::name;
use ringmq_protocol::properties::names;
use ringmq_protocol::receipt::{PopSource, Receipt};
use ringmq_protocol::request::{
    AckMessageRequest, ChangeInvisibleTimeRequest, ChangeInvisibleTimeResponse, PopMessageRequest,
    PopMessageResponse,
};
use ringmq_protocol::types::QueueOffset;
use ringmq_ring::sim::Random;

use crate::checker::{Anomaly, MessageId, Queue, TopicId, position_in};
use crate::client::{Asked, Context, Topic};
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
    Ack(Given),
    Change(Given),
}

pub(crate) struct Popper {
    invisible_ms: i64,
    poll_ms: i64,
    messages_max: i32,
    forget_percent: u64,
    is_asked: bool,
    pop_at: u64,
    /// What is to be said of messages, and when.
    to_say: Vec<(u64, Given)>,
}

impl Popper {
    pub(crate) fn new(random: &mut Random) -> Popper {
        Popper {
            invisible_ms: INVISIBLE_MS[random.below(4) as usize],
            poll_ms: [0, 50, 2_000, 15_000][random.below(4) as usize],
            messages_max: [1, 8, 32][random.below(3) as usize],
            forget_percent: [0, 10, 50][random.below(3) as usize],
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
            let asked = Asked::Popping(Popping::Pop(topic));
            ctx.counts.requests += 1;
            wire.ask(ctx.now, RequestCode::POP_MESSAGE, &request, Vec::new(), asked);
        }
        let now = ctx.now;
        for (_, given) in self.to_say.extract_if(.., |(at, _)| *at <= now) {
            // Too busy to say more: that is forgotten.
            if wire.outstanding() < OUTSTANDING_MAX {
                say(wire, ctx, given);
            }
        }
    }

    pub(crate) fn on_answer(&mut self, asked: Asked, answer: &RemotingCommand, ctx: &mut Context<'_>) {
        let Asked::Popping(asked) = asked else { unreachable!("poppers ask for nothing else") };
        let code = ResponseCode(answer.code);
        match asked {
            Popping::Pop(topic) => self.on_popped(topic, answer, ctx),
            Popping::Ack(given) if code == ResponseCode::SUCCESS => {
                ctx.checker.acknowledged_pop(ctx.core, given.id, given.turn, ctx.wall_ms);
            }
            Popping::Change(given) if code == ResponseCode::SUCCESS => self.on_changed(given, answer, ctx),
            // The receipt does not count any more.
            Popping::Change(_) if code == ResponseCode::MESSAGE_ILLEGAL => {}
            Popping::Ack(given) | Popping::Change(given)
                if code == ResponseCode::NO_MESSAGE && ctx.checker.is_deletable(given.position) => {}
            _ if ctx.may_refuse_write(answer) || ctx.may_refuse_read(answer) => {}
            _ => ctx.unexpected("what was said of a popped message", answer),
        }
    }

    fn on_popped(&mut self, topic: TopicId, answer: &RemotingCommand, ctx: &mut Context<'_>) {
        self.is_asked = false;
        self.pop_at = ctx.now + ctx.random.below(5_000_000);
        match ResponseCode(answer.code) {
            ResponseCode::SUCCESS => {}
            ResponseCode::POLLING_TIMEOUT | ResponseCode::POLLING_FULL => return,
            _ if ctx.may_refuse_write(answer) || ctx.may_refuse_read(answer) => {
                return self.pop_at = ctx.now + 20_000_000;
            }
            _ => return ctx.unexpected("pop", answer),
        }
        for given in take(topic, answer, ctx) {
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

/// Acknowledges most messages; of some it wants to have the time changed.
fn say(wire: &mut Wire<Asked>, ctx: &mut Context<'_>, given: Given) {
    ctx.counts.requests += 1;
    let (consumer_group, topic) = (group(ctx.core).into(), given.topic.clone().into());
    let (queue_id, extra_info, offset) = (given.queue_id, given.receipt.clone().into(), given.offset);
    if ctx.random.chance(20) {
        let invisible_time = [0, 50, 1_000, 20_000][ctx.random.below(4) as usize];
        let request = ChangeInvisibleTimeRequest {
            consumer_group,
            topic,
            queue_id,
            extra_info,
            offset,
            invisible_time,
        };
        ctx.checker.changing(ctx.core, given.id, given.turn);
        let code = RequestCode::CHANGE_MESSAGE_INVISIBLETIME;
        wire.ask(ctx.now, code, &request, Vec::new(), Asked::Popping(Popping::Change(given.clone())));
    } else {
        let request = AckMessageRequest { consumer_group, topic, queue_id, extra_info, offset };
        ctx.checker.acknowledging(ctx.core, given.id, given.turn);
        let asked = Asked::Popping(Popping::Ack(given.clone()));
        wire.ask(ctx.now, RequestCode::ACK_MESSAGE, &request, Vec::new(), asked);
    }
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
