//! The end of a run: what is there is read and compared with what clients know.

use std::ops::Range;

use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::message::messages;
use ringmq_protocol::request::{OffsetResponse, PullMessageRequest, PullMessageResponse, pull_flag};

use super::World;
use crate::checker::{Anomaly, Contents, Queue, Seen, position_in};
use crate::client::{Asked, TopicState, connect};
use crate::consumer::ask_commit;
use crate::wire::Wire;

impl World {
    /// Reads everything and compares it with what the clients know.
    pub(super) fn audit(&mut self) {
        self.is_active = false;
        let mut contents = Contents::new();
        for core in 0..self.cores.len() {
            let Some(mut wire) = connect(&mut self.context(core).0) else {
                return self.checker.report(Anomaly::Stuck, "nobody listens after the restart");
            };
            self.read_topics(core, &mut wire, &mut contents);
            self.ask_commits(core, &mut wire);
        }
        self.checker.finish(&contents);
        for core in &self.cores {
            let number = core.number;
            let is_known = |range: &Range<u64>| {
                self.checker.knows(&(position_in(number, range.start)..position_in(number, range.end)))
            };
            let (corruption, silent) = core.watch.borrow().ledger.judge(is_known);
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
        let mut from = 0;
        loop {
            let request = PullMessageRequest {
                consumer_group: "auditor".into(),
                topic: topic.into(),
                queue_id: queue.id as i32,
                queue_offset: from,
                max_msg_nums: 1000,
                sys_flag: pull_flag::SUBSCRIPTION,
                commit_offset: 0,
                suspend_timeout_millis: 0,
                subscription: Some("*".into()),
                sub_version: 0,
                expression_type: None,
                max_msg_bytes: None,
                request_source: None,
                proxy_forward_client_id: None,
            };
            wire.ask(self.cores[core].now(), RequestCode::PULL_MESSAGE, &request, Vec::new(), Asked::Audit);
            let (_, answer) = self.answer(core, wire)?;
            match ResponseCode(answer.code) {
                ResponseCode::SUCCESS | ResponseCode::PULL_RETRY_IMMEDIATELY => {}
                ResponseCode::PULL_OFFSET_MOVED if from == 0 => {}
                ResponseCode::PULL_NOT_FOUND => return Some(found),
                ResponseCode::TOPIC_NOT_EXIST => return None,
                _ => {
                    self.context(core).0.unexpected("pull of the auditor", &answer);
                    return Some(found);
                }
            }
            let mut context = self.context(core).0;
            for message in messages(&answer.body).flatten() {
                found.extend(context.look_at(queue, &message));
            }
            let next = PullMessageResponse::decode(&answer.header().ext).map(|next| next.next_begin_offset);
            match next {
                Ok(next) if next > from => from = next,
                // An empty queue that was never used says so at its beginning.
                _ if found.is_empty() => return Some(found),
                _ => {
                    self.context(core).0.unexpected("pull of the auditor, without progress", &answer);
                    return Some(found);
                }
            }
        }
    }
}
