//! One test per rule of the route table, and one that throws arbitrary sequences at its invariants.

use super::*;
use proptest::prelude::*;

const CONNECTION: ConnectionId = ConnectionId(1);

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

fn version(counter: i64) -> DataVersion {
    DataVersion { state_version: 0, timestamp: 1_700_000_000_000, counter }
}

fn queues(perm: i32) -> Queues {
    Queues { read_queue_nums: 8, write_queue_nums: 8, perm, topic_sys_flag: 0 }
}

/// A broker as ours and Apache's register: several topics at first.
fn broker(name: &str, id: i64, addr: &str, topics: &[&str]) -> Registration {
    Registration {
        cluster: "C".into(),
        broker_name: name.into(),
        broker_addr: addr.into(),
        broker_id: id,
        ha_server_addr: format!("{addr}-ha"),
        zone_name: None,
        heartbeat_timeout_ms: None,
        enable_acting_master: None,
        data_version: version(1),
        topics: topics.iter().map(|topic| ((*topic).to_owned(), queues(6))).collect(),
    }
}

fn register(routes: &mut Routes, registration: Registration) -> Result<Registered, RegisterError> {
    let result = routes.register(registration, false, CONNECTION, 0);
    routes.check_invariants();
    result
}

/// One master "a" at a:1 with topics T and TBW102.
fn one_master() -> Routes {
    let mut routes = Routes::new();
    register(&mut routes, broker("a", 0, "a:1", &["T", "TBW102"])).unwrap();
    routes
}

fn perm(routes: &Routes, topic: &str) -> Option<i32> {
    Some(routes.route(topic, false)?.queue_datas[0].perm)
}

#[test]
fn a_registered_broker_is_routable() {
    let routes = one_master();
    let route = routes.route("T", false).unwrap();
    assert_eq!(route.queue_datas.len(), 1);
    assert_eq!(route.queue_datas[0].broker_name, "a");
    assert_eq!((route.queue_datas[0].read_queue_nums, route.queue_datas[0].perm), (8, 6));
    assert_eq!(route.broker_datas.len(), 1);
    assert_eq!(route.broker_datas[0].cluster, "C");
    assert_eq!(route.broker_datas[0].broker_addrs, BTreeMap::from([(0, "a:1".to_owned())]));
    assert!(routes.route("unknown", false).is_none());
    let info = routes.cluster_info();
    assert_eq!(info.cluster_addr_table, BTreeMap::from([("C".to_owned(), BTreeSet::from(["a".to_owned()]))]));
    assert_eq!(info.broker_addr_table["a"].broker_addrs[&0], "a:1");
}

#[test]
fn a_partial_table_is_merged() {
    let mut routes = one_master();
    let mut update = broker("a", 0, "a:1", &["T2"]);
    update.data_version = version(2);
    register(&mut routes, update).unwrap();
    assert_eq!(routes.topics(), set(["T", "T2", "TBW102"]));
}

#[test]
fn a_whole_table_replaces_only_where_that_is_switched_on() {
    let mut routes = one_master();
    routes.register(broker("a", 0, "a:1", &["T2", "TBW102"]), true, CONNECTION, 0).unwrap();
    routes.check_invariants();
    assert_eq!(routes.topics(), set(["T2", "TBW102"]));
}

#[test]
fn a_first_registration_with_one_topic_is_refused() {
    let mut routes = Routes::new();
    let refused = register(&mut routes, broker("a", 0, "a:1", &["T"]));
    assert_eq!(refused, Err(RegisterError::PartialBeforeFull));
    assert_eq!(routes.counts(), (0, 0));
    assert!(routes.cluster_info().cluster_addr_table.is_empty());
    // A broker without topics is complete.
    register(&mut routes, broker("a", 0, "a:1", &[])).unwrap();
    register(&mut routes, broker("a", 0, "a:1", &["T"])).unwrap();
    assert_eq!(routes.topics(), set(["T"]));
}

#[test]
fn an_unchanged_data_version_changes_no_known_topic() {
    let mut routes = one_master();
    let mut again = broker("a", 0, "a:1", &["T", "T2"]);
    again.topics[0].1 = queues(4);
    register(&mut routes, again.clone()).unwrap();
    assert_eq!(perm(&routes, "T"), Some(6), "same version: known topic kept");
    assert_eq!(perm(&routes, "T2"), Some(6), "same version: unknown topic added");
    again.data_version = version(2);
    register(&mut routes, again).unwrap();
    assert_eq!(perm(&routes, "T"), Some(4), "new version: taken");
}

