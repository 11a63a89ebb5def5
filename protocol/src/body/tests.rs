use std::collections::BTreeMap;
use std::io::Write;

use super::*;
use crate::types::TagsCode;

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_heartbeat_of_java() {
    let heartbeat = HeartbeatData::from_json(
        br#"{"clientID":"10.0.0.5@1234#987","consumerDataSet":[{"consumeFromWhere":"CONSUME_FROM_FIRST_OFFSET",
            "consumeType":"CONSUME_ACTIVELY","groupName":"g","messageModel":"BROADCASTING","subscriptionDataSet":[
            {"classFilterMode":false,"codeSet":[2598919],"expressionType":"TAG","subString":"TagA || TagB",
            "subVersion":1700000000000,"tagsSet":["TagA","TagB"],"topic":"T"}],"unitMode":true}],
            "heartbeatFingerprint":5,"producerDataSet":[{"groupName":"pg"}],"withoutSub":true}"#,
    )
    .unwrap();
    assert_eq!((&*heartbeat.client_id, heartbeat.heartbeat_fingerprint), ("10.0.0.5@1234#987", 5));
    assert_eq!(heartbeat.producer_data_set, [ProducerData { group_name: "pg".to_owned() }]);
    assert!(heartbeat.without_sub);
    let consumer = &heartbeat.consumer_data_set[0];
    assert_eq!(consumer.consume_type, ConsumeType::ConsumeActively);
    assert_eq!(consumer.message_model, MessageModel::Broadcasting);
    assert_eq!(consumer.consume_from_where, ConsumeFromWhere::ConsumeFromFirstOffset);
    let subscription = &consumer.subscription_data_set[0];
    assert!(subscription.matches_tags_code(TagsCode::of("TagA")));
    assert!(subscription.matches_tags_code(TagsCode::of("TagB")), "though the client did not send its code");
    assert!(!subscription.matches_tags_code(TagsCode::of("TagC")));
    assert_eq!(HeartbeatData::from_json(&heartbeat.to_json()), Ok(heartbeat));
}

/// Go sends codes as strings and hashes UTF-8 bytes instead of UTF-16 units; old clients leave members out.
#[test]
fn a_heartbeat_of_go_or_of_an_old_client() {
    let heartbeat = HeartbeatData::from_json(
        r#"{"clientID":"c","producerDataSet":[],"consumerDataSet":[{"groupName":"g","consumeType":"CONSUME_PASSIVELY",
            "messageModel":"CLUSTERING","consumeFromWhere":"SOMETHING_NEW","subscriptionDataSet":[
            {"topic":"T","subString":"größe","tagsSet":["größe"],"codeSet":["-5"],"subVersion":1700000000000000000},
            {"topic":"%RETRY%g","subString":"*","tagsSet":[],"codeSet":[]},
            {"topic":"S","subString":"TagA","tagsSet":null}, {"topic":"E"},
            {"topic":"Q","subString":"a > 1","expressionType":"SQL92"}]}]}"#
            .as_bytes(),
    )
    .unwrap();
    let subscriptions = &heartbeat.consumer_data_set[0].subscription_data_set;
    assert_eq!(heartbeat.consumer_data_set[0].consume_from_where, ConsumeFromWhere::ConsumeFromLastOffset);
    assert_eq!(subscriptions[0].code_set, [TagsCode::of("größe").0]);
    assert_eq!(subscriptions[0].expression_type, EXPRESSION_TYPE_TAG);
    assert!(subscriptions[1].matches_tags_code(TagsCode(0)));
    assert_eq!(subscriptions[2].tags_set, ["TagA"], "from the expression");
    assert_eq!(subscriptions[3].sub_string, SUB_ALL);
    assert!(!subscriptions[4].is_tag() && subscriptions[4].code_set.is_empty());
}

