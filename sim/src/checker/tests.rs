use super::*;

const QUEUE: Queue = Queue { topic: TopicId(0), id: 0 };

fn id(number: u32) -> MessageId {
    MessageId { producer: 1, number }
}

fn seen(number: u32, offset: u64) -> Seen {
    Seen { offset, id: id(number), position: 1_000 * u64::from(number), stored_ms: i64::from(number) }
}

/// Messages 0 to 9 sent; 0 to 4 acknowledged at their own offsets.
fn checker() -> Checker {
    let mut checker = Checker::default();
    for number in 0..10 {
        let sent = Sent { topic: TopicId(0), tag: (number % 2) as u8, body_bytes: 10, connection: 1, at: 5 };
        checker.sent(id(number), sent);
    }
    for number in 0..5 {
        checker.acknowledged(id(number), QUEUE, u64::from(number), 1_000 * u64::from(number));
    }
    checker
}

fn anomalies(mut checker: Checker, there: impl IntoIterator<Item = Seen>) -> BTreeSet<Anomaly> {
    checker.finish(&Contents::from([(QUEUE, there.into_iter().collect())]));
    checker.violations().iter().map(|violation| violation.anomaly).collect()
}

fn first(count: u32) -> Vec<Seen> {
    (0..count).map(|number| seen(number, u64::from(number))).collect()
}

#[test]
fn a_right_history_passes_whatever_became_of_unknown_sends() {
    let mut checker = checker();
    checker.refused(id(9));
    checker.pulled(QUEUE, 0..3, &[], &first(3));
    checker.pulled(QUEUE, 0..3, &[1], &[seen(1, 1)]);
    assert_eq!(anomalies(checker, first(7)), BTreeSet::new());
}

#[test]
fn each_anomaly_of_the_log_is_told_from_the_others() {
    assert_eq!(anomalies(checker(), first(4)), [Anomaly::LostWrite].into());
    let mut phantom = checker();
    phantom.pulled(QUEUE, 4..6, &[], &[seen(4, 4), seen(5, 5)]);
    assert_eq!(anomalies(phantom, first(5)), [Anomaly::Phantom].into());
    let mut aborted = checker();
    aborted.refused(id(5));
    assert_eq!(anomalies(aborted, first(6)), [Anomaly::AbortedRead].into());
    let twice = first(5).into_iter().chain([Seen { position: 1, ..seen(4, 5) }]);
    assert_eq!(anomalies(checker(), twice), [Anomaly::Duplicate].into());
    let other = first(4).into_iter().chain([seen(7, 4)]);
    assert!(anomalies(checker(), other).contains(&Anomaly::InconsistentOffset));
    let disordered = first(5).into_iter().chain([seen(7, 5), seen(6, 6)]);
    assert_eq!(anomalies(checker(), disordered), [Anomaly::Disorder].into());
    let gap = first(5).into_iter().chain([seen(5, 6)]);
    assert_eq!(anomalies(checker(), gap), [Anomaly::Gap].into());
}

#[test]
fn pulls_must_not_skip_nor_return_what_is_not_wanted() {
    let skipping: [(&[u8], &[Seen]); 4] = [
        (&[], &[seen(0, 0), seen(2, 2)]),
        (&[0], &[seen(0, 0)]),
        (&[0], &[seen(0, 0), seen(1, 1), seen(2, 2)]),
        (&[], &[seen(1, 1), seen(0, 0), seen(2, 2)]),
    ];
    for (tags, messages) in skipping {
        let mut checker = checker();
        checker.pulled(QUEUE, 0..3, tags, messages);
        assert_eq!(anomalies(checker, first(5)), [Anomaly::Skipped].into(), "{messages:?}");
    }
    let mut excused = checker();
    excused.unreadable(900..1_100);
    excused.pulled(QUEUE, 0..3, &[], &[seen(0, 0), seen(2, 2)]);
    assert_eq!(anomalies(excused, first(5)), BTreeSet::new());
}

