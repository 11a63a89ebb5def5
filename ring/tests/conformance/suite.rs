//! The suite. Tests that speak of memory and order use small bounds, so that they meet them.

use std::time::Duration;

use bytes::Bytes;
use ringmq_ring::{Access, Errno, Op, Outcome, RecvBuffer, Ring, Socket, aligned_buffer};

use crate::harness::{Act, Bounds, Server, Surroundings, pattern};

const MIB: usize = 1 << 20;

// Tags of the tests.
const ACCEPT: u64 = 1;
const RECEIVE: u64 = 2;
const SEND: u64 = 3;
const CLOSE: u64 = 4;
const WRITE: u64 = 5;
const READ: u64 = 6;

fn server<S: Surroundings>(new: impl Fn(Bounds) -> S) -> Server<S> {
    Server::new(new(Bounds::default()))
}

pub(crate) fn accept_and_echo<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let (_, address) = server.listen(ACCEPT);
    let said = [pattern(1, 1), pattern(5_000, 2), pattern(100_000, 3)];
    let script = |bytes: &Vec<u8>| vec![Act::Write(bytes.clone()), Act::Finish, Act::ReadToEnd];
    let clients: Vec<_> = said.iter().map(|bytes| server.at.start(address, script(bytes))).collect();
    for _ in &said {
        let socket = server.accept(ACCEPT);
        assert_eq!(server.ring().local(socket), Some(address));
        server.submit(RECEIVE, Op::Receive { socket });
        while let Some(bytes) = server.receive(RECEIVE) {
            server.send(SEND, socket, bytes);
        }
        server.close(CLOSE, socket);
    }
    for (client, bytes) in clients.into_iter().zip(said) {
        assert!(server.at.end(client) == bytes);
    }
}

pub(crate) fn many_parts_are_sent_in_order<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let whole = Bytes::from(pattern(300_000, 4));
    let (client, socket) = server.connect(vec![Act::ReadToEnd]);
    // More parts than one sendmsg takes, some of them empty.
    let parts: Vec<_> = (0..3_000).map(|i| whole.slice(i * 100..(i + 1) * 100)).collect();
    let parts = parts.into_iter().flat_map(|part| [part, Bytes::new()]).collect();
    server.submit(SEND, Op::Send { socket, parts });
    server.expect_sent(SEND);
    server.submit(SEND, Op::Send { socket, parts: vec![] });
    server.expect_sent(SEND);
    server.close(CLOSE, socket);
    assert!(server.at.end(client) == whole);
}

pub(crate) fn sends_of_a_socket_leave_in_order<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let content = pattern(200_000, 5);
    let path = server.at.make_file("order", &content);
    let file = server.open(&path, Access::Read, false);
    let (client, socket) = server.connect(vec![Act::ReadToEnd]);
    let mut expected = Vec::new();
    for i in 0..40 {
        let bytes = pattern(i * 997, i as u64);
        expected.extend_from_slice(&bytes);
        server.submit(SEND + i as u64 * 100, Op::Send { socket, parts: vec![bytes.into()] });
        let (offset, len) = (i * 501, i * 1_009);
        expected.extend_from_slice(&content[offset..offset + len]);
        let send_file = Op::SendFile { socket, file, offset: offset as u64, len: len as u64 };
        server.submit(SEND + i as u64 * 100 + 50, send_file);
    }
    let mut last = 0;
    for _ in 0..80 {
        let completion = server.any();
        assert!(matches!(completion.outcome, Outcome::Sent(Ok(()))));
        assert!(completion.tag > last);
        last = completion.tag;
    }
    server.close(CLOSE, socket);
    assert!(server.at.end(client) == expected);
}

pub(crate) fn a_long_send_reaches_a_slow_reader<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let bytes = Bytes::from(pattern(8 * MIB, 6));
    let mut script = vec![Act::Gate(0)];
    script.extend((0..8 * MIB / 65_536).map(|_| Act::Read(65_536)));
    let (client, socket) = server.connect(script);
    let half = bytes.len() / 2;
    server.submit(SEND, Op::Send { socket, parts: vec![bytes.slice(..half), bytes.slice(half..)] });
    server.collect_for(Duration::from_millis(5));
    server.at.open_gate(0);
    server.expect_sent(SEND);
    assert!(server.at.end(client) == bytes);
}

