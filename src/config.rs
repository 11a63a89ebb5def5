//! What a broker can be told: on the command line, or in a TOML file with the same names. The command line wins.

use crate::housekeeping::Retention;
use crate::shard::DelayTable;
use clap::{Parser, ValueEnum};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// RingMQ's broker: speaks RocketMQ's protocol, durable before it acknowledges, one shard for each core.
#[derive(Parser, Debug, Default)]
#[command(name = "ringmq-broker", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// Read settings from this TOML file: the long names below as keys
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

const EXAMPLES: &str = "\
Examples:
  ringmq-broker                                          data in ./data, an embedded name server on 9876
  ringmq-broker --data /var/lib/ringmq --shards 4        the number of shards is fixed when the directory is made
  ringmq-broker --namesrv '10.0.0.1:9876;10.0.0.2:9876'  register with name servers elsewhere
  ringmq-broker --advertise 192.0.2.7                    the address that clients are told to connect to

Shard N listens on the port of --listen plus 10 x N, and two below that for clients that use RocketMQ's VIP channel.
RUST_LOG sets what is logged to standard error: RUST_LOG=warn, RUST_LOG=debug.
Ctrl-C or SIGTERM stops it; what was acknowledged is on disk at any moment.";

/// All settings; what is absent has the default that `resolve` gives it.
#[derive(clap::Args, Deserialize, Debug, Default, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Data directory [default: data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Name of the broker; shard N is the broker NAME-N to clients [default: broker-a]
    #[arg(long)]
    name: Option<String>,
    /// Name of the cluster [default: DefaultCluster]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Shards of a new data directory [default: one for each core]
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Address and port of shard 0 [default: 0.0.0.0:10911]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// IP address that clients are told to connect to [default: that of --listen, or of this machine]
    #[arg(long, value_name = "HOST")]
    advertise: Option<IpAddr>,
    /// Register with these name servers, HOST:PORT separated by semicolons, instead of embedding one
    #[arg(long, value_name = "HOST:PORT[;...]", conflicts_with = "embedded_namesrv")]
    namesrv: Option<String>,
    /// Address and port of the embedded name server [default: address of --listen, port 9876]
    #[arg(long, value_name = "ADDRESS:PORT")]
    embedded_namesrv: Option<SocketAddr>,
    /// When a send is acknowledged: once it is on disk, or at once [default: sync]
    #[arg(long, value_enum)]
    flush: Option<Flush>,
    /// Whether a send to an unknown topic makes the topic [default: true]
    #[arg(long, value_name = "BOOL")]
    auto_create_topics: Option<bool>,
    /// How long each delay level delays a message, like "1s 5s 10s" for three levels; also ms, m, h and d [default: 1s 5s 10s 30s
    /// 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h]
    #[arg(long, value_name = "TIMES")]
    #[serde(default, deserialize_with = "delays_or_none")]
    message_delay_level: Option<DelayTable>,
    /// Start every write at a sector of its own, for disks that cannot be trusted to write half a sector [default: false]
    #[arg(long, value_name = "BOOL")]
    pad_blocks: Option<bool>,
    /// Size of the log's segment files of a new data directory, like 1GiB [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    #[serde(default, deserialize_with = "size_or_none")]
    segment_size: Option<u64>,
    /// How long messages are kept, like 72h or 7d [default: 72h]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    #[serde(default, deserialize_with = "duration_or_none")]
    retention_time: Option<Duration>,
    /// Room that the files of the log may take on the disk, all shards together, like 100GiB; the oldest messages go first
    /// [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    #[serde(default, deserialize_with = "size_or_none")]
    retention_size: Option<u64>,
    /// What may be deleted when it is due: what no group that is online has still to consume, or anything [default: consumed]
    #[arg(long, value_enum)]
    retention: Option<Delete>,
    /// How fast each shard reads its old segments, round and round, to find damage before a consumer does, like 8MiB a second;
    /// 0: never [default: 8MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    #[serde(default, deserialize_with = "size_or_none")]
    scrub_rate: Option<u64>,
    /// How fast each shard rewrites old segments without messages of topics whose own, shorter time is over, so that the disk
    /// has their room back, like 32MiB read and written a second; 0: never [default: 32MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    #[serde(default, deserialize_with = "size_or_none")]
    rewrite_rate: Option<u64>,
    /// How long a shard that has nothing to do looks for work before it sleeps, like 200us, at most 1ms: lowest latency for that
    /// much CPU at each pause [default: 0s, it sleeps at once]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    #[serde(default, deserialize_with = "duration_or_none")]
    spin: Option<Duration>,
    /// Memory of each shard for recent messages, like 64MiB [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    #[serde(default, deserialize_with = "size_or_none")]
    tail_memory: Option<u64>,
}

