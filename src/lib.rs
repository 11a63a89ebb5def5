//! RingMQ, the servers: see docs/architecture.md.
//!
//!   broker         a process: data directory, shards, embedded name server, housekeeping
//!   shard          what a broker is: the state machine of one core
//!   driver         the loop that runs it on a ring
//!   housekeeping   what shards must not wait for
//!   namesrv        the name server
//!   config         what a broker can be told
#![forbid(unsafe_code)]

pub mod broker;
pub mod config;
pub mod driver;
pub mod housekeeping;
pub mod namesrv;
pub mod shard;
