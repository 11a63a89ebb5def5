//! A consumer as brokers and tools see it: what heartbeats say of it, and what it answers when it is asked.
//!
//! Q1  whatever a server asks, the connection lives: what is not understood is answered with an error.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use ringmq_protocol::body::{
    Body, ConsumeFromWhere, ConsumeMessageDirectlyResult, ConsumeType, ConsumerRunningInfo,
    ConsumerStatusBody, MessageModel, MessageQueue, ResetOffsetBody, SubscriptionData,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::{MessageExt, StoredMessage};
use ringmq_protocol::request::{
    ConsumeMessageDirectlyRequest, GetConsumerRunningInfoRequest, GetConsumerStatusRequest,
    NotifyConsumerIdsChangedRequest, ResetOffsetRequest,
};
use ringmq_protocol::types::QueueOffset;
use tokio::sync::Notify;

use crate::client::{Client, Inner};
use crate::connection::{Answer, ServerRequests, not_supported};
use crate::group::{from_wire, to_wire};
use crate::pull::BODY_BYTES_MAX;

/// What [`ringmq_protocol::frame::VERSION_REPORTED`] is called.
const CLIENT_VERSION: &str = "V5_3_3";

pub(crate) struct ConsumerMember {
    pub(crate) group: String,
    pub(crate) consume_type: ConsumeType,
    pub(crate) message_model: MessageModel,
    pub(crate) consume_from_where: ConsumeFromWhere,
    pub(crate) subscriptions: Vec<SubscriptionData>,
    /// Milliseconds since 1970.
    pub(crate) started_ms: i64,
    /// Something changed that may change the share of this consumer.
    pub(crate) rebalance: Notify,
    /// Who answers.
    pub(crate) requests: Weak<dyn MemberRequests>,
}

impl ConsumerMember {
    /// What consumers of all kinds tell of themselves.
    pub(crate) fn running_info(&self, is_orderly: bool) -> ConsumerRunningInfo {
        let consume_type = match self.consume_type {
            ConsumeType::ConsumeActively => "CONSUME_ACTIVELY",
            ConsumeType::ConsumePassively => "CONSUME_PASSIVELY",
            ConsumeType::ConsumePop => "CONSUME_POP",
        };
        let properties = [
            (ConsumerRunningInfo::PROP_CONSUME_ORDERLY, is_orderly.to_string()),
            (ConsumerRunningInfo::PROP_CONSUME_TYPE, consume_type.to_string()),
            (ConsumerRunningInfo::PROP_CONSUMER_START_TIMESTAMP, self.started_ms.to_string()),
        ];
        ConsumerRunningInfo {
            properties: properties.map(|(name, value)| (name.to_string(), value)).into(),
            subscription_set: self.subscriptions.clone(),
            ..ConsumerRunningInfo::default()
        }
    }
}

/// What is asked of a consumer.
pub(crate) trait MemberRequests: Send + Sync {
    /// Continues elsewhere with those of the queues that this consumer has.
    fn reset_offsets(self: Arc<Self>, offsets: BTreeMap<MessageQueue, QueueOffset>);

    /// The queues of a topic, and up to where their messages are done with.
    fn offsets(&self, topic: &str) -> BTreeMap<MessageQueue, QueueOffset>;

    /// All but what every consumer of this client has in common.
    fn running_info(&self) -> ConsumerRunningInfo;

    /// Hands a message to the handler; `None` if there is none.
    fn consume_directly(self: Arc<Self>, message: MessageExt) -> Option<Consuming> {
        drop(message);
        None
    }
}

/// A message in the hands of a handler.
pub(crate) type Consuming = Pin<Box<dyn Future<Output = ConsumeMessageDirectlyResult> + Send>>;

/// What servers ask of a client.
pub(crate) struct Requests(pub(crate) Weak<Inner>);

