//! Consumer groups across processes: locks, settings, membership, questions to clients.

use bytes::Bytes;
use ringmq_protocol::body::{
    Body, ConsumerConnection, LockBatchBody, LockBatchResult, MessageQueue, SubscriptionGroupConfig,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::request::{
    GetConsumerConnectionListRequest, GetConsumerRunningInfoRequest, GetSubscriptionGroupConfigRequest,
};
use ringmq_tests::{Broker, Raw};

use crate::requests::heartbeat;

fn lock_body(client_id: &str, queues: std::ops::Range<i32>) -> Bytes {
    let mq_set = queues.map(|id| MessageQueue::new("Ordered", "broker-a-0", id)).collect();
    let (client_id, consumer_group) = (client_id.to_owned(), "orderly".to_owned());
    LockBatchBody { client_id, consumer_group, mq_set, only_this_broker: false }.to_json().into()
}

/// The queues that the client holds now, of those it asks for.
fn lock(raw: &mut Raw, client_id: &str, queues: std::ops::Range<i32>) -> Vec<i32> {
    let response = raw.call(RequestCode::LOCK_BATCH_MQ, &(), lock_body(client_id, queues));
    assert_eq!(response.code, 0, "{response:?}");
    let result = LockBatchResult::from_json(&response.body).expect("a lock's answer");
    let mut ids: Vec<i32> = result.lock_ok_mq_set.iter().map(|queue| queue.queue_id).collect();
    ids.sort_unstable();
    ids
}

/// Two clients want the same queues, and the broker is killed again and again while locks come and go. What one client was
/// told that it holds the other one never gets, until it was given up.
#[test]
fn a_lock_that_was_answered_has_one_holder_across_kills() {
    let mut broker = Broker::start(1);
    for round in 0..3 {
        let (mine, next) = (round * 4..round * 4 + 4, round * 4 + 4..round * 4 + 8);
        {
            let mut one = Raw::connect(broker.address(0));
            let mut two = Raw::connect(broker.address(0));
            assert_eq!(lock(&mut one, "one", mine.clone()), mine.clone().collect::<Vec<_>>());
            assert_eq!(lock(&mut two, "two", mine.start..next.end), next.clone().collect::<Vec<_>>());
        }
        broker.kill9();
        broker.restart();
        let mut one = Raw::connect(broker.address(0));
        let mut two = Raw::connect(broker.address(0));
        assert_eq!(lock(&mut two, "two", mine.start..next.end), next.clone().collect::<Vec<_>>());
        assert_eq!(lock(&mut one, "one", mine.start..next.end), mine.clone().collect::<Vec<_>>());

        // What was given up is free, before and after a kill.
        let given_up = two.call(RequestCode::UNLOCK_BATCH_MQ, &(), lock_body("two", next.clone()));
        assert_eq!(given_up.code, 0, "{given_up:?}");
        drop((one, two));
        broker.kill9();
        broker.restart();
        let mut one = Raw::connect(broker.address(0));
        assert_eq!(lock(&mut one, "one", next.clone()), next.clone().collect::<Vec<_>>());
        let given_up = one.call(RequestCode::UNLOCK_BATCH_MQ, &(), lock_body("one", next.clone()));
        assert_eq!(given_up.code, 0, "{given_up:?}");
    }
}

#[test]
fn settings_of_a_group_survive_a_kill() {
    let mut broker = Broker::start(1);
    let config = SubscriptionGroupConfig { retry_max_times: 2, ..SubscriptionGroupConfig::new("patient") };
    let mut raw = Raw::connect(broker.address(0));
    let put = raw.call(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &(), config.to_json());
    assert_eq!(put.code, 0, "{put:?}");
    drop(raw);
    broker.kill9();
    broker.restart();
    let mut raw = Raw::connect(broker.address(0));
    let asked = GetSubscriptionGroupConfigRequest { group: "patient".into() };
    let answer = raw.call(RequestCode::GET_SUBSCRIPTIONGROUP_CONFIG, &asked, Bytes::new());
    assert_eq!(SubscriptionGroupConfig::from_json(&answer.body), Ok(config));
}

/// A client over a raw connection: it says who it is, is asked something by a tool, and answers.
#[test]
fn a_tool_reaches_a_client_through_the_broker() {
    let broker = Broker::start(1);
    let mut client = Raw::connect(broker.address(0));
    client.call(RequestCode::HEART_BEAT, &(), heartbeat("10.0.0.1@7", "asked"));
    let mut tool = Raw::connect(broker.address(0));
    let connections = GetConsumerConnectionListRequest { consumer_group: "asked".into() };
    let answer = tool.call(RequestCode::GET_CONSUMER_CONNECTION_LIST, &connections, Bytes::new());
    let connection = ConsumerConnection::from_json(&answer.body).expect("connections").connection_set;
    assert_eq!(connection[0].client_addr, client.stream().local_addr().unwrap().to_string());

    let question = |client_id: &'static str| GetConsumerRunningInfoRequest {
        consumer_group: "asked".into(),
        client_id: client_id.into(),
        jstack_enable: false,
    };
    let code = RequestCode::GET_CONSUMER_RUNNING_INFO;
    let asked = tool.send(code, &question("10.0.0.1@7"), Bytes::new()).unwrap();
    let request = loop {
        let frame = client.receive().unwrap().expect("the broker keeps the connection");
        if frame.code == code.0 && !frame.is_response() {
            break frame;
        }
    };
    assert_eq!(request.ext("clientId"), Some("10.0.0.1@7"));
    let answer = RemotingCommand::response(0, request.opaque, None, &(), "{\"properties\":{}}");
    let mut bytes = Vec::new();
    answer.encode(ringmq_protocol::frame::Codec::Json, &mut bytes);
    client.send_bytes(&bytes).unwrap();
    let told = tool.response();
    assert_eq!((told.opaque, told.code, &told.body[..]), (asked, 0, &b"{\"properties\":{}}"[..]));

    // A client that leaves instead.
    let asked = tool.send(code, &question("10.0.0.1@7"), Bytes::new()).unwrap();
    while client.receive().unwrap().expect("the question").code != code.0 {}
    drop(client);
    let told = tool.response();
    assert_eq!((told.opaque, told.code), (asked, ResponseCode::SYSTEM_ERROR.0), "{told:?}");
    let gone = tool.call(code, &question("10.0.0.1@7"), Bytes::new());
    assert_eq!(gone.code, ResponseCode::SYSTEM_ERROR.0);
    assert!(gone.remark.unwrap().contains("not online"));
}
