//! What consumers send back: retried with a delay, and dead after the last time.

use super::*;
use ringmq_protocol::body::{LockBatchBody, MessageQueue};
use ringmq_protocol::message::MessageExt;
use ringmq_protocol::properties::names;
use ringmq_protocol::request::{
    ConsumerSendMsgBackRequest, DeleteSubscriptionGroupRequest, DeleteTopicRequest,
};

const RETRY: &str = "%RETRY%g";
const DEAD: &str = "%DLQ%g";
/// Milliseconds after which messages of level 3, the first of a retry, and of level 4 are due: see the tests of delays.
const FIRST_RETRY_MS: i64 = 10_001;
const SECOND_RETRY_MS: i64 = 30_001;

impl Fixture {
    fn back(&mut self, message: &MessageExt, level: i32, max: Option<i32>) -> Opaque {
        self.back_at(message.physical_offset.0, level, max)
    }

    fn back_at(&mut self, offset: u64, level: i32, max: Option<i32>) -> Opaque {
        let request = ConsumerSendMsgBackRequest {
            offset: PhysicalOffset(offset),
            group: "g".into(),
            delay_level: level,
            origin_msg_id: None,
            origin_topic: None,
            unit_mode: false,
            max_reconsume_times: max,
            broker_name: None,
        };
        self.request(RequestCode::CONSUMER_SEND_MSG_BACK, &request, &[])
    }

    fn code(&mut self, opaque: Opaque) -> i32 {
        self.answer(opaque).expect("answered").code
    }

    /// The only message of a topic.
    fn only(&mut self, topic: &str) -> MessageExt {
        let mut all = self.all(topic);
        assert_eq!(all.len(), 1, "{topic}");
        all.remove(0)
    }

    fn sent_message(&mut self) -> MessageExt {
        self.send("T", 0, "TAGS\x01red\x02KEYS\x01k\x02UNIQ_KEY\x01U\x02", b"work");
        self.settle();
        self.only("T")
    }
}

fn property<'a>(message: &'a MessageExt, name: &str) -> &'a str {
    message.message.property(name).unwrap_or_default()
}

#[test]
fn a_message_comes_back_later_each_time_and_is_dead_after_the_last_one() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let first = f.sent_message();
    let back = f.back(&first, 0, Some(2));
    assert!(f.answer(back).is_none(), "T1: not before it is on disk");
    f.settle();
    assert_eq!(f.code(back), 0);
    f.turn(FIRST_RETRY_MS - 1);
    assert_eq!(f.bodies(RETRY), [""; 0]);
    f.turn(1);
    let second = f.only(RETRY);
    let origin = first.offset_message_id().to_string();
    assert_eq!(second.reconsume_times, 1);
    for (name, value) in [
        (names::RETRY_TOPIC, "T"),
        (names::ORIGIN_MESSAGE_ID, &*origin),
        (names::REAL_TOPIC, RETRY),
        (names::DELAY_TIME_LEVEL, "3"),
        (names::TAGS, "red"),
        (names::KEYS, "k"),
        (names::UNIQ_KEY, "U"),
    ] {
        assert_eq!(property(&second, name), value, "{name}");
    }
    assert_eq!((second.born_timestamp, second.born_host), (first.born_timestamp, first.born_host));
    assert_eq!((second.message.flag, &second.message.body), (first.message.flag, &first.message.body));

    let back = f.back(&second, 0, Some(2));
    f.settle();
    assert_eq!(f.code(back), 0);
    f.turn(SECOND_RETRY_MS);
    let third = f.all(RETRY).remove(1);
    assert_eq!((third.reconsume_times, property(&third, names::DELAY_TIME_LEVEL)), (2, "4"));
    assert_eq!(
        (property(&third, names::RETRY_TOPIC), property(&third, names::ORIGIN_MESSAGE_ID)),
        ("T", &*origin)
    );
    // Nothing is there twice, however often it comes back.
    let count = |name| third.message.properties.iter().filter(|(known, _)| known == name).count();
    assert_eq!([names::REAL_TOPIC, names::RETRY_TOPIC, names::WAIT_STORE_MSG_OK].map(count), [1; 3]);

    let back = f.back(&third, 0, Some(2));
    f.settle();
    assert_eq!(f.code(back), 0);
    f.turn(0);
    let dead = f.only(DEAD);
    assert_eq!((dead.reconsume_times, property(&dead, names::RETRY_TOPIC)), (3, "T"));
    assert_eq!(
        (property(&dead, names::ORIGIN_MESSAGE_ID), property(&dead, names::DELAY_TIME_LEVEL)),
        (&*origin, "0")
    );
    let config = f.shard.topics.get(DEAD).unwrap().config.clone();
    assert_eq!((config.read_queue_nums, config.write_queue_nums, config.perm), (1, 1, 6));
    let is_told =
        |news: &News| matches!(news, News::TopicChanged { config, .. } if config.topic_name == DEAD);
    assert!(f.fx.news.iter().any(is_told), "the name servers are told");
    f.turn(10_000_000);
    assert_eq!((f.all("T").len(), f.all(RETRY).len(), f.all(DEAD).len()), (1, 2, 1));
}

#[test]
fn the_consumer_may_name_the_level_or_give_up_at_once() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let message = f.sent_message();
    let (second, dead) = (f.back(&message, 2, None), f.back(&message, -1, None));
    f.settle();
    assert_eq!((f.code(second), f.code(dead)), (0, 0));
    f.turn(5_001);
    assert_eq!((f.only(RETRY).reconsume_times, f.only(DEAD).reconsume_times), (1, 1));
}

