//! Every bound of a shard, by name.

/// Longest message body, and longest sum of stored sizes of a batch. RocketMQ's `maxMessageSize`.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Longest encoded properties of a message.
pub const PROPERTIES_BYTES_MAX: usize = 32_767;
/// Longest record of the log: a batch, or a message with the longest topic, properties and addresses.
pub const RECORD_BYTES_MAX: usize = MESSAGE_BYTES_MAX + PROPERTIES_BYTES_MAX + 1024;
/// The part of `staged_bytes_max`, one by this number, that may wait for the disk while sends in async mode are still answered at
/// once: 8 MiB by default, which is what a crash can undo.
pub const ASYNC_UNDURABLE_PART: u64 = 4;
/// Messages in one pull response, whatever the client asks for.
pub const PULL_MESSAGES_MAX: usize = 1024;
/// Bytes after which a pull response takes no further message.
pub const PULL_BYTES_MAX: usize = 256 << 10;
/// Queue entries looked at for one pull before it answers with its progress.
pub const PULL_SCAN_MAX: u64 = 16_000;
/// Bytes of a read of the log for pulls and look-ups, unless blocks are longer.
pub const COLD_READ_BYTES: u32 = 512 << 10;
/// Such reads that are kept for the next pull.
pub const COLD_CACHE_COUNT: usize = 16;
/// Such reads under way. More only make a queue before the disk, which durable writes have to wait in.
pub const COLD_READS_MAX: usize = 4;
/// The same while the log is being written.
pub const COLD_READS_BESIDE_WRITES_MAX: usize = 1;
/// Messages are being sent if the log was written less than this ago: then old ones are read and given in small pieces, each of
/// which takes the shard some ten microseconds.
pub const COLD_BESIDE_WRITES_MS: i64 = 20;
/// An answer with old messages that waited longer is given even if the disk is at a write and nothing is sent.
pub const COLD_LATE_MS: i64 = 1;
/// `COLD_READ_BYTES` beside sends.
pub const COLD_READ_BYTES_BESIDE_WRITES: u32 = 192 << 10;
/// `PULL_BYTES_MAX` for old messages beside sends.
pub const COLD_PULL_BYTES_BESIDE_WRITES: usize = 64 << 10;
/// How far apart in the log messages may lie that are gathered for one answer.
pub const COLD_GATHER_BYTES: u64 = 1 << 20;
/// Pulls that gather while they wait for a read. Each may keep that much.
pub const COLD_GATHERING_MAX: usize = 64;
/// Pulls and look-ups that may wait for their turn to read.
pub const COLD_WAITING_MAX: usize = 100_000;
/// Pages of sealed indexes kept in memory, 4 KiB each.
pub const INDEX_CACHE_PAGES: usize = 4096;
/// Reads of such pages under way.
pub const INDEX_READS_MAX: usize = 64;
/// Pulls and look-ups that may wait for such pages.
pub const LOOKUPS_WAITING_MAX: usize = 100_000;
/// Entries of a sealed index looked at for one pull before it answers with its progress.
pub const SEALED_SCAN_MAX: usize = 1024;
/// Full segments whose index is still to be written; then no room is prepared for more of the log.
pub const FROZEN_SEGMENTS_MAX: usize = 4;
/// Bytes of a checkpoint written in one turn, give or take one record.
pub const CHECKPOINT_TURN_BYTES: u64 = 64 << 10;
/// Pause before a checkpoint goes on.
pub const CHECKPOINT_PAUSE_MS: i64 = 2;
/// The same when the log did not take its last piece.
pub const CHECKPOINT_RETRY_MS: i64 = 100;
/// Messages that a query by key answers with at most, whatever the client asks for.
pub const FIND_KEY_MAX: usize = 64;
/// The same for a query by unique key.
pub const FIND_UNIQUE_MAX: usize = 32;
/// Messages in one pop response.
pub const POP_MESSAGES_MAX: usize = 32;
/// Longest time a popped message may be invisible: three days.
pub const POP_INVISIBLE_MS_MAX: i64 = 3 * 24 * 3600 * 1000;
/// Messages of one queue that may be in flight for one group; beyond, the queue gives no further message to it.
pub const POP_QUEUE_FLIGHTS_MAX: usize = 20_000;
/// Messages that may be in flight in all, about 150 bytes each.
pub const POP_FLIGHTS_MAX: usize = 1_000_000;
/// Pops and notifications of one group at one queue, or at all queues of a topic, that may wait.
pub const POP_QUEUE_HOLDS_MAX: usize = 1024;
/// The same in all.
pub const POP_HOLDS_MAX: usize = 100_000;
/// Offsets that one batch of acknowledgements spans.
pub const BATCH_ACK_OFFSETS_MAX: usize = 1 << 16;
/// Messages whose time is over that are on their way to a retry topic.
pub const POP_REVIVES_MAX: usize = 1024;
/// The same begun in one turn.
pub const POP_REVIVES_TURN_MAX: usize = 256;
/// Pause before it goes on after one could not be moved.
pub const POP_REVIVE_RETRY_MS: i64 = 1_000;
/// Pairs of a topic and a group that were set to POP or PULL.
pub const REQUEST_MODES_MAX: usize = 100_000;
/// Requests that wait for the name server's route of a topic.
pub const ROUTES_WAITING_MAX: usize = 10_000;
/// Pulls that may wait for messages.
pub const HELD_PULLS_MAX: usize = 200_000;
/// Pulls that waited and are answered in one turn; the others are answered in the next ones.
pub const HOLD_ANSWERS_MAX: usize = 1024;
/// Longest SQL filter.
pub const SQL_BYTES_MAX: usize = 32 << 10;
/// Parts of an SQL filter: constants, properties, operators. A list of IN is one.
pub const SQL_NODES_MAX: usize = 1024;
/// Different properties that an SQL filter speaks of.
pub const SQL_NAMES_MAX: usize = 64;
/// SQL filters of requests that are kept compiled.
pub const SQL_CACHE_COUNT: usize = 256;
/// Bytes that an SQL filter may look at for one pull before it answers with its progress.
pub const SQL_WORK_MAX: u64 = 2 << 20;
/// How deep an SQL filter may be nested.
pub const SQL_DEPTH_MAX: usize = 64;
/// Longest time a pull may wait, whatever the client asks for.
pub const HOLD_MS_MAX: i64 = 60_000;
/// Queues of one topic.
pub const TOPIC_QUEUES_MAX: u32 = 4096;
/// Topics of a shard.
pub const TOPICS_MAX: usize = 200_000;
/// Consumer groups of a shard.
pub const GROUPS_MAX: usize = 100_000;
/// Settings of one group, as JSON.
pub const GROUP_CONFIG_BYTES_MAX: usize = 64 << 10;
/// Topics that one group may be forbidden to read.
pub const FORBIDDEN_TOPICS_MAX: usize = 1_000;
/// Queues of groups whose progress in reading is known, besides what they have committed.
pub const PULLED_MAX: usize = 1_000_000;
/// Offsets that were reset and that no consumer has taken yet.
pub const RESETS_MAX: usize = 100_000;
/// Queues whose progress a tool is shown at a time.
pub const CONSUME_STATS_MAX: usize = 50_000;
/// Pages of indexes read to show it.
pub const STATS_PAGES_MAX: usize = 1_024;
/// Questions of tools that wait for clients.
pub const RELAYS_MAX: usize = 1_024;
/// How long a client has for its answer.
pub const RELAY_MS: i64 = 10_000;
/// Entries of a queue that a tool is shown at a time.
pub const QUEUE_ENTRIES_SHOWN_MAX: usize = 1_024;
/// Consumer offsets that came without wanting an answer are made durable at least this often.
pub const OFFSETS_FLUSH_MS: i64 = 1_000;
/// A client that has sent no heartbeat for this long is no member of its groups any more.
pub const CLIENT_EXPIRY_MS: i64 = 120_000;
/// How often clients are checked for that.
pub const CLIENT_SCAN_MS: i64 = 10_000;
/// How long a queue lock lives after its holder's last request for it.
pub const LOCK_MS: i64 = 60_000;
/// Queues locked at a time.
pub const LOCKS_MAX: usize = 100_000;
/// How often it is looked at which messages of a topic are too old for it.
pub const RETENTION_CHECK_MS: i64 = 1_000;
/// Delay levels.
pub const DELAY_LEVELS_MAX: usize = 64;
/// Longest delay of a level: 366 days.
pub const DELAY_MS_MAX: i64 = 366 * 24 * 3600 * 1000;
/// Delayed messages of a level that are delivered in one turn.
pub const DELIVERY_COUNT_MAX: usize = 256;
/// Their bytes, unless a single one is longer.
pub const DELIVERY_BYTES_MAX: u64 = 256 << 10;
/// Pause before a level looks again for a message that is due but not on disk yet, or that the log did not take.
pub const DELAY_RETRY_MS: i64 = 10;
/// The same after a read that failed.
pub const DELAY_FAILED_MS: i64 = 1_000;
/// Data this close to the end of the log counts as "in memory" for the first-consume rule of RocketMQ.
pub const RECENT_BYTES: u64 = 1 << 30;

const _: () = assert!(PULL_BYTES_MAX as u32 <= COLD_READ_BYTES);
// What a delivery takes in a block: a message, or several, and the record of its level.
const _: () = assert!(2 * DELIVERY_BYTES_MAX < RECORD_BYTES_MAX as u64);
const _: () = assert!(RECORD_BYTES_MAX > MESSAGE_BYTES_MAX + PROPERTIES_BYTES_MAX);
const _: () = assert!(SQL_NODES_MAX <= u16::MAX as usize && SQL_NAMES_MAX <= SQL_NODES_MAX);
