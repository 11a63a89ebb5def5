//! Messages in flight: popped, invisible until a time, not acknowledged. And the records of the log that say so.
//!
//! F1  A message of a queue is in flight for a group at most once; its latest pop time tells old receipts from the right one.
//! F2  What is here is in the log: a record of kind 10 put it here, one of kind 11 takes it out.
//! F3  A message whose time is over stays here until its record says that it went elsewhere, or that it was given again.

use super::super::limits::POP_QUEUE_FLIGHTS_MAX;
use super::super::records::{long, name, number, put_name, take};
use ringmq_protocol::types::{QueueId, QueueOffset};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

/// A message in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::shard) struct Flight {
    /// What its receipt says; milliseconds since 1970, as the next.
    pub(in crate::shard) pop_time: i64,
    pub(in crate::shard) until: i64,
    /// How often it was popped before, in order mode.
    pub(in crate::shard) times: u16,
    pub(in crate::shard) is_ordered: bool,
}

/// The messages of a queue that are in flight for a group.
pub(in crate::shard) struct QueueFlights {
    pub(in crate::shard) group: Rc<str>,
    pub(in crate::shard) topic: Rc<str>,
    pub(in crate::shard) queue_id: QueueId,
    pub(in crate::shard) flights: BTreeMap<QueueOffset, Flight>,
    /// How many of them were popped in order.
    pub(in crate::shard) ordered_count: usize,
    /// Of the last pop in order: the same attempt gets the same messages again.
    pub(in crate::shard) attempt: Box<str>,
}

/// Number of a group's queue while it has messages in flight; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(in crate::shard) struct FlightsId(u64);

type Topics = BTreeMap<Rc<str>, BTreeMap<QueueId, FlightsId>>;

#[derive(Default)]
pub(in crate::shard) struct Flights {
    queues: BTreeMap<FlightsId, QueueFlights>,
    by_name: BTreeMap<Rc<str>, Topics>,
    /// When a message is to be looked at; what is found then counts.
    deadlines: BTreeSet<(i64, FlightsId, QueueOffset)>,
    count: usize,
    next_id: u64,
}

impl Flights {
    /// Messages in flight, in all.
    pub(in crate::shard) fn len(&self) -> usize {
        self.count
    }

    pub(in crate::shard) fn find(&self, group: &str, topic: &str, queue_id: QueueId) -> Option<FlightsId> {
        self.by_name.get(group)?.get(topic)?.get(&queue_id).copied()
    }

    pub(in crate::shard) fn get(&self, id: FlightsId) -> Option<&QueueFlights> {
        self.queues.get(&id)
    }

    pub(in crate::shard) fn of(&self, group: &str, topic: &str, queue_id: QueueId) -> Option<&QueueFlights> {
        self.get(self.find(group, topic, queue_id)?)
    }

    /// The flight of a message, if it is that of this receipt.
    pub(in crate::shard) fn receipted(
        &self,
        group: &str,
        topic: &str,
        queue_id: QueueId,
        offset: QueueOffset,
        pop_time: i64,
    ) -> Option<Flight> {
        let flight = self.of(group, topic, queue_id)?.flights.get(&offset)?;
        (flight.pop_time == pop_time).then_some(*flight)
    }

    pub(in crate::shard) fn all(&self) -> impl Iterator<Item = &QueueFlights> {
        self.queues.values()
    }

    /// Puts messages in flight, or changes those that are.
    pub(in crate::shard) fn put(
        &mut self,
        group: &str,
        topic: &str,
        queue_id: QueueId,
        attempt: &str,
        flights: impl IntoIterator<Item = (QueueOffset, Flight)>,
    ) {
        let mut flights = flights.into_iter().peekable();
        if flights.peek().is_none() {
            return;
        }
        let id = self.find(group, topic, queue_id).unwrap_or_else(|| self.add(group, topic, queue_id));
        let queue = self.queues.get_mut(&id).expect("found or added above");
        if *queue.attempt != *attempt {
            queue.attempt = attempt.into();
        }
        for (offset, flight) in flights {
            queue.ordered_count += usize::from(flight.is_ordered);
            match queue.flights.insert(offset, flight) {
                Some(old) => {
                    queue.ordered_count -= usize::from(old.is_ordered);
                    self.deadlines.remove(&(old.until, id, offset));
                }
                None => self.count += 1,
            }
            self.deadlines.insert((flight.until, id, offset));
        }
    }

