use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::pin;

use futures_util::FutureExt;
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringmq_protocol::batch::BatchEntries;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::{Message, decompress};
use ringmq_protocol::properties::{Properties, names};
use ringmq_protocol::request::SendMessageResponse;
use ringmq_protocol::types::{Compression, QueueOffset};

use super::*;
use crate::fake::{FakeServer, name_server, respond};
use crate::{Client, ConfigError, Producer, ProducerBuilder};

/// What a broker was asked and is to answer.
#[derive(Default)]
struct Script {
    /// Codes of the next answers; success when there are none.
    codes: VecDeque<ResponseCode>,
    /// Answers that are held until a one-way send arrives.
    held: Option<Vec<RemotingCommand>>,
    /// Whether those that come after it are held too.
    holds_on: bool,
    requests: Vec<Request>,
    /// Bodies, in their order.
    stored: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    code: RequestCode,
    sys_flag: String,
    bodies: Vec<String>,
    keys: Vec<String>,
}

impl Script {
    fn answer(&mut self, request: &RemotingCommand) -> Vec<RemotingCommand> {
        if request.is_oneway() {
            let held = self.held.take().unwrap_or_default();
            self.held = self.holds_on.then(Vec::new);
            return held;
        }
        let code = RequestCode(request.code);
        let mut asked = Request {
            code,
            sys_flag: request.ext("f").expect("sysFlag").into(),
            bodies: vec![],
            keys: vec![],
        };
        let compression = ringmq_protocol::types::SysFlag(asked.sys_flag.parse().expect("a number"));
        let mut add = |body: &[u8], properties: &[u8]| {
            let body = match compression.compression().expect("a known one") {
                Some(compression) => decompress(compression, body, 1 << 20).expect("a whole body"),
                None => body.to_vec(),
            };
            asked.bodies.push(String::from_utf8(body).expect("text"));
            asked.keys.push(Properties::new(properties).get(names::UNIQ_KEY).expect("a key").to_string());
        };
        if code == RequestCode::SEND_BATCH_MESSAGE {
            for entry in BatchEntries::new(&request.body) {
                let entry = entry.expect("an entry");
                add(entry.body, entry.properties);
            }
        } else {
            add(&request.body, request.ext("i").expect("properties").as_bytes());
        }
        let first = self.stored.len();
        let answer = match self.codes.pop_front().unwrap_or(ResponseCode::SUCCESS) {
            ResponseCode::SUCCESS => {
                let ids: Vec<String> =
                    (first..first + asked.bodies.len()).map(|at| format!("id{at}")).collect();
                self.stored.extend(asked.bodies.iter().cloned());
                let fields = SendMessageResponse {
                    msg_id: ids.join(",").into(),
                    queue_id: 0,
                    queue_offset: first as i64,
                    transaction_id: None,
                    batch_uniq_id: None,
                    recall_handle: None,
                    region_id: None,
                    trace_on: None,
                };
                respond(request, ResponseCode::SUCCESS, &fields, "")
            }
            code => respond(request, code, &(), ""),
        };
        self.requests.push(asked);
        match &mut self.held {
            Some(held) => {
                held.extend(answer);
                Vec::new()
            }
            None => answer,
        }
    }
}

/// A producer with batching of a topic with one queue, at a broker that follows a script.
struct World {
    script: Arc<Mutex<Script>>,
    producer: Producer,
    queue: MessageQueue,
    _servers: [FakeServer; 2],
}

impl World {
    async fn new(script: Script, batching: Batching) -> Self {
        Self::with(script, |builder| builder.batching(batching)).await
    }

    async fn with(script: Script, set: impl FnOnce(ProducerBuilder) -> ProducerBuilder) -> Self {
        let script = Arc::new(Mutex::new(script));
        let follows = script.clone();
        let broker = FakeServer::start(move |request| match RequestCode(request.code) {
            RequestCode::SEND_MESSAGE_V2 | RequestCode::SEND_BATCH_MESSAGE => lock(&follows).answer(request),
            _ => respond(request, ResponseCode::SUCCESS, &(), ""),
        })
        .await;
        let name_server = name_server(&[("a", broker.address())]).await;
        let client = Client::new(&*name_server.address()).await.expect("a client");
        let builder = client.producer("pg").send_timeout(Duration::from_secs(30));
        let producer = set(builder).build().expect("a producer");
        let queue = MessageQueue::new("T", "a", 0);
        Self { script, producer, queue, _servers: [name_server, broker] }
    }