#[test]
fn damage_excuses_what_was_reported_and_nothing_else() {
    let mut reported = checker();
    reported.rot();
    reported.lost(2_000..2_500);
    let mut rest = first(5);
    rest.remove(2);
    assert_eq!(anomalies(reported, rest.clone()), BTreeSet::new());
    let mut silent = checker();
    silent.rot();
    silent.lost(2_100..2_500);
    assert_eq!(anomalies(silent, rest), [Anomaly::LostWrite].into());
}

#[test]
fn committed_offsets_do_not_go_back() {
    let key = CommitKey { group: 1, queue: QUEUE };
    let mut checker = Checker::default();
    checker.offset_found(key, None, None);
    checker.committing(key, 3);
    let second = checker.committing(key, 7);
    checker.committed(key, second);
    checker.committing(key, 9);
    let since = checker.last_commit(key);
    checker.offset_found(key, since, Some(7));
    checker.offset_found(key, since, Some(9));
    assert!(checker.violations().is_empty());
    checker.offset_found(key, since, Some(3));
    checker.offset_found(key, since, None);
    assert_eq!(checker.violations().len(), 2);
}

#[test]
fn nothing_is_acknowledged_after_the_log_failed() {
    let mut checker = checker();
    checker.log_failed(0, 5);
    checker.acknowledged(id(5), QUEUE, 5, 5_000);
    assert!(checker.violations().is_empty(), "it was sent before");
    checker.log_failed(0, 4);
    checker.restarted();
    checker.log_failed(0, 4);
    checker.acknowledged(id(6), QUEUE, 6, 6_000);
    assert_eq!(checker.violations()[0].anomaly, Anomaly::AcknowledgedAfterFailure);
}

#[test]
fn bytes_tag_and_topic_are_those_that_were_sent() {
    let body = body_of(id(0), 10);
    let mut checker = checker();
    checker.received(TopicId(0), id(0), 0, &body);
    assert!(checker.violations().is_empty());
    let mut wrong = body.clone();
    wrong[9] ^= 1;
    checker.received(TopicId(0), id(0), 0, &wrong);
    checker.received(TopicId(0), id(0), 1, &body);
    checker.received(TopicId(1), id(0), 0, &body);
    checker.received(TopicId(0), id(70), 0, &body);
    assert_eq!(checker.violations().len(), 4);
}

#[test]
fn an_end_that_may_be_lost_is_lost_as_a_whole_and_does_not_come_back() {
    let cut = |end, from| {
        let mut checker = checker();
        checker.pulled(QUEUE, 0..5, &[], &first(5));
        let lost = checker.cut(end, from);
        (checker, lost)
    };
    let (mut checker, lost) = cut(3_000, 2_000);
    assert_eq!((lost, checker.is_shortened(QUEUE)), (2, true));
    // Their offsets are given again.
    checker.acknowledged(id(5), QUEUE, 3, 3_000);
    assert_eq!(
        anomalies(checker, first(3).into_iter().chain([Seen { position: 3_000, ..seen(5, 3) }])),
        [].into()
    );
    let (checker, _) = cut(3_000, 2_000);
    assert_eq!(anomalies(checker, first(5)), [Anomaly::AbortedRead].into(), "what was lost came back");
    let (checker, lost) = cut(2_000, 4_000);
    assert_eq!(lost, 1);
    assert_eq!(
        anomalies(checker, first(2)),
        [Anomaly::LostWrite, Anomaly::Phantom].into(),
        "what was durable is lost"
    );
}

#[test]
fn lost_offsets_are_not_given_again_unless_nothing_of_the_queue_is_left() {
    let mut at_the_end = checker();
    assert_eq!(at_the_end.lost(3_000..4_500), 0);
    at_the_end.acknowledged(id(6), QUEUE, 3, 6_000);
    assert_eq!(at_the_end.violations()[0].anomaly, Anomaly::InconsistentOffset);
    let mut behind = checker();
    behind.lost(3_000..4_500);
    behind.acknowledged(id(6), QUEUE, 20, 6_000);
    assert!(behind.violations().is_empty());
    let mut whole = checker();
    assert_eq!(whole.lost(0..4_500), 5);
    whole.acknowledged(id(6), QUEUE, 0, 6_000);
    assert!(whole.violations().is_empty());
}

