//! A disk that is full, and one that is slow: a real broker on a small file system of its own, on a loop device.
//!
//! Needs root and loop devices, for the slow disk also the throttle of the blkio cgroup; where they are missing the tests
//! say so and pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::messages;
use ringmq_protocol::request::SendMessageResponse;
use ringmq_tests::crash::disk::LoopDisk;
use ringmq_tests::{Broker, Options, PATIENCE, Raw, TempDir};

use crate::requests::{max_offset, pull, send};

const TOPIC: &str = "Troubled";
const DISK_BYTES: u64 = 96 << 20;
/// What is deleted to make room.
const BALLAST_BYTES: usize = 40 << 20;
const BODY_BYTES: usize = 64 << 10;

/// A broker with small segments on a file system of its own. The broker goes first.
struct Site {
    broker: Broker,
    throttle: Option<Throttle>,
    disk: LoopDisk,
    _temp: TempDir,
}

impl Site {
    /// `None`, and a line that says why, if the machine lacks what it takes.
    fn new(name: &str, prepare: impl FnOnce(&Path)) -> Option<Site> {
        let temp = TempDir::new("crash");
        let disk = match LoopDisk::create(temp.path(), "ext4", DISK_BYTES) {
            Ok(disk) => disk,
            Err(failure) => {
                println!("skipped: {name}: {}", failure.0);
                return None;
            }
        };
        prepare(disk.path());
        let broker = Broker::start_with(Options {
            shards: 1,
            arguments: ["--segment-size", "8MiB", "--tail-memory", "16MiB"].map(Into::into).to_vec(),
            data: Some(disk.path().join("data")),
        });
        Some(Site { broker, throttle: None, disk, _temp: temp })
    }

    fn connect(&self) -> Raw {
        Raw::connect(self.broker.address(0))
    }
}

fn body(number: u32) -> Bytes {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(BODY_BYTES, number as u8);
    body.into()
}

/// What was acknowledged: the numbers of the messages, by their offsets.
#[derive(Default)]
struct Sender {
    next: u32,
    acknowledged: Vec<u32>,
}

impl Sender {
    /// Sends the next message. An acknowledged one has the next offset.
    fn send(&mut self, raw: &mut Raw) -> RemotingCommand {
        let number = self.next;
        self.next += 1;
        let answer = raw.call(RequestCode::SEND_MESSAGE_V2, &send(TOPIC, 0).fields_v2(), body(number));
        self.on_answer(number, &answer);
        answer
    }

    fn on_answer(&mut self, number: u32, answer: &RemotingCommand) {
        if answer.code == ResponseCode::SUCCESS.0 {
            let placed = SendMessageResponse::decode(&answer.header().ext).expect("a send's answer");
            assert_eq!(placed.queue_offset, self.acknowledged.len() as i64, "of message {number}");
            self.acknowledged.push(number);
        }
    }

    /// Everything that is acknowledged is there, in order, and nothing else in between.
    fn check(&self, raw: &mut Raw) {
        let mut found = Vec::new();
        while found.len() < self.acknowledged.len() {
            let request = pull(TOPIC, found.len() as i64, 0, "*");
            let answer = raw.call(RequestCode::PULL_MESSAGE, &request, Bytes::new());
            assert_eq!(answer.code, ResponseCode::SUCCESS.0, "{answer:?}");
            for message in messages(&answer.body) {
                let message = message.expect("a message");
                let number = u32::from_be_bytes(message.body()[..4].try_into().expect("four bytes"));
                assert!(message.verify_crc() && message.body() == body(number), "message {number}");
                assert_eq!(message.queue_offset().0, found.len() as u64);
                found.push(number);
            }
        }
        assert_eq!(found[..self.acknowledged.len()], self.acknowledged);
    }
}

fn remark(answer: &RemotingCommand) -> &str {
    answer.remark.as_deref().unwrap_or_default()
}

#[test]
fn a_full_disk_refuses_sends_serves_pulls_and_recovers_with_room() {
    let mut ballast = PathBuf::new();
    let site = Site::new("full disk", |root| {
        ballast = root.join("ballast");
        fs::write(&ballast, vec![1; BALLAST_BYTES]).expect("there is room");
    });
    let Some(mut site) = site else { return };
    let (mut raw, mut sender) = (site.connect(), Sender::default());

    let mut refused = 0;
    // Once it is full it stays so, however often it is asked.
    while refused < 10 {
        let answer = sender.send(&mut raw);
        if answer.code == ResponseCode::SUCCESS.0 {
            assert_eq!(refused, 0, "accepted after a refusal, without more room");
            let most = DISK_BYTES as usize / BODY_BYTES;
            assert!(sender.acknowledged.len() < most, "more than the disk can hold is acknowledged");
            continue;
        }
        assert_eq!(answer.code, ResponseCode::SERVICE_NOT_AVAILABLE.0, "{answer:?}");
        assert!(remark(&answer).contains("space"), "{answer:?}");
        refused += 1;
    }
    let before = sender.acknowledged.len();
    assert!(before > 100, "refused after {before} messages");
    sender.check(&mut raw);
    assert_eq!(sender.send(&mut raw).code, ResponseCode::SERVICE_NOT_AVAILABLE.0);

    fs::remove_file(&ballast).expect("it is there");
    let deadline = Instant::now() + PATIENCE;
    while sender.send(&mut raw).code != ResponseCode::SUCCESS.0 {
        assert!(
            Instant::now() < deadline,
            "sends are refused though there is room: {}",
            site.broker.errors()
        );
    }
    for _ in 0..100 {
        let answer = sender.send(&mut raw);
        assert_eq!(answer.code, ResponseCode::SUCCESS.0, "{answer:?}");
    }
    sender.check(&mut raw);
    assert!(site.broker.errors().contains("no room"), "{}", site.broker.errors());

    site.broker.kill9();
    site.broker.restart();
    let mut raw = site.connect();
    sender.check(&mut raw);
    assert_eq!(
        max_offset(&mut raw, TOPIC),
        sender.acknowledged.len() as i64,
        "what was refused is not there"
    );
    sender.send(&mut raw);
    sender.check(&mut raw);
    eprintln!("{before} messages until the disk was full, {} in all", sender.acknowledged.len());
}