pub(crate) fn the_end_of_the_stream_is_received<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let (client, socket) =
        server.connect(vec![Act::Write(b"last words".to_vec()), Act::Finish, Act::Read(5)]);
    server.submit(RECEIVE, Op::Receive { socket });
    assert_eq!(server.receive_exactly(RECEIVE, 10), b"last words");
    assert_eq!(server.receive(RECEIVE), None);
    // The other direction still works.
    server.send(SEND, socket, &b"heard"[..]);
    assert_eq!(server.at.end(client), b"heard");
    server.close(CLOSE, socket);
    assert!(!server.has(RECEIVE));
}

pub(crate) fn a_reset_by_the_peer_ends_receive_and_send<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let (client, socket) = server.connect(vec![Act::Reset]);
    server.submit(RECEIVE, Op::Receive { socket });
    server.submit(SEND, Op::Send { socket, parts: vec![Bytes::from(vec![0; S::STALLS])] });
    server.submit(SEND + 10, Op::Send { socket, parts: vec![Bytes::from_static(b"behind")] });
    let (sent, behind) = (server.next(SEND), server.next(SEND + 10));
    assert!(matches!(sent, Outcome::Sent(Err(Errno::Reset))), "{sent:?}");
    assert!(matches!(behind, Outcome::Sent(Err(Errno::Reset))), "{behind:?}");
    // A send that meets the reset first takes the error; the receive then sees an end.
    let received = server.next(RECEIVE);
    assert!(matches!(received, Outcome::Received(Err(Errno::Reset) | Ok(None))), "{received:?}");
    server.close(CLOSE, socket);
    server.at.end(client);
}

pub(crate) fn close_ends_pending_receive_and_send<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let (client, socket) = server.connect(vec![Act::Gate(0), Act::ReadToEnd]);
    server.submit(RECEIVE, Op::Receive { socket });
    let long = Bytes::from(vec![1; S::STALLS]);
    for i in 0..3 {
        server.submit(SEND + i * 10, Op::Send { socket, parts: vec![long.clone()] });
    }
    server.collect_for(Duration::from_millis(5));
    server.submit(CLOSE, Op::Close { socket });
    let mut tags = Vec::new();
    for _ in 0..5 {
        let completion = server.any();
        match completion.outcome {
            Outcome::Sent(result) => assert_eq!(result, Err(Errno::Cancelled)),
            Outcome::Received(result) => assert!(matches!(result, Err(Errno::Cancelled))),
            Outcome::Closed => {}
            other => panic!("{other:?}"),
        }
        tags.push(completion.tag);
    }
    assert_eq!(tags.pop(), Some(CLOSE), "Closed is the last");
    tags.sort_unstable();
    assert_eq!(tags, [RECEIVE, SEND, SEND + 10, SEND + 20]);
    assert_eq!(server.ring().peer(socket), None);
    server.at.open_gate(0);
    assert!(server.at.end(client).len() < S::STALLS);
}

