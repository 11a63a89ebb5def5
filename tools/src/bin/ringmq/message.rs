//! `ringmq message …`

use std::io::Write;

use clap::Subcommand;
use ringmq_client::{Client, OffsetMessageId};
use ringmq_tools::units::format_time;

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
}

pub(crate) async fn run(client: &Client, command: MessageCommand, json: bool) -> Result<(), Failure> {
    let MessageCommand::Get { id, raw } = command;
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
