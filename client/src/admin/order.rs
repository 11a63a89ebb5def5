//! Topics whose messages have an order, over all of the topic or within each queue.

use ringmq_protocol::code::RequestCode;
use ringmq_protocol::name;
use ringmq_protocol::request::{DeleteKvConfigRequest, PutKvConfigRequest};

use super::{Admin, ClusterBroker, TopicSettings};
use crate::connection::Call;
use crate::error::{AdminError, RouteError};

/// Where the name servers keep which queues an ordered topic has.
const ORDER_TOPIC_CONFIG: &str = "ORDER_TOPIC_CONFIG";

/// What is in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicOrder {
    /// All messages of the topic: it has one queue, on one broker.
    Global,
    /// The messages of each queue. Senders choose the queue by a key, and the number of queues is kept by the name servers, so
    /// that it does not change when a broker is down.
    Queue,
}

impl Admin {
    /// Creates an ordered topic. Returns the names of its brokers.
    ///
    /// # Errors
    /// If a topic that is to be in order as a whole exists with other queues: its messages have no order.
    pub async fn create_ordered_topic(
        &self,
        topic: &str,
        settings: TopicSettings,
        order: TopicOrder,
        cluster: Option<&str>,
    ) -> Result<Vec<String>, AdminError> {
        name::validate_topic(topic).map_err(|error| AdminError::Illegal(error.to_string()))?;
        let mut brokers = self.masters(cluster).await?;
        let queues = match order {
            TopicOrder::Global => 1,
            TopicOrder::Queue => settings.queues,
        };
        if order == TopicOrder::Global {
            // The same one whoever asks.
            brokers.sort_by(|a, b| (&a.cluster, &a.name).cmp(&(&b.cluster, &b.name)));
            brokers = vec![self.only_broker(topic, brokers).await?];
        }
        let names = self.create_on(&brokers, topic, &TopicSettings { queues, ..settings }, true).await?;
        let conf: Vec<String> = names.iter().map(|name| format!("{name}:{queues}")).collect();
        let request = PutKvConfigRequest {
            namespace: ORDER_TOPIC_CONFIG.into(),
            key: topic.into(),
            value: conf.join(";").into(),
        };
        let call = Call::new(RequestCode::PUT_KV_CONFIG, &request);
        self.client.ask_all_name_servers(&call).await?;
        self.client.forget_route(topic);
        Ok(names)
    }

    /// The broker for a topic of one queue: the one that has it, or the first.
    async fn only_broker(
        &self,
        topic: &str,
        brokers: Vec<ClusterBroker>,
    ) -> Result<ClusterBroker, AdminError> {
        let mut brokers = brokers.into_iter();
        let route = match self.route(topic).await {
            Ok(route) => route,
            Err(AdminError::Route(RouteError::TopicNotExist { .. })) => {
                return brokers.next().ok_or_else(|| AdminError::Illegal("there is no broker".into()));
            }
            Err(error) => return Err(error),
        };
        let queues = route.readable.iter().chain(&route.writable);
        let mut held: Vec<(&str, i32)> = queues.map(|queue| (&*queue.broker_name, queue.queue_id)).collect();
        held.sort_unstable();
        held.dedup();
        match (&held[..], brokers.find(|broker| held.iter().any(|(name, _)| *name == broker.name))) {
            ([_], Some(broker)) => Ok(broker),
            _ => {
                let brokers: Vec<String> =
                    held.iter().map(|(name, queue)| format!("{name}:{queue}")).collect();
                Err(AdminError::Illegal(format!(
                    "topic {topic} exists with the queues {}: a topic that is in order as a whole has one queue on one broker; \
                     delete it first, or choose another name",
                    brokers.join(", ")
                )))
            }
        }
    }

    /// Forgets which queues a topic had; that it had none is no error.
    pub(super) async fn forget_order(&self, topic: &str) -> Result<(), AdminError> {
        let request = DeleteKvConfigRequest { namespace: ORDER_TOPIC_CONFIG.into(), key: topic.into() };
        let call = Call::new(RequestCode::DELETE_KV_CONFIG, &request);
        Ok(self.client.ask_all_name_servers(&call).await?)
    }
}
