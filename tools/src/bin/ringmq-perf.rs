//! `ringmq-perf`: the load generator. What it does is in `ringmq_tools::perf`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use ringmq_tools::perf::{self, Arguments};

fn main() -> ExitCode {
    match perf::run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        // The summary has said what went wrong.
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("ringmq-perf: {problem}");
            ExitCode::FAILURE
        }
    }
}
