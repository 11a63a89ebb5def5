//! One run: a broker lives several lives on one disk, under faults drawn from the seed, and is judged at the end.
//!
//!   boot ─▶ work, faults ─▶ (settle) ─▶ crash | stop ─▶ boot … ─▶ settle ─▶ crash ─▶ boot ─▶ audit
//!
//! To settle is to take all faults back, ask for nothing more, and to demand an answer to all that was asked.

mod faults;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use ringmq::driver::{Driver, LogFiles};
use ringmq::shard::{DelayTable, FlushDiskType, Shard, ShardConfig};
use ringmq_net::Limits;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::messages;
use ringmq_protocol::request::{OffsetResponse, PullMessageRequest, PullMessageResponse, pull_flag};
use ringmq_ring::Ring;
use ringmq_ring::sim::{Random, SimConfig, SimDisk, SimNet, SimRing};
use ringmq_storage::{LogConfig, RecoverError};

use crate::admin::Admin;
use crate::backstage::{ADDRESS, Housekeeping, LOG_DIR, SimStore};
use crate::checker::{Anomaly, Checker, Contents, Queue, TopicId, Violation};
use crate::client::{Asked, Client, Context, Counts, Role, Topic, TopicState, Trouble, connect};
use crate::consumer::{Consumer, ask_commit};
use crate::coverage::Coverage;
use crate::ledger::Ledger;
use crate::producer::Producer;
use crate::ring::{Planted, SharedWatch, Watch, WatchedRing};
use crate::wire::Wire;
use faults::Fault;

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLI;
/// Longest time in which everything has to be answered once nothing goes wrong any more: the longest hold, and room
/// for zeroing to be tried again.
const ANSWER_NANOS: u64 = 30 * SECOND;
/// Longest time that a stop may take, with a disk as slow as it gets.
const STOP_NANOS: u64 = 60 * SECOND;
/// A broker whose disk takes longer to stop is ended by its housekeeping thread.
const STOP_PATIENCE_NANOS: u64 = 10 * SECOND;
/// How long a sound disk takes, at least and at most.
const FAST: (Duration, Duration) = (Duration::from_micros(20), Duration::from_micros(400));
/// Number of the producer that asks whether sends are taken again.
const PROBER: u32 = 200;

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests that clients make, about.
    pub steps: u64,
    pub planted: Option<Planted>,
    /// Print what happens to the broker.
    pub verbose: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { steps: 3_000, planted: None, verbose: false }
    }
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Equal for equal runs: of every operation of the broker and every completion.
    pub trace: u64,
    pub simulated: Duration,
    pub acknowledged: u64,
    pub seen: u64,
    pub coverage: Coverage,
    pub violations: Vec<Violation>,
    /// How often each anomaly was found, also beyond the violations that are listed.
    pub anomalies: BTreeMap<Anomaly, u64>,
}

/// Runs the world of a seed. The same seed and options give the same outcome.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let mut world = World::new(seed, options.clone());
    world.play();
    world.outcome()
}

/// A broker that is alive.
struct Broker {
    driver: Driver<WatchedRing>,
    net: SimNet,
    housekeeping: Housekeeping,
    record_bytes_max: u32,
}

struct World {
    options: Options,
    random: Random,
    disk: SimDisk,
    watch: SharedWatch,
    checker: Checker,
    clients: Vec<Client>,
    topics: Vec<Topic>,
    counts: Counts,
    connections: u64,
    trouble: Trouble,
    broker: Option<Broker>,
    is_active: bool,
    faults: Vec<(u64, Fault)>,
    /// Whether this world's disk also makes mistakes that it does not report.
    is_hostile: bool,
    /// Acknowledged is not durable, and the clients know.
    is_async: bool,
    /// When the disk has room again.
    room_at: Option<u64>,
    /// Everything acknowledged was made durable by a stop.
    is_flushed: bool,
    /// From here on the end of the log may be lost.
    may_lose_from: Option<u64>,
    prober: Producer,
    segment_bytes: u64,
    sector_bytes: u32,
    is_direct: bool,
    coverage: Coverage,
}

