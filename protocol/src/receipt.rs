//! The receipt of a popped message: property `POP_CK`, field `extraInfo`.
//!
//! Eight numbers and names, one space between two of them, told apart by their places:
//!
//!   startOffset popTime invisibleTime reviveQid flag brokerName queueId msgQueueOffset

use std::fmt;

use thiserror::Error;

use crate::types::{QueueId, QueueOffset};

/// `reviveQid` of messages popped in order.
pub const REVIVE_QUEUE_ORDERED: i32 = 999;

/// Which topic a message was popped from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PopSource {
    /// The topic that was asked for.
    #[default]
    Topic,
    /// `%RETRY%<group>_<topic>`.
    RetryV1,
    /// `%RETRY%<group>+<topic>`, which only brokers make that were told to.
    RetryV2,
}

impl PopSource {
    /// The flag of receipts and of offset infos.
    pub fn flag(self) -> u8 {
        match self {
            Self::Topic => 0,
            Self::RetryV1 => 1,
            Self::RetryV2 => 2,
        }
    }

    pub fn from_flag(flag: &str) -> Option<Self> {
        match flag {
            "0" => Some(Self::Topic),
            "1" => Some(Self::RetryV1),
            "2" => Some(Self::RetryV2),
            _ => None,
        }
    }

    /// The topic that holds the message, given the one that was asked for.
    pub fn topic_of(self, group: &str, topic: &str) -> String {
        match self {
            Self::Topic => topic.to_owned(),
            Self::RetryV1 => crate::name::pop_retry_topic(group, topic),
            Self::RetryV2 => format!("{}{group}+{topic}", crate::name::RETRY_GROUP_TOPIC_PREFIX),
        }
    }
}

/// What a consumer shows to acknowledge a message or to change the time for which it is invisible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt<'a> {
    /// Offset of the first message of its queue that the same answer had.
    pub start_offset: QueueOffset,
    /// Milliseconds since 1970, on the broker's clock.
    pub pop_time: i64,
    /// Milliseconds.
    pub invisible_time: i64,
    /// [`REVIVE_QUEUE_ORDERED`] for messages popped in order.
    pub revive_queue_id: i32,
    pub source: PopSource,
    pub broker_name: &'a str,
    pub queue_id: QueueId,
    /// Of the message; some clients leave it out, as requests carry it beside the receipt.
    pub queue_offset: Option<QueueOffset>,
}

/// Why a text is no receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReceiptError {
    #[error("a receipt has at least 7 parts with spaces between them, this one has {0}")]
    TooShort(usize),
    #[error("part {place} of the receipt, {field}, makes no sense")]
    Field { place: usize, field: &'static str },
}

impl<'a> Receipt<'a> {
    pub fn is_ordered(&self) -> bool {
        self.revive_queue_id == REVIVE_QUEUE_ORDERED
    }

    /// Reads a receipt. What follows the eighth part is ignored: proxies add parts of their own.
    pub fn parse(text: &'a str) -> Result<Self, ReceiptError> {
        let mut parts = text.split(' ');
        let mut count = 0;
        let mut head = [""; 7];
        for (place, part) in head.iter_mut().zip(&mut parts) {
            *place = part;
            count += 1;
        }
        if count < head.len() {
            return Err(ReceiptError::TooShort(count));
        }
        fn number<T: std::str::FromStr>(
            text: &str,
            place: usize,
            field: &'static str,
        ) -> Result<T, ReceiptError> {
            text.parse().map_err(|_| ReceiptError::Field { place, field })
        }
        Ok(Self {
            start_offset: QueueOffset(number(head[0], 1, "the start offset")?),
            pop_time: number(head[1], 2, "the pop time")?,
            invisible_time: number(head[2], 3, "the invisible time")?,
            revive_queue_id: number(head[3], 4, "the revive queue id")?,
            source: PopSource::from_flag(head[4])
                .ok_or(ReceiptError::Field { place: 5, field: "the flag (0, 1 or 2)" })?,
            broker_name: head[5],
            queue_id: QueueId(number(head[6], 7, "the queue id")?),
            queue_offset: match parts.next() {
                Some(text) => Some(QueueOffset(number(text, 8, "the message's queue offset")?)),
                None => None,
            },
        })
    }
}

impl fmt::Display for Receipt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pop_time, invisible_time, revive_queue_id, broker_name, .. } = self;
        let (start, flag, queue_id) = (self.start_offset.0, self.source.flag(), self.queue_id.0);
        write!(f, "{start} {pop_time} {invisible_time} {revive_queue_id} {flag} {broker_name} {queue_id}")?;
        match self.queue_offset {
            Some(offset) => write!(f, " {}", offset.0),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn receipts_are_read_by_the_places_of_their_parts() {
        let text = "5 1700000000000 60000 999 1 broker-a-0 3 17";
        let receipt = Receipt::parse(text).unwrap();
        assert_eq!((receipt.start_offset, receipt.queue_id), (QueueOffset(5), QueueId(3)));
        assert_eq!((receipt.pop_time, receipt.invisible_time), (1_700_000_000_000, 60_000));
        assert_eq!((receipt.source, receipt.queue_offset), (PopSource::RetryV1, Some(QueueOffset(17))));
        assert!(receipt.is_ordered());
        assert_eq!(receipt.to_string(), text);
        assert_eq!(receipt.source.topic_of("g", "T"), "%RETRY%g_T");
        assert_eq!(Receipt::parse(&format!("{text} 4711 x")).unwrap(), receipt, "more parts");
        let short = text.rsplit_once(' ').unwrap().0;
        assert_eq!(Receipt::parse(short).unwrap(), Receipt { queue_offset: None, ..receipt });
        assert_eq!(Receipt::parse("1 2 3"), Err(ReceiptError::TooShort(3)));
        let error = Receipt::parse("5 1 60000 0 7 b 3 17").unwrap_err();
        assert_eq!(error.to_string(), "part 5 of the receipt, the flag (0, 1 or 2), makes no sense");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            numbers in any::<(u64, i64, i64, i32, u32)>(),
            flag in 0..3usize,
            broker in "[a-zA-Z0-9_-]{1,40}",
            queue_offset in any::<Option<u64>>(),
        ) {
            let (start, pop_time, invisible_time, revive_queue_id, queue_id) = numbers;
            let receipt = Receipt {
                start_offset: QueueOffset(start),
                pop_time,
                invisible_time,
                revive_queue_id,
                source: [PopSource::Topic, PopSource::RetryV1, PopSource::RetryV2][flag],
                broker_name: &broker,
                queue_id: QueueId(queue_id),
                queue_offset: queue_offset.map(QueueOffset),
            };
            let text = receipt.to_string();
            prop_assert_eq!(Receipt::parse(&text), Ok(receipt));
        }

        #[test]
        fn any_text_is_a_receipt_or_an_error(text in "[0-9a-z ]{0,60}|\\PC{0,60}") {
            if let Ok(receipt) = Receipt::parse(&text) {
                let again = receipt.to_string();
                prop_assert_eq!(Receipt::parse(&again), Ok(receipt));
            }
        }
    }
}
