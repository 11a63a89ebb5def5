//! The name server: tells clients which brokers serve a topic. It knows only what brokers tell it, keeps it in
//! memory, and knows nothing of other name servers.
//!
//! ```text
//! server    sockets, deadlines, limits, the KV file        (tokio-uring; the only I/O here)
//!   handler   a request in, a reply out                    (pure from here on)
//!     routes    brokers, topics, liveness
//!     kv        the KV configuration
//!     settings  switches that may be changed at run time
//! ```
//!
//! [`run`] serves until it is told to stop: in a process of its own (`ringmq-namesrv`) or in a thread of a broker.

mod handler;
pub mod kv;
pub mod routes;
mod server;
pub mod settings;

pub(crate) use server::BIND_PATIENCE;
pub use server::{Limits, Options, run};