impl World {
    fn new(seed: u64, options: Options) -> World {
        let mut random = Random::new(seed);
        let disk = SimDisk::new(random.next_u64());
        let segment_bytes = random.between(1, 4) << 20;
        let ledger = Ledger::new(disk.clone(), segment_bytes);
        let watch = Rc::new(RefCell::new(Watch::new(random.next_u64(), options.planted, ledger)));
        let is_hostile = random.chance(20);
        let is_async = random.chance(25) && options.planted.is_none();
        let topic = |id, name: &str, queues, state| Topic {
            id: TopicId(id),
            name: name.to_owned(),
            queues,
            state,
            is_scratch: false,
        };
        let topics = vec![
            topic(0, "orders", random.between(1, 4) as u32, TopicState::Wanted),
            topic(1, "events", 1, TopicState::Wanted),
            // Made by the first send to it.
            topic(2, "automatic", 2, TopicState::Ready),
        ];
        let mut roles = vec![Role::Admin(Admin::new(!is_hostile, &mut random))];
        for number in 0..random.between(1, 4) as u32 {
            roles.push(Role::Producer(Producer::new(number, &mut random)));
        }
        for group in 0..random.between(1, 4) as u32 {
            roles.push(Role::Consumer(Consumer::new(group, &mut random)));
        }
        let is_direct = random.chance(70);
        disk.set_direct(is_direct);
        World {
            options,
            disk,
            watch,
            checker: Checker::of_async(is_async),
            clients: roles.into_iter().map(Client::new).collect(),
            topics,
            counts: Counts::default(),
            connections: 0,
            trouble: Trouble::default(),
            broker: None,
            is_active: false,
            faults: Vec::new(),
            is_hostile,
            is_async,
            room_at: None,
            is_flushed: false,
            may_lose_from: None,
            prober: Producer::new(PROBER, &mut random),
            segment_bytes,
            sector_bytes: if random.chance(80) { 4096 } else { 8192 },
            is_direct,
            coverage: Coverage::default(),
            random,
        }
    }

    fn play(&mut self) {
        let lives = self.random.between(2, 6);
        for life in 1..=lives {
            let requests = self.counts.requests + self.options.steps / lives;
            if !self.boot() {
                return;
            }
            self.draw_faults();
            self.work(requests);
            let is_last = life == lives;
            if is_last || self.random.chance(30) {
                self.settle();
            }
            if !is_last && self.random.chance(20) {
                self.stop();
            }
            self.crash();
        }
        if self.boot() {
            self.audit();
            self.crash();
        }
    }

    fn outcome(self) -> Outcome {
        let watch = self.watch.borrow();
        let counts = self.counts;
        Outcome {
            trace: watch.trace,
            simulated: Duration::from_nanos(watch.base),
            acknowledged: self.checker.acknowledged_count(),
            seen: self.checker.seen_count(),
            anomalies: self.checker.counts().clone(),
            coverage: Coverage {
                requests: counts.requests,
                stutters: watch.ledger.stutters_made,
                stutters_reported: watch.ledger.stutters_reported,
                disk_reads: watch.reads,
                disk_writes: watch.writes,
                busy: counts.busy,
                no_space: counts.no_space,
                failed: counts.failed,
                long_polls: counts.long_polls,
                segments: self.disk.list(std::path::Path::new(LOG_DIR)).len() as u64,
                deleted_topics: self.topics.iter().filter(|topic| topic.state == TopicState::Deleted).count()
                    as u64,
                ..self.coverage
            },
            violations: self.checker.violations().to_vec(),
        }
    }

    /// Time since the beginning of the run, in nanoseconds.
    fn now(&self) -> u64 {
        let life = self.broker.as_ref().map_or(0, |broker| broker.net.now().0);
        self.watch.borrow().base + life
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.options.verbose {
            println!("{:>12.6}  {}", self.now() as f64 / SECOND as f64, text());
        }
    }

    // ---- a life

