//! `ringmq`: the command line for people. One file per command; this one has what they share.
#![forbid(unsafe_code)]

mod cluster;
mod consume;
mod dlq;
mod group;
mod lines;
mod log;
mod message;
mod output;
mod send;
mod topic;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ringmq_client::{AdminError, Client, ConfigError, ConsumeError, RequestError, RouteError, SendError};

const NAME_SERVER_DEFAULT: &str = "127.0.0.1:9876";

/// Talks to RingMQ, and to any broker that speaks the RocketMQ protocol.
#[derive(Parser)]
#[command(name = "ringmq", version, max_term_width = 100)]
struct Arguments {
    /// Name server, several separated by ';' [default: $ROCKETMQ_NAMESRV_ADDR, $NAMESRV_ADDR or 127.0.0.1:9876]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    namesrv: Option<String>,
    /// Print JSON: one object, or one object per line where there are many
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create, list, describe and delete topics
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// Look at consumer groups, and set where they go on
    #[command(subcommand)]
    Group(group::GroupCommand),
    Send(send::SendArguments),
    Consume(consume::ConsumeArguments),
    /// Look at single messages
    #[command(subcommand)]
    Message(message::MessageCommand),
    /// List, show and send again what consumers could not process
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Look at the brokers
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Check, show, repair and copy the files of a broker's data directory
    #[command(subcommand)]
    Log(log::LogCommand),
}

/// Why a command did not succeed: one line that says what was wrong, and what to do about it.
#[derive(Debug)]
pub(crate) enum Failure {
    Message(String),
    /// Whoever read our output is gone. Nobody is left to be told.
    BrokenPipe,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self::Message(message.into())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::Message(error.to_string()),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Message(error.to_string())
    }
}

impl From<RouteError> for Failure {
    fn from(error: RouteError) -> Self {
        let advice = match &error {
            RouteError::NameServers(RequestError::Connect { .. }) => {
                "; start ringmq-broker, or name the right one with --namesrv"
            }
            RouteError::TopicNotExist { .. } => {
                "; `ringmq topic create` makes one, `ringmq topic list` shows all"
            }
            _ => "",
        };
        Self::Message(format!("{error}{advice}"))
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::Message(error.to_string())
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Route(error) => error.into(),
            other => Self::Message(other.to_string()),
        }
    }
}

impl From<ConsumeError> for Failure {
    fn from(error: ConsumeError) -> Self {
        match error {
            ConsumeError::Route(error) => error.into(),
            other => Self::Message(other.to_string()),
        }
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Route(error) => error.into(),
            other => Self::Message(other.to_string()),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The main thread may block on standard output; connections and heartbeats go on in the others.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(arguments));
            // A thread may still wait for standard input; it must not keep the process.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::new(format!("cannot start: {error}"))),
    };
    match outcome {
        Ok(()) | Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Err(Failure::Message(message)) => {
            eprintln!("ringmq: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    if let Command::Log(command) = arguments.command {
        return log::run(command, arguments.json); // files only: no name server, no client
    }
    let client = Client::builder(name_servers(arguments.namesrv)).build().await?;
    let json = arguments.json;
    let outcome = match arguments.command {
        Command::Topic(command) => topic::run(&client, command, json).await,
        Command::Group(command) => group::run(&client, command, json).await,
        Command::Send(arguments) => send::run(&client, arguments, json).await,
        Command::Consume(arguments) => consume::run(&client, arguments, json).await,
        Command::Message(command) => message::run(&client, command, json).await,
        Command::Dlq(command) => dlq::run(&client, command, json).await,
        Command::Cluster(command) => cluster::run(&client, command, json).await,
        Command::Log(_) => unreachable!("done above"),
    };
    client.shutdown().await;
    outcome
}

fn name_servers(given: Option<String>) -> String {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    given
        .or_else(|| set("ROCKETMQ_NAMESRV_ADDR"))
        .or_else(|| set("NAMESRV_ADDR"))
        .unwrap_or_else(|| NAME_SERVER_DEFAULT.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
