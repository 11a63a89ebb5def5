//! A simulated client: a connection that it makes again when it is lost, and a role.

use std::net::SocketAddr;

use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::frame::{Codec, RemotingCommand};
use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::properties::names;
use ringmq_ring::sim::{Random, SimNet};

use crate::admin::Admin;
use crate::checker::{Anomaly, Checker, CommitKey, MessageId, Queue, Seen, TopicId, position_in};
use crate::consumer::{Consumer, Pulling};
use crate::lookups::LookUp;
use crate::popper::{Popper, Popping};
use crate::producer::{Producer, Sending};
use crate::retrier::{Late, Retrier};
use crate::wire::Wire;

/// Tags that messages carry; index 0 is none.
pub(crate) const TAGS: [&str; 4] = ["", "TagA", "TagB", "TagC"];

/// How long a client waits before it connects again: longer than anything is on its way, so that what it said on the
/// old connection cannot come after what it says on the new one.
const RECONNECT_NANOS: (u64, u64) = (60_000_000, 300_000_000);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TopicState {
    /// To be made by the administrator.
    Wanted,
    /// There; or to be made by the first send.
    Ready,
    /// Its deletion was asked for.
    Deleting,
    Deleted,
    /// Nobody knows whether its deletion took place.
    Unknown,
}

/// Whose topic it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    All,
    /// Made and deleted all the time, by the administrator alone.
    Scratch,
    /// For messages that come later, and the one who wants them.
    Late,
}

#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) id: TopicId,
    /// The shard that has it; others may have one of the same name.
    pub(crate) core: u64,
    pub(crate) name: String,
    pub(crate) queues: u32,
    pub(crate) state: TopicState,
    pub(crate) purpose: Purpose,
    /// It has a time of its own.
    pub(crate) keeps_ms: Option<u64>,
}

/// What went wrong in this life of the broker, and so may show in its answers.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Trouble {
    pub(crate) disk_was_full: bool,
    pub(crate) log_failed: bool,
    pub(crate) reads_failed: bool,
    /// An index is not what it was, or may not be.
    pub(crate) index_harmed: bool,
    pub(crate) is_stopping: bool,
}

/// How often the interesting things happened.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) busy: u64,
    pub(crate) no_space: u64,
    pub(crate) failed: u64,
    pub(crate) long_polls: u64,
    pub(crate) look_ups: u64,
    /// Pulls that were told of a later beginning of their queue.
    pub(crate) moved: u64,
}

/// What clients share, for the length of one visit.
pub(crate) struct Context<'a> {
    pub(crate) now: u64,
    pub(crate) wall_ms: i64,
    /// Whether new requests are wanted.
    pub(crate) is_active: bool,
    /// The shard that is visited, and where it listens.
    pub(crate) core: u64,
    pub(crate) address: SocketAddr,
    pub(crate) record_bytes_max: u32,
    pub(crate) trouble: Trouble,
    pub(crate) net: &'a SimNet,
    pub(crate) random: &'a mut Random,
    pub(crate) checker: &'a mut Checker,
    pub(crate) topics: &'a mut Vec<Topic>,
    pub(crate) counts: &'a mut Counts,
    pub(crate) connections: &'a mut u64,
}

impl Context<'_> {
    /// Topics of this shard that are there for all.
    pub(crate) fn open_topics(&self) -> impl Iterator<Item = &Topic> {
        let is_open = |topic: &&Topic| topic.state == TopicState::Ready && topic.purpose == Purpose::All;
        self.topics.iter().filter(|topic| topic.core == self.core).filter(is_open)
    }

    pub(crate) fn unexpected(&mut self, what: &str, answer: &RemotingCommand) {
        let remark = answer.remark.as_deref().unwrap_or_default();
        let text = format!("{what}: {} {remark:?}", ResponseCode(answer.code));
        self.checker.report(Anomaly::UnexpectedAnswer, text);
    }

    /// Whether a request that needs a record in the log may be refused, and is so in the way that was announced.
    pub(crate) fn may_refuse_write(&mut self, answer: &RemotingCommand) -> bool {
        let is_full = answer.remark.as_deref().is_some_and(|remark| remark.starts_with("no disk space"));
        match ResponseCode(answer.code) {
            ResponseCode::SYSTEM_BUSY => {
                self.counts.busy += 1;
                true
            }
            ResponseCode::SERVICE_NOT_AVAILABLE if is_full => {
                self.counts.no_space += 1;
                self.trouble.disk_was_full
            }
            ResponseCode::SERVICE_NOT_AVAILABLE => {
                self.counts.failed += 1;
                self.trouble.log_failed
            }
            _ => false,
        }
    }

    /// Whether what has to be read from the disk may be refused.
    pub(crate) fn may_refuse_read(&self, answer: &RemotingCommand) -> bool {
        let is_refused =
            matches!(ResponseCode(answer.code), ResponseCode::SYSTEM_ERROR | ResponseCode::SYSTEM_BUSY);
        is_refused && (self.trouble.reads_failed || self.trouble.index_harmed)
    }

    /// A message in an answer: checked, as far as that can be done at once.
    pub(crate) fn look_at(&mut self, queue: Queue, message: &StoredMessage<'_>) -> Option<Seen> {
        let name = &self.topics[queue.topic.0].name;
        let id = message.property(names::KEYS).and_then(MessageId::parse);
        let is_right = message.verify_crc() && message.topic() == name && message.queue_id().0 == queue.id;
        let Some(id) = id.filter(|_| is_right) else {
            let (topic, id) = (message.topic(), message.queue_id());
            let text = format!("a message of {topic} {id} at {} in {queue}", message.queue_offset());
            self.checker.report(Anomaly::WrongBytes, text);
            return None;
        };
        let tag = message.property(names::TAGS).unwrap_or_default();
        let tag = TAGS.iter().position(|known| *known == tag).unwrap_or(TAGS.len()) as u8;
        self.checker.received(queue.topic, id, tag, message.body());
        Some(Seen {
            offset: message.queue_offset().0,
            id,
            position: position_in(self.core, message.physical_offset().0),
            stored_ms: message.store_timestamp().0,
        })
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) enum Asked {
    Send(Sending),
    Pull(Pulling),
    /// With the topics that it subscribes to.
    Heartbeat(Vec<TopicId>),
    Commit {
        key: CommitKey,
        number: usize,
    },
    QueryOffset {
        key: CommitKey,
        since: Option<usize>,
    },
    LookUp(LookUp),
    Late(Late),
    Popping(Popping),
    CreateTopic(TopicId),
    DeleteTopic(TopicId),
    /// A pull that waits at a queue whose topic is about to be deleted.
    PullScratch,
    /// One of the auditor's.
    Audit,
}

