//! `ringmq dlq …`: messages that their consumers could not process, after all retries.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use ringmq_client::{
    Client, ConsumeFrom, Message, MessageExt, MessageKey, MessageQueue, OffsetMessageId, Producer,
    PullConsumer, QueueOffset, SendResult,
};
use ringmq_protocol::name::{self, DLQ_GROUP_TOPIC_PREFIX};
use ringmq_protocol::properties::names;
use ringmq_tools::table::Table;
use ringmq_tools::units::{format_time, parse_duration};
use serde_json::json;

use crate::Failure;
use crate::consume::TOOLS_GROUP;
use crate::output::{line, message_json, print, print_json};
use crate::send::{BODY_BYTES_MAX, retry};

/// The group whose offsets say how far dead letters were sent again.
const RESEND_GROUP: &str = "ringmq-dlq-resend";
/// Names the dead letter that a message was made from, by its offset message id.
const RESENT_FROM: &str = "RINGMQ_RESENT_FROM";
/// How long a poll waits before it is looked whether the end was reached in another way.
const POLL: Duration = Duration::from_millis(200);
/// Characters of a body shown to people.
const PREVIEW_CHARS: usize = 60;
/// Messages with the same unique key that a broker shows.
const SAME_KEY_MAX: u32 = 32;

#[derive(Subcommand)]
pub(crate) enum DlqCommand {
    /// List the groups that have dead letters, and how many
    List,
    /// Show dead letters of a group, the oldest first
    Show {
        group: String,
        /// At most so many
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..))]
        count: u64,
    },
    Resend(ResendArguments),
}

/// Send dead letters to their original topic again
///
/// Each becomes a new message with the same body, tag, keys and properties, and the property RINGMQ_RESENT_FROM. The dead
/// letters stay where they are; how far they were sent again is stored after each one as the offset of the consumer group
/// ringmq-dlq-resend, so that the next run goes on behind. If this process is killed between the two the last message
/// is sent once more. It fails at the first message that cannot be sent.
#[derive(Args)]
#[command(group = ArgGroup::new("which").required(true).args(["count", "all", "id"]))]
pub(crate) struct ResendArguments {
    group: String,
    /// The next so many, the oldest first
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// All that were not sent again yet
    #[arg(long)]
    all: bool,
    /// This one, by its message id or offset message id, sent again before or not; the group's place does not move
    #[arg(long)]
    id: Option<String>,
    /// Send to this topic instead of the original one
    #[arg(long)]
    topic: Option<String>,
    /// How long to go on trying when a broker fails
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    retry_for: Duration,
}

pub(crate) async fn run(client: &Client, command: DlqCommand, json: bool) -> Result<(), Failure> {
    match command {
        DlqCommand::List => list(client, json).await,
        DlqCommand::Show { group, count } => show(client, &group, count, json).await,
        DlqCommand::Resend(arguments) => resend(client, arguments, json).await,
    }
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let admin = client.admin();
    let mut table = Table::new(&["GROUP", "DEAD LETTERS"]);
    for topic in admin.topics().await? {
        let Some(group) = topic.strip_prefix(DLQ_GROUP_TOPIC_PREFIX) else { continue };
        let queues = admin.queues(&topic).await?;
        let count: u64 = queues.iter().map(|queue| queue.max.0.saturating_sub(queue.min.0)).sum();
        if count == 0 {
            continue;
        }
        match json {
            true => print_json(&json!({ "group": group, "dead_letters": count }))?,
            false => table.row([group.to_owned(), count.to_string()]),
        }
    }
    if !json {
        print(table.to_string().trim_end())?;
    }
    Ok(())
}

async fn show(client: &Client, group: &str, count: u64, json: bool) -> Result<(), Failure> {
    let mut letters = Letters::open(client, group, None).await?;
    let mut left = count;
    while left > 0
        && let Some((queue, message)) = letters.next().await
    {
        left -= 1;
        if json {
            let mut object = message_json(&message, Some(&queue.broker_name));
            object["original_topic"] = json!(message.message.property(names::RETRY_TOPIC));
            print_json(&object)?;
            continue;
        }
        let stored = format_time(message.store_timestamp.0);
        let (id, times) = (message.offset_message_id(), message.reconsume_times);
        let topic = message.message.property(names::RETRY_TOPIC).unwrap_or("-");
        let keys = message.message.property(names::KEYS).unwrap_or("-");
        print(format_args!(
            "{stored}  {id}  topic {topic}  retried {times}  keys {keys}  {}",
            preview(line(&message))
        ))?;
    }
    letters.consumer.shutdown().await;
    Ok(())
}