/// A group of the blkio controller (cgroup v1) with a bound on what is written to one device.
struct Throttle {
    group: PathBuf,
    device: String,
}

impl Throttle {
    fn new(disk: &LoopDisk) -> Option<Throttle> {
        let controller = Path::new("/sys/fs/cgroup/blkio");
        if !controller.join("blkio.throttle.write_bps_device").exists() {
            return None;
        }
        let found = Command::new("findmnt").args(["-n", "-o", "MAJ:MIN"]).arg(disk.path()).output().ok()?;
        let device = String::from_utf8(found.stdout).ok()?.trim().to_owned();
        let group = controller.join(format!("ringmq-test-{}", std::process::id()));
        fs::create_dir(&group).ok()?;
        Some(Throttle { group, device })
    }

    /// 0 is no bound.
    fn set(&self, bytes_per_second: u64) -> bool {
        let line = format!("{} {bytes_per_second}", self.device);
        fs::write(self.group.join("blkio.throttle.write_bps_device"), line).is_ok()
    }

    /// Whether writes to the device were counted against the bound.
    fn has_counted(&self) -> bool {
        let counts = fs::read_to_string(self.group.join("blkio.throttle.io_service_bytes"));
        let write = format!("{} Write ", self.device);
        counts.expect("a file of the group").lines().any(|line| {
            line.strip_prefix(&write).and_then(|bytes| bytes.parse().ok()).is_some_and(|bytes: u64| bytes > 0)
        })
    }

    fn hold(&self, pid: u32) {
        fs::write(self.group.join("cgroup.procs"), pid.to_string()).expect("a process of our own");
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // Only an empty group can go; its processes have been ended by then.
        let _ = fs::remove_dir(&self.group);
    }
}

#[test]
fn a_slow_disk_slows_sends_only_and_loses_nothing() {
    let Some(mut site) = Site::new("slow disk", |_| {}) else { return };
    let (mut raw, mut sender) = (site.connect(), Sender::default());
    for _ in 0..50 {
        assert_eq!(sender.send(&mut raw).code, ResponseCode::SUCCESS.0);
    }
    site.throttle = Throttle::new(&site.disk);
    let Some(throttle) = site.throttle.as_ref().filter(|throttle| throttle.set(4 << 20)) else {
        println!("skipped: slow disk: no throttle of the blkio cgroup here");
        return;
    };
    throttle.hold(site.broker.pid());

    // All at once: more than the disk takes in a second.
    let mut writer = site.connect();
    let mut asked = Vec::new();
    for _ in 0..100 {
        let number = sender.next;
        sender.next += 1;
        let fields = send(TOPIC, 0);
        let opaque = writer.send(RequestCode::SEND_MESSAGE_V2, &fields.fields_v2(), body(number));
        asked.push((opaque.expect("the broker reads"), number));
    }
    // Pulls on another connection do not wait for the disk.
    sender.check(&mut raw);
    let mut busy = 0;
    while !asked.is_empty() {
        let answer = writer.response();
        let at = asked.iter().position(|(opaque, _)| *opaque == answer.opaque).expect("an answer to a send");
        let (_, number) = asked.remove(at);
        match ResponseCode(answer.code) {
            ResponseCode::SUCCESS => sender.on_answer(number, &answer),
            ResponseCode::SYSTEM_BUSY => busy += 1,
            _ => panic!("{answer:?}"),
        }
    }
    sender.check(&mut raw);

    assert!(throttle.has_counted(), "the disk was not slow");

    // Killed with sends under way, whose fate nobody knows.
    throttle.set(256 << 10);
    let before = sender.acknowledged.len();
    for number in 1000..1020 {
        let fields = send(TOPIC, 0);
        writer
            .send(RequestCode::SEND_MESSAGE_V2, &fields.fields_v2(), body(number))
            .expect("the broker reads");
    }
    let first = writer.response();
    assert_eq!(first.code, ResponseCode::SUCCESS.0, "{first:?}");
    sender.on_answer(1000, &first);
    site.broker.kill9();
    throttle.set(0);
    site.broker.restart();
    let mut raw = site.connect();
    sender.check(&mut raw);
    let now = max_offset(&mut raw, TOPIC) as usize;
    assert!((before + 1..=before + 20).contains(&now), "{before} messages before, {now} now");
    eprintln!(
        "{before} messages at 4 MiB/s, {busy} refused as busy; {} more found after the kill",
        now - before
    );
}
