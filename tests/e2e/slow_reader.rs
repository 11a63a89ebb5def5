//! A client that asks for much more than it reads.

use bytes::Bytes;
use ringmq_protocol::code::RequestCode;
use ringmq_tests::process::{peak_resident_bytes, resident_bytes};
use ringmq_tests::{Broker, Options, Raw};

use crate::requests::{bodies, max_offset, pull, send, store};

const TOPIC: &str = "Heavy";
const BODY_BYTES: usize = 256 << 10;
const MESSAGES: i64 = 256;
/// Each is answered with a body: 2.5 GB in all.
const PULLS: usize = 10_000;

#[test]
fn a_client_that_does_not_read_costs_bounded_memory() {
    // A small tail, so that most of what is asked for has to come from disk.
    let arguments = ["--tail-memory", "16MiB"].map(Into::into).to_vec();
    let broker = Broker::start_with(Options { shards: 1, arguments, ..Options::default() });
    let mut other = Raw::connect(broker.address(0));
    let body = Bytes::from(vec![b'x'; BODY_BYTES]);
    for _ in 0..MESSAGES {
        store(&mut other, &send(TOPIC, 0), body.clone());
    }
    let before = resident_bytes(broker.pid());

    let mut slow = Raw::connect(broker.address(0));
    let mut asked = 0;
    for number in 0..PULLS {
        // The broker may close the connection of one that asks and does not read.
        let request = pull(TOPIC, number as i64 % MESSAGES, 0, "*");
        if slow.send(RequestCode::PULL_MESSAGE, &request, Bytes::new()).is_err() {
            break;
        }
        asked += 1;
        if number % 500 == 0 {
            // Meanwhile another client is served.
            let response = other.call(RequestCode::PULL_MESSAGE, &pull(TOPIC, 7, 0, "*"), Bytes::new());
            assert_eq!(bodies(&response)[0].len(), BODY_BYTES);
        }
    }
    assert_eq!(max_offset(&mut other, TOPIC), MESSAGES);
    let peak = peak_resident_bytes(broker.pid());
    eprintln!(
        "{asked} pulls asked, none read: at most {} MiB resident, {} MiB before",
        peak >> 20,
        before >> 20
    );
    assert!(asked > 100, "closed after {asked} pulls");
    assert!(peak < 600 << 20, "{} MiB resident", peak >> 20);
}