    fn add(&mut self, group: &str, topic: &str, queue_id: QueueId) -> FlightsId {
        let id = FlightsId(self.next_id);
        self.next_id += 1;
        let (group, topic): (Rc<str>, Rc<str>) = (group.into(), topic.into());
        let topics = self.by_name.entry(group.clone()).or_default();
        topics.entry(topic.clone()).or_default().insert(queue_id, id);
        let (flights, ordered_count, attempt) = (BTreeMap::new(), 0, "".into());
        self.queues.insert(id, QueueFlights { group, topic, queue_id, flights, ordered_count, attempt });
        id
    }

    /// These messages are done with, as far as they were in flight.
    pub(in crate::shard) fn remove(
        &mut self,
        group: &str,
        topic: &str,
        queue_id: QueueId,
        offsets: Range<QueueOffset>,
    ) {
        let Some(id) = self.find(group, topic, queue_id) else { return };
        let queue = self.queues.get_mut(&id).expect("found above");
        while let Some((&offset, flight)) = queue.flights.range(offsets.clone()).next() {
            self.deadlines.remove(&(flight.until, id, offset));
            queue.ordered_count -= usize::from(flight.is_ordered);
            queue.flights.remove(&offset);
            self.count -= 1;
        }
        if queue.flights.is_empty() {
            self.remove_queue(id);
        }
    }

    fn remove_queue(&mut self, id: FlightsId) {
        let queue = self.queues.remove(&id).expect("seen by the caller");
        for (offset, flight) in &queue.flights {
            self.deadlines.remove(&(flight.until, id, *offset));
        }
        self.count -= queue.flights.len();
        let topics = self.by_name.get_mut(&queue.group).expect("named when it was added");
        let queues = topics.get_mut(&queue.topic).expect("named when it was added");
        queues.remove(&queue.queue_id);
        if queues.is_empty() {
            topics.remove(&queue.topic);
        }
        if topics.is_empty() {
            self.by_name.remove(&queue.group);
        }
    }

    /// The topic is gone, and its messages with it.
    pub(in crate::shard) fn remove_topic(&mut self, topic: &str) {
        self.remove_all(|queue| *queue.topic == *topic);
    }

    /// The group is gone, and nobody is there for whom anything could be in flight.
    pub(in crate::shard) fn remove_group(&mut self, group: &str) {
        self.remove_all(|queue| *queue.group == *group);
    }

    fn remove_all(&mut self, is_meant: impl Fn(&QueueFlights) -> bool) {
        let meant = self.queues.iter().filter(|(_, queue)| is_meant(queue)).map(|(id, _)| *id);
        for id in meant.collect::<Vec<_>>() {
            self.remove_queue(id);
        }
    }

    /// Takes out one time that has come. The message is not looked at again before `defer` or the next `put`.
    pub(in crate::shard) fn take_due(&mut self, now: i64) -> Option<(FlightsId, QueueOffset)> {
        let due = self.deadlines.first().filter(|(at, ..)| *at <= now).copied()?;
        self.deadlines.remove(&due);
        Some((due.1, due.2))
    }

    /// The message is to be looked at again at another time than its own.
    pub(in crate::shard) fn defer(&mut self, id: FlightsId, offset: QueueOffset, at: i64) {
        self.deadlines.insert((at, id, offset));
    }

    pub(in crate::shard) fn next_due(&self) -> Option<i64> {
        self.deadlines.first().map(|(at, ..)| *at)
    }