    fn holding(codes: &[ResponseCode]) -> Script {
        Script { held: Some(Vec::new()), codes: codes.iter().copied().collect(), ..Script::default() }
    }

    fn send(&self, body: &str) -> impl Future<Output = Result<SendResult, SendError>> + Send + use<> {
        let (producer, queue, message) =
            (self.producer.clone(), self.queue.clone(), Message::new("T", body.to_owned()));
        async move { producer.send_to(&queue, message).await }
    }

    /// Sends them at the same time, in this order.
    fn send_all(
        &self,
        bodies: &[&str],
    ) -> impl Future<Output = Vec<Result<SendResult, SendError>>> + Send + use<> {
        join_all(bodies.iter().map(|body| self.send(body)).collect::<Vec<_>>())
    }

    async fn until_asked(&self, requests: usize) {
        let asked = async {
            while lock(&self.script).requests.len() < requests {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), asked).await.expect("the requests arrive");
    }

    async fn release(&self) {
        self.producer.send_one_way(Message::new("T", "release")).await.expect("a connection");
    }

    /// The bodies of each request.
    fn requests(&self) -> Vec<Vec<String>> {
        lock(&self.script).requests.iter().map(|request| request.bodies.clone()).collect()
    }

    fn accumulator(&self) -> Arc<Accumulator> {
        self.producer.inner.accumulator.clone().expect("batching is on")
    }

    /// B4
    fn assert_idle(&self) {
        assert!(lock(&self.accumulator().rows).by_key.is_empty());
    }
}

fn all_stored(outcomes: Vec<Result<SendResult, SendError>>) -> Vec<SendResult> {
    outcomes.into_iter().map(|outcome| outcome.expect("stored")).collect()
}

#[tokio::test]
async fn sends_at_the_same_time_share_a_request_and_each_has_its_result() {
    let world = World::new(Script::default(), Batching::default()).await;
    let sent = all_stored(world.send_all(&["a", "b", "c"]).await);
    let request = lock(&world.script).requests[0].clone();
    assert_eq!((request.code, &*request.sys_flag), (RequestCode::SEND_BATCH_MESSAGE, "0"));
    assert_eq!(world.requests(), [["a", "b", "c"]]);
    let ids: Vec<String> = sent.iter().map(|sent| sent.message_id.clone()).collect();
    assert_eq!(ids, request.keys);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 3, "each its own");
    let places: Vec<_> = sent.iter().map(|sent| (&*sent.offset_message_id, sent.queue_offset.0)).collect();
    assert_eq!(places, [("id0", 0), ("id1", 1), ("id2", 2)]);
    assert!(sent.iter().all(|sent| sent.queue == world.queue));
    // One that is alone is an ordinary message.
    let alone = world.send("d").await.expect("stored");
    assert_eq!((&*alone.offset_message_id, alone.queue_offset), ("id3", QueueOffset(3)));
    assert_eq!(lock(&world.script).requests[1].code, RequestCode::SEND_MESSAGE_V2);
    assert_eq!(world.producer.inner.sender.client.metrics().sends[0].latency.count(), 4, "each is a send");
    world.assert_idle();
}

#[tokio::test]
async fn what_gathers_behind_a_request_is_the_next_one() {
    let world = World::new(World::holding(&[]), Batching::default()).await;
    let first = tokio::spawn(world.send("a"));
    world.until_asked(1).await;
    let mut others = pin!(world.send_all(&["b", "c", "d"]));
    assert!((&mut others).now_or_never().is_none());
    assert_eq!(world.requests(), [["a"]]);
    world.release().await;
    all_stored(others.await);
    first.await.expect("no panic").expect("stored");
    assert_eq!(world.requests(), [vec!["a"], vec!["b", "c", "d"]]);
    world.assert_idle();
}