#[test]
fn a_seen_message_that_is_gone_is_lost_and_a_phantom() {
    let mut checker = checker();
    checker.pulled(QUEUE, 4..5, &[], &[seen(4, 4)]);
    assert_eq!(anomalies(checker, first(4)), [Anomaly::LostWrite, Anomaly::Phantom].into());
}

/// A checker that knows messages 0 to 4, of which those below 2,500 lie in the oldest segment, which was asked for.
fn releasing() -> Checker {
    let mut checker = checker();
    checker.pulled(QUEUE, 0..5, &[], &first(5));
    checker.release_asked(0, 2_500);
    checker
}

#[test]
fn what_was_released_may_be_gone_and_nothing_else() {
    let mut checker = releasing();
    checker.release_granted(0, 2_500, &[]);
    assert!(!checker.begins_at(2_500));
    assert_eq!(anomalies(checker, first(5).split_off(3)), BTreeSet::new());
    let mut too_much = releasing();
    too_much.release_granted(0, 2_500, &[]);
    assert_eq!(
        anomalies(too_much, first(5).split_off(4)),
        [Anomaly::LostWrite, Anomaly::Phantom].into(),
        "one that was not released"
    );
    let mut kept = releasing();
    kept.release_refused(0);
    kept.begins_at(2_500);
    assert_eq!(kept.violations()[0].anomaly, Anomaly::LostWrite);
}

#[test]
fn what_was_gone_stays_gone_and_what_was_cut_short_does_not_count() {
    let mut checker = releasing();
    checker.release_granted(0, 2_500, &[]);
    assert!(checker.begins_at(0), "the crash came before the files were gone");
    assert_eq!(anomalies(checker, first(5)), BTreeSet::new());
    let mut checker = releasing();
    checker.release_granted(0, 2_500, &[]);
    checker.begins_at(2_500);
    checker.begins_at(0);
    assert_eq!(checker.violations()[0].anomaly, Anomaly::Resurrected);
    let mut checker = releasing();
    checker.release_granted(0, 2_500, &[]);
    checker.begins_at(2_500);
    assert_eq!(anomalies(checker, first(5)), [Anomaly::Resurrected].into());
}

#[test]
fn a_queue_begins_later_only_because_of_a_release() {
    let mut asked = releasing();
    asked.moved(QUEUE, 1, 3);
    asked.release_granted(0, 2_500, &[]);
    asked.moved(QUEUE, 0, 3);
    assert!(asked.violations().is_empty());
    assert_eq!(asked.first_at_least(QUEUE), 3);
    asked.moved(QUEUE, 0, 4);
    assert_eq!(asked.violations()[0].anomaly, Anomaly::Skipped);
    let mut kept = releasing();
    kept.moved(QUEUE, 1, 3);
    assert!(kept.violations().is_empty(), "it may be released any time");
    kept.release_refused(0);
    assert_eq!(kept.violations().len(), 2, "messages 1 and 2");
}

#[test]
fn an_online_group_is_robbed_only_of_what_it_cannot_have_consumed() {
    let key = CommitKey { group: 1, queue: QUEUE };
    let robbed = |commits: &[(u64, bool)], later: Option<u64>| {
        let mut checker = releasing();
        checker.release_refused(0);
        for (offset, is_acknowledged) in commits {
            let number = checker.committing(key, *offset);
            if *is_acknowledged {
                checker.committed(key, number);
            }
        }
        checker.release_asked(0, 2_500);
        if let Some(offset) = later {
            let number = checker.committing(key, offset);
            checker.committed(key, number);
        }
        checker.release_granted(0, 2_500, &[(1, TopicId(0))]);
        checker.counts().get(&Anomaly::Robbed).copied().unwrap_or(0)
    };
    assert_eq!(robbed(&[], None), 3);
    assert_eq!(robbed(&[(1, true)], None), 2);
    assert_eq!(robbed(&[(3, true)], None), 0);
    assert_eq!(robbed(&[(3, true), (1, true)], None), 2, "it went back");
    assert_eq!(robbed(&[(3, true)], Some(0)), 0, "it went back when it was released already, perhaps");
    assert_eq!(robbed(&[(1, true), (3, false)], None), 0, "it may be there, perhaps");
}