/// The beginning of a body, in one line.
fn preview(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let shown = text.chars().take(PREVIEW_CHARS).map(|c| if c.is_control() { ' ' } else { c });
    let more = if text.chars().nth(PREVIEW_CHARS).is_some() { "…" } else { "" };
    shown.chain(more.chars()).collect()
}

async fn resend(client: &Client, arguments: ResendArguments, json: bool) -> Result<(), Failure> {
    let producer = client.producer("ringmq-dlq-resend").message_bytes_max(BODY_BYTES_MAX).build()?;
    let sent = match &arguments.id {
        Some(id) => resend_one(client, &producer, &arguments, id, json).await,
        None => resend_next(client, &producer, &arguments, json).await,
    };
    producer.shutdown().await;
    let sent = sent?;
    if !json {
        match sent {
            0 => print("nothing to send again")?,
            count => print(format_args!("sent {count} again"))?,
        }
    }
    Ok(())
}

async fn resend_one(
    client: &Client,
    producer: &Producer,
    arguments: &ResendArguments,
    id: &str,
    json: bool,
) -> Result<u64, Failure> {
    let dlq = name::dlq_topic(&arguments.group);
    let key = MessageKey::Unique(id.to_owned());
    let found = client.admin().query_message(&dlq, &key, 0..=i64::MAX, SAME_KEY_MAX).await?;
    let message = match (found.into_iter().next_back(), id.parse::<OffsetMessageId>()) {
        (Some(found), _) => Some(found.message),
        (None, Ok(id)) => Some(client.admin().message(id).await?).filter(|found| found.message.topic == dlq),
        (None, Err(_)) => None,
    };
    let message = message.ok_or_else(|| {
        let group = &arguments.group;
        Failure::new(format!("{id} is no dead letter of group {group}; `ringmq dlq show {group}` shows them"))
    })?;
    send_again(producer, &message, arguments, json).await?;
    Ok(1)
}

async fn resend_next(
    client: &Client,
    producer: &Producer,
    arguments: &ResendArguments,
    json: bool,
) -> Result<u64, Failure> {
    let mut letters = Letters::open(client, &arguments.group, Some(RESEND_GROUP)).await?;
    let most = arguments.count.unwrap_or(u64::MAX);
    let mut sent = 0;
    let mut outcome = Ok(());
    while sent < most
        && let Some((queue, message)) = letters.next().await
    {
        outcome = send_again(producer, &message, arguments, json).await;
        if outcome.is_ok() {
            let next = QueueOffset(message.queue_offset.0 + 1);
            outcome = letters.consumer.commit_to(&queue, next).await.map_err(Failure::from);
        }
        if outcome.is_err() {
            break;
        }
        sent += 1;
    }
    letters.consumer.shutdown().await;
    match outcome {
        Err(Failure::Message(problem)) => {
            Err(Failure::new(format!("{problem} ({sent} were sent again before)")))
        }
        outcome => outcome.map(|()| sent),
    }
}

async fn send_again(
    producer: &Producer,
    dead: &MessageExt,
    arguments: &ResendArguments,
    json: bool,
) -> Result<(), Failure> {
    let message = revived(dead, arguments.topic.as_deref())?;
    let sent = retry(arguments.retry_for, || producer.send(message.clone())).await?;
    let from = dead.offset_message_id().to_string();
    let SendResult { queue, message_id, offset_message_id, queue_offset, .. } = &sent;
    if json {
        print_json(&json!({
            "from": from, "topic": queue.topic, "broker": queue.broker_name, "queue": queue.queue_id,
            "offset": queue_offset.0, "message_id": message_id, "offset_message_id": offset_message_id,
        }))?;
    } else {
        let (topic, broker, id) = (&queue.topic, &queue.broker_name, queue.queue_id);
        print(format_args!("{from}  ->  topic {topic}  {broker}  queue {id}  offset {queue_offset}"))?;
    }
    Ok(())
}

/// A new message with what its application gave the dead one.
fn revived(dead: &MessageExt, topic: Option<&str>) -> Result<Message, Failure> {
    let id = dead.offset_message_id();
    let topic = topic.or_else(|| dead.message.property(names::RETRY_TOPIC)).ok_or_else(|| {
        Failure::new(format!(
            "dead letter {id} has no original topic (property RETRY_TOPIC); name one with --topic"
        ))
    })?;
    let mut message = Message { topic: topic.to_owned(), ..dead.message.clone() };
    // What brokers and clients noted on its way. Its retries begin anew.
    for noted in [
        names::UNIQ_KEY,
        names::RETRY_TOPIC,
        names::DELAY_TIME_LEVEL,
        names::REAL_TOPIC,
        names::REAL_QUEUE_ID,
        names::RECONSUME_TIME,
        names::MAX_RECONSUME_TIMES,
        names::WAIT_STORE_MSG_OK,
        names::MSG_REGION,
        names::TRACE_ON,
        names::CLUSTER,
    ] {
        message.set(noted, "");
    }
    message.set(RESENT_FROM, &id.to_string());
    Ok(message)
}

