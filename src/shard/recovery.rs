//! From a log to a shard: everything that a shard knows is in its log, in the indexes beside it, or is gone.
//!
//!   indexes opened, damaged ones rebuilt → log read from the newest complete checkpoint → full segments sealed on the way

use super::assignment::Assignments;
use super::checkpoint::Checkpoints;
use super::cold::ColdReads;
use super::delay::Delays;
use super::filter::Filters;
use super::groups::Groups;
use super::hold::Holds;
use super::limits::{FROZEN_SEGMENTS_MAX, INDEX_CACHE_PAGES};
use super::locks::Locks;
use super::lookups::Lookups;
use super::offsets::{Commit, Offsets};
use super::pop::{self, Flights, Pops};
use super::records::{self, kind};
use super::relay::Relay;
use super::send::Batch;
use super::topics::{QueueState, Topics, system_topics};
use super::{Counts, REGION, Shard, ShardConfig, Time};
use ringmq_protocol::body::{SetMessageRequestModeBody, TopicConfig, perm};
use ringmq_protocol::id::{OffsetMessageIds, UniqueKeys};
use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::name;
use ringmq_protocol::properties::{self, names};
use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset};
use ringmq_storage::{
    ChainPoint, CommitLog, Damage, IndexHeader, LogConfig, QueueIndex, QueueIx, Record, RecoverError,
    Recovered, RecoveryReport, SealedSegments, SegmentEnd, SegmentIndex, SegmentStore, Visitor, open_indexes,
    push_message, rebuild_index, recover, seal,
};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

/// A shard that is ready for its first turn, and what was found in its log.
pub struct Boot {
    pub shard: Shard,
    pub report: RecoveryReport,
    /// What was done about the indexes, one line each.
    pub notes: Vec<String>,
    /// What was lost, and records that were read but make no sense, one line each.
    pub problems: Vec<String>,
}

/// Lines about records that make no sense, beyond which they are only counted.
const PROBLEMS_MAX: usize = 100;

/// No stored message is shorter.
const MESSAGE_BYTES_MIN: u64 = 91;

/// What the log says, as far as it was read.
struct State {
    log: LogConfig,
    index: QueueIndex,
    queues: Vec<QueueState>,
    topics: Topics,
    groups: Groups,
    offsets: Offsets,
    flights: Flights,
    assignments: Assignments,
    /// The next offset of each delay level.
    delays: Vec<QueueOffset>,
    locks: Locks,
    checkpoints: Checkpoints,
    /// Indexes from before this reading and those that it made, oldest first.
    sealed: Vec<IndexHeader>,
    /// What lies below is in a sealed index already.
    sealed_end: PhysicalOffset,
    segments_sealed: usize,
    /// The newest index from before this reading does not go to the end of its segment.
    is_newest_stale: bool,
    notes: Vec<String>,
    problems: Vec<String>,
    /// Full segments whose index could not be written.
    unsealed: VecDeque<Arc<SegmentIndex>>,
    /// How many offsets of a queue, by `QueueIx`, damage may have taken since the queue was last heard of.
    doubt: Vec<u64>,
    /// The queue of the last message: neighbours in the log are often neighbours in a queue.
    last_queue: Option<(Box<str>, QueueId, QueueIx)>,
}

