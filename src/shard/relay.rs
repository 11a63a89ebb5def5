//! Questions of tools that only a client can answer: sent on the client's own connection, under a number of ours.
//!
//!   on_relay → (the message is read) → asked of the client → its answer | deadline | close → to the tool
//!
//! Y1  Whoever asks is answered once: with what the client said, that it did not answer in time, or that it left.
//! Y2  An answer counts only if it comes on the connection that the question went to.

use super::cold::Purpose;
use super::effects::{ConnectionId, Effects, ReplyTo};
use super::limits::{RELAY_MS, RELAYS_MAX};
use super::{Refusal, Request, Shard};
use bytes::Bytes;
use ringmq_protocol::body::{Body, ConsumerStatusBody};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{Fields, Frame};
use ringmq_protocol::id::OffsetMessageId;
use ringmq_protocol::request::{
    ConsumeMessageDirectlyRequest, GetConsumerRunningInfoRequest, GetConsumerStatusRequest,
};
use ringmq_protocol::types::Opaque;
use std::collections::{BTreeMap, VecDeque};

/// Clients of lower versions do not know the questions.
const VERSION_MIN: i32 = 62;

/// A question for a client.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) to: ReplyTo,
    client: ConnectionId,
    /// For people: group and id of the client.
    who: String,
    code: RequestCode,
    fields: Vec<(String, String)>,
}

/// What an answer is for.
enum Asked {
    /// It goes to the tool as it is.
    One { to: ReplyTo, who: String },
    /// It is a part of an answer, that of this client.
    Part { gathering: u64, client_id: String },
}

struct Waiting {
    client: ConnectionId,
    asked: Asked,
}

/// An answer that needs several clients.
struct Gathering {
    to: ReplyTo,
    awaited: usize,
    body: ConsumerStatusBody,
}

#[derive(Default)]
pub(super) struct Relay {
    /// By the number that the question has on its way.
    waiting: BTreeMap<i32, Waiting>,
    gatherings: BTreeMap<u64, Gathering>,
    /// Deadlines, in order; of those too that were answered meanwhile.
    deadlines: VecDeque<(i64, i32)>,
    next: i32,
    next_gathering: u64,
}

impl Relay {
    pub(super) fn next_deadline_ms(&self) -> Option<i64> {
        self.deadlines.front().map(|(deadline_ms, _)| *deadline_ms)
    }
}

impl Shard {
    pub(super) fn on_relay(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        match request.code() {
            RequestCode::GET_CONSUMER_RUNNING_INFO => {
                let asked = GetConsumerRunningInfoRequest::decode(&request.header.ext)?;
                let question = self.question(request, &asked.consumer_group, &asked.client_id)?;
                self.ask(question, Vec::new(), fx)
            }
            RequestCode::CONSUME_MESSAGE_DIRECTLY => self.on_consume_directly(request, fx),
            RequestCode::INVOKE_BROKER_TO_GET_CONSUMER_STATUS => self.on_consumer_status(request, fx),
            _ => {
                let remark = format!(" request type {} not supported", request.header.code);
                Err(Refusal::new(ResponseCode::REQUEST_CODE_NOT_SUPPORTED, remark))
            }
        }
    }

    fn question(&self, request: &Request<'_>, group: &str, client_id: &str) -> Result<Question, Refusal> {
        let error = |remark: String| Refusal::new(ResponseCode::SYSTEM_ERROR, remark);
        let mut members = self.groups.consumer_group(group).into_iter().flat_map(|group| group.connections());
        let (connection, client) = members
            .find(|(_, client)| client.client_id == client_id)
            .ok_or_else(|| error(format!("The Consumer <{group}> <{client_id}> not online")))?;
        if client.version < VERSION_MIN {
            return Err(error(format!(
                "The Consumer <{client_id}> has version {}, which is too low: {VERSION_MIN} is the lowest that can answer",
                client.version
            )));
        }
        Ok(Question {
            to: request.to,
            client: connection,
            who: format!("<{group}> <{client_id}>"),
            code: request.code(),
            fields: request.header.ext.to_pairs(),
        })
    }

