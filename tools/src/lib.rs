//! What the programs of this crate share: how people write and read quantities, and tables.
#![forbid(unsafe_code)]

pub mod table;
pub mod units;
