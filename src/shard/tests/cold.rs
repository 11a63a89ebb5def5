//! How old messages are read: few reads at a time, shared, and ahead.

use super::*;
use limits::{
    COLD_BESIDE_WRITES_MS, COLD_GATHERING_MAX, COLD_LATE_MS, COLD_PULL_BYTES_BESIDE_WRITES, COLD_READ_BYTES,
    COLD_READ_BYTES_BESIDE_WRITES, COLD_READS_BESIDE_WRITES_MAX, COLD_READS_MAX,
};
use ringmq_protocol::code::ResponseCode;

const BODY: usize = 100_000;
const QUEUES: i64 = 4;

/// A shard after a start, with messages that lie one behind the other in queues 0 to 3 in turn, a block each.
fn old_messages(count: i64) -> Fixture {
    let mut f = Fixture::new(FlushDiskType::Sync);
    for number in 0..count {
        let mut body = vec![b'x'; BODY];
        body[..8].copy_from_slice(&number.to_be_bytes());
        let send = f.send("T", (number % QUEUES) as i32, "", &body);
        f.settle();
        assert_eq!(f.sent(send), number / QUEUES);
    }
    // The group is made by its first pull, which is a write.
    f.pull("T", 0, 0, "*");
    f.settle();
    Fixture::on(f.disk, FlushDiskType::Sync)
}

const SMALL: usize = 10_000;
/// The block of one such message.
const SMALL_BLOCK: u32 = 10 << 10;

/// The same with small messages in one queue.
fn old_small_messages(count: i64) -> Fixture {
    let mut f = Fixture::new(FlushDiskType::Sync);
    for _ in 0..count {
        f.send("T", 0, "", &[b'x'; SMALL]);
        f.settle();
    }
    f.pull("T", 0, 0, "*");
    f.settle();
    Fixture::on(f.disk, FlushDiskType::Sync)
}

#[test]
fn beside_sends_a_turn_gives_one_small_answer_out_of_a_small_read() {
    let mut f = old_small_messages(100);
    f.send("T", 0, "", b"new");
    f.tick(0);
    f.settle();
    f.tick(1);
    let pulls = [0, 1, 2].map(|offset| f.pull("T", offset, 0, "*"));
    let read = f.fx.reads.remove(0);
    let whole_blocks = COLD_READ_BYTES_BESIDE_WRITES / SMALL_BLOCK * SMALL_BLOCK;
    assert_eq!((read.len, f.fx.reads.len()), (whole_blocks, 0));
    let bytes = f.bytes_of(&read);
    f.shard.on_read(read.id, Ok(bytes), &mut f.fx);
    let in_an_answer = COLD_PULL_BYTES_BESIDE_WRITES / SMALL;
    for pull in pulls {
        assert_eq!(f.shard.next_deadline_ms(), Some(f.now.monotonic_ms), "the next turn is due");
        f.collect();
        assert!(f.pulled(pull).is_none(), "it is not its turn");
        f.tick(0);
        assert_eq!(f.pulled(pull).unwrap().2.len(), in_an_answer);
    }
    f.tick(COLD_BESIDE_WRITES_MS);
    f.read_all();
    let pulls = [0, 1, 2].map(|offset| f.pull("T", offset, 0, "*"));
    let alone = pulls.map(|pull| f.pulled(pull).expect("at once").2.len());
    assert!(alone[0] > in_an_answer, "{alone:?}");
}

/// Asks for the message with this number, and those behind it in its queue.
fn ask(f: &mut Fixture, number: i64) -> Opaque {
    let pull = PullMessageRequest {
        queue_id: (number % QUEUES) as i32,
        ..pull_request("T", number / QUEUES, 0, "*")
    };
    f.request(RequestCode::PULL_MESSAGE, &pull, &[])
}

fn first_number(f: &mut Fixture, pull: Opaque) -> Option<i64> {
    let (_, _, bodies) = f.pulled(pull)?;
    Some(i64::from_be_bytes(bodies[0][..8].try_into().unwrap()))
}