impl ServerRequests for Requests {
    fn on_request(&self, address: &str, request: RemotingCommand) -> Answer {
        let Some(inner) = self.0.upgrade() else { return Answer::Now(not_supported(&request)) };
        let answer = answer(&Client { inner }, address, &request);
        answer.unwrap_or_else(|remark| {
            tracing::debug!(%address, code = request.code, %remark, "request of a server refused");
            let code = ResponseCode::SYSTEM_ERROR;
            Answer::Now(RemotingCommand::response(code, request.opaque, Some(remark), &(), Bytes::new()))
        })
    }
}

fn answer(client: &Client, address: &str, request: &RemotingCommand) -> Result<Answer, String> {
    let header = request.header();
    let opaque = request.opaque;
    let success =
        move |body: Vec<u8>| RemotingCommand::response(ResponseCode::SUCCESS, opaque, None, &(), body);
    let body = match RequestCode(request.code) {
        RequestCode::NOTIFY_CONSUMER_IDS_CHANGED => {
            match NotifyConsumerIdsChangedRequest::decode(&header.ext) {
                Ok(changed) => {
                    if let Some(member) = client.member(&changed.consumer_group) {
                        member.rebalance.notify_one();
                    }
                }
                // Somebody's group changed; a rebalance too many is harmless.
                Err(_) => client.rebalance_all(),
            }
            Vec::new()
        }
        RequestCode::RESET_CONSUMER_CLIENT_OFFSET => {
            let fields = ResetOffsetRequest::decode(&header.ext).map_err(|problem| problem.to_string())?;
            let consumer = consumer(client, &fields.group)?;
            let table = ResetOffsetBody::from_json(&request.body).map_err(|problem| problem.to_string())?;
            let of_topic = table.offset_table.into_iter().filter(|(queue, _)| *queue.topic == *fields.topic);
            consumer.reset_offsets(of_topic.map(|(queue, offset)| (queue, from_wire(offset))).collect());
            Vec::new()
        }
        RequestCode::GET_CONSUMER_STATUS_FROM_CLIENT => {
            let fields =
                GetConsumerStatusRequest::decode(&header.ext).map_err(|problem| problem.to_string())?;
            let offsets = consumer(client, &fields.group)?.offsets(&fields.topic);
            let message_queue_table =
                offsets.into_iter().map(|(queue, offset)| (queue, to_wire(offset))).collect();
            ConsumerStatusBody { message_queue_table, consumer_table: BTreeMap::new() }.to_json()
        }
        RequestCode::GET_CONSUMER_RUNNING_INFO => {
            let fields =
                GetConsumerRunningInfoRequest::decode(&header.ext).map_err(|problem| problem.to_string())?;
            let mut info = consumer(client, &fields.consumer_group)?.running_info();
            info.properties.insert(ConsumerRunningInfo::PROP_NAMESERVER_ADDR.into(), client.name_servers());
            info.properties.insert(ConsumerRunningInfo::PROP_CLIENT_VERSION.into(), CLIENT_VERSION.into());
            info.to_json()
        }
        RequestCode::CONSUME_MESSAGE_DIRECTLY => {
            let fields =
                ConsumeMessageDirectlyRequest::decode(&header.ext).map_err(|problem| problem.to_string())?;
            let consumer = consumer(client, &fields.consumer_group)?;
            let message = match StoredMessage::parse(&request.body) {
                Ok((stored, _)) => {
                    MessageExt::decode(&stored, BODY_BYTES_MAX).map_err(|problem| problem.to_string())?
                }
                Err(problem) => return Err(format!("the body is no stored message: {problem}")),
            };
            let Some(consuming) = consumer.consume_directly(message) else {
                return Err(format!("the consumer of group {} has no handler", fields.consumer_group));
            };
            return Ok(Answer::Later(Box::pin(async move { success(consuming.await.to_json()) })));
        }
        _ => {
            tracing::debug!(%address, code = request.code, "request of a server not supported");
            return Ok(Answer::Now(not_supported(request)));
        }
    };
    Ok(Answer::Now(success(body)))
}

fn consumer(client: &Client, group: &str) -> Result<Arc<dyn MemberRequests>, String> {
    let member = client.member(group);
    member
        .and_then(|member| member.requests.upgrade())
        .ok_or_else(|| format!("The Consumer Group <{group}> not exist in this consumer"))
}
