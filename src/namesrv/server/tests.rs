//! The server over real sockets: a blocking client of the standard library against a server in a thread.

use super::*;
use bytes::Bytes;
use ringmq_protocol::code::RequestCode;
use ringmq_protocol::frame::{Codec, Fields, RemotingCommand, Value};
use std::io::{ErrorKind, Read, Write};
use std::sync::mpsc;
use std::thread::JoinHandle;

const LOOPBACK: &str = "127.0.0.1:0";
const TABLE: &str = r#"{"filterServerList":[],"topicConfigSerializeWrapper":{"dataVersion":{"counter":1,"stateVersion":0,"timestamp":0},"topicConfigTable":{"T":{"perm":6,"readQueueNums":4,"topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,"writeQueueNums":4},"TBW102":{"perm":7,"readQueueNums":8,"topicFilterType":"SINGLE_TAG","topicName":"TBW102","topicSysFlag":0,"writeQueueNums":8}}}}"#;

/// A server in a thread; stopped, and its result checked, at the end of the test.
struct Running {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Running {
    fn start(listen: &str, options: Options) -> Running {
        let listen = listen.parse().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, address) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            run(listen, options, move |address| ready.send(address).unwrap(), async {
                let _ = stopped.await;
            })
        });
        let address = address.recv().unwrap();
        Running { address, stop: Some(stop), thread: Some(thread) }
    }

    fn limited(limits: Limits) -> Running {
        Running::start(LOOPBACK, Options { limits, ..Options::default() })
    }

    fn connect(&self) -> Client {
        Client(StdStream::connect(self.address).unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.unwrap().unwrap();
        }
    }
}

struct Client(StdStream);

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn receive(&mut self) -> RemotingCommand {
        let mut bytes = vec![0; 4];
        self.0.read_exact(&mut bytes).unwrap();
        let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        bytes.resize(4 + length, 0);
        self.0.read_exact(&mut bytes[4..]).unwrap();
        RemotingCommand::decode(&Bytes::from(bytes)).unwrap()
    }

    fn ask(&mut self, request: &RemotingCommand) -> RemotingCommand {
        self.send(&bytes_of(request));
        self.receive()
    }

    fn is_served(&mut self) {
        assert_eq!(self.ask(&request(RequestCode::GET_BROKER_CLUSTER_INFO, &(), "")).code, 0);
    }

    /// Whether the server has closed; waits for that.
    fn is_closed(&mut self) -> bool {
        let mut rest = [0; 64];
        match self.0.read(&mut rest) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

fn bytes_of(request: &RemotingCommand) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(Codec::Json, &mut bytes);
    bytes
}

fn request(code: RequestCode, ext: &dyn Fields, body: &str) -> RemotingCommand {
    RemotingCommand::request(code, ext, body.to_owned())
}

fn register(name: &str, addr: &str) -> RemotingCommand {
    let ext = [
        ("brokerName", Value::Str(name)),
        ("brokerAddr", Value::Str(addr)),
        ("clusterName", Value::Str("C")),
        ("haServerAddr", Value::Str(addr)),
        ("brokerId", Value::I64(0)),
    ];
    request(RequestCode::REGISTER_BROKER, &ext, TABLE)
}

fn route(topic: &str) -> RemotingCommand {
    request(RequestCode::GET_ROUTEINFO_BY_TOPIC, &[("topic", Value::Str(topic))], "")
}

#[test]
fn a_broker_registers_clients_find_it_and_its_end_is_noticed() {
    let server = Running::start(LOOPBACK, Options::default());
    let (mut broker, mut client) = (server.connect(), server.connect());
    assert_eq!(client.ask(&route("T")).code, 17);
    assert_eq!(broker.ask(&register("a-0", "10.0.0.1:10911")).code, 0);
    assert_eq!(broker.ask(&register("a-1", "10.0.0.1:10921")).code, 0, "two shards on one connection");
    let found = client.ask(&route("T"));
    assert_eq!(found.code, 0);
    let body = String::from_utf8(found.body.to_vec()).unwrap();
    assert!(body.contains("10.0.0.1:10911") && body.contains("10.0.0.1:10921"), "{body}");

    // The server shuts its side down only after it has unregistered the brokers, so the end of stream tells when.
    broker.0.shutdown(Shutdown::Write).unwrap();
    assert!(broker.is_closed());
    assert_eq!(client.ask(&route("T")).code, 17);
}

