//! The JSON bodies of requests and responses.
//!
//! All are read leniently ([`crate::fastjson`]) and ignore members that they do not know. A member that identifies a
//! thing must be there; any other has Java's default. `to_json` writes the form that Java's fastjson writes.

mod admin;
mod config;
mod consume;
mod heartbeat;
mod register;
mod route;
#[cfg(test)]
mod tests;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fastjson::{self, JsonError};

pub use admin::*;
pub use config::*;
pub use consume::*;
pub use heartbeat::*;
pub use register::{RegisterBodyError, RegisterBrokerBody};
pub use route::*;

/// A body of a request or response.
pub trait Body: Serialize + DeserializeOwned {
    fn from_json(bytes: &[u8]) -> Result<Self, JsonError> {
        fastjson::from_slice(bytes)
    }

    fn to_json(&self) -> Vec<u8> {
        fastjson::to_vec(self).expect("a body has a form in JSON")
    }
}
