//! The administrator: makes the topics, and makes, fills and deletes one over and over.

use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::request::{CreateTopicRequest, DeleteTopicRequest, PullMessageRequest};
use ringmq_ring::sim::Random;

use crate::checker::TopicId;
use crate::client::{Asked, Context, Purpose, Topic, TopicState};
use crate::producer::{Producer, on_send_answer};
use crate::wire::Wire;

/// Number of the producer that fills the topics to be deleted, on the first shard.
const PRODUCER: u32 = 100;

pub(crate) struct Admin {
    producer: Producer,
    next_at: u64,
    /// Sends that the topic to be deleted is still to get.
    sends_left: u64,
    scratches: u32,
    /// Whether a name may get a second topic: not if the record of a deletion may be lost.
    reuses_names: bool,
}

impl Admin {
    pub(crate) fn new(core: u64, reuses_names: bool, random: &mut Random) -> Admin {
        let producer = Producer::new(PRODUCER + core as u32, random);
        Admin { producer, next_at: 0, sends_left: 0, scratches: 0, reuses_names }
    }

    pub(crate) fn next_at(&self) -> u64 {
        self.next_at
    }

    pub(crate) fn on_connected(&mut self, ctx: &mut Context<'_>) {
        let core = ctx.core;
        let is_meant = |topic: &&mut Topic| topic.core == core && topic.state == TopicState::Deleting;
        for topic in ctx.topics.iter_mut().filter(is_meant) {
            topic.state = TopicState::Unknown;
        }
    }

    pub(crate) fn act(&mut self, wire: &mut Wire<Asked>, ctx: &mut Context<'_>) {
        if ctx.now < self.next_at || wire.outstanding() > 8 {
            return;
        }
        self.next_at = ctx.now + ctx.random.between(100_000, 20_000_000);
        let own = || ctx.topics.iter().filter(|topic| topic.core == ctx.core);
        let wanted = own().find(|topic| topic.state == TopicState::Wanted).cloned();
        let last = own().rfind(|topic| topic.purpose == Purpose::Scratch).cloned();
        if let Some(topic) = wanted {
            return create(wire, ctx.now, &topic);
        }
        match last {
            Some(topic) if topic.state == TopicState::Ready && self.sends_left > 0 => {
                self.sends_left -= 1;
                self.producer.send(wire, ctx, topic.id, Some(0), self.sends_left as usize % 3);
            }
            Some(topic) if topic.state == TopicState::Ready => {
                wait_at(wire, ctx, &topic);
                ctx.checker.forsake(topic.id);
                ctx.topics[topic.id.0].state = TopicState::Deleting;
                let request = DeleteTopicRequest { topic: topic.name.into() };
                let asked = Asked::DeleteTopic(topic.id);
                wire.ask(ctx.now, RequestCode::DELETE_TOPIC_IN_BROKER, &request, Vec::new(), asked);
            }
            Some(topic) if topic.state == TopicState::Deleting => {}
            // A name is used again once it is surely free.
            Some(topic)
                if topic.state == TopicState::Deleted && self.reuses_names && ctx.random.chance(50) =>
            {
                self.add_scratch(ctx, topic.name);
            }
            _ => {
                self.scratches += 1;
                self.add_scratch(ctx, format!("scratch-{}", self.scratches));
            }
        }
    }

    fn add_scratch(&mut self, ctx: &mut Context<'_>, name: String) {
        self.sends_left = ctx.random.below(6);
        let id = TopicId(ctx.topics.len());
        let core = ctx.core;
        ctx.topics.push(Topic {
            id,
            core,
            name,
            queues: 1,
            state: TopicState::Wanted,
            purpose: Purpose::Scratch,
            keeps_ms: None,
        });
    }

    pub(crate) fn on_answer(&mut self, asked: Asked, answer: &RemotingCommand, ctx: &mut Context<'_>) {
        let is_ok = answer.code == ResponseCode::SUCCESS.0;
        match asked {
            Asked::CreateTopic(id) if is_ok => {
                if ctx.topics[id.0].state == TopicState::Wanted {
                    ctx.topics[id.0].state = TopicState::Ready;
                }
            }
            Asked::DeleteTopic(id) if is_ok => ctx.topics[id.0].state = TopicState::Deleted,
            Asked::CreateTopic(_) | Asked::DeleteTopic(_) => {
                if let Asked::DeleteTopic(id) = asked {
                    ctx.topics[id.0].state = TopicState::Unknown;
                }
                if !ctx.may_refuse_write(answer) {
                    ctx.unexpected("creation or deletion of a topic", answer);
                }
            }
            Asked::Send(sending) => on_send_answer(sending, answer, ctx),
            Asked::PullScratch => {}
            other => unreachable!("administrators do not ask {other:?}"),
        }
    }
}

fn create(wire: &mut Wire<Asked>, now: u64, topic: &Topic) {
    let mut request = CreateTopicRequest::new(&*topic.name, topic.queues as i32);
    request.attributes = topic.keeps_ms.map(|ms| format!("+ringmq.retention={ms}ms").into());
    let asked = Asked::CreateTopic(topic.id);
    wire.ask(now, RequestCode::UPDATE_AND_CREATE_TOPIC, &request, Vec::new(), asked);
}

/// Leaves a pull at the end of a queue that is about to go: it has to be answered all the same.
fn wait_at(wire: &mut Wire<Asked>, ctx: &mut Context<'_>, topic: &Topic) {
    let request = PullMessageRequest::new("waiting", &*topic.name, 0, ctx.random.below(8) as i64)
        .filtered("*")
        .held(15_000);
    wire.ask(ctx.now, RequestCode::PULL_MESSAGE, &request, Vec::new(), Asked::PullScratch);
}