/// Serves the read that was asked for first.
fn serve_one(f: &mut Fixture) {
    let read = f.fx.reads.remove(0);
    let bytes = f.bytes_of(&read);
    f.shard.on_read(read.id, Ok(bytes), &mut f.fx);
    f.answer_ready();
}

#[test]
fn readers_of_neighbouring_queues_share_a_read() {
    let mut f = old_messages(12);
    let pulls = [0, 1, 2, 3].map(|number| ask(&mut f, number));
    // An answer has room for two; what all wait for next is in the second stretch.
    for _ in 0..2 {
        assert_eq!(f.fx.reads.len(), 1);
        serve_one(&mut f);
    }
    assert_eq!(pulls.map(|pull| first_number(&mut f, pull)), [0, 1, 2, 3].map(Some));
}

#[test]
fn what_lies_behind_is_read_before_somebody_asks() {
    let mut f = old_messages(20);
    let pull = ask(&mut f, 0);
    serve_one(&mut f);
    assert_eq!(first_number(&mut f, pull), Some(0));
    assert_eq!(f.fx.reads.len(), 1, "ahead");
    let in_a_stretch = i64::from(COLD_READ_BYTES) / BODY as i64;
    serve_one(&mut f);
    assert_eq!(f.fx.reads, [], "one stretch ahead, not two");
    let pull = ask(&mut f, in_a_stretch);
    assert_eq!(first_number(&mut f, pull), Some(in_a_stretch), "no read to wait for");
}

const MANY_QUEUES: i64 = 16;
const MEDIUM: usize = 30_000;

/// A shard after a start, with 48 messages in 16 queues in turn: a stretch has one or two of each queue, and an answer three.
fn many_queues() -> Fixture {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let create = CreateTopicRequest::new("T", MANY_QUEUES as i32);
    f.request(RequestCode::UPDATE_AND_CREATE_TOPIC, &create, &[]);
    f.settle();
    for number in 0..3 * MANY_QUEUES {
        f.send("T", (number % MANY_QUEUES) as i32, "", &[number as u8; MEDIUM]);
        f.settle();
    }
    f.pull("T", 0, 0, "*");
    f.settle();
    Fixture::on(f.disk, FlushDiskType::Sync)
}

/// Asks for everything in a queue.
fn ask_queue(f: &mut Fixture, queue_id: i64) -> Opaque {
    let pull = PullMessageRequest { queue_id: queue_id as i32, ..pull_request("T", 0, 0, "*") };
    f.request(RequestCode::PULL_MESSAGE, &pull, &[])
}

/// What the answer to a pull has: its next offset, and the numbers of the messages.
fn numbers(f: &mut Fixture, pull: Opaque) -> Option<(i64, Vec<u8>)> {
    let (_, next, bodies) = f.pulled(pull)?;
    Some((next, bodies.iter().map(|body| body[0]).collect()))
}

#[test]
fn an_answer_gathers_what_lies_in_several_stretches() {
    let mut f = many_queues();
    let pulls = [0, 1, 2].map(|queue| ask_queue(&mut f, queue));
    let (reads, _) = f.read_all();
    assert_eq!(reads, 3, "shared by all, and one ahead");
    for (queue, pull) in pulls.into_iter().enumerate() {
        let queue = queue as u8;
        assert_eq!(numbers(&mut f, pull), Some((3, vec![queue, queue + 16, queue + 32])));
    }
}

