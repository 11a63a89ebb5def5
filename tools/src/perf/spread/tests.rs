use std::collections::BTreeMap;

use ringmq_protocol::body::{BrokerData, QueueData, perm};

use super::*;

fn route(brokers: &[(&str, i64, u32, u32, i32)]) -> TopicRouteData {
    TopicRouteData {
        broker_datas: brokers
            .iter()
            .map(|(name, id, ..)| BrokerData {
                broker_addrs: BTreeMap::from([(*id, format!("{name}:1"))]),
                broker_name: name.to_string(),
                ..BrokerData::default()
            })
            .collect(),
        queue_datas: brokers
            .iter()
            .map(|(name, _, read, write, perm)| QueueData {
                broker_name: name.to_string(),
                read_queue_nums: *read,
                write_queue_nums: *write,
                perm: *perm,
                ..QueueData::default()
            })
            .collect(),
        ..TopicRouteData::default()
    }
}

fn broker(address: &str, queues: i32) -> BrokerQueues {
    BrokerQueues { address: address.to_string(), queues: (0..queues).collect() }
}

#[test]
fn only_masters_with_the_permission_and_queues_count() {
    let both = perm::READ | perm::WRITE;
    let route = route(&[
        ("b", MASTER_ID, 3, 2, both),
        ("a", MASTER_ID, 1, 4, both),
        ("slave", 1, 4, 4, both),
        ("read-only", MASTER_ID, 4, 4, perm::READ),
        ("none", MASTER_ID, 4, 0, both),
    ]);
    assert_eq!(brokers(&route, perm::WRITE, true), [broker("a:1", 4), broker("b:1", 2)]);
    let readable: Vec<_> =
        brokers(&route, perm::READ, false).into_iter().map(|broker| broker.queues.len()).collect();
    assert_eq!(readable, [1, 3, 4, 4]);
}

fn topics(names: &[&str], brokers: &[(&str, usize)]) -> Vec<(String, Vec<BrokerQueues>)> {
    let queues: Vec<_> = brokers
        .iter()
        .map(|(name, count)| BrokerQueues {
            address: format!("{name}:1"),
            queues: (0..*count as i32).collect(),
        })
        .collect();
    names.iter().map(|name| (name.to_string(), queues.clone())).collect()
}

/// Address, number and names of each share.
fn shares(topics: &[(String, Vec<BrokerQueues>)], connections: usize) -> Vec<(String, usize, String)> {
    share_topics(topics, connections)
        .into_iter()
        .map(|share| {
            let names: Vec<_> = share.topics.iter().map(|(name, _)| *name).collect();
            (share.address, share.number, names.concat())
        })
        .collect()
}

#[test]
fn connections_go_to_brokers_in_turn() {
    let topics = topics(&["t"], &[("a", 3), ("b", 2)]);
    let expected = [("a:1", 0), ("b:1", 0), ("a:1", 1), ("b:1", 1), ("a:1", 2)];
    let expected: Vec<_> =
        expected.map(|(address, number)| (address.to_string(), number, "t".to_string())).into();
    assert_eq!(shares(&topics, 5), expected);
    assert_eq!(share_topics(&topics, 1)[0].topics, [("t", &[0, 1, 2][..])]);
    assert_eq!(shares(&[], 3), []);
}

#[test]
fn connections_of_a_broker_share_its_topics() {
    let topics = topics(&["p", "q", "r", "s", "t"], &[("a", 1), ("b", 1)]);
    let names =
        |connections| shares(&topics, connections).into_iter().map(|share| share.2).collect::<Vec<_>>();
    assert_eq!(names(1), ["pqrst"]);
    assert_eq!(names(2), ["pqrst", "pqrst"]);
    assert_eq!(names(5), ["ps", "prt", "qt", "qs", "r"]);
    // Six connections at the first broker: the sixth has a topic with another.
    assert_eq!(names(12)[10..], ["p", "p"]);
}

#[test]
fn every_queue_is_read_by_one_connection() {
    let brokers = [broker("a", 3), broker("b", 2)];
    let split = |connections| {
        let parts = split_queues(&brokers, connections)?;
        Ok::<_, String>(parts.into_iter().map(|part| (part.address, part.queues)).collect::<Vec<_>>())
    };
    let part = |address: &str, queues: &[i32]| (address.to_string(), queues.to_vec());
    assert_eq!(split(1), Ok(vec![part("a", &[0, 1, 2]), part("b", &[0, 1])]));
    assert_eq!(split(3), Ok(vec![part("a", &[0, 2]), part("a", &[1]), part("b", &[0, 1])]));
    assert_eq!(split(5).map(|parts| parts.len()), Ok(5));
    assert!(split(6).is_err_and(|problem| problem.starts_with("b has 2 queues")));
}