pub(crate) fn a_dead_handle_is_refused<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let path = server.at.make_file("dead", b"content");
    let file = server.open(&path, Access::Write, false);
    server.ring().close_file(file);
    let (first, dead) = server.connect(vec![Act::ReadToEnd]);
    server.close(CLOSE, dead);
    assert!(server.at.end(first).is_empty());
    // The next connection takes the same place; the old handle must not reach it.
    let (second, alive) = server.connect(vec![Act::ReadToEnd]);
    assert_eq!((alive.index(), alive == dead), (dead.index(), false));
    server.submit(SEND, Op::Send { socket: dead, parts: vec![Bytes::from_static(b"stale")] });
    assert!(matches!(server.next(SEND), Outcome::Sent(Err(Errno::BadHandle))));
    server.submit(RECEIVE, Op::Receive { socket: dead });
    assert!(matches!(server.next(RECEIVE), Outcome::Received(Err(Errno::BadHandle))));
    server.submit(SEND, Op::SendFile { socket: alive, file, offset: 0, len: 7 });
    assert!(matches!(server.next(SEND), Outcome::Sent(Err(Errno::BadHandle))));
    server.submit(READ, Op::Read { file, offset: 0, len: 7 });
    assert!(matches!(server.next(READ), Outcome::Read(Err(Errno::BadHandle))));
    server.submit(WRITE, Op::Write { file, offset: 0, data: Bytes::from_static(b"x"), durable: true });
    assert!(matches!(server.next(WRITE), Outcome::Written(Err(Errno::BadHandle))));
    server.close(CLOSE, dead);
    server.send(SEND, alive, &b"fresh"[..]);
    server.close(CLOSE, alive);
    assert_eq!(server.at.end(second), b"fresh");
    assert_eq!(server.at.content(&path), b"content");
}

pub(crate) fn what_is_written_is_read<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    for direct in [false, true] {
        if direct && !server.at.is_direct() {
            continue;
        }
        let path = server.at.make_file(&format!("rw-{direct}"), &vec![0; MIB]);
        let file = server.open(&path, Access::Write, direct);
        let mut data = aligned_buffer(128 << 10);
        data.copy_from_slice(&pattern(128 << 10, 7));
        let data = data.freeze();
        for durable in [false, true] {
            let offset = if durable { 4096 } else { 256 << 10 };
            server.submit(WRITE, Op::Write { file, offset, data: data.clone(), durable });
            let written = server.next(WRITE);
            assert!(matches!(written, Outcome::Written(Ok(()))), "{written:?}");
            server.submit(READ, Op::Read { file, offset, len: 128 << 10 });
            match server.next(READ) {
                Outcome::Read(Ok(read)) => assert!(read == data),
                other => panic!("{other:?}"),
            }
        }
        server.ring().close_file(file);
        assert!(server.at.content(&path)[4096..][..data.len()] == data);
    }
}

pub(crate) fn writes_in_flight_all_complete<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let path = server.at.make_file("flight", &vec![0; 2 * MIB]);
    let direct = server.at.is_direct();
    let file = server.open(&path, Access::Write, direct);
    let mut expected = vec![0; 2 * MIB];
    for i in 0..16_usize {
        let len = 4096 * (i + 1);
        let mut data = aligned_buffer(len);
        data.copy_from_slice(&pattern(len, i as u64));
        expected[i * 100 * 1024..][..len].copy_from_slice(&data);
        let data = data.freeze();
        server.submit(100 + i as u64, Op::Write { file, offset: i as u64 * 100 * 1024, data, durable: true });
    }
    // Closing does not lose what is in flight.
    server.ring().close_file(file);
    let mut tags = Vec::new();
    for _ in 0..16 {
        let completion = server.any();
        assert!(matches!(completion.outcome, Outcome::Written(Ok(()))));
        tags.push(completion.tag);
    }
    tags.sort_unstable();
    assert_eq!(tags, (100..116).collect::<Vec<_>>());
    assert!(server.at.content(&path) == expected);
}

pub(crate) fn a_range_off_alignment_is_read<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let content = pattern(100_003, 8);
    let path = server.at.make_file("odd", &content);
    for direct in [false, true] {
        if direct && !server.at.is_direct() {
            continue;
        }
        let file = server.open(&path, Access::Read, direct);
        for (offset, len) in [(0, 0), (0, 1), (1, 4095), (4095, 2), (4096, 4096), (777, 70_001), (100_002, 1)]
        {
            server.submit(READ, Op::Read { file, offset, len });
            match server.next(READ) {
                Outcome::Read(Ok(read)) => assert!(read == content[offset as usize..][..len as usize]),
                other => panic!("{offset}+{len}: {other:?}"),
            }
        }
    }
}