#[test]
fn what_was_gathered_before_a_read_failed_is_given() {
    let mut f = many_queues();
    let pull = ask_queue(&mut f, 0);
    serve_one(&mut f);
    assert_eq!(numbers(&mut f, pull), None, "there is more to come");
    let read = f.fx.reads.remove(0);
    f.shard.on_read(read.id, Err("the disk is gone".to_owned()), &mut f.fx);
    f.collect();
    assert_eq!(numbers(&mut f, pull), Some((2, vec![0, 16])));
    assert_eq!(f.lines("the disk is gone"), 1);

    let rest = PullMessageRequest { queue_id: 0, ..pull_request("T", 2, 0, "*") };
    let rest = f.request(RequestCode::PULL_MESSAGE, &rest, &[]);
    let read = f.fx.reads.remove(0);
    f.shard.on_read(read.id, Err("the disk is gone".to_owned()), &mut f.fx);
    f.collect();
    assert_eq!(f.answer(rest).map(|answer| answer.code), Some(ResponseCode::SYSTEM_ERROR.0));
}

#[test]
fn a_damaged_block_in_a_later_stretch_costs_what_is_in_it() {
    let mut f = many_queues();
    let pull = ask_queue(&mut f, 0);
    serve_one(&mut f);
    for _ in 0..2 {
        let read = f.fx.reads.remove(0);
        let mut bytes = f.bytes_of(&read).to_vec();
        bytes[MEDIUM / 2] ^= 1;
        f.shard.on_read(read.id, Ok(bytes.into()), &mut f.fx);
    }
    f.answer_ready();
    assert_eq!(f.lines("is damaged"), 1);
    assert_eq!(numbers(&mut f, pull), Some((3, vec![0, 16])));
}

#[test]
fn few_pulls_keep_what_they_gather() {
    let mut f = many_queues();
    let pulls: Vec<Opaque> = (0..COLD_GATHERING_MAX + 5).map(|_| ask_queue(&mut f, 0)).collect();
    serve_one(&mut f);
    let mut answered = 0;
    for pull in &pulls {
        if let Some(found) = numbers(&mut f, *pull) {
            assert_eq!(found, (2, vec![0, 16]), "the rest is left to the next pull");
            answered += 1;
        }
    }
    assert_eq!(answered, 5);
}

#[test]
fn what_comes_back_wrong_is_said_though_nobody_had_asked_for_it() {
    let mut f = old_messages(20);
    let pull = ask(&mut f, 0);
    serve_one(&mut f);
    assert_eq!(first_number(&mut f, pull), Some(0));
    let ahead = f.fx.reads.remove(0);
    let mut bytes = f.bytes_of(&ahead).to_vec();
    let zeros = vec![0; bytes.len()];
    bytes[BODY / 2] ^= 1;
    f.shard.on_read(ahead.id, Ok(bytes.into()), &mut f.fx);
    assert_eq!(f.lines("again"), 1);
    let again = f.fx.reads.remove(0);
    assert_eq!((again.offset, again.len), (ahead.offset, ahead.len));
    f.shard.on_read(again.id, Ok(zeros.into()), &mut f.fx);
    assert_eq!(f.lines("is damaged"), 1);
    let pull = ask(&mut f, 0);
    assert_eq!(first_number(&mut f, pull), Some(0));
    assert_eq!(f.fx.reads, [], "damage is not read ahead again");
}

#[test]
fn nothing_is_read_ahead_behind_the_last_block() {
    let mut f = old_messages(3);
    let pull = ask(&mut f, 0);
    serve_one(&mut f);
    assert_eq!(first_number(&mut f, pull), Some(0));
    assert_eq!(f.fx.reads, []);
}

#[test]
fn a_read_from_between_two_blocks_takes_more_than_what_is_between_them() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "", b"small");
    f.pull("T", 0, 0, "*");
    f.settle();
    // After a start the log goes on at the next sector.
    let mut f = Fixture::on(f.disk, FlushDiskType::Sync);
    f.send("T", 0, "", &vec![b'x'; 2 * COLD_READ_BYTES as usize]);
    f.settle();
    let mut f = Fixture::on(f.disk, FlushDiskType::Sync);
    let pull = f.pull("T", 0, 0, "*");
    serve_one(&mut f);
    assert_eq!(f.pulled(pull).unwrap().2, [b"small"]);
    f.read_all();
    assert_eq!(f.lines("again"), 0, "what was read ahead is right");
    let pull = f.pull("T", 1, 0, "*");
    f.read_all();
    assert_eq!(f.pulled(pull).unwrap().2[0].len(), 2 * COLD_READ_BYTES as usize);
}