/// Longer pauses than this are no pauses of a busy shard.
const SPIN_MAX: Duration = Duration::from_millis(1);

#[derive(ValueEnum, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Flush {
    Sync,
    Async,
}

/// What may be deleted when it is due.
#[derive(ValueEnum, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Delete {
    Consumed,
    Force,
}

/// Where the broker finds its name servers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NameServers {
    Embedded(SocketAddr),
    /// HOST:PORT each.
    Elsewhere(Vec<String>),
}

/// Settings with nothing left open.
#[derive(Clone, Debug)]
pub struct Config {
    pub data: PathBuf,
    pub name: String,
    pub cluster: String,
    /// As asked for by name.
    pub shards: Option<u16>,
    pub listen: SocketAddr,
    pub advertise: IpAddr,
    pub name_servers: NameServers,
    pub flush: Flush,
    pub auto_create_topics: bool,
    pub delays: DelayTable,
    pub pad_blocks: bool,
    /// As asked for by name.
    pub segment_bytes: Option<u64>,
    pub tail_bytes: u64,
    pub retention: Retention,
    /// Bytes a second and shard; 0: never.
    pub scrub_bytes_per_s: u64,
    /// Bytes a second and shard; 0: never.
    pub rewrite_bytes_per_s: u64,
    /// See [`ringmq_ring::Config::spin`].
    pub spin: Duration,
}

/// One line that says what is wrong with the settings and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Arguments {
    /// Reads the file, if one is named, and fills in what is not said.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let file = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        self.settings.over(file).resolve()
    }
}

fn read_file(path: &Path) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(format!("cannot read the configuration {}: {error}", path.display())))?;
    toml::from_str(&text).map_err(|error| {
        // One line; the library's own text draws a picture.
        let line =
            1 + text.bytes().take(error.span().map_or(0, |span| span.start)).filter(|b| *b == b'\n').count();
        let problem = error.message().lines().collect::<Vec<_>>().join(", ");
        ConfigError(format!("configuration {}, line {line}: {problem}", path.display()))
    })
}

impl Settings {
    fn over(self, file: Settings) -> Settings {
        // A name server named on the command line replaces an embedded one of the file, and the other way round.
        let own = self.namesrv.is_some() || self.embedded_namesrv.is_some();
        let (namesrv, embedded_namesrv) =
            if own { (self.namesrv, self.embedded_namesrv) } else { (file.namesrv, file.embedded_namesrv) };
        Settings {
            data: self.data.or(file.data),
            name: self.name.or(file.name),
            cluster: self.cluster.or(file.cluster),
            shards: self.shards.or(file.shards),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            namesrv,
            embedded_namesrv,
            flush: self.flush.or(file.flush),
            auto_create_topics: self.auto_create_topics.or(file.auto_create_topics),
            message_delay_level: self.message_delay_level.or(file.message_delay_level),
            pad_blocks: self.pad_blocks.or(file.pad_blocks),
            segment_size: self.segment_size.or(file.segment_size),
            tail_memory: self.tail_memory.or(file.tail_memory),
            retention_time: self.retention_time.or(file.retention_time),
            retention_size: self.retention_size.or(file.retention_size),
            retention: self.retention.or(file.retention),
            scrub_rate: self.scrub_rate.or(file.scrub_rate),
            rewrite_rate: self.rewrite_rate.or(file.rewrite_rate),
            spin: self.spin.or(file.spin),
        }
    }

