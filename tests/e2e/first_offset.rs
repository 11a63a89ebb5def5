//! Where a group begins that has no offset in a queue. A client asks for its offset first; only when it is told that there is
//! none does its own rule count: first, last or a time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::request::{GetMinOffsetRequest, QueryConsumerOffsetRequest};
use ringmq_protocol::types::QueueId;
use ringmq_tests::{Broker, PATIENCE, Raw};

use crate::requests::{send, store};

const QUEUE: QueueId = QueueId(0);

/// The offset of a group that is new to a topic: the code of the answer, and what it says.
fn offset_of_a_new_group(raw: &mut Raw, topic: &str) -> (i32, Option<String>) {
    let request = QueryConsumerOffsetRequest {
        consumer_group: "new".into(),
        topic: topic.into(),
        queue_id: QUEUE,
        set_zero_if_not_found: None,
    };
    let answer = raw.call(RequestCode::QUERY_CONSUMER_OFFSET, &request, Bytes::new());
    (answer.code, answer.ext("offset").map(str::to_owned))
}

#[test]
fn a_new_group_begins_with_the_first_message_only_as_long_as_that_is_there() {
    let broker = Broker::start(1);
    let mut raw = Raw::connect(broker.address(0));
    assert_eq!(store(&mut raw, &send("Young", 0), "first"), 0);
    assert_eq!(offset_of_a_new_group(&mut raw, "Young"), (ResponseCode::SUCCESS.0, Some("0".to_owned())));

    broker.run_cli(&["topic", "create", "Aged", "--queues", "1", "--retention", "1s"]);
    assert_eq!(store(&mut raw, &send("Aged", 0), "first"), 0);
    let min = GetMinOffsetRequest { topic: "Aged".into(), queue_id: QUEUE };
    let deadline = Instant::now() + PATIENCE;
    while raw.call(RequestCode::GET_MIN_OFFSET, &min, Bytes::new()).ext("offset") != Some("1") {
        assert!(Instant::now() < deadline, "the first message does not go");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(offset_of_a_new_group(&mut raw, "Aged"), (ResponseCode::QUERY_NOT_FOUND.0, None));
}
