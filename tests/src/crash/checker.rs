//! Compares what was promised with what is there. Knows neither the broker nor its protocol.
//!
//! The checks are those of Jepsen for logs (lost, duplicated, inconsistent offset, order of one producer), and those
//! for consumers: what one saw must not vanish or change, and what it committed must not go back.

use super::history::{Fate, History, MessageId, QueueContents, QueueKey, Stored, Survey};
use std::collections::BTreeMap;
use std::fmt;

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Acknowledged, and not there, or not at the offset that was acknowledged.
    Lost,
    /// Twice in the logs.
    Duplicated,
    /// Behind a later message of the same producer in the same queue.
    OutOfOrder,
    /// Seen by a consumer, and gone or different now.
    Phantom,
    /// Not the bytes that were sent.
    Damaged,
    /// Nobody sent it, or not to this queue, or the broker had refused it.
    Alien,
    /// The offsets of a queue are not min, min + 1, … max − 1.
    Gap,
    /// A consumer offset went back, or to where nobody set it.
    Offset,
    /// A topic whose creation was acknowledged is not there, or has other queues.
    Topic,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Lost,
        Kind::Duplicated,
        Kind::OutOfOrder,
        Kind::Phantom,
        Kind::Damaged,
        Kind::Alien,
        Kind::Gap,
        Kind::Offset,
        Kind::Topic,
    ];

    /// As it stands behind a number.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Lost => "lost",
            Kind::Duplicated => "duplicated",
            Kind::OutOfOrder => "out of order",
            Kind::Phantom => "phantom",
            Kind::Damaged => "damaged",
            Kind::Alien => "alien",
            Kind::Gap => "gaps",
            Kind::Offset => "offsets wrong",
            Kind::Topic => "topics wrong",
        }
    }
}

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub kind: Kind,
    /// One line: what, where, and what was expected.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.what)
    }
}

/// Everything that is wrong with `survey` after `history`.
pub fn check(history: &History, survey: &Survey) -> Vec<Violation> {
    let mut check = Check { history, violations: Vec::new() };
    let places = check.contents(survey);
    check.promises(&places);
    check.consumers(survey);
    check.topics(survey);
    check.violations
}

struct Check<'a> {
    history: &'a History,
    violations: Vec<Violation>,
}

type Places = BTreeMap<MessageId, (QueueKey, u64)>;

impl Check<'_> {
    fn report(&mut self, kind: Kind, what: String) {
        self.violations.push(Violation { kind, what });
    }

    /// What is there is dense, was sent, is there once, in order, and with the right bytes.
    fn contents(&mut self, survey: &Survey) -> Places {
        let mut places = Places::new();
        for (queue, contents) in &survey.queues {
            self.offsets(queue, contents);
            let mut last_of = BTreeMap::new();
            for (offset, stored) in &contents.messages {
                let Some(id) = stored.id else {
                    self.report(Kind::Alien, format!("offset {offset} of {queue} names no message"));
                    continue;
                };
                if !stored.is_intact {
                    self.report(Kind::Damaged, format!("{id} at offset {offset} of {queue}"));
                }
                let attempt =
                    self.history.attempts.get(&id.producer).and_then(|all| all.get(id.sequence as usize));
                match attempt {
                    None => {
                        self.report(Kind::Alien, format!("{id} at offset {offset} of {queue}, never sent"))
                    }
                    Some(attempt) if attempt.queue != *queue => self.report(
                        Kind::Alien,
                        format!("{id} at offset {offset} of {queue}, sent to {}", attempt.queue),
                    ),
                    Some(attempt) if attempt.fate == Fate::Refused => {
                        self.report(
                            Kind::Alien,
                            format!("{id} at offset {offset} of {queue}, refused when sent"),
                        );
                    }
                    Some(_) => {}
                }
                if let Some((other, at)) = places.insert(id, (*queue, *offset)) {
                    self.report(
                        Kind::Duplicated,
                        format!("{id} at offset {offset} of {queue} and at offset {at} of {other}"),
                    );
                }
                if let Some(last) = last_of.insert(id.producer, id.sequence)
                    && last >= id.sequence
                {
                    self.report(
                        Kind::OutOfOrder,
                        format!("{id} at offset {offset} of {queue} is behind message {last}"),
                    );
                }
            }
        }
        places
    }

    fn offsets(&mut self, queue: &QueueKey, contents: &QueueContents) {
        let mut expected = contents.min;
        for (offset, _) in &contents.messages {
            if *offset != expected {
                self.report(Kind::Gap, format!("offset {offset} of {queue} where {expected} was to be"));
            }
            expected = offset + 1;
        }
        if expected != contents.max {
            self.report(
                Kind::Gap,
                format!("{queue} ends before offset {expected}, its maximum is {}", contents.max),
            );
        }
    }

    /// What was acknowledged is where it was acknowledged.
    fn promises(&mut self, places: &Places) {
        let history = self.history;
        for (producer, attempts) in &history.attempts {
            for (attempt, sequence) in attempts.iter().zip(0..) {
                let Fate::Acknowledged(offset) = attempt.fate else { continue };
                let id = MessageId { producer: *producer, sequence };
                let queue = attempt.queue;
                match places.get(&id) {
                    Some(place) if *place == (queue, offset) => {}
                    Some((other, at)) => self.report(
                        Kind::Lost,
                        format!(
                            "{id}, acknowledged at offset {offset} of {queue}, is at offset {at} of {other}"
                        ),
                    ),
                    None => {
                        self.report(Kind::Lost, format!("{id}, acknowledged at offset {offset} of {queue}"))
                    }
                }
            }
        }
    }

    /// What consumers saw is still there, and what they committed holds.
    fn consumers(&mut self, survey: &Survey) {
        let history = self.history;
        let nothing = QueueContents::default();
        for (queue, seen) in &history.seen {
            let contents = survey.queues.get(queue).unwrap_or(&nothing);
            let there: BTreeMap<u64, Stored> = contents.messages.iter().copied().collect();
            for (offset, stored) in seen {
                let name =
                    |stored: &Stored| stored.id.map_or("something unnamed".to_owned(), |id| id.to_string());
                if !stored.is_intact {
                    self.report(
                        Kind::Damaged,
                        format!("a consumer got {} at offset {offset} of {queue}", name(stored)),
                    );
                }
                match there.get(offset) {
                    Some(now) if now.id == stored.id => {}
                    Some(now) => self.report(
                        Kind::Phantom,
                        format!(
                            "{} was seen at offset {offset} of {queue}, now it is {}",
                            name(stored),
                            name(now)
                        ),
                    ),
                    None => self.report(
                        Kind::Phantom,
                        format!(
                            "{} was seen at offset {offset} of {queue}, now nothing is there",
                            name(stored)
                        ),
                    ),
                }
            }
        }
        for (queue, commit) in &history.commits {
            let now = survey.queues.get(queue).and_then(|contents| contents.committed).unwrap_or(0);
            if now < commit.acknowledged || now > commit.attempted {
                self.report(
                    Kind::Offset,
                    format!(
                        "the group is at {now} in {queue}; {} was acknowledged, {} was sent",
                        commit.acknowledged, commit.attempted
                    ),
                );
            }
        }
    }

    fn topics(&mut self, survey: &Survey) {
        let history = self.history;
        for ((shard, topic), queues) in &history.topics {
            let now = survey.topics.get(&(*shard, topic.clone()));
            if now != Some(queues) {
                let now = now.map_or("is not there".to_owned(), |now| format!("has {now}"));
                self.report(
                    Kind::Topic,
                    format!("{topic} on shard {shard} was made with {queues} queues, now it {now}"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