#[test]
fn a_message_that_is_not_there_cannot_be_sent_back() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let message = f.sent_message();
    for offset in [message.physical_offset.0 + 8, 0, 1 << 40, u64::MAX >> 1] {
        let back = f.back_at(offset, 0, None);
        f.read_all();
        let answer = f.answer(back).unwrap();
        assert_eq!(answer.code, ResponseCode::SYSTEM_ERROR.0, "{offset}");
        assert!(answer.remark.unwrap().starts_with("look message by offset failed"));
    }
    f.turn(100_000);
    assert_eq!(f.bodies(RETRY), [""; 0]);
}

#[test]
fn a_group_without_retries_loses_what_it_sends_back() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let message = f.sent_message();
    let mut config = ringmq_protocol::body::SubscriptionGroupConfig::new("g");
    config.retry_queue_nums = 0;
    f.shard.groups.configs.insert("g".into(), config.clone());
    let back = f.back(&message, 0, None);
    assert_eq!(f.code(back), 0);
    assert!(f.shard.topics.get(RETRY).is_none());
    // One whose retries were stopped by an operator is told.
    config.retry_queue_nums = 1;
    config.retry_max_times = 0;
    f.shard.groups.configs.insert("g".into(), config);
    let back = f.back(&message, 0, None);
    f.settle();
    assert_eq!(f.code(back), 0);
    assert_eq!(f.only(DEAD).reconsume_times, 1, "the group's own number counts when the request has none");
    f.shard.topics.get_mut(RETRY).unwrap().config.perm = 4;
    let back = f.back(&message, 0, Some(16));
    assert_eq!(f.code(back), ResponseCode::NO_PERMISSION.0);
}

#[test]
fn old_messages_are_read_before_they_are_stored_again() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let message = f.sent_message();
    let mut f = f.restart_later(0);
    let back = f.back(&message, 1, None);
    assert!(f.answer(back).is_none() && !f.fx.reads.is_empty());
    f.read_all();
    f.settle();
    assert_eq!(f.code(back), 0);
    // A crash before it is due.
    let mut f = f.restart_later(1_001);
    f.turn(0);
    assert_eq!(f.only(RETRY).message.body, "work");
    // One that fails is said so; nothing is stored.
    let mut f = f.restart_later(0);
    let back = f.back(&message, 1, None);
    let read = f.fx.reads.pop().unwrap();
    f.shard.on_read(read.id, Err("EIO".into()), &mut f.fx);
    f.collect();
    assert_eq!(f.code(back), ResponseCode::SYSTEM_ERROR.0);
}

#[test]
fn a_group_may_be_deleted_while_its_message_is_read() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let message = f.sent_message();
    let mut f = f.restart_later(0);
    let back = f.back(&message, 1, None);
    let delete =
        DeleteSubscriptionGroupRequest { group_name: "g".into(), clean_offset: true, remove_offset: false };
    f.request(RequestCode::DELETE_SUBSCRIPTIONGROUP, &delete, &[]);
    f.request(RequestCode::DELETE_TOPIC_IN_BROKER, &DeleteTopicRequest { topic: RETRY.into() }, &[]);
    f.settle();
    f.read_all();
    f.settle();
    assert_eq!(f.code(back), 0);
    f.turn(1_001);
    assert_eq!(f.only(RETRY).message.body, "work");
}

#[test]
fn a_failed_write_refuses_what_is_sent_back() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let message = f.sent_message();
    let staged = f.back(&message, 0, None);
    let write = f.writes().remove(0);
    f.shard.on_written(write.block, Err("EIO".into()), &mut f.fx);
    f.collect();
    let late = f.back(&message, 0, None);
    for back in [staged, late] {
        assert_eq!(f.code(back), ResponseCode::SERVICE_NOT_AVAILABLE.0);
    }
}

#[test]
fn a_consumer_that_publishes_a_retry_itself_is_held_to_the_same_number() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let republish = |f: &mut Fixture, times: i32, max: Option<i32>| {
        let mut request =
            send_request(RETRY, 0, "DELAY\x011\x02RETRY_TOPIC\x01T\x02UNIQ_KEY\x01U\x02", false);
        (request.reconsume_times, request.max_reconsume_times) = (times, max);
        let sent = f.request(RequestCode::SEND_MESSAGE, &request, format!("{times}").as_bytes());
        f.settle();
        assert_eq!(f.code(sent), 0);
        f.turn(1_001);
    };
    republish(&mut f, 2, Some(2));
    assert_eq!((f.bodies(RETRY), f.shard.topics.get(DEAD).is_some()), (vec!["2".to_owned()], false));
    republish(&mut f, 3, Some(2));
    let dead = f.only(DEAD);
    assert_eq!((dead.reconsume_times, property(&dead, names::DELAY_TIME_LEVEL)), (3, "-1"));
    assert_eq!((dead.message.body.as_ref(), property(&dead, names::RETRY_TOPIC)), (&b"3"[..], "T"));
    republish(&mut f, 16, None);
    republish(&mut f, 17, None);
    assert_eq!(
        (f.bodies(RETRY), f.bodies(DEAD)),
        (vec!["2".to_owned(), "16".into()], vec!["3".to_owned(), "17".into()])
    );
    // A group that holds a lock consumes in order: what it gives up must not come again behind its neighbours.
    let lock = LockBatchBody {
        consumer_group: "g".into(),
        client_id: "c".into(),
        mq_set: vec![MessageQueue::new("T", "b-0", 0)],
        ..LockBatchBody::default()
    };
    f.request(RequestCode::LOCK_BATCH_MQ, &(), &lock.to_json());
    republish(&mut f, 1, Some(16));
    assert_eq!(f.bodies(DEAD), ["3", "17", "1"]);
    f.tick(limits::LOCK_MS);
    republish(&mut f, 1, Some(16));
    assert_eq!(f.bodies(RETRY), ["2", "16", "1"]);
}
