//! What a push consumer took from one queue and has not finished.
//!
//! P1  the offset to commit is that of the lowest unfinished message, or of the next pull if none is unfinished:
//!     after a restart nothing is missed, and at most what was unfinished above it comes twice.
//! P2  it never moves back.

use std::collections::BTreeMap;

use ringmq_protocol::types::QueueOffset;

#[derive(Debug)]
pub(crate) struct ProcessQueue {
    /// Offset → body size of what was taken and is not finished.
    unfinished: BTreeMap<QueueOffset, usize>,
    bytes: usize,
    next: QueueOffset,
}

impl ProcessQueue {
    /// `start` is where the first pull begins.
    pub(crate) fn new(start: QueueOffset) -> Self {
        Self { unfinished: BTreeMap::new(), bytes: 0, next: start }
    }

    /// A pull brought these messages (offset and size); the next one begins at `next`.
    pub(crate) fn took(
        &mut self,
        messages: impl IntoIterator<Item = (QueueOffset, usize)>,
        next: QueueOffset,
    ) {
        for (offset, size) in messages {
            if self.unfinished.insert(offset, size).is_none() {
                self.bytes += size;
            }
        }
        self.next = self.next.max(next);
    }

    pub(crate) fn finished(&mut self, offset: QueueOffset) {
        if let Some(size) = self.unfinished.remove(&offset) {
            self.bytes -= size;
        }
    }

    pub(crate) fn commit_offset(&self) -> QueueOffset {
        self.unfinished.first_key_value().map_or(self.next, |(offset, _)| *offset)
    }

    pub(crate) fn next(&self) -> QueueOffset {
        self.next
    }

    pub(crate) fn count(&self) -> usize {
        self.unfinished.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How far the first unfinished message is behind the next pull, in offsets: what comes again after a crash.
    pub(crate) fn span(&self) -> u64 {
        self.next.0.saturating_sub(self.commit_offset().0)
    }

    /// The offsets of the first and the last unfinished message; both 0 if there is none.
    pub(crate) fn bounds(&self) -> (QueueOffset, QueueOffset) {
        let first = self.unfinished.first_key_value().map(|(offset, _)| *offset);
        let last = self.unfinished.last_key_value().map(|(offset, _)| *offset);
        (first.unwrap_or_default(), last.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(at: u64) -> QueueOffset {
        QueueOffset(at)
    }

    fn took(queue: &mut ProcessQueue, from: u64, until: u64) {
        queue.took((from..until).map(|at| (offset(at), 10)), offset(until));
    }

    #[test]
    fn the_lowest_unfinished_message_holds_the_offset() {
        let mut queue = ProcessQueue::new(offset(5));
        assert_eq!(queue.commit_offset(), offset(5));
        took(&mut queue, 5, 9);
        assert_eq!((queue.count(), queue.bytes()), (4, 40));
        queue.finished(offset(6));
        queue.finished(offset(8));
        assert_eq!((queue.commit_offset(), queue.span()), (offset(5), 4));
        queue.finished(offset(5));
        assert_eq!(queue.commit_offset(), offset(7));
        queue.finished(offset(7));
        assert_eq!(queue.commit_offset(), offset(9));
        assert_eq!((queue.count(), queue.bytes()), (0, 0));
    }

    #[test]
    fn filtered_messages_move_the_offset_once_nothing_is_unfinished() {
        let mut queue = ProcessQueue::new(offset(0));
        queue.took([(offset(3), 1)], offset(10));
        assert_eq!(queue.commit_offset(), offset(3));
        queue.took([], offset(20));
        queue.finished(offset(3));
        assert_eq!(queue.commit_offset(), offset(20));
    }

    #[test]
    fn finishing_twice_or_something_unknown_changes_nothing() {
        let mut queue = ProcessQueue::new(offset(0));
        took(&mut queue, 0, 2);
        took(&mut queue, 0, 2);
        assert_eq!(queue.bytes(), 20);
        queue.finished(offset(0));
        queue.finished(offset(0));
        queue.finished(offset(77));
        assert_eq!((queue.count(), queue.bytes(), queue.commit_offset()), (1, 10, offset(1)));
    }

    #[test]
    fn the_next_pull_never_moves_back() {
        let mut queue = ProcessQueue::new(offset(10));
        queue.took([], offset(4));
        assert_eq!(queue.next(), offset(10));
    }
}
