//! `ringmq group …`

use std::time::Duration;

use clap::{Args, Subcommand};
use ringmq_client::{
    Client, GroupDescription, GroupQueue, GroupSettings, QueueOffset, QueueReset, ResetTo, ResponseCode,
};
use ringmq_tools::table::Table;
use ringmq_tools::units::{format_duration, format_time, now_ms, parse_time};
use serde_json::json;

use crate::Failure;
use crate::output::{print, print_json};

#[derive(Subcommand)]
pub(crate) enum GroupCommand {
    /// List the consumer groups: members that are online, and messages that were not consumed yet
    List,
    /// Show how far a group is in each queue, who its members are and what they subscribe to
    Describe {
        group: String,
    },
    /// Create a group, or change its settings
    Create(CreateArguments),
    /// Delete a group: its settings, its offsets and its retry topic
    Delete {
        group: String,
        /// Keep how far it has consumed
        #[arg(long)]
        keep_offsets: bool,
        /// Only on the brokers of this cluster
        #[arg(long)]
        cluster: Option<String>,
    },
    ResetOffset(ResetArguments),
    /// Go on behind all messages that are there now: the same as `reset-offset --to last`
    Skip {
        group: String,
        #[arg(long)]
        topic: String,
        /// Only this queue
        #[arg(long, value_name = "BROKER:N", value_parser = parse_queue)]
        queue: Option<(String, i32)>,
        /// Only show what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Let a group go on where another one is
    Clone {
        source: String,
        target: String,
        /// Only this topic [default: all that the source has consumed]
        #[arg(long)]
        topic: Option<String>,
    },
}

#[derive(Args)]
pub(crate) struct CreateArguments {
    /// 1 to 120 characters of a-z A-Z 0-9 _ - % |
    group: String,
    /// How often a message is delivered again before it is a dead letter
    #[arg(long, default_value_t = 16)]
    retries: u32,
    /// Queues of the retry topic on each broker
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    retry_queues: u32,
    /// The group may not consume for now
    #[arg(long)]
    disabled: bool,
    /// The group may not consume by broadcast
    #[arg(long)]
    no_broadcast: bool,
    /// Only on the brokers of this cluster
    #[arg(long)]
    cluster: Option<String>,
}

/// Let a group go on at another place of a topic
///
/// Works for groups that are online, which go on there at once, and for those that are not. Shows where each queue was before.
#[derive(Args)]
pub(crate) struct ResetArguments {
    group: String,
    #[arg(long)]
    topic: String,
    /// first, last, an offset, or the first message stored at a time: like 2026-11-22T14:00:00Z, milliseconds since 1970, or 10m (ago)
    #[arg(long, value_name = "PLACE", value_parser = parse_place)]
    to: ResetTo,
    /// Only this queue
    #[arg(long, value_name = "BROKER:N", value_parser = parse_queue)]
    queue: Option<(String, i32)>,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
}

/// Numbers of more digits are milliseconds since 1970: offsets that large are years of sending away.
const OFFSET_DIGITS_MAX: usize = 11;

fn parse_place(text: &str) -> Result<ResetTo, String> {
    match text {
        "first" => return Ok(ResetTo::First),
        "last" => return Ok(ResetTo::Last),
        _ => {}
    }
    if text.len() <= OFFSET_DIGITS_MAX && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(|offset| ResetTo::Offset(QueueOffset(offset))).map_err(|e| e.to_string());
    }
    parse_time(text, now_ms()).map(ResetTo::Time).map_err(|problem| {
        format!("{problem}; besides a time it may be first, last or an offset of at most {OFFSET_DIGITS_MAX} digits")
    })
}

fn parse_queue(text: &str) -> Result<(String, i32), String> {
    let parsed = text.rsplit_once(':').and_then(|(broker, id)| Some((broker.to_owned(), id.parse().ok()?)));
    parsed
        .filter(|(broker, id): &(String, i32)| !broker.is_empty() && *id >= 0)
        .ok_or_else(|| format!("{text:?} is no queue; write it like broker-a-0:3"))
}

