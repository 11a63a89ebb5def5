use std::io::{Read, Write};
use std::net::TcpListener;

use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::frame::{
    Codec, FRAME_BYTES_MAX, Frame, Head, Header, RemotingCommand, encode, frame_len,
};
use ringmq_protocol::types::Opaque;

use super::*;
use crate::perf::work::{Answer, Delivery, Pace, Until, Work};

/// Two slots, of which one message each is a request.
struct Pings {
    frames: Vec<Vec<u8>>,
}

impl Pings {
    fn new(codec: Codec) -> Self {
        let frame = |slot| {
            let mut frame = Vec::new();
            encode(&mut frame, &Head::request(codec, 310, Opaque(slot)), &(), 0);
            frame
        };
        Self { frames: (0..2).map(frame).collect() }
    }
}

impl Work for Pings {
    fn part(&self) -> Part {
        Part::Send
    }

    fn slots(&self) -> usize {
        self.frames.len()
    }

    fn frame(&self, slot: usize) -> &[u8] {
        &self.frames[slot]
    }

    fn charge(&self) -> u64 {
        1
    }

    fn answered(&mut self, _: usize, code: ResponseCode, frame: &[u8]) -> Answer {
        if code == ResponseCode::SUCCESS { Answer::good(1, 10) } else { Answer::refused(code, frame) }
    }
}

/// Answers every request with what `answer` makes of its header and its number, until there is no answer.
fn broker(answer: impl Fn(&Header<'_>, usize) -> Option<RemotingCommand> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for number in 0.. {
            let mut request = vec![0; 8];
            if stream.read_exact(&mut request).is_err() {
                return;
            }
            let len = frame_len(&request, FRAME_BYTES_MAX).unwrap().unwrap();
            request.resize(len, 0);
            stream.read_exact(&mut request[8..]).unwrap();
            let header = Frame::decode(&request).unwrap().header;
            let Some(reply) = answer(&header, number) else { return };
            let mut bytes = Vec::new();
            reply.encode(header.codec, &mut bytes);
            stream.write_all(&bytes).unwrap();
        }
    });
    address
}

fn success(header: &Header<'_>) -> RemotingCommand {
    RemotingCommand::response(ResponseCode::SUCCESS, header.opaque, None, &(), "")
}

fn plan(measured: Option<Duration>, count: Option<u64>) -> Plan<'static> {
    Plan {
        threads: 1,
        warmup: Duration::ZERO,
        measured,
        count,
        ends_with: None,
        copies: 0,
        processes: &[],
        series: false,
        live: None,
    }
}

fn pings(address: String, codec: Codec) -> Job {
    Job::new(address, Pings::new(codec), 2)
}

/// Sends so many messages.
fn measure(count: u64, address: String, codec: Codec) -> (Measured, Totals) {
    only_part(run(vec![pings(address, codec)], plan(None, Some(count))).unwrap())
}

fn only_part(mut totals: Totals) -> (Measured, Totals) {
    let part = totals.parts.pop().unwrap();
    assert!(totals.parts.is_empty());
    (part.measured, totals)
}

#[test]
fn counts_exactly_what_it_was_asked_to_send() {
    for codec in [Codec::RocketMq, Codec::Json] {
        let (measured, totals) = measure(1001, broker(|header, _| Some(success(header))), codec);
        assert_eq!((measured.messages, measured.requests, measured.bytes), (1001, 1001, 10_010));
        assert_eq!((measured.latency.all.len(), totals.messages_watched), (1001, 1001));
        assert!(totals.errors.is_empty());
    }
}

#[test]
fn refusals_are_counted_by_code_with_the_words_of_the_first() {
    let address = broker(|header, number| {
        let remark = Some(format!("full at {number}\n at java.Stack"));
        Some(match number % 4 {
            1 => RemotingCommand::response(ResponseCode::SYSTEM_BUSY, header.opaque, remark, &(), ""),
            _ => success(header),
        })
    });
    let (measured, totals) = measure(8, address, Codec::RocketMq);
    assert_eq!((measured.messages, measured.requests), (6, 8));
    assert_eq!(totals.errors, BTreeMap::from([("2 SYSTEM_BUSY".to_string(), 2)]));
    assert_eq!(totals.words["2 SYSTEM_BUSY"], "full at 1");
}

#[test]
fn what_was_in_flight_when_the_connection_ends_is_an_error() {
    let address = broker(|header, number| (number < 10).then(|| success(header)));
    let (measured, totals) = measure(1000, address, Codec::RocketMq);
    assert_eq!((measured.messages, totals.errors["connection lost"]), (10, 2));
}

#[test]
fn an_answer_to_no_question_ends_the_connection() {
    let address = broker(|header, number| {
        let opaque = if number == 3 { Opaque(77) } else { header.opaque };
        Some(RemotingCommand::response(ResponseCode::SUCCESS, opaque, None, &(), ""))
    });
    let (_, totals) = measure(1000, address, Codec::RocketMq);
    assert!(totals.words["malformed answer"].ends_with("it answers what was not asked"));
}