impl Shard {
    /// Reads the log in `store` and goes on where it ends. `progress` is told, a line each, of what may take long.
    pub fn boot<S: SegmentStore>(
        config: ShardConfig,
        log_config: LogConfig,
        store: &mut S,
        booted_ms: i64,
        progress: &mut dyn FnMut(String),
    ) -> Result<Boot, RecoverError> {
        let Prepared { headers, mut notes, lost, damaged } = prepare_indexes(&log_config, store, progress)?;
        let (mut state, mut recovered, mut report) = read_log(&config, &log_config, store, headers)?;
        state.problems.extend(lost);
        report.damaged.extend(damaged);
        report.damaged.sort_unstable_by_key(|damage| damage.position);
        report.damaged.dedup();
        notes.append(&mut state.notes);
        if state.segments_sealed > 0 {
            notes.push(format!("indexes of {} full segments were written", state.segments_sealed));
        }
        let own =
            [(names::MSG_REGION, REGION), (names::TRACE_ON, "true"), (names::CLUSTER, &config.cluster_name)];
        let own_properties = properties::encode(own).expect("names and values without separators").into();
        let unique_keys = UniqueKeys::new(config.address.ip(), config.address.port(), config.key_salt);
        for (queue, offsets) in state.doubt.iter().enumerate().filter(|(_, offsets)| **offsets > 0) {
            // No offset is ever given twice: those that the damage may have taken are left out.
            if !state.queues[queue].is_removed {
                state.index.skip(QueueIx(queue as u32), *offsets);
            }
        }
        for (queue, state_of) in state.queues.iter_mut().enumerate().filter(|(_, queue)| !queue.is_removed) {
            // What recovery found is on disk, so it is there for consumers.
            state_of.visible = state.index.max(QueueIx(queue as u32));
        }
        for topic in state.topics.sorted() {
            for queue in topic.known_queues() {
                topic.pass_times(&mut state.queues[queue.0 as usize]);
            }
        }
        if let Some(newest) = state.sealed.last() {
            recovered.blocks.remove_through(newest.base);
        }
        let mut sealed =
            SealedSegments::new(log_config.identity(), log_config.segment_bytes, INDEX_CACHE_PAGES);
        state.sealed.into_iter().for_each(|header| sealed.push(header));
        state.checkpoints.on_recovered();
        let schedule = state.topics.get(name::RMQ_SYS_SCHEDULE_TOPIC).expect("every broker has it");
        state.delays.resize(state.delays.len().max(schedule.queue_count() as usize), QueueOffset(0));
        let message_ids = OffsetMessageIds::new(config.address);
        let shard = Shard {
            delays: Delays::new(config.delays.clone(), &state.delays),
            config,
            now: Time::default(),
            active: recovered.blocks.last(),
            cold: ColdReads::new(log_config.segment_bytes),
            log: CommitLog::new(log_config, recovered),
            index: state.index,
            frozen: state.unsealed,
            sealed,
            lookups: Lookups::default(),
            checkpoints: state.checkpoints,
            releasing: Vec::new(),
            releases: 0,
            next_read: 0,
            queues: state.queues,
            topics: state.topics,
            groups: state.groups,
            filters: Filters::default(),
            offsets: state.offsets,
            locks: state.locks,
            holds: Holds::default(),
            relay: Relay::default(),
            pops: Pops::new(state.flights),
            assignments: state.assignments,
            pending: VecDeque::new(),
            spare_pending: Vec::new(),
            unique_keys,
            own_properties,
            ids: String::new(),
            batch: Batch::default(),
            message_ids,
            round_robin: 0,
            has_reported_poison: false,
            is_preparing: false,
            registrations: BTreeMap::new(),
            next_ticket: 0,
            booted_ms,
            counts: Counts::default(),
            flush_offsets_at_ms: None,
            scan_clients_at_ms: 0,
        };
        Ok(Boot { shard, report, notes, problems: state.problems })
    }
}

/// What is known before the log is read.
struct Prepared {
    /// Of all sealed segments, oldest first.
    headers: Vec<IndexHeader>,
    notes: Vec<String>,
    /// Segments that are gone, a line each.
    lost: Vec<String>,
    damaged: Vec<Damage>,
}

/// Opens the indexes that there are, and writes those anew that are missing.
fn prepare_indexes<S: SegmentStore>(
    log: &LogConfig,
    store: &mut S,
    progress: &mut dyn FnMut(String),
) -> Result<Prepared, RecoverError> {
    let found = open_indexes(store, log)?;
    let mut headers = found.sealed;
    let (mut notes, mut lost, mut all_damaged) = (Vec::new(), Vec::new(), Vec::new());
    let count = found.to_rebuild.len();
    for (number, (base, problem)) in found.to_rebuild.into_iter().enumerate() {
        progress(format!("writing the index of segment {base} anew, {} of {count}: {problem}", number + 1));
        let at = headers.partition_point(|header| header.base < base);
        // Without an older index the log has to be read from here.
        let start = ChainPoint { position: PhysicalOffset(base.0), ..ChainPoint::default() };
        let replay_from = at.checked_sub(1).map_or(start, |before| headers[before].replay_from);
        // No start without it: consumers would pass over the segment as if it held nothing.
        let (header, damaged) = rebuild_index(store, log, base, replay_from)?;
        notes.push(format!("the index of segment {base} was written anew: {problem}"));
        all_damaged.extend(damaged);
        headers.insert(at, header);
    }
    for (base, problem) in found.refused {
        notes.push(format!("the index of segment {base} cannot be used: {problem}"));
    }
    for header in found.lost {
        let (base, messages) = (header.base, header.messages);
        // A segment that retention deleted is older than all others, and its index goes before it.
        lost.push(format!(
            "segment {base} is missing: its {messages} messages are lost, readers go on behind it"
        ));
    }
    Ok(Prepared { headers, notes, lost, damaged: all_damaged })
}

