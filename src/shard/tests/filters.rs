//! SQL filters on their way through pulls, holds and reads of old data.

use super::*;
use ringmq_protocol::body::{CheckClientConfigBody, EXPRESSION_TYPE_SQL92};
use ringmq_protocol::request::GetConsumerListByGroupRequest;

impl Fixture {
    /// A pull that brings an SQL filter of its own.
    fn pull_sql(&mut self, topic: &str, from: i64, hold_ms: i64, expression: &str) -> Opaque {
        let pull = pull_request(topic, from, hold_ms, expression);
        let pull = PullMessageRequest { expression_type: Some(EXPRESSION_TYPE_SQL92.into()), ..pull };
        self.request(RequestCode::PULL_MESSAGE, &pull, &[])
    }

    /// A pull that relies on what the group's heartbeats said.
    fn pull_subscribed(&mut self, topic: &str, from: i64) -> Opaque {
        let pull = pull_request(topic, from, 0, "");
        let pull = PullMessageRequest { sys_flag: 0, subscription: None, ..pull };
        self.request(RequestCode::PULL_MESSAGE, &pull, &[])
    }

    fn heartbeat(&mut self, expression_type: &str, expression: &str, version: i64) -> RemotingCommand {
        let subscription = SubscriptionData {
            topic: "T".into(),
            sub_string: expression.into(),
            expression_type: expression_type.into(),
            sub_version: version,
            ..SubscriptionData::default()
        };
        let consumer = ConsumerData {
            group_name: "g".into(),
            subscription_data_set: vec![subscription],
            ..ConsumerData::default()
        };
        let beat = HeartbeatData {
            client_id: "c".into(),
            consumer_data_set: vec![consumer],
            ..HeartbeatData::default()
        };
        let opaque = self.request(RequestCode::HEART_BEAT, &(), &beat.to_json());
        self.answer(opaque).expect("heartbeats are answered at once")
    }

    /// Bodies of all that a filter finds from the start of the queue on, and how many pulls it took.
    fn all_of(&mut self, topic: &str, until: i64, expression: &str) -> (Vec<Vec<u8>>, usize) {
        let (mut next, mut found, mut pulls) = (0, Vec::new(), 0);
        while next < until {
            let pull = self.pull_sql(topic, next, 0, expression);
            self.read_all();
            let (code, then, bodies) = self.pulled(pull).expect("answered once all is read");
            let status = if bodies.is_empty() { ResponseCode::PULL_RETRY_IMMEDIATELY.0 } else { 0 };
            assert_eq!(code, status);
            assert!(then > next, "P4: progress from {next}");
            found.extend(bodies);
            next = then;
            pulls += 1;
        }
        assert_eq!(next, until);
        (found, pulls)
    }
}

#[test]
fn sql_chooses_by_properties() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    for (i, properties) in
        ["price\x015\x02TAGS\x01a\x02", "price\x0112\x02", "", "price\x01many\x02", "price\x0112.5\x02"]
            .into_iter()
            .enumerate()
    {
        f.send("T", 0, properties, &[b'0' + i as u8]);
    }
    f.settle();
    for (expression, bodies) in [
        ("price > 4", &[b"0", b"1"][..]),
        ("price > 4.0", &[b"0", b"1", b"4"]),
        ("price IS NULL", &[b"2"]),
        ("price IS NOT NULL AND TAGS IS NULL", &[b"1", b"3", b"4"]),
        ("price IN ('5', 'many') OR price BETWEEN 12 AND 13", &[b"0", b"1", b"3"]),
        ("TAGS CONTAINS 'a'", &[b"0"]),
        ("TAGS = 'b'", &[]),
    ] {
        let pull = f.pull_sql("T", 0, 0, expression);
        let code = if bodies.is_empty() { ResponseCode::PULL_RETRY_IMMEDIATELY.0 } else { 0 };
        let bodies = bodies.iter().map(|body| body.to_vec()).collect();
        assert_eq!(f.pulled(pull).unwrap(), (code, 5, bodies), "{expression}");
    }
}