    /// Sends a question to its client.
    fn ask(&mut self, question: Question, body: Vec<Bytes>, fx: &mut Effects) -> Result<(), Refusal> {
        self.check_relays(1)?;
        let asked = Asked::One { to: question.to, who: question.who };
        self.send_question(question.client, question.code, &question.fields, body, asked, fx);
        Ok(())
    }

    fn check_relays(&self, more: usize) -> Result<(), Refusal> {
        if self.relay.waiting.len() + more > RELAYS_MAX {
            let remark = format!("[OVERLOAD]{RELAYS_MAX} questions wait for clients, which is the limit");
            return Err(Refusal::new(ResponseCode::SYSTEM_BUSY, remark));
        }
        Ok(())
    }

    fn send_question(
        &mut self,
        client: ConnectionId,
        code: RequestCode,
        fields: &dyn Fields,
        body: Vec<Bytes>,
        asked: Asked,
        fx: &mut Effects,
    ) {
        let relay = &mut self.relay;
        relay.next = relay.next.checked_add(1).unwrap_or(1);
        relay.waiting.insert(relay.next, Waiting { client, asked });
        relay.deadlines.push_back((self.now.monotonic_ms + RELAY_MS, relay.next));
        fx.replies.push_call(client, Opaque(relay.next), code, fields, body);
    }

    /// CONSUME_MESSAGE_DIRECTLY (309): the message is read here and goes along.
    fn on_consume_directly(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = ConsumeMessageDirectlyRequest::decode(&request.header.ext)?;
        let client_id = asked.client_id.as_deref().unwrap_or_default();
        let mut question = self.question(request, &asked.consumer_group, client_id)?;
        let id = asked.msg_id.as_deref().unwrap_or_default();
        let id: OffsetMessageId = id.parse().map_err(|problem| {
            Refusal::invalid(format!("msgId {id:?} is no offset message id: {problem}"))
        })?;
        let position = id.physical_offset;
        let topic = asked.topic.as_deref().and_then(|topic| self.topics.get(topic));
        let group = self.groups.configs.get(&*asked.consumer_group);
        let own = [
            ("brokerName", Some(self.config.broker_name.clone())),
            ("topicSysFlag", topic.map(|topic| topic.config.topic_sys_flag.to_string())),
            ("groupSysFlag", group.map(|config| config.group_sys_flag.to_string())),
        ];
        for (name, value) in own {
            if let Some(value) = value {
                question.fields.retain(|(known, _)| known != name);
                question.fields.push((name.to_owned(), value));
            }
        }
        match (self.block_before(position)?, self.message_in_memory(position)) {
            (Some(_), Some(message)) => self.ask(question, vec![message], fx),
            (Some(block), None) => {
                self.read_cold(block, Purpose::Question { question: Box::new(question), position }, fx);
                Ok(())
            }
            (None, _) => Err(super::query::not_there(position)),
        }
    }

    /// The message of a question was read.
    pub(super) fn on_question_message(&mut self, question: Question, message: Bytes, fx: &mut Effects) {
        let to = question.to;
        if let Err(refusal) = self.ask(question, vec![message], fx) {
            fx.replies.push(to, refusal.code, Some(&refusal.remark), &(), &[]);
        }
    }

