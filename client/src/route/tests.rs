use super::*;
use crate::fake::route_data;

fn two_brokers() -> TopicRouteData {
    route_data(&[("b", "10.0.0.2:10911".into()), ("a", "10.0.0.1:10911".into())])
}

fn names(queues: &[MessageQueue]) -> Vec<String> {
    queues.iter().map(|queue| format!("{}:{}", queue.broker_name, queue.queue_id)).collect()
}

#[test]
fn queues_come_in_order_and_by_permission() {
    let mut data = two_brokers();
    data.queue_datas[0].write_queue_nums = 2;
    data.queue_datas[1].perm = 4;
    data.queue_datas[1].read_queue_nums = 3;
    let route = TopicRoute::new("T", &data);
    assert_eq!(names(&route.writable), ["b:0", "b:1"]);
    assert_eq!(names(&route.readable), ["a:0", "a:1", "a:2", "b:0"]);
    assert_eq!(route.master("a").as_deref(), Some("10.0.0.1:10911"));
    assert_eq!(route.master("c"), None);
}

#[test]
fn without_a_master_a_broker_is_only_read() {
    let mut data = two_brokers();
    data.broker_datas[0].broker_addrs = [(1, "10.0.0.3:10911".to_string())].into();
    let route = TopicRoute::new("T", &data);
    assert_eq!(names(&route.writable), ["a:0"]);
    assert_eq!(names(&route.readable), ["a:0", "b:0"]);
    assert_eq!(route.reader("b", 0).as_deref(), Some("10.0.0.3:10911"), "the suggested id is not there");
    assert_eq!(route.addresses(true).len(), 1);
    assert_eq!(route.addresses(false).len(), 2);
}

#[test]
fn queues_of_a_broker_without_address_are_left_out() {
    let mut data = two_brokers();
    data.broker_datas.remove(0);
    let route = TopicRoute::new("T", &data);
    assert_eq!((names(&route.writable), names(&route.readable)), (vec!["a:0".into()], vec!["a:0".into()]));
}

#[test]
fn an_ordered_topic_has_exactly_the_queues_it_says() {
    let mut data = two_brokers();
    data.order_topic_conf = Some("b:2; nonsense ;gone:4;a:1".into());
    assert_eq!(names(&TopicRoute::new("T", &data).writable), ["a:0", "b:0", "b:1"]);
    data.order_topic_conf = Some(String::new());
    assert_eq!(names(&TopicRoute::new("T", &data).writable), ["a:0", "b:0"], "an empty one says nothing");
}

#[test]
fn a_new_topic_gets_no_more_queues_than_asked_for() {
    let mut template = two_brokers();
    template.queue_datas[0].read_queue_nums = 8;
    template.queue_datas[0].write_queue_nums = 8;
    let route = TopicRoute::for_new_topic("T", &template, 4);
    assert_eq!(names(&route.writable), ["a:0", "b:0", "b:1", "b:2", "b:3"]);
    assert!(route.writable.iter().all(|queue| queue.topic == "T"));
}
