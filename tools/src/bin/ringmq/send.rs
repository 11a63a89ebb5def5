//! `ringmq send`
//!
//! Standard input is cut into batches, and every queue has a lane that sends one batch at a time: requests in flight
//! together may overtake each other, and this way a queue receives its lines in their order, whatever is retried.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use ringmq_client::{Client, Message, MessageQueue, Producer, SendError, SendResult};
use ringmq_protocol::properties::names;
use ringmq_tools::units::{format_bytes, format_duration, parse_duration};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::Failure;
use crate::lines::{LineBatch, Lines};
use crate::output::{EMPTY_LINE, EMPTY_LINE_BODY, print, print_json};

/// The largest body that brokers take.
pub(crate) const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
const BATCH_BYTES: usize = 512 * 1024;
/// The answer names every message of a batch in its header, which has bounds.
const BATCH_LINES: usize = 1024;
/// What a message takes in a batch besides its line, about.
const LINE_OVERHEAD: usize = 200;
/// Lanes at most, if a topic has more queues.
const LANES_MAX: usize = 16;
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Send a message, or every line of standard input as one
///
/// With BODY, sends one message. Without, each line of standard input becomes one message; any bytes will do, and a
/// last line without an end counts. RocketMQ stores no empty bodies, so an empty line is sent as a line end with the
/// property RINGMQ_EMPTY_LINE=true, which `ringmq consume` turns back into an empty line.
///
/// Lines are spread over the queues of the topic, and each queue has its lines in their order. With --queue all lines
/// go to one queue, so that they are consumed in the order of the input.
///
/// A line counts as sent when a broker has acknowledged it. When a broker cannot be reached, its lines are sent again
/// until --retry-for is over; none is lost, but lines may be stored twice, as the acknowledgement may have been what
/// was lost.
#[derive(Args)]
pub(crate) struct SendArguments {
    /// Where to send; a topic that does not exist is made by the brokers, if they may
    topic: String,
    /// The message; without it, each line of standard input is one
    body: Option<OsString>,
    /// Tag of the messages
    #[arg(long)]
    tag: Option<String>,
    /// Key of the messages, may be given several times
    #[arg(long)]
    key: Vec<String>,
    /// Property of the messages, may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_property)]
    property: Vec<(String, String)>,
    /// Deliver the messages so much later, like 10s or 5m: one of the delay levels of the brokers
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    delay: Option<Duration>,
    /// One queue for all messages: N is queue N of the first broker that has it, BROKER:N says which
    #[arg(long, value_name = "[BROKER:]N")]
    queue: Option<String>,
    /// How long to go on trying when a broker fails
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    retry_for: Duration,
}

fn parse_property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            Ok((name.to_string(), value.to_string()))
        }
        _ => Err("write it as NAME=VALUE, neither empty".into()),
    }
}

/// What all messages of this run have in common.
struct Template {
    message: Message,
}

impl Template {
    fn message(&self, line: Bytes) -> Message {
        let mut message = self.message.clone();
        if line.is_empty() {
            message.body = Bytes::from_static(EMPTY_LINE_BODY);
            message.set(EMPTY_LINE, "true");
        } else {
            message.body = line;
        }
        message
    }
}

#[derive(Default)]
struct Progress {
    messages: AtomicU64,
    bytes: AtomicU64,
}

pub(crate) async fn run(client: &Client, arguments: SendArguments, json: bool) -> Result<(), Failure> {
    let producer = client.producer("ringmq-send").message_bytes_max(BODY_BYTES_MAX).build()?;
    let outcome = send(client, &producer, arguments, json).await;
    producer.shutdown().await;
    outcome
}