pub(crate) fn a_read_past_the_end_fails<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let path = server.at.make_file("short", &pattern(10_000, 9));
    for direct in [false, true] {
        if direct && !server.at.is_direct() {
            continue;
        }
        let file = server.open(&path, Access::Read, direct);
        for (offset, len) in [(9_999, 2), (10_000, 1), (0, 10_001), (1 << 30, 10)] {
            server.submit(READ, Op::Read { file, offset, len });
            let outcome = server.next(READ);
            assert!(
                matches!(outcome, Outcome::Read(Err(Errno::UnexpectedEof))),
                "{offset}+{len}: {outcome:?}"
            );
        }
    }
}

pub(crate) fn a_file_is_sent_at_an_odd_offset<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let content = pattern(4 * MIB, 10);
    let path = server.at.make_file("sent", &content);
    let file = server.open(&path, Access::Read, false);
    // The reader is slow, so that the socket blocks with bytes in the pipe.
    let mut script = vec![Act::Gate(0)];
    script.extend((0..3 * MIB / 4096).map(|_| Act::Read(4096)));
    script.push(Act::ReadToEnd);
    let (client, socket) = server.connect(script);
    server.submit(SEND, Op::SendFile { socket, file, offset: 12_345, len: 3 * MIB as u64 });
    server.submit(SEND + 10, Op::Send { socket, parts: vec![Bytes::from_static(b"tail")] });
    server.ring().close_file(file);
    server.collect_for(Duration::from_millis(5));
    server.at.open_gate(0);
    server.expect_sent(SEND);
    server.expect_sent(SEND + 10);
    server.close(CLOSE, socket);
    let read = server.at.end(client);
    assert!(read[..3 * MIB] == content[12_345..][..3 * MIB]);
    assert_eq!(&read[3 * MIB..], b"tail");
}

pub(crate) fn a_file_that_ends_early_fails_the_send<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let path = server.at.make_file("ends", &pattern(10_000, 11));
    let file = server.open(&path, Access::Read, false);
    let (client, socket) = server.connect(vec![Act::ReadToEnd]);
    server.submit(SEND, Op::SendFile { socket, file, offset: 5_000, len: 5_001 });
    assert!(matches!(server.next(SEND), Outcome::Sent(Err(Errno::UnexpectedEof))));
    // What comes behind it would be taken for the missing bytes.
    server.submit(SEND, Op::Send { socket, parts: vec![Bytes::from_static(b"behind")] });
    assert!(matches!(server.next(SEND), Outcome::Sent(Err(Errno::UnexpectedEof))));
    server.close(CLOSE, socket);
    assert!(server.at.end(client).len() <= 5_000);
}

pub(crate) fn close_ends_a_file_on_its_way<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = Server::new(new(Bounds { pipes_max: 1, ..Bounds::default() }));
    let content = pattern(S::STALLS, 12);
    let path = server.at.make_file("closed", &content);
    let file = server.open(&path, Access::Read, false);
    for round in 0..3 {
        let (client, socket) = server.connect(vec![Act::Gate(round), Act::ReadToEnd]);
        server.submit(SEND, Op::SendFile { socket, file, offset: 0, len: S::STALLS as u64 });
        server.collect_for(Duration::from_millis(5));
        server.submit(CLOSE, Op::Close { socket });
        assert!(matches!(server.next(SEND), Outcome::Sent(Err(Errno::Cancelled))));
        assert!(matches!(server.next(CLOSE), Outcome::Closed));
        server.at.open_gate(round);
        let read = server.at.end(client);
        assert!(read == content[..read.len()]);
        // The only pipe had bytes in it: they must not reach this one.
        let (client, socket) = server.connect(vec![Act::ReadToEnd]);
        server.submit(SEND, Op::SendFile { socket, file, offset: 100, len: 1_000 });
        server.expect_sent(SEND);
        server.close(CLOSE, socket);
        assert!(server.at.end(client) == content[100..1_100]);
    }
}

