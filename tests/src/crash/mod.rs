//! Crashes of a real broker under load, and what must be true after them.
//!
//!   cycle      start ─▶ survey ─▶ check ─▶ load ─▶ fault ─▶ start …, on one data directory that grows
//!   load       producers, tailing consumers and topic makers; what they were promised becomes the history
//!   payload    a message tells who it is, and its bytes follow from that
//!   history    what was tried, promised and seen, up to the fault
//!   survey     what a restarted broker has: everything, read through ordinary pulls
//!   checker    history against survey; knows neither broker nor protocol
//!   deliveries what consumers of a group were given, and its checks; knows neither broker nor protocol
//!   member     a consumer, in this process or in one of its own that may be killed
//!   order      orderly consumers over all cycles of a run
//!   storm      consumers that come, leave and crash, under a broker that stays
//!   process    a broker that may be killed at any moment, also before it is ready
//!   disk       a file system of our own on a loop device, and its power switch
//!
//! K1  A promise is an answer that was read before the fault began. With kill -9 that is every answer that ever arrives;
//!     with a power cut it is what arrived before the file system was told to stop.
//! K2  Nothing is sent twice: each attempt has a number of its own, so two copies of one number are the broker's.
//! K3  What a survey has read counts as seen: it must be there, at the same place, after every later crash.
#![forbid(unsafe_code)]

pub mod checker;
pub mod cycle;
pub mod deliveries;
pub mod disk;
pub mod history;
pub mod load;
pub mod member;
pub mod order;
pub mod payload;
pub mod process;
pub mod storm;
pub mod survey;

/// A run that cannot go on, in one line.
#[derive(Debug)]
pub struct Failure(pub String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl Failure {
    /// What was being done, before why it failed.
    pub fn during(what: impl std::fmt::Display) -> impl FnOnce(Failure) -> Failure {
        move |failure| Failure(format!("{what}: {}", failure.0))
    }
}
