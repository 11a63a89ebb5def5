use super::*;
use crate::fake::{FakeServer, name_server, respond, stored};
use ringmq_protocol::request::QueryMessageResponse;
use ringmq_protocol::types::StoreTimestamp;

/// A record whose unique key is `id-` and its store time.
fn record(topic: &str, keys: &str, stored_ms: i64) -> Vec<u8> {
    let unique_key = format!("id-{stored_ms}");
    let properties = [(names::KEYS, keys), (names::UNIQ_KEY, &*unique_key)];
    stored(topic, &properties, 0, StoreTimestamp(stored_ms), "body")
}

/// A broker that answers every look-up with all that it has.
async fn broker(records: Vec<Vec<u8>>) -> FakeServer {
    let body = records.concat();
    FakeServer::start(move |request| {
        let fields = QueryMessageResponse { index_last_update_timestamp: 0, index_last_update_phyoffset: 0 };
        match RequestCode(request.code) {
            RequestCode::QUERY_MESSAGE if body.is_empty() => {
                respond(request, ResponseCode::QUERY_NOT_FOUND, &(), "")
            }
            RequestCode::QUERY_MESSAGE => respond(request, ResponseCode::SUCCESS, &fields, body.clone()),
            _ => respond(request, ResponseCode::SUCCESS, &(), ""),
        }
    })
    .await
}

async fn client(brokers: &[(&str, &FakeServer)]) -> (FakeServer, Client) {
    let brokers: Vec<_> = brokers.iter().map(|(name, server)| (*name, server.address())).collect();
    let name_server = name_server(&brokers).await;
    let client = Client::new(&*name_server.address()).await.expect("a client");
    (name_server, client)
}

fn shown(found: &[FoundMessage]) -> Vec<(&str, i64)> {
    found.iter().map(|found| (found.broker_name.as_str(), found.message.store_timestamp.0)).collect()
}

#[tokio::test]
async fn what_all_brokers_find_is_merged_by_store_time_and_the_newest_are_kept() {
    let a = broker(vec![record("T", "x k", 10), record("T", "k", 30), record("T", "k", 50)]).await;
    let b = broker(vec![record("T", "k y", 20), record("T", "k", 40)]).await;
    let nothing = broker(Vec::new()).await;
    let (_name_server, client) = client(&[("a", &a), ("b", &b), ("c", &nothing)]).await;
    let key = MessageKey::User("k".into());
    let found = client.admin().query_message("T", &key, 0..=i64::MAX, 64).await.expect("answers");
    assert_eq!(shown(&found), [("a", 10), ("b", 20), ("a", 30), ("b", 40), ("a", 50)]);
    let found = client.admin().query_message("T", &key, 0..=i64::MAX, 2).await.expect("answers");
    assert_eq!(shown(&found), [("b", 40), ("a", 50)]);

    let asked = &b.received(RequestCode::QUERY_MESSAGE)[1];
    let fields = ["topic", "key", "maxNum", "beginTimestamp", "_UNIQUE_KEY_QUERY"];
    assert_eq!(fields.map(|name| asked.ext(name)), ["T", "k", "2", "0", "false"].map(Some));
}

#[tokio::test]
async fn what_only_has_the_hash_of_the_key_is_left_out() {
    let records = [("T", "k", 10), ("T", "kk", 11), ("U", "k", 12), ("T", "id-10", 13), ("T", "k", 99)];
    let server = broker(records.map(|(topic, keys, at)| record(topic, keys, at)).to_vec()).await;
    let (_name_server, client) = client(&[("a", &server)]).await;
    let find = async |key: MessageKey| {
        let found = client.admin().query_message("T", &key, 0..=50, 64).await.expect("an answer");
        found.iter().map(|found| found.message.store_timestamp.0).collect::<Vec<_>>()
    };
    assert_eq!(find(MessageKey::User("k".into())).await, [10]);
    assert_eq!(find(MessageKey::User("id-10".into())).await, [13]);
    assert_eq!(find(MessageKey::Unique("id-10".into())).await, [10]);
    assert_eq!(find(MessageKey::Unique("k".into())).await, [0; 0]);
}

#[tokio::test]
async fn a_broker_that_refuses_fails_the_look_up() {
    let fine = broker(vec![record("T", "k", 10)]).await;
    let broken =
        FakeServer::start(|request| respond(request, ResponseCode::SYSTEM_ERROR, &(), Vec::new())).await;
    let (_name_server, client) = client(&[("a", &fine), ("b", &broken)]).await;
    let error = client.admin().query_message("T", &MessageKey::User("k".into()), 0..=i64::MAX, 64).await;
    assert!(error.expect_err("one is missing").to_string().contains(&*broken.address()));
}
