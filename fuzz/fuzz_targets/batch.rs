//! Entries that were read are written as entries that read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringmq_protocol::batch::BatchEntries;
use ringmq_protocol::properties::Properties;

fuzz_target!(|bytes: &[u8]| {
    let entries: Vec<_> = BatchEntries::new(bytes).flatten().collect();
    let mut out = Vec::new();
    for entry in &entries {
        entry.encode(&mut out).expect("an entry that was read fits");
        for (name, _) in Properties::new(entry.properties).iter() {
            assert!(Properties::new(entry.properties).get(name).is_some());
        }
    }
    assert_eq!(BatchEntries::new(&out).collect::<Result<Vec<_>, _>>().as_ref(), Ok(&entries));
});
