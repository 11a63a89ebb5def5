//! The end of a run: what is there is read and compared with what clients know.

use std::collections::BTreeMap;
use std::ops::Range;

use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::message::{StoredMessage, messages};
use ringmq_protocol::properties::names;
use ringmq_protocol::request::{OffsetResponse, PullMessageRequest, PullMessageResponse};

use super::{ALL_DUE_MS, MILLI, SECOND, World};
use crate::checker::retries::Retry;
use crate::checker::{Anomaly, Contents, MessageId, Queue, Seen, position_in};
use crate::client::{Asked, Context, Purpose, Topic, TopicState, connect};
use crate::consumer::ask_commit;
use crate::lookups::LookUp;
use crate::popper;
use crate::retrier::Retrier;
use crate::wire::Wire;

/// Time for all that is due to be delivered.
const DELIVER_NANOS: u64 = 5 * SECOND;
/// Look-ups of the auditor at each shard.
const LOOK_UPS: usize = 40;
/// Messages whose time is over come again as fast as the log takes them: it pauses for a second when it is full.
const POP_PAUSE_NANOS: u64 = SECOND + 200 * MILLI;
/// After so many answers without a message there is none.
const POPS_EMPTY: u32 = 3;
/// How often the auditor asks again where an index is being written anew.
const REFUSED_MAX: u32 = 100;

impl World {
    /// Reads everything and compares it with what the clients know.
    pub(super) fn audit(&mut self) {
        self.is_active = false;
        self.idle(DELIVER_NANOS);
        let (mut contents, mut copies) = (Contents::new(), BTreeMap::new());
        for core in 0..self.cores.len() {
            let Some(mut wire) = connect(&mut self.context(core).0) else {
                return self.checker.report(Anomaly::Stuck, "nobody listens after the restart");
            };
            self.read_topics(core, &mut wire, &mut contents);
            self.ask_commits(core, &mut wire);
            self.read_retries(core, &mut wire, &mut copies);
            self.look_up(core, &mut wire);
            self.pop_rest(core, &contents);
        }
        self.checker.finish(&contents);
        let (delayed, sent_back) = self.checker.finish_later(&copies);
        self.coverage.delayed += delayed;
        self.coverage.sent_back += sent_back;
        for core in &self.cores {
            let number = core.number;
            let watch = &mut *core.watch.borrow_mut();
            let told = watch.indexes.on_crash(u64::MAX);
            told.unwrap_or_else(|text| self.checker.report(Anomaly::Unreported, text));
            self.coverage.index_harm.add(watch.indexes.judge());
            let is_known = |range: &Range<u64>| {
                self.checker.knows(&(position_in(number, range.start)..position_in(number, range.end)))
            };
            let (corruption, silent) = watch.ledger.judge(is_known);
            self.coverage.corruption.add(corruption);
            for range in silent {
                let text = format!("the block at {range:?} is damaged, and the broker never said so");
                self.checker.report(Anomaly::Unreported, text);
            }
        }
    }

    fn read_topics(&mut self, core: usize, wire: &mut Wire<Asked>, contents: &mut Contents) {
        let topics: Vec<_> = self.topics.iter().filter(|topic| topic.core == core as u64).cloned().collect();
        for topic in &topics {
            let is_current =
                topics.iter().rfind(|other| other.name == topic.name).map(|other| other.id) == Some(topic.id);
            if !is_current || topic.state == TopicState::Unknown {
                continue;
            }
            for id in 0..topic.queues {
                let queue = Queue { topic: topic.id, id };
                match self.read_queue(core, wire, &topic.name, queue) {
                    Some(_) if topic.state == TopicState::Deleted && !self.checker.has_rot() => {
                        let text = format!("topic {} was deleted and is there", topic.name);
                        self.checker.report(Anomaly::RegressedOffset, text);
                    }
                    Some(messages) => drop(contents.insert(queue, messages)),
                    None => {}
                }
            }
        }
    }

