//! `ringmq consume`

use std::collections::BTreeMap;
use std::io::{BufWriter, Stdout, Write};
use std::time::{Duration, Instant};

use clap::Args;
use ringmq_client::{Batch, Client, ConsumeFrom, MessageExt, MessageQueue, PullConsumer, QueueOffset};
use ringmq_tools::units::{format_time, now_ms, parse_time};
use tokio::signal;

use crate::Failure;
use crate::output::{line, message_json};

/// A group that every broker knows; used without --group, as its offsets are neither read nor stored.
pub(crate) const TOOLS_GROUP: &str = "TOOLS_CONSUMER";
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// How long a poll waits before it is looked whether the end was reached in another way.
const POLL: Duration = Duration::from_millis(200);
const BATCH_MESSAGES: u16 = 1024;

/// Print the messages of a topic
///
/// Without --follow it ends once everything that was there at the start has been printed. The messages of one queue
/// are printed in their order; those of several queues come as they arrive.
///
/// With --group, offsets are stored for what was printed, and queues are shared with the other members of the group:
/// the next run continues where this one ended. What was printed but not stored, because this process or a broker was
/// killed, is printed again. Without --group everything is read from --from, and nothing is stored.
#[derive(Args)]
pub(crate) struct ConsumeArguments {
    /// What to consume
    topic: String,
    /// Consumer group whose offsets are used and stored
    #[arg(long)]
    group: Option<String>,
    /// Only messages with one of these tags
    #[arg(long, value_name = "TAG || TAG", default_value = "*")]
    filter: String,
    /// Only messages whose properties fulfil this SQL92 filter, like "colour = 'red' AND size > 3"
    #[arg(long, value_name = "EXPRESSION", conflicts_with = "filter")]
    sql: Option<String>,
    /// Where to begin: first, last, or a time like 2026-11-22T14:00:00Z or 10m (ago). A group that has offsets
    /// continues there
    #[arg(long, default_value = "first", value_parser = parse_from)]
    from: ConsumeFrom,
    /// End after so many messages
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Go on with what comes, until interrupted
    #[arg(long)]
    follow: bool,
    /// Print bodies only, each with a line end: what `ringmq send` read from its standard input
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

fn parse_from(text: &str) -> Result<ConsumeFrom, String> {
    match text {
        "first" => Ok(ConsumeFrom::FirstOffset),
        "last" => Ok(ConsumeFrom::LastOffset),
        time => parse_time(time, now_ms())
            .map(ConsumeFrom::Timestamp)
            .map_err(|problem| format!("neither first nor last, and {problem}")),
    }
}

#[derive(Clone, Copy)]
enum Form {
    People,
    Raw,
    Json,
}

pub(crate) async fn run(client: &Client, arguments: ConsumeArguments, json: bool) -> Result<(), Failure> {
    let form = match (arguments.raw, json) {
        (true, _) => Form::Raw,
        (_, true) => Form::Json,
        _ => Form::People,
    };
    // Also finds out early that there is no such topic.
    let ends: BTreeMap<MessageQueue, QueueOffset> = client
        .admin()
        .queues(&arguments.topic)
        .await?
        .into_iter()
        .map(|status| (status.queue, status.max))
        .collect();
    let group = arguments.group.as_deref().unwrap_or(TOOLS_GROUP);
    let builder = client.pull_consumer(group).consume_from(arguments.from).batch_max(BATCH_MESSAGES);
    let queues: Vec<MessageQueue> = ends.keys().cloned().collect();
    let builder = match (&arguments.group, &arguments.sql) {
        (Some(_), None) => builder.subscribe(&arguments.topic, &arguments.filter),
        (Some(_), Some(expression)) => builder.subscribe_sql(&arguments.topic, expression),
        (None, None) => builder.assign(queues, &arguments.filter).ignore_committed(true),
        (None, Some(expression)) => builder.assign_sql(queues, expression).ignore_committed(true),
    };
    let consumer = builder.build().await?;
    let mut printer = Printer {
        consumer,
        commits: arguments.group.is_some(),
        form,
        left: arguments.count.unwrap_or(u64::MAX),
        out: BufWriter::with_capacity(256 * 1024, std::io::stdout()),
        printed: BTreeMap::new(),
        committed_at: Instant::now(),
    };
    let mut interrupted = std::pin::pin!(until_interrupted());
    let outcome = tokio::select! {
        biased;
        () = &mut interrupted => match arguments.follow {
            true => Ok(()),
            false => Err(Failure::new("interrupted")),
        },
        outcome = printer.print(if arguments.follow { None } else { Some(&ends) }) => outcome,
    };
    // What was printed counts, however it ended.
    let stored = match &outcome {
        Err(Failure::BrokenPipe) => Ok(()),
        _ => printer.commit().await,
    };
    printer.consumer.shutdown().await;
    outcome.and(stored)
}

struct Printer {
    consumer: PullConsumer,
    /// Whether offsets are stored.
    commits: bool,
    form: Form,
    /// Messages still to be printed.
    left: u64,
    out: BufWriter<Stdout>,
    /// Offsets after what was printed, and not stored yet.
    printed: BTreeMap<MessageQueue, QueueOffset>,
    committed_at: Instant,
}

impl Printer {
    /// Prints until the ends are reached, or the count; without ends only the count ends it.
    async fn print(&mut self, ends: Option<&BTreeMap<MessageQueue, QueueOffset>>) -> Result<(), Failure> {
        self.consumer.assigned().await;
        while self.left > 0 && !ends.is_some_and(|ends| self.is_at(ends)) {
            let mut batch = self.consumer.poll(Duration::ZERO).await;
            if batch.is_none() {
                // Nothing at hand: whoever reads us gets what there is.
                self.out.flush()?;
                batch = self.consumer.poll(POLL).await;
            }
            if let Some(batch) = batch {
                self.print_batch(&batch, ends)?;
            }
            if self.committed_at.elapsed() >= COMMIT_INTERVAL {
                self.commit().await?;
            }
        }
        Ok(())
    }