#[test]
fn a_wrong_expression_is_refused_with_its_place() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "a\x01x\x02", b"x");
    f.settle();
    let check = |f: &mut Fixture, expression_type: &str, expression: &str| {
        let subscription_data = SubscriptionData {
            topic: "T".into(),
            sub_string: expression.into(),
            expression_type: expression_type.into(),
            ..SubscriptionData::default()
        };
        let body = CheckClientConfigBody { subscription_data, ..CheckClientConfigBody::default() };
        let opaque = f.request(RequestCode::CHECK_CLIENT_CONFIG, &(), &body.to_json());
        f.answer(opaque).unwrap()
    };
    let pulled = |f: &mut Fixture, expression: &str| {
        let pull = f.pull_sql("T", 0, 0, expression);
        f.answer(pull).unwrap()
    };
    for wrong in ["a LIKE 'x'", "a > 'x'", "", "(((("] {
        let asked_first = check(&mut f, EXPRESSION_TYPE_SQL92, wrong);
        for answer in [asked_first, pulled(&mut f, wrong)] {
            assert_eq!(answer.code, ResponseCode::SUBSCRIPTION_PARSE_FAILED.0, "{wrong}");
            let remark = answer.remark.unwrap();
            assert!(remark.starts_with("parse the consumer's subscription failed: "), "{remark}");
        }
    }
    let remark = pulled(&mut f, "a LIKE 'x'").remark.unwrap();
    assert!(remark.contains("character 3, at `LIKE 'x'`") && remark.contains("a LIKE 'x'"), "{remark}");
    assert_eq!(check(&mut f, EXPRESSION_TYPE_SQL92, "a = 'x'").code, 0);
    let other = check(&mut f, "XPATH", "//a");
    assert_eq!(other.code, ResponseCode::SYSTEM_ERROR.0);
    assert!(other.remark.unwrap().contains("TAG and SQL92"));

    // A member that subscribes with a wrong one stays a member, and its pulls say why they get nothing.
    assert_eq!(f.heartbeat(EXPRESSION_TYPE_SQL92, "a >", 1).code, 0);
    let list = f.request(
        RequestCode::GET_CONSUMER_LIST_BY_GROUP,
        &GetConsumerListByGroupRequest { consumer_group: "g".into() },
        &[],
    );
    assert_eq!(f.answer(list).unwrap().code, 0);
    let pull = f.pull_subscribed("T", 0);
    assert_eq!(f.answer(pull).unwrap().code, ResponseCode::SUBSCRIPTION_PARSE_FAILED.0);
    f.heartbeat(EXPRESSION_TYPE_SQL92, "a = 'x'", 2);
    let pull = f.pull_subscribed("T", 0);
    assert_eq!(f.pulled(pull).unwrap(), (0, 1, vec![b"x".to_vec()]));
    f.heartbeat(EXPRESSION_TYPE_SQL92, "a <> 'x'", 3);
    let pull = f.pull_subscribed("T", 0);
    assert_eq!(f.pulled(pull).unwrap(), (ResponseCode::PULL_RETRY_IMMEDIATELY.0, 1, vec![]));
}

#[test]
fn a_held_pull_wakes_only_on_a_message_that_sql_wants() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "", b"old");
    f.settle();
    let held = f.pull_sql("T", 1, 5_000, "price > 10");
    let timed = f.pull_sql("T", 1, 2_000, "price IS NULL");
    f.send("T", 0, "price\x013\x02", b"cheap");
    f.settle();
    assert!(f.answer(held).is_none() && f.answer(timed).is_none());
    f.tick(2_000);
    assert_eq!(f.pulled(timed).unwrap(), (ResponseCode::PULL_RETRY_IMMEDIATELY.0, 2, vec![]));
    f.send("T", 0, "price\x0111\x02", b"dear");
    f.settle();
    assert_eq!(f.pulled(held).unwrap(), (0, 3, vec![b"dear".to_vec()]));
    assert_eq!((f.shard.holds.len(), f.shard.next_deadline_ms()), (0, None));
}

