//! RocketMQ's remoting protocol: bytes to types and back, and nothing else. No I/O, no clock, no randomness.
//!
//!   frame       the frame around everything, its two header codecs, owned `RemotingCommand`
//!   request     the typed header fields of requests and responses
//!   body        JSON bodies, through `fastjson`, the lenient reader and writer of Java's dialect
//!   message     the stored message, which is also what a pull response carries
//!   batch, properties, receipt, id, name, code, types   the small parts of the above
//!
//! Invariants of every decoder here: it never panics, never trusts a length before comparing it with the bytes at
//! hand, and never allocates more than a small multiple of the bytes it was given.
#![forbid(unsafe_code)]

pub mod batch;
pub mod body;
pub mod code;
pub mod fastjson;
mod find;
pub mod frame;
pub mod id;
pub mod message;
pub mod name;
pub mod properties;
pub mod receipt;
pub mod request;
pub mod types;
