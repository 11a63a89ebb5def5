//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringmq_protocol::frame::{Codec, FRAME_BYTES_MAX};

use crate::units::parse_duration;

/// What a body that carries the time begins with: the run, and the time in ns after the begin of the run, big endian.
pub(super) const STAMP_BYTES: usize = 16;
const NAME_SERVER_DEFAULT: &str = "127.0.0.1:9876";
const MEASURED_DEFAULT: Duration = Duration::from_secs(10);
const WARMUP_DEFAULT: Duration = Duration::from_secs(2);
/// A year; longer runs are typing errors, and the arithmetic of clocks ends somewhere.
const SECONDS_MAX: f64 = 365.0 * 86_400.0;

/// Measures a broker that speaks the RocketMQ protocol.
#[derive(Debug, Parser)]
#[command(name = "ringmq-perf", version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Send messages as fast as they are acknowledged
    Produce(ProduceArguments),
    /// Send to many topics in turn, as fast as messages are acknowledged
    ///
    /// The topics are named after --topic: `--topic T` sends to T-0, T-1 and so on. Those that do not exist are
    /// created first. Connections share the topics among them.
    Topics(TopicsArguments),
    /// Read messages as fast as the broker gives them
    ///
    /// Every queue is read by one connection for each consumer, with one pull at a time. Without --seconds, --count, --repeat and
    /// `--from last` it ends when what was there at the start has been read. Latency is that of the pulls that
    /// brought messages.
    Consume(ConsumeArguments),
    /// Send to a topic and read it at the same time
    ///
    /// Readers begin behind the last message and end when everything that was acknowledged was read. The latency of
    /// sends is measured as by produce, or as by latency with --rate. The latency of pulls has the wait for messages
    /// in it; that of deliveries is from when a message was sent (with --rate: was due) to when it was read, for each
    /// message, on the clock of this process: bodies begin with 16 bytes that say when they were sent.
    Mixed(MixedArguments),
    /// Send to a topic that many groups read, each of them everything
    ///
    /// Measures what mixed does. Every group has a connection of its own to each broker.
    Fanout(FanoutArguments),
    /// Send at a fixed rate while others read old messages, and compare with sending alone
    ///
    /// First writes --backlog. Then sends for --seconds without any reader, then while readers read all that is there,
    /// from the first message on; that is over when they have read it, or after --seconds if they are given. With
    /// --share it measures before that how much is acknowledged at most.
    Backlog(BacklogArguments),
    /// Send at a fixed rate, however late the answers, and measure how late they are
    ///
    /// Latency counts from when a message was due, so a broker that stalls is charged for all messages that were
    /// delayed by that. The generator polls without rest before each message; give it a core of its own.
    Latency(LatencyArguments),
}

#[derive(Debug, Args)]
pub(super) struct Common {
    /// Topic; if there is none of this name, sending creates it
    #[arg(long)]
    pub(super) topic: String,
    /// Queues on each broker, if the topic has to be created
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) queues: u32,
    /// Name server, several separated by ';' [default: $ROCKETMQ_NAMESRV_ADDR, $NAMESRV_ADDR or 127.0.0.1:9876]
    #[arg(long, value_name = "HOST:PORT")]
    namesrv: Option<String>,
    /// Connections, spread over the brokers of the topic in turn; of commands that both send and read, those that send
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) connections: u32,
    /// Threads of the load generator
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) threads: u32,
    /// Codec of request headers; the broker answers in the same
    #[arg(long, value_enum, default_value_t = HeaderCodec::Rocketmq)]
    codec: HeaderCodec,
    /// Not measured, like 2s [default: 2s; 0s if consume ends with its queues]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    warmup: Option<Duration>,
    /// Measure for this long [default: 10, unless --count is given]
    #[arg(long, value_name = "S", value_parser = parse_seconds, conflicts_with = "count")]
    pub(super) seconds: Option<Duration>,
    /// Measure this many messages (those of warm-up not among them; the last batch is not cut short)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 62))]
    pub(super) count: Option<u64>,
    /// Process of a broker on this machine, to measure its CPU and memory; once for each broker
    #[arg(long, value_name = "PID")]
    pub(super) broker_pid: Vec<u32>,
    /// Print the summary as one JSON object
    #[arg(long)]
    pub(super) json: bool,
    /// Draw latency over time and the percentile curve, as an SVG file
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ProduceArguments {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(flatten)]
    pub(super) messages: MessageArguments,
    /// Requests that each connection keeps unanswered at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) in_flight: u32,
}

