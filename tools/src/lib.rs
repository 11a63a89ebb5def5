//! What the programs of this crate share: how people write and read quantities, and tables; and the load generator.
#![forbid(unsafe_code)]

pub mod perf;
pub mod table;
pub mod units;
