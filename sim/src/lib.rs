//! A whole shard, its driver, disk, network and clients in one thread, from a seed.
//!
//!   world       the run: lives of a broker, each with its faults and its end, and the audit behind the last one
//!   coverage    what happened in it, counted
//!   ring        what the driver takes for its ring: watched, hurried, troubled
//!   backstage   the files, and the housekeeping thread with its delays
//!   ledger      what the disk has promised, what was done to it, and what has to be reported
//!   client      producers, consumers and an administrator, who speak real frames (wire)
//!   lookups     what consumers ask now and then; retrier: a client of delayed messages and retries
//!   indexes     what was done to sealed indexes
//!   checker     what must hold of all that the clients saw
//!
//! The product's code is the real one, from the bytes of a frame to the bytes of the disk: `Driver`, `Shard`,
//! `CommitLog` and recovery know nothing of this crate.
#![forbid(unsafe_code)]

mod admin;
mod backstage;
pub mod checker;
mod client;
mod consumer;
mod coverage;
mod indexes;
mod ledger;
mod lookups;
mod popper;
mod producer;
mod retrier;
mod ring;
mod wire;
mod world;

pub use coverage::Coverage;
pub use indexes::IndexHarm;
pub use ledger::Corruption;
pub use ring::Planted;
pub use world::{Options, Outcome, run};