async fn send(
    client: &Client,
    producer: &Producer,
    arguments: SendArguments,
    json: bool,
) -> Result<(), Failure> {
    let mut message = Message::new(&arguments.topic, Bytes::new());
    for (name, value) in &arguments.property {
        message.set(name, value);
    }
    if let Some(tag) = &arguments.tag {
        message = message.with_tag(tag);
    }
    if !arguments.key.is_empty() {
        message = message.with_keys(arguments.key.iter().map(String::as_str));
    }
    if let Some(delay) = arguments.delay {
        let level = delay_level(&client.admin().delay_levels().await?, delay)?;
        message.set(names::DELAY_TIME_LEVEL, &level.to_string());
    }
    let template = Template { message };
    // Not repeated: what fails before the first message was most likely asked wrongly.
    let queues = producer.queues(&arguments.topic).await?;
    let queues = match &arguments.queue {
        Some(wanted) => vec![find_queue(&queues, wanted, &arguments.topic)?],
        None if queues.is_empty() => {
            return Err(Failure::new(format!("topic {} has no writable queue", arguments.topic)));
        }
        None => queues,
    };
    let retry_for = arguments.retry_for;
    match arguments.body {
        Some(body) => {
            let queue = arguments.queue.as_ref().and(queues.first());
            send_one(producer, &template.message(body.into_encoded_bytes().into()), queue, retry_for, json)
                .await
        }
        None => send_lines(producer, template, queues, retry_for, json).await,
    }
}

async fn send_one(
    producer: &Producer,
    message: &Message,
    queue: Option<&MessageQueue>,
    retry_for: Duration,
    json: bool,
) -> Result<(), Failure> {
    let sent = retry(retry_for, || async {
        match queue {
            Some(queue) => producer.send_to(queue, message.clone()).await,
            None => producer.send(message.clone()).await,
        }
    })
    .await?;
    if json {
        print_json(&result_json(&sent))?;
    } else {
        let SendResult { queue, offset_message_id, queue_offset, .. } = &sent;
        let (broker, id) = (&queue.broker_name, queue.queue_id);
        print(format_args!("{offset_message_id}  {broker}  queue {id}  offset {queue_offset}"))?;
    }
    Ok(())
}

async fn send_lines(
    producer: &Producer,
    template: Template,
    queues: Vec<MessageQueue>,
    retry_for: Duration,
    json: bool,
) -> Result<(), Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("each line becomes a message; end with Ctrl-D");
    }
    let lines = Arc::new(Lines::read(stdin, BODY_BYTES_MAX));
    let (template, progress) = (Arc::new(template), Arc::new(Progress::default()));
    let in_order = queues.len() == 1;
    let begun = Instant::now();
    let bar = progress_bar();
    let mut lanes = JoinSet::new();
    for queue in spread(queues, LANES_MAX) {
        let lane = Lane {
            producer: producer.clone(),
            template: template.clone(),
            lines: lines.clone(),
            progress: progress.clone(),
            bar: bar.clone(),
            queue,
            retry_for,
            json,
        };
        lanes.spawn(lane.run());
    }
    let mut outcome = Ok(());
    while let Some(joined) = lanes.join_next().await {
        let lane = joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        if lane.is_err() {
            // The other lanes stop where they are.
            outcome = lane;
            break;
        }
    }
    lanes.shutdown().await;
    bar.finish_and_clear();
    let messages = progress.messages.load(Ordering::Relaxed);
    let bytes = format_bytes(progress.bytes.load(Ordering::Relaxed));
    match outcome {
        Ok(()) => {
            eprintln!("sent {messages} messages, {bytes}, {}", format_duration(begun.elapsed()));
            Ok(())
        }
        Err(Failure::Message(problem)) => {
            let which = if in_order { "; these are the first of the input" } else { "" };
            Err(Failure::new(format!("{problem} ({messages} lines were sent{which})")))
        }
        Err(other) => Err(other),
    }
}

/// Sends batches to one queue, one at a time.
struct Lane {
    producer: Producer,
    template: Arc<Template>,
    lines: Arc<Lines>,
    progress: Arc<Progress>,
    bar: ProgressBar,
    queue: MessageQueue,
    retry_for: Duration,
    json: bool,
}

