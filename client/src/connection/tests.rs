use std::sync::atomic::{AtomicI32, AtomicUsize};

use super::*;
use tokio::task::JoinHandle;

use crate::fake::{FakeServer, respond};

const CONFIG: ConnectionConfig =
    ConnectionConfig { codec: Codec::RocketMq, in_flight_max: 2, connect_timeout: Duration::from_secs(5) };

struct Nobody;

impl ServerRequests for Nobody {
    fn on_request(&self, _: &str, request: RemotingCommand) -> Answer {
        Answer::Now(not_supported(&request))
    }
}

async fn open(server: &FakeServer) -> Connection {
    Connection::open(server.address(), CONFIG, Arc::new(Nobody)).await.expect("a connection")
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn call() -> Call<'static> {
    Call::new(RequestCode::HEART_BEAT, &())
}

/// C2: the answer that comes too late is dropped, and the connection goes on.
#[tokio::test]
async fn a_timeout_harms_nobody_else() {
    let late = AtomicI32::new(-1);
    let server = FakeServer::start(move |request| {
        let earlier = late.swap(request.opaque.0, Ordering::SeqCst);
        if earlier == -1 {
            return Vec::new();
        }
        let mut stale = respond(request, ResponseCode::SYSTEM_ERROR, &(), "late");
        stale[0].opaque = Opaque(earlier);
        stale.extend(respond(request, ResponseCode::SUCCESS, &(), "in time"));
        stale
    })
    .await;
    let connection = open(&server).await;
    let timed_out = connection.request(&call(), Instant::now() + Duration::from_millis(20)).await;
    assert!(matches!(timed_out, Err(RequestError::Timeout { .. })));
    let answered = connection.request(&call(), soon()).await.expect("an answer");
    assert_eq!(&*answered.body, b"in time");
    assert_eq!(server.connections(), 1);
}

/// Answers may come in any order; each finds its request.
#[tokio::test]
async fn answers_find_their_requests() {
    let held: Mutex<Vec<RemotingCommand>> = Mutex::default();
    let server = FakeServer::start(move |request| {
        let mut held = held.lock().expect("unpoisoned");
        held.extend(respond(request, ResponseCode::SUCCESS, &(), request.body.clone()));
        if held.len() < 2 { Vec::new() } else { held.drain(..).rev().collect() }
    })
    .await;
    let connection = open(&server).await;
    let (first, second) = (call().body("first"), call().body("second"));
    let (first, second) =
        tokio::join!(connection.request(&first, soon()), connection.request(&second, soon()));
    assert_eq!(&*first.expect("an answer").body, b"first");
    assert_eq!(&*second.expect("an answer").body, b"second");
}

/// C3: the third request waits for a permit and is sent when one is free; a long poll needs none.
#[tokio::test]
async fn requests_in_flight_are_bounded() {
    let server = FakeServer::start(|request| match &*request.body {
        b"hold" => Vec::new(),
        _ => respond(request, ResponseCode::SUCCESS, &(), ""),
    })
    .await;
    let connection = open(&server).await;
    let held = || {
        let connection = connection.clone();
        tokio::spawn(async move { connection.request(&call().body("hold"), soon()).await })
    };
    let holders = [held(), held()];
    while server.received(RequestCode::HEART_BEAT).len() < 2 {
        tokio::task::yield_now().await;
    }
    let refused = connection.request(&call(), Instant::now() + Duration::from_millis(20)).await;
    assert!(matches!(refused, Err(RequestError::Timeout { .. })));
    assert_eq!(server.received(RequestCode::HEART_BEAT).len(), 2, "it was never sent");
    connection.request(&call().long_poll(), soon()).await.expect("long polls go past");
    // A caller that goes away gives its permit back.
    holders.iter().for_each(JoinHandle::abort);
    connection.request(&call(), soon()).await.expect("a permit is free");
}

#[tokio::test]
async fn a_lost_connection_ends_every_request() {
    let server = FakeServer::start(|request| {
        // A response longer than any frame may be.
        respond(request, ResponseCode::SUCCESS, &(), vec![0; 17 * 1024 * 1024])
    })
    .await;
    let connection = open(&server).await;
    let lost = connection.request(&call(), soon()).await;
    assert!(matches!(&lost, Err(RequestError::Lost { .. })), "{lost:?}");
    assert!(!connection.is_usable());
    assert!(connection.request(&call(), soon()).await.is_err(), "and no new one begins");
}

#[tokio::test]
async fn a_server_may_ask_too() {
    struct Counter(AtomicUsize);
    impl ServerRequests for Counter {
        fn on_request(&self, _: &str, request: RemotingCommand) -> Answer {
            self.0.fetch_add(1, Ordering::SeqCst);
            Answer::Now(not_supported(&request))
        }
    }
    // Answers a request with a request of its own, of the same opaque; and our answer to that with the response.
    let server = FakeServer::start(|request| {
        if request.is_response() {
            assert_eq!(request.code, ResponseCode::REQUEST_CODE_NOT_SUPPORTED.0);
            return respond(request, ResponseCode::SUCCESS, &(), "");
        }
        let mut question = RemotingCommand::request(RequestCode::GET_CONSUMER_RUNNING_INFO, &(), "");
        question.opaque = request.opaque;
        vec![question]
    })
    .await;
    let counter = Arc::new(Counter(AtomicUsize::new(0)));
    let connection = Connection::open(server.address(), CONFIG, counter.clone()).await.expect("a connection");
    connection.request(&call(), soon()).await.expect("an answer");
    assert_eq!(counter.0.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_is_queued_leaves_before_the_connection_closes() {
    let server = FakeServer::start(|_| Vec::new()).await;
    let connection = open(&server).await;
    for _ in 0..100 {
        connection.one_way(&call()).await.expect("queued");
    }
    connection.close().await;
    while server.received(RequestCode::HEART_BEAT).len() < 100 {
        tokio::task::yield_now().await;
    }
}