#[test]
fn what_identifies_a_thing_must_be_there() {
    let consumer = br#"{"clientID":"c","consumerDataSet":[{}]}"#;
    assert!(HeartbeatData::from_json(b"{}").is_err() && HeartbeatData::from_json(consumer).is_err());
    assert!(LockBatchBody::from_json(br#"{"clientId":"c","consumerGroup":"g","mqSet":[{}]}"#).is_err());
    assert!(TopicConfig::from_json(b"{}").is_err() && SubscriptionGroupConfig::from_json(b"{}").is_err());
    let long = vec![b' '; HEARTBEAT_BYTES_MAX + 1];
    assert!(matches!(HeartbeatData::from_json(&long), Err(JsonError::TooLong(_))));
}

#[test]
fn tag_expressions() {
    let subscription = SubscriptionData::tag_expression("T", "TagA || TagB");
    assert_eq!((subscription.tags_set.len(), subscription.code_set.len()), (2, 2));
    assert!(subscription.code_set.is_sorted());
    let all = SubscriptionData::tag_expression("T", "");
    assert_eq!((&*all.sub_string, all.tags_set.len()), (SUB_ALL, 0));
    assert!(all.matches_tags_code(TagsCode::of("any")));
}

fn route() -> TopicRouteData {
    TopicRouteData {
        broker_datas: vec![BrokerData {
            broker_addrs: [(0, "10.0.0.1:10911".to_owned()), (1, "[::1]:10911".to_owned())].into(),
            broker_name: "broker-a".to_owned(),
            cluster: "DefaultCluster".to_owned(),
            enable_acting_master: false,
            zone_name: None,
        }],
        filter_server_table: BTreeMap::new(),
        order_topic_conf: None,
        queue_datas: vec![QueueData {
            broker_name: "broker-a".to_owned(),
            perm: perm::READ | perm::WRITE,
            read_queue_nums: 4,
            topic_sys_flag: 0,
            write_queue_nums: 4,
        }],
    }
}

#[test]
fn routes_in_both_forms() {
    let form = |ids: [&str; 2]| {
        format!(
            r#"{{"brokerDatas":[{{"brokerAddrs":{{{}:"10.0.0.1:10911",{}:"[::1]:10911"}},"brokerName":"broker-a","cluster":"DefaultCluster","enableActingMaster":false}}],"filterServerTable":{{}},"queueDatas":[{{"brokerName":"broker-a","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}}]}}"#,
            ids[0], ids[1]
        )
    };
    let route = route();
    assert_eq!(text(route.to_json()), form(["\"0\"", "\"1\""]));
    assert_eq!(text(route.to_json_legacy()), form(["0", "1"]));
    assert_eq!(TopicRouteData::from_json(&route.to_json()).as_ref(), Ok(&route));
    assert_eq!(TopicRouteData::from_json(&route.to_json_legacy()).as_ref(), Ok(&route));
}

#[test]
fn cluster_info_has_ids_without_quotes() {
    let info = ClusterInfo {
        broker_addr_table: [("broker-a".to_owned(), route().broker_datas[0].clone())].into(),
        cluster_addr_table: [("DefaultCluster".to_owned(), ["broker-a".to_owned()].into())].into(),
    };
    let json = r#"{"brokerAddrTable":{"broker-a":{"brokerAddrs":{0:"10.0.0.1:10911",1:"[::1]:10911"},"brokerName":"broker-a","cluster":"DefaultCluster","enableActingMaster":false}},"clusterAddrTable":{"DefaultCluster":["broker-a"]}}"#;
    assert_eq!(text(info.to_json()), json);
    assert_eq!(ClusterInfo::from_json(json.as_bytes()), Ok(info));
}

#[test]
fn tables_by_message_queue() {
    let body = ResetOffsetBody {
        offset_table: [(MessageQueue::new("t", "b", 0), 1), (MessageQueue::new("t", "b", 1), 2)].into(),
    };
    let json = r#"{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"t"}:1,{"brokerName":"b","queueId":1,"topic":"t"}:2}}"#;
    assert_eq!(text(body.to_json()), json);
    assert_eq!(ResetOffsetBody::from_json(json.as_bytes()), Ok(body));
    let offset = TopicOffset { last_update_timestamp: 3, max_offset: 2, min_offset: 1 };
    let stats = TopicStatsTable {
        offset_table: [(MessageQueue::new("t", "b", 0), offset)].into(),
        topic_put_tps: 0.5,
    };
    assert_eq!(TopicStatsTable::from_json(&stats.to_json()), Ok(stats));
    let mut queues =
        [MessageQueue::new("b", "a", 0), MessageQueue::new("a", "b", 1), MessageQueue::new("a", "b", 0)];
    queues.sort();
    assert_eq!(
        queues.map(|queue| (queue.topic, queue.queue_id)),
        [("a", 0), ("a", 1), ("b", 0)].map(|(t, q)| (t.to_owned(), q))
    );
}

#[test]
fn locks() {
    let go = br#"{"consumerGroup":"g","clientId":"c","mqSet":[{"topic":"t","brokerName":"b","queueId":0}]}"#;
    let body = LockBatchBody::from_json(go).unwrap();
    assert_eq!(body.mq_set, [MessageQueue::new("t", "b", 0)]);
    assert_eq!(text(LockBatchResult::default().to_json()), r#"{"lockOKMQSet":[]}"#);
}

#[test]
fn settings_have_javas_defaults() {
    let group = SubscriptionGroupConfig::from_json(br#"{"groupName":"g"}"#).unwrap();
    assert_eq!(group, SubscriptionGroupConfig::new("g"));
    assert_eq!(SubscriptionGroupConfig::from_json(&group.to_json()), Ok(group));
    let topic = TopicConfig::from_json(br#"{"topicName":"T"}"#).unwrap();
    assert_eq!(topic, TopicConfig::new("T", 16, 6));
    assert_eq!(
        text(TopicConfig::new("T", 8, 6).to_json()),
        r#"{"attributes":{},"order":false,"perm":6,"readQueueNums":8,"topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,"writeQueueNums":8}"#
    );
}

fn counted(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as i32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

#[test]
fn registrations_in_all_forms() {
    let data_version = DataVersion { counter: 1, state_version: 0, timestamp: 1_700_000_000_000 };
    let attributes = [("+message.type".to_owned(), "NORMAL".to_owned())].into();
    let topic = TopicConfig { write_queue_nums: 2, attributes, ..TopicConfig::new("T", 4, 6) };
    let wrapper = TopicConfigSerializeWrapper {
        data_version,
        topic_config_table: [("T".to_owned(), topic), ("U".to_owned(), TopicConfig::new("U", 1, 7))].into(),
    };
    let body = RegisterBrokerBody {
        filter_server_list: vec!["f".to_owned()],
        topic_config_serialize_wrapper: wrapper.clone(),
    };
    assert_eq!(RegisterBrokerBody::decode(&body.to_json(), 479, false).as_ref(), Ok(&body));
    let bare = RegisterBrokerBody::decode(&wrapper.to_json(), 36, false).unwrap();
    assert_eq!(bare.topic_config_serialize_wrapper, wrapper);
    assert_eq!(RegisterBrokerBody::decode(b"", 479, false), Ok(RegisterBrokerBody::default()));

    let mut plain = Vec::new();
    counted(&mut plain, &text(data_version.to_json()));
    plain.extend_from_slice(&2i32.to_be_bytes());
    counted(&mut plain, r#"T 4 2 6 SINGLE_TAG {"+message.type":"NORMAL"}"#);
    counted(&mut plain, "U 1 1 7 SINGLE_TAG ");
    counted(&mut plain, r#"["f"]"#);
    let decode = |plain: &[u8]| {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(plain).unwrap();
        RegisterBrokerBody::decode(&zlib.finish().unwrap(), 409, true)
    };
    assert_eq!(decode(&plain).as_ref(), Ok(&body));
    let with_mapping = [&plain[..], &[0, 0, 0, 0]].concat();
    assert_eq!(decode(&with_mapping).as_ref(), Ok(&body));
    for len in 0..plain.len() {
        assert!(decode(&plain[..len]).is_err(), "cut at {len}");
    }
    assert_eq!(RegisterBrokerBody::decode(&plain, 409, true), Err(RegisterBodyError::Zlib));
}

#[test]
fn a_batch_of_acknowledgements() {
    let body = BatchAckBody::from_json(
        br#"{"brokerName":"b","acks":[{"c":"g","t":"T","r":"1","so":100,"q":2,"rq":0,"pt":17,"it":60000,"b":"BQE="},
            {"consumerGroup":"g","topic":"T","retry":"0","startOffset":7,"queueId":3,"reviveQueueId":999,"popTime":18,
            "invisibleTime":1,"bitSet":""}]}"#,
    )
    .unwrap();
    let first = &body.acks[0];
    assert_eq!((&*first.topic, &*first.retry, first.start_offset, first.pop_time), ("T", "1", 100, 17));
    assert_eq!(first.offsets.iter().collect::<Vec<_>>(), [0, 2, 8]);
    assert_eq!(first.offsets, [8, 0, 2].into_iter().collect());
    assert_eq!((body.acks[1].queue_id, body.acks[1].offsets.iter().count()), (3, 0));
    assert_eq!(BatchAckBody::from_json(&body.to_json()), Ok(body));
    assert!(
        BatchAckBody::from_json(br#"{"acks":[{"c":"g","t":"T","so":1,"q":0,"pt":1,"b":"no base64"}]}"#)
            .is_err()
    );
}

#[test]
fn request_modes() {
    let body = SetMessageRequestModeBody::from_json(
        br#"{"consumerGroup":"g","mode":"POP","popShareQueueNum":2,"topic":"T"}"#,
    )
    .unwrap();
    assert_eq!((body.mode, body.pop_share_queue_num), (MessageRequestMode::Pop, 2));
    assert_eq!(
        SetMessageRequestModeBody::from_json(br#"{"consumerGroup":"g","topic":"T"}"#).unwrap().mode,
        MessageRequestMode::Pull
    );
    let modes = MessageRequestModes {
        message_request_mode_map: [("T".to_owned(), [("g".to_owned(), body)].into())].into(),
    };
    assert_eq!(
        text(modes.to_json()),
        r#"{"messageRequestModeMap":{"T":{"g":{"consumerGroup":"g","mode":"POP","popShareQueueNum":2,"topic":"T"}}}}"#
    );
}

/// Rates and times have names that no rule gives.
#[test]
fn what_a_consumer_tells_of_itself() {
    let queue =
        ProcessQueueInfo { cached_msg_size_in_mi_b: 1, commit_offset: 7, ..ProcessQueueInfo::default() };
    let status = ConsumeStatus { consume_ok_tps: 1.5, pull_rt: 2.0, ..ConsumeStatus::default() };
    let info = ConsumerRunningInfo {
        mq_table: [(MessageQueue::new("T", "b", 0), queue)].into(),
        status_table: [("T".to_owned(), status)].into(),
        ..ConsumerRunningInfo::default()
    };
    let written = text(info.to_json());
    for part in [
        r#"{"brokerName":"b","queueId":0,"topic":"T"}:{"cachedMsgCount":0"#,
        r#""cachedMsgSizeInMiB":1,"commitOffset":7,"droped":false"#,
        r#""consumeFailedMsgs":0,"consumeFailedTPS":0"#,
        r#""consumeOKTPS":1.5,"consumeRT":0"#,
        r#""pullRT":2"#,
    ] {
        assert!(written.contains(part), "{part} is not in {written}");
    }
    assert_eq!(ConsumerRunningInfo::from_json(written.as_bytes()), Ok(info));
}
