//! A consumer: pulls its queues, waits at their ends, reads old messages again, and commits how far it is.

use ringmq_protocol::body::{
    Body, ConsumerData, HeartbeatData, MessageModel, ProducerData, SubscriptionData,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::messages;
use ringmq_protocol::request::{
    OffsetResponse, PullMessageRequest, PullMessageResponse, QueryConsumerOffsetRequest,
    UpdateConsumerOffsetRequest, pull_flag,
};
use ringmq_protocol::types::QueueId;
use ringmq_ring::sim::Random;

use crate::checker::{Anomaly, CommitKey, Queue, TopicId};
use crate::client::{Asked, Context, TAGS};
use crate::lookups::LookUp;
use crate::wire::Wire;

const HEARTBEAT_NANOS: u64 = 20_000_000_000;

/// A pull under way.
#[derive(Debug)]
pub(crate) struct Pulling {
    queue: Queue,
    from: u64,
    messages_max: usize,
    /// When it was asked, something was known to be in the topic.
    is_known: bool,
    at: u64,
    /// Everything of the topic before this place in the log was released or given up when it was asked.
    released: u64,
    /// If its topic has a time of its own: all before this offset was given up then.
    begin: u64,
}

struct Cursor {
    queue: Queue,
    next: u64,
    is_asked: bool,
    at: u64,
}

pub(crate) struct Consumer {
    group: u32,
    name: String,
    /// Empty means all.
    tags: Vec<u8>,
    /// Whether the pulls carry the filter, or the heartbeats.
    is_filter_sent: bool,
    is_lite: bool,
    hold_ms: i64,
    messages_max: i32,
    /// How often it goes back to the beginning of a queue, in percent of its pulls.
    replay_percent: u64,
    commit_percent: u64,
    cursors: Vec<Cursor>,
    heartbeat_at: u64,
    /// The broker has answered a pull of this group since it started.
    is_group_known: bool,
    is_broadcasting: bool,
    /// What the broker has heard of on this connection.
    subscribed: Vec<TopicId>,
}

impl Consumer {
    pub(crate) fn new(group: u32, random: &mut Random) -> Consumer {
        let tags = [vec![], vec![], vec![1], vec![2, 3], vec![1, 2]][random.below(5) as usize].clone();
        Consumer {
            group,
            name: format!("group-{group}"),
            tags,
            is_filter_sent: random.chance(60),
            is_lite: random.chance(30),
            hold_ms: [0, 50, 2_000, 15_000][random.below(4) as usize],
            messages_max: [1, 8, 32, 1_000][random.below(4) as usize],
            replay_percent: [0, 1, 5][random.below(3) as usize],
            commit_percent: [0, 10, 50][random.below(3) as usize],
            cursors: Vec::new(),
            heartbeat_at: 0,
            is_group_known: false,
            is_broadcasting: group % 3 == 2,
            subscribed: Vec::new(),
        }
    }

    /// What retention has to respect while the connection lives.
    pub(crate) fn online(&self) -> Vec<(u32, TopicId)> {
        if self.is_broadcasting {
            return Vec::new();
        }
        self.subscribed.iter().map(|topic| (self.group, *topic)).collect()
    }

    pub(crate) fn next_at(&self) -> u64 {
        let cursors = self.cursors.iter().filter(|cursor| !cursor.is_asked).map(|cursor| cursor.at);
        cursors.min().unwrap_or(u64::MAX).min(self.heartbeat_at)
    }

    /// After a restart everything has to be asked and said anew.
    pub(crate) fn on_connected(&mut self) {
        self.heartbeat_at = 0;
        self.is_group_known = false;
        self.subscribed.clear();
        self.cursors.iter_mut().for_each(|cursor| cursor.is_asked = false);
    }

    pub(crate) fn act(&mut self, wire: &mut Wire<Asked>, ctx: &mut Context<'_>) {
        self.find_queues(ctx);
        if ctx.now >= self.heartbeat_at {
            self.heartbeat(wire, ctx);
        }
        for index in 0..self.cursors.len() {
            let cursor = &self.cursors[index];
            if cursor.is_asked || ctx.now < cursor.at {
                continue;
            }
            match ctx.random.below(100) {
                0..5 => {
                    if let Some(look_up) = LookUp::draw(self.cursors[index].queue, ctx) {
                        look_up.ask(wire, ctx);
                    }
                }
                5..8 => self.query_commit(wire, ctx, index),
                _ => {}
            }
            if self.cursors[index].next > 0 && ctx.random.chance(self.commit_percent) {
                self.commit(wire, ctx, index);
            }
            self.pull(wire, ctx, index);
        }
    }

    fn find_queues(&mut self, ctx: &Context<'_>) {
        for topic in ctx.open_topics() {
            if self.cursors.iter().any(|cursor| cursor.queue.topic == topic.id) {
                continue;
            }
            let queues = (0..topic.queues).map(|id| Queue { topic: topic.id, id });
            self.cursors.extend(queues.map(|queue| Cursor { queue, next: 0, is_asked: false, at: 0 }));
            // The heartbeat names the new topic.
            self.heartbeat_at = 0;
        }
    }

    fn expression(&self) -> String {
        if self.tags.is_empty() {
            return "*".to_owned();
        }
        let tags: Vec<&str> = self.tags.iter().map(|tag| TAGS[usize::from(*tag)]).collect();
        tags.join(" || ")
    }

    fn heartbeat(&mut self, wire: &mut Wire<Asked>, ctx: &mut Context<'_>) {
        self.heartbeat_at = ctx.now + HEARTBEAT_NANOS;
        let expression = self.expression();
        let data = ConsumerData {
            group_name: self.name.clone(),
            message_model: if self.is_broadcasting {
                MessageModel::Broadcasting
            } else {
                MessageModel::Clustering
            },
            subscription_data_set: ctx
                .open_topics()
                .map(|topic| SubscriptionData::tag_expression(&topic.name, &expression))
                .collect(),
            ..ConsumerData::default()
        };
        let heartbeat = HeartbeatData {
            client_id: format!("client-{}", wire.number),
            consumer_data_set: vec![data],
            producer_data_set: vec![ProducerData { group_name: "producers".to_owned() }],
            ..HeartbeatData::default()
        };
        let topics = ctx.open_topics().map(|topic| topic.id).collect();
        wire.ask(ctx.now, RequestCode::HEART_BEAT, &(), heartbeat.to_json(), Asked::Heartbeat(topics));
    }

    fn pull(&mut self, wire: &mut Wire<Asked>, ctx: &mut Context<'_>, index: usize) {
        if ctx.random.chance(self.replay_percent) {
            self.cursors[index].next = 0;
        }
        let expression = self.expression();
        let cursor = &mut self.cursors[index];
        let (queue, from) = (cursor.queue, cursor.next);
        cursor.is_asked = true;
        let commits = from > 0 && ctx.random.chance(self.commit_percent / 5);
        let topic = &*ctx.topics[queue.topic.0].name;
        let mut request =
            PullMessageRequest::new(&*self.name, topic, queue.id as i32, from as i64).held(self.hold_ms);
        request.max_msg_nums = self.messages_max;
        if self.is_filter_sent {
            request = request.filtered(expression);
        }
        if commits {
            request.sys_flag |= pull_flag::COMMIT_OFFSET;
            request.commit_offset = from as i64;
            ctx.checker.committing(CommitKey { group: self.group, queue }, from);
        }
        let pulling = Pulling {
            queue,
            from,
            messages_max: self.messages_max as usize,
            is_known: ctx.checker.is_known(queue.topic),
            at: ctx.now,
            released: ctx.checker.begin_of(queue.topic, ctx.core),
            begin: if ctx.checker.is_fading(queue.topic) { ctx.checker.first_at_least(queue) } else { 0 },
        };
        let code = if self.is_lite { RequestCode::LITE_PULL_MESSAGE } else { RequestCode::PULL_MESSAGE };
        ctx.counts.requests += 1;
        wire.ask(ctx.now, code, &request, Vec::new(), Asked::Pull(pulling));
    }

    fn commit(&mut self, wire: &mut Wire<Asked>, ctx: &mut Context<'_>, index: usize) {
        let Cursor { queue, next: offset, .. } = self.cursors[index];
        let key = CommitKey { group: self.group, queue };
        let number = ctx.checker.committing(key, offset);
        let request = UpdateConsumerOffsetRequest {
            consumer_group: self.name.as_str().into(),
            topic: ctx.topics[queue.topic.0].name.clone().into(),
            queue_id: QueueId(queue.id),
            commit_offset: offset as i64,
        };
        let code = RequestCode::UPDATE_CONSUMER_OFFSET;
        if ctx.random.chance(40) {
            wire.tell(code, &request, Vec::new());
        } else {
            wire.ask(ctx.now, code, &request, Vec::new(), Asked::Commit { key, number });
        }
    }

    fn query_commit(&mut self, wire: &mut Wire<Asked>, ctx: &mut Context<'_>, index: usize) {
        let queue = self.cursors[index].queue;
        let key = CommitKey { group: self.group, queue };
        let name = &ctx.topics[queue.topic.0].name;
        let asked = Asked::QueryOffset { key, since: ctx.checker.last_commit(key) };
        ask_commit(wire, ctx.now, &self.name, name, queue.id, asked);
    }

    pub(crate) fn on_answer(&mut self, asked: Asked, answer: &RemotingCommand, ctx: &mut Context<'_>) {
        let is_ok = answer.code == ResponseCode::SUCCESS.0;
        let is_missing = answer.code == ResponseCode::TOPIC_NOT_EXIST.0;
        let offset = || OffsetResponse::decode(&answer.header().ext).map(|response| response.offset as u64);
        match asked {
            Asked::Pull(pulling) => self.on_pulled(pulling, answer, ctx),
            Asked::Commit { key, number } if is_ok => ctx.checker.committed(key, number),
            Asked::Commit { key, .. }
                if is_missing
                    && (!ctx.checker.is_known(key.queue.topic) || ctx.checker.is_shortened(key.queue)) => {}
            Asked::Heartbeat(topics) if is_ok => self.subscribed = topics,
            Asked::Heartbeat(_) | Asked::Commit { .. } => {
                if !ctx.may_refuse_write(answer) {
                    ctx.unexpected("heartbeat or commit", answer);
                }
            }
            Asked::QueryOffset { key, since } => match offset() {
                Ok(offset) if is_ok => ctx.checker.offset_found(key, since, Some(offset)),
                _ if answer.code == ResponseCode::QUERY_NOT_FOUND.0 => {
                    ctx.checker.offset_found(key, since, None);
                }
                // For a group that has none the beginning of the queue is looked up, which may need an index.
                _ if ctx.may_refuse_read(answer)
                    && (since.is_none()
                        || ctx.checker.has_rot()
                        || ctx.checker.is_forsaken(key.queue.topic)) => {}
                _ => ctx.unexpected("query of an offset", answer),
            },
            Asked::LookUp(look_up) => look_up.on_answer(answer, ctx),
            other => unreachable!("consumers do not ask {other:?}"),
        }
    }

    fn on_pulled(&mut self, pulling: Pulling, answer: &RemotingCommand, ctx: &mut Context<'_>) {
        let Pulling { queue, from, messages_max, is_known, at, released, begin } = pulling;
        let index = self.cursors.iter().position(|cursor| cursor.queue == queue).expect("pulled by it");
        let cursor = &mut self.cursors[index];
        cursor.is_asked = false;
        cursor.at = ctx.now;
        let code = ResponseCode(answer.code);
        let is_empty = code != ResponseCode::SUCCESS;
        let moves = [
            ResponseCode::SUCCESS,
            ResponseCode::PULL_NOT_FOUND,
            ResponseCode::PULL_RETRY_IMMEDIATELY,
            ResponseCode::PULL_OFFSET_MOVED,
        ];
        if !moves.contains(&code) {
            cursor.at = ctx.now + 20_000_000;
            return self.on_pull_refused(queue, is_known, answer, ctx);
        }
        self.is_group_known = true;
        let response = PullMessageResponse::decode(&answer.header().ext);
        let next = response.as_ref().ok().and_then(|told| u64::try_from(told.next_begin_offset).ok());
        if let Ok(told) = &response {
            ctx.checker.begins(queue, begin, told.min_offset as u64);
        }
        let Some(next) = next else { return ctx.unexpected("pull, without its fields", answer) };
        if is_empty != answer.body.is_empty() {
            return ctx.unexpected("pull, with or without messages", answer);
        }
        let mut seen = Vec::new();
        for message in messages(&answer.body) {
            match message {
                Ok(message) => seen.extend(ctx.look_at(queue, &message)),
                Err(error) => {
                    let text = format!("{queue} from {from}: {error}");
                    ctx.checker.report(Anomaly::WrongBytes, text);
                }
            }
        }
        for seen in &seen {
            ctx.checker.is_fresh(queue, released, seen.position);
        }
        match code {
            ResponseCode::PULL_OFFSET_MOVED if next > from => {
                ctx.counts.moved += 1;
                ctx.checker.moved(queue, from, next);
            }
            ResponseCode::PULL_OFFSET_MOVED => {
                let is_excused = ctx.checker.is_forsaken(queue.topic)
                    || ctx.checker.has_rot()
                    || ctx.checker.is_shortened(queue);
                if !is_excused {
                    let text = format!("{queue}: {from} was reached before, now it is moved to {next}");
                    ctx.checker.report(Anomaly::Phantom, text);
                }
            }
            ResponseCode::PULL_RETRY_IMMEDIATELY if next <= from => {
                ctx.unexpected("pull, without progress", answer);
            }
            ResponseCode::PULL_NOT_FOUND if next != from => ctx.unexpected("pull, that skips", answer),
            _ if seen.len() > messages_max => ctx.unexpected("pull, with too many messages", answer),
            _ => ctx.checker.pulled(queue, from..next, &self.tags, &seen),
        }
        if ctx.now - at > 40_000_000 {
            ctx.counts.long_polls += 1;
        }
        let cursor = &mut self.cursors[index];
        cursor.next = next;
        if code == ResponseCode::PULL_NOT_FOUND {
            cursor.at = ctx.now + ctx.random.below(3_000_000);
        }
    }

    fn on_pull_refused(
        &mut self,
        queue: Queue,
        is_known: bool,
        answer: &RemotingCommand,
        ctx: &mut Context<'_>,
    ) {
        let is_allowed = match ResponseCode(answer.code) {
            ResponseCode::TOPIC_NOT_EXIST => {
                !is_known || ctx.checker.is_forsaken(queue.topic) || ctx.checker.has_rot()
            }
            // The topic's settings were damaged; its messages tell only of the queues that they are in.
            ResponseCode::INVALID_PARAMETER => ctx.checker.has_rot(),
            _ if ctx.may_refuse_read(answer) => true,
            // The heartbeat could not make the group.
            ResponseCode::SUBSCRIPTION_NOT_EXIST | ResponseCode::SUBSCRIPTION_GROUP_NOT_EXIST => {
                self.heartbeat_at = ctx.now;
                !self.is_filter_sent && !self.is_group_known
            }
            // Only a new group needs a record.
            _ => ctx.may_refuse_write(answer) && !self.is_group_known,
        };
        if !is_allowed {
            ctx.unexpected(&format!("pull of {queue}"), answer);
        }
    }
}

pub(crate) fn ask_commit(
    wire: &mut Wire<Asked>,
    now: u64,
    group: &str,
    topic: &str,
    queue: u32,
    asked: Asked,
) {
    let request = QueryConsumerOffsetRequest {
        consumer_group: group.into(),
        topic: topic.into(),
        queue_id: QueueId(queue),
        set_zero_if_not_found: None,
    };
    wire.ask(now, RequestCode::QUERY_CONSUMER_OFFSET, &request, Vec::new(), asked);
}