    fn resolve(self) -> Result<Config, ConfigError> {
        let listen = self.listen.unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 10911));
        if self.namesrv.is_some() && self.embedded_namesrv.is_some() {
            return Err(ConfigError(
                "namesrv and embedded-namesrv exclude each other: set one of them".to_owned(),
            ));
        }
        if self.shards == Some(0) {
            return Err(ConfigError("shards must be at least 1".to_owned()));
        }
        let spin = self.spin.unwrap_or_default();
        if spin > SPIN_MAX {
            return Err(ConfigError(format!(
                "spin {spin:?} is too long: at most {SPIN_MAX:?}, for a shard spends it before each sleep"
            )));
        }
        let name_servers = match self.namesrv {
            Some(list) => NameServers::Elsewhere(parse_name_servers(&list)?),
            None => {
                NameServers::Embedded(self.embedded_namesrv.unwrap_or(SocketAddr::new(listen.ip(), 9876)))
            }
        };
        let name = self.name.unwrap_or_else(|| "broker-a".to_owned());
        let cluster = self.cluster.unwrap_or_else(|| "DefaultCluster".to_owned());
        for (what, value) in [("name", &name), ("cluster", &cluster)] {
            // Both are also names of topics.
            ringmq_protocol::name::validate_topic(value)
                .map_err(|error| ConfigError(format!("{what} {value:?} cannot be used: {error}")))?;
        }
        Ok(Config {
            data: self.data.unwrap_or_else(|| PathBuf::from("data")),
            name,
            cluster,
            shards: self.shards,
            advertise: self.advertise.unwrap_or_else(|| reachable_ip(listen.ip())),
            listen,
            name_servers,
            flush: self.flush.unwrap_or(Flush::Sync),
            auto_create_topics: self.auto_create_topics.unwrap_or(true),
            delays: self.message_delay_level.unwrap_or_default(),
            pad_blocks: self.pad_blocks.unwrap_or(false),
            segment_bytes: self.segment_size,
            tail_bytes: self.tail_memory.unwrap_or(64 << 20),
            retention: Retention {
                age: self.retention_time.unwrap_or(Duration::from_secs(72 * 3600)),
                bytes: self.retention_size,
                forced: self.retention == Some(Delete::Force),
            },
            scrub_bytes_per_s: self.scrub_rate.unwrap_or(8 << 20),
            rewrite_bytes_per_s: self.rewrite_rate.unwrap_or(32 << 20),
            spin,
        })
    }
}

fn parse_name_servers(list: &str) -> Result<Vec<String>, ConfigError> {
    let servers: Vec<String> = list
        .split([';', ','])
        .map(str::trim)
        .filter(|server| !server.is_empty())
        .map(str::to_owned)
        .collect();
    let is_address = |server: &String| {
        server.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    match servers.iter().find(|server| !is_address(server)) {
        Some(wrong) => Err(ConfigError(format!("name server {wrong:?} is not HOST:PORT"))),
        None if servers.is_empty() => {
            Err(ConfigError("namesrv names no server: give HOST:PORT[;HOST:PORT]".to_owned()))
        }
        None => Ok(servers),
    }
}

/// A listening address that clients can be told. For a wildcard it is the address from which this machine reaches
/// others (nothing is sent to find out), or loopback on a machine without a network.
fn reachable_ip(listen: IpAddr) -> IpAddr {
    if !listen.is_unspecified() {
        return listen;
    }
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let route = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    route
        .map(|address| address.ip())
        .ok()
        .filter(|ip| !ip.is_unspecified())
        .unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// A number of bytes, with or without a unit: 4096, 64KiB, 1GiB.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => {
            return Err(format!(
                "{text:?} is not a size: use a number and B, KiB, MiB, GiB or TiB, like 64MiB"
            ));
        }
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is not a size: it must begin with a number, like 64MiB"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large"))
}

/// A span of time with its unit: 90s, 15m, 72h, 7d.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let micros = match unit.trim() {
        "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 24 * 3_600_000_000,
        _ => return Err(format!("{text:?} is not a time: use a number and us, ms, s, m, h or d, like 72h")),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is not a time: it must begin with a number, like 72h"))?;
    number.checked_mul(micros).map(Duration::from_micros).ok_or_else(|| format!("{text:?} is too long"))
}

fn duration_or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

fn delays_or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<DelayTable>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