/// Senders that go on when they are told are part of the next batch, and not of the one after it.
#[tokio::test]
async fn who_sends_on_at_once_is_in_the_next_request() {
    let world = World::new(Script { holds_on: true, ..World::holding(&[]) }, Batching::default()).await;
    let first = tokio::spawn(world.send("a"));
    world.until_asked(1).await;
    let go_on = |at: usize| {
        let sends = [world.send(&format!("b{at}")), world.send(&format!("c{at}"))];
        async move {
            for send in sends {
                send.await.expect("stored");
            }
        }
    };
    let senders: Vec<_> = (0..3).map(|at| tokio::spawn(go_on(at))).collect();
    tokio::task::yield_now().await;
    world.release().await;
    world.until_asked(2).await;
    let mut early = pin!(world.send("early"));
    assert!((&mut early).now_or_never().is_none());
    lock(&world.script).holds_on = false;
    world.release().await;
    early.await.expect("stored");
    for sender in senders {
        sender.await.expect("no panic");
    }
    first.await.expect("no panic").expect("stored");
    assert_eq!(world.requests(), [vec!["a"], vec!["b0", "b1", "b2"], vec!["early", "c0", "c1", "c2"]]);
}

/// B1
#[tokio::test]
async fn a_request_that_is_repeated_is_not_overtaken() {
    let world = World::new(World::holding(&[ResponseCode::SYSTEM_BUSY]), Batching::default()).await;
    let first = tokio::spawn(world.send("a"));
    world.until_asked(1).await;
    let mut others = pin!(world.send_all(&["b", "c"]));
    assert!((&mut others).now_or_never().is_none());
    world.release().await;
    all_stored(others.await);
    first.await.expect("no panic").expect("stored");
    assert_eq!(world.requests(), [vec!["a"], vec!["a"], vec!["b", "c"]]);
}

/// B2
#[tokio::test]
async fn nothing_is_stored_behind_what_failed() {
    let world = World::new(World::holding(&[ResponseCode::MESSAGE_ILLEGAL]), Batching::default()).await;
    let first = tokio::spawn(world.send("a"));
    world.until_asked(1).await;
    let mut others = pin!(world.send_all(&["b", "c"]));
    assert!((&mut others).now_or_never().is_none());
    world.release().await;
    let error = first.await.expect("no panic").expect_err("refused");
    assert_eq!(error.to_string().matches("MESSAGE_ILLEGAL").count(), 1, "{error}");
    for outcome in others.await {
        let error = outcome.expect_err("behind");
        assert!(error.is_transient());
        let SendError::Behind { queue, source } = &error else { panic!("{error}") };
        assert_eq!((queue, matches!(**source, SendError::Failed { .. })), (&world.queue, true));
        let text = error.to_string();
        assert!(text.contains("queue 0 of a") && text.contains("MESSAGE_ILLEGAL"), "{text}");
    }
    world.send("d").await.expect("stored");
    assert_eq!(world.requests(), [["a"], ["d"]]);
    world.assert_idle();
}

#[tokio::test]
async fn a_batch_that_fails_fails_each_of_its_messages() {
    let script = Script { codes: [ResponseCode::MESSAGE_ILLEGAL].into(), ..Script::default() };
    let world = World::new(script, Batching::default()).await;
    for outcome in world.send_all(&["a", "b"]).await {
        let error = outcome.expect_err("refused");
        assert!(matches!(error, SendError::Failed { attempts: 1, .. }), "{error}");
    }
    assert_eq!(world.requests(), [["a", "b"]]);
}

