use super::*;
use crate::fake::{FakeServer, name_server, respond, route_data};

async fn client(name_servers: String) -> Client {
    Client::new(name_servers).await.expect("a client")
}

#[test]
fn name_servers_are_host_and_port() {
    let parsed = parse_name_servers(" a:9876; b:1 ,a:9876;").expect("addresses");
    assert_eq!(parsed.iter().map(|address| &**address).collect::<Vec<_>>(), ["a:9876", "b:1"]);
    assert!(matches!(parse_name_servers(" ; "), Err(ConfigError::NoNameServer(_))));
    for wrong in ["a", "a:", ":1", "a:0", "a:65536", "http://a"] {
        assert!(matches!(parse_name_servers(wrong), Err(ConfigError::NameServerAddress(_))), "{wrong}");
    }
}

#[tokio::test]
async fn a_dead_name_server_is_passed_over() {
    let alive = name_server(&[("a", "127.0.0.1:1".into())]).await;
    // Nothing listens on the port of a server that is gone.
    let dead = FakeServer::start(|_| Vec::new()).await.address();
    let client = client(format!("{dead};{}", alive.address())).await;
    assert_eq!(client.route("T", None).await.expect("a route").writable.len(), 1);
    assert!(matches!(client.route("Unknown", None).await, Err(RouteError::TopicNotExist { .. })));
}

#[tokio::test]
async fn a_route_is_asked_for_once_until_it_is_too_old() {
    let server = name_server(&[("a", "127.0.0.1:1".into())]).await;
    let client = client(server.address().to_string()).await;
    let asked = || server.received(RequestCode::GET_ROUTEINFO_BY_TOPIC).len();
    let (first, second) = tokio::join!(client.route("T", None), client.route("T", None));
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(asked(), 1);
    client.route("T", Some(Instant::now())).await.expect("a route");
    assert_eq!(asked(), 2);
}

/// R3: brokers that restart vanish from the name server for a moment.
#[tokio::test]
async fn a_known_route_survives_its_disappearance() {
    let gone = std::sync::atomic::AtomicBool::new(false);
    let route = route_data(&[("a", "127.0.0.1:1".into())]).to_json();
    let server = FakeServer::start(move |request| match gone.swap(true, Ordering::SeqCst) {
        false => respond(request, ResponseCode::SUCCESS, &(), route.clone()),
        true => respond(request, ResponseCode::TOPIC_NOT_EXIST, &(), ""),
    })
    .await;
    let client = client(server.address().to_string()).await;
    let first = client.route("T", None).await.expect("a route");
    let second = client.route("T", Some(Instant::now())).await.expect("the same route");
    assert_eq!(first, second);
}

#[tokio::test]
async fn an_unknown_topic_is_sent_to_brokers_that_create_it() {
    let template = route_data(&[("a", "127.0.0.1:1".into())]).to_json();
    let server = FakeServer::start(move |request| match request.ext("topic") {
        Some("TBW102") => respond(request, ResponseCode::SUCCESS, &(), template.clone()),
        _ => respond(request, ResponseCode::TOPIC_NOT_EXIST, &(), ""),
    })
    .await;
    let client = client(server.address().to_string()).await;
    assert_eq!(client.publish_route("New", None).await.expect("a route").writable.len(), 1);
    assert!(client.route("New", None).await.is_err(), "for consumers it does not exist yet");
}

/// A server that asks its clients to go away answers nothing more on this connection.
#[tokio::test]
async fn a_request_told_to_go_away_goes_out_again_on_a_new_connection() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let server = FakeServer::start(move |request| {
        let code =
            if first.swap(false, Ordering::SeqCst) { ResponseCode::GO_AWAY } else { ResponseCode::SUCCESS };
        respond(request, code, &(), "")
    })
    .await;
    let client = client("127.0.0.1:1".to_string()).await;
    let call = Call::new(RequestCode::GET_BROKER_RUNTIME_INFO, &());
    client.ask(&server.address(), &call, Duration::from_secs(20)).await.expect("success");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_broker_learns_our_groups_before_anything_else() {
    let server = FakeServer::start(|request| respond(request, ResponseCode::SUCCESS, &(), "")).await;
    let client = client("127.0.0.1:1".to_string()).await;
    client.add_producer("pg");
    let call = Call::new(RequestCode::GET_BROKER_RUNTIME_INFO, &());
    client.ask(&server.address(), &call, Duration::from_secs(20)).await.expect("success");
    let heartbeats = server.received(RequestCode::HEART_BEAT);
    let heartbeat = HeartbeatData::from_json(&heartbeats[0].body).expect("a heartbeat");
    assert_eq!(heartbeat.client_id, client.id());
    assert_eq!(heartbeat.producer_data_set[0].group_name, "pg");
}
