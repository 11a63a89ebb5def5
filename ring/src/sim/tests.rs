use std::path::PathBuf;

use super::*;
use crate::{Access, aligned_buffer};

fn world(seed: u64) -> (SimRing, SimNet, SimDisk) {
    let disk = SimDisk::new(seed);
    let ring = SimRing::new(seed, disk.clone(), SimConfig::default());
    let net = ring.net();
    (ring, net, disk)
}

fn listening(ring: &mut SimRing) -> SocketAddr {
    let (listener, address) = ring.listen("10.0.0.1:0".parse().unwrap()).unwrap();
    ring.submit(1, Op::Accept { listener });
    address
}

/// Everything until nothing happens by itself any more.
fn run(ring: &mut SimRing, net: &SimNet, out: &mut Vec<Completion>) {
    while let Some(next) = net.next_event() {
        ring.turn(Some(next), out).unwrap();
    }
}

/// A history with a bit of everything, as text.
fn trace(seed: u64) -> String {
    let (mut ring, net, disk) = world(seed);
    let path = PathBuf::from("/log");
    disk.create(&path).unwrap();
    disk.zero_range(&path, 0, 1 << 20).unwrap();
    let file = ring.open(&path, OpenMode { access: Access::Write, direct: true }).unwrap();
    let address = listening(&mut ring);
    let clients: Vec<_> = (0..5).map(|_| net.connect(address).unwrap()).collect();
    for (i, client) in clients.iter().enumerate() {
        client.write(&vec![i as u8; 10_000 * i]).unwrap();
        client.finish();
    }
    for i in 0..8 {
        let data = aligned_buffer(4096).freeze();
        ring.submit(100 + i, Op::Write { file, offset: i * 4096, data, durable: true });
    }
    let mut text = String::new();
    while let Some(next) = net.next_event() {
        let mut out = Vec::new();
        ring.turn(Some(next), &mut out).unwrap();
        for Completion { tag, outcome } in out {
            text += &format!("{} {tag} ", ring.now().monotonic.0);
            match outcome {
                Outcome::Accepted(Ok((socket, peer))) => {
                    text += &format!("{socket:?} {peer}\n");
                    ring.submit(200 + socket.index() as u64, Op::Receive { socket });
                }
                Outcome::Received(Ok(Some(buffer))) => {
                    text += &format!("{:?}\n", ring.received(&buffer).len());
                    ring.recycle(buffer);
                }
                other => text += &format!("{other:?}\n"),
            }
        }
    }
    text
}

#[test]
fn a_seed_is_a_history() {
    for seed in 0..10 {
        assert_eq!(trace(seed), trace(seed));
    }
    assert_ne!(trace(1), trace(2));
}

#[test]
fn writes_in_flight_overtake_each_other() {
    let order = |seed| {
        let (mut ring, net, disk) = world(seed);
        disk.create(Path::new("/log")).unwrap();
        let file = ring.open(Path::new("/log"), OpenMode { access: Access::Write, direct: true }).unwrap();
        for i in 0..4 {
            let data = aligned_buffer(4096).freeze();
            ring.submit(i, Op::Write { file, offset: i * 4096, data, durable: true });
        }
        assert_eq!(disk.writes_in_flight(), 4);
        let mut out = Vec::new();
        run(&mut ring, &net, &mut out);
        out.iter().map(|completion| completion.tag).collect::<Vec<_>>()
    };
    let orders: BTreeSet<_> = (0..50).map(order).collect();
    assert!(orders.len() > 10);
}

#[test]
fn a_slow_write_comes_late_and_a_failed_one_says_so() {
    let (mut ring, _, disk) = world(1);
    disk.create(Path::new("/log")).unwrap();
    let file = ring.open(Path::new("/log"), OpenMode { access: Access::Write, direct: false }).unwrap();
    disk.fail_write(0, WriteFault::Slow(Duration::from_secs(3)));
    disk.fail_write(1, WriteFault::Io);
    for tag in 0..2 {
        ring.submit(tag, Op::Write { file, offset: 0, data: Bytes::from_static(b"x"), durable: true });
    }
    let mut out = Vec::new();
    ring.turn(None, &mut out).unwrap();
    assert!(matches!(out[..], [Completion { tag: 1, outcome: Outcome::Written(Err(Errno::Io)) }]));
    ring.turn(None, &mut out).unwrap();
    assert!(matches!(out[1], Completion { tag: 0, outcome: Outcome::Written(Ok(())) }));
    assert!(ring.now().monotonic >= Nanos(3_000_000_000));
}