#[tokio::test]
async fn what_cannot_be_in_a_batch_keeps_its_place() {
    let world = World::new(Script::default(), Batching::default()).await;
    let (long, longer) = ("l".repeat(5000), "m".repeat(6000));
    let message = |body: &str| Message::new("T", body.to_owned());
    let messages = [
        message("a"),
        message("b"),
        message("later").with(names::DELAY_TIME_LEVEL, "1"),
        message("c"),
        message("d"),
        message(&long),
        message(&longer),
        message("e"),
        message("asked").with(names::CORRELATION_ID, "1"),
    ];
    let batch = world.producer.send_batch_to(&world.queue, vec![message("x"), message("y")]);
    let single = messages.into_iter().map(|message| world.producer.send_to(&world.queue, message));
    let (single, batch) = tokio::join!(join_all(single), batch);
    all_stored(single);
    let requests: Vec<_> = lock(&world.script)
        .requests
        .iter()
        .map(|request| (request.bodies.join(" "), request.sys_flag.parse().unwrap_or(-1)))
        .collect();
    let compressed = 0x301;
    let wanted = [
        ("a b", 0),
        ("later", 0),
        ("c d", 0),
        (&*format!("{long} {longer}"), compressed),
        ("e", 0),
        ("asked", 0),
        ("x y", 0),
    ];
    assert_eq!(requests, wanted.map(|(bodies, flag)| (bodies.to_owned(), flag)));
    let offsets: Vec<u64> = batch.expect("stored").iter().map(|sent| sent.queue_offset.0).collect();
    assert_eq!(offsets, [9, 10]);
}

/// With a linger of which nobody sees the end.
#[tokio::test]
async fn a_batch_leaves_when_it_is_full() {
    let size = {
        let world = World::new(Script::default(), Batching::default()).await;
        world.producer.prepare(Message::new("T", "a")).expect("legal").stored_bytes()
    };
    let batching = Batching::default().linger(Duration::from_secs(3600)).bytes_max(3 * size);
    let world = World::with(Script::default(), |builder| {
        builder.send_timeout(Duration::from_secs(7200)).compress_over(None).batching(batching)
    })
    .await;
    let sends = async {
        all_stored(world.send_all(&["a", "b", "c", "d", "e", "f"]).await);
        let delayed = Message::new("T", "later").with(names::DELAY_TIME_LEVEL, "1");
        world.producer.send_to(&world.queue, delayed).await.expect("stored");
        all_stored(world.send_all(&["g", &"h".repeat(1000)]).await);
    };
    tokio::time::timeout(Duration::from_secs(60), sends).await.expect("nobody waits for the linger");
    let requests = world.requests();
    assert_eq!(requests[..3], [vec!["a", "b", "c"], vec!["d", "e", "f"], vec!["later"]]);
    assert_eq!(requests[3], ["g"]);
    assert_eq!(requests.len(), 5, "what is larger than a batch goes alone");
}

#[tokio::test]
async fn a_batch_leaves_when_its_time_is_over() {
    let world = World::new(Script::default(), Batching::default().linger(Duration::from_millis(20))).await;
    world.send("a").await.expect("stored");
    world.assert_idle();
}

/// B2, for sends that begin before the failure was heard of, and B4, for futures that never hear of it.
#[tokio::test]
async fn a_failure_counts_until_everybody_has_heard_of_it() {
    for is_dropped in [false, true] {
        let world = World::new(World::holding(&[ResponseCode::MESSAGE_ILLEGAL]), Batching::default()).await;
        let mut first = Box::pin(world.send("a"));
        assert!((&mut first).now_or_never().is_none());
        world.until_asked(1).await;
        let second = tokio::spawn(world.send("b"));
        world.release().await;
        assert!(matches!(second.await.expect("no panic"), Err(SendError::Behind { .. })));
        assert!(
            matches!(world.send("c").await, Err(SendError::Behind { .. })),
            "the first has not heard of it"
        );
        if is_dropped {
            drop(first);
        } else {
            assert!(matches!(first.await, Err(SendError::Failed { .. })));
        }
        world.assert_idle();
        world.send("d").await.expect("stored");
        assert_eq!(world.requests(), [["a"], ["d"]]);
    }
}