#[derive(Debug, Args)]
pub(super) struct TopicsArguments {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(flatten)]
    pub(super) messages: MessageArguments,
    /// Number of topics
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) topics: u32,
    /// Requests that each connection keeps unanswered at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) in_flight: u32,
}

#[derive(Debug, Args)]
pub(super) struct ConsumeArguments {
    #[command(flatten)]
    pub(super) common: Common,
    /// Messages that a pull may bring
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) pull_batch: u32,
    /// Where to begin: at the first message of each queue, or behind the last
    #[arg(long, value_enum, default_value_t = From::First)]
    pub(super) from: From,
    /// Consumers; each reads every queue
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) consumers: u32,
    /// Where a queue ends, begin again at its first message instead of waiting for more
    #[arg(long)]
    pub(super) repeat: bool,
    /// Check the CRC of every message, and that no offset is left out
    #[arg(long)]
    pub(super) verify: bool,
}

/// What is sent and read at the same time.
#[derive(Debug, Args)]
pub(super) struct TailArguments {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(flatten)]
    pub(super) messages: MessageArguments,
    /// Messages a second, over all connections that send [default: as fast as they are acknowledged]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) rate: Option<u32>,
    /// Requests that each connection that sends keeps unanswered [default: 1; with --rate 1024, and those due beyond
    /// are sent later, and counted as due]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    in_flight: Option<u32>,
    /// Messages that a pull may bring
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) pull_batch: u32,
}

#[derive(Debug, Args)]
pub(super) struct MixedArguments {
    #[command(flatten)]
    pub(super) tail: TailArguments,
    /// Connections that read; each has some of the queues
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) readers: u32,
}

#[derive(Debug, Args)]
pub(super) struct FanoutArguments {
    #[command(flatten)]
    pub(super) tail: TailArguments,
    /// Consumer groups
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) groups: u32,
}

#[derive(Debug, Args)]
pub(super) struct BacklogArguments {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(flatten)]
    pub(super) messages: MessageArguments,
    /// Write so many bytes of bodies first, like 10GiB, in batches of up to 64 KiB [default: read what the topic has]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(super) backlog: Option<u64>,
    /// Messages a second, over all connections that send
    #[arg(long, value_name = "R", conflicts_with = "share", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) rate: Option<u32>,
    /// Send at this share of what is acknowledged at most without readers [default: 0.5, unless --rate is given]
    #[arg(long, value_name = "PART", value_parser = parse_share)]
    pub(super) share: Option<f64>,
    /// Requests that each connection that sends keeps unanswered at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) in_flight: u32,
    /// Connections that read; each has some of the queues
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) readers: u32,
    /// Messages that a pull may bring
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) pull_batch: u32,
}

#[derive(Debug, Args)]
pub(super) struct LatencyArguments {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(flatten)]
    pub(super) messages: MessageArguments,
    /// Messages a second, over all connections
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) rate: u32,
    /// Requests that a connection may have unanswered; those due beyond are sent later, and counted as due
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) in_flight: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum From {
    First,
    Last,
}

#[derive(Debug, Args)]
pub(super) struct MessageArguments {
    /// Size of a message's body, like 128 or 1KiB
    #[arg(long, default_value = "1KiB", value_parser = parse_size)]
    pub(super) size: u32,
    /// Messages in a request
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) batch: u32,
    /// The same seed sends the same bodies, but for the 16 bytes that time deliveries
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(super) seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HeaderCodec {
    /// The binary codec
    Rocketmq,
    Json,
}

impl Command {
    pub(super) fn common(&self) -> &Common {
        match self {
            Self::Produce(produce) => &produce.common,
            Self::Topics(topics) => &topics.common,
            Self::Consume(consume) => &consume.common,
            Self::Mixed(mixed) => &mixed.tail.common,
            Self::Fanout(fanout) => &fanout.tail.common,
            Self::Backlog(backlog) => &backlog.common,
            Self::Latency(latency) => &latency.common,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Produce(_) => "produce",
            Self::Topics(_) => "topics",
            Self::Consume(_) => "consume",
            Self::Mixed(_) => "mixed",
            Self::Fanout(_) => "fanout",
            Self::Backlog(_) => "backlog",
            Self::Latency(_) => "latency",
        }
    }