#[test]
fn pipelined_requests_are_answered_in_order_and_oneway_ones_not_at_all() {
    let server = Running::start(LOOPBACK, Options::default());
    let mut client = server.connect();
    let mut bytes = Vec::new();
    for opaque in 0..500 {
        let mut ask = route("nowhere");
        ask.opaque.0 = opaque;
        if opaque % 5 == 0 {
            ask.flag = 2;
        }
        ask.encode(if opaque % 2 == 0 { Codec::Json } else { Codec::RocketMq }, &mut bytes);
    }
    client.send(&bytes);
    for opaque in (0..500).filter(|opaque| opaque % 5 != 0) {
        assert_eq!(client.receive().opaque.0, opaque);
    }
    let mut response = route("nowhere");
    response.flag = 1;
    client.send(&bytes_of(&response));
    client.is_served();
}

#[test]
fn a_large_registration_arrives_in_any_pieces() {
    let server = Running::start(LOOPBACK, Options::default());
    let mut broker = server.connect();
    let topic = |i: usize| {
        format!(
            r#""topic-{i}":{{"perm":6,"readQueueNums":4,"topicName":"topic-{i}","topicSysFlag":0,"writeQueueNums":4}}"#
        )
    };
    let topics: Vec<String> = (0..20_000).map(topic).collect();
    let mut registration = register("a", "10.0.0.1:10911");
    registration.body = format!(
        r#"{{"topicConfigSerializeWrapper":{{"dataVersion":{{"counter":1,"stateVersion":0,"timestamp":0}},"topicConfigTable":{{{}}}}}}}"#,
        topics.join(",")
    )
    .into();
    let bytes = bytes_of(&registration);
    let (head, rest) = bytes.split_at(5);
    for piece in head.chunks(1).chain(rest.chunks(100_003)) {
        broker.send(piece);
    }
    assert_eq!(broker.receive().code, 0);
    assert_eq!(broker.ask(&route("topic-19999")).code, 0);
    let list = broker.ask(&request(RequestCode::GET_ALL_TOPIC_LIST_FROM_NAMESERVER, &(), ""));
    assert!(list.body.len() > 20_000 * 10);
}

#[test]
fn ipv6() {
    let server = Running::start("[::1]:0", Options::default());
    assert!(server.address.is_ipv6() && server.address.port() != 0);
    let mut broker = server.connect();
    assert_eq!(broker.ask(&register("a", "[::1]:10911")).code, 0);
    let found = broker.ask(&route("T"));
    assert!(String::from_utf8(found.body.to_vec()).unwrap().contains(r#""0":"[::1]:10911""#));
}

#[test]
fn what_is_no_frame_closes_its_connection_and_no_other() {
    let server = Running::start(LOOPBACK, Options::default());
    let mut bystander = server.connect();
    bystander.is_served();
    let half = &bytes_of(&route("T"))[..20];
    let bad: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0xff; 64],
        &[0; 16],
        &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 4],
        &[0, 0, 0, 20, 0, 0, 0, 99, b'{'],
        &[0, 0, 0, 8, 0, 0, 0, 4, b'n', b'o', b'n', b'o'],
    ];
    for bytes in bad {
        let mut client = server.connect();
        client.send(bytes);
        assert!(client.is_closed(), "{bytes:02x?}");
        bystander.is_served();
    }
    let mut client = server.connect();
    client.send(half);
    client.0.shutdown(Shutdown::Write).unwrap();
    assert!(client.is_closed(), "half a frame");
    bystander.is_served();
}

#[test]
fn random_bytes_never_hurt_others() {
    let server = Running::start(LOOPBACK, Options::default());
    let mut bystander = server.connect();
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..200 {
        let mut bytes: Vec<u8> = if round % 2 == 0 {
            (0..random() % 300).map(|_| random() as u8).collect()
        } else {
            bytes_of(&register("a", "10.0.0.1:10911"))
        };
        if round % 2 == 1 {
            for _ in 0..4 {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }
        }
        let mut client = server.connect();
        // The server may close while we still write.
        let _ = client.0.write_all(&bytes);
        let _ = client.0.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        let _ = client.0.read_to_end(&mut rest);
        bystander.is_served();
    }
}