/// B3
#[tokio::test]
async fn a_send_that_is_dropped_while_it_waits_is_not_sent() {
    let world = World::new(World::holding(&[]), Batching::default()).await;
    let first = tokio::spawn(world.send("a"));
    world.until_asked(1).await;
    assert!(world.send("dropped").now_or_never().is_none());
    let mut last = pin!(world.send("b"));
    assert!((&mut last).now_or_never().is_none());
    assert_eq!(lock(&world.accumulator().rows).by_key[&Key::Queue(world.queue.clone())].waiting.len(), 1);
    world.release().await;
    last.await.expect("stored");
    first.await.expect("no panic").expect("stored");
    assert_eq!(world.requests(), [["a"], ["b"]]);
    world.assert_idle();
}

#[tokio::test]
async fn sends_to_any_queue_have_a_few_requests_on_their_way() {
    let world = World::new(World::holding(&[]), Batching::default()).await;
    let send = |body: &str| {
        let (producer, message) = (world.producer.clone(), Message::new("T", body.to_owned()));
        async move { producer.send(message).await }
    };
    let mut first = Vec::new();
    for at in 0..TOPIC_REQUESTS_MAX {
        first.push(tokio::spawn(send(&at.to_string())));
        world.until_asked(at + 1).await;
    }
    let mut others = pin!(join_all(["b", "c", "d"].map(send)));
    assert!((&mut others).now_or_never().is_none());
    world.release().await;
    all_stored(others.await);
    for sent in first {
        sent.await.expect("no panic").expect("stored");
    }
    assert_eq!(world.requests()[TOPIC_REQUESTS_MAX..], [["b", "c", "d"]]);
    // A delayed one has no place to keep, so it waits for nobody.
    lock(&world.script).held = Some(Vec::new());
    let delayed = Message::new("T", "later").with(names::DELAY_TIME_LEVEL, "1");
    let mut delayed = pin!(world.producer.send(delayed));
    assert!((&mut delayed).now_or_never().is_none());
    world.assert_idle();
    world.until_asked(TOPIC_REQUESTS_MAX + 2).await;
    world.release().await;
    delayed.await.expect("stored");
}

#[tokio::test]
async fn a_send_whose_turn_does_not_come_in_time_fails_unsent() {
    let timeout = Duration::from_millis(1);
    let world =
        World::with(Script::default(), |builder| builder.send_timeout(timeout).batching(Batching::default()))
            .await;
    let accumulator = world.accumulator();
    for key in [Key::Queue(world.queue.clone()), Key::Topic("T".into())] {
        let mut row = Row { gathers: true, ..Row::default() };
        let mut wait = |number, since| {
            let outbound = Arc::new(world.producer.prepare(Message::new("T", "x")).expect("legal"));
            let (outcome, ended) = oneshot::channel();
            row.push(Waiting { number, outbound, since, outcome }, usize::MAX);
            ended
        };
        let now = Instant::now();
        let (late, young) = (wait(1, now), wait(2, now + Duration::from_secs(60)));
        lock(&accumulator.rows).by_key.insert(key.clone(), row);
        while now.elapsed() < timeout {
            tokio::task::yield_now().await;
        }
        let taken = accumulator.take(&key);
        let Failed { error, .. } = late.await.expect("told").expect_err("late");
        assert!(matches!(error, SendError::Expired(after) if after == timeout), "{error}");
        match key {
            Key::Queue(_) => {
                let Failed { error, .. } = young.await.expect("told").expect_err("behind");
                assert!(
                    matches!(&error, SendError::Behind { source, .. } if matches!(**source, SendError::Expired(_)))
                );
                assert!(taken.is_empty());
            }
            Key::Topic(_) => assert_eq!(taken.len(), 1),
        }
    }
    assert!(world.requests().is_empty());
}

