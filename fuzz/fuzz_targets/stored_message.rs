//! Records are read whole or not at all, and no body expands beyond its bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringmq_protocol::message::{MessageExt, messages};

const BODY_BYTES_MAX: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let mut read = 0;
    for message in messages(bytes).flatten() {
        read += message.as_bytes().len();
        let _ = message.verify_crc();
        if let Ok(owned) = MessageExt::decode(&message, BODY_BYTES_MAX) {
            assert!(owned.message.body.len() <= BODY_BYTES_MAX.max(bytes.len()));
            assert!(!owned.message_id().is_empty());
        }
    }
    assert!(read <= bytes.len());
});
