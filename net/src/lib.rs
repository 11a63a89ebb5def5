//! Connections: bytes in, frames out; replies in, ranges of bytes out.
//!
//!   received bytes ─▶ [`FrameReader`] ─▶ frames ─▶ (the shard) ─▶ [`Outbox`] ─▶ one gather-send
//!
//! N1  A frame that lies whole in the received bytes is decoded where it lies; only a frame cut by the end of a
//!     receive is put together in memory of the connection, and that memory grows with the bytes that arrived,
//!     never with a length that was announced.
//! N2  Replies leave in the order in which they were pushed, one send in flight per connection.
//! N3  What one connection may hold is bounded by [`Limits`]; who goes beyond is closed, nobody else notices.
//!
//! The crate does no I/O: the driver feeds it completions and submits what it hands out.

mod connection;
mod frame_reader;
mod limits;
mod outbox;

pub use connection::{Connection, Verdict};
pub use frame_reader::FrameReader;
pub use limits::Limits;
pub use outbox::Outbox;