pub(crate) async fn run(client: &Client, command: GroupCommand, json: bool) -> Result<(), Failure> {
    match command {
        GroupCommand::List => list(client, json).await,
        GroupCommand::Describe { group } => describe(client, &group, json).await,
        GroupCommand::Create(arguments) => create(client, arguments, json).await,
        GroupCommand::Delete { group, keep_offsets, cluster } => {
            let brokers = client.admin().delete_group(&group, !keep_offsets, cluster.as_deref()).await?;
            match json {
                true => print_json(&json!({ "group": group, "deleted_on": brokers }))?,
                false => print(format_args!("deleted group {group} on {}", brokers.join(", ")))?,
            }
            Ok(())
        }
        GroupCommand::ResetOffset(arguments) => reset(client, arguments, json).await,
        GroupCommand::Skip { group, topic, queue, dry_run } => {
            reset(client, ResetArguments { group, topic, to: ResetTo::Last, queue, dry_run }, json).await
        }
        GroupCommand::Clone { source, target, topic } => {
            let brokers = client.admin().clone_offsets(&source, &target, topic.as_deref()).await?;
            match json {
                true => print_json(
                    &json!({ "source": source, "target": target, "topic": topic, "cloned_on": brokers }),
                )?,
                false => {
                    print(format_args!("{target} goes on where {source} is, on {}", brokers.join(", ")))?
                }
            }
            Ok(())
        }
    }
}

async fn create(client: &Client, arguments: CreateArguments, json: bool) -> Result<(), Failure> {
    let CreateArguments { group, retries, retry_queues, disabled, no_broadcast, cluster } = arguments;
    let settings = GroupSettings {
        retry_max_times: retries,
        retry_queues,
        consume_enabled: !disabled,
        broadcast_enabled: !no_broadcast,
    };
    let brokers = client.admin().create_group(&group, &settings, cluster.as_deref()).await?;
    match json {
        true => print_json(&json!({ "group": group, "brokers": brokers }))?,
        false => print(format_args!("group {group} is on {}", brokers.join(", ")))?,
    }
    Ok(())
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let groups = client.admin().groups().await?;
    let mut table = Table::new(&["GROUP", "MEMBERS", "LAG"]);
    for group in &groups {
        match json {
            true => print_json(&json!({ "group": group.group, "members": group.members, "lag": group.lag }))?,
            false => table.row([group.group.clone(), group.members.to_string(), group.lag.to_string()]),
        }
    }
    if !json {
        print(table.to_string().trim_end())?;
    }
    Ok(())
}