pub(crate) fn more_files_than_pipes_are_sent<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = Server::new(new(Bounds { pipes_max: 2, ..Bounds::default() }));
    let content = pattern(MIB, 13);
    let path = server.at.make_file("pipes", &content);
    let file = server.open(&path, Access::Read, false);
    let connections: Vec<_> = (0..8).map(|_| server.connect(vec![Act::Gate(0), Act::ReadToEnd])).collect();
    for (i, (_, socket)) in connections.iter().enumerate() {
        server.submit(
            100 + i as u64,
            Op::SendFile { socket: *socket, file, offset: i as u64, len: MIB as u64 - 8 },
        );
    }
    server.collect_for(Duration::from_millis(5));
    // One of those that may still wait for a pipe gives up.
    let (_, last) = connections[7];
    server.submit(CLOSE, Op::Close { socket: last });
    assert!(matches!(server.next(107), Outcome::Sent(Err(Errno::Cancelled) | Ok(()))));
    assert!(matches!(server.next(CLOSE), Outcome::Closed));
    server.at.open_gate(0);
    for (i, (client, socket)) in connections.into_iter().enumerate().take(7) {
        server.expect_sent(100 + i as u64);
        server.close(CLOSE, socket);
        assert!(server.at.end(client) == content[i..][..MIB - 8]);
    }
}

pub(crate) fn a_wake_from_elsewhere_ends_the_wait<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let (client, socket) =
        server.connect(vec![Act::Gate(0), Act::Wake, Act::Wake, Act::Gate(1), Act::Wake, Act::Read(1)]);
    server.at.open_gate(0);
    server.expect_woken();
    server.at.open_gate(1);
    server.expect_woken();
    server.send(SEND, socket, &b"!"[..]);
    server.at.end(client);
    // From here.
    let waker = server.ring().waker();
    waker.wake();
    waker.clone().wake();
    server.expect_woken();
}

pub(crate) fn the_deadline_ends_the_wait<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let (client, socket) = server.connect(vec![Act::Gate(0)]);
    server.submit(RECEIVE, Op::Receive { socket });
    let mut out = Vec::new();
    let before = server.ring().now();
    for ms in [0, 1, 20] {
        let deadline = before.monotonic.plus(Duration::from_millis(ms));
        server.ring().turn(Some(deadline), &mut out).unwrap();
        assert!(out.is_empty());
        assert!(server.ring().now().monotonic >= deadline);
    }
    assert!(server.ring().now().wall_ms >= before.wall_ms);
    server.at.open_gate(0);
    assert_eq!(server.receive(RECEIVE), None);
    server.at.end(client);
}

pub(crate) fn more_is_received_than_there_are_buffers<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server =
        Server::new(new(Bounds { recv_buffer_count: 2, recv_buffer_bytes: 1 << 10, ..Bounds::default() }));
    let (_, address) = server.listen(ACCEPT);
    let said: Vec<_> = (0..4).map(|seed| pattern(200_000, seed)).collect();
    let clients: Vec<_> = said
        .iter()
        .map(|bytes| server.at.start(address, vec![Act::Write(bytes.clone()), Act::Finish, Act::ReadToEnd]))
        .collect();
    let sockets: Vec<_> = said.iter().map(|_| server.accept(ACCEPT)).collect();
    for (i, socket) in sockets.iter().enumerate() {
        server.submit(100 + i as u64, Op::Receive { socket: *socket });
    }
    let mut heard = vec![Vec::new(); 4];
    let mut open = 4;
    while open > 0 {
        let completion = server.any();
        let i = (completion.tag - 100) as usize;
        match completion.outcome {
            Outcome::Received(Ok(Some(buffer))) => {
                let bytes = server.ring().received(&buffer).to_vec();
                assert!(bytes.len() <= 1 << 10);
                server.ring().recycle(buffer);
                heard[i].extend(bytes);
            }
            Outcome::Received(Ok(None)) => open -= 1,
            other => panic!("{other:?}"),
        }
    }
    for socket in sockets {
        server.close(CLOSE, socket);
    }
    // Which client is which socket is not known.
    let mut said = said;
    heard.sort();
    said.sort();
    assert!(heard == said);
    for client in clients {
        server.at.end(client);
    }
}

