//! C6: old messages beside those that are being sent.

use std::mem;
use std::rc::Rc;

use super::{Purpose, Stretch};
use crate::shard::Shard;
use crate::shard::effects::Effects;
use crate::shard::limits::{
    COLD_BESIDE_WRITES_MS, COLD_LATE_MS, COLD_PULL_BYTES_BESIDE_WRITES, PULL_BYTES_MAX,
};

impl Shard {
    /// C6: messages are being sent, as far as the last few milliseconds tell.
    pub(super) fn is_beside_writes(&self) -> bool {
        let is_lately = |at: i64| self.now.monotonic_ms - at < COLD_BESIDE_WRITES_MS;
        self.log.staged_bytes() > 0 || self.cold.wrote_at_ms.is_some_and(is_lately)
    }

    /// Bytes after which an answer with old messages takes no further one.
    pub(in crate::shard) fn cold_pull_bytes(&self) -> usize {
        if self.is_beside_writes() { COLD_PULL_BYTES_BESIDE_WRITES } else { PULL_BYTES_MAX }
    }

    /// Goes on with a purpose now, or with a pull when its turn has come (C6).
    pub(super) fn serve(&mut self, purpose: Purpose, stretch: &Rc<Stretch>, fx: &mut Effects) {
        let purpose = match purpose {
            Purpose::Pull(cold) => match self.gather_cold(cold, stretch, fx) {
                Some(cold) => Purpose::Pull(cold),
                None => return,
            },
            purpose => purpose,
        };
        match purpose {
            Purpose::Pull(_) if self.is_beside_writes() => {
                if !self.cold.has_answers() {
                    self.cold.waiting_since_ms = self.now.monotonic_ms;
                }
                self.cold.ready.push_back((purpose, stretch.clone()));
            }
            _ => self.on_stretch(purpose, stretch, fx),
        }
    }

    /// True if the next turn has something to do for those who wait. While the log is being written that turn comes by itself.
    pub(in crate::shard) fn has_ready(&self) -> bool {
        self.cold.has_answers() && self.log.writes_in_flight() == 0
    }

    /// Once a turn.
    pub(in crate::shard) fn serve_ready(&mut self, fx: &mut Effects) {
        if self.log.staged_bytes() > 0 {
            self.cold.wrote_at_ms = Some(self.now.monotonic_ms);
        }
        let has_appended = mem::take(&mut self.cold.has_appended);
        let count = if !self.is_beside_writes() {
            self.cold.ready.len()
        } else {
            let is_writing = self.log.writes_in_flight() > 0;
            let is_late = self.now.monotonic_ms - self.cold.waiting_since_ms > COLD_LATE_MS;
            usize::from(has_appended == is_writing || is_late)
        };
        for _ in 0..count {
            let Some((purpose, stretch)) = self.cold.ready.pop_front() else { break };
            self.cold.waiting_since_ms = self.now.monotonic_ms;
            self.on_stretch(purpose, &stretch, fx);
        }
    }
}
