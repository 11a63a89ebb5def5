//! Who consumes which queues, for clients that leave that to the broker: QUERY_ASSIGNMENT (400), and the modes (401, 402) in
//! which they are told to consume.
//!
//! A topic has queues on other shards and brokers too, of which a shard knows nothing. So each question is answered from the route
//! that a name server gives, which is the same for whichever broker is asked; and every broker knows all members of a group.

use super::admin::reply_body;
use super::effects::{Effects, News, ReplyTo};
use super::limits::{REQUEST_MODES_MAX, ROUTES_WAITING_MAX};
use super::records::kind;
use super::{Refusal, Request, Shard};
use ringmq_protocol::body::{
    Body, MessageModel, MessageQueue, MessageQueueAssignment, MessageRequestMode, MessageRequestModes,
    QueryAssignmentBody, QueryAssignmentResult, SetMessageRequestModeBody,
};
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::name;
use ringmq_storage::TopicHash;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct Assignments {
    /// By topic, then by group.
    modes: BTreeMap<String, BTreeMap<String, SetMessageRequestModeBody>>,
    /// Questions that wait for a route, by ticket.
    waiting: BTreeMap<u64, (ReplyTo, QueryAssignmentBody)>,
}

impl Assignments {
    pub(super) fn get(&self, topic: &str, group: &str) -> Option<&SetMessageRequestModeBody> {
        self.modes.get(topic)?.get(group)
    }

    pub(super) fn set(&mut self, mode: SetMessageRequestModeBody) {
        self.modes.entry(mode.topic.clone()).or_default().insert(mode.consumer_group.clone(), mode);
    }

    fn len(&self) -> usize {
        self.modes.values().map(BTreeMap::len).sum()
    }

    /// Topics and groups that have a mode, in order.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.modes.iter().flat_map(|(topic, groups)| groups.keys().map(move |group| (&**topic, &**group)))
    }

    pub(super) fn remove_topic(&mut self, topic: &str) {
        self.modes.remove(topic);
    }
}

impl Shard {
    /// SET_MESSAGE_REQUEST_MODE (401).
    pub(super) fn on_set_request_mode(
        &mut self,
        request: &Request<'_>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let asked = SetMessageRequestModeBody::from_json(request.body).map_err(Refusal::unreadable)?;
        if name::is_retry_topic(&asked.topic) {
            let remark = format!("{}: a retry topic is always pulled", asked.topic);
            return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
        }
        if self.topics.get(&asked.topic).is_none() {
            return Err(Refusal::no_topic(&asked.topic));
        }
        self.ensure_group(&asked.consumer_group, fx)?;
        let is_new = self.assignments.get(&asked.topic, &asked.consumer_group).is_none();
        if is_new && self.assignments.len() >= REQUEST_MODES_MAX {
            let remark = format!("there are {REQUEST_MODES_MAX} request modes, which is the limit");
            return Err(Refusal::new(ResponseCode::SYSTEM_BUSY, remark));
        }
        self.append_record(kind::REQUEST_MODE, &asked.to_json())?;
        self.assignments.set(asked);
        self.reply_when_durable(request.to, fx)
    }

    /// GET_ALL_MESSAGE_REQUEST_MODE (402).
    pub(super) fn on_request_modes(
        &mut self,
        request: &Request<'_>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let modes = MessageRequestModes { message_request_mode_map: self.assignments.modes.clone() };
        reply_body(request.to, &modes, fx);
        Ok(())
    }

