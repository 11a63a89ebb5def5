//! RingMQ, the servers: see docs/architecture.md.
#![forbid(unsafe_code)]

pub mod namesrv;