    /// Whether all queues of this consumer have been read up to where they ended.
    fn is_at(&self, ends: &BTreeMap<MessageQueue, QueueOffset>) -> bool {
        self.consumer.assignment().iter().all(|queue| {
            ends.get(queue).is_none_or(|end| self.consumer.position(queue).is_none_or(|at| at >= *end))
        })
    }

    fn print_batch(
        &mut self,
        batch: &Batch,
        ends: Option<&BTreeMap<MessageQueue, QueueOffset>>,
    ) -> Result<(), Failure> {
        let mut next = batch.next;
        let end = ends.and_then(|ends| ends.get(&batch.queue));
        for message in &batch.messages {
            if self.left == 0 || end.is_some_and(|end| message.queue_offset >= *end) {
                // It comes after all that was asked for, and stays unread for the next run.
                next = message.queue_offset;
                break;
            }
            print_message(&mut self.out, self.form, message, &batch.queue)?;
            self.left -= 1;
        }
        self.printed.insert(batch.queue.clone(), next);
        Ok(())
    }

    /// Stores offsets of what has left this process.
    async fn commit(&mut self) -> Result<(), Failure> {
        self.out.flush()?;
        self.committed_at = Instant::now();
        if self.commits {
            for (queue, offset) in std::mem::take(&mut self.printed) {
                self.consumer.commit_to(&queue, offset).await?;
            }
        }
        Ok(())
    }
}

fn print_message(
    out: &mut impl Write,
    form: Form,
    message: &MessageExt,
    queue: &MessageQueue,
) -> Result<(), Failure> {
    match form {
        Form::Raw => out.write_all(line(message))?,
        Form::Json => serde_json::to_writer(&mut *out, &message_json(message, Some(&queue.broker_name)))
            .map_err(std::io::Error::from)?,
        Form::People => {
            let stored = format_time(message.store_timestamp.0);
            let (broker, id, offset) = (&queue.broker_name, queue.queue_id, message.queue_offset);
            write!(out, "{stored}  {broker}/{id}@{offset}  ")?;
            if let Some(tag) = message.message.tag() {
                write!(out, "[{tag}] ")?;
            }
            write!(out, "{}", String::from_utf8_lossy(line(message)))?;
        }
    }
    out.write_all(b"\n")?;
    Ok(())
}

async fn until_interrupted() {
    #[cfg(unix)]
    {
        if let Ok(mut terminate) = signal::unix::signal(signal::unix::SignalKind::terminate()) {
            tokio::select! {
                _ = signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    // Without the handler the default remains: the process ends.
    if signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_begin() {
        assert_eq!(parse_from("first"), Ok(ConsumeFrom::FirstOffset));
        assert_eq!(parse_from("last"), Ok(ConsumeFrom::LastOffset));
        assert_eq!(parse_from("1970-01-02"), Ok(ConsumeFrom::Timestamp(86_400_000)));
        assert!(parse_from("somewhere").is_err());
    }
}
