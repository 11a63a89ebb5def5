//! What an application can see of sends and handlers, or add to them, for traces and logs of its own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ringmq_protocol::body::MessageQueue;
use ringmq_protocol::message::{Message, MessageExt};

use crate::error::SendError;
use crate::producer::SendResult;

/// Is called around every send and every handler of a client, see [`ClientBuilder::hook`](crate::ClientBuilder::hook).
///
/// Hooks run on the tasks that send and consume, in the order in which they were added: they must not block. All methods
/// do nothing unless implemented.
///
/// ```
/// use std::time::Duration;
/// use ringmq_client::{ConsumeEvent, Hook, Message};
///
/// /// Gives every message the name of the machine it comes from, and prints handlers that are slow.
/// struct Origin(String);
///
/// impl Hook for Origin {
///     fn before_send(&self, _group: &str, message: &mut Message) {
///         message.set("origin", &self.0);
///     }
///
///     fn after_consume(&self, event: &ConsumeEvent<'_>, _succeeded: bool, took: Duration) {
///         if took > Duration::from_secs(1) {
///             println!("{}: {} messages took {took:?}", event.group, event.messages.len());
///         }
///     }
/// }
///
/// let builder = ringmq_client::Client::builder("127.0.0.1:9876").hook(Origin("here".into()));
/// ```
pub trait Hook: Send + Sync + 'static {
    /// A message is about to be checked and sent; what is changed is sent so. Called for each message of a batch.
    fn before_send(&self, group: &str, message: &mut Message) {
        let _ = (group, message);
    }

    /// A send or a batch ended, after all its attempts. Not called for one-way sends.
    fn after_send(&self, event: &SendEvent<'_>) {
        let _ = event;
    }

    /// A handler is about to be called.
    fn before_consume(&self, event: &ConsumeEvent<'_>) {
        let _ = event;
    }

    /// A handler returned, panicked or took too long; it succeeded if the messages are done with.
    fn after_consume(&self, event: &ConsumeEvent<'_>, succeeded: bool, took: Duration) {
        let _ = (event, succeeded, took);
    }
}

/// A send that ended.
#[derive(Debug)]
pub struct SendEvent<'a> {
    /// The producer's group.
    pub group: &'a str,
    pub topic: &'a str,
    /// The unique key of the message, or of the batch.
    pub message_id: &'a str,
    /// Messages: more than one in a batch.
    pub messages: usize,
    pub outcome: Result<&'a SendResult, &'a SendError>,
    pub took: Duration,
}

/// Messages that a handler gets.
#[derive(Debug)]
pub struct ConsumeEvent<'a> {
    /// The consumer's group.
    pub group: &'a str,
    /// The queue they come from; that of the retry topic if they come again.
    pub queue: &'a MessageQueue,
    /// One, unless the consumer takes batches.
    pub messages: &'a [MessageExt],
}

#[derive(Clone, Default)]
pub(crate) struct Hooks(pub(crate) Vec<Arc<dyn Hook>>);

impl fmt::Debug for Hooks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} hooks", self.0.len())
    }
}

impl Hooks {
    pub(crate) fn before_send(&self, group: &str, message: &mut Message) {
        self.0.iter().for_each(|hook| hook.before_send(group, message));
    }

    pub(crate) fn after_send(&self, event: &SendEvent<'_>) {
        self.0.iter().for_each(|hook| hook.after_send(event));
    }

    /// Tells of messages that go to a handler, and keeps them for [`after_consume`](Self::after_consume).
    pub(crate) fn before_consume(
        &self,
        group: &str,
        queue: &MessageQueue,
        messages: &[MessageExt],
    ) -> Vec<MessageExt> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let event = ConsumeEvent { group, queue, messages };
        self.0.iter().for_each(|hook| hook.before_consume(&event));
        messages.to_vec()
    }

    pub(crate) fn after_consume(
        &self,
        group: &str,
        queue: &MessageQueue,
        messages: &[MessageExt],
        succeeded: bool,
        took: Duration,
    ) {
        let event = ConsumeEvent { group, queue, messages };
        self.0.iter().for_each(|hook| hook.after_consume(&event, succeeded, took));
    }
}