    /// All pairs of a group and a topic that have messages in flight, in order.
    pub(in crate::shard) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_name.iter().flat_map(|(group, topics)| topics.keys().map(move |topic| (&**group, &**topic)))
    }

    /// The queues of a topic that have messages in flight for a group, by id.
    pub(in crate::shard) fn queues(&self, group: &str, topic: &str) -> impl Iterator<Item = &QueueFlights> {
        let queues = self.by_name.get(group).and_then(|topics| topics.get(topic));
        queues.into_iter().flatten().map(|(_, id)| &self.queues[id])
    }
}

/// Bytes of a record of popped messages, give or take a run.
const BODY_BYTES: usize = 64 << 10;
const RUN_BYTES: usize = 31;

/// What a record of kind 10 says of one queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::shard) struct Popped<'a> {
    pub(in crate::shard) group: &'a str,
    pub(in crate::shard) topic: &'a str,
    pub(in crate::shard) queue_id: QueueId,
    /// The group's offset: the next message to be popped.
    pub(in crate::shard) next: QueueOffset,
    pub(in crate::shard) attempt: &'a str,
    pub(in crate::shard) flights: Vec<(QueueOffset, Flight)>,
}

/// Adds what is said of one queue: lengths (u8) and texts of group and topic, queue id (u32 LE), the group's offset (u64 LE),
/// length (u8) and text of the attempt, number of runs (u32 LE), then each run: first offset (u64), messages (u32), pop time
/// (i64), invisible until (i64), times popped before (u16), 1 if in order (u8). A run is messages side by side that have
/// the rest in common.
pub(in crate::shard) fn encode_popped(popped: &Popped<'_>, body: &mut Vec<u8>) {
    put_name(body, popped.group);
    put_name(body, popped.topic);
    body.extend_from_slice(&popped.queue_id.0.to_le_bytes());
    body.extend_from_slice(&popped.next.0.to_le_bytes());
    put_name(body, popped.attempt);
    let count_at = body.len();
    body.extend_from_slice(&[0; 4]);
    let runs = popped.flights.chunk_by(|(a, flight), (b, next)| b.0 == a.0 + 1 && next == flight);
    let mut count: u32 = 0;
    for run in runs {
        let (first, Flight { pop_time, until, times, is_ordered }) = run[0];
        let messages = u32::try_from(run.len()).expect("a queue's messages in flight are bounded");
        body.extend_from_slice(&first.0.to_le_bytes());
        body.extend_from_slice(&messages.to_le_bytes());
        body.extend_from_slice(&pop_time.to_le_bytes());
        body.extend_from_slice(&until.to_le_bytes());
        body.extend_from_slice(&times.to_le_bytes());
        body.push(u8::from(is_ordered));
        count += 1;
    }
    body[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
}

/// A checkpoint's records of the messages in flight in one queue.
pub(in crate::shard) fn encode_flights(queue: &QueueFlights, next: QueueOffset) -> Vec<Vec<u8>> {
    let flights: Vec<(QueueOffset, Flight)> =
        queue.flights.iter().map(|(at, flight)| (*at, *flight)).collect();
    let chunks = flights.chunks(BODY_BYTES / RUN_BYTES).map(|flights| {
        let QueueFlights { group, topic, queue_id, attempt, .. } = queue;
        let (queue_id, flights) = (*queue_id, flights.to_vec());
        let mut body = Vec::new();
        encode_popped(&Popped { group, topic, queue_id, next, attempt, flights }, &mut body);
        body
    });
    chunks.collect()
}

/// What a record of kind 10 says; `None` if the bytes make no sense.
pub(in crate::shard) fn decode_popped(mut body: &[u8]) -> Option<Vec<Popped<'_>>> {
    let rest = &mut body;
    let mut queues = Vec::new();
    while !rest.is_empty() {
        let (group, topic) = (name(rest)?, name(rest)?);
        let (queue_id, next) = (QueueId(number(rest)?), QueueOffset(long(rest)?));
        let attempt = name(rest)?;
        let mut flights = Vec::new();
        for _ in 0..number(rest)? {
            let (first, messages) = (long(rest)?, number(rest)?);
            let (pop_time, until) = (long(rest)? as i64, long(rest)? as i64);
            let times = u16::from_le_bytes(take(rest, 2)?.try_into().ok()?);
            let flight = Flight { pop_time, until, times, is_ordered: take(rest, 1)? == [1] };
            if flights.len() + messages as usize > POP_QUEUE_FLIGHTS_MAX {
                return None;
            }
            let end = first.checked_add(u64::from(messages))?;
            flights.extend((first..end).map(|offset| (QueueOffset(offset), flight)));
        }
        queues.push(Popped { group, topic, queue_id, next, attempt, flights });
    }
    Some(queues)
}