#[test]
fn a_slave_learns_its_master_and_brings_no_topics() {
    let mut routes = one_master();
    let mut slave = broker("a", 1, "a:2", &["T", "OnlyOnSlave"]);
    slave.data_version = version(9);
    let registered = register(&mut routes, slave).unwrap();
    assert_eq!(registered.master_addr.as_deref(), Some("a:1"));
    assert_eq!(registered.ha_server_addr.as_deref(), Some("a:1-ha"));
    assert_eq!(routes.topics(), set(["T", "TBW102"]));
    assert_eq!(routes.member_group("C", "a"), BTreeMap::from([(0, "a:1".to_owned()), (1, "a:2".to_owned())]));
    assert!(routes.member_group("C", "b").is_empty());
    let master = register(&mut routes, broker("a", 0, "a:1", &["T", "TBW102"])).unwrap();
    assert_eq!(master, Registered::default());
}

#[test]
fn an_address_under_another_id_has_moved() {
    let mut routes = one_master();
    register(&mut routes, broker("a", 1, "a:2", &["T", "TBW102"])).unwrap();
    routes.unregister("C", "a", "a:1");
    register(&mut routes, broker("a", 0, "a:2", &["T", "TBW102"])).unwrap();
    assert_eq!(routes.member_group("C", "a"), BTreeMap::from([(0, "a:2".to_owned())]));
}

#[test]
fn a_newer_state_version_wins_the_id() {
    let mut routes = Routes::new();
    let mut newer = broker("a", 0, "a:1", &["T", "TBW102"]);
    newer.data_version.state_version = 2;
    register(&mut routes, newer).unwrap();
    let mut older = broker("a", 0, "a:2", &["T", "TBW102"]);
    older.data_version.state_version = 1;
    assert_eq!(register(&mut routes, older.clone()), Ok(Registered::default()), "ignored, not refused");
    assert_eq!(routes.member_group("C", "a")[&0], "a:1");
    older.data_version.state_version = 2;
    register(&mut routes, older).unwrap();
    assert_eq!(routes.member_group("C", "a")[&0], "a:2");
    assert!(routes.data_version("C", "a:1").is_none());
}

#[test]
fn a_name_belongs_to_one_cluster() {
    let mut routes = one_master();
    let mut other = broker("a", 0, "a:9", &["T", "TBW102"]);
    other.cluster = "D".into();
    assert_eq!(register(&mut routes, other), Err(RegisterError::OtherCluster));
    assert_eq!(routes.member_group("C", "a")[&0], "a:1");
}

#[test]
fn names_are_bounded() {
    let mut routes = one_master();
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for bad in ["", &long] {
        assert_eq!(register(&mut routes, broker(bad, 0, "b:1", &[])), Err(RegisterError::BadName));
        assert_eq!(register(&mut routes, broker("b", 0, bad, &[])), Err(RegisterError::BadName));
        assert_eq!(register(&mut routes, broker("b", 0, "b:1", &["T", bad])), Err(RegisterError::BadName));
        assert_eq!(routes.register_topic(bad, &[("a".to_owned(), queues(6))]), 0);
    }
}

#[test]
fn unregistering_removes_address_name_topics_and_cluster() {
    let mut routes = one_master();
    register(&mut routes, broker("b", 0, "b:1", &["T", "OnlyB"])).unwrap();
    register(&mut routes, broker("b", 1, "b:2", &["T", "OnlyB"])).unwrap();
    routes.unregister("C", "b", "b:1");
    routes.check_invariants();
    assert_eq!(
        routes.route("OnlyB", false).unwrap().broker_datas[0].broker_addrs.len(),
        1,
        "the slave serves on"
    );
    routes.unregister("C", "b", "b:2");
    routes.check_invariants();
    assert!(routes.route("OnlyB", false).is_none());
    assert_eq!(routes.route("T", false).unwrap().broker_datas.len(), 1);
    assert!(!routes.unregister("C", "nobody", "a:1"), "an address counts only under its name");
    assert!(!routes.unregister("D", "a", "a:1"));
    assert!(routes.unregister("C", "a", "a:1"));
    routes.check_invariants();
    assert_eq!(routes.counts(), (0, 0));
    assert!(routes.cluster_info().cluster_addr_table.is_empty());
}

#[test]
fn the_data_version_tells_news_from_known() {
    let routes = one_master();
    assert!(!routes.data_version_changed("C", "a:1", &version(1)));
    assert!(routes.data_version_changed("C", "a:1", &version(2)));
    assert!(routes.data_version_changed("C", "b:1", &version(1)), "unknown broker");
    assert_eq!(routes.data_version("C", "a:1"), Some(&version(1)));
}