/// Tasks belong to the runtime in which the send was polled. If that ends, who waits behind it is told.
#[test]
fn a_runtime_that_ends_leaves_nobody_waiting() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (home, away) = (runtime(), runtime());
    let world = home.block_on(World::new(Script::default(), Batching::default()));
    {
        let _entered = away.enter();
        assert!(world.send("away").now_or_never().is_none(), "its worker never runs");
    }
    home.block_on(async {
        let mut waiting = pin!(world.send("waiting"));
        assert!((&mut waiting).now_or_never().is_none());
        away.shutdown_background();
        assert!(matches!(waiting.await, Err(SendError::Stopped)));
        world.assert_idle();
        world.send("a").await.expect("stored");
    });
    assert_eq!(world.requests(), [["a"]]);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let client = Client::new("127.0.0.1:9876").await.expect("a client");
    let linger = Batching::default().linger(Duration::from_secs(3));
    let error = client.producer("pg").batching(linger).build().err().expect("refused");
    assert!(matches!(error, ConfigError::Linger { .. }), "{error}");
    let error = client.producer("pg").compression_level(10).build().err().expect("refused");
    assert!(error.to_string().contains("0 to 9"), "{error}");
}

#[tokio::test]
async fn bodies_are_compressed_as_the_producer_says() {
    for (compression, flag) in
        [(Compression::Lz4, 0x101), (Compression::Zstd, 0x201), (Compression::Zlib, 0x301)]
    {
        let world = World::with(Script::default(), |builder| {
            builder.compression(compression).compression_level(9).compress_over(Some(100))
        })
        .await;
        let long = "again and again, ".repeat(100);
        world.send(&long).await.expect("stored");
        world.send("short").await.expect("stored");
        let requests = lock(&world.script).requests.clone();
        assert_eq!((&requests[0].bodies, requests[0].sys_flag.parse()), (&vec![long], Ok(flag)));
        assert_eq!(&*requests[1].sys_flag, "0");
    }
}

/// B1 and B2 under a broker that is busy and refuses at random: what is stored has the order of the sends, and nothing that
/// began before the failure of an earlier send was told is stored.
#[tokio::test]
async fn order_holds_whatever_fails() {
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let codes = (0..40).map(|_| match random.random_range(0..10) {
            0 => ResponseCode::SYSTEM_BUSY,
            1 | 2 => ResponseCode::MESSAGE_ILLEGAL,
            _ => ResponseCode::SUCCESS,
        });
        let script = Script { codes: codes.collect(), ..Script::default() };
        let linger = Duration::from_millis(random.random_range(0..2));
        let batching = Batching::default().linger(linger).bytes_max(random.random_range(200..2000));
        let world = World::with(script, |builder| builder.retries(1).batching(batching)).await;

        // The order of events: when each send began, and when its outcome was known.
        let (mut begun, mut ended) = (BTreeMap::new(), BTreeMap::new());
        let mut under_way = FuturesUnordered::new();
        let mut clock = 0;
        for number in 0..100_u32 {
            let send = world.send(&number.to_string());
            let mut send = Box::pin(async move { (number, send.await) });
            clock += 1;
            begun.insert(number, clock);
            match (&mut send).now_or_never() {
                Some((number, outcome)) => drop(ended.insert(number, (clock, outcome.is_ok()))),
                None => under_way.push(send),
            }
            while under_way.len() > 15 || (!under_way.is_empty() && random.random_ratio(1, 8)) {
                let (number, outcome) = under_way.next().await.expect("some are under way");
                clock += 1;
                ended.insert(number, (clock, outcome.is_ok()));
            }
        }
        while let Some((number, outcome)) = under_way.next().await {
            clock += 1;
            ended.insert(number, (clock, outcome.is_ok()));
        }

        let stored: Vec<u32> =
            lock(&world.script).stored.iter().map(|body| body.parse().expect("a number")).collect();
        assert!(stored.is_sorted_by(|one, other| one < other), "seed {seed}: {stored:?}");
        let acknowledged: Vec<u32> =
            ended.iter().filter(|(_, (_, stored))| *stored).map(|(number, _)| *number).collect();
        assert_eq!(stored, acknowledged, "seed {seed}");
        assert!(acknowledged.len() < 100, "seed {seed}: something failed");
        for (failed, (known, _)) in ended.iter().filter(|(_, (_, stored))| !*stored) {
            let behind = stored.iter().find(|number| *number > failed && begun[number] < *known);
            assert_eq!(behind, None, "seed {seed}: stored behind {failed}");
        }
        world.assert_idle();
    }
}
