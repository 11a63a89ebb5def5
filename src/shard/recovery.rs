//! From the log to a shard: every record is applied in the order in which it was written.

use super::cold::ColdReads;
use super::groups::Groups;
use super::hold::Holds;
use super::locks::Locks;
use super::offsets::Offsets;
use super::records::{self, kind};
use super::topics::{QueueState, Topics, system_topics};
use super::{Counts, REGION, Shard, ShardConfig, Time};
use ringmq_protocol::body::{SubscriptionGroupConfig, TopicConfig, perm};
use ringmq_protocol::id::UniqueKeys;
use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::properties::{self, names};
use ringmq_protocol::types::{PhysicalOffset, QueueOffset, TagsCode};
use ringmq_storage::{
    CommitLog, Entry, LogConfig, QueueIndex, Record, RecoverError, RecoveryReport, SegmentStore, recover,
};
use std::collections::{BTreeMap, VecDeque};

/// A shard that has read its log.
pub struct Boot {
    pub shard: Shard,
    pub report: RecoveryReport,
    /// Records that were read but make no sense, one line each.
    pub problems: Vec<String>,
}

/// Lines about records that make no sense, beyond which they are only counted.
const PROBLEMS_MAX: usize = 100;

/// What the log says, as far as it was read.
struct State {
    index: QueueIndex,
    queues: Vec<QueueState>,
    topics: Topics,
    groups: Groups,
    offsets: Offsets,
    problems: Vec<String>,
}

impl Shard {
    /// Reads the log in `store` and goes on where it ends.
    pub fn boot(
        config: ShardConfig,
        log_config: LogConfig,
        store: &mut impl SegmentStore,
        booted_ms: i64,
    ) -> Result<Boot, RecoverError> {
        let mut state = State {
            index: QueueIndex::new(log_config.segment_bytes),
            queues: Vec::new(),
            topics: Topics::default(),
            groups: Groups::default(),
            offsets: Offsets::default(),
            problems: Vec::new(),
        };
        for topic in system_topics(&config.cluster_name, &config.broker_name, config.auto_create_topics) {
            state.topics.put(topic, false);
        }
        let (recovered, report) = recover(store, &log_config, &mut |record| state.apply(record))?;
        let own =
            [(names::MSG_REGION, REGION), (names::TRACE_ON, "true"), (names::CLUSTER, &config.cluster_name)];
        let own_properties = properties::encode(own).expect("names and values without separators").into();
        let unique_keys = UniqueKeys::new(config.address.ip(), config.address.port(), config.key_salt);
        for (queue, state_of) in state.queues.iter_mut().enumerate().filter(|(_, queue)| !queue.is_removed) {
            // What recovery found is on disk, so it is there for consumers.
            state_of.visible = state.index.max(ringmq_storage::QueueIx(queue as u32));
        }
        let shard = Shard {
            config,
            now: Time::default(),
            log: CommitLog::new(log_config, recovered),
            index: state.index,
            queues: state.queues,
            topics: state.topics,
            groups: state.groups,
            offsets: state.offsets,
            locks: Locks::default(),
            holds: Holds::default(),
            cold: ColdReads::default(),
            pending: VecDeque::new(),
            spare_pending: Vec::new(),
            unique_keys,
            own_properties,
            batch_ids: String::new(),
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
        Ok(Boot { shard, report, problems: state.problems })
    }
}

impl State {
    fn apply(&mut self, record: Record<'_>) {
        let (position, applied) = match record {
            Record::Message { position, message } => (position, self.apply_message(position, &message)),
            Record::Metadata { position, kind, body, .. } => (position, self.apply_setting(kind, body)),
        };
        if let Err(problem) = applied
            && self.problems.len() < PROBLEMS_MAX
        {
            self.problems.push(format!("record at {position}: {problem}"));
        }
    }

    fn apply_message(&mut self, position: PhysicalOffset, message: &StoredMessage<'_>) -> Result<(), String> {
        let (name, queue_id) = (message.topic(), message.queue_id());
        if self.topics.get(name).is_none_or(|topic| queue_id.0 >= topic.queue_count()) {
            // The topic's own record was in a block that is damaged: the messages are worth more than its settings.
            let queue_count = queue_id.0 + 1;
            self.topics.put(TopicConfig::new(name, queue_count, perm::READ | perm::WRITE), true);
        }
        let topic = self.topics.get_mut(name).expect("just made if it was not there");
        let queue = topic.queue(queue_id, &mut self.index, &mut self.queues);
        let size = u32::try_from(message.as_bytes().len()).map_err(|_| "longer than any block".to_owned())?;
        let tags_code = TagsCode::of(message.property(names::TAGS).unwrap_or_default());
        let offset = message.queue_offset();
        self.index
            .push_at(queue, offset, Entry { position, size, tags_code })
            .map_err(|error| error.to_string())
    }

    fn apply_setting(&mut self, kind: u16, body: &[u8]) -> Result<(), String> {
        match kind {
            kind::TOPIC => {
                let config: TopicConfig = serde_json::from_slice(body).map_err(|error| error.to_string())?;
                self.topics.put(config, true);
            }
            kind::GROUP => {
                let config: SubscriptionGroupConfig =
                    serde_json::from_slice(body).map_err(|error| error.to_string())?;
                self.groups.configs.insert(config.group_name.clone(), config);
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
                            QueueState { visible: QueueOffset(0), is_removed: true };
                    }
                }
                self.index.remove_topic(name);
                self.offsets.remove_topic(name);
            }
            other => return Err(format!("a setting of kind {other}, which this version does not know")),
        }
        Ok(())
    }
}