#[test]
fn a_connection_past_its_deadline_is_closed() {
    let short = Limits { idle_ms: 30, frame_ms: 30, scan_ms: 10, ..Limits::default() };
    let server = Running::limited(short);
    let mut idle = server.connect();
    assert!(idle.is_closed(), "idle");
    let mut half = server.connect();
    half.send(&[0, 0, 0]);
    assert!(half.is_closed(), "half a length");
    let mut half = server.connect();
    half.send(&bytes_of(&route("T"))[..20]);
    assert!(half.is_closed(), "half a frame");

    let server = Running::limited(Limits { idle_ms: 3_600_000, ..short });
    let mut deaf = server.connect();
    let topics = request(RequestCode::GET_NAMESRV_CONFIG, &(), "");
    // Asks without ever reading, until the server has had enough and the write fails.
    let bytes = bytes_of(&topics).repeat(1_000);
    while deaf.0.write_all(&bytes).is_ok() {}
}

#[test]
fn connections_and_their_memory_are_limited() {
    let server = Running::limited(Limits { connections_max: 2, ..Limits::default() });
    let (mut first, mut second) = (server.connect(), server.connect());
    first.is_served();
    second.is_served();
    assert!(server.connect().is_closed());
    second.0.shutdown(Shutdown::Write).unwrap();
    assert!(second.is_closed());
    server.connect().is_served();

    // What a client announces costs nothing; what it sends counts.
    let server = Running::limited(Limits { buffered_bytes_max: 100_000, ..Limits::default() });
    let announced: Vec<Client> = (0..20)
        .map(|_| {
            let mut client = server.connect();
            client.send(&[0, 0xff, 0, 0, 0, 0, 0, 40]);
            client
        })
        .collect();
    let mut other = server.connect();
    other.is_served();
    let mut greedy = server.connect();
    let _ = greedy.0.write_all(&[0, 0x7f, 0, 0, 0, 0, 0, 40]);
    let _ = greedy.0.write_all(&vec![b'{'; 200_000]);
    assert!(greedy.is_closed());
    other.is_served();
    drop(announced);
}

#[test]
fn the_kv_configuration_survives_a_restart() {
    let directory = std::env::temp_dir().join(format!("ringmq-namesrv-kv-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let options = Options { kv_file: Some(directory.join("kv.json")), ..Options::default() };
    let ext = [
        ("namespace", Value::Str("ORDER_TOPIC_CONFIG")),
        ("key", Value::Str("T")),
        ("value", Value::Str("a:8")),
    ];
    {
        let server = Running::start(LOOPBACK, options.clone());
        assert_eq!(server.connect().ask(&request(RequestCode::PUT_KV_CONFIG, &ext, "")).code, 0);
    }
    assert_eq!(
        std::fs::read_to_string(directory.join("kv.json")).unwrap(),
        r#"{"configTable":{"ORDER_TOPIC_CONFIG":{"T":"a:8"}}}"#
    );
    {
        let server = Running::start(LOOPBACK, options.clone());
        let mut client = server.connect();
        let got = client.ask(&request(RequestCode::GET_KV_CONFIG, &ext, ""));
        assert_eq!(got.ext("value"), Some("a:8"));
        // What cannot be written is not acknowledged and not visible.
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(client.ask(&request(RequestCode::DELETE_KV_CONFIG, &ext, "")).code, 1);
        assert_eq!(client.ask(&request(RequestCode::GET_KV_CONFIG, &ext, "")).ext("value"), Some("a:8"));
    }
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("kv.json"), "not json").unwrap();
    let refused = run(LOOPBACK.parse().unwrap(), options, |_| panic!("it must not start"), async {});
    assert!(refused.unwrap_err().to_string().contains("kv.json"));
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn an_address_in_use_is_explained() {
    let server = Running::start(LOOPBACK, Options::default());
    let error =
        run(server.address, Options::default(), |_| panic!("it must not start"), async {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let message = error.to_string();
    assert!(message.contains(&server.address.to_string()) && message.contains("another"), "{message}");
    assert!(!message.contains('\n'));
}

#[test]
fn a_stop_closes_connections_and_frees_the_port() {
    let server = Running::start(LOOPBACK, Options::default());
    let address = server.address;
    let mut client = server.connect();
    client.is_served();
    drop(server);
    assert!(client.is_closed());
    drop(client);
    Running::start(&address.to_string(), Options::default()).connect().is_served();
}
