use ringmq_protocol::frame::{Codec, RemotingCommand};
use ringmq_protocol::types::Opaque;

use super::*;

#[test]
fn both_codecs_are_seen_alike() {
    for codec in [Codec::RocketMq, Codec::Json] {
        let mut frame = Vec::new();
        let busy =
            RemotingCommand::response(ResponseCode::SYSTEM_BUSY, Opaque(-5), Some("x".into()), &(), "body");
        busy.encode(codec, &mut frame);
        let expected = HeadSeen { code: ResponseCode::SYSTEM_BUSY, opaque: -5, is_response: true };
        assert_eq!(peek(&frame), Some(expected), "{codec:?}");
    }
    assert_eq!(peek(&[0, 0, 0, 4, 1, 0, 0, 0]), None);
}
