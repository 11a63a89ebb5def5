//! The shortest way through the whole system.

use std::collections::BTreeSet;

use ringmq_client::{Client, Message, OffsetMessageId};
use ringmq_tests::Broker;

/// Sends 64 messages and reads them back; the ports of the shards that took them.
async fn there_and_back(broker: &Broker) -> BTreeSet<u16> {
    let client = Client::new(broker.name_server()).await.unwrap();
    let producer = client.producer("smoke").build().unwrap();
    let mut ports = BTreeSet::new();
    for number in 0..64 {
        let sent = producer.send(Message::new("Smoke", format!("message {number}"))).await.unwrap();
        let id: OffsetMessageId = sent.offset_message_id.parse().unwrap();
        ports.insert(id.store_host.port());
    }
    producer.shutdown().await;
    client.shutdown().await;

    let printed = broker.run_cli(&["consume", "Smoke", "--raw"]);
    let mut bodies: Vec<&str> = printed.lines().collect();
    bodies.sort_unstable();
    let mut wanted: Vec<String> = (0..64).map(|number| format!("message {number}")).collect();
    wanted.sort_unstable();
    assert_eq!(bodies, wanted);
    ports
}

#[tokio::test]
async fn one_shard_takes_everything() {
    let mut broker = Broker::start(1);
    let banner = broker.banner();
    assert!(banner.contains(&format!("listens on {}", broker.address(0))), "{banner}");
    assert!(banner.contains(&broker.name_server()), "{banner}");
    assert_eq!(there_and_back(&broker).await, BTreeSet::from([broker.address(0).port()]));
    broker.stop();
}

#[tokio::test]
async fn messages_flow_over_the_ports_of_both_shards() {
    let mut broker = Broker::start(2);
    let ports = [0, 1].map(|shard| broker.address(shard).port());
    assert_eq!(there_and_back(&broker).await, BTreeSet::from(ports));
    broker.stop();
}
