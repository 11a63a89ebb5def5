use super::*;
use std::sync::Arc;

fn queues(brokers: &[(&str, i32)]) -> Vec<MessageQueue> {
    let queue = |name: &str, id| MessageQueue { topic: "T".into(), broker_name: name.into(), queue_id: id };
    brokers.iter().flat_map(|(name, count)| (0..*count).map(move |id| queue(name, id))).collect()
}

fn names(
    choice: &QueueChoice,
    queues: &[MessageQueue],
    tried: &[&str],
    now: Instant,
    count: usize,
) -> Vec<String> {
    let tried: Vec<String> = tried.iter().map(|name| name.to_string()).collect();
    (0..count)
        .filter_map(|_| choice.next(queues, &tried, now))
        .map(|queue| queue.broker_name.clone())
        .collect()
}

#[test]
fn every_queue_gets_its_turn() {
    let queues = queues(&[("a", 2), ("b", 2)]);
    let choice = QueueChoice::new(3);
    let turns: Vec<_> = (0..8).filter_map(|_| choice.next(&queues, &[], Instant::now())).collect();
    assert_eq!(turns, [3, 0, 1, 2, 3, 0, 1, 2].map(|at: usize| &queues[at]));
}

#[test]
fn a_retry_goes_to_another_broker() {
    let queues = queues(&[("a", 3), ("b", 1)]);
    let choice = QueueChoice::new(0);
    assert_eq!(names(&choice, &queues, &["a"], Instant::now(), 5), ["b"; 5]);
    assert_eq!(
        names(&choice, &queues, &["a", "b"], Instant::now(), 4),
        ["a"; 4],
        "all tried: not the last one"
    );
    let alone = self::queues(&[("a", 1)]);
    assert_eq!(names(&choice, &alone, &["a"], Instant::now(), 1), ["a"], "one broker is better than none");
}

#[test]
fn a_broker_that_failed_is_avoided_for_a_while() {
    let queues = queues(&[("a", 1), ("b", 1)]);
    let choice = QueueChoice::new(0);
    let now = Instant::now();
    choice.failed("a", now);
    assert_eq!(names(&choice, &queues, &[], now, 3), ["b"; 3]);
    assert_eq!(names(&choice, &queues, &["b"], now, 1), ["a"], "but it is tried before the same one again");
    assert!(names(&choice, &queues, &[], now + SUSPECT, 2).contains(&"a".to_string()));
    choice.failed("a", now);
    choice.succeeded("a");
    assert!(names(&choice, &queues, &[], now, 2).contains(&"a".to_string()));
}

#[test]
fn without_queues_there_is_no_choice() {
    assert_eq!(QueueChoice::new(0).next(&[], &[], Instant::now()), None);
}

#[test]
fn what_is_tried_again() {
    let refused = |code: i32| RequestError::Refused {
        address: "a:1".into(),
        request: "SEND_MESSAGE_V2",
        code: ResponseCode(code),
        remark: String::new(),
    };
    for code in [1, 2, 14, 16, 17, 204, 205, 1500] {
        assert!(is_retryable(&refused(code)), "{code}");
    }
    for code in [3, 10, 13, 29] {
        assert!(!is_retryable(&refused(code)), "{code}");
    }
    let source = Arc::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
    assert!(is_retryable(&RequestError::Connect { address: "a:1".into(), source }));
}