#[test]
fn retries_come_whatever_the_filter() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("%RETRY%g", 0, "", b"again");
    f.settle();
    let pull = f.pull_sql("%RETRY%g", 0, 0, "price > 10");
    assert_eq!(f.pulled(pull).unwrap(), (0, 1, vec![b"again".to_vec()]));
}

/// 2,000 messages in two queues, of which queue 0 gets those with even numbers; every 100th has a colour.
fn coloured(f: &mut Fixture) {
    for i in 0..2_000u32 {
        let colour = if i % 100 == 0 { "colour\x01red\x02" } else { "" };
        let properties = format!("n\x01{i}\x02{colour}");
        let mut body = i.to_be_bytes().to_vec();
        body.resize(1_000, 7);
        f.send("T", (i % 2) as i32, &properties, &body);
        if i % 7 == 0 {
            f.settle();
        }
    }
    f.settle();
}

#[test]
fn old_messages_are_chosen_when_they_are_read() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    coloured(&mut f);
    let numbers = |bodies: &[Vec<u8>]| -> Vec<u32> {
        bodies.iter().map(|body| u32::from_be_bytes(body[..4].try_into().unwrap())).collect()
    };
    let in_memory = ["colour = 'red'", "n >= 500 AND n < 900", "n < 0", "n IS NOT NULL"]
        .map(|expression| (expression, numbers(&f.all_of("T", 1_000, expression).0)));
    assert_eq!(in_memory[0].1, (0..20).map(|i| i * 100).collect::<Vec<_>>());
    assert_eq!(in_memory[1].1, (250..450).map(|i| i * 2).collect::<Vec<_>>());
    assert_eq!((in_memory[2].1.len(), in_memory[3].1.len()), (0, 1_000));
    let mut f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    // The group is made by its first pull, which is a write; beside writes stretches are shorter.
    f.pull_sql("T", 1_000, 0, "n < 0");
    f.settle();
    f.tick(limits::COLD_BESIDE_WRITES_MS);
    for (expression, wanted) in in_memory {
        let (found, pulls) = f.all_of("T", 1_000, expression);
        assert_eq!(numbers(&found), wanted, "{expression}");
        // About 2.4 MB are read, a stretch of 1 MiB at a time, and 32 messages are one answer.
        assert!(pulls <= 5 + wanted.len().div_ceil(8), "{expression}: {pulls} pulls");
    }
    // A held pull whose messages all had to be read.
    let pull = f.pull_sql("T", 990, 1_000, "n < 0");
    f.read_all();
    assert!(f.answer(pull).is_none(), "it waits at the end");
    f.tick(1_000);
    assert_eq!(f.pulled(pull).unwrap(), (ResponseCode::PULL_RETRY_IMMEDIATELY.0, 1_000, vec![]));
    let pull = f.pull_sql("T", 1_000, 1_000, "n > 5000");
    f.send("T", 0, "n\x016000\x02", b"new");
    f.settle();
    assert_eq!(f.pulled(pull).unwrap(), (0, 1_001, vec![b"new".to_vec()]));
}

#[test]
fn one_pull_looks_at_so_many_bytes_only() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let long = format!("long\x01{}\x02", "x".repeat(30_000));
    let count = 4 * limits::SQL_WORK_MAX as usize / long.len();
    for i in 0..count {
        f.send("T", 0, &long, b"x");
        if i % 20 == 0 {
            f.settle();
        }
    }
    f.settle();
    let (found, pulls) = f.all_of("T", count as i64, "long = 'y'");
    assert_eq!((found.len(), pulls), (0, 4));
    // Text is searched for again and again: each pull gets less far.
    let expression = ["long CONTAINS 'y'"; 7].join(" OR ");
    let (found, pulls) = f.all_of("T", count as i64, &expression);
    assert!(found.is_empty() && (25..=40).contains(&pulls), "{pulls} pulls");
}