    fn log_config(&mut self) -> LogConfig {
        let random = &mut self.random;
        let record_bytes_max = 150 << 10;
        let chunk_bytes = 256 << 10;
        LogConfig {
            shard: 0,
            log_id: 7,
            segment_bytes: self.segment_bytes,
            block_bytes_max: [1 << 10, 8 << 10, 64 << 10][random.below(3) as usize],
            record_bytes_max,
            tail_bytes: 2 * u64::from(chunk_bytes),
            tail_bytes_hard_max: random.between(2, 4) * u64::from(chunk_bytes),
            chunk_bytes,
            staged_bytes_max: random.between(170 << 10, 512 << 10),
            sector_bytes: self.sector_bytes,
            pad_blocks: random.chance(20),
            writes_in_flight_max: random.between(1, 5) as usize,
            prepare_step_bytes: random.between(1, 2) << 20,
            prepare_ahead_bytes: random.between(170 << 10, 2 << 20),
        }
    }

    /// Starts a broker on what the disk holds.
    fn boot(&mut self) -> bool {
        let log = self.log_config();
        let ring_config = SimConfig {
            recv_buffer_count: [1, 4, 32][self.random.below(3) as usize],
            recv_buffer_bytes: [512, 4096, 16 << 10][self.random.below(3) as usize],
        };
        let ring = SimRing::new(self.random.next_u64(), self.disk.clone(), ring_config);
        let net = ring.net();
        let mut ring = WatchedRing::new(ring, self.disk.clone(), Rc::clone(&self.watch));
        let (listener, address) =
            ring.listen(ADDRESS.parse().expect("an address")).expect("nobody else listens");
        let config = ShardConfig {
            broker_name: "broker-a-0".to_owned(),
            cluster_name: "DefaultCluster".to_owned(),
            address,
            flush: if self.is_async || self.options.planted == Some(Planted::AsyncAsSync) {
                FlushDiskType::Async
            } else {
                FlushDiskType::Sync
            },
            auto_create_topics: true,
            delays: DelayTable::default(),
            key_salt: self.random.next_u64() as u32,
        };
        let wall_ms = ring.now().wall_ms;
        let record_bytes_max = log.record_bytes_max;
        self.coverage.async_lives += u64::from(self.is_async);
        if self.random.chance(10) {
            self.count_fault("EIO while the log is recovered");
            self.disk.fail_lookup(Some(self.random.below(4)));
        }
        let mut store = SimStore(self.disk.clone());
        let mut boot = || Shard::boot(config.clone(), log.clone(), &mut store, wall_ms, &mut |_| {});
        let mut booted = boot();
        if let Err(RecoverError::Index { .. }) = booted {
            // An index is damaged, and there is no room for another: the operator makes some.
            self.disk.set_space_left(None);
            booted = boot();
        }
        let boot = match booted {
            Ok(boot) => boot,
            Err(error) => {
                self.checker.report(Anomaly::Stuck, format!("the broker does not start: {error}"));
                return false;
            }
        };
        self.disk.fail_lookup(None);
        let report = &boot.report;
        self.say(|| {
            format!(
                "boot: {} records in {} bytes, {} bytes cut, {} damaged",
                report.records,
                report.end,
                report.cut_bytes,
                report.damaged.len()
            )
        });
        if report.cut_bytes > 0 {
            self.coverage.cut_tails += 1;
        }
        if let Some(from) = self.may_lose_from.take() {
            self.coverage.lost_at_end += self.checker.cut(report.end.0, from);
        }
        self.watch.borrow_mut().ledger.on_boot(report.end.0);
        for damage in &report.damaged {
            let range = damage.position.0..damage.position.0 + damage.bytes;
            self.coverage.free_again += self.checker.lost(range.clone());
            self.coverage.damage_reports += 1;
            if self.options.planted != Some(Planted::SilentDamage) {
                let told = self.watch.borrow_mut().ledger.damage_reported(&range);
                told.unwrap_or_else(|text| self.checker.report(Anomaly::FalseAlarm, text));
            }
        }
        let complaints = report.damaged.len() + report.unreadable_records.len() + boot.problems.len();
        if complaints > 0 && !self.checker.has_rot() {
            let text = format!(
                "a sound disk is reported damaged: {:?} {:?} {:?}",
                report.damaged, report.unreadable_records, boot.problems
            );
            self.checker.report(Anomaly::FalseAlarm, text);
        }
        let (backstage, mut housekeeping) = Housekeeping::new(self.disk.clone(), log, self.random.next_u64());
        housekeeping.forgets_to_sync = self.options.planted == Some(Planted::UnsyncedSegment);
        let files = LogFiles::new(LOG_DIR.into(), self.is_direct);
        let driver = Driver::new(ring, vec![listener], boot.shard, Limits::default(), files, backstage);
        self.checker.restarted();
        self.trouble = Trouble { disk_was_full: self.room_at.is_some(), ..Trouble::default() };
        self.is_flushed = false;
        {
            let watch = &mut *self.watch.borrow_mut();
            watch.log_failed_at = None;
            watch.write_fault = None;
            watch.read_fault = None;
            watch.wake_at = 0;
        }
        self.disk.set_latency(FAST.0, FAST.1);
        self.broker = Some(Broker { driver, net, housekeeping, record_bytes_max });
        true
    }