pub(crate) fn receive_starves_until_buffers_come_back<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server =
        Server::new(new(Bounds { recv_buffer_count: 2, recv_buffer_bytes: 1 << 10, ..Bounds::default() }));
    let said = pattern(10_000, 14);
    let (client, socket) = server.connect(vec![Act::Write(said.clone()), Act::Finish, Act::ReadToEnd]);
    server.submit(RECEIVE, Op::Receive { socket });
    let mut held = Vec::new();
    loop {
        match server.next(RECEIVE) {
            Outcome::Received(Ok(Some(buffer))) => held.push(buffer),
            other => panic!("{other:?}"),
        }
        // Once all memory is out nothing more arrives, however long one waits.
        server.collect_for(Duration::from_millis(5));
        if !server.has(RECEIVE) {
            break;
        }
    }
    assert!(held.iter().map(RecvBuffer::len).sum::<usize>() <= 2 << 10);
    let mut heard = Vec::new();
    for buffer in held {
        heard.extend_from_slice(server.ring().received(&buffer));
        server.ring().recycle(buffer);
    }
    while let Some(bytes) = server.receive(RECEIVE) {
        heard.extend(bytes);
    }
    assert!(heard == said);
    server.close(CLOSE, socket);
    server.at.end(client);
}

pub(crate) fn a_paused_receive_pushes_back<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let said = pattern(S::STALLS, 15);
    let (client, socket) =
        server.connect(vec![Act::Gate(0), Act::Write(said.clone()), Act::Wake, Act::Finish]);
    server.submit(RECEIVE, Op::Receive { socket });
    // Taken back before it could take effect: nothing has changed.
    server.ring().pause_receive(socket);
    server.ring().resume_receive(socket);
    server.ring().pause_receive(socket);
    server.collect_for(Duration::from_millis(1));
    server.at.open_gate(0);
    // The client cannot get rid of so much.
    server.collect_for(Duration::from_millis(20));
    assert!(!server.has(RECEIVE) && !server.has(ringmq_ring::WAKE_TAG));
    server.ring().resume_receive(socket);
    let mut heard = Vec::new();
    while let Some(bytes) = server.receive(RECEIVE) {
        heard.extend(bytes);
    }
    assert!(heard == said);
    server.close(CLOSE, socket);
    server.at.end(client);
}

pub(crate) fn a_thousand_idle_connections<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    const IDLE: usize = 1_000;
    let mut server = server(new);
    let (_, address) = server.listen(ACCEPT);
    let mut connections: Vec<(Socket, _)> = Vec::new();
    for i in 0..IDLE {
        let client =
            server.at.start(address, vec![Act::Gate(i as u32), Act::Write(vec![i as u8]), Act::ReadToEnd]);
        let socket = server.accept(ACCEPT);
        server.submit(100 + i as u64, Op::Receive { socket });
        connections.push((socket, client));
    }
    // Each is still there.
    for (i, (socket, client)) in connections.into_iter().enumerate().rev() {
        server.at.open_gate(i as u32);
        assert_eq!(server.receive(100 + i as u64), Some(vec![i as u8]));
        server.close(CLOSE, socket);
        assert!(matches!(server.next(100 + i as u64), Outcome::Received(Err(Errno::Cancelled))));
        assert!(server.at.end(client).is_empty());
    }
}

pub(crate) fn a_closed_listener_accepts_no_more<S: Surroundings>(new: impl Fn(Bounds) -> S) {
    let mut server = server(new);
    let (listener, address) = server.listen(ACCEPT);
    let client = server.at.start(address, vec![Act::ReadToEnd]);
    let socket = server.accept(ACCEPT);
    server.ring().close_listener(listener);
    assert!(matches!(server.next(ACCEPT), Outcome::Accepted(Err(Errno::Cancelled))));
    server.submit(ACCEPT, Op::Accept { listener });
    assert!(matches!(server.next(ACCEPT), Outcome::Accepted(Err(Errno::BadHandle))));
    // What was accepted before lives on, and the address is free again.
    server.ring().listen(address).unwrap();
    server.send(SEND, socket, &b"still here"[..]);
    server.close(CLOSE, socket);
    assert_eq!(server.at.end(client), b"still here");
}
