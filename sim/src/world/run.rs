//! What a run is told, and what it tells.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checker::{Anomaly, Violation};
use crate::coverage::Coverage;
use crate::ring::Planted;

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests that clients make, about.
    pub steps: u64,
    pub planted: Option<Planted>,
    /// Print what happens to the broker.
    pub verbose: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { steps: 3_000, planted: None, verbose: false }
    }
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Equal for equal runs: of every operation of the broker and every completion.
    pub trace: u64,
    pub simulated: Duration,
    pub acknowledged: u64,
    pub seen: u64,
    pub coverage: Coverage,
    pub violations: Vec<Violation>,
    /// How often each anomaly was found, also beyond the violations that are listed.
    pub anomalies: BTreeMap<Anomaly, u64>,
}
