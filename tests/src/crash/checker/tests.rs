//! Each kind of violation is found, and nothing else.

use super::*;
use crate::crash::history::{Attempt, Commit};

const QUEUE: QueueKey = QueueKey { shard: 0, topic: "CrashMany", queue: 0 };
const OTHER: QueueKey = QueueKey { shard: 0, topic: "CrashMany", queue: 1 };

fn id(sequence: u32) -> MessageId {
    MessageId { producer: 1, sequence }
}

fn stored(sequence: u32) -> Stored {
    Stored { id: Some(id(sequence)), is_intact: true }
}

/// Messages 0 to 3 were acknowledged at offsets 10 to 13, 4 is of unknown fate, 5 was refused. A consumer saw
/// offset 11 and committed 12. A topic was made.
fn history() -> History {
    let acknowledged = (10..14).map(Fate::Acknowledged);
    let fates = acknowledged.chain([Fate::Unknown, Fate::Refused]);
    let attempts = fates.map(|fate| Attempt { queue: QUEUE, fate }).collect();
    History {
        attempts: BTreeMap::from([(1, attempts)]),
        seen: BTreeMap::from([(QUEUE, BTreeMap::from([(11, stored(1))]))]),
        commits: BTreeMap::from([(QUEUE, Commit { acknowledged: 12, attempted: 13 })]),
        topics: BTreeMap::from([((0, "Made".to_owned()), 4)]),
    }
}

fn queue(min: u64, sequences: &[u32]) -> QueueContents {
    let messages: Vec<_> = (min..).zip(sequences.iter().map(|sequence| stored(*sequence))).collect();
    QueueContents { min, max: min + messages.len() as u64, messages, committed: Some(12) }
}

fn survey(contents: QueueContents) -> Survey {
    Survey {
        queues: BTreeMap::from([(QUEUE, contents)]),
        topics: BTreeMap::from([((0, "Made".to_owned()), 4)]),
        log_bytes: 0,
    }
}

fn kinds(survey: &Survey) -> Vec<Kind> {
    check(&history(), survey).into_iter().map(|violation| violation.kind).collect()
}

#[test]
fn what_was_promised_is_enough_and_unknown_ones_may_be_there() {
    assert_eq!(kinds(&survey(queue(10, &[0, 1, 2, 3]))), []);
    assert_eq!(kinds(&survey(queue(10, &[0, 1, 2, 3, 4]))), []);
}

#[test]
fn a_missing_message_is_lost() {
    assert_eq!(kinds(&survey(queue(10, &[0, 1, 2]))), [Kind::Lost]);
}

#[test]
fn a_message_at_another_offset_is_lost() {
    assert_eq!(kinds(&survey(queue(10, &[0, 1, 2, 4, 3]))), [Kind::OutOfOrder, Kind::Lost]);
}

#[test]
fn what_a_consumer_saw_must_not_change() {
    let mut contents = queue(10, &[0, 1, 2, 3]);
    contents.messages[1].1 = Stored { id: Some(MessageId { producer: 2, sequence: 0 }), is_intact: true };
    assert_eq!(kinds(&survey(contents)), [Kind::Alien, Kind::Lost, Kind::Phantom]);
    let mut history = history();
    history.attempts.clear();
    let violations = check(&history, &survey(queue(10, &[])));
    assert_eq!(violations.iter().map(|violation| violation.kind).collect::<Vec<_>>(), [Kind::Phantom]);
}

#[test]
fn two_copies_are_one_too_many() {
    assert_eq!(kinds(&survey(queue(10, &[0, 1, 2, 3, 4, 4]))), [Kind::Duplicated, Kind::OutOfOrder]);
    let mut survey = survey(queue(10, &[0, 1, 2, 3]));
    survey.queues.insert(OTHER, QueueContents { committed: None, ..queue(0, &[4]) });
    assert_eq!(kinds(&survey), [Kind::Alien]);
}

#[test]
fn a_refused_message_must_not_appear() {
    assert_eq!(kinds(&survey(queue(10, &[0, 1, 2, 3, 4, 5]))), [Kind::Alien]);
}

#[test]
fn wrong_bytes_are_damage() {
    let mut contents = queue(10, &[0, 1, 2, 3]);
    contents.messages[2].1.is_intact = false;
    assert_eq!(kinds(&survey(contents)), [Kind::Damaged]);
}

#[test]
fn offsets_are_dense() {
    let mut contents = queue(10, &[0, 1, 2, 3, 4]);
    contents.messages[4].0 = 15;
    contents.max = 16;
    assert_eq!(kinds(&survey(contents.clone())), [Kind::Gap]);
    contents.messages.truncate(4);
    assert_eq!(kinds(&survey(contents)), [Kind::Gap], "the maximum says that there is more");
}

#[test]
fn a_committed_offset_neither_goes_back_nor_ahead() {
    for (committed, wrong) in
        [(Some(12), false), (Some(13), false), (Some(11), true), (Some(14), true), (None, true)]
    {
        let contents = QueueContents { committed, ..queue(10, &[0, 1, 2, 3]) };
        assert_eq!(!kinds(&survey(contents)).is_empty(), wrong, "{committed:?}");
    }
}

#[test]
fn a_created_topic_stays() {
    let mut survey = survey(queue(10, &[0, 1, 2, 3]));
    survey.topics.insert((0, "Made".to_owned()), 3);
    assert_eq!(kinds(&survey), [Kind::Topic]);
    survey.topics.clear();
    assert_eq!(kinds(&survey), [Kind::Topic]);
}

#[test]
fn a_violation_is_counted_once_and_a_survey_is_remembered() {
    let mut history = history();
    let found = survey(queue(10, &[0, 1, 2]));
    assert_eq!(check(&history, &found).len(), 1);
    history.settle(&found);
    assert_eq!(check(&history, &found), []);
    // Offset 12 was never consumed, but the survey saw it.
    let kinds: Vec<_> = check(&history, &survey(queue(10, &[0, 1]))).into_iter().map(|v| v.kind).collect();
    assert_eq!(kinds, [Kind::Lost, Kind::Phantom]);
}

#[test]
fn what_was_deleted_at_the_beginning_is_not_lost_and_nothing_else_is_excused() {
    let late = survey(queue(12, &[2, 3]));
    assert_eq!(kinds(&late), [Kind::Lost, Kind::Lost, Kind::Phantom]);
    let mut history = history();
    assert_eq!(history.forget_deleted(&late), 2);
    assert_eq!(check(&history, &late), []);
    let lost_behind = check(&history, &survey(queue(12, &[2])));
    assert_eq!(lost_behind.into_iter().map(|violation| violation.kind).collect::<Vec<_>>(), [Kind::Lost]);
}