    /// Lets clients work until they have made so many requests, or for a few seconds.
    fn work(&mut self, requests: u64) {
        self.is_active = true;
        let until = self.now() + self.random.between(10 * MILLI, 5 * SECOND);
        while self.counts.requests < requests && self.now() < until {
            self.step(until);
        }
        self.is_active = false;
        self.faults.clear();
    }

    /// One turn of the broker, and a visit to everybody else. False once the broker has stopped.
    fn step(&mut self, until: u64) -> bool {
        let broker = self.broker.as_mut().expect("it is alive");
        let clients = self.clients.iter().map(|client| client.next_at(self.is_active)).min();
        let fault = self.faults.last().map(|(at, _)| *at);
        let wake_at =
            [clients, fault, broker.housekeeping.next_at(), self.room_at].into_iter().flatten().min();
        {
            let watch = &mut *self.watch.borrow_mut();
            watch.wake_at = wake_at.unwrap_or(until).min(until).saturating_sub(watch.base);
        }
        let goes_on = broker.driver.turn().expect("a simulated ring does not fail");
        let now = self.now();
        let broker = self.broker.as_mut().expect("it is alive");
        broker.housekeeping.act(now);
        self.hear();
        if let Some(at) = self.watch.borrow().log_failed_at
            && !self.trouble.log_failed
        {
            self.trouble.log_failed = true;
            self.coverage.failed_logs += 1;
            self.checker.log_failed(at);
        }
        if self.room_at.is_some_and(|at| at <= now) {
            self.make_room();
        }
        while self.faults.last().is_some_and(|(at, _)| *at <= now) {
            let (_, fault) = self.faults.pop().expect("just seen");
            self.inflict(fault);
        }
        self.visit();
        goes_on
    }

    /// What the operator reads.
    fn hear(&mut self) {
        let lines = &mut self.broker.as_mut().expect("it is alive").housekeeping.lines;
        let ledger = &mut self.watch.borrow_mut().ledger;
        for range in lines.stutters.drain(..) {
            ledger.stutter_reported(&range);
        }
        for range in lines.damaged.drain(..) {
            self.coverage.damage_reports += 1;
            let told = ledger.block_reported(&range);
            told.unwrap_or_else(|text| self.checker.report(Anomaly::FalseAlarm, text));
            self.checker.unreadable(range);
        }
    }

