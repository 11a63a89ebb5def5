//! `ringmq topic …`

use clap::{Args, Subcommand};
use ringmq_client::{Client, TopicOrder, TopicSettings};
use ringmq_protocol::name::{is_dlq_topic, is_retry_topic, is_system_topic};
use ringmq_tools::table::Table;
use serde_json::json;

use crate::Failure;
use crate::output::{print, print_json};

#[derive(Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic, or change one
    Create(CreateArguments),
    /// List the topics
    List {
        /// Also those of the brokers themselves, retry and dead-letter topics
        #[arg(long)]
        all: bool,
    },
    /// Show the brokers of a topic, its queues and their offsets
    Describe { topic: String },
    /// Delete a topic with all its messages
    Delete {
        topic: String,
        /// Only on the brokers of this cluster
        #[arg(long)]
        cluster: Option<String>,
    },
}

#[derive(Args)]
pub(crate) struct CreateArguments {
    /// 1 to 127 characters of a-z A-Z 0-9 _ - % |
    topic: String,
    /// Queues on each broker
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    queues: u32,
    /// What clients may do: r, w or rw
    #[arg(long, default_value = "rw", value_parser = ["r", "w", "rw"])]
    perm: String,
    /// When a send is acknowledged: once it is on disk, or at once [default: as the broker is set]
    #[arg(long, value_parser = ["sync", "async"])]
    flush: Option<String>,
    /// Messages older than this are not delivered any more, like 90s, 15m or 12h [default: as long as the broker keeps them]
    #[arg(long, value_name = "TIME")]
    retention: Option<String>,
    /// What is in order: all messages (global: one queue on one broker), or those of each queue
    #[arg(long, value_parser = ["global", "queue"])]
    order: Option<String>,
    /// Only on the brokers of this cluster
    #[arg(long)]
    cluster: Option<String>,
}

pub(crate) async fn run(client: &Client, command: TopicCommand, json: bool) -> Result<(), Failure> {
    match command {
        TopicCommand::Create(arguments) => create(client, arguments, json).await,
        TopicCommand::List { all } => list(client, all, json).await,
        TopicCommand::Describe { topic } => describe(client, &topic, json).await,
        TopicCommand::Delete { topic, cluster } => {
            let brokers = client.admin().delete_topic(&topic, cluster.as_deref()).await?;
            match json {
                true => print_json(&json!({ "topic": topic, "deleted_on": brokers }))?,
                false => print(format_args!("deleted topic {topic} on {}", brokers.join(", ")))?,
            }
            Ok(())
        }
    }
}

async fn create(client: &Client, arguments: CreateArguments, json: bool) -> Result<(), Failure> {
    let CreateArguments { topic, queues, perm, flush, retention, order, cluster } = arguments;
    let named = [("ringmq.flush", flush), ("ringmq.retention", retention)];
    let attributes = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    let (readable, writable) = (perm.contains('r'), perm.contains('w'));
    let settings = TopicSettings { queues, readable, writable, attributes };
    let (admin, cluster) = (client.admin(), cluster.as_deref());
    let order = order.map(|order| if order == "global" { TopicOrder::Global } else { TopicOrder::Queue });
    let queues = if order == Some(TopicOrder::Global) { 1 } else { queues };
    let brokers = match order {
        Some(order) => admin.create_ordered_topic(&topic, settings, order, cluster).await?,
        None => admin.create_topic(&topic, settings, cluster).await?,
    };
    if json {
        print_json(&json!({ "topic": topic, "queues": queues, "perm": perm, "brokers": brokers }))?;
    } else {
        print(format_args!("topic {topic} has {queues} queues on each of {}", brokers.join(", ")))?;
    }
    Ok(())
}

async fn list(client: &Client, all: bool, json: bool) -> Result<(), Failure> {
    let admin = client.admin();
    let mut topics = admin.topics().await?;
    if !all {
        // Brokers also have topics named after themselves and their cluster.
        let brokers = admin.brokers().await?;
        let is_own = |topic: &str| {
            is_system_topic(topic)
                || is_retry_topic(topic)
                || is_dlq_topic(topic)
                || brokers.iter().any(|broker| {
                    topic == broker.name
                        || topic
                            .strip_prefix(&*broker.cluster)
                            .is_some_and(|rest| matches!(rest, "" | "_REPLY_TOPIC"))
                })
        };
        topics.retain(|topic| !is_own(topic));
    }
    for topic in topics {
        match json {
            true => print_json(&json!({ "topic": topic }))?,
            false => print(topic)?,
        }
    }
    Ok(())
}

async fn describe(client: &Client, topic: &str, json: bool) -> Result<(), Failure> {
    let admin = client.admin();
    let route = admin.route(topic).await?;
    let queues = admin.queues(topic).await?;
    let messages: u64 = queues.iter().map(|queue| queue.max.0.saturating_sub(queue.min.0)).sum();
    if json {
        let queues: Vec<_> = queues
            .iter()
            .map(|status| {
                json!({
                    "broker": status.queue.broker_name, "queue": status.queue.queue_id,
                    "min_offset": status.min.0, "max_offset": status.max.0,
                    "writable": route.writable.contains(&status.queue),
                })
            })
            .collect();
        let brokers: Vec<_> = route
            .brokers
            .iter()
            .flat_map(|(name, addresses)| addresses.iter().map(move |(id, address)| (name, id, address)))
            .map(|(name, id, address)| json!({ "broker": name, "id": id, "address": &**address }))
            .collect();
        print_json(&json!({ "topic": topic, "messages": messages, "brokers": brokers, "queues": queues }))?;
        return Ok(());
    }
    let mut table = Table::new(&["BROKER", "ADDRESS", "QUEUE", "PERM", "MIN", "MAX", "MESSAGES"]);
    for status in &queues {
        let queue = &status.queue;
        let perm = if route.writable.contains(queue) { "rw" } else { "r" };
        let address = route.master(&queue.broker_name).unwrap_or_else(|| "-".into());
        table.row([
            queue.broker_name.clone(),
            address.to_string(),
            queue.queue_id.to_string(),
            perm.to_string(),
            status.min.to_string(),
            status.max.to_string(),
            status.max.0.saturating_sub(status.min.0).to_string(),
        ]);
    }
    print(table.to_string().trim_end())?;
    print(format_args!("{messages} messages in {} queues", queues.len()))?;
    Ok(())
}
