//! The typed fields of requests and responses, by subject.
//!
//! One macro makes each: a struct that borrows from the frame (a string is copied only if JSON escaped it), a
//! `decode` that names the field it fails on, and [`Fields`](crate::frame::Fields) to send it. The type of a field
//! says what its absence means: `Option` keeps it, `T or value` replaces it, anything else makes it an error.

mod admin;
mod consume;
mod field;
mod namesrv;
mod pop;
mod send;
#[cfg(test)]
mod tests;
mod transaction;

pub use admin::*;
pub use consume::*;
pub use field::{BoundaryType, FieldError, FieldProblem};
pub use namesrv::*;
pub use pop::*;
pub use send::*;
pub use transaction::*;