#[test]
fn what_was_sent_back_is_there_as_often_as_that_took_place() {
    let retry = (1, id(2), 0);
    let found = |copies: u64| {
        let mut checker = checker();
        checker.sending_back(retry);
        checker.sent_back(retry);
        // One of unknown fate, and one that was refused.
        checker.sending_back(retry);
        checker.sending_back(retry);
        checker.not_sent_back(retry);
        checker.finish_later(&BTreeMap::from([((1, id(2), 1), copies)]));
        checker.counts().keys().copied().collect::<Vec<_>>()
    };
    assert_eq!(found(0), [Anomaly::LostWrite]);
    assert_eq!(found(1), []);
    assert_eq!(found(2), []);
    assert_eq!(found(3), [Anomaly::Duplicate]);
}

#[test]
fn what_was_delayed_comes_in_the_end() {
    let mut checker = checker();
    checker.accepted(0, id(5));
    checker.accepted(0, id(6));
    checker.pulled(QUEUE, 5..6, &[], &[seen(5, 5)]);
    checker.finish_later(&BTreeMap::new());
    let lost: Vec<_> = checker.violations().iter().map(|violation| violation.anomaly).collect();
    assert_eq!(lost, [Anomaly::LostWrite], "message 6");
}

#[test]
fn a_look_up_by_time_is_held_to_what_was_seen() {
    // Message n is stored at time n, at offset n.
    let found_within = |unit_ms, ms, is_upper, offset| {
        let mut checker = checker();
        checker.blur_times(unit_ms);
        checker.pulled(QUEUE, 0..5, &[], &first(5));
        checker.found_by_time(QUEUE, ms, is_upper, 5, offset);
        checker.violations().is_empty()
    };
    let found = |ms, is_upper, offset| found_within(1, ms, is_upper, offset);
    assert_eq!([1, 2, 3].map(|offset| found(2, false, offset)), [false, true, false]);
    assert_eq!([1, 2, 3].map(|offset| found(2, true, offset)), [false, true, false]);
    assert!(found(-1, true, 0) && found(9, false, 5) && !found(9, false, 4));
    // In a segment that spans many days some more may be found, and nothing less.
    let within_two = |is_upper| [0, 1, 2, 3, 4].map(|offset| found_within(2, 2, is_upper, offset));
    assert_eq!(within_two(false), [false, true, true, false, false]);
    assert_eq!(within_two(true), [false, false, true, true, false]);
}