    fn ask_commits(&mut self, core: usize, wire: &mut Wire<Asked>) {
        for key in self.checker.commit_keys() {
            let topic = &self.topics[key.queue.topic.0];
            if topic.core != core as u64 {
                continue;
            }
            let since = self.checker.last_commit(key);
            let (name, group) = (topic.name.clone(), format!("group-{}", key.group));
            let now = self.cores[core].now();
            ask_commit(wire, now, &group, &name, key.queue.id, Asked::Audit);
            let Some((_, answer)) = self.answer(core, wire) else { return };
            let found = (answer.code == ResponseCode::SUCCESS.0)
                .then(|| OffsetResponse::decode(&answer.header().ext).map(|found| found.offset as u64).ok());
            self.checker.offset_found(key, since, found.flatten());
        }
    }

    /// All messages of a queue; `None` if its topic is not there.
    fn read_queue(
        &mut self,
        core: usize,
        wire: &mut Wire<Asked>,
        topic: &str,
        queue: Queue,
    ) -> Option<Vec<Seen>> {
        let mut found = Vec::new();
        let take = &mut |context: &mut Context<'_>, message: &StoredMessage<'_>| {
            found.extend(context.look_at(queue, message));
        };
        let is_there = self.read_messages(core, wire, topic, queue.id, take);
        is_there.then_some(found)
    }

    /// Asks for known messages by key, place and time, until there is an answer.
    fn look_up(&mut self, core: usize, wire: &mut Wire<Asked>) {
        let is_open = |topic: &&Topic| topic.core == core as u64 && topic.purpose != Purpose::Scratch;
        let topics: Vec<_> = self.topics.iter().filter(is_open).map(|topic| topic.id).collect();
        for number in 0..LOOK_UPS {
            let queue = Queue { topic: topics[number % topics.len()], id: 0 };
            let Some(look_up) = LookUp::draw(queue, &mut self.context(core).0) else { continue };
            for refused in 0.. {
                look_up.clone().ask(wire, &mut self.context(core).0);
                let Some((_, answer)) = self.answer(core, wire) else { return };
                let mut context = self.context(core).0;
                if !context.may_refuse_read(&answer) || refused == REFUSED_MAX {
                    context.trouble.index_harmed = false;
                    look_up.clone().on_answer(&answer, &mut context);
                    break;
                }
                self.idle(10 * MILLI);
            }
        }
    }

    /// What came of all that was sent back, when everything has had its time.
    fn read_retries(&mut self, core: usize, wire: &mut Wire<Asked>, copies: &mut BTreeMap<Retry, u64>) {
        let (group, name) = Retrier::group(core as u64);
        for topic in [format!("%RETRY%{name}"), format!("%DLQ%{name}")] {
            let take = &mut |context: &mut Context<'_>, message: &StoredMessage<'_>| match message
                .property(names::KEYS)
                .and_then(MessageId::parse)
            {
                Some(id) => {
                    context.checker.received_again(id, message.body());
                    *copies.entry((group, id, message.reconsume_times())).or_default() += 1;
                }
                None => context.checker.report(Anomaly::WrongBytes, "a retry without its key"),
            };
            self.read_messages(core, wire, &topic, 0, take);
        }
    }