impl Lane {
    async fn run(self) -> Result<(), Failure> {
        let overhead = LINE_OVERHEAD
            + self.template.message.properties.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>();
        // A delayed message goes in no batch.
        let is_delayed = self.template.message.property(names::DELAY_TIME_LEVEL).is_some();
        let lines_max = if is_delayed { 1 } else { BATCH_LINES };
        while let Some(batch) = self.lines.next_batch(lines_max, BATCH_BYTES, overhead).await? {
            let LineBatch { first, lines } = batch;
            let bytes: usize = lines.iter().map(Bytes::len).sum();
            let count = lines.len() as u64;
            let results =
                retry(self.retry_for, || self.send(&lines)).await.map_err(|failure| match failure {
                    Failure::Message(problem) if count == 1 => {
                        Failure::new(format!("line {first}: {problem}"))
                    }
                    Failure::Message(problem) => {
                        Failure::new(format!("lines {first} to {}: {problem}", first + count - 1))
                    }
                    other => other,
                })?;
            self.progress.messages.fetch_add(count, Ordering::Relaxed);
            self.progress.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            self.bar.inc(count);
            if self.json {
                let mut out = std::io::stdout().lock();
                for result in &results {
                    serde_json::to_writer(&mut out, &result_json(result)).map_err(std::io::Error::from)?;
                    out.write_all(b"\n")?;
                }
            }
        }
        Ok(())
    }

    async fn send(&self, lines: &[Bytes]) -> Result<Vec<SendResult>, SendError> {
        match lines {
            // Alone, a long line may be compressed.
            [line] => {
                let message = self.template.message(line.clone());
                Ok(vec![self.producer.send_to(&self.queue, message).await?])
            }
            lines => {
                let messages = lines.iter().map(|line| self.template.message(line.clone())).collect();
                self.producer.send_batch_to(&self.queue, messages).await
            }
        }
    }
}