#[test]
fn what_is_popped_is_nobody_elses_until_its_time_is_over_and_in_the_end_somebody_has_it() {
    let contents = Contents::from([(QUEUE, first(3))]);
    let judge = |story: &dyn Fn(&mut Checker)| {
        let mut checker = checker();
        // Two of them to whom nothing happens.
        for number in 1..3 {
            let turn = checker.popped(0, id(number), 10, 20);
            checker.acknowledging(0, id(number), turn);
        }
        story(&mut checker);
        checker.finish_popped(0, &[QUEUE], &contents, false);
        checker.violations().iter().map(|violation| violation.anomaly).collect::<Vec<_>>()
    };
    // Given, forgotten, given again and acknowledged; the answers came in another order.
    let again = |checker: &mut Checker| {
        let turn = checker.popped(0, id(0), 20, 30);
        checker.popped(0, id(0), 10, 20);
        checker.acknowledging(0, id(0), turn);
    };
    assert_eq!(judge(&again), []);
    assert_eq!(judge(&|_| {}), [Anomaly::LostWrite], "never given");
    let forgotten = |checker: &mut Checker| {
        checker.popped(0, id(0), 10, 20);
    };
    assert_eq!(judge(&forgotten), [Anomaly::LostWrite]);
    assert_eq!(judge(&|checker| checker.is_dead_letter(0, id(0))), []);
    let taken = |checker: &mut Checker, pop_time| {
        checker.popped(0, id(0), pop_time, pop_time + 10);
        let turn = checker.popped(0, id(0), 19, 30);
        checker.acknowledging(0, id(0), turn);
    };
    assert_eq!(judge(&|checker| taken(checker, 10)), [Anomaly::Duplicate]);
    assert_eq!(judge(&|checker| taken(checker, 9)), []);
    // Whatever time counts after a change that nobody answered.
    let changed = |checker: &mut Checker, until: Option<i64>| {
        let turn = checker.popped(0, id(0), 10, 100);
        checker.changing(0, id(0), turn);
        until.into_iter().for_each(|until| checker.changed(0, id(0), turn, 12, until));
        let turn = checker.popped(0, id(0), 19, 30);
        checker.acknowledging(0, id(0), turn);
    };
    assert_eq!(judge(&|checker| changed(checker, None)), []);
    assert_eq!(judge(&|checker| changed(checker, Some(19))), []);
    assert_eq!(judge(&|checker| changed(checker, Some(20))), [Anomaly::Duplicate]);
    // Acknowledged in time it does not come again; too late it may.
    let acknowledged = |checker: &mut Checker, now| {
        let turn = checker.popped(0, id(0), 10, 20);
        checker.acknowledging(0, id(0), turn);
        checker.acknowledged_pop(0, id(0), turn, now);
        checker.popped(0, id(0), 25, 35);
    };
    assert_eq!(judge(&|checker| acknowledged(checker, 19)), [Anomaly::Duplicate]);
    assert_eq!(judge(&|checker| acknowledged(checker, 20)), []);
    let timeless = |checker: &mut Checker| {
        checker.clock_went_back(0);
        acknowledged(checker, 19);
    };
    assert_eq!(judge(&timeless), []);
}

#[test]
fn in_order_one_pop_has_a_queue_at_a_time_and_leaves_nothing_out() {
    let judge = |deletes: bool, story: &dyn Fn(&mut Checker)| {
        let mut checker = checker();
        story(&mut checker);
        checker.finish_popped(0, &[QUEUE], &Contents::new(), deletes);
        checker.violations().iter().map(|violation| violation.anomaly).collect::<Vec<_>>()
    };
    // Message, pop, its time and its end.
    let pop = |checker: &mut Checker, number: u32, pop, pop_time, until| {
        let turn = checker.popped(0, id(number), pop_time, until);
        checker.popped_in_order((0, 0), number.into(), id(number), turn, pop);
        turn
    };
    let together = |checker: &mut Checker| {
        pop(checker, 0, 1, 10, 20);
        pop(checker, 1, 1, 10, 20);
        // What is over comes again, before what is new.
        pop(checker, 0, 2, 20, 30);
        pop(checker, 1, 2, 20, 30);
        pop(checker, 2, 2, 20, 30);
    };
    assert_eq!(judge(false, &together), []);
    let too_early = |checker: &mut Checker| {
        pop(checker, 0, 1, 10, 20);
        pop(checker, 1, 2, 19, 30);
    };
    assert_eq!(judge(false, &too_early), [Anomaly::Disorder]);
    let the_answers_the_other_way_round = |checker: &mut Checker| {
        let turn = checker.popped(0, id(0), 10, 20);
        pop(checker, 1, 2, 19, 30);
        checker.popped_in_order((0, 0), 0, id(0), turn, 1);
    };
    assert_eq!(judge(true, &the_answers_the_other_way_round), [Anomaly::Disorder]);
    let done = |checker: &mut Checker| {
        let turn = pop(checker, 0, 1, 10, 20);
        checker.acknowledging(0, id(0), turn);
        pop(checker, 1, 2, 12, 30);
    };
    assert_eq!(judge(false, &done), []);
    let left_out = |checker: &mut Checker| {
        pop(checker, 0, 1, 10, 20);
        pop(checker, 2, 2, 20, 30);
    };
    assert_eq!(judge(false, &left_out), [Anomaly::Skipped]);
    assert_eq!(judge(true, &left_out), [], "where messages go, one may have gone");
}
