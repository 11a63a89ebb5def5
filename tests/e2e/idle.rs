//! What an idle broker costs.

use std::process::Command;
use std::time::Duration;

use ringmq_protocol::code::RequestCode;
use ringmq_tests::process::{cpu_ticks, resident_bytes};
use ringmq_tests::{Broker, Raw};

use crate::requests::heartbeat;

const CLIENTS: usize = 1_000;
const WINDOW: Duration = Duration::from_secs(5);

/// Both ends of every connection are files; many systems start with 1024.
fn allow_many_files() {
    let pid = std::process::id().to_string();
    let raised = Command::new("prlimit").args(["--pid", &pid, "--nofile=8192:"]).status();
    if !raised.is_ok_and(|status| status.success()) {
        eprintln!("the limit of open files stays as it is");
    }
}

#[test]
fn a_thousand_idle_clients_cost_little() {
    allow_many_files();
    let broker = Broker::start(1);
    let before = resident_bytes(broker.pid());
    let clients: Vec<Raw> = (0..CLIENTS)
        .map(|number| {
            let mut raw = Raw::connect(broker.address(0));
            let beat = heartbeat(&format!("127.0.0.1@{number}"), &format!("group-{}", number % 100));
            // The others of the group are told that it has grown; only the answer counts here.
            let opaque = raw.send(RequestCode::HEART_BEAT, &(), beat).unwrap();
            let response = raw.response();
            assert_eq!((response.opaque, response.code), (opaque, 0), "{response:?}");
            raw
        })
        .collect();
    let ticks = cpu_ticks(broker.pid());
    // Not to wait for anything: this is what is measured.
    std::thread::sleep(WINDOW);
    let percent = (cpu_ticks(broker.pid()) - ticks) as f64 / WINDOW.as_secs_f64();
    let after = resident_bytes(broker.pid());
    eprintln!(
        "{} idle clients: {percent:.1} % of a core over {} s; {} MiB resident, {} MiB before",
        clients.len(),
        WINDOW.as_secs(),
        after >> 20,
        before >> 20
    );
    assert!(after < 400 << 20, "{} MiB resident", after >> 20);
}
