use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;

use super::*;
use crate::{Access, aligned_buffer};

fn uring() -> Uring {
    Uring::new(Config::default()).unwrap()
}

/// Turns until there is a completion with this tag; the others are dropped.
fn next(ring: &mut Uring, tag: u64) -> Outcome {
    loop {
        let mut out = Vec::new();
        ring.turn(None, &mut out).unwrap();
        for completion in out {
            if completion.tag == tag {
                return completion.outcome;
            }
        }
    }
}

fn connected(ring: &mut Uring) -> (TcpStream, Socket) {
    let (listener, address) = ring.listen("[::1]:0".parse().unwrap()).unwrap();
    ring.submit(1, Op::Accept { listener });
    let client = TcpStream::connect(address).unwrap();
    match next(ring, 1) {
        Outcome::Accepted(Ok((socket, _))) => (client, socket),
        other => panic!("{other:?}"),
    }
}

fn temporary(name: &str, len: usize) -> PathBuf {
    let path = std::env::temp_dir().join(format!("ringmq-{}-{name}", std::process::id()));
    fs::write(&path, vec![0; len]).unwrap();
    path
}

/// The kernel must not write to, or read from, what a dropped ring has freed: everything is in flight here.
#[test]
fn dropping_a_ring_ends_what_is_in_flight() {
    let path = temporary("drop", 8 << 20);
    for _ in 0..20 {
        let mut ring = uring();
        let (mut client, socket) = connected(&mut ring);
        let (_idle, other) = connected(&mut ring);
        ring.submit(2, Op::Receive { socket });
        ring.submit(
            3,
            Op::Send { socket, parts: vec![Bytes::from(vec![1; 16 << 20]), Bytes::from(vec![2; 1 << 20])] },
        );
        let file = ring.open(&path, OpenMode { access: Access::Write, direct: false }).unwrap();
        ring.submit(4, Op::SendFile { socket: other, file, offset: 0, len: 8 << 20 });
        for i in 0..8 {
            let data = aligned_buffer(256 << 10).freeze();
            ring.submit(5, Op::Write { file, offset: i << 18, data, durable: true });
            ring.submit(6, Op::Read { file, offset: i << 18, len: 100_000 });
        }
        ring.turn(Some(Nanos(0)), &mut Vec::new()).unwrap();
        // Queued, but never submitted.
        ring.submit(6, Op::Read { file, offset: 0, len: 100_000 });
        drop(ring);
        // The connection is gone as well: a reset or an end, but no silence.
        client.write_all(b"x").ok();
        client.read_to_end(&mut Vec::new()).ok();
    }
    fs::remove_file(path).unwrap();
}

#[test]
fn a_descriptor_is_closed_once_and_not_before_its_operations() {
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    // Alone in its own process: other tests open descriptors too.
    if std::env::var_os("RINGMQ_ALONE").is_none() {
        let name = "uring::tests::a_descriptor_is_closed_once_and_not_before_its_operations";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads=1", "--nocapture"])
            .env("RINGMQ_ALONE", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let mut ring = uring();
    let path = temporary("descriptors", 4096);
    let before = descriptors();
    for _ in 0..50 {
        let (client, socket) = connected(&mut ring);
        let file = ring.open(&path, OpenMode { access: Access::Read, direct: false }).unwrap();
        ring.submit(2, Op::Receive { socket });
        ring.submit(3, Op::Send { socket, parts: vec![Bytes::from(vec![1; 16 << 20])] });
        ring.submit(4, Op::SendFile { socket, file, offset: 0, len: 4096 });
        ring.close_file(file);
        ring.submit(5, Op::Close { socket });
        assert!(matches!(next(&mut ring, 5), Outcome::Closed));
        drop(client);
    }
    // The listeners of `connected` stay open, one each.
    assert_eq!(descriptors(), before + 50);
    assert_eq!((ring.in_kernel_count, ring.sockets.iter().count(), ring.files.iter().count()), (51, 0, 0));
    drop(ring);
    fs::remove_file(path).unwrap();
    // Less the ring and its eventfd.
    assert_eq!(descriptors(), before - 2);
}

#[test]
fn more_submissions_than_the_queue_holds_are_submitted() {
    let mut ring = Uring::new(Config { entries: 4, ..Config::default() }).unwrap();
    let path = temporary("queue", 1000);
    let file = ring.open(&path, OpenMode { access: Access::Read, direct: false }).unwrap();
    for tag in 0..1000 {
        ring.submit(tag, Op::Read { file, offset: tag, len: 1 });
    }
    let mut out = Vec::new();
    while out.len() < 1000 {
        ring.turn(None, &mut out).unwrap();
    }
    assert!(out.iter().all(|completion| matches!(completion.outcome, Outcome::Read(Ok(_)))));
    fs::remove_file(path).unwrap();
}

#[test]
fn a_wake_during_the_wait_ends_it() {
    let mut ring = uring();
    let waker = ring.waker();
    for _ in 0..100 {
        let waker = waker.clone();
        let thread = thread::spawn(move || waker.wake());
        assert!(matches!(next(&mut ring, WAKE_TAG), Outcome::Woken));
        thread.join().unwrap();
    }
    drop(ring);
    waker.wake();
}

#[test]
#[should_panic(expected = "must be aligned")]
fn a_direct_write_off_alignment_is_a_mistake() {
    let mut ring = uring();
    let path = temporary("aligned", 8192);
    let file = File(ring.files.insert(FileEntry {
        file: fs::File::open(&path).unwrap(),
        direct: true,
        users: 0,
        closing: false,
    }));
    fs::remove_file(path).unwrap();
    ring.submit(1, Op::Write { file, offset: 512, data: aligned_buffer(4096).freeze(), durable: true });
}

#[test]
fn an_address_given_up_can_be_listened_on_again() {
    let mut ring = uring();
    let (listener, address) = ring.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    ring.submit(1, Op::Accept { listener });
    ring.close_listener(listener);
    assert!(matches!(next(&mut ring, 1), Outcome::Accepted(Err(Errno::Cancelled))));
    let (again, _) = ring.listen(address).unwrap();
    ring.submit(2, Op::Accept { listener: again });
    let _client = TcpStream::connect(address).unwrap();
    assert!(matches!(next(&mut ring, 2), Outcome::Accepted(Ok(_))));
}

#[test]
fn monotonic_time_is_the_same_for_all_rings_of_a_process() {
    let before = uring().now().monotonic;
    let after = thread::spawn(|| uring().now().monotonic).join().unwrap();
    assert!(before <= after);
}
