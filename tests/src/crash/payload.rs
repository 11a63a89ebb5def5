//! A message tells who it is, and its bytes follow from that: a wrong byte is a wrong message.

use super::history::{MessageId, QueueKey, Stored};

/// The property that names a message; bodies of one byte have no room for it.
pub const ID: &str = "CRASH_ID";

/// Value of the property `ID`.
pub fn id_text(id: MessageId, queue: QueueKey, len: usize) -> String {
    let QueueKey { shard, topic, queue } = queue;
    format!("{}.{}.{shard}.{topic}.{queue}.{len}", id.producer, id.sequence)
}

/// The body of a message: pseudo-random, so that no stretch of it is like a stretch of another.
pub fn body(id: MessageId, len: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(len.next_multiple_of(8));
    let mut state = (u64::from(id.producer) << 32 | u64::from(id.sequence)) ^ (len as u64).rotate_left(48);
    while body.len() < len {
        // SplitMix64: a counter, and a mix of it.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        body.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    body.truncate(len);
    body
}

/// What came back from `queue`: which message it says it is, and whether it is that, byte by byte.
pub fn recognise(queue: QueueKey, id_text_found: Option<&str>, body_found: &[u8]) -> Stored {
    let id = id_text_found.and_then(|text| {
        let (producer, rest) = text.split_once('.')?;
        let (sequence, _) = rest.split_once('.')?;
        Some(MessageId { producer: producer.parse().ok()?, sequence: sequence.parse().ok()? })
    });
    let is_intact = id.is_some_and(|id| {
        id_text_found == Some(&*id_text(id, queue, body_found.len()))
            && body_found == body(id, body_found.len())
    });
    Stored { id, is_intact }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: QueueKey = QueueKey { shard: 1, topic: "CrashOne", queue: 0 };
    const ID: MessageId = MessageId { producer: 7, sequence: 12 };

    #[test]
    fn a_message_is_recognised() {
        for len in [1, 7, 8, 1000] {
            let text = id_text(ID, QUEUE, len);
            let stored = recognise(QUEUE, Some(&text), &body(ID, len));
            assert_eq!(stored, Stored { id: Some(ID), is_intact: true });
        }
    }

    #[test]
    fn a_wrong_bit_length_queue_or_name_is_noticed() {
        let text = id_text(ID, QUEUE, 100);
        let mut wrong = body(ID, 100);
        wrong[99] ^= 1;
        assert!(!recognise(QUEUE, Some(&text), &wrong).is_intact);
        assert!(!recognise(QUEUE, Some(&text), &body(ID, 99)).is_intact);
        assert!(!recognise(QueueKey { queue: 1, ..QUEUE }, Some(&text), &body(ID, 100)).is_intact);
        assert_eq!(recognise(QUEUE, None, b""), Stored { id: None, is_intact: false });
        assert_eq!(recognise(QUEUE, Some("7.x"), b"").id, None);
    }
}