/// Reads the log from the newest complete checkpoint on; from an older one if that stretch of the log is damaged.
fn read_log<S: SegmentStore>(
    config: &ShardConfig,
    log: &LogConfig,
    store: &mut S,
    mut headers: Vec<IndexHeader>,
) -> Result<(State, Recovered, RecoveryReport), RecoverError> {
    let mut damaged_starts = 0;
    loop {
        let mut starts: Vec<ChainPoint> = headers.iter().map(|header| header.replay_from).collect();
        starts.dedup();
        let from = starts.len().checked_sub(1 + damaged_starts).map(|at| starts[at]);
        let mut state = State::new(config, log, headers.clone());
        let sealed_end = state.sealed_end;
        state.checkpoints.replay_from = from.unwrap_or_default();
        let (recovered, report) = recover(store, log, from, &mut state)?;
        if state.is_newest_stale || recovered.end.position < sealed_end {
            // The log went on in this segment after a crash: it had been left for the next one, of which nothing survived.
            headers.pop();
            damaged_starts = 0;
        } else if from.is_some() && report.damaged.iter().any(|damage| damage.position < sealed_end) {
            damaged_starts += 1;
        } else {
            return Ok((state, recovered, report));
        }
    }
}

impl State {
    fn new(config: &ShardConfig, log: &LogConfig, sealed: Vec<IndexHeader>) -> Self {
        let sealed_end = sealed
            .last()
            .map_or(PhysicalOffset(0), |header| PhysicalOffset(header.base.0 + log.segment_bytes));
        let mut state = State {
            log: log.clone(),
            index: QueueIndex::new(log.segment_bytes),
            queues: Vec::new(),
            topics: Topics::default(),
            groups: Groups::default(),
            offsets: Offsets::default(),
            flights: Flights::default(),
            assignments: Assignments::default(),
            delays: Vec::new(),
            locks: Locks::default(),
            checkpoints: Checkpoints::default(),
            sealed,
            sealed_end,
            segments_sealed: 0,
            is_newest_stale: false,
            notes: Vec::new(),
            problems: Vec::new(),
            unsealed: VecDeque::new(),
            doubt: Vec::new(),
            last_queue: None,
        };
        for topic in system_topics(config) {
            state.topics.put(topic, false);
        }
        state
    }

    fn apply_message(&mut self, position: PhysicalOffset, message: &StoredMessage<'_>) -> Result<(), String> {
        let queue = self.queue(message.topic(), message.queue_id());
        let offset = message.queue_offset();
        self.is_known(queue);
        if position < self.sealed_end {
            self.index.pass(queue, offset, position);
            return Ok(());
        }
        push_message(&mut self.index, queue, position, message).map_err(|error| error.to_string())
    }

    fn queue(&mut self, name: &str, queue_id: QueueId) -> QueueIx {
        if let Some((topic, id, queue)) = &self.last_queue
            && *id == queue_id
            && **topic == *name
        {
            return *queue;
        }
        if self.topics.get(name).is_none_or(|topic| queue_id.0 >= topic.queue_count()) {
            // The topic's own record comes later, or was in a block that is damaged: messages are worth more than settings.
            let queue_count = queue_id.0 + 1;
            self.topics.put(TopicConfig::new(name, queue_count, perm::READ | perm::WRITE), true);
        }
        let topic = self.topics.get_mut(name).expect("just made if it was not there");
        let queue = topic.queue(queue_id, &mut self.index, &mut self.queues);
        self.last_queue = Some((name.into(), queue_id, queue));
        queue
    }

    /// A queue says how far it is: damage before this took no offset from here on.
    fn is_known(&mut self, queue: QueueIx) {
        if let Some(offsets) = self.doubt.get_mut(queue.0 as usize) {
            *offsets = 0;
        }
    }