fn size_or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Number(u64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Number(number) => Ok(Some(number)),
        Size::Text(text) => parse_size(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(line: &str, file: &str) -> Result<Config, ConfigError> {
        let arguments =
            Arguments::try_parse_from(std::iter::once("ringmq-broker").chain(line.split_whitespace()));
        let settings = arguments.map_err(|error| ConfigError(error.to_string()))?.settings;
        settings.over(toml::from_str(file).map_err(|error| ConfigError(error.to_string()))?).resolve()
    }

    #[test]
    fn the_defaults_are_those_of_the_help() {
        let config = resolve("", "").unwrap();
        assert_eq!(config.listen, "0.0.0.0:10911".parse().unwrap());
        assert_eq!(config.name_servers, NameServers::Embedded("0.0.0.0:9876".parse().unwrap()));
        assert!(!config.advertise.is_unspecified());
        assert_eq!((config.flush, config.name.as_str()), (Flush::Sync, "broker-a"));
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = "name = \"from-file\"\nflush = \"async\"\nembedded-namesrv = \"127.0.0.1:1\"\nsegment-size = \"16MiB\"\n";
        let config = resolve("--name here --namesrv a:1;b:2", file).unwrap();
        assert_eq!((config.name.as_str(), config.flush), ("here", Flush::Async));
        assert_eq!(resolve("--spin 20us", "spin = \"1ms\"").unwrap().spin, Duration::from_micros(20));
        assert_eq!((resolve("", "").unwrap().spin, config.spin), (Duration::ZERO, Duration::ZERO));
        assert_eq!(config.name_servers, NameServers::Elsewhere(vec!["a:1".into(), "b:2".into()]));
        assert_eq!(config.segment_bytes, Some(16 << 20));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = [
            ("", "colour = 1", "colour"),
            ("", "segment-size = \"much\"", "not a size"),
            ("--shards 0", "", "at least 1"),
            ("--namesrv nowhere", "", "HOST:PORT"),
            ("--name a/b", "", "cannot be used"),
            ("--flush later", "", "sync"),
            ("--spin 2ms", "", "at most 1ms"),
        ];
        for (line, file, part) in wrong {
            let text = resolve(line, file).unwrap_err().to_string();
            assert!(text.contains(part), "{line} {file}: {text}");
        }
    }

    #[test]
    fn retention_is_a_time_a_size_and_a_rule() {
        let config = resolve("--retention-time 7d --retention-size 1GiB", "retention = \"force\"").unwrap();
        assert_eq!(config.retention.age, Duration::from_secs(7 * 24 * 3600));
        assert_eq!((config.retention.bytes, config.retention.forced), (Some(1 << 30), true));
        let config = resolve("", "retention-time = \"90s\"").unwrap();
        assert_eq!(config.retention.age, Duration::from_secs(90));
        assert_eq!((config.retention.bytes, config.retention.forced), (None, false));
        assert_eq!((config.scrub_bytes_per_s, config.rewrite_bytes_per_s), (8 << 20, 32 << 20));
        assert_eq!(resolve("--rewrite-rate 1MiB", "rewrite-rate = 0").unwrap().rewrite_bytes_per_s, 1 << 20);
        assert_eq!(resolve("--scrub-rate 0", "scrub-rate = \"1MiB\"").unwrap().scrub_bytes_per_s, 0);
        assert!(
            parse_duration("72").is_err() && parse_duration("h").is_err() && parse_duration("1y").is_err()
        );
    }

    #[test]
    fn delay_levels_come_from_the_command_line_or_the_file() {
        assert_eq!(resolve("", "").unwrap().delays, DelayTable::default());
        let config = resolve("", "message-delay-level = \"1s 2h\"").unwrap();
        assert_eq!(config.delays.to_string(), "1s 2h");
        let config = resolve("--message-delay-level 100ms", "message-delay-level = \"1s 2h\"").unwrap();
        assert_eq!(config.delays.to_string(), "100ms");
        let error = resolve("--message-delay-level 1y", "").unwrap_err().to_string();
        assert!(error.contains("\"1y\" is no delay"), "{error}");
    }

    #[test]
    fn sizes_take_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64KiB"), Ok(65536));
        assert_eq!(parse_size("1 GiB"), Ok(1 << 30));
        assert!(
            parse_size("MiB").is_err()
                && parse_size("1 XB").is_err()
                && parse_size("99999999999TiB").is_err()
        );
    }
}
