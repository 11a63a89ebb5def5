//! JSON as Java's fastjson writes and reads it, which is not quite JSON.
//!
//!   from_slice   a serde reader that takes all of JSON, and besides: object keys without quotes (`{0:"a"}`), objects
//!                as object keys (`{{"topic":"t"}:1}`), strings for numbers and booleans, and the other way round
//!   to_vec       a serde writer of that form: integer keys without quotes, structs as keys, nulls left out
//!
//! Standard JSON is written with `serde_json`. The reader is bounded in depth, and the memory that it takes is bounded
//! by the types it fills: those in `body` demand the fields that identify a thing, so that no short text makes a big one.

mod read;
#[cfg(test)]
mod tests;
mod write;

use thiserror::Error;

pub use read::from_slice;
pub use write::to_vec;

/// How deep a text may nest.
pub const DEPTH_MAX: u32 = 32;
/// The longest text that is read, in bytes: no frame holds a longer one.
pub const TEXT_BYTES_MAX: usize = crate::frame::FRAME_BYTES_MAX as usize;

/// Why a text could not be read, or a value not be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JsonError {
    #[error("a JSON text of {0} bytes is too long")]
    TooLong(usize),
    #[error("JSON text is not UTF-8")]
    NotUtf8,
    #[error("JSON text, byte {at}: {problem}")]
    Syntax { at: usize, problem: &'static str },
    /// What the type that is read or written says.
    #[error("JSON text: {0}")]
    Content(String),
}

impl serde::de::Error for JsonError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Content(message.to_string())
    }
}

impl serde::ser::Error for JsonError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Content(message.to_string())
    }
}
