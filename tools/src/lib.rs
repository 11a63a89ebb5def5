//! What the programs of this crate share: how people write and read quantities, and tables; the load generator; and what
//! looks after the files of a broker.
#![forbid(unsafe_code)]

pub mod log;
pub mod perf;
pub mod table;
pub mod units;