/// What a record of kind 11 says of one queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::shard) struct Done<'a> {
    pub(in crate::shard) group: &'a str,
    pub(in crate::shard) topic: &'a str,
    pub(in crate::shard) queue_id: QueueId,
    pub(in crate::shard) ranges: Vec<Range<QueueOffset>>,
}

/// Adds what is said of one queue: lengths (u8) and texts of group and topic, queue id (u32 LE), number of ranges (u32 LE), then
/// each range: first offset and the one behind the last (u64 LE each). The offsets are in order.
pub(in crate::shard) fn encode_done(
    group: &str,
    topic: &str,
    queue_id: QueueId,
    offsets: &[QueueOffset],
    body: &mut Vec<u8>,
) {
    put_name(body, group);
    put_name(body, topic);
    body.extend_from_slice(&queue_id.0.to_le_bytes());
    let ranges = offsets.chunk_by(|a, b| b.0 == a.0 + 1);
    let count = u32::try_from(ranges.clone().count()).expect("offsets of one queue are bounded");
    body.extend_from_slice(&count.to_le_bytes());
    for range in ranges {
        body.extend_from_slice(&range[0].0.to_le_bytes());
        body.extend_from_slice(&(range[range.len() - 1].0 + 1).to_le_bytes());
    }
}

/// What a record of kind 11 says; `None` if the bytes make no sense.
pub(in crate::shard) fn decode_done(mut body: &[u8]) -> Option<Vec<Done<'_>>> {
    let rest = &mut body;
    let mut queues = Vec::new();
    while !rest.is_empty() {
        let (group, topic) = (name(rest)?, name(rest)?);
        let queue_id = QueueId(number(rest)?);
        let mut ranges = Vec::new();
        for _ in 0..number(rest)? {
            ranges.push(QueueOffset(long(rest)?)..QueueOffset(long(rest)?));
        }
        // A reversed range would be a panic of who asks a map for it.
        if ranges.iter().any(|range| range.end < range.start) {
            return None;
        }
        queues.push(Done { group, topic, queue_id, ranges });
    }
    Some(queues)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flight(pop_time: i64, until: i64) -> Flight {
        Flight { pop_time, until, times: 0, is_ordered: false }
    }

    #[test]
    fn flights_are_due_once_and_gone_when_they_are_done() {
        let mut flights = Flights::default();
        let queue = QueueId(3);
        flights.put("g", "T", queue, "", (5..9).map(|at| (QueueOffset(at), flight(1, 100 + at as i64))));
        assert_eq!((flights.len(), flights.next_due()), (4, Some(105)));
        assert!(flights.receipted("g", "T", queue, QueueOffset(5), 1).is_some());
        assert!(flights.receipted("g", "T", queue, QueueOffset(5), 2).is_none(), "another receipt");
        // Its time is changed: the old one does not count any more.
        flights.put("g", "T", queue, "", [(QueueOffset(5), flight(2, 200))]);
        assert_eq!((flights.len(), flights.next_due()), (4, Some(106)));
        let id = flights.find("g", "T", queue).unwrap();
        assert_eq!(flights.take_due(105), None);
        assert_eq!(flights.take_due(107), Some((id, QueueOffset(6))));
        assert_eq!(flights.take_due(107), Some((id, QueueOffset(7))));
        assert_eq!(flights.take_due(107), None);
        flights.defer(id, QueueOffset(6), 150);
        flights.remove("g", "T", queue, QueueOffset(7)..QueueOffset(20));
        assert_eq!((flights.len(), flights.next_due()), (2, Some(150)));
        assert_eq!(flights.pairs().collect::<Vec<_>>(), [("g", "T")]);
        flights.remove("g", "T", queue, QueueOffset(0)..QueueOffset(7));
        assert_eq!((flights.len(), flights.pairs().count()), (0, 0));
        flights.put("g", "T", queue, "", [(QueueOffset(1), flight(2, 200))]);
        flights.put("g", "U", queue, "", [(QueueOffset(1), flight(2, 200))]);
        flights.put("h", "T", queue, "", [(QueueOffset(1), flight(2, 200))]);
        flights.remove_topic("T");
        assert_eq!(flights.pairs().collect::<Vec<_>>(), [("g", "U")]);
        flights.remove_group("g");
        assert_eq!((flights.len(), flights.by_name.len(), flights.queues.len()), (0, 0, 0));
    }

    prop_compose! {
        fn any_flights()(runs in prop::collection::vec((1..5u64, 1..40u64, any::<(i64, i64, u16, bool)>()), 1..20)) -> Vec<(QueueOffset, Flight)> {
            let mut next = 0;
            let mut flights = Vec::new();
            for (gap, count, (pop_time, until, times, is_ordered)) in runs {
                next += gap;
                flights.extend((next..next + count).map(|at| (QueueOffset(at), Flight { pop_time, until, times, is_ordered })));
                next += count;
            }
            flights
        }
    }

    proptest! {
        #[test]
        fn records_survive(
            queues in prop::collection::vec(("[a-z]{1,9}", "[%A-Z]{1,9}", any::<u32>(), any::<u64>(), "[a-z]{0,5}", any_flights()), 1..5),
        ) {
            let mut popped_body = Vec::new();
            let mut done_body = Vec::new();
            let mut popped = Vec::new();
            for (group, topic, queue_id, next, attempt, flights) in &queues {
                let (queue_id, next) = (QueueId(*queue_id), QueueOffset(*next));
                let offsets: Vec<QueueOffset> = flights.iter().map(|(offset, _)| *offset).collect();
                encode_done(group, topic, queue_id, &offsets, &mut done_body);
                popped.push(Popped { group, topic, queue_id, next, attempt, flights: flights.clone() });
                encode_popped(popped.last().unwrap(), &mut popped_body);
            }
            prop_assert_eq!(decode_popped(&popped_body), Some(popped.clone()));
            let done = decode_done(&done_body).unwrap();
            for (done, popped) in done.iter().zip(&popped) {
                let offsets = done.ranges.iter().flat_map(|range| range.start.0..range.end.0);
                prop_assert!(offsets.eq(popped.flights.iter().map(|(offset, _)| offset.0)));
            }
        }

        #[test]
        fn a_checkpoint_says_what_is_in_flight(flights in any_flights()) {
            let mut table = Flights::default();
            table.put("g", "T", QueueId(1), "try", flights.iter().copied());
            let mut again = Flights::default();
            for body in encode_flights(table.all().next().unwrap(), QueueOffset(7)) {
                for popped in decode_popped(&body).unwrap() {
                    again.put(popped.group, popped.topic, popped.queue_id, popped.attempt, popped.flights);
                }
            }
            let queue = again.of("g", "T", QueueId(1)).unwrap();
            prop_assert_eq!(&*queue.attempt, "try");
            prop_assert!(queue.flights.iter().map(|(at, flight)| (*at, *flight)).eq(flights));
        }

        #[test]
        fn arbitrary_bytes_end(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_popped(&body);
            let _ = decode_done(&body);
        }
    }
}