#[test]
fn few_reads_are_under_way_and_fewer_while_the_log_is_written() {
    let mut f = old_messages(100);
    let pulls: Vec<Opaque> = (0..10).map(|place| ask(&mut f, place * 10)).collect();
    assert_eq!(f.fx.reads.len(), COLD_READS_MAX);
    let send = f.send("T", 0, "", b"new");
    let write = f.writes().remove(0);
    serve_one(&mut f);
    serve_one(&mut f);
    f.tick(1);
    assert_eq!(f.fx.reads.len(), COLD_READS_MAX - 2, "not one more beside the write");
    while f.fx.reads.len() > COLD_READS_BESIDE_WRITES_MAX {
        serve_one(&mut f);
    }
    serve_one(&mut f);
    while f.shard.cold.has_answers() {
        f.tick(COLD_LATE_MS + 1);
    }
    assert_eq!(f.fx.reads.len(), COLD_READS_BESIDE_WRITES_MAX);
    f.complete(&write);
    f.sent(send);
    f.tick(COLD_BESIDE_WRITES_MS);
    assert_eq!(f.fx.reads.len(), COLD_READS_MAX);
    f.read_all();
    for (place, pull) in pulls.into_iter().enumerate() {
        assert_eq!(first_number(&mut f, pull), Some(place as i64 * 10));
    }
}

#[test]
fn while_the_disk_is_at_a_lone_write_old_messages_are_not_given_unless_they_are_late() {
    let mut f = old_messages(100);
    let pulls = [ask(&mut f, 0), ask(&mut f, 50)];
    let send = f.send("T", 0, "", b"new");
    f.tick(0);
    let write = f.writes().remove(0);
    serve_one(&mut f);
    f.tick(0);
    assert_eq!(first_number(&mut f, pulls[0]), None, "the write comes first");
    f.tick(COLD_LATE_MS + 1);
    assert_eq!(first_number(&mut f, pulls[0]), Some(0), "but not for ever");
    serve_one(&mut f);
    assert_eq!(first_number(&mut f, pulls[1]), None);
    f.complete(&write);
    f.sent(send);
    f.tick(0);
    assert_eq!(first_number(&mut f, pulls[1]), Some(50));
}

#[test]
fn who_is_far_behind_catches_up_and_who_waits_longest_is_not_forgotten() {
    let mut f = old_messages(100);
    // All slots are taken; then the newest part is asked for first, and older and older ones after it.
    let taken: Vec<Opaque> = (0..COLD_READS_MAX as i64).map(|place| ask(&mut f, place * 8)).collect();
    let newest = ask(&mut f, 96);
    let older: Vec<Opaque> = (4..11).rev().map(|place| ask(&mut f, place * 8)).collect();
    let mut served = 0;
    let answered_after = |f: &mut Fixture, pull: Opaque, served: &mut i32| loop {
        if first_number(f, pull).is_some() {
            return *served;
        }
        serve_one(f);
        *served += 1;
    };
    let newest_after = answered_after(&mut f, newest, &mut served);
    assert!(newest_after <= COLD_READS_MAX as i32 + 2, "it waited for {newest_after} reads");
    let last_asked_is_oldest = *older.last().unwrap();
    let oldest_after = answered_after(&mut f, last_asked_is_oldest, &mut served);
    assert!(oldest_after <= COLD_READS_MAX as i32 + 2, "it waited for {oldest_after} reads");
    f.read_all();
    for pull in taken.into_iter().chain(older.into_iter().rev().skip(1)) {
        assert!(first_number(&mut f, pull).is_some());
    }
}