    fn context<'a>(&'a mut self) -> (Context<'a>, &'a mut Vec<Client>) {
        let now = self.now();
        let broker = self.broker.as_mut().expect("it is alive");
        let wall_ms = broker.driver.parts().0.now().wall_ms;
        let context = Context {
            now,
            wall_ms,
            is_active: self.is_active,
            record_bytes_max: broker.record_bytes_max,
            trouble: self.trouble,
            net: &broker.net,
            random: &mut self.random,
            checker: &mut self.checker,
            topics: &mut self.topics,
            counts: &mut self.counts,
            connections: &mut self.connections,
        };
        (context, &mut self.clients)
    }

    fn visit(&mut self) {
        let (mut context, clients) = self.context();
        for client in clients {
            client.act(&mut context);
        }
    }

    /// Takes the faults back and demands an answer to every request.
    fn settle(&mut self) {
        self.faults.clear();
        self.make_room();
        self.disk.set_latency(FAST.0, FAST.1);
        self.watch.borrow_mut().write_fault = None;
        self.watch.borrow_mut().read_fault = None;
        for client in &mut self.clients {
            if let Some(wire) = &mut client.wire {
                wire.mend();
            }
        }
        let until = self.now() + ANSWER_NANOS;
        let outstanding = |client: &Client| client.wire.as_ref().map_or(0, Wire::outstanding);
        while self.clients.iter().map(outstanding).sum::<usize>() > 0 && self.now() < until {
            self.step(until);
        }
        self.say(|| "settled".to_owned());
        for client in &self.clients {
            if let Some(wire) = client.wire.as_ref().filter(|wire| wire.outstanding() > 0) {
                let oldest = wire.oldest();
                let text = format!("{} requests, the oldest {oldest:?}", wire.outstanding());
                self.checker.report(Anomaly::Unanswered, text);
            }
        }
        self.probe();
    }

    /// With all faults taken back, a send has to be taken, unless the log has failed for good.
    fn probe(&mut self) {
        let topic = self.topics.iter().find(|topic| topic.state == TopicState::Ready && !topic.is_scratch);
        let Some(topic) = topic.map(|topic| topic.id).filter(|_| !self.trouble.log_failed) else { return };
        let Some(mut wire) = connect(&mut self.context().0) else {
            return self.checker.report(Anomaly::Stuck, "nobody listens any more");
        };
        let until = self.now() + ANSWER_NANOS;
        let mut prober = std::mem::replace(&mut self.prober, Producer::new(PROBER, &mut self.random));
        loop {
            while wire.outstanding() == 0 {
                prober.send(&mut wire, &mut self.context().0, topic, Some(0), 0);
            }
            let Some((asked, answer)) = self.answer(&mut wire) else { break };
            prober.on_answer(asked, &answer, &mut self.context().0);
            if answer.code == ResponseCode::SUCCESS.0 {
                self.coverage.probes += 1;
                break;
            }
            if self.trouble.log_failed {
                break;
            }
            if self.now() > until {
                let remark = answer.remark.unwrap_or_default();
                self.checker.report(Anomaly::Stuck, format!("a send is still refused: {remark}"));
                break;
            }
        }
        self.prober = prober;
    }

    /// Asks the broker to end.
    fn stop(&mut self) {
        self.say(|| "stop".to_owned());
        self.coverage.stops += 1;
        self.trouble.is_stopping = true;
        self.broker.as_mut().expect("it is alive").housekeeping.stop();
        let until = self.now() + STOP_NANOS;
        while self.step(until) {
            if self.now() >= until {
                return self.checker.report(Anomaly::Stuck, "the broker does not stop");
            }
        }
        self.is_flushed = !self.trouble.log_failed && self.now() < until - STOP_NANOS + STOP_PATIENCE_NANOS;
    }

    /// Cuts the power, and lets some time go by.
    fn crash(&mut self) {
        let now = self.now();
        self.broker = None;
        let is_async = self.is_async && !self.is_flushed;
        let (may_lose_from, told) = self.watch.borrow_mut().ledger.on_crash(is_async, now);
        self.may_lose_from = may_lose_from;
        told.unwrap_or_else(|text| self.checker.report(Anomaly::Unreported, text));
        let report = self.disk.crash(self.random.next_u64());
        self.coverage.crashes += 1;
        self.coverage.add_sectors(report);
        let down = self.random.below(3 * SECOND);
        self.watch.borrow_mut().base = now + down;
        self.say(|| format!("crash: {report:?}"));
        for client in &mut self.clients {
            let wait = self.random.below(20 * MILLI);
            client.lose(now + down + wait);
        }
        for topic in self.topics.iter_mut().filter(|topic| topic.state == TopicState::Deleting) {
            topic.state = TopicState::Unknown;
        }
    }

    // ---- the end

    /// Reads everything and compares it with what the clients know.
    fn audit(&mut self) {
        self.is_active = false;
        let Some(mut wire) = connect(&mut self.context().0) else {
            return self.checker.report(Anomaly::Stuck, "nobody listens after the restart");
        };
        let mut contents = Contents::new();
        for topic in self.topics.clone() {
            let is_current = self.topics.iter().rfind(|other| other.name == topic.name).map(|other| other.id)
                == Some(topic.id);
            if !is_current || topic.state == TopicState::Unknown {
                continue;
            }
            for id in 0..topic.queues {
                let queue = Queue { topic: topic.id, id };
                match self.read_queue(&mut wire, &topic.name, queue) {
                    Some(_) if topic.state == TopicState::Deleted && !self.checker.has_rot() => {
                        let text = format!("topic {} was deleted and is there", topic.name);
                        self.checker.report(Anomaly::RegressedOffset, text);
                    }
                    Some(messages) => drop(contents.insert(queue, messages)),
                    None => {}
                }
            }
        }
        for key in self.checker.commit_keys() {
            let since = self.checker.last_commit(key);
            let name = self.topics[key.queue.topic.0].name.clone();
            let group = format!("group-{}", key.group);
            ask_commit(&mut wire, self.now(), &group, &name, key.queue.id, Asked::Audit);
            let Some((_, answer)) = self.answer(&mut wire) else { return };
            let found = (answer.code == ResponseCode::SUCCESS.0)
                .then(|| OffsetResponse::decode(&answer.header().ext).map(|found| found.offset as u64).ok());
            self.checker.offset_found(key, since, found.flatten());
        }
        self.checker.finish(&contents);
        let (corruption, silent) = self.watch.borrow().ledger.judge(|range| self.checker.knows(range));
        self.coverage.corruption = corruption;
        for range in silent {
            let text = format!("the block at {range:?} is damaged, and the broker never said so");
            self.checker.report(Anomaly::Unreported, text);
        }
    }

    /// All messages of a queue; `None` if its topic is not there.
    fn read_queue(
        &mut self,
        wire: &mut Wire<Asked>,
        topic: &str,
        queue: Queue,
    ) -> Option<Vec<crate::checker::Seen>> {
        let mut found = Vec::new();
        let mut from = 0;
        loop {
            let request = PullMessageRequest {
                consumer_group: "auditor".into(),
                topic: topic.into(),
                queue_id: queue.id as i32,
                queue_offset: from,
                max_msg_nums: 1000,
                sys_flag: pull_flag::SUBSCRIPTION,
                commit_offset: 0,
                suspend_timeout_millis: 0,
                subscription: Some("*".into()),
                sub_version: 0,
                expression_type: None,
                max_msg_bytes: None,
                request_source: None,
                proxy_forward_client_id: None,
            };
            wire.ask(self.now(), RequestCode::PULL_MESSAGE, &request, Vec::new(), Asked::Audit);
            let (_, answer) = self.answer(wire)?;
            match ResponseCode(answer.code) {
                ResponseCode::SUCCESS | ResponseCode::PULL_RETRY_IMMEDIATELY => {}
                ResponseCode::PULL_OFFSET_MOVED if from == 0 => {}
                ResponseCode::PULL_NOT_FOUND => return Some(found),
                ResponseCode::TOPIC_NOT_EXIST => return None,
                _ => {
                    self.context().0.unexpected("pull of the auditor", &answer);
                    return Some(found);
                }
            }
            let mut context = self.context().0;
            for message in messages(&answer.body).flatten() {
                found.extend(context.look_at(queue, &message));
            }
            let next = PullMessageResponse::decode(&answer.header().ext).map(|next| next.next_begin_offset);
            match next {
                Ok(next) if next > from => from = next,
                // An empty queue that was never used says so at its beginning.
                _ if found.is_empty() => return Some(found),
                _ => {
                    self.context().0.unexpected("pull of the auditor, without progress", &answer);
                    return Some(found);
                }
            }
        }
    }

    fn answer(&mut self, wire: &mut Wire<Asked>) -> Option<(Asked, RemotingCommand)> {
        let until = self.now() + ANSWER_NANOS;
        while self.now() < until {
            wire.flush();
            self.step(until);
            let now = self.now();
            if let Some(answered) = wire.pump(now, &mut self.checker).pop() {
                return Some(answered);
            }
        }
        self.checker.report(Anomaly::Unanswered, "the auditor or prober got no answer");
        None
    }
}
