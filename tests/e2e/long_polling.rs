//! Pulls that wait at the end of a queue.

use std::collections::BTreeSet;

use bytes::Bytes;
use ringmq_protocol::code::RequestCode;
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::types::Opaque;
use ringmq_tests::{Broker, Raw};

use crate::requests::{bodies, max_offset, pull, send, send_with, store};

const TOPIC: &str = "Waiting";
const LONG_MS: i64 = 50_000;

/// Sends a pull and makes sure that it waits: a later request on the same connection is answered before it.
fn hold(raw: &mut Raw, offset: i64, hold_ms: i64, tags: &str) -> Opaque {
    let opaque =
        raw.send(RequestCode::PULL_MESSAGE, &pull(TOPIC, offset, hold_ms, tags), Bytes::new()).unwrap();
    max_offset(raw, TOPIC);
    opaque
}

fn answer(raw: &mut Raw, opaque: Opaque) -> RemotingCommand {
    let response = raw.response();
    assert_eq!(response.opaque, opaque, "{response:?}");
    response
}

#[test]
fn a_waiting_pull_is_answered_by_the_next_message() {
    let broker = Broker::start(1);
    let (mut reader, mut writer) = (Raw::connect(broker.address(0)), Raw::connect(broker.address(0)));
    assert_eq!(store(&mut writer, &send(TOPIC, 0), "zero"), 0);

    let waiting = hold(&mut reader, 1, LONG_MS, "*");
    store(&mut writer, &send(TOPIC, 0), "one");
    assert_eq!(bodies(&answer(&mut reader, waiting)), [b"one"]);

    let waiting = reader.send(RequestCode::PULL_MESSAGE, &pull(TOPIC, 2, 200, "*"), Bytes::new()).unwrap();
    let late = answer(&mut reader, waiting);
    assert_eq!((late.code, late.ext("nextBeginOffset")), (19, Some("2")), "{late:?}");

    // Another tag does not wake it, and is not in the answer when one that is wanted comes.
    let waiting = hold(&mut reader, 2, LONG_MS, "green || blue");
    store(&mut writer, &send_with(TOPIC, "TAGS", "red"), "two");
    store(&mut writer, &send(TOPIC, 0), "three");
    assert_eq!(max_offset(&mut reader, TOPIC), 4, "answered before the pull");
    store(&mut writer, &send_with(TOPIC, "TAGS", "blue"), "four");
    let found = answer(&mut reader, waiting);
    assert_eq!(bodies(&found), [b"four"]);
    assert_eq!(found.ext("nextBeginOffset"), Some("5"));

    // A pull that waited in vain says how far it has looked, so that nobody looks there again.
    let waiting = hold(&mut reader, 5, 1_000, "green");
    store(&mut writer, &send_with(TOPIC, "TAGS", "red"), "five");
    let late = answer(&mut reader, waiting);
    assert_eq!((late.code, late.ext("nextBeginOffset")), (20, Some("6")), "{late:?}");
}

#[test]
fn thousands_of_waiting_pulls_are_answered_once_each() {
    const CONNECTIONS: usize = 50;
    const PULLS: usize = 100;
    let broker = Broker::start(1);
    let mut writer = Raw::connect(broker.address(0));
    store(&mut writer, &send(TOPIC, 0), "zero");
    let mut readers: Vec<(Raw, BTreeSet<i32>)> = (0..CONNECTIONS)
        .map(|_| {
            let mut raw = Raw::connect(broker.address(0));
            let request = pull(TOPIC, 1, LONG_MS, "*");
            let opaques = (0..PULLS)
                .map(|_| raw.send(RequestCode::PULL_MESSAGE, &request, Bytes::new()).unwrap().0)
                .collect();
            max_offset(&mut raw, TOPIC);
            (raw, opaques)
        })
        .collect();

    store(&mut writer, &send(TOPIC, 0), "one");
    for (raw, opaques) in &mut readers {
        while !opaques.is_empty() {
            let response = raw.response();
            assert!(opaques.remove(&response.opaque.0), "not asked, or answered twice: {response:?}");
            assert_eq!(bodies(&response), [b"one"]);
        }
    }
    // Whatever else woke up would come before the answer to this.
    store(&mut writer, &send(TOPIC, 0), "two");
    for (raw, _) in &mut readers {
        assert_eq!(max_offset(raw, TOPIC), 3);
    }
}