#[test]
fn a_write_in_flight_does_not_outlive_a_crash() {
    let (mut ring, _, disk) = world(2);
    disk.create(Path::new("/log")).unwrap();
    let file = ring.open(Path::new("/log"), OpenMode { access: Access::Write, direct: false }).unwrap();
    ring.submit(1, Op::Write { file, offset: 0, data: Bytes::from_static(b"x"), durable: true });
    let mut out = Vec::new();
    ring.turn(Some(Nanos(0)), &mut out).unwrap();
    assert_eq!(disk.writes_in_flight(), 1);
    disk.crash(0);
    ring.turn(None, &mut out).unwrap();
    assert!(matches!(out[..], [Completion { tag: 1, outcome: Outcome::Written(Err(Errno::Io)) }]));
}

#[test]
fn nothing_arrives_through_a_cut_until_it_is_mended() {
    for direction in [Direction::ToServer, Direction::ToClient] {
        let (mut ring, net, _) = world(3);
        let address = listening(&mut ring);
        let client = net.connect(address).unwrap();
        let mut out = Vec::new();
        ring.turn(None, &mut out).unwrap();
        let Some(Completion { outcome: Outcome::Accepted(Ok((socket, peer))), .. }) = out.pop() else {
            panic!()
        };
        assert_eq!(peer, client.address());
        client.cut(direction);
        client.write(b"ping").unwrap();
        ring.submit(2, Op::Receive { socket });
        ring.submit(3, Op::Send { socket, parts: vec![Bytes::from_static(b"pong")] });
        ring.submit(4, Op::Close { socket });
        run(&mut ring, &net, &mut out);
        let cut_to_client = direction == Direction::ToClient;
        assert_eq!((client.unread(), client.is_ended()), (if cut_to_client { 0 } else { 4 }, false));
        client.mend(direction);
        run(&mut ring, &net, &mut out);
        assert_eq!(client.read(100), b"pong");
        assert!(client.is_ended());
    }
}

#[test]
fn the_window_bounds_what_is_on_its_way() {
    let (mut ring, net, _) = world(4);
    let address = listening(&mut ring);
    let client = net.connect(address).unwrap();
    assert_eq!(client.write(&vec![1; WINDOW_BYTES + 1]).unwrap(), WINDOW_BYTES);
    assert_eq!(client.write(b"x").unwrap(), 0);
    let mut out = Vec::new();
    run(&mut ring, &net, &mut out);
    let Some(Completion { outcome: Outcome::Accepted(Ok((socket, _))), .. }) = out.pop() else { panic!() };
    ring.submit(3, Op::Send { socket, parts: vec![Bytes::from(vec![2; WINDOW_BYTES + 1])] });
    run(&mut ring, &net, &mut out);
    assert!(out.is_empty());
    assert_eq!(client.read(1), [2]);
    run(&mut ring, &net, &mut out);
    assert!(matches!(out[..], [Completion { tag: 3, outcome: Outcome::Sent(Ok(())) }]));
}

#[test]
fn nobody_listens_nobody_connects() {
    let (mut ring, net, _) = world(5);
    assert!(net.connect("10.0.0.1:1".parse().unwrap()).is_err());
    let (listener, address) = ring.listen("10.0.0.1:1".parse().unwrap()).unwrap();
    assert!(ring.listen(address).is_err());
    let client = net.connect(address).unwrap();
    ring.close_listener(listener);
    run(&mut ring, &net, &mut Vec::new());
    assert!(client.is_ended());
    assert!(client.write(b"x").is_err());
}

#[test]
fn a_disk_without_direct_io_refuses_it() {
    let (mut ring, _, disk) = world(6);
    disk.create(Path::new("/log")).unwrap();
    disk.set_direct(false);
    let direct = OpenMode { access: Access::Read, direct: true };
    assert_eq!(ring.open(Path::new("/log"), direct).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    ring.open(Path::new("/log"), OpenMode { direct: false, ..direct }).unwrap();
}

#[test]
#[should_panic(expected = "cannot happen")]
fn to_wait_for_ever_is_a_mistake() {
    let (mut ring, _, _) = world(7);
    let _ = ring.turn(None, &mut Vec::new());
}
