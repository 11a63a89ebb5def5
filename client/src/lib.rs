//! The native client of RingMQ, and of any broker that speaks RocketMQ's remoting protocol.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use ringmq_client::{Client, ConsumeFrom, ConsumeResult, Message};
//!
//! let client = Client::new("127.0.0.1:9876").await?;
//!
//! let producer = client.producer("orders").build()?;
//! let sent = producer.send(Message::new("Orders", "one book").with_tag("new")).await?;
//! println!("{} is at {} of queue {}", sent.message_id, sent.queue_offset, sent.queue.queue_id);
//!
//! let consumer = client
//!     .push_consumer("billing")
//!     .subscribe("Orders", "new || changed")
//!     .consume_from(ConsumeFrom::FirstOffset)
//!     .start(|message| async move {
//!         println!("{:?}", message.message.body);
//!         ConsumeResult::Success
//!     })
//!     .await?;
//!
//! consumer.shutdown().await;
//! producer.shutdown().await;
//! client.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! - [`Client`] holds what the rest shares: name servers, routes, one connection per broker, heartbeats.
//! - [`Producer`] sends: each send is a future, so concurrency is the caller's choice. It compresses long bodies, and with
//!   [`Batching`] sends that are under way at the same time share requests.
//! - [`PushConsumer`] hands messages to an async handler and redelivers what fails: many at a time
//!   ([`start`](PushConsumerBuilder::start), [`start_batches`](PushConsumerBuilder::start_batches)), or those of a queue
//!   one by one in their order ([`start_orderly`](PushConsumerBuilder::start_orderly)); shared with the group, or
//!   [to every member](PushConsumerBuilder::broadcasting).
//! - [`PullConsumer`] is asked for messages, batch by batch or as a [`Stream`](futures_core::Stream).
//! - [`SimpleConsumer`] is lent single messages, which come again unless they are acknowledged in time.
//! - [`Admin`] creates topics and tells what there is.
//! - [`Metrics`] and [`Hook`]s show what a client does.
//!
//! Errors that come from a server name its address, the code with RocketMQ's name for it, and the remark.
//! Everything runs on the tokio runtime in which the client was built, with its I/O and time drivers enabled.
//!
//! Map: `connection` (frames, one TCP connection) ← `client` (addresses, routes, heartbeats) ← `group` (offsets,
//! shares, locks), `member` (what servers ask) ← `pull` ← `pull_consumer`, `push_consumer`, `simple_consumer`;
//! `producer` with `retry`; `admin`; `metrics` and `hook` beside them.
#![forbid(unsafe_code)]

mod admin;
mod allocate;
mod client;
mod connection;
mod error;
#[cfg(test)]
mod fake;
mod group;
mod hook;
mod member;
mod metrics;
mod offset_file;
mod process_queue;
mod producer;
mod pull;
mod pull_consumer;
mod push_consumer;
mod retry;
mod route;
mod simple_consumer;

pub use admin::{
    Admin, BrokerHealth, ClusterBroker, FoundMessage, GroupDescription, GroupMember, GroupOffset, GroupQueue,
    GroupSettings, GroupSubscription, GroupSummary, MessageKey, QueueReset, QueueStatus, ResetTo, TopicOrder,
    TopicSettings,
};
pub use client::{Client, ClientBuilder};
pub use error::{AdminError, ConfigError, ConsumeError, RequestError, RouteError, SendError};
pub use group::ConsumeFrom;
pub use hook::{ConsumeEvent, Hook, SendEvent};
pub use metrics::{ConsumeMetrics, Latency, Metrics, SendMetrics};
pub use producer::{Batching, Producer, ProducerBuilder, SendResult, SendStatus};
pub use pull_consumer::{Batch, MessageStream, PullConsumer, PullConsumerBuilder};
pub use push_consumer::{ConsumeResult, DelayLevel, OrderlyResult, PushConsumer, PushConsumerBuilder};
pub use ringmq_protocol::body::MessageQueue;
pub use ringmq_protocol::code::ResponseCode;
pub use ringmq_protocol::id::OffsetMessageId;
pub use ringmq_protocol::message::{Message, MessageExt};
pub use ringmq_protocol::types::{Compression, QueueOffset};
pub use route::TopicRoute;
pub use simple_consumer::{Received, SimpleConsumer, SimpleConsumerBuilder};

impl Client {
    /// A producer of this group.
    pub fn producer(&self, group: impl Into<String>) -> ProducerBuilder {
        Producer::builder(self.clone(), group.into())
    }

    /// A consumer that calls a handler.
    pub fn push_consumer(&self, group: impl Into<String>) -> PushConsumerBuilder {
        PushConsumer::builder(self.clone(), group.into())
    }

    /// A consumer that is asked.
    pub fn pull_consumer(&self, group: impl Into<String>) -> PullConsumerBuilder {
        PullConsumer::builder(self.clone(), group.into())
    }

    /// A consumer to which brokers lend messages.
    pub fn simple_consumer(&self, group: impl Into<String>) -> SimpleConsumerBuilder {
        SimpleConsumer::builder(self.clone(), group.into())
    }

    /// Topics, clusters, offsets and single messages.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }
}
