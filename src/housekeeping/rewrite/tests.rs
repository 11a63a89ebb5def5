use super::*;

fn topic(name: &str, time: Option<&str>) -> TopicConfig {
    let mut config = TopicConfig::new(name, 1, 6);
    config.attributes.extend(time.map(|time| ("ringmq.retention".to_owned(), time.to_owned())));
    config
}

const SEGMENT: u64 = 1 << 20;

/// Segments whose last messages were stored at these times, all before what a start reads.
fn outlived(topics: &[TopicConfig], last: &[u64]) -> Outlived {
    let mut outlived = Outlived::new(SEGMENT, topics, &[]);
    for (number, last) in last.iter().enumerate() {
        let times = SealedTimes { last: Duration::from_secs(*last), looked_at: None };
        outlived.sealed.insert(SegmentBase(number as u64 * SEGMENT), times);
    }
    outlived.needed = SegmentBase(last.len() as u64 * SEGMENT);
    outlived
}

/// Looks at everything that there is to look at: numbers of segments and names of topics.
fn look(outlived: &mut Outlived, now: u64) -> Vec<(u64, String)> {
    let mut looks = Vec::new();
    while let Some(look) = outlived.next(Duration::from_secs(now), &BTreeSet::new()) {
        outlived.looked_at(&look);
        looks.push((look.segment.0 / SEGMENT, look.topics.join(" ")));
    }
    looks
}

#[test]
fn a_segment_is_looked_at_once_for_each_topic_whose_time_is_over() {
    let topics = [topic("brief", Some("10s")), topic("longer", Some("60s")), topic("plain", None)];
    let mut outlived = outlived(&topics, &[100, 120]);
    let says = |looks: Vec<(u64, String)>, wanted: &[(u64, &str)]| {
        let looks: Vec<_> = looks.iter().map(|(segment, topics)| (*segment, topics.as_str())).collect();
        assert_eq!(looks, wanted);
    };
    says(look(&mut outlived, 110), &[]);
    says(look(&mut outlived, 111), &[(0, "brief")]);
    says(look(&mut outlived, 125), &[]);
    says(look(&mut outlived, 161), &[(0, "brief longer"), (1, "brief")]);
    // A topic comes, one has another time, one goes; what changes nothing is not looked at.
    outlived.on_topic(&topic("other", None));
    outlived.on_topic(&topic("brief", Some("10s")));
    says(look(&mut outlived, 161), &[]);
    outlived.on_topic(&topic("longer", Some("30s")));
    says(look(&mut outlived, 161), &[(0, "brief longer"), (1, "brief longer")]);
    outlived.on_topic(&topic("brief", None));
    says(look(&mut outlived, 161), &[(0, "longer"), (1, "longer")]);
    outlived.on_topic_deleted("longer");
    says(look(&mut outlived, 1_000_000), &[]);
    outlived.on_topic(&topic("back", Some("1s")));
    outlived.on_gone(SegmentBase(0));
    // The clock was put back: nothing is over by it.
    says(look(&mut outlived, 50), &[]);
    says(look(&mut outlived, 200), &[(1, "back")]);
}

#[test]
fn what_a_start_may_read_and_what_was_refused_is_passed_over() {
    let mut outlived = outlived(&[topic("brief", Some("10s"))], &[100, 120, 130]);
    let now = Duration::from_secs(1_000);
    let next = |outlived: &Outlived, but: &[u64]| {
        let but = but.iter().map(|number| SegmentBase(number * SEGMENT)).collect();
        outlived.next(now, &but).map(|look| look.segment.0 / SEGMENT)
    };
    assert_eq!(next(&outlived, &[]), Some(0));
    assert_eq!(next(&outlived, &[0]), Some(1));
    outlived.needed = SegmentBase(2 * SEGMENT);
    assert_eq!(next(&outlived, &[0, 1]), None);
}

#[test]
fn it_pays_if_half_of_what_it_takes_comes_back() {
    assert!(pays(100, 50) && pays(101, 50) && pays(100, 0));
    assert!(!pays(100, 51) && !pays(101, 51) && !pays(100, 200));
}