    fn apply_setting(
        &mut self,
        kind: u16,
        body: &[u8],
        position: PhysicalOffset,
        before: ChainPoint,
    ) -> Result<(), String> {
        match kind {
            kind::TOPIC => {
                let config: TopicConfig = serde_json::from_slice(body).map_err(|error| error.to_string())?;
                self.topics.put(config, true);
            }
            kind::GROUP => {
                self.groups.apply(body).map_err(|error| error.to_string())?;
            }
            kind::OFFSETS => {
                for commit in records::decode_commits(body) {
                    self.offsets.set(commit.ok_or("consumer offsets that cannot be read")?);
                }
            }
            kind::TOPIC_DELETED => {
                let name = std::str::from_utf8(body).map_err(|error| error.to_string())?;
                if let Some(topic) = self.topics.remove(name) {
                    for queue in topic.known_queues() {
                        self.queues[queue.0 as usize] =
                            QueueState { is_removed: true, ..QueueState::default() };
                    }
                }
                self.last_queue = None;
                self.index.remove_topic(name);
                self.offsets.remove_topic(name);
                self.flights.remove_topic(name);
                self.assignments.remove_topic(name);
            }
            kind::QUEUES => {
                let (topic, marks) = records::decode_marks(body).ok_or("queues that cannot be read")?;
                for (queue_id, mark) in marks {
                    let queue = self.queue(topic, queue_id);
                    self.index.set_mark(queue, mark);
                    self.is_known(queue);
                }
            }
            kind::GIVEN_UP => {
                let topics = records::decode_given_up(body).ok_or("topics given up that cannot be read")?;
                for (topic, before) in topics {
                    // One that is not known was in a block that is damaged; it will have no messages of that time.
                    if let Some(topic) = self.topics.get_mut(topic) {
                        topic.given_up = topic.given_up.max(before);
                    }
                }
            }
            kind::DELAY => {
                for (level, next) in records::decode_levels(body).ok_or("delay levels that cannot be read")? {
                    let index = level.queue_id().0 as usize;
                    self.delays.resize(self.delays.len().max(index + 1), QueueOffset(0));
                    self.delays[index] = self.delays[index].max(next);
                }
            }
            kind::GROUP_DELETED => {
                let (with_offsets, group) =
                    records::decode_group_deleted(body).ok_or("a deleted group that cannot be read")?;
                self.groups.remove(group);
                if with_offsets {
                    self.offsets.remove_group(group);
                    self.flights.remove_group(group);
                    self.locks.remove_group(group);
                }
            }
            kind::RESETS => {
                let (is_pending, commits) =
                    records::decode_resets(body).ok_or("offset resets that cannot be read")?;
                for commit in commits {
                    let commit = commit.ok_or("offset resets that cannot be read")?;
                    match is_pending {
                        true => self.offsets.reset(commit),
                        false => drop(self.offsets.take_reset(commit.group, commit.topic, commit.queue_id)),
                    }
                }
            }
            kind::LOCKS => {
                self.locks.apply(records::decode_locks(body).ok_or("locks that cannot be read")?);
            }
            kind::POPPED => {
                for popped in pop::decode_popped(body).ok_or("popped messages that cannot be read")? {
                    let pop::Popped { group, topic, queue_id, next, attempt, flights } = popped;
                    self.offsets.set(Commit { group, topic, queue_id, offset: next });
                    self.flights.put(group, topic, queue_id, attempt, flights);
                }
            }
            kind::DONE => {
                for done in pop::decode_done(body).ok_or("messages done with that cannot be read")? {
                    for range in done.ranges {
                        self.flights.remove(done.group, done.topic, done.queue_id, range);
                    }
                }
            }
            kind::REQUEST_MODE => {
                let mode: SetMessageRequestModeBody =
                    serde_json::from_slice(body).map_err(|error| error.to_string())?;
                self.assignments.set(mode);
            }
            kind::CHECKPOINT_BEGIN => self.checkpoints.on_begin(before),
            kind::CHECKPOINT_END => self.checkpoints.on_end(position.0),
            other => return Err(format!("a setting of kind {other}, which this version does not know")),
        }
        Ok(())
    }
}

impl<S: SegmentStore> Visitor<S> for State {
    fn record(&mut self, record: Record<'_>, before: ChainPoint) {
        let (position, applied) = match record {
            Record::Message { position, message } => (position, self.apply_message(position, &message)),
            Record::Metadata { position, kind, body, .. } => {
                (position, self.apply_setting(kind, body, position, before))
            }
            Record::Gap { .. } => return,
        };
        if let Err(problem) = applied
            && self.problems.len() < PROBLEMS_MAX
        {
            self.problems.push(format!("record at {position}: {problem}"));
        }
    }

    fn segment_ended(&mut self, ended: SegmentEnd, store: &mut S) -> io::Result<bool> {
        let base = ended.blocks.base();
        if base.0 < self.sealed_end.0 {
            let is_newest = self.sealed.last().filter(|newest| newest.base == base);
            self.is_newest_stale |= is_newest.is_some_and(|newest| newest.end != ended.end);
            return Ok(true);
        }
        let index = self.index.freeze(ended.blocks, ended.end, self.checkpoints.replay_from);
        if self.unsealed.is_empty() {
            match seal(store, &self.log, &index) {
                Ok(header) => {
                    self.index.on_sealed(base);
                    self.sealed.push(header);
                    self.segments_sealed += 1;
                    return Ok(true);
                }
                Err(error) => {
                    self.notes.push(format!("the index of segment {base} cannot be written yet: {error}"));
                }
            }
        }
        // A full disk keeps nobody from starting: what does not fit there stays in memory, and is tried again.
        if self.unsealed.len() == FROZEN_SEGMENTS_MAX {
            return Err(io::Error::other("the indexes of this many segments do not fit in memory"));
        }
        self.unsealed.push_back(index);
        Ok(false)
    }

    fn damaged(&mut self, damage: Damage) {
        let most = damage.bytes / MESSAGE_BYTES_MIN;
        self.doubt.resize(self.queues.len(), 0);
        self.doubt.iter_mut().for_each(|offsets| *offsets += most);
    }
}