    /// What comes before the measurement.
    pub(super) fn warmup(&self) -> Duration {
        let default = match self {
            // A backlog is there once, and what warm-up reads of it is not measured.
            Self::Consume(consume) if consume.ends_with_queues() => Duration::ZERO,
            _ => WARMUP_DEFAULT,
        };
        self.common().warmup.unwrap_or(default)
    }

    /// How long to measure; `None` if the messages decide.
    pub(super) fn measured(&self) -> Option<Duration> {
        let common = self.common();
        match self {
            _ if common.count.is_some() => None,
            Self::Consume(consume) if consume.ends_with_queues() => None,
            _ => Some(common.seconds.unwrap_or(MEASURED_DEFAULT)),
        }
    }
}

impl Command {
    /// Checks what clap cannot.
    pub(super) fn validate(&self) -> Result<(), String> {
        ringmq_protocol::name::validate_topic(&self.common().topic).map_err(|error| error.to_string())?;
        match self {
            Self::Consume(consume) if consume.repeat && consume.from == From::Last => {
                Err("--repeat reads what is there, --from last does not".to_string())
            }
            Self::Mixed(MixedArguments { tail, .. }) | Self::Fanout(FanoutArguments { tail, .. })
                if (tail.messages.size as usize) < STAMP_BYTES =>
            {
                Err(format!("--size: bodies say when they were sent, which takes {STAMP_BYTES} bytes"))
            }
            Self::Backlog(backlog) if backlog.common.count.is_some() => {
                Err("--count: backlog is measured in time, with --seconds".to_string())
            }
            _ => Ok(()),
        }
    }
}

impl TailArguments {
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.unwrap_or(if self.rate.is_some() { 1024 } else { 1 })
    }
}

impl ConsumeArguments {
    /// Whether the load is what the queues have now.
    pub(super) fn ends_with_queues(&self) -> bool {
        let common = &self.common;
        common.seconds.is_none() && common.count.is_none() && self.from == From::First && !self.repeat
    }
}

impl Common {
    pub(super) fn codec(&self) -> Codec {
        match self.codec {
            HeaderCodec::Rocketmq => Codec::RocketMq,
            HeaderCodec::Json => Codec::Json,
        }
    }

    pub(super) fn name_servers(&self) -> Vec<String> {
        let environment =
            || ["ROCKETMQ_NAMESRV_ADDR", "NAMESRV_ADDR"].iter().find_map(|name| std::env::var(name).ok());
        let text =
            self.namesrv.clone().or_else(environment).unwrap_or_else(|| NAME_SERVER_DEFAULT.to_string());
        text.split(';').map(str::trim).filter(|address| !address.is_empty()).map(str::to_string).collect()
    }
}

/// Size of a message's body.
fn parse_size(text: &str) -> Result<u32, String> {
    match u32::try_from(parse_bytes(text)?) {
        Ok(0) => Err("brokers refuse messages without a body".to_string()),
        Ok(size) if size <= FRAME_BYTES_MAX => Ok(size),
        _ => Err(format!("{text} is more than a message can have")),
    }
}

/// Reads `128`, `128B`, `1KiB`, `2MiB`, `1GiB`, `1TiB` or `64kB`, `1MB`, `1GB`, `1TB`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let problem = || format!("{text:?} is no size; write it like 128, 1KiB, 2MiB or 10GiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (base, power) = match unit {
        "" | "B" => (1, 0),
        "kB" => (1000, 1),
        "MB" => (1000, 2),
        "GB" => (1000, 3),
        "TB" => (1000, 4),
        "KiB" => (1024_u64, 1),
        "MiB" => (1024, 2),
        "GiB" => (1024, 3),
        "TiB" => (1024, 4),
        _ => return Err(problem()),
    };
    let number: u64 = number.parse().map_err(|_| problem())?;
    number.checked_mul(base.pow(power)).ok_or_else(problem)
}

/// More than nothing, at most everything.
fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err(format!("{text:?} is no share; write it like 0.5, above 0 and at most 1")),
    }
}

/// Seconds, also `0.5` and with a unit: `30s`, `2m`.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let duration = match text.parse::<f64>() {
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => Duration::from_secs_f64(seconds),
        Ok(_) => return Err(format!("{text} seconds are out of range")),
        Err(_) => parse_duration(text)?,
    };
    match duration {
        Duration::ZERO => Err("there is nothing to measure in no time".to_string()),
        duration if duration.as_secs_f64() > SECONDS_MAX => Err(format!("{text} is out of range")),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests;
