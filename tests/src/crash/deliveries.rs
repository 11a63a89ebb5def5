//! What consumers of one group were given, and what must hold of it. Knows neither the broker nor its protocol.
//!
//! D1  every acknowledged message is handled to its end at least once
//! D2  what is given again was not committed a while before: nobody begins further back than the group was
//! D3  in order: each message of a queue is the one behind the last, or begins a stretch that was given before; never a gap
//! D4  in order: a queue has one handler at a time, over all consumers

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A queue of the one topic that is consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Queue {
    pub shard: u16,
    pub queue: u32,
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {} on shard {}", self.queue, self.shard)
    }
}

/// A moment of this machine's clock, which all its processes share, in nanoseconds since 1970.
pub type Nanos = u64;

/// A message that was given to a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub begun: Nanos,
    /// `None` if the handler did not come to its end.
    pub ended: Option<Nanos>,
    /// Which consumer: each that was ever started has a number of its own.
    pub consumer: u32,
    pub queue: Queue,
    pub offset: u64,
}

/// What was seen of a group.
#[derive(Debug, Default)]
pub struct Deliveries {
    all: Vec<Delivery>,
    /// Places in `all` of handlers that run.
    running: BTreeMap<(u32, Queue, u64), usize>,
    /// When consumers died.
    deaths: BTreeMap<u32, Nanos>,
    /// What the broker said that the group had committed, and when it had been asked.
    commits: BTreeMap<Queue, Vec<(Nanos, u64)>>,
}

impl Deliveries {
    pub fn begun(&mut self, at: Nanos, consumer: u32, queue: Queue, offset: u64) {
        self.running.insert((consumer, queue, offset), self.all.len());
        self.all.push(Delivery { begun: at, ended: None, consumer, queue, offset });
    }

    /// The handler came to its end. False if it never began.
    pub fn ended(&mut self, at: Nanos, consumer: u32, queue: Queue, offset: u64) -> bool {
        let place = self.running.remove(&(consumer, queue, offset));
        place.is_some_and(|place| self.all[place].ended.replace(at).is_none())
    }

    /// The consumer is gone, and so are the handlers that it ran.
    pub fn died(&mut self, at: Nanos, consumer: u32) {
        self.deaths.insert(consumer, at);
        self.running.retain(|(of, ..), _| *of != consumer);
    }

    /// The broker was asked at this moment, and said that the group has committed this.
    pub fn committed(&mut self, asked: Nanos, queue: Queue, offset: u64) {
        self.commits.entry(queue).or_default().push((asked, offset));
    }

    pub fn all(&self) -> &[Delivery] {
        &self.all
    }

    /// How often a committed offset was lower than before: a consumer that gives up a queue late may do that.
    pub fn went_back(&self) -> usize {
        let falls = |polls: &Vec<(Nanos, u64)>| polls.windows(2).filter(|pair| pair[1].1 < pair[0].1).count();
        self.commits.values().map(falls).sum()
    }

    /// Messages this consumer was the last to be given, that lie at or behind what the group has committed last.
    pub fn in_flight(&self, consumer: u32) -> usize {
        let mut last: BTreeMap<(Queue, u64), u32> = BTreeMap::new();
        for delivery in &self.all {
            last.insert((delivery.queue, delivery.offset), delivery.consumer);
        }
        let committed =
            |queue: &Queue| self.commits.get(queue).and_then(|polls| polls.last()).map_or(0, |poll| poll.1);
        last.iter().filter(|((queue, offset), by)| **by == consumer && *offset >= committed(queue)).count()
    }

    /// Deliveries of a queue in the order in which they began.
    fn by_queue(&self) -> BTreeMap<Queue, Vec<Delivery>> {
        let mut queues: BTreeMap<Queue, Vec<Delivery>> = BTreeMap::new();
        for delivery in &self.all {
            queues.entry(delivery.queue).or_default().push(*delivery);
        }
        for deliveries in queues.values_mut() {
            deliveries.sort_by_key(|delivery| delivery.begun);
        }
        queues
    }

    /// Deliveries of messages that had been delivered before; and of these, those whose last consumer had died.
    pub fn repeats(&self) -> (usize, usize) {
        let (mut all, mut after_a_death) = (0, 0);
        for deliveries in self.by_queue().values() {
            let mut last = BTreeMap::new();
            for delivery in deliveries {
                if let Some(before) = last.insert(delivery.offset, delivery.consumer) {
                    all += 1;
                    after_a_death +=
                        usize::from(self.deaths.get(&before).is_some_and(|at| *at <= delivery.begun));
                }
            }
        }
        (all, after_a_death)
    }