#[test]
fn silence_expires_a_broker_and_signs_of_life_do_not() {
    let mut routes = one_master();
    let mut short = broker("b", 0, "b:1", &["OnlyB", "TBW102"]);
    short.heartbeat_timeout_ms = Some(1_000);
    register(&mut routes, short).unwrap();
    assert!(routes.expire(1_000).is_empty(), "the time has to be over");
    assert_eq!(routes.expire(1_001), ["b:1"]);
    routes.check_invariants();
    assert_eq!(routes.topics(), set(["T", "TBW102"]));
    assert!(routes.refresh("C", "a:1", 50_000));
    assert!(!routes.refresh("C", "b:1", 50_000));
    assert!(routes.expire(BROKER_EXPIRY_MS + 50_000).is_empty());
    assert_eq!(routes.expire(BROKER_EXPIRY_MS + 50_001), ["a:1"]);
    routes.check_invariants();
    assert_eq!(routes.counts(), (0, 0));
}

#[test]
fn a_closed_connection_takes_all_its_brokers_but_not_those_that_came_back() {
    let mut routes = Routes::new();
    let old = ConnectionId(7);
    for (name, addr) in [("a-0", "a:1"), ("a-1", "a:2")] {
        routes.register(broker(name, 0, addr, &["T", "TBW102"]), false, old, 0).unwrap();
    }
    routes.register(broker("a-0", 0, "a:1", &["T", "TBW102"]), false, ConnectionId(8), 0).unwrap();
    assert_eq!(routes.on_closed(old), ["a:2"]);
    routes.check_invariants();
    assert_eq!(routes.route("T", false).unwrap().broker_datas[0].broker_name, "a-0");
    assert!(routes.on_closed(old).is_empty());
}

#[test]
fn permissions_are_wiped_and_restored() {
    let mut routes = one_master();
    assert_eq!(routes.wipe_write_perm("nobody"), 0);
    assert_eq!(routes.wipe_write_perm("a"), 2);
    assert_eq!(perm(&routes, "T"), Some(4));
    register(&mut routes, broker("a", 0, "a:1", &["T", "TBW102"])).unwrap();
    assert_eq!(perm(&routes, "T"), Some(4), "an unchanged broker does not undo it");
    assert_eq!(routes.add_write_perm("a"), 2);
    assert_eq!(perm(&routes, "T"), Some(6));
    routes.wipe_write_perm("a");
    let mut changed = broker("a", 0, "a:1", &["T", "TBW102"]);
    changed.data_version = version(2);
    register(&mut routes, changed).unwrap();
    assert_eq!(perm(&routes, "T"), Some(6), "a changed one does");
}

#[test]
fn topics_are_registered_and_deleted_by_hand() {
    let mut routes = one_master();
    let mut other = broker("d", 0, "d:1", &["T", "TBW102"]);
    other.cluster = "D".into();
    register(&mut routes, other).unwrap();
    let given = [("a".to_owned(), queues(6)), ("nobody".to_owned(), queues(6)), ("d".to_owned(), queues(6))];
    assert_eq!(routes.register_topic("New", &given), 1, "stops at the unknown broker");
    assert_eq!(routes.register_topic("Never", &given[1..2]), 0);
    routes.check_invariants();
    assert_eq!(routes.topics(), set(["New", "T", "TBW102"]));
    routes.delete_topic("T", Some("C"));
    routes.check_invariants();
    assert_eq!(routes.route("T", false).unwrap().queue_datas[0].broker_name, "d");
    routes.delete_topic("T", Some("nowhere"));
    assert!(routes.route("T", false).is_some());
    routes.delete_topic("T", None);
    routes.delete_topic("unknown", None);
    routes.check_invariants();
    assert_eq!(routes.topics(), set(["New", "TBW102"]));
}

#[test]
fn topic_lists() {
    let mut routes = one_master();
    let mut other = broker("d", 0, "d:1", &["Unit", "Sub", "Both", "TBW102"]);
    other.cluster = "D".into();
    for (queues, flag) in other.topics.iter_mut().map(|(_, queues)| queues).zip([1, 2, 3, 0]) {
        queues.topic_sys_flag = flag;
    }
    register(&mut routes, other).unwrap();
    assert_eq!(routes.topics_of_cluster("C"), set(["T", "TBW102"]));
    assert_eq!(routes.topics_of_cluster("D"), set(["Both", "Sub", "TBW102", "Unit"]));
    assert!(routes.topics_of_cluster("nowhere").is_empty());
    assert_eq!(routes.unit_topics(UnitTopics::Unit), set(["Both", "Unit"]));
    assert_eq!(routes.unit_topics(UnitTopics::UnitSub), set(["Both", "Sub"]));
    assert_eq!(routes.unit_topics(UnitTopics::UnitSubNotUnit), set(["Sub"]));
    let (topics, addr) = routes.system_topics();
    assert_eq!(topics, set(["C", "D", "a", "d"]));
    assert_eq!(addr.as_deref(), Some("a:1"));
    assert_eq!(Routes::new().system_topics(), (set([]), None));
}

