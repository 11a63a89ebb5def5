//! One pull: request, answer, filter. Both kinds of consumers loop over it, each in its own way.

use std::sync::Arc;
use std::time::Duration;

use ringmq_protocol::body::{MessageQueue, SubscriptionData};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::message::{MessageExt, messages};
use ringmq_protocol::request::{PullMessageRequest, PullMessageResponse, pull_flag};
use ringmq_protocol::types::QueueOffset;
use tokio::time::{Instant, sleep};

use crate::client::{Client, malformed};
use crate::connection::Call;
use crate::error::{ConsumeError, RequestError, RouteError};
use crate::group::{from_wire, to_wire};

/// What a pull may take beyond the time that the broker holds it: its scan granularity, and the transfer.
pub(crate) const PULL_SLACK: Duration = Duration::from_secs(15);

/// What a body may grow to when decompressed. Far above what brokers store, far below what would hurt.
pub(crate) const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How a queue is pulled.
pub(crate) struct Puller {
    pub(crate) client: Client,
    pub(crate) group: Arc<str>,
    pub(crate) queue: MessageQueue,
    pub(crate) subscription: Arc<SubscriptionData>,
    /// The subscription travels with each pull, so that the group need not be known to the broker.
    pub(crate) inline_subscription: bool,
    pub(crate) batch_max: i32,
    /// How long the broker may hold a pull when there is nothing.
    pub(crate) hold: Duration,
    /// The broker id that the last answer suggested.
    pub(crate) broker_id: i64,
}

/// What a pull brought.
pub(crate) struct Pulled {
    /// Messages that match the subscription, decompressed; none if there are none, or none that match.
    pub(crate) messages: Vec<MessageExt>,
    pub(crate) next: QueueOffset,
    /// The offset asked for does not exist (any more); `next` may lie before it.
    pub(crate) moved: bool,
}

impl Puller {
    /// `commit` is stored as the group's offset on the way.
    pub(crate) async fn pull(
        &mut self,
        offset: QueueOffset,
        commit: Option<QueueOffset>,
    ) -> Result<Pulled, ConsumeError> {
        let subscription = &*self.subscription;
        let mut flags = pull_flag::SUSPEND;
        if commit.is_some() {
            flags |= pull_flag::COMMIT_OFFSET;
        }
        if self.inline_subscription {
            flags |= pull_flag::SUBSCRIPTION;
        }
        let request = PullMessageRequest {
            consumer_group: (&*self.group).into(),
            topic: (&*self.queue.topic).into(),
            queue_id: self.queue.queue_id,
            queue_offset: to_wire(offset),
            max_msg_nums: self.batch_max,
            sys_flag: flags,
            commit_offset: commit.map_or(0, to_wire),
            suspend_timeout_millis: i64::try_from(self.hold.as_millis()).unwrap_or(i64::MAX),
            subscription: self.inline_subscription.then(|| subscription.sub_string.as_str().into()),
            sub_version: if self.inline_subscription { 0 } else { subscription.sub_version },
            expression_type: Some(subscription.expression_type.as_str().into()),
            max_msg_bytes: None,
            request_source: None,
            proxy_forward_client_id: None,
        };
        let code = RequestCode::PULL_MESSAGE;
        let begun = Instant::now();
        let route = self.client.route(&self.queue.topic, None).await?;
        let name = &self.queue.broker_name;
        let address =
            route.reader(name, self.broker_id).ok_or_else(|| RouteError::UnknownBroker(name.clone()))?;
        let call = Call::new(code, &request).long_poll();
        let response = match self.client.call(&address, &call, self.hold + PULL_SLACK).await {
            Ok(response) => response,
            Err(error) => {
                // The broker may have moved; the outcome of this only matters to the next pull.
                drop(self.client.route(&self.queue.topic, Some(begun)).await);
                return Err(error.into());
            }
        };
        let answer = ResponseCode(response.code);
        let moved = answer == ResponseCode::PULL_OFFSET_MOVED;
        let is_answer = matches!(
            answer,
            ResponseCode::SUCCESS | ResponseCode::PULL_NOT_FOUND | ResponseCode::PULL_RETRY_IMMEDIATELY
        );
        if !is_answer && !moved {
            let (request, remark) = (code.name(), response.remark.unwrap_or_default());
            return Err(RequestError::Refused { address, request, code: answer, remark }.into());
        }
        let fields = PullMessageResponse::decode(&response.header().ext)
            .map_err(|problem| malformed(&address, code, problem.to_string()))?;
        self.broker_id = fields.suggest_which_broker_id;
        let mut matching = Vec::new();
        if answer == ResponseCode::SUCCESS {
            for message in messages(&response.body) {
                let message = message
                    .map_err(|problem| problem.to_string())
                    .and_then(|stored| {
                        MessageExt::decode(&stored, BODY_BYTES_MAX).map_err(|problem| problem.to_string())
                    })
                    .map_err(|problem| malformed(&address, code, problem))?;
                if is_wanted(subscription, &message) {
                    matching.push(message);
                }
            }
        }
        Ok(Pulled { messages: matching, next: from_wire(fields.next_begin_offset), moved })
    }

    /// Waits as long as it makes sense after a failed pull, and mends what can be mended.
    pub(crate) async fn recover(&self, error: &ConsumeError) {
        let code = match error {
            ConsumeError::Request(error) => error.code(),
            _ => None,
        };
        let queue = (&self.queue.topic, &self.queue.broker_name, self.queue.queue_id);
        let pause = match code {
            Some(ResponseCode::FLOW_CONTROL) => Duration::from_millis(20),
            // The broker does not know our group or our latest subscription: it was restarted, or is new.
            Some(ResponseCode::SUBSCRIPTION_NOT_EXIST | ResponseCode::SUBSCRIPTION_NOT_LATEST) => {
                tracing::debug!(?queue, %error, "introducing the group again");
                self.client.heartbeat_all().await;
                Duration::from_millis(200)
            }
            // Connecting has its own, growing back-off.
            None => {
                tracing::debug!(?queue, %error, "pull failed");
                Duration::from_millis(100)
            }
            Some(_) => {
                tracing::warn!(?queue, %error, "pull refused");
                Duration::from_secs(1)
            }
        };
        sleep(pause).await;
    }
}

/// The broker compares hashes of tags; different tags may have the same.
pub(crate) fn is_wanted(subscription: &SubscriptionData, message: &MessageExt) -> bool {
    !subscription.is_tag()
        || subscription.tags_set.is_empty()
        || message.message.tag().is_some_and(|tag| subscription.tags_set.iter().any(|wanted| *wanted == tag))
}