async fn describe(client: &Client, group: &str, json: bool) -> Result<(), Failure> {
    let described = client.admin().describe_group(group).await?;
    let GroupDescription { members, subscriptions, is_broadcasting, queues } = &described;
    let lag: u64 = queues.iter().map(GroupQueue::lag).sum();
    if json {
        let queues: Vec<_> = queues
            .iter()
            .map(|at| {
                json!({
                    "topic": at.queue.topic, "broker": at.queue.broker_name, "queue": at.queue.queue_id,
                    "min_offset": at.min.0, "committed_offset": at.committed.0, "pulled_offset": at.pulled.0,
                    "max_offset": at.max.0, "lag": at.lag(), "time_lag_ms": at.time_lag_ms, "owner": at.owner,
                })
            })
            .collect();
        let members: Vec<_> = members
            .iter()
            .map(|member| {
                json!({
                    "client_id": member.client_id, "address": member.address, "language": member.language,
                    "version": member.version,
                })
            })
            .collect();
        let subscriptions: Vec<_> = subscriptions
            .iter()
            .map(|wanted| json!({ "topic": wanted.topic, "type": wanted.expression_type, "expression": wanted.expression }))
            .collect();
        print_json(&json!({
            "group": group, "broadcasting": is_broadcasting, "lag": lag, "queues": queues, "members": members,
            "subscriptions": subscriptions,
        }))?;
        return Ok(());
    }
    let mut table =
        Table::new(&["TOPIC", "BROKER", "QUEUE", "MIN", "COMMITTED", "MAX", "LAG", "TIME LAG", "OWNER"]);
    for at in queues {
        let late = u64::try_from(at.time_lag_ms).unwrap_or(0);
        table.row([
            at.queue.topic.clone(),
            at.queue.broker_name.clone(),
            at.queue.queue_id.to_string(),
            at.min.to_string(),
            at.committed.to_string(),
            at.max.to_string(),
            at.lag().to_string(),
            if late == 0 { "-".into() } else { format_duration(Duration::from_millis(late)) },
            at.owner.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    print(table.to_string().trim_end())?;
    if !members.is_empty() {
        let mut table = Table::new(&["MEMBER", "ADDRESS", "LANGUAGE", "VERSION"]);
        for member in members {
            let version = member.version.to_string();
            table.row([member.client_id.clone(), member.address.clone(), member.language.clone(), version]);
        }
        print(format_args!("\n{}", table.to_string().trim_end()))?;
        let mut table = Table::new(&["SUBSCRIPTION", "TYPE", "EXPRESSION"]);
        for wanted in subscriptions {
            table.row([wanted.topic.clone(), wanted.expression_type.clone(), wanted.expression.clone()]);
        }
        print(format_args!("\n{}", table.to_string().trim_end()))?;
    }
    let how = if *is_broadcasting { ", broadcasting" } else { "" };
    print(format_args!("\n{} members online{how}, {lag} messages behind", members.len()))?;
    Ok(())
}

async fn reset(client: &Client, arguments: ResetArguments, json: bool) -> Result<(), Failure> {
    let ResetArguments { group, topic, to, queue, dry_run } = arguments;
    let admin = client.admin();
    let only = queue.as_ref().map(|(broker, id)| (broker.as_str(), *id));
    let plan = admin.plan_reset(&group, &topic, to, only).await?;
    if !dry_run {
        admin.reset(&group, &plan).await.map_err(|error| advise(error, &group))?;
    }
    if json {
        let queues = plan.iter().map(|QueueReset { queue, before, after }| {
            let before = before.map(|offset| offset.0);
            json!({ "broker": queue.broker_name, "queue": queue.queue_id, "before": before, "after": after.0 })
        });
        let queues = queues.collect::<Vec<_>>();
        print_json(&json!({ "group": group, "topic": topic, "dry_run": dry_run, "queues": queues }))?;
        return Ok(());
    }
    let mut table = Table::new(&["BROKER", "QUEUE", "BEFORE", "AFTER"]);
    for QueueReset { queue, before, after } in &plan {
        let before = before.map_or_else(|| "-".to_owned(), |offset| offset.to_string());
        table.row([queue.broker_name.clone(), queue.queue_id.to_string(), before, after.to_string()]);
    }
    print(table.to_string().trim_end())?;
    let place = match to {
        ResetTo::First => "the first message".to_owned(),
        ResetTo::Last => "the end".to_owned(),
        ResetTo::Time(time_ms) => format_time(time_ms),
        ResetTo::Offset(offset) => format!("offset {offset}"),
    };
    let (does, note) = if dry_run { ("would go on", "; nothing was changed") } else { ("goes on", "") };
    print(format_args!("{group} {does} in {} queues of {topic} at {place}{note}", plan.len()))?;
    Ok(())
}

/// A group that never consumed on a broker is not known there.
fn advise(error: ringmq_client::AdminError, group: &str) -> Failure {
    let is_unknown = error.code() == Some(ResponseCode::SUBSCRIPTION_GROUP_NOT_EXIST);
    let advice = if is_unknown { format!("; `ringmq group create {group}` makes it") } else { String::new() };
    Failure::new(format!("{error}{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_queues_are_read() {
        assert_eq!(parse_place("first"), Ok(ResetTo::First));
        assert_eq!(parse_place("last"), Ok(ResetTo::Last));
        assert_eq!(parse_place("12345"), Ok(ResetTo::Offset(QueueOffset(12345))));
        assert_eq!(parse_place("1700000000000"), Ok(ResetTo::Time(1_700_000_000_000)));
        assert_eq!(parse_place("2023-11-14T22:13:20Z"), Ok(ResetTo::Time(1_700_000_000_000)));
        assert!(parse_place("10m").is_ok_and(|place| matches!(place, ResetTo::Time(_))));
        assert!(parse_place("middle").unwrap_err().contains("first, last or an offset"));
        assert_eq!(parse_queue("broker-a-0:3"), Ok(("broker-a-0".into(), 3)));
        for wrong in ["broker-a-0", ":3", "b:-1", "b:x"] {
            assert!(parse_queue(wrong).unwrap_err().contains("write it like"), "{wrong}");
        }
    }
}
