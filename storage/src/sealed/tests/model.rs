//! A log without bytes: which messages there are, and, in maps, what every look-up must answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringmq_protocol::types::TagsCode;

use super::*;
use crate::segment::BlockEntry;

pub(super) fn topic(number: u32) -> TopicHash {
    TopicHash::of(&format!("topic {number}"))
}

pub(super) fn queue_key(queue: u32) -> QueueKey {
    QueueKey { topic: topic(queue / 2), queue_id: QueueId(queue % 2) }
}

pub(super) fn key_hash(key: u32) -> KeyHash {
    KeyHash::of(topic(0), format!("key {key}").as_bytes())
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Message {
        queue: u32,
        key: u8,
    },
    /// Messages in one block, each with the key of `Config`, or none.
    Burst {
        queue: u32,
        count: usize,
    },
    /// The next message is in a new block, that much later.
    Block {
        millis: i64,
    },
    /// Offsets that a damaged block took.
    Lose {
        queue: u32,
        count: u64,
    },
    NextSegment,
    /// The segment and its index are gone, and the log goes on behind it.
    LoseSegment,
    /// The segment's index was made from the segment alone.
    RebuiltSegment,
    /// The topic was deleted, and is there again.
    Recreate {
        queue: u32,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Config {
    /// Keys that are asked for.
    pub(super) keys: u32,
    pub(super) burst_key: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self { keys: 5, burst_key: None }
    }
}

#[derive(Clone, Debug, Default)]
struct Queue {
    next: u64,
    born: Option<u64>,
}

#[derive(Clone, Debug)]
struct Message {
    queue: u32,
    offset: u64,
    position: u64,
    size: u32,
    keys: Vec<u32>,
    /// Index of its block.
    block: usize,
}

#[derive(Clone, Debug)]
struct Segment {
    base: u64,
    blocks: Vec<BlockEntry>,
    messages: Vec<Message>,
    /// The next offsets of the queues with messages before the end of the segment.
    next: BTreeMap<u32, u64>,
    rebuilt: bool,
}

pub(super) struct World {
    pub(super) config: Config,
    pub(super) segment_bytes: u64,
    pub(super) now: i64,
    segments: Vec<Segment>,
    queues: BTreeMap<u32, Queue>,
}

const MESSAGE_BYTES: u32 = 16;

impl World {
    pub(super) fn run(config: Config, steps: &[Step]) -> Self {
        let mut world =
            Self { config, segment_bytes: 4 * MIB, now: 1, segments: Vec::new(), queues: BTreeMap::new() };
        world.open_segment(0);
        for step in steps {
            match step {
                Step::Message { queue, key } => world.message(*queue, vec![u32::from(*key), u32::from(*key)]),
                Step::Burst { queue, count } => {
                    let keys: Vec<u32> = world.config.burst_key.into_iter().collect();
                    (0..*count).for_each(|_| world.message(*queue, keys.clone()));
                }
                Step::Block { millis } => {
                    world.now += millis;
                    world.open_block();
                }
                Step::Lose { queue, count } => {
                    // Only a queue that there is loses offsets.
                    if let Some(queue) = world.queues.get_mut(queue) {
                        queue.next += count;
                    }
                }
                Step::NextSegment | Step::RebuiltSegment => {
                    world.next_segment(matches!(step, Step::RebuiltSegment))
                }
                Step::LoseSegment => {
                    world.next_segment(false);
                    let at = world.segments.len() - 2;
                    world.segments.remove(at);
                }
                Step::Recreate { queue } => drop(world.queues.remove(queue)),
            }
        }
        world.close_segment(false);
        world
    }

    fn open_segment(&mut self, base: u64) {
        let (blocks, messages) = (Vec::new(), Vec::new());
        self.segments.push(Segment { base, blocks, messages, next: BTreeMap::new(), rebuilt: false });
        self.open_block();
    }

    fn open_block(&mut self) {
        let store_timestamp = StoreTimestamp(self.now);
        let segment = self.segments.last_mut().unwrap();
        let relative_start = segment.blocks.last().map_or(0, |last| last.relative_start + last.len);
        segment.blocks.push(BlockEntry { relative_start, len: 48, store_timestamp });
    }

    fn close_segment(&mut self, rebuilt: bool) {
        let segment = self.segments.last_mut().unwrap();
        segment.rebuilt = rebuilt;
        let seen = self.queues.iter().filter(|(_, queue)| queue.born.is_some());
        segment.next = seen.map(|(number, queue)| (*number, queue.next)).collect();
    }

    fn next_segment(&mut self, rebuilt: bool) {
        self.close_segment(rebuilt);
        let base = self.segments.last().unwrap().base + self.segment_bytes;
        self.open_segment(base);
    }

    fn message(&mut self, number: u32, keys: Vec<u32>) {
        let segment = self.segments.last_mut().unwrap();
        let block = segment.blocks.len() - 1;
        let last = &mut segment.blocks[block];
        let position = segment.base + u64::from(last.relative_start + last.len);
        // Every size is another, so that a wrong entry is seen.
        let size = MESSAGE_BYTES + segment.messages.len() as u32 % 8;
        last.len += 24;
        let queue = self.queues.entry(number).or_default();
        queue.born.get_or_insert(position);
        segment.messages.push(Message { queue: number, offset: queue.next, position, size, keys, block });
        queue.next += 1;
    }

    /// Gives each message of a queue another key: one of 1000 to 1000 + `count`.
    pub(super) fn scatter_keys(&mut self, queue: u32, count: u32) {
        let messages = self.segments.iter_mut().flat_map(|segment| &mut segment.messages);
        for (number, message) in messages.filter(|message| message.queue == queue).enumerate() {
            message.keys = vec![1000 + number as u32 % count];
        }
    }

    pub(super) fn remove_below(&mut self, base: SegmentBase) {
        self.segments.retain(|segment| segment.base >= base.0);
    }

    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    pub(super) fn bases(&self) -> Vec<SegmentBase> {
        self.segments.iter().map(|segment| SegmentBase(segment.base)).collect()
    }

    pub(super) fn end(&self) -> u64 {
        self.segments.last().unwrap().base + self.segment_bytes
    }

    pub(super) fn queues(&self) -> Vec<u32> {
        self.queues.iter().filter(|(_, queue)| queue.born.is_some()).map(|(number, _)| *number).collect()
    }

    pub(super) fn sealed_queue(&self, queue: u32) -> SealedQueue {
        let born = self.queues[&queue].born.unwrap();
        SealedQueue { key: queue_key(queue), born: PhysicalOffset(born) }
    }

    /// The index of a segment: as it is made while the log grows (with `idle`), or from the segment alone.
    pub(super) fn index(&self, at: usize, idle: bool) -> SegmentIndex {
        let segment = &self.segments[at];
        let base = SegmentBase(segment.base);
        let mut runs: Vec<SealedRun> = Vec::new();
        let mut keys = KeyTable::new();
        for message in &segment.messages {
            let queue = queue_key(message.queue);
            let relative_position = (message.position - segment.base) as u32;
            let goes_on = runs.iter_mut().rev().find(|run| run.queue == queue);
            let goes_on = goes_on.filter(|run| run.first.0 + run.entries.len() as u64 == message.offset);
            let run = match goes_on {
                Some(run) => run,
                None => {
                    let first = QueueOffset(message.offset);
                    runs.push(SealedRun { queue, first, entries: Chunks::default() });
                    runs.last_mut().unwrap()
                }
            };
            run.entries.push(Packed {
                relative_position,
                size: message.size,
                tags_code: -(message.size as i32),
            });
            for key in &message.keys {
                keys.push(key_hash(*key), relative_position);
            }
        }
        // In another order than that of the file.
        runs.reverse();
        let is_idle = |queue: u32| idle && runs.iter().all(|run| run.queue != queue_key(queue));
        let idle: Vec<(QueueKey, QueueOffset)> = segment
            .next
            .iter()
            .filter(|(queue, _)| is_idle(**queue))
            .map(|(queue, next)| (queue_key(*queue), QueueOffset(*next)))
            .collect();
        let last = segment.blocks.last().unwrap();
        SegmentIndex {
            base,
            end: ChainPoint {
                position: PhysicalOffset(segment.base + u64::from(last.relative_start + last.len)),
                previous_crc: 0xe4d0_0000 + at as u32,
                store_timestamp: last.store_timestamp,
            },
            replay_from: ChainPoint {
                position: PhysicalOffset(segment.base / 2),
                previous_crc: 0x5e91_a700,
                store_timestamp: StoreTimestamp(0),
            },
            first_timestamp: segment.blocks[0].store_timestamp,
            blocks: Arc::new(SegmentBlocks { base, blocks: segment.blocks.clone() }),
            runs,
            idle,
            keys,
        }
    }

    pub(super) fn files(&self) -> Vec<(SegmentBase, Vec<u8>)> {
        let write = |(at, segment): (usize, &Segment)| {
            let mut file = Vec::new();
            let index = self.index(at, !segment.rebuilt);
            let header = write_index(&index, IDENTITY, self.segment_bytes, &mut file).unwrap();
            let parsed = IndexHeader::parse(&file[..PAGE_BYTES], IDENTITY, index.base, self.segment_bytes);
            assert_eq!(parsed, Ok(header), "what was written is what is read");
            (index.base, file)
        };
        self.segments.iter().enumerate().map(write).collect()
    }

    fn messages_of(&self, queue: u32) -> impl Iterator<Item = (&Segment, &Message)> {
        let born = self.queues[&queue].born.unwrap();
        self.segments
            .iter()
            .flat_map(|segment| segment.messages.iter().map(move |message| (segment, message)))
            .filter(move |(_, message)| message.queue == queue && message.position >= born)
    }

    fn entry((segment, message): (&Segment, &Message)) -> (QueueOffset, SealedEntry) {
        let block = segment.blocks[message.block];
        let entry = Entry {
            position: PhysicalOffset(message.position),
            size: message.size,
            tags_code: TagsCode(-(message.size as i32)),
        };
        let start = PhysicalOffset(segment.base + u64::from(block.relative_start));
        let entry = SealedEntry { entry, store_timestamp: block.store_timestamp, block: start };
        (QueueOffset(message.offset), entry)
    }

    pub(super) fn entries(&self, queue: u32) -> Vec<(QueueOffset, SealedEntry)> {
        self.messages_of(queue).map(Self::entry).collect()
    }

    pub(super) fn entries_of_one_segment(
        &self,
        queue: u32,
        from: u64,
        max: usize,
    ) -> Vec<(QueueOffset, SealedEntry)> {
        let mut found = self.messages_of(queue).filter(|(_, message)| message.offset >= from).peekable();
        let base = found.peek().map(|(segment, _)| segment.base);
        found.take_while(|(segment, _)| Some(segment.base) == base).take(max).map(Self::entry).collect()
    }

    pub(super) fn positions_of_key(
        &self,
        key: u32,
        begin: i64,
        end: i64,
        below: u64,
        max: usize,
    ) -> Vec<PhysicalOffset> {
        let in_time = |segment: &&Segment| {
            let (first, last) = (segment.blocks[0], segment.blocks[segment.blocks.len() - 1]);
            first.store_timestamp.0 <= end && last.store_timestamp.0 >= begin
        };
        let messages = self.segments.iter().filter(in_time).flat_map(|segment| &segment.messages);
        let mut found: Vec<PhysicalOffset> = messages
            .filter(|message| message.keys.contains(&key) && message.position < below)
            .map(|message| PhysicalOffset(message.position))
            .collect();
        found.reverse();
        found.truncate(max);
        found
    }
}
