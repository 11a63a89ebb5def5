//! `ringmq-namesrv`: the name server in a process of its own.

use clap::Parser;
use ringmq::broker::stop_signal;
use ringmq::namesrv::{self, Options};
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// RingMQ's name server: tells RocketMQ clients which brokers serve a topic.
#[derive(Parser)]
#[command(name = "ringmq-namesrv", version, after_help = EXAMPLES)]
struct Arguments {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9876")]
    listen: SocketAddr,

    /// Keep the KV configuration (queues of ordered topics) in this file; without it, it is lost at the end
    #[arg(long, value_name = "FILE")]
    kv_file: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  ringmq-namesrv                                      all addresses of this machine, port 9876
  ringmq-namesrv --listen 127.0.0.1:9876              this machine only
  ringmq-namesrv --listen '[::]:9876'                 IPv6 (and IPv4, unless the system says otherwise)
  ringmq-namesrv --kv-file /var/lib/ringmq/kv.json    the KV configuration survives a restart

Anyone who reaches the port can register brokers and change routes, as with RocketMQ's name server.
RUST_LOG sets what is logged to standard error: RUST_LOG=warn, RUST_LOG=debug.
Ctrl-C or SIGTERM stops it.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    let options = Options { kv_file: arguments.kv_file, ..Options::default() };
    let ready = |address| {
        // Nobody may be reading, which is no reason not to serve.
        let _ = writeln!(io::stdout(), "ringmq-namesrv listens on {address}");
    };
    match namesrv::run(arguments.listen, options, ready, stop_signal()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringmq-namesrv: {error}");
            ExitCode::FAILURE
        }
    }
}
