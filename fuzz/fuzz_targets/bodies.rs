//! A body that reads, writes to one that reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringmq_protocol::body::*;

fn check<T: Body + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(body) = T::from_json(bytes) {
        assert_eq!(T::from_json(&body.to_json()).as_ref(), Ok(&body));
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<HeartbeatData>(bytes);
    check::<LockBatchBody>(bytes);
    check::<ResetOffsetBody>(bytes);
    check::<ClusterInfo>(bytes);
    check::<TopicConfigSerializeWrapper>(bytes);
    check::<SubscriptionGroupWrapper>(bytes);
    check::<CheckClientConfigBody>(bytes);
    if let Ok(route) = TopicRouteData::from_json(bytes) {
        assert_eq!(TopicRouteData::from_json(&route.to_json()).as_ref(), Ok(&route));
        assert_eq!(TopicRouteData::from_json(&route.to_json_legacy()).as_ref(), Ok(&route));
    }
    for compressed in [false, true] {
        let _ = RegisterBrokerBody::decode(bytes, 479, compressed);
    }
});
