//! Topics of this shard: settings, and the queues behind them.

use super::ShardConfig;
use super::attributes::TopicPolicy;
use super::limits::TOPIC_QUEUES_MAX;
use ringmq_protocol::body::{TopicConfig, perm};
use ringmq_protocol::name::RMQ_SYS_SCHEDULE_TOPIC;
use ringmq_protocol::types::{QueueId, QueueOffset, StoreTimestamp};
use ringmq_storage::{QueueIndex, QueueIx};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

pub(super) struct Topic {
    pub(super) config: TopicConfig,
    /// False for topics that every broker has by itself: they are in no record.
    pub(super) is_recorded: bool,
    pub(super) policy: TopicPolicy,
    /// Messages that were stored before this are given up for good.
    pub(super) given_up: StoreTimestamp,
    /// By queue id, once used.
    queues: SmallVec<[Option<QueueIx>; 8]>,
}

impl Topic {
    /// Queue ids are below this.
    pub(super) fn queue_count(&self) -> u32 {
        self.config.read_queue_nums.max(self.config.write_queue_nums)
    }

    /// The queue, made at its first use.
    pub(super) fn queue(
        &mut self,
        id: QueueId,
        index: &mut QueueIndex,
        states: &mut Vec<QueueState>,
    ) -> QueueIx {
        let slot = id.0 as usize;
        if self.queues.len() <= slot {
            self.queues.resize(slot + 1, None);
        }
        if let Some(queue) = self.queues[slot] {
            return queue;
        }
        let queue = index.queue(&self.config.topic_name, id);
        if states.len() <= queue.0 as usize {
            states.resize_with(queue.0 as usize + 1, QueueState::default);
        }
        self.pass_times(&mut states[queue.0 as usize]);
        self.queues[slot] = Some(queue);
        queue
    }

    /// Messages that were stored before this are not delivered any more; `None` if only the log's own age counts.
    pub(super) fn oldest(&self, now_ms: i64) -> Option<StoreTimestamp> {
        oldest(self.policy.retention_ms, self.given_up, now_ms)
    }

    /// Up to which time its messages are gone is kept with each of its queues too.
    pub(super) fn pass_times(&self, queue: &mut QueueState) {
        (queue.retention_ms, queue.given_up) = (self.policy.retention_ms, self.given_up);
    }

    /// The queues that were ever used.
    pub(super) fn known_queues(&self) -> impl Iterator<Item = QueueIx> {
        self.queues.iter().copied().flatten()
    }

    /// The queue, if it was ever used.
    pub(super) fn known_queue(&self, id: QueueId) -> Option<QueueIx> {
        self.queues.get(id.0 as usize).copied().flatten()
    }
}

/// See [`Topic::oldest`].
pub(super) fn oldest(
    retention_ms: Option<i64>,
    given_up: StoreTimestamp,
    now_ms: i64,
) -> Option<StoreTimestamp> {
    let by_age = StoreTimestamp(now_ms.saturating_sub(retention_ms.unwrap_or(i64::MAX)));
    Some(by_age.max(given_up)).filter(|oldest| *oldest > StoreTimestamp(0))
}

/// What consumers may see of a queue.
#[derive(Default)]
pub(super) struct QueueState {
    /// Offsets below this are there for consumers.
    pub(super) visible: QueueOffset,
    /// First offset, as it was after so many releases of segments; `None` if nobody asked yet.
    pub(super) min: QueueOffset,
    pub(super) min_releases: Option<u64>,
    /// Messages older than this are not delivered; `min` is right until the monotonic time beside it.
    pub(super) retention_ms: Option<i64>,
    /// Nor are those that were stored before this.
    pub(super) given_up: StoreTimestamp,
    pub(super) min_until_ms: i64,
    /// The queue went with its topic. Its number is not used again.
    pub(super) is_removed: bool,
}

#[derive(Default)]
pub(super) struct Topics {
    /// A message to one of ten thousand topics waits for memory at each step to its queue: names and numbers of queues lie in
    /// the table if they are as short, and as few, as most.
    by_name: FxHashMap<SmallVec<[u8; 32]>, Topic>,
}

impl Topics {
    /// Adds a topic or replaces its settings; its queues stay. The number of queues never shrinks what exists.
    pub(super) fn put(&mut self, config: TopicConfig, is_recorded: bool) {
        match self.get_mut(&config.topic_name) {
            Some(topic) => {
                topic.policy = TopicPolicy::of(&config.attributes);
                topic.config = config;
                topic.is_recorded |= is_recorded;
            }
            None => {
                let name = SmallVec::from_slice(config.topic_name.as_bytes());
                let policy = TopicPolicy::of(&config.attributes);
                let (given_up, queues) = (StoreTimestamp(0), SmallVec::new());
                self.by_name.insert(name, Topic { config, is_recorded, policy, given_up, queues });
            }
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Topic> {
        self.by_name.get(name.as_bytes())
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Topic> {
        self.by_name.get_mut(name.as_bytes())
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Topic> {
        self.by_name.remove(name.as_bytes())
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// All topics, by name.
    pub(super) fn sorted(&self) -> Vec<&Topic> {
        let mut topics: Vec<&Topic> = self.by_name.values().collect();
        topics.sort_unstable_by(|a, b| a.config.topic_name.cmp(&b.config.topic_name));
        topics
    }
}

/// Queues of RocketMQ's schedule topic, whatever its table of delays.
const SCHEDULE_QUEUES_MIN: usize = 18;

/// Topics that every broker has: the template for new topics, and those that tools look for by name.
pub(super) fn system_topics(config: &ShardConfig) -> Vec<TopicConfig> {
    let read_write = perm::READ | perm::WRITE;
    let inherit = if config.auto_create_topics { perm::INHERIT } else { 0 };
    let levels = config.delays.len().max(SCHEDULE_QUEUES_MIN) as u32; // at most DELAY_LEVELS_MAX
    vec![
        TopicConfig::new("TBW102", 8, read_write | inherit),
        TopicConfig::new(&*config.cluster_name, 16, read_write | inherit),
        TopicConfig::new(&*config.broker_name, 1, read_write | inherit),
        TopicConfig::new(RMQ_SYS_SCHEDULE_TOPIC, levels, read_write),
        TopicConfig::new("SELF_TEST_TOPIC", 1, read_write),
        TopicConfig::new("BenchmarkTest", 1024, read_write),
    ]
}

/// What is wrong with a topic's settings, if anything.
pub(super) fn check_config(config: &TopicConfig) -> Result<(), String> {
    if config.read_queue_nums.max(config.write_queue_nums) > TOPIC_QUEUES_MAX {
        return Err(format!(
            "readQueueNums {} and writeQueueNums {} must be between 0 and {TOPIC_QUEUES_MAX}",
            config.read_queue_nums, config.write_queue_nums
        ));
    }
    if !(0..=7).contains(&config.perm) {
        return Err(format!("perm {} must be between 0 and 7: 4 read, 2 write, 1 inherit", config.perm));
    }
    Ok(())
}
