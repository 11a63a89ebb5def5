//! What could not be processed goes to a broker, which delivers it later or makes a dead letter of it.
//!
//!   send back (36) to the broker it came from ─▶ else publish a copy to %RETRY%group

use std::time::Duration;

use ringmq_protocol::body::MessageQueue;
use ringmq_protocol::code::RequestCode;
use ringmq_protocol::message::MessageExt;
use ringmq_protocol::name;
use ringmq_protocol::properties::{PropertyError, names};
use ringmq_protocol::request::ConsumerSendMsgBackRequest;
use ringmq_protocol::types::SysFlag;

use super::{ConsumeResult, Inner};
use crate::client::now_ms;
use crate::connection::Call;
use crate::error::ConsumeError;
use crate::producer::Outbound;

const SEND_BACK_TIMEOUT: Duration = Duration::from_secs(5);
/// The delay level of the first retry, 10 s; each further one is a level higher.
const FIRST_RETRY_LEVEL: i32 = 3;

impl Inner {
    /// Gives a message that was not processed back to a broker. `true` once a broker has it.
    pub(super) async fn send_back(
        &self,
        queue: &MessageQueue,
        message: &MessageExt,
        result: ConsumeResult,
    ) -> bool {
        let request = ConsumerSendMsgBackRequest {
            offset: message.physical_offset,
            group: (&*self.group).into(),
            delay_level: match result {
                ConsumeResult::Success | ConsumeResult::ReconsumeLater => 0,
                ConsumeResult::ReconsumeAfter(level) => i32::from(level.get()),
                ConsumeResult::DeadLetter => -1,
            },
            origin_msg_id: Some(message.message_id().into()),
            origin_topic: Some((&*message.message.topic).into()),
            unit_mode: false,
            max_reconsume_times: Some(self.reconsume_times_max()),
            broker_name: Some((&*queue.broker_name).into()),
        };
        let call = Call::new(RequestCode::CONSUMER_SEND_MSG_BACK, &request);
        let sent_back = match self.client.master_of(queue).await {
            Ok(address) => self
                .client
                .ask(&address, &call, SEND_BACK_TIMEOUT)
                .await
                .map(drop)
                .map_err(ConsumeError::from),
            Err(error) => Err(error.into()),
        };
        let Err(error) = sent_back else { return true };
        tracing::info!(%error, "not sent back, publishing to the retry topic");
        self.publish_retry(message, result).await
    }

    /// Publishes a copy of a message to the retry topic. `true` once a broker has it.
    pub(super) async fn publish_retry(&self, message: &MessageExt, result: ConsumeResult) -> bool {
        let outbound = match retry_outbound(&self.group, message, result, self.reconsume_times_max()) {
            Ok(outbound) => outbound,
            Err(error) => {
                tracing::warn!(%error, "a message that cannot be published again");
                return false;
            }
        };
        match self.republisher.deliver(&outbound, None, SEND_BACK_TIMEOUT, 2).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "not published to the retry topic");
                false
            }
        }
    }
}

/// The copy of a failed message that its consumer publishes itself. A broker makes a dead letter of one that was
/// consumed more often than it may.
fn retry_outbound(
    group: &str,
    message: &MessageExt,
    result: ConsumeResult,
    times_max: i32,
) -> Result<Outbound, PropertyError> {
    let mut copy = message.message.clone();
    if copy.property(names::RETRY_TOPIC).is_none() {
        let topic = copy.topic.clone();
        copy.set(names::RETRY_TOPIC, &topic);
    }
    if copy.property(names::ORIGIN_MESSAGE_ID).is_none() {
        copy.set(names::ORIGIN_MESSAGE_ID, &message.message_id());
    }
    let times = match result {
        ConsumeResult::DeadLetter => times_max.saturating_add(1),
        _ => message.reconsume_times.saturating_add(1),
    };
    let level = match result {
        ConsumeResult::ReconsumeAfter(level) => i32::from(level.get()),
        _ => FIRST_RETRY_LEVEL.saturating_add(message.reconsume_times),
    };
    copy.set(names::RECONSUME_TIME, &times.to_string());
    copy.set(names::MAX_RECONSUME_TIMES, &times_max.to_string());
    copy.set(names::DELAY_TIME_LEVEL, &level.to_string());
    copy.set(names::TRANSACTION_PREPARED, "");
    let properties = copy.encode_properties()?;
    Ok(Outbound {
        topic: name::retry_topic(group),
        body: copy.body,
        properties: String::from_utf8_lossy(&properties).into_owned(),
        flag: copy.flag,
        sys_flag: SysFlag(0),
        message_id: message.message_id(),
        born_timestamp: now_ms(),
        batch: false,
        messages: 1,
        joins: false,
        reconsume_times: times,
        max_reconsume_times: Some(times_max),
    })
}

/// A message that came back through the retry topic looks to the handler as it did the first time.
pub(super) fn restored(message: &MessageExt) -> MessageExt {
    let mut message = message.clone();
    if name::is_retry_topic(&message.message.topic)
        && let Some(topic) = message.message.property(names::RETRY_TOPIC).map(str::to_string)
    {
        message.message.topic = topic;
    }
    message
}