#[test]
fn a_paced_run_issues_all_that_was_due_however_late_the_answers() {
    // Due at 0, 10, … 190 ms of a run of 200 ms.
    let pace = Pace { connection: 0, connections: 1, requests: 100, seconds: 1 };
    let address = broker(|header, _| Some(success(header)));
    let job = Job { pace: Some(pace), ..pings(address, Codec::RocketMq) };
    let (measured, totals) = only_part(run(vec![job], plan(Some(Duration::from_millis(200)), None)).unwrap());
    assert_eq!((measured.messages, measured.latency.all.len()), (20, 20));
    assert!(totals.errors.is_empty());
}

#[test]
fn connections_are_due_in_turn() {
    // 3 connections, 2 requests in 3 seconds over all: one each 1.5 s.
    let pace = |connection| Pace { connection, connections: 3, requests: 2, seconds: 3 };
    let due = |connection, number| pace(connection).due(number).as_millis();
    assert_eq!([due(0, 0), due(1, 0), due(2, 0), due(0, 1), due(1, 1)], [0, 1500, 3000, 4500, 6000]);
    let thirds = Pace { connection: 0, connections: 1, requests: 3, seconds: 1 };
    assert_eq!(thirds.due(3_000_000), Duration::from_secs(1_000_000));
}

/// A reader with one pull, whose every answer has one message of this run.
struct Reads {
    frames: Pings,
    deliveries: Vec<Delivery>,
    left: u64,
}

impl Work for Reads {
    fn part(&self) -> Part {
        Part::Read
    }

    fn slots(&self) -> usize {
        1
    }

    fn frame(&self, slot: usize) -> &[u8] {
        self.frames.frame(slot)
    }

    fn charge(&self) -> u64 {
        0
    }

    fn answered(&mut self, _: usize, _: ResponseCode, _: &[u8]) -> Answer {
        self.left -= 1;
        Answer { retired: self.left == 0, ..Answer::good(1, 10) }
    }

    fn deliveries(&self) -> &[Delivery] {
        &self.deliveries
    }
}

fn reader(messages: u64) -> Job {
    let address = broker(|header, _| Some(success(header)));
    let deliveries = vec![Delivery { sent: Duration::ZERO, messages: 1 }];
    let work = Reads { frames: Pings::new(Codec::RocketMq), deliveries, left: messages };
    Job::new(address, work, 1)
}

#[test]
fn readers_go_on_until_everything_was_delivered() {
    let answering = broker(|header, _| Some(success(header)));
    let mut jobs = vec![pings(answering, Codec::RocketMq), reader(u64::MAX), reader(u64::MAX)];
    jobs[1..].iter_mut().for_each(|job| job.until = Until::Delivered);
    let totals = run(jobs, Plan { copies: 2, ..plan(None, Some(500)) }).unwrap();
    assert!(totals.errors.is_empty(), "{:?}", totals.errors);
    let [sent, read] = &totals.parts[..] else { panic!("two parts") };
    assert_eq!((sent.name, sent.connections, sent.measured.messages), ("produce", 1, 500));
    assert_eq!((read.name, read.connections), ("consume", 2));
    // Each sees what the other has read a little later.
    assert!(read.measured.messages >= 1000 && read.measured.delivery.all.len() >= 1000);
}

#[test]
fn what_is_never_delivered_is_an_error() {
    let answering = broker(|header, _| Some(success(header)));
    let mut jobs = vec![pings(answering, Codec::RocketMq), reader(30)];
    jobs[1].until = Until::Delivered;
    let totals = run(jobs, Plan { copies: 1, ..plan(None, Some(50)) }).unwrap();
    assert_eq!(totals.errors, BTreeMap::from([("not delivered".to_string(), 20)]));
}

#[test]
fn a_run_may_end_with_its_readers() {
    let answering = broker(|header, _| Some(success(header)));
    let pace = Pace { connection: 0, connections: 1, requests: 1000, seconds: 1 };
    let sender = Job { pace: Some(pace), ..pings(answering, Codec::RocketMq) };
    let totals =
        run(vec![sender, reader(100)], Plan { ends_with: Some(Part::Read), ..plan(None, None) }).unwrap();
    assert!(totals.errors.is_empty());
    let [sent, read] = &totals.parts[..] else { panic!("two parts") };
    assert_eq!((read.measured.messages, read.measured.requests), (100, 100));
    // All that was due until then, whenever it was answered.
    let due = (sent.elapsed.as_secs_f64() * 1000.0).ceil() as u64;
    assert!(sent.measured.messages.abs_diff(due) <= 1, "{} of {due}", sent.measured.messages);
}