/// Repeats what failed for reasons that may pass, until the time is over.
pub(crate) async fn retry<T, F>(retry_for: Duration, attempt: impl Fn() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, SendError>>,
{
    let begun = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if !error.is_transient() => return Err(error.into()),
            Err(error) if begun.elapsed() >= retry_for => {
                return Err(match Failure::from(error) {
                    Failure::Message(problem) if retry_for > Duration::ZERO => Failure::new(format!(
                        "{problem}, after trying for {}",
                        format_duration(begun.elapsed())
                    )),
                    other => other,
                });
            }
            Err(error) => {
                // Once is enough, however many lanes have the same trouble.
                static SAID: Once = Once::new();
                SAID.call_once(|| {
                    eprintln!("ringmq: {error}; trying for up to {}", format_duration(retry_for))
                });
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// The level that delays for exactly this time, on all brokers alike.
fn delay_level(tables: &BTreeMap<String, String>, delay: Duration) -> Result<usize, Failure> {
    let level_in = |table: &str| table.split_whitespace().position(|time| parse_duration(time) == Ok(delay));
    let mut levels = tables.iter().map(|(broker, table)| (broker, table, level_in(table)));
    let Some((first, table, level)) = levels.next() else {
        return Err(Failure::new("no broker is registered with the name server"));
    };
    let Some(level) = level else {
        return Err(Failure::new(format!(
            "no delay level of broker {first} is {}: it has {table}",
            text(delay)
        )));
    };
    match levels.find(|(_, _, other)| *other != Some(level)) {
        Some((other, its_table, _)) => Err(Failure::new(format!(
            "brokers have different delay levels: {first} has {table}, {other} has {its_table}"
        ))),
        None => Ok(level + 1),
    }
}

/// A duration as it can be given, with its largest whole unit.
fn text(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
    let (unit_ms, unit) =
        units.into_iter().find(|(unit_ms, _)| ms.is_multiple_of(*unit_ms)).expect("1 divides all");
    format!("{}{unit}", ms / unit_ms)
}

fn find_queue(queues: &[MessageQueue], wanted: &str, topic: &str) -> Result<MessageQueue, Failure> {
    let (broker, number) = match wanted.rsplit_once(':') {
        Some((broker, number)) => (Some(broker), number),
        None => (None, wanted),
    };
    let id: i32 = number.parse().map_err(|_| {
        Failure::new(format!("--queue {wanted:?} is no queue; give its number, or BROKER:NUMBER"))
    })?;
    let matches = |queue: &&MessageQueue| {
        queue.queue_id == id && broker.is_none_or(|broker| queue.broker_name == broker)
    };
    queues.iter().find(matches).cloned().ok_or_else(|| {
        Failure::new(format!(
            "topic {topic} has no writable queue {wanted}; see `ringmq topic describe {topic}`"
        ))
    })
}

/// At most `max` of the queues, from all brokers alike.
fn spread(queues: Vec<MessageQueue>, max: usize) -> Vec<MessageQueue> {
    let count = queues.len();
    if count <= max {
        return queues;
    }
    (0..max).map(|index| queues[index * count / max].clone()).collect()
}

fn result_json(result: &SendResult) -> Value {
    json!({
        "message_id": result.message_id, "offset_message_id": result.offset_message_id,
        "topic": result.queue.topic, "broker": result.queue.broker_name, "queue": result.queue.queue_id,
        "offset": result.queue_offset.0, "status": format!("{:?}", result.status),
    })
}

/// Shows nothing if standard error is no terminal.
fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} lines, {per_sec}, {elapsed}");
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues() -> Vec<MessageQueue> {
        ["a", "b"]
            .iter()
            .flat_map(|broker| (0..4).map(move |id| MessageQueue::new("T", *broker, id)))
            .collect()
    }

    #[test]
    fn a_queue_is_found_by_number_and_by_broker() {
        let found = |wanted| find_queue(&queues(), wanted, "T").ok();
        assert_eq!(found("2"), Some(MessageQueue::new("T", "a", 2)));
        assert_eq!(found("b:3"), Some(MessageQueue::new("T", "b", 3)));
        for wrong in ["4", "c:0", "x", "-1", ""] {
            assert_eq!(found(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_delay_is_a_level_of_all_brokers() {
        let table = |text: &str| [("a".to_owned(), text.to_owned())].into();
        let level = |tables: &BTreeMap<String, String>, delay| match delay_level(
            tables,
            parse_duration(delay).unwrap(),
        ) {
            Ok(level) => level.to_string(),
            Err(Failure::Message(message)) => message,
            Err(Failure::BrokenPipe) => panic!("nothing is written here"),
        };
        let one = table("1s 5s 2h");
        assert_eq!([level(&one, "5s"), level(&one, "120m")], ["2", "3"]);
        assert_eq!(level(&one, "10s"), "no delay level of broker a is 10s: it has 1s 5s 2h");
        let two = [one, [("b".to_owned(), "5s 1s".to_owned())].into()].into_iter().flatten().collect();
        assert!(level(&two, "5s").contains("brokers have different delay levels"));
        assert_eq!(level(&BTreeMap::new(), "5s"), "no broker is registered with the name server");
    }

    #[test]
    fn few_lanes_still_use_all_brokers() {
        let brokers: Vec<String> = spread(queues(), 2).into_iter().map(|queue| queue.broker_name).collect();
        assert_eq!(brokers, ["a", "b"]);
        assert_eq!(spread(queues(), 100), queues());
    }

    #[test]
    fn an_empty_line_becomes_a_message_that_can_be_told() {
        let template = Template { message: Message::new("T", Bytes::new()) };
        let empty = template.message(Bytes::new());
        assert_eq!((&*empty.body, empty.property(EMPTY_LINE)), (EMPTY_LINE_BODY, Some("true")));
        let other = template.message(Bytes::from_static(b"x"));
        assert_eq!((&*other.body, other.property(EMPTY_LINE)), (&b"x"[..], None));
    }

    #[test]
    fn properties_have_a_name_and_a_value() {
        assert_eq!(parse_property("a=b=c"), Ok(("a".into(), "b=c".into())));
        for wrong in ["a", "=b", "a="] {
            assert!(parse_property(wrong).is_err());
        }
    }
}
