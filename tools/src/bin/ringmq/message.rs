//! `ringmq message …`

use std::io::Write;

use clap::{Args, Subcommand};
use ringmq_client::{Client, FoundMessage, MessageKey, OffsetMessageId};
use ringmq_tools::units::{format_time, now_ms, parse_time};

use crate::Failure;
use crate::output::{line, message_json, print_json};

#[derive(Subcommand)]
pub(crate) enum MessageCommand {
    /// Show a message by its offset message id, which `send` and `consume --json` tell
    Get {
        id: String,
        /// The body alone, and a line end
        #[arg(long, conflicts_with = "json")]
        raw: bool,
    },
    Find(FindArguments),
}

/// Find messages by one of their keys
///
/// The newest ones are shown, in the order in which they were stored. It fails if there is none.
#[derive(Args)]
pub(crate) struct FindArguments {
    /// Where to look
    #[arg(long)]
    topic: String,
    /// One of the keys of the messages, or with --unique the message id that the producer made
    #[arg(long)]
    key: String,
    #[arg(long)]
    unique: bool,
    /// Stored at this time or later: a time like 2026-11-22T14:00:00Z, milliseconds since 1970, or 10m (ago)
    #[arg(long, value_name = "TIME", value_parser = parse_now)]
    begin: Option<i64>,
    /// Stored at this time or earlier
    #[arg(long, value_name = "TIME", value_parser = parse_now)]
    end: Option<i64>,
    /// At most so many messages
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=FIND_COUNT_MAX))]
    count: u32,
}

/// A broker gives no more.
const FIND_COUNT_MAX: i64 = 64;

fn parse_now(text: &str) -> Result<i64, String> {
    parse_time(text, now_ms())
}

pub(crate) async fn run(client: &Client, command: MessageCommand, json: bool) -> Result<(), Failure> {
    match command {
        MessageCommand::Get { id, raw } => get(client, &id, raw, json).await,
        MessageCommand::Find(arguments) => find(client, arguments, json).await,
    }
}

async fn find(client: &Client, arguments: FindArguments, json: bool) -> Result<(), Failure> {
    let FindArguments { topic, key, unique, begin, end, count } = arguments;
    let stored_ms = begin.unwrap_or(0)..=end.unwrap_or(i64::MAX);
    if stored_ms.is_empty() {
        return Err(Failure::new("--begin is later than --end"));
    }
    let wanted = if unique { MessageKey::Unique(key.clone()) } else { MessageKey::User(key.clone()) };
    let found = client.admin().query_message(&topic, &wanted, stored_ms, count).await?;
    if found.is_empty() {
        let (what, other) = match unique {
            true => {
                ("unique key", "without --unique, messages are looked for by the keys they were sent with")
            }
            false => ("key", "with --unique, by the message id that the producer made"),
        };
        return Err(Failure::new(format!(
            "no message of topic {topic} in that time has the {what} {key:?}; {other}"
        )));
    }
    let mut out = std::io::stdout().lock();
    for FoundMessage { broker_name, message } in &found {
        if json {
            serde_json::to_writer(&mut out, &message_json(message, Some(broker_name)))
                .map_err(std::io::Error::from)?;
            writeln!(out)?;
            continue;
        }
        let stored = format_time(message.store_timestamp.0);
        let (queue, offset, id) = (message.queue_id, message.queue_offset, message.offset_message_id());
        write!(out, "{stored}  {broker_name}/{queue}@{offset}  {id}  ")?;
        out.write_all(line(message))?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

async fn get(client: &Client, id: &str, raw: bool, json: bool) -> Result<(), Failure> {
    let offset_id: OffsetMessageId =
        id.parse().map_err(|problem| Failure::new(format!("{id:?} is no message id: {problem}")))?;
    let message = client.admin().message(offset_id).await?;
    if json {
        print_json(&message_json(&message, None))?;
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    if !raw {
        writeln!(out, "topic       {}", message.message.topic)?;
        writeln!(out, "queue       {} at offset {}", message.queue_id, message.queue_offset)?;
        writeln!(out, "message id  {}", message.message_id())?;
        writeln!(out, "offset id   {offset_id}")?;
        writeln!(out, "stored      {} on {}", format_time(message.store_timestamp.0), message.store_host)?;
        writeln!(out, "born        {} on {}", format_time(message.born_timestamp.0), message.born_host)?;
        for (name, value) in &message.message.properties {
            writeln!(out, "property    {name} = {value}")?;
        }
        writeln!(out, "body        {} bytes", line(&message).len())?;
        writeln!(out)?;
    }
    out.write_all(line(&message))?;
    out.write_all(b"\n")?;
    Ok(())
}
