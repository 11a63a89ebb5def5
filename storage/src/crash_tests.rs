//! Thousands of random lives of a log: appends, writes that end in any order, segments made of old ones, crashes that leave any
//! mixture of the sectors under way, recoveries, recoveries that are interrupted, and damage.
//!
//! After each recovery
//!   - the records visited are those appended, in order, without a gap, and all that were acknowledged are among them;
//!   - a second recovery finds the same.
//!
//! Before each write: it changes no byte that was acknowledged, overlaps no write under way, and stays in prepared space.

use proptest::prelude::*;
use ringmq_protocol::types::{PhysicalOffset, StoreTimestamp};

use crate::config::LogConfig;
use crate::log::{AppendError, BlockSeq, CommitLog, Prepare};
use crate::recover::{Damage, Recovered};
use crate::segment::SegmentBase;
use crate::testing::{Disk, Random, Seen, body, recover_all, small_config};

/// What is being prepared, and how.
#[derive(Clone, Copy)]
enum Room {
    Zeros(Prepare),
    /// A file that was another segment has become this one.
    Recycled(SegmentBase),
}

struct Life {
    config: LogConfig,
    random: Random,
    disk: Disk,
    log: CommitLog,
    /// Everything appended that no crash has cut off, with its block.
    history: Vec<(Seen, BlockSeq)>,
    acknowledged: usize,
    preparing: Option<Room>,
    prepared: u64,
    next_id: u64,
    now: i64,
    crashes: usize,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let writes_in_flight_max = 1 + random.below(6) as usize;
        let config = LogConfig {
            pad_blocks: random.chance(20),
            writes_in_flight_max,
            writes_in_flight_enough: 1 + random.below(writes_in_flight_max as u64) as usize,
            ..small_config()
        };
        let log = CommitLog::new(config.clone(), Recovered::empty(&config));
        Self {
            config,
            random,
            disk: Disk::default(),
            log,
            history: Vec::new(),
            acknowledged: 0,
            preparing: None,
            prepared: 0,
            next_id: 0,
            now: 1_000,
            crashes: 0,
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..40 => self.append(),
            40..65 => self.submit(),
            65..90 => self.complete_one(),
            90..99 => self.prepare(),
            _ => self.crash_and_recover(),
        }
    }

    fn append(&mut self) {
        let len = match self.random.below(20) {
            0 => self.random.below(100_000),
            1..4 => self.random.below(20_000),
            _ => self.random.below(600),
        };
        // The clock may go back.
        self.now = (self.now + self.random.below(30) as i64 - 5).max(0);
        let body = body(self.next_id, len as usize);
        match self.log.append_record(1, &body, StoreTimestamp(self.now)) {
            Ok(appended) => {
                self.next_id += 1;
                let seen =
                    Seen { position: appended.position, store_timestamp: appended.store_timestamp, body };
                self.history.push((seen, appended.block));
            }
            Err(AppendError::Busy { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn submit(&mut self) {
        let Some(write) = self.log.next_write() else { return };
        let start = write.segment.0 + write.offset_in_segment;
        let end = start + write.data.len() as u64;
        assert!(start.is_multiple_of(4096) && end.is_multiple_of(4096), "whole sectors");
        assert!(end <= self.prepared && end <= write.segment.0 + self.config.segment_bytes, "prepared space");
        let durable = self.log.durable().0;
        if durable > start {
            assert!(!self.config.pad_blocks, "padded blocks share no sector");
            let shared = (durable - start) as usize;
            assert_eq!(
                self.disk.read(start, shared, self.config.segment_bytes),
                &write.data[..shared],
                "acknowledged bytes do not change"
            );
        }
        for other in &self.disk.in_flight {
            let other_start = other.segment.0 + other.offset_in_segment;
            assert!(
                end <= other_start || other_start + other.data.len() as u64 <= start,
                "no overlap in flight"
            );
        }
        self.disk.in_flight.push(write);
    }

    fn complete_one(&mut self) {
        if self.disk.in_flight.is_empty() {
            return;
        }
        let index = self.random.below(self.disk.in_flight.len() as u64) as usize;
        let write = self.disk.in_flight.swap_remove(index);
        self.disk.write(write.segment, write.offset_in_segment, &write.data);
        if let Some(advance) = self.log.on_written(write.block, Ok(())) {
            let acknowledged = self.history.partition_point(|(_, block)| *block <= advance.block);
            assert!(acknowledged > self.acknowledged);
            let (last, _) = &self.history[acknowledged - 1];
            assert!(last.position.0 + last.body.len() as u64 <= advance.position.0);
            self.acknowledged = acknowledged;
        }
    }

    fn prepare(&mut self) {
        match self.preparing.take() {
            Some(Room::Zeros(wanted)) => {
                self.disk.zero(wanted, self.config.segment_bytes);
                self.prepared(wanted.segment, wanted.to);
            }
            Some(Room::Recycled(segment)) => self.prepared(segment, self.config.segment_bytes),
            None => {}
        }
        let Some(wanted) = self.log.prepare_wanted() else { return };
        assert!(wanted.segment.0 + wanted.from >= self.log.durable().0, "what was acknowledged stays");
        let is_new = !self.disk.segments.contains_key(&wanted.segment.0);
        let room = if is_new && wanted.from == 0 && self.random.chance(70) {
            let contents = self.old_contents();
            self.disk.segments.insert(wanted.segment.0, contents);
            Room::Recycled(wanted.segment)
        } else {
            Room::Zeros(wanted)
        };
        self.preparing = Some(room);
    }

    fn prepared(&mut self, segment: SegmentBase, to: u64) {
        self.log.on_prepared(segment, to);
        self.prepared = segment.0 + to;
    }

    /// What a file can hold that was an older segment: all of what is in one now, at the places where it is; and some of it
    /// from longer ago, or rotten.
    fn old_contents(&mut self) -> Vec<u8> {
        let segments: Vec<u64> = self.disk.segments.keys().copied().collect();
        if segments.is_empty() {
            return (0..self.config.segment_bytes).map(|_| self.random.number() as u8).collect();
        }
        let mut contents = self.disk.segments[&self.random.one_of(&segments)].clone();
        for _ in 0..self.random.below(3) {
            let other = self.random.one_of(&segments);
            let from = self.random.below(self.config.segment_bytes) as usize;
            let len = (self.random.below(300_000) as usize).min(contents.len() - from);
            if self.random.chance(50) {
                contents[from..from + len].copy_from_slice(&self.disk.segments[&other][from..from + len]);
            } else {
                contents[from..from + len].fill_with(|| self.random.number() as u8);
            }
        }
        contents
    }

    fn crash_and_recover(&mut self) {
        self.crashes += 1;
        self.disk.crash(&mut self.random);
        match self.preparing.take() {
            Some(Room::Zeros(wanted)) => {
                // Zeroing was under way.
                let percent = [0, 30, 100][self.random.below(3) as usize];
                for from in (wanted.from..wanted.to).step_by(4096) {
                    if self.random.chance(percent) {
                        self.disk
                            .zero(Prepare { from, to: from + 4096, ..wanted }, self.config.segment_bytes);
                    }
                }
            }
            // The name was not durable yet.
            Some(Room::Recycled(segment)) if self.random.chance(50) => {
                self.disk.segments.remove(&segment.0);
            }
            Some(Room::Recycled(_)) | None => {}
        }
        let (recovered, report, seen) = recover_all(&mut self.disk, &self.config);
        assert_eq!(report.damaged, [], "a crash is not damage");
        assert_eq!(report.unreadable_records, []);
        self.check_prefix(&seen);
        self.restart(recovered, seen.len());
    }

    fn check_prefix(&self, seen: &[Seen]) {
        assert!(seen.len() >= self.acknowledged, "{} acknowledged, {} found", self.acknowledged, seen.len());
        assert!(seen.len() <= self.history.len(), "more records than were appended");
        for (found, (appended, _)) in seen.iter().zip(&self.history) {
            assert_eq!(found, appended);
        }
        assert!(seen.is_sorted_by_key(|seen| seen.store_timestamp), "store timestamps never decrease");
    }

    fn restart(&mut self, recovered: Recovered, survived: usize) {
        self.history.truncate(survived);
        self.acknowledged = survived;
        for (_, block) in &mut self.history {
            *block = BlockSeq(0); // sequence numbers start again
        }
        self.prepared = recovered.end.position.0.next_multiple_of(4096);
        self.log = CommitLog::new(self.config.clone(), recovered);
    }

    /// Lets everything end, and adds lone blocks behind it.
    fn settle(&mut self, lone_blocks: usize) {
        self.preparing = None;
        for _ in 0..lone_blocks {
            self.append();
            while self.log.durable() != self.log.end() {
                self.prepare();
                self.submit();
                self.complete_one();
            }
        }
    }
}

/// A hundred lives of each kind in every test run; PROPTEST_CASES asks for more.
fn lives() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|count| count.parse().ok()).unwrap_or(100);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(lives())]

    #[test]
    fn no_crash_loses_or_reorders_what_was_acknowledged(seed in any::<u64>()) {
        let mut life = Life::new(seed);
        let steps = 50 + life.random.below(400);
        for _ in 0..steps {
            life.step();
        }
        life.crash_and_recover();
        prop_assert!(life.crashes > 0);
    }

    /// Recovery interrupted before it has written anything, again and again; then the log goes on.
    #[test]
    fn a_crash_in_the_middle_of_a_restart_changes_nothing(seed in any::<u64>()) {
        let mut life = Life::new(seed);
        for _ in 0..150 {
            life.step();
        }
        for _ in 0..4 {
            life.crash_and_recover();
            life.prepare();
        }
        life.settle(3);
        life.crash_and_recover();
    }

    /// Acknowledged blocks rot. Those that later blocks bear witness of are reported, and cost only themselves.
    #[test]
    fn damage_in_the_middle_costs_only_the_blocks_it_hits(seed in any::<u64>()) {
        let mut life = Life::new(seed);
        for _ in 0..200 {
            life.step();
        }
        life.settle(2);
        let victims_end = life.log.durable().0;
        // The last block before this point may still lack a witness: two lone blocks follow.
        life.settle(2);
        let history = life.history.clone();
        let mut hit = Vec::new();
        for _ in 0..=life.random.below(4) {
            let at = life.random.below(victims_end);
            let position = PhysicalOffset(at);
            if let Some(span) = life.log.blocks().containing(position) {
                let segment_bytes = life.config.segment_bytes;
                let segment = life.disk.segments.get_mut(&(at - at % segment_bytes)).unwrap();
                let byte = &mut segment[(at % segment_bytes) as usize];
                *byte ^= if hit.iter().any(|(_, hit_at)| *hit_at == at) { 0 } else { 1 << life.random.below(8) };
                hit.push((span, at));
            }
        }
        let (recovered, report, seen) = recover_all(&mut life.disk, &life.config);
        let is_hit = |position: PhysicalOffset| {
            hit.iter().any(|(span, _)| (span.start..span.end()).contains(&position))
        };
        let expected: Vec<Seen> =
            history.iter().map(|(seen, _)| seen.clone()).filter(|seen| !is_hit(seen.position)).collect();
        prop_assert_eq!(&seen, &expected);
        for (span, _) in &hit {
            let reported = |damage: &Damage| {
                damage.position <= span.start && span.end().0 <= damage.position.0 + damage.bytes
            };
            prop_assert!(report.damaged.iter().any(reported), "{:?} is not in {:?}", span, report.damaged);
        }
        prop_assert_eq!(report.damaged.is_empty(), hit.is_empty());

        // And the log goes on.
        let survived = seen.len();
        life.history.retain(|(seen, _)| !is_hit(seen.position));
        life.restart(recovered, survived);
        life.settle(3);
        let (_, again, seen) = recover_all(&mut life.disk, &life.config);
        prop_assert_eq!(again.damaged, report.damaged);
        life.check_prefix(&seen);
    }
}
