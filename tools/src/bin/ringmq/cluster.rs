//! `ringmq cluster …`

use clap::Subcommand;
use ringmq_client::Client;
use ringmq_tools::table::Table;
use ringmq_tools::units::format_duration;
use serde_json::json;

use crate::Failure;
use crate::output::{print, print_json};

#[derive(Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show every registered broker and whether it answers; fails if one does not
    Status,
}

pub(crate) async fn run(client: &Client, command: ClusterCommand, json: bool) -> Result<(), Failure> {
    let ClusterCommand::Status = command;
    let admin = client.admin();
    let brokers = admin.brokers().await?;
    if brokers.is_empty() {
        return Err(Failure::new(
            "the name server answers, but no broker is registered; start ringmq-broker",
        ));
    }
    // All at once: one that hangs must not hold up the others.
    let answers = futures_util::future::join_all(brokers.iter().map(|broker| admin.health(broker))).await;
    let mut table = Table::new(&["CLUSTER", "BROKER", "ID", "ADDRESS", "STATE", "ANSWERED IN", "VERSION"]);
    let mut silent = Vec::new();
    for (broker, answer) in brokers.iter().zip(answers) {
        let (state, took, version) = match &answer {
            Ok(health) => ("up", format_duration(health.answered_in), health.version.clone()),
            Err(error) => {
                silent.push(error.to_string());
                ("down", "-".to_string(), None)
            }
        };
        if json {
            print_json(&json!({
                "cluster": broker.cluster, "broker": broker.name, "id": broker.id, "address": &*broker.address,
                "state": state, "version": version,
                "answered_in_ms": answer.as_ref().ok().map(|health| health.answered_in.as_secs_f64() * 1000.0),
                "error": answer.as_ref().err().map(ToString::to_string),
            }))?;
            continue;
        }
        table.row([
            broker.cluster.clone(),
            broker.name.clone(),
            broker.id.to_string(),
            broker.address.to_string(),
            state.to_string(),
            took,
            version.unwrap_or_else(|| "-".into()),
        ]);
    }
    if !json {
        print(table.to_string().trim_end())?;
    }
    match silent.as_slice() {
        [] => Ok(()),
        errors => Err(Failure::new(format!(
            "{} of {} brokers do not answer: {}",
            errors.len(),
            brokers.len(),
            errors.join("; ")
        ))),
    }
}