    /// Pops what can be popped by now, which with what was acknowledged and with dead letters has to be all.
    fn pop_rest(&mut self, core: usize, contents: &Contents) {
        let number = core as u64;
        let topic = self.topics.iter().find(|topic| popper::is_popped(topic, number)).cloned();
        let Some(topic) = topic.filter(|topic| self.has_poppers() && topic.state == TopicState::Ready) else {
            return;
        };
        let Some(wire) = connect(&mut self.context(core).0) else { return };
        let mut wire = wire.of_json();
        let (mut refused, mut empty) = (0, 0);
        while empty < POPS_EMPTY {
            let request = popper::pop_request(number, 32, ALL_DUE_MS / 1000, 0);
            wire.ask(self.cores[core].now(), RequestCode::POP_MESSAGE, &request, Vec::new(), Asked::Audit);
            let Some((_, answer)) = self.answer(core, &mut wire) else { return };
            let mut context = self.context(core).0;
            match ResponseCode(answer.code) {
                ResponseCode::SUCCESS => {
                    for given in popper::take(topic.id, &answer, &mut context) {
                        given.keep(&mut context);
                    }
                    empty = 0;
                    continue;
                }
                ResponseCode::POLLING_TIMEOUT => {
                    empty += 1;
                    self.idle(POP_PAUSE_NANOS);
                }
                _ if refused < REFUSED_MAX
                    && (context.may_refuse_read(&answer) || context.may_refuse_write(&answer)) =>
                {
                    refused += 1;
                    self.idle(10 * MILLI);
                }
                _ => return context.unexpected("pop of the auditor", &answer),
            }
        }
        let dead = format!("%DLQ%{}", popper::group(number));
        let take = &mut |context: &mut Context<'_>, message: &StoredMessage<'_>| {
            let id = message.property(names::KEYS).and_then(MessageId::parse);
            id.into_iter().for_each(|id| context.checker.is_dead_letter(context.core, id));
        };
        self.read_messages(core, &mut wire, &dead, 0, take);
        let queues: Vec<Queue> = (0..topic.queues).map(|id| Queue { topic: topic.id, id }).collect();
        let (popped, in_order) = self.checker.finish_popped(number, &queues, contents, self.plan.deletes());
        self.coverage.popped += popped;
        self.coverage.popped_in_order += in_order;
    }

    /// Gives all messages of a queue to `take`; false if its topic is not there.
    fn read_messages(
        &mut self,
        core: usize,
        wire: &mut Wire<Asked>,
        topic: &str,
        queue_id: u32,
        take: &mut dyn FnMut(&mut Context<'_>, &StoredMessage<'_>),
    ) -> bool {
        let mut from = 0;
        let mut refused = 0;
        let mut is_any = false;
        loop {
            let request = PullMessageRequest {
                max_msg_nums: 1000,
                ..PullMessageRequest::new("auditor", topic, queue_id as i32, from).filtered("*")
            };
            wire.ask(self.cores[core].now(), RequestCode::PULL_MESSAGE, &request, Vec::new(), Asked::Audit);
            let Some((_, answer)) = self.answer(core, wire) else { return true };
            let mut context = self.context(core).0;
            match ResponseCode(answer.code) {
                ResponseCode::SUCCESS | ResponseCode::PULL_RETRY_IMMEDIATELY => {}
                ResponseCode::PULL_OFFSET_MOVED if from == 0 => {}
                ResponseCode::PULL_NOT_FOUND => return true,
                ResponseCode::TOPIC_NOT_EXIST => return false,
                // An index is being written anew: not for long.
                _ if context.may_refuse_read(&answer) && refused < REFUSED_MAX => {
                    refused += 1;
                    self.idle(10 * MILLI);
                    continue;
                }
                _ => {
                    context.unexpected("pull of the auditor", &answer);
                    return true;
                }
            }
            for message in messages(&answer.body).flatten() {
                is_any = true;
                take(&mut context, &message);
            }
            let next = PullMessageResponse::decode(&answer.header().ext).map(|next| next.next_begin_offset);
            match next {
                Ok(next) if next > from => from = next,
                // An empty queue that was never used says so at its beginning.
                _ if !is_any => return true,
                _ => {
                    context.unexpected("pull of the auditor, without progress", &answer);
                    return true;
                }
            }
        }
    }

    /// Lets the broker be for a while.
    fn idle(&mut self, nanos: u64) {
        let until = self.now() + nanos;
        while self.now() < until {
            self.step(until);
        }
    }
}