pub(crate) enum Role {
    Producer(Producer),
    Consumer(Consumer),
    Retrier(Retrier),
    Popper(Popper),
    Admin(Admin),
}

pub(crate) struct Client {
    /// The shard that it works with.
    pub(crate) core: u64,
    pub(crate) wire: Option<Wire<Asked>>,
    connect_at: u64,
    was_reset: bool,
    role: Role,
}

impl Client {
    pub(crate) fn new(core: u64, role: Role) -> Client {
        Client { core, wire: None, connect_at: 0, was_reset: false, role }
    }

    /// The group that is surely online by this client, with each topic that it consumes, if retention has to respect it.
    pub(crate) fn online(&self) -> Vec<(u32, TopicId)> {
        match (&self.role, &self.wire) {
            (Role::Consumer(consumer), Some(wire)) if !wire.is_broken() => consumer.online(),
            _ => Vec::new(),
        }
    }

    /// The broker is gone, and with it the connection.
    pub(crate) fn lose(&mut self, connect_at: u64) {
        self.wire = None;
        self.connect_at = connect_at;
    }

    pub(crate) fn reset(&mut self) {
        if let Some(wire) = &mut self.wire {
            wire.reset();
            self.was_reset = true;
        }
    }

    pub(crate) fn next_at(&self, is_active: bool) -> u64 {
        let Some(wire) = &self.wire else { return self.connect_at };
        let role = match &self.role {
            _ if !is_active => u64::MAX,
            Role::Producer(producer) => producer.next_at(wire),
            Role::Consumer(consumer) => consumer.next_at(),
            Role::Retrier(retrier) => retrier.next_at(),
            Role::Popper(popper) => popper.next_at(),
            Role::Admin(admin) => admin.next_at(),
        };
        wire.next_at().map_or(role, |at| at.min(role))
    }

    pub(crate) fn act(&mut self, ctx: &mut Context<'_>) {
        let Some(wire) = &mut self.wire else {
            if ctx.now >= self.connect_at && !ctx.trouble.is_stopping {
                self.connect(ctx);
            }
            return;
        };
        for (asked, answer) in wire.pump(ctx.now, ctx.checker) {
            match &mut self.role {
                Role::Producer(producer) => producer.on_answer(asked, &answer, ctx),
                Role::Consumer(consumer) => consumer.on_answer(asked, &answer, ctx),
                Role::Retrier(retrier) => retrier.on_answer(asked, &answer, ctx),
                Role::Popper(popper) => popper.on_answer(asked, &answer, ctx),
                Role::Admin(admin) => admin.on_answer(asked, &answer, ctx),
            }
        }
        if wire.is_broken() {
            if !std::mem::take(&mut self.was_reset) && !ctx.trouble.is_stopping {
                let text = format!("connection {}", wire.number);
                ctx.checker.report(Anomaly::ClosedConnection, text);
            }
            let (low, high) = RECONNECT_NANOS;
            return self.lose(ctx.now + ctx.random.between(low, high));
        }
        if ctx.is_active && !ctx.trouble.is_stopping {
            match &mut self.role {
                Role::Producer(producer) => producer.act(wire, ctx),
                Role::Consumer(consumer) => consumer.act(wire, ctx),
                Role::Retrier(retrier) => retrier.act(wire, ctx),
                Role::Popper(popper) => popper.act(wire, ctx),
                Role::Admin(admin) => admin.act(wire, ctx),
            }
        }
        wire.flush();
    }

    fn connect(&mut self, ctx: &mut Context<'_>) {
        match connect(ctx) {
            // The codes of POP do not fit the other codec.
            Some(wire) if matches!(self.role, Role::Popper(_)) => self.wire = Some(wire.of_json()),
            Some(wire) => self.wire = Some(wire),
            None => self.connect_at = ctx.now + 50_000_000,
        }
        self.was_reset = false;
        match &mut self.role {
            Role::Producer(_) => {}
            Role::Consumer(consumer) => consumer.on_connected(),
            Role::Retrier(retrier) => retrier.on_connected(),
            Role::Popper(popper) => popper.on_connected(),
            Role::Admin(admin) => admin.on_connected(ctx),
        }
    }
}

/// A new connection to the broker, if it listens.
pub(crate) fn connect(ctx: &mut Context<'_>) -> Option<Wire<Asked>> {
    let client = ctx.net.connect(ctx.address).ok()?;
    *ctx.connections += 1;
    let codec = if ctx.random.chance(50) { Codec::Json } else { Codec::RocketMq };
    Some(Wire::new(*ctx.connections, client, codec))
}
