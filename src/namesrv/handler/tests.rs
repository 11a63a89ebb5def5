//! Every request the name server knows, as frames, in both codecs where that matters.

use super::*;
use bytes::Bytes;
use ringmq_protocol::frame::{Codec, RemotingCommand};

const CONNECTION: ConnectionId = ConnectionId(1);

fn name_server() -> NameServer {
    NameServer::new(KvConfig::default())
}

fn request(code: RequestCode, ext: &[(&str, &str)], body: &str) -> RemotingCommand {
    let mut request = RemotingCommand::request(code, &(), body.to_owned());
    request.ext = ext.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    request
}

/// The reply to a request, as a client decodes it. A change of the KV configuration is made at once.
fn answer(server: &mut NameServer, request: &RemotingCommand, codec: Codec) -> RemotingCommand {
    let mut bytes = Vec::new();
    request.encode(codec, &mut bytes);
    let frame = Frame::decode(&bytes).unwrap();
    let reply = match server.handle(&frame, CONNECTION, 0) {
        Outcome::Reply(reply) => reply,
        Outcome::ChangeKv(change) => {
            server.kv = server.kv.changed(change).unwrap();
            Reply::success()
        }
    };
    let mut out = Vec::new();
    reply.encode(&frame.header, &mut out);
    assert_eq!(out[4], codec as u8, "the reply has the codec of the request");
    let response = RemotingCommand::decode(&Bytes::from(out)).unwrap();
    assert!(response.is_response() && !response.is_oneway());
    assert_eq!(response.opaque, request.opaque);
    response
}

fn ask(server: &mut NameServer, code: RequestCode, ext: &[(&str, &str)], body: &str) -> RemotingCommand {
    answer(server, &request(code, ext, body), Codec::Json)
}

fn text(response: &RemotingCommand) -> &str {
    std::str::from_utf8(&response.body).unwrap()
}

const BROKER: [(&str, &str); 5] = [
    ("brokerName", "broker-a"),
    ("brokerAddr", "10.0.0.1:10911"),
    ("clusterName", "DefaultCluster"),
    ("haServerAddr", "10.0.0.1:10912"),
    ("brokerId", "0"),
];
const TABLE: &str = r#"{"filterServerList":[],"topicConfigSerializeWrapper":{"dataVersion":{"counter":3,"stateVersion":0,"timestamp":1700000000000},"topicConfigTable":{"T":{"attributes":{},"order":false,"perm":6,"readQueueNums":4,"topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,"writeQueueNums":4},"TBW102":{"attributes":{},"order":false,"perm":7,"readQueueNums":8,"topicFilterType":"SINGLE_TAG","topicName":"TBW102","topicSysFlag":0,"writeQueueNums":8}},"topicQueueMappingInfoMap":{},"topicQueueMappingDetailMap":{},"mappingDataVersion":{"counter":0,"stateVersion":0,"timestamp":1700000000000}}}"#;

fn with_broker() -> NameServer {
    let mut server = name_server();
    let registered = ask(&mut server, RequestCode::REGISTER_BROKER, &BROKER, TABLE);
    assert_eq!((registered.code, registered.remark), (0, None));
    assert!(registered.body.is_empty());
    server
}

