//! The harness of tests that run real processes.
//!
//!   binaries   the programs under test, built once with the profile of the running test
//!   ports      free loopback ports that stay free while a broker is down
//!   broker     a broker process: start, kill -9, stop, restart
//!   raw        frames on a plain socket, for what no well-behaved client would send
//!   process    what /proc tells of a process
//!   crash      kill -9 and power cuts under load, with a checker of its own (`--bin crash`)
//!
//! Nothing here guesses how long something takes: it waits for a line, a frame or an end, with a deadline that only a
//! broken broker reaches.
#![forbid(unsafe_code)]

pub mod binaries;
pub mod broker;
pub mod crash;
pub mod ports;
pub mod process;
pub mod raw;
pub mod temp;

use std::time::Duration;

pub use broker::{Broker, Options};
pub use raw::Raw;
pub use temp::TempDir;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