    /// D1: those of the messages that were not handled to the end.
    pub fn unhandled<'a>(
        &self,
        acknowledged: impl IntoIterator<Item = &'a (Queue, u64)>,
    ) -> Vec<(Queue, u64)> {
        let ended = self.all.iter().filter(|delivery| delivery.ended.is_some());
        let handled: BTreeSet<(Queue, u64)> =
            ended.map(|delivery| (delivery.queue, delivery.offset)).collect();
        acknowledged.into_iter().filter(|message| !handled.contains(message)).copied().collect()
    }

    /// D2: what was given again although the group's offset was behind it at every look within `window` before.
    pub fn beyond_commits(&self, window: Nanos) -> Vec<String> {
        let mut wrong = Vec::new();
        for (queue, deliveries) in self.by_queue() {
            let polls = self.commits.get(&queue).map_or(&[][..], Vec::as_slice);
            let mut seen = BTreeSet::new();
            for delivery in deliveries {
                if seen.insert(delivery.offset) {
                    continue;
                }
                // With the last look before the window, which still held when it began.
                let from = polls
                    .partition_point(|poll| poll.0 < delivery.begun.saturating_sub(window))
                    .saturating_sub(1);
                let to = polls.partition_point(|poll| poll.0 < delivery.begun);
                let floor = polls[from..to].iter().map(|poll| poll.1).min().unwrap_or(0);
                if delivery.offset < floor {
                    let (offset, consumer) = (delivery.offset, delivery.consumer);
                    wrong.push(format!(
                        "{queue}: {offset} was given again to consumer {consumer}, though {floor} was committed"
                    ));
                }
            }
        }
        wrong
    }

    /// D3 and D4, for a group that began with the first message.
    pub fn disorder(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (queue, deliveries) in self.by_queue() {
            let mut last: Option<Delivery> = None;
            for delivery in deliveries {
                let expected = last.map_or(0, |last| last.offset + 1);
                if delivery.offset > expected {
                    let (offset, consumer) = (delivery.offset, delivery.consumer);
                    wrong.push(format!(
                        "{queue}: consumer {consumer} was given {offset} instead of {expected}"
                    ));
                }
                if let Some(last) = last {
                    // What died with its consumer ended then.
                    let end = last.ended.or_else(|| self.deaths.get(&last.consumer).copied());
                    if end.is_none_or(|end| end > delivery.begun) {
                        wrong.push(format!(
                            "{queue}: consumer {} was given {} while consumer {} had {}",
                            delivery.consumer, delivery.offset, last.consumer, last.offset
                        ));
                    }
                }
                last = Some(delivery);
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: Queue = Queue { shard: 1, queue: 3 };

    /// Each of these handlers takes 5 ns from its moment on.
    fn given(steps: &[(Nanos, u32, u64)]) -> Deliveries {
        let mut deliveries = Deliveries::default();
        for (at, consumer, offset) in steps {
            deliveries.begun(*at, *consumer, QUEUE, *offset);
            assert!(deliveries.ended(at + 5, *consumer, QUEUE, *offset));
        }
        deliveries
    }

    #[test]
    fn what_follows_or_repeats_is_in_order() {
        assert!(
            given(&[(0, 1, 0), (10, 1, 1), (20, 2, 1), (30, 2, 2), (40, 3, 0), (50, 3, 1)])
                .disorder()
                .is_empty()
        );
    }

    #[test]
    fn a_gap_is_found_at_the_start_in_the_middle_and_behind_a_repeat() {
        for steps in [
            &[(0, 1, 1)][..],
            &[(0, 1, 0), (10, 1, 2)],
            &[(0, 1, 0), (10, 1, 1), (20, 1, 2), (30, 2, 0), (40, 2, 2)],
        ] {
            assert_eq!(given(steps).disorder().len(), 1, "{steps:?}");
        }
    }

    #[test]
    fn two_at_once_are_found_unless_one_had_died() {
        assert_eq!(given(&[(0, 1, 0), (4, 2, 0)]).disorder().len(), 1);
        let mut deliveries = given(&[(0, 1, 0)]);
        deliveries.begun(10, 1, QUEUE, 1);
        deliveries.died(15, 1);
        deliveries.begun(20, 2, QUEUE, 1);
        assert!(deliveries.disorder().is_empty());
        deliveries.begun(30, 3, QUEUE, 2);
        assert_eq!(deliveries.disorder().len(), 1, "consumer 2 lives and has not ended");
    }

    #[test]
    fn handled_means_to_the_end() {
        let mut deliveries = given(&[(0, 1, 0)]);
        deliveries.begun(10, 1, QUEUE, 1);
        let sent: Vec<_> = (0..3).map(|offset| (QUEUE, offset)).collect();
        assert_eq!(deliveries.unhandled(&sent), sent[1..]);
        assert!(deliveries.ended(11, 1, QUEUE, 1));
        assert!(!deliveries.ended(12, 1, QUEUE, 1), "it has ended already");
        assert_eq!(deliveries.unhandled(&sent), sent[2..]);
    }

    #[test]
    fn repeats_are_counted_and_those_after_a_death_apart() {
        let mut deliveries = given(&[(0, 1, 0), (10, 1, 1), (40, 2, 1), (50, 3, 0)]);
        assert_eq!(deliveries.repeats(), (2, 0));
        deliveries.died(30, 1);
        assert_eq!(deliveries.repeats(), (2, 2));
        deliveries.committed(5, QUEUE, 1);
        assert_eq!((deliveries.in_flight(2), deliveries.in_flight(3)), (1, 0));
    }

    #[test]
    fn a_repeat_of_what_was_committed_is_found() {
        let mut deliveries = given(&[(0, 1, 0), (10, 1, 1), (100, 2, 0)]);
        assert!(deliveries.beyond_commits(50).is_empty(), "nothing was committed");
        deliveries.committed(20, QUEUE, 0);
        deliveries.committed(80, QUEUE, 1);
        assert!(deliveries.beyond_commits(50).is_empty(), "it was not committed a while before");
        assert_eq!(deliveries.beyond_commits(10).len(), 1);
        deliveries.committed(90, QUEUE, 0);
        assert_eq!(deliveries.went_back(), 1);
        assert!(deliveries.beyond_commits(10).is_empty(), "the offset went back meanwhile");
    }
}