#[test]
fn an_acting_master_stands_in_read_only() {
    let mut routes = Routes::new();
    for (id, addr) in [(0, "a:1"), (2, "a:3"), (3, "a:4")] {
        let mut member = broker("a", id, addr, &["T", "TBW102"]);
        member.enable_acting_master = Some(true);
        register(&mut routes, member).unwrap();
    }
    routes.unregister("C", "a", "a:1");
    routes.check_invariants();
    assert_eq!(perm(&routes, "T"), Some(4));
    let acting = routes.route("T", true).unwrap();
    assert_eq!(
        acting.broker_datas[0].broker_addrs,
        BTreeMap::from([(0, "a:3".to_owned()), (3, "a:4".to_owned())])
    );
    let plain = routes.route("T", false).unwrap();
    assert!(!plain.broker_datas[0].broker_addrs.contains_key(&0));
    // The prime slave may bring a topic, but nobody may write to it.
    let mut prime = broker("a", 2, "a:3", &["T", "T2"]);
    prime.enable_acting_master = Some(true);
    prime.data_version = version(5);
    register(&mut routes, prime).unwrap();
    assert_eq!(perm(&routes, "T2"), Some(4));
}

#[derive(Clone, Debug)]
enum Step {
    Register {
        cluster: u8,
        name: u8,
        addr: u8,
        id: i64,
        state: i64,
        topics: Vec<u8>,
        connection: u64,
        replace: bool,
    },
    Unregister {
        cluster: u8,
        name: u8,
        addr: u8,
    },
    Close {
        connection: u64,
    },
    Expire,
    DeleteTopic {
        topic: u8,
        cluster: Option<u8>,
    },
    RegisterTopic {
        topic: u8,
        name: u8,
    },
    Wipe {
        name: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let small = 0..3_u8;
    prop_oneof![
        4 => (small.clone(), small.clone(), small.clone(), 0..3_i64, 0..2_i64,
              prop::collection::vec(0..4_u8, 0..4), 0..3_u64, any::<bool>())
            .prop_map(|(cluster, name, addr, id, state, topics, connection, replace)|
                Step::Register { cluster, name, addr, id, state, topics, connection, replace }),
        1 => (small.clone(), small.clone(), small.clone())
            .prop_map(|(cluster, name, addr)| Step::Unregister { cluster, name, addr }),
        1 => (0..3_u64).prop_map(|connection| Step::Close { connection }),
        1 => Just(Step::Expire),
        1 => (0..4_u8, prop::option::of(small.clone())).prop_map(|(topic, cluster)| Step::DeleteTopic { topic, cluster }),
        1 => (0..4_u8, small.clone()).prop_map(|(topic, name)| Step::RegisterTopic { topic, name }),
        1 => small.prop_map(|name| Step::Wipe { name }),
    ]
}

proptest! {
    /// R1 to R5 hold after any sequence, also of nonsense: shared addresses, names in two clusters, stale brokers.
    #[test]
    fn invariants_hold_after_any_sequence(steps in prop::collection::vec(step(), 0..60)) {
        let mut routes = Routes::new();
        for (i, step) in steps.into_iter().enumerate() {
            let now_ms = i as u64 * 20_000;
            match step {
                Step::Register { cluster, name, addr, id, state, topics, connection, replace } => {
                    let mut registration = broker(&format!("n{name}"), id, &format!("h:{addr}"), &[]);
                    registration.cluster = format!("c{cluster}");
                    registration.data_version.state_version = state;
                    registration.topics = topics.iter().map(|t| (format!("t{t}"), queues(6))).collect();
                    let _ = routes.register(registration, replace, ConnectionId(connection), now_ms);
                }
                Step::Unregister { cluster, name, addr } => {
                    routes.unregister(&format!("c{cluster}"), &format!("n{name}"), &format!("h:{addr}"));
                }
                Step::Close { connection } => { routes.on_closed(ConnectionId(connection)); }
                Step::Expire => { routes.expire(now_ms); }
                Step::DeleteTopic { topic, cluster } => {
                    routes.delete_topic(&format!("t{topic}"), cluster.map(|c| format!("c{c}")).as_deref());
                }
                Step::RegisterTopic { topic, name } => {
                    routes.register_topic(&format!("t{topic}"), &[(format!("n{name}"), queues(6))]);
                }
                Step::Wipe { name } => { routes.wipe_write_perm(&format!("n{name}")); }
            }
            routes.check_invariants();
        }
    }
}