#[test]
fn a_route_is_standard_json_for_those_who_read_it_and_javas_for_the_others() {
    let mut server = with_broker();
    let standard = r#"{"brokerDatas":[{"brokerAddrs":{"0":"10.0.0.1:10911"},"brokerName":"broker-a","cluster":"DefaultCluster","enableActingMaster":false}],"filterServerTable":{},"queueDatas":[{"brokerName":"broker-a","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}"#;
    let legacy = standard.replace(r#"{"0":"#, "{0:");
    for codec in [Codec::Json, Codec::RocketMq] {
        let mut get = request(RequestCode::GET_ROUTEINFO_BY_TOPIC, &[("topic", "T")], "");
        get.version = 401;
        assert_eq!(text(&answer(&mut server, &get, codec)), standard);
        get.version = 317;
        assert_eq!(text(&answer(&mut server, &get, codec)), legacy);
        get.ext.push(("acceptStandardJsonOnly".into(), "true".into()));
        assert_eq!(text(&answer(&mut server, &get, codec)), standard);
    }
}

#[test]
fn an_unknown_topic_is_17() {
    let response = ask(&mut with_broker(), RequestCode::GET_ROUTEINFO_BY_TOPIC, &[("topic", "Nope")], "");
    assert_eq!(response.code, 17);
    let remark = response.remark.unwrap();
    assert!(remark.starts_with("No topic route info in name server for the topic: Nope"), "{remark}");
}

#[test]
fn an_order_topic_conf_is_given_unless_that_is_switched_off() {
    let mut server = with_broker();
    let put = [("namespace", "ORDER_TOPIC_CONFIG"), ("key", "T"), ("value", "broker-a:4")];
    assert_eq!(ask(&mut server, RequestCode::PUT_KV_CONFIG, &put, "").code, 0);
    let topic = [("topic", "T")];
    let before = ask(&mut server, RequestCode::GET_ROUTEINFO_BY_TOPIC, &topic, "");
    assert!(text(&before).contains(r#""orderTopicConf":"broker-a:4""#), "{}", text(&before));
    assert_eq!(ask(&mut server, RequestCode::UPDATE_NAMESRV_CONFIG, &[], "orderMessageEnable=false").code, 0);
    let after = ask(&mut server, RequestCode::GET_ROUTEINFO_BY_TOPIC, &topic, "");
    assert!(!text(&after).contains("orderTopicConf"));
    let registered = ask(&mut server, RequestCode::REGISTER_BROKER, &BROKER, TABLE);
    assert_eq!(text(&registered), r#"{"table":{"T":"broker-a:4"}}"#);
}

#[test]
fn zones_keep_their_own_brokers_and_those_without_a_master() {
    let mut server = name_server();
    for (name, id, zone) in [("a", "0", "east"), ("b", "0", "west"), ("c", "0", ""), ("c", "1", "")] {
        let addr = format!("{name}:{id}");
        let ext = [
            ("brokerName", name),
            ("brokerAddr", &addr),
            ("clusterName", "C"),
            ("haServerAddr", ""),
            ("brokerId", id),
            ("__ZONE_NAME", zone),
        ];
        assert_eq!(ask(&mut server, RequestCode::REGISTER_BROKER, &ext, TABLE).code, 0);
    }
    let gone = [("brokerName", "c"), ("brokerAddr", "c:0"), ("clusterName", "C"), ("brokerId", "0")];
    assert_eq!(ask(&mut server, RequestCode::UNREGISTER_BROKER, &gone, "").code, 0);
    let names = |server: &mut NameServer, mode: &str| -> Vec<String> {
        let ext = [("topic", "T"), ("__ZONE_MODE", mode), ("__ZONE_NAME", "EAST")];
        let response = ask(server, RequestCode::GET_ROUTEINFO_BY_TOPIC, &ext, "");
        let route = TopicRouteData::from_json(&response.body).unwrap();
        let names: Vec<String> = route.broker_datas.iter().map(|b| b.broker_name.clone()).collect();
        assert_eq!(names, route.queue_datas.iter().map(|q| q.broker_name.clone()).collect::<Vec<_>>());
        names
    };
    assert_eq!(names(&mut server, "true"), ["a", "c"]);
    assert_eq!(names(&mut server, "false"), ["a", "b", "c"]);
}

#[test]
fn cluster_info_is_in_javas_json() {
    let response = ask(&mut with_broker(), RequestCode::GET_BROKER_CLUSTER_INFO, &[], "");
    assert_eq!(
        text(&response),
        r#"{"brokerAddrTable":{"broker-a":{"brokerAddrs":{0:"10.0.0.1:10911"},"brokerName":"broker-a","cluster":"DefaultCluster","enableActingMaster":false}},"clusterAddrTable":{"DefaultCluster":["broker-a"]}}"#
    );
}

#[test]
fn a_slave_is_told_its_master() {
    let mut server = with_broker();
    let mut slave = BROKER;
    slave[1].1 = "10.0.0.2:10911";
    slave[4].1 = "1";
    let registered = ask(&mut server, RequestCode::REGISTER_BROKER, &slave, TABLE);
    assert_eq!(registered.ext("masterAddr"), Some("10.0.0.1:10911"));
    assert_eq!(registered.ext("haServerAddr"), Some("10.0.0.1:10912"));
    let group = [("clusterName", "DefaultCluster"), ("brokerName", "broker-a")];
    let group = ask(&mut server, RequestCode::GET_BROKER_MEMBER_GROUP, &group, "");
    assert_eq!(
        text(&group),
        r#"{"brokerMemberGroup":{"brokerAddrs":{0:"10.0.0.1:10911",1:"10.0.0.2:10911"},"brokerName":"broker-a","cluster":"DefaultCluster"}}"#
    );
}

#[test]
fn a_registration_is_checked() {
    let mut server = name_server();
    let mut ext = BROKER.to_vec();
    ext.push(("bodyCrc32", "1"));
    let refused = ask(&mut server, RequestCode::REGISTER_BROKER, &ext, TABLE);
    assert_eq!((refused.code, refused.remark.as_deref()), (1, Some("crc32 not match")));
    let right = crc32(TABLE.as_bytes()).to_string();
    ext[5].1 = &right;
    assert_eq!(ask(&mut server, RequestCode::REGISTER_BROKER, &ext, TABLE).code, 0);

    let refused = ask(&mut server, RequestCode::REGISTER_BROKER, &BROKER[1..], TABLE);
    assert_eq!((refused.code, refused.remark.as_deref()), (1, Some("field brokerName is missing")));
    let refused = ask(&mut server, RequestCode::REGISTER_BROKER, &BROKER, "{nonsense");
    assert_eq!(refused.code, 1);
    assert!(refused.remark.unwrap().starts_with("body: "));
}

/// Captured: what Apache's broker 5.3.3 sends with compressedRegister=true is a zlib stream under a header that
/// denies it.
#[test]
fn a_compressed_registration_is_read_whatever_its_header_says() {
    let body = include_bytes!("registration-compressed.bin");
    for compressed in ["false", "true"] {
        let mut server = name_server();
        let mut ext = BROKER.to_vec();
        ext.extend([("compressed", compressed), ("bodyCrc32", "2101786706")]);
        let mut register = request(RequestCode::REGISTER_BROKER, &ext, "");
        register.body = Bytes::from_static(body);
        let registered = answer(&mut server, &register, Codec::Json);
        assert_eq!((registered.code, registered.remark), (0, None));
        assert_eq!(server.routes.counts(), (1, 13));
        assert_eq!(server.routes.route("TBW102", false).unwrap().queue_datas[0].perm, 7);
    }
}

#[test]
fn a_broker_that_asks_learns_whether_it_has_news() {
    let mut server = with_broker();
    let known = r#"{"counter":3,"stateVersion":0,"timestamp":1700000000000}"#;
    let response = ask(&mut server, RequestCode::QUERY_DATA_VERSION, &BROKER, known);
    assert_eq!((response.code, response.ext("changed"), text(&response)), (0, Some("false"), known));
    let newer = known.replace("3", "4");
    let response = ask(&mut server, RequestCode::QUERY_DATA_VERSION, &BROKER, &newer);
    assert_eq!((response.code, response.ext("changed"), text(&response)), (0, Some("true"), known));
    let response = ask(&mut name_server(), RequestCode::QUERY_DATA_VERSION, &BROKER, known);
    assert_eq!((response.code, response.ext("changed"), text(&response)), (0, Some("true"), ""));
    assert_eq!(ask(&mut server, RequestCode::BROKER_HEARTBEAT, &BROKER, "").code, 0);
}

#[test]
fn administrators_change_topics_and_permissions() {
    let mut server = with_broker();
    let queues = r#"{"queueDatas":[{"brokerName":"broker-a","perm":6,"readQueueNums":1,"writeQueueNums":1,"topicSysFlag":0}]}"#;
    assert_eq!(ask(&mut server, RequestCode::REGISTER_TOPIC_IN_NAMESRV, &[("topic", "New")], queues).code, 0);
    let list = |server: &mut NameServer| {
        text(&ask(server, RequestCode::GET_ALL_TOPIC_LIST_FROM_NAMESERVER, &[], "")).to_owned()
    };
    assert_eq!(list(&mut server), r#"{"topicList":["New","T","TBW102"]}"#);
    let name = [("brokerName", "broker-a")];
    let wiped = ask(&mut server, RequestCode::WIPE_WRITE_PERM_OF_BROKER, &name, "");
    assert_eq!((wiped.code, wiped.ext("wipeTopicCount")), (0, Some("3")));
    let added = ask(&mut server, RequestCode::ADD_WRITE_PERM_OF_BROKER, &name, "");
    assert_eq!((added.code, added.ext("addTopicCount")), (0, Some("3")));
    let elsewhere = [("topic", "New"), ("clusterName", "elsewhere")];
    assert_eq!(ask(&mut server, RequestCode::DELETE_TOPIC_IN_NAMESRV, &elsewhere, "").code, 0);
    assert!(list(&mut server).contains("New"));
    assert_eq!(ask(&mut server, RequestCode::DELETE_TOPIC_IN_NAMESRV, &elsewhere[..1], "").code, 0);
    assert_eq!(list(&mut server), r#"{"topicList":["T","TBW102"]}"#);
    let unregistered = ask(&mut server, RequestCode::UNREGISTER_BROKER, &BROKER, "");
    assert_eq!((unregistered.code, list(&mut server)), (0, r#"{"topicList":[]}"#.to_owned()));
}

#[test]
fn topic_lists_can_be_disabled() {
    let mut server = with_broker();
    let cluster = [("cluster", "DefaultCluster")];
    let both = r#"{"topicList":["T","TBW102"]}"#;
    assert_eq!(text(&ask(&mut server, RequestCode::GET_TOPICS_BY_CLUSTER, &cluster, "")), both);
    for code in [
        RequestCode::GET_UNIT_TOPIC_LIST,
        RequestCode::GET_HAS_UNIT_SUB_TOPIC_LIST,
        RequestCode::GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST,
    ] {
        assert_eq!(text(&ask(&mut server, code, &[], "")), r#"{"topicList":[]}"#);
    }
    let off = "enableTopicList=false\nenableAllTopicList=false";
    assert_eq!(ask(&mut server, RequestCode::UPDATE_NAMESRV_CONFIG, &[], off).code, 0);
    for code in [
        RequestCode::GET_ALL_TOPIC_LIST_FROM_NAMESERVER,
        RequestCode::GET_TOPICS_BY_CLUSTER,
        RequestCode::GET_UNIT_TOPIC_LIST,
        RequestCode::GET_HAS_UNIT_SUB_TOPIC_LIST,
        RequestCode::GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST,
    ] {
        let refused = ask(&mut server, code, &cluster, "");
        assert_eq!((refused.code, refused.remark.as_deref()), (1, Some("disable")));
    }
    assert_eq!(
        text(&ask(&mut server, RequestCode::GET_SYSTEM_TOPIC_LIST_FROM_NS, &[], "")),
        r#"{"brokerAddr":"10.0.0.1:10911","topicList":["DefaultCluster","broker-a"]}"#
    );
}

#[test]
fn the_kv_configuration_is_put_read_listed_and_deleted() {
    let mut server = name_server();
    let ext = [("namespace", "N"), ("key", "k"), ("value", "v")];
    assert_eq!(ask(&mut server, RequestCode::GET_KV_CONFIG, &ext, "").code, 22);
    assert_eq!(ask(&mut server, RequestCode::GET_KVLIST_BY_NAMESPACE, &ext, "").code, 22);
    assert_eq!(ask(&mut server, RequestCode::PUT_KV_CONFIG, &ext, "").code, 0);
    assert_eq!(ask(&mut server, RequestCode::GET_KV_CONFIG, &ext, "").ext("value"), Some("v"));
    let list = ask(&mut server, RequestCode::GET_KVLIST_BY_NAMESPACE, &ext, "");
    assert_eq!(text(&list), r#"{"table":{"k":"v"}}"#);
    assert_eq!(ask(&mut server, RequestCode::DELETE_KV_CONFIG, &ext, "").code, 0);
    assert_eq!(ask(&mut server, RequestCode::DELETE_KV_CONFIG, &ext, "").code, 0, "deleting twice");
    assert_eq!(ask(&mut server, RequestCode::GET_KV_CONFIG, &ext, "").code, 22);
    assert_eq!(ask(&mut server, RequestCode::PUT_KV_CONFIG, &ext[..1], "").code, 1);
}

#[test]
fn only_switches_can_be_set_at_run_time() {
    let mut server = name_server();
    let before = text(&ask(&mut server, RequestCode::GET_NAMESRV_CONFIG, &[], "")).to_owned();
    for path in ["kvConfigPath=x", "configStorePath=x", "rocketmqHome=$(id)", "unknown=1"] {
        let body = format!("orderMessageEnable=false\n{path}");
        assert_eq!(ask(&mut server, RequestCode::UPDATE_NAMESRV_CONFIG, &[], &body).code, 16, "{path}");
    }
    assert_eq!(ask(&mut server, RequestCode::UPDATE_NAMESRV_CONFIG, &[], "orderMessageEnable=maybe").code, 1);
    assert_eq!(text(&ask(&mut server, RequestCode::GET_NAMESRV_CONFIG, &[], "")), before);
}

#[test]
fn an_unknown_request_is_3() {
    for code in [10, 0, -1, 200_050] {
        let response = ask(&mut name_server(), RequestCode(code), &[], "");
        assert_eq!(response.code, 3);
        assert_eq!(response.remark, Some(format!(" request type {code} not supported")));
    }
}

#[test]
fn an_answer_larger_than_any_frame_becomes_an_error() {
    let large = Reply::success().body(vec![0; 100_000]);
    assert_eq!(large.fitting(100_000).code, ResponseCode::SYSTEM_ERROR);
    assert_eq!(Reply::success().body(vec![0; 100_000]).fitting(200_000).code, ResponseCode::SUCCESS);
}
