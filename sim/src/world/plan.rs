//! What kind of world a seed is, besides its faults.

use std::time::Duration;

use ringmq::housekeeping::Retention;
use ringmq::shard::DelayTable;
use ringmq_ring::sim::Random;
use ringmq_storage::LogConfig;

use super::{MILLI, SECOND, World};
use crate::backstage::Keeping;
use crate::retrier::DELAYS_MS;
use crate::ring::Planted;

/// What kind of world a seed is, besides its faults.
pub(super) struct Plan {
    pub(super) cores: u64,
    pub(super) keeping: Keeping,
    pub(super) has_retriers: bool,
    pub(super) has_poppers: bool,
    /// A topic keeps its messages for so long only.
    pub(super) brief_ms: Option<u64>,
    /// Whether they pop in order.
    pub(super) pops_in_order: bool,
    /// Whether indexes are harmed.
    pub(super) harms_indexes: bool,
}

impl Plan {
    pub(super) fn draw(seed: u64, planted: Option<Planted>) -> Plan {
        // Of its own, so that worlds of which this is not a part stay what they were.
        let mut random = Random::new(seed ^ 0x706c_616e);
        let cores = [1, 1, 2, 3][random.below(4) as usize];
        let (has_retriers, harms_indexes) = (random.chance(60), random.chance(40));
        let mut of_pops = Random::new(seed ^ 0x0070_6f70);
        let (has_poppers, pops_in_order) = (of_pops.chance(50), of_pops.chance(40));
        let is_about_rewriting = matches!(
            planted,
            Some(Planted::GreedyRewrite | Planted::UnsyncedRewrite | Planted::HastyRewrite)
        );
        let mut brief = Random::new(seed ^ 0x0062_7265);
        let has_brief = brief.chance(40) || is_about_rewriting;
        let brief_ms = has_brief.then(|| [1, 20, 300][brief.below(3) as usize]);
        let all = Keeping { rewrites: has_brief, ..Keeping::ALL };
        let is_about_retention = matches!(planted, Some(Planted::HastyRelease | Planted::IgnoredGroups));
        if is_about_rewriting || !is_about_retention && !random.chance(50) {
            return Plan {
                cores,
                keeping: all,
                has_retriers,
                has_poppers,
                pops_in_order,
                brief_ms,
                harms_indexes,
            };
        }
        let bytes = [None, Some(0), Some(4 << 20), Some(7 << 20)][random.below(4) as usize];
        let age = [1, 50, 1_000, 20_000][random.below(4) as usize];
        let retention = Retention {
            age: if bytes.is_some() && random.chance(70) {
                Duration::MAX
            } else {
                Duration::from_millis(age)
            },
            bytes,
            forced: random.chance(50) && planted != Some(Planted::IgnoredGroups),
        };
        let keeping = Keeping { retention, check_nanos: random.between(5 * MILLI, SECOND), ..all };
        Plan { cores, keeping, has_retriers, has_poppers, pops_in_order, brief_ms, harms_indexes }
    }

    /// Whether segments have to fill fast.
    pub(super) fn wants_segments(&self) -> bool {
        self.deletes() || self.brief_ms.is_some()
    }

    pub(super) fn deletes(&self) -> bool {
        self.keeping.retention.bytes.is_some() || self.keeping.retention.age < Duration::MAX
    }
}

/// The levels of [`DELAYS_MS`].
pub(super) fn delays() -> DelayTable {
    let levels = DELAYS_MS.map(|ms| format!("{ms}ms"));
    levels.join(" ").parse().expect("a table of times")
}

impl World {
    /// Sizes of a core's log, other ones for each of its lives.
    pub(super) fn log_config(&mut self, core: usize) -> LogConfig {
        let random = &mut self.random;
        let record_bytes_max = 150 << 10;
        let chunk_bytes = 256 << 10;
        let writes_in_flight_max = random.between(1, 5);
        LogConfig {
            shard: core as u16,
            log_id: 7,
            segment_bytes: self.segment_bytes,
            block_bytes_max: [1 << 10, 8 << 10, 64 << 10][random.below(3) as usize],
            record_bytes_max,
            tail_bytes: 2 * u64::from(chunk_bytes),
            tail_bytes_hard_max: random.between(2, 4) * u64::from(chunk_bytes),
            chunk_bytes,
            staged_bytes_max: random.between(170 << 10, 512 << 10),
            sector_bytes: self.sector_bytes,
            pad_blocks: random.chance(20),
            writes_in_flight_max: writes_in_flight_max as usize,
            writes_in_flight_enough: random.between(1, writes_in_flight_max) as usize,
            prepare_step_bytes: random.between(1, 2) << 20,
            prepare_ahead_bytes: random.between(170 << 10, 2 << 20),
        }
    }
}