    /// INVOKE_BROKER_TO_GET_CONSUMER_STATUS (223): every member is asked where it is, or the one that is named. A member
    /// that does not say is left out.
    fn on_consumer_status(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = GetConsumerStatusRequest::decode(&request.header.ext)?;
        let only = asked.client_addr.as_deref().filter(|client_id| !client_id.is_empty());
        let members =
            self.groups.consumer_group(&asked.group).into_iter().flat_map(|group| group.connections());
        let wanted = members
            .filter(|(_, client)| only.is_none_or(|only| client.client_id == only))
            .filter(|(_, client)| client.version >= VERSION_MIN);
        let clients: Vec<(ConnectionId, String)> =
            wanted.map(|(connection, client)| (connection, client.client_id.clone())).collect();
        if clients.is_empty() {
            let whom = only.map_or(String::new(), |only| format!(" <{only}>"));
            let remark = format!("The Consumer <{}>{whom} not online", asked.group);
            return Err(Refusal::new(ResponseCode::SYSTEM_ERROR, remark));
        }
        self.check_relays(clients.len())?;
        let gathering = self.relay.next_gathering;
        self.relay.next_gathering += 1;
        let body = ConsumerStatusBody::default();
        self.relay.gatherings.insert(gathering, Gathering { to: request.to, awaited: clients.len(), body });
        let fields = GetConsumerStatusRequest { client_addr: None, ..asked };
        for (client, client_id) in clients {
            let asked = Asked::Part { gathering, client_id };
            let code = RequestCode::GET_CONSUMER_STATUS_FROM_CLIENT;
            self.send_question(client, code, &fields, Vec::new(), asked, fx);
        }
        Ok(())
    }

    /// A client has answered something: one of our questions, or a notice that needs no answer.
    pub(super) fn on_answer(&mut self, connection: ConnectionId, frame: &Frame<'_>, fx: &mut Effects) {
        let number = frame.header.opaque.0;
        // Y2
        if self.relay.waiting.get(&number).is_none_or(|waiting| waiting.client != connection) {
            return;
        }
        let waiting = self.relay.waiting.remove(&number).expect("just seen");
        let code = ResponseCode(frame.header.code);
        match waiting.asked {
            Asked::One { to, .. } => {
                let remark = frame.header.remark.as_deref();
                fx.replies.push(to, code, remark, &frame.header.ext, frame.body);
            }
            Asked::Part { gathering, client_id } => {
                let said =
                    (code == ResponseCode::SUCCESS).then(|| ConsumerStatusBody::from_json(frame.body).ok());
                self.gather(gathering, said.flatten().map(|said| (client_id, said)), fx);
            }
        }
    }

    /// One of several clients has answered, or will not.
    fn gather(&mut self, id: u64, said: Option<(String, ConsumerStatusBody)>, fx: &mut Effects) {
        let gathering = self.relay.gatherings.get_mut(&id).expect("it is there while an answer is awaited");
        gathering.awaited -= 1;
        if let Some((client_id, said)) = said {
            gathering.body.consumer_table.insert(client_id, said.message_queue_table);
        }
        if gathering.awaited == 0 {
            let gathering = self.relay.gatherings.remove(&id).expect("just seen");
            super::admin::reply_body(gathering.to, &gathering.body, fx);
        }
    }

    /// No answer will come.
    fn give_up_question(&mut self, waiting: Waiting, code: ResponseCode, why: &str, fx: &mut Effects) {
        match waiting.asked {
            Asked::One { to, who } => {
                fx.replies.push(to, code, Some(&format!("the consumer {who} {why}")), &(), &[]);
            }
            Asked::Part { gathering, .. } => self.gather(gathering, None, fx),
        }
    }

    /// Once a turn: clients that have not answered in time.
    pub(super) fn expire_questions(&mut self, fx: &mut Effects) {
        while let Some(&(deadline_ms, number)) = self.relay.deadlines.front()
            && (deadline_ms <= self.now.monotonic_ms || !self.relay.waiting.contains_key(&number))
        {
            self.relay.deadlines.pop_front();
            if let Some(waiting) = self.relay.waiting.remove(&number) {
                let why = format!("did not answer in {} s", RELAY_MS / 1000);
                self.give_up_question(waiting, ResponseCode::CONSUME_MSG_TIMEOUT, &why, fx);
            }
        }
    }

    /// A client is gone: whoever asked it is told.
    pub(super) fn forget_questions_to(&mut self, client: ConnectionId, fx: &mut Effects) {
        let of_client = self.relay.waiting.iter().filter(|(_, waiting)| waiting.client == client);
        let numbers: Vec<i32> = of_client.map(|(number, _)| *number).collect();
        for number in numbers {
            let waiting = self.relay.waiting.remove(&number).expect("just seen");
            self.give_up_question(waiting, ResponseCode::SYSTEM_ERROR, "left before it answered", fx);
        }
    }
}
