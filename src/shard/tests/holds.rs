//! Many pulls that wait.

use super::*;
use limits::HOLD_ANSWERS_MAX;

const MANY: usize = 2 * HOLD_ANSWERS_MAX + 100;

/// A topic with one message, and pulls that wait behind it: the i-th for the tags that `tags` gives.
fn parked(tags: impl Fn(usize) -> String) -> (Fixture, Vec<Opaque>) {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "", b"first");
    f.settle();
    f.tick(0);
    f.answers.clear();
    let pulls =
        (0..MANY).map(|i| f.pull_from(ConnectionId(i as u64 % 3), "T", 1, 10_000, &tags(i))).collect();
    assert!(f.answers.is_empty());
    (f, pulls)
}

impl Fixture {
    fn next_turn(&mut self) -> Vec<RemotingCommand> {
        self.tick(0);
        std::mem::take(&mut self.answers)
    }
}

#[test]
fn a_message_wakes_who_waits_for_its_tag_and_nobody_else() {
    let (mut f, pulls) = parked(|i| format!("t{i} || u{}", i / 2));
    f.send("T", 0, "TAGS\x01t7\x02", b"seven");
    f.send("T", 0, "TAGS\x01none\x02", b"nobody's");
    f.send("T", 0, "TAGS\x01u3\x02", b"for two");
    f.settle();
    let of_pulls = |f: &Fixture| f.answers.iter().filter(|answer| pulls.contains(&answer.opaque)).count();
    assert_eq!(of_pulls(&f), 2);
    assert_eq!(f.pulled(pulls[7]).unwrap(), (0, 4, vec![b"seven".to_vec(), b"for two".to_vec()]));
    assert_eq!(f.pulled(pulls[6]).unwrap(), (0, 4, vec![b"for two".to_vec()]));
    assert_eq!(f.shard.holds.len(), MANY - 2);
    // A pull that comes later waits for what comes later.
    let late = f.pull("T", 4, 10_000, "none");
    f.send("T", 0, "TAGS\x01t8\x02", b"eight");
    f.settle();
    assert_eq!(f.pulled(pulls[8]).unwrap(), (0, 5, vec![b"eight".to_vec()]));
    assert!(f.answer(late).is_none());
    f.shard.on_closed(ConnectionId(2), &mut f.fx);
    f.shard.on_closed(ConnectionId(1), &mut f.fx);
    f.tick(20_000);
    // The others are told that all before 5 is not for them.
    assert_eq!(f.pulled(pulls[0]).unwrap(), (ResponseCode::PULL_RETRY_IMMEDIATELY.0, 5, vec![]));
    assert!(f.answer(pulls[1]).is_none());
}

#[test]
fn pulls_that_expire_at_once_are_answered_over_several_turns() {
    let (mut f, pulls) = parked(|_| "*".into());
    assert_eq!(f.shard.next_deadline_ms(), Some(f.now.monotonic_ms + 10_000));
    f.tick(10_000);
    let mut answered = std::mem::take(&mut f.answers);
    assert_eq!(answered.len(), HOLD_ANSWERS_MAX);
    assert!(f.shard.next_deadline_ms() <= Some(f.now.monotonic_ms), "the next turn is now");
    answered.extend(f.next_turn());
    assert_eq!(answered.len(), 2 * HOLD_ANSWERS_MAX);
    answered.extend(f.next_turn());
    assert_eq!(answered.iter().map(|answer| answer.opaque).collect::<Vec<_>>(), pulls, "once each, in order");
    assert!(answered.iter().all(|answer| answer.code == ResponseCode::PULL_NOT_FOUND.0));
    assert_eq!((f.shard.next_deadline_ms(), f.next_turn().len()), (None, 0));
}

#[test]
fn pulls_that_wake_at_once_are_answered_over_several_turns() {
    let (mut f, pulls) = parked(|i| if i % 2 == 0 { "*" } else { "a" }.into());
    f.send("T", 0, "TAGS\x01a\x02", b"for all");
    f.settle();
    let mut answered: Vec<_> =
        std::mem::take(&mut f.answers).into_iter().filter(|a| a.opaque <= pulls[MANY - 1]).collect();
    assert_eq!(answered.len(), HOLD_ANSWERS_MAX);
    assert_eq!(f.shard.next_deadline_ms(), Some(f.now.monotonic_ms), "the next turn is now");
    // What comes while they are due takes nothing from them, and who has gone gets nothing.
    f.send("T", 0, "TAGS\x01b\x02", b"for some");
    f.settle();
    f.answers.clear();
    f.shard.on_closed(ConnectionId(1), &mut f.fx);
    while f.shard.next_deadline_ms() == Some(f.now.monotonic_ms) {
        let turn = f.next_turn();
        assert!(turn.len() <= HOLD_ANSWERS_MAX);
        answered.extend(turn);
    }
    let wanted = pulls.iter().enumerate().filter(|(i, _)| *i < HOLD_ANSWERS_MAX || i % 3 != 1);
    assert_eq!(
        answered.iter().map(|answer| answer.opaque).collect::<Vec<_>>(),
        wanted.map(|(_, opaque)| *opaque).collect::<Vec<_>>()
    );
    for answer in &answered {
        let first = messages(&answer.body).next().unwrap().unwrap();
        assert_eq!((answer.code, first.body()), (0, &b"for all"[..]));
    }
    assert_eq!((f.shard.holds.len(), f.shard.next_deadline_ms()), (0, None));
}
