use super::*;

fn queues(count: i32) -> Vec<MessageQueue> {
    (0..count)
        .map(|id| MessageQueue { topic: "T".into(), broker_name: format!("b-{}", id % 2), queue_id: id / 2 })
        .collect()
}

fn members(count: usize) -> Vec<String> {
    // Unsorted on purpose: "10.0.0.1@9" sorts after "10.0.0.1@10".
    (0..count).rev().map(|i| format!("10.0.0.1@{i}")).collect()
}

#[test]
fn every_queue_has_one_owner_and_shares_are_even() {
    for queue_count in 0..20 {
        for member_count in 1..12 {
            let (queues, members) = (queues(queue_count), members(member_count));
            let shares: Vec<_> = members.iter().map(|m| allocate_average(&queues, &members, m)).collect();
            let mut all: Vec<_> = shares.iter().flatten().cloned().collect();
            all.sort_by(queue_order);
            let mut expected = queues.clone();
            expected.sort_by(queue_order);
            assert_eq!(all, expected, "{queue_count} queues, {member_count} members");
            let longest = shares.iter().map(Vec::len).max().unwrap_or(0);
            let shortest = shares.iter().map(Vec::len).min().unwrap_or(0);
            assert!(longest - shortest <= 1);
        }
    }
}

/// Worked by hand from the definition of AVG: 10 queues in order, ids sorted as strings, the first two take four and
/// three.
#[test]
fn shares_are_javas() {
    let members: Vec<String> = ["c", "a", "b"].map(String::from).to_vec();
    let queues = queues(10);
    let ids = |member: &str| -> Vec<(String, i32)> {
        allocate_average(&queues, &members, member).into_iter().map(|q| (q.broker_name, q.queue_id)).collect()
    };
    let of = |broker: &str, ids: &[i32]| -> Vec<(String, i32)> {
        ids.iter().map(|id| (broker.to_string(), *id)).collect()
    };
    assert_eq!(ids("a"), of("b-0", &[0, 1, 2, 3]));
    assert_eq!(ids("b"), [of("b-0", &[4]), of("b-1", &[0, 1])].concat());
    assert_eq!(ids("c"), of("b-1", &[2, 3, 4]));
}

#[test]
fn a_member_nobody_knows_gets_nothing() {
    assert!(allocate_average(&queues(4), &members(2), "stranger").is_empty());
    assert!(allocate_average(&queues(4), &[], "stranger").is_empty());
}

#[test]
fn more_members_than_queues_leaves_the_last_without() {
    let members = ["a", "b", "c"].map(String::from).to_vec();
    assert_eq!(allocate_average(&queues(2), &members, "a").len(), 1);
    assert_eq!(allocate_average(&queues(2), &members, "b").len(), 1);
    assert!(allocate_average(&queues(2), &members, "c").is_empty());
}

#[test]
fn order_is_utf16() {
    // U+FF5E is one unit above the surrogates of U+10000, although its UTF-8 is below.
    assert_eq!(java_order("\u{ff5e}", "\u{10000}"), Ordering::Greater);
}