    /// QUERY_ASSIGNMENT (400): the route is asked for, and then there is an answer.
    pub(super) fn on_query_assignment(
        &mut self,
        request: &Request<'_>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let asked = QueryAssignmentBody::from_json(request.body).map_err(Refusal::unreadable)?;
        if self.assignments.waiting.len() >= ROUTES_WAITING_MAX {
            let remark =
                format!("[OVERLOAD]{ROUTES_WAITING_MAX} requests wait for a route, which is the limit");
            return Err(Refusal::new(ResponseCode::SYSTEM_BUSY, remark));
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        fx.news.push(News::RouteWanted { topic: asked.topic.clone(), ticket });
        self.assignments.waiting.insert(ticket, (request.to, asked));
        Ok(())
    }

    /// A name server has said where a topic is: the queues to read at each broker. `None` if none could.
    pub fn on_route(&mut self, ticket: u64, queues: Option<Vec<(String, u32)>>, fx: &mut Effects) {
        let Some((to, asked)) = self.assignments.waiting.remove(&ticket) else { return };
        let all = queues.map(|brokers| {
            let queues_of = |(broker, count): &(String, u32)| {
                (0..*count as i32).map(|id| MessageQueue::new(&asked.topic, broker, id)).collect::<Vec<_>>()
            };
            let mut all: Vec<MessageQueue> = brokers.iter().flat_map(queues_of).collect();
            all.sort();
            all
        });
        let mode = self.assignments.get(&asked.topic, &asked.consumer_group);
        let mode_name = mode.map_or(MessageRequestMode::Pull, |mode| mode.mode);
        let assigned = all.and_then(|all| match asked.message_model {
            MessageModel::Broadcasting => Some(all),
            MessageModel::Clustering => {
                let group = self.groups.consumer_group(&asked.consumer_group)?;
                let members: BTreeSet<&str> = group.members().map(|client| &*client.client_id).collect();
                let members: Vec<&str> = members.into_iter().collect();
                let share = mode.filter(|mode| mode.mode == MessageRequestMode::Pop);
                let share = share.map(|mode| usize::try_from(mode.pop_share_queue_num).unwrap_or(0));
                assign(&asked.strategy_name, &all, &members, &asked.client_id, share)
            }
        });
        // Nothing known: the client keeps what it has.
        let message_queue_assignments = assigned.map(|queues| {
            let queues: BTreeSet<MessageQueue> = queues.into_iter().collect();
            let assignment = |message_queue| MessageQueueAssignment {
                attachments: BTreeMap::new(),
                message_queue,
                mode: mode_name,
            };
            queues.into_iter().map(assignment).collect()
        });
        reply_body(to, &QueryAssignmentResult { message_queue_assignments }, fx);
    }
}

/// The queues of one client. `all` and `members` are in order. `share` in POP mode: queues of how many others a client takes part in;
/// 0 is everybody in everything. `None` for a strategy that is not known.
fn assign(
    strategy: &str,
    all: &[MessageQueue],
    members: &[&str],
    client: &str,
    share: Option<usize>,
) -> Option<Vec<MessageQueue>> {
    let strategy = Strategy::from_name(strategy)?;
    let place = members.iter().position(|member| *member == client);
    let Some(share) = share else { return Some(strategy.queues_of(all, members, place)) };
    if share == 0 || share + 1 >= members.len() {
        let brokers: BTreeSet<&str> = all.iter().map(|queue| &*queue.broker_name).collect();
        let any_queue = |broker| MessageQueue::new(&all[0].topic, broker, -1);
        return Some(brokers.into_iter().map(any_queue).collect());
    }
    let Some(place) = place.filter(|_| !all.is_empty()) else { return Some(Vec::new()) };
    if members.len() > all.len() {
        // More clients than queues: nobody is left without one.
        return Some(vec![all[place % all.len()].clone()]);
    }
    let places = (0..=share).map(|step| (place + step) % members.len());
    Some(places.flat_map(|place| strategy.queues_of(all, members, Some(place))).collect())
}

/// How queues are divided among clients, by the names that Java's client has for it.
#[derive(Clone, Copy)]
enum Strategy {
    /// Neighbouring queues together.
    Average,
    /// In turn.
    AverageByCircle,
    /// Each queue goes to the client that it draws the highest number with, so that few queues move when a client comes or goes.
    ConsistentHash,
}

impl Strategy {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "AVG" => Some(Strategy::Average),
            "AVG_BY_CIRCLE" => Some(Strategy::AverageByCircle),
            "CONSISTENT_HASH" => Some(Strategy::ConsistentHash),
            _ => None,
        }
    }

    /// The queues of the client at a place among the members; none for one that is no member.
    fn queues_of(self, all: &[MessageQueue], members: &[&str], place: Option<usize>) -> Vec<MessageQueue> {
        let Some(place) = place else { return Vec::new() };
        let (base, more) = (all.len() / members.len(), all.len() % members.len());
        match self {
            Strategy::Average => {
                let first = base * place + place.min(more);
                all[first..first + base + usize::from(place < more)].to_vec()
            }
            Strategy::AverageByCircle => all.iter().skip(place).step_by(members.len()).cloned().collect(),
            Strategy::ConsistentHash => {
                let draw = |queue: &MessageQueue, member: &str| {
                    let MessageQueue { topic, broker_name, queue_id } = queue;
                    TopicHash::of(&format!("{topic} {broker_name} {queue_id} {member}"))
                };
                let wins = |queue: &&MessageQueue| {
                    let winner = (0..members.len()).max_by_key(|at| draw(queue, members[*at]));
                    winner == Some(place)
                };
                all.iter().filter(wins).cloned().collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(count: i32) -> Vec<MessageQueue> {
        (0..count).map(|id| MessageQueue::new("T", if id % 2 == 0 { "a" } else { "b" }, id / 2)).collect()
    }

    fn ids(assigned: Option<Vec<MessageQueue>>) -> Vec<(String, i32)> {
        assigned.unwrap().into_iter().map(|queue| (queue.broker_name, queue.queue_id)).collect()
    }

    #[test]
    fn every_queue_has_one_client() {
        let members = ["c1", "c2", "c3"];
        for strategy in ["AVG", "AVG_BY_CIRCLE", "CONSISTENT_HASH"] {
            for count in [0, 1, 2, 3, 7, 8, 30] {
                let mut all = queues(count);
                all.sort();
                let of = |client| assign(strategy, &all, &members, client, None).unwrap();
                let shares = members.map(of);
                let mut together = shares.concat();
                together.sort();
                assert_eq!(together, all, "{strategy} {count}");
                if strategy != "CONSISTENT_HASH" {
                    let sizes = shares.map(|share| share.len());
                    assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
                }
                assert_eq!(of("no member"), []);
            }
        }
        assert_eq!(assign("CONFIG", &queues(2), &members, "c1", None), None);
        let mut all = queues(4);
        all.sort();
        assert_eq!(
            ids(assign("AVG", &all, &["c", "d"], "c", None)),
            [("a".to_owned(), 0), ("a".to_owned(), 1)]
        );
    }

    /// A client that leaves moves its own queues and no others.
    #[test]
    fn the_hash_moves_few_queues() {
        let all = queues(40);
        let owner = |members: &[&str], queue: &MessageQueue| {
            let has = |member: &&&str| {
                assign("CONSISTENT_HASH", &all, members, member, None).unwrap().contains(queue)
            };
            members.iter().find(has).unwrap().to_string()
        };
        for queue in &all {
            let before = owner(&["c1", "c2", "c3"], queue);
            assert!(before == "c3" || owner(&["c1", "c2"], queue) == before);
        }
    }

    #[test]
    fn pops_are_shared() {
        let mut all = queues(4);
        all.sort();
        let members = ["c1", "c2", "c3", "c4"];
        let of = |client, share| ids(assign("AVG", &all, &members, client, Some(share)));
        let everything = [("a".to_owned(), -1), ("b".to_owned(), -1)];
        assert_eq!(of("c1", 0), everything);
        assert_eq!(of("c4", 3), everything);
        let (a, b) = ("a".to_owned(), "b".to_owned());
        assert_eq!(of("c4", 1), [(b, 1), (a.clone(), 0)], "its own, and the next client's");
        let many = ["c1", "c2", "c3", "c4", "c5", "c6"];
        assert_eq!(ids(assign("AVG", &all, &many, "c5", Some(1))), [(a, 0)]);
        assert_eq!(ids(assign("AVG", &[], &members, "c1", Some(0))), []);
    }
}
