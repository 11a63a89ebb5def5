use std::io::{Read, Write};
use std::net::TcpListener;

use clap::Parser;
use ringmq_protocol::frame::{Codec, FRAME_BYTES_MAX, Head, Header, RemotingCommand, encode, frame_len};
use ringmq_protocol::types::Opaque;

use super::*;
use crate::perf::Arguments;

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
    const ABANDON_AT_END: bool = false;

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

fn measure(options: &str, address: String, codec: Codec, pace: Option<Pace>) -> Totals {
    let line = format!("ringmq-perf produce --topic t {options}");
    let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
    let plan = Plan {
        common: arguments.command.common(),
        warmup: arguments.command.warmup(),
        measured: arguments.command.measured(),
        processes: Vec::new(),
        live: false,
    };
    run(vec![Job { address, work: Pings::new(codec), in_flight: 2, pace }], plan).unwrap()
}

#[test]
fn counts_exactly_what_it_was_asked_to_send() {
    for codec in [Codec::RocketMq, Codec::Json] {
        let totals =
            measure("--count 1001 --warmup 0s", broker(|header, _| Some(success(header))), codec, None);
        assert_eq!(
            (totals.measured.messages, totals.measured.requests, totals.measured.bytes),
            (1001, 1001, 10_010)
        );
        assert_eq!((totals.measured.latency.all.len(), totals.messages_watched), (1001, 1001));
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
    let totals = measure("--count 8 --warmup 0s", address, Codec::RocketMq, None);
    assert_eq!((totals.measured.messages, totals.measured.requests), (6, 8));
    assert_eq!(totals.errors, BTreeMap::from([("2 SYSTEM_BUSY".to_string(), 2)]));
    assert_eq!(totals.words["2 SYSTEM_BUSY"], "full at 1");
}

#[test]
fn what_was_in_flight_when_the_connection_ends_is_an_error() {
    let address = broker(|header, number| (number < 10).then(|| success(header)));
    let totals = measure("--count 1000 --warmup 0s", address, Codec::RocketMq, None);
    assert_eq!((totals.measured.messages, totals.errors["connection lost"]), (10, 2));
}

#[test]
fn an_answer_to_no_question_ends_the_connection() {
    let address = broker(|header, number| {
        let opaque = if number == 3 { Opaque(77) } else { header.opaque };
        Some(RemotingCommand::response(ResponseCode::SUCCESS, opaque, None, &(), ""))
    });
    let totals = measure("--count 1000 --warmup 0s", address, Codec::RocketMq, None);
    assert!(totals.words["malformed answer"].ends_with("it answers what was not asked"));
}

#[test]
fn a_paced_run_issues_all_that_was_due_however_late_the_answers() {
    // Due at 0, 10, … 190 ms of a run of 200 ms.
    let pace = Pace { connection: 0, connections: 1, requests: 100, seconds: 1 };
    let address = broker(|header, _| Some(success(header)));
    let totals = measure("--seconds 200ms --warmup 0s", address, Codec::RocketMq, Some(pace));
    assert_eq!((totals.measured.messages, totals.measured.latency.all.len()), (20, 20));
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
