//! `ringmq-broker`: the broker, with an embedded name server unless it is told where others are.

use clap::Parser;
use ringmq::{broker, config::Arguments};
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,ringmq::namesrv=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    let ended = arguments.resolve().map_err(broker::BrokerError::from).and_then(broker::run);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringmq-broker: {error}");
            ExitCode::FAILURE
        }
    }
}
