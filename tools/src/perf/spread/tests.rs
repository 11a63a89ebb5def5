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

#[test]
fn connections_go_to_brokers_in_turn_and_begin_with_different_queues() {
    let spread = all_queues(&[broker("a", 2), broker("b", 3)], 5);
    let seen: Vec<_> = spread.iter().map(|part| (&*part.address, part.queues.clone())).collect();
    assert_eq!(
        seen,
        [("a", vec![0, 1]), ("b", vec![0, 1, 2]), ("a", vec![1, 0]), ("b", vec![1, 2, 0]), ("a", vec![0, 1]),]
    );
    assert_eq!(all_queues(&[], 3), []);
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
