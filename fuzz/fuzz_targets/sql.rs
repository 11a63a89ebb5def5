//! Any text is compiled or refused, and what was compiled can be asked of any properties.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringmq::shard::sql::Sql;
use ringmq_protocol::properties::Properties;

fuzz_target!(|input: (&str, &[u8])| {
    let (text, properties) = input;
    match Sql::compile(text) {
        Ok(sql) => {
            assert_eq!(sql.text(), text);
            let first = sql.matches(Properties::new(properties));
            assert_eq!(sql.matches(Properties::new(properties)), first);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