/// The dead letters of a group that were there when they were opened.
struct Letters {
    consumer: PullConsumer,
    ends: BTreeMap<MessageQueue, QueueOffset>,
    polled: std::vec::IntoIter<(MessageQueue, MessageExt)>,
}

impl Letters {
    /// Without a reader's group from the oldest on, else behind what it has read.
    async fn open(client: &Client, group: &str, reader: Option<&str>) -> Result<Self, Failure> {
        let dlq = name::dlq_topic(group);
        let admin = client.admin();
        if !admin.topics().await?.contains(&dlq) {
            return Err(Failure::new(format!(
                "group {group} has no dead letters; `ringmq dlq list` shows the groups that have"
            )));
        }
        let queues = admin.queues(&dlq).await?;
        let assigned: Vec<MessageQueue> = queues.iter().map(|status| status.queue.clone()).collect();
        let consumer = client
            .pull_consumer(reader.unwrap_or(TOOLS_GROUP))
            .consume_from(ConsumeFrom::FirstOffset)
            .assign(assigned, "*")
            .ignore_committed(reader.is_none())
            .build()
            .await?;
        let ends = queues.into_iter().map(|status| (status.queue, status.max)).collect();
        Ok(Self { consumer, ends, polled: Vec::new().into_iter() })
    }

    /// The next one; `None` when all are read.
    async fn next(&mut self) -> Option<(MessageQueue, MessageExt)> {
        loop {
            if let Some(next) = self.polled.next() {
                return Some(next);
            }
            let is_read = |(queue, end): (&MessageQueue, &QueueOffset)| {
                self.consumer.position(queue).is_none_or(|position| position >= *end)
            };
            if self.ends.iter().all(is_read) {
                return None;
            }
            if let Some(batch) = self.consumer.poll(POLL).await {
                let end = self.ends.get(&batch.queue).copied().unwrap_or_default();
                let there = batch.messages.into_iter().filter(|message| message.queue_offset < end);
                let there: Vec<_> = there.map(|message| (batch.queue.clone(), message)).collect();
                self.polled = there.into_iter();
            }
            // Whoever reads us gets what there is.
            let _ = std::io::stdout().flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringmq_protocol::types::{BornTimestamp, PhysicalOffset, QueueId, StoreTimestamp, SysFlag};

    fn dead(message: Message) -> MessageExt {
        let host = "127.0.0.1:10911".parse().unwrap();
        MessageExt {
            message,
            queue_id: QueueId(0),
            queue_offset: QueueOffset(0),
            physical_offset: PhysicalOffset(256),
            sys_flag: SysFlag(0),
            born_timestamp: BornTimestamp(0),
            born_host: host,
            store_timestamp: StoreTimestamp(0),
            store_host: host,
            reconsume_times: 17,
            prepared_transaction_offset: 0,
            store_size: 0,
        }
    }

    #[test]
    fn a_dead_letter_becomes_what_its_application_sent() {
        let sent = Message::new("%DLQ%g", "body").with_tag("red").with_keys(["k"]).with("colour", "blue");
        let noted = [(names::RETRY_TOPIC, "T"), (names::DELAY_TIME_LEVEL, "0"), (names::UNIQ_KEY, "U")];
        let letter = noted.into_iter().fold(sent, |message, (name, value)| message.with(name, value));
        let again = revived(&dead(letter.clone()), None).unwrap();
        assert_eq!(
            (again.topic.as_str(), again.body.as_ref(), again.tag()),
            ("T", &b"body"[..], Some("red"))
        );
        assert_eq!((again.property(names::KEYS), again.property("colour")), (Some("k"), Some("blue")));
        assert_eq!(again.property(RESENT_FROM), Some("7F00000100002A9F0000000000000100"));
        assert!(noted.iter().all(|(name, _)| again.property(name).is_none()));
        assert_eq!(revived(&dead(letter), Some("Other")).unwrap().topic, "Other");
        assert!(revived(&dead(Message::new("%DLQ%g", "x")), None).is_err());
    }

    #[test]
    fn a_preview_is_one_short_line() {
        assert_eq!(preview(b"two\nlines"), "two lines");
        assert_eq!(preview(&[b'x'; 61]), format!("{}…", "x".repeat(60)));
        assert_eq!(preview(&[b'x'; 60]), "x".repeat(60));
    }
}
