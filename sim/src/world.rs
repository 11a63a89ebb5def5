//! One run: a broker lives several lives on one disk, under faults drawn from the seed, and is judged at the end.
//!
//!   boot ─▶ work, faults ─▶ (settle) ─▶ crash | stop ─▶ boot … ─▶ settle ─▶ crash ─▶ boot ─▶ audit
//!
//! To settle is to take all faults back, ask for nothing more, and to demand an answer to all that was asked.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ringmq::driver::{Driver, LogFiles};
use ringmq::shard::{FlushDiskType, Shard, ShardConfig};
use ringmq_net::Limits;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::messages;
use ringmq_protocol::request::{OffsetResponse, PullMessageRequest, PullMessageResponse, pull_flag};
use ringmq_ring::Ring;
use ringmq_ring::sim::{Direction, Random, ReadFault, SimConfig, SimDisk, SimNet, SimRing, WriteFault};
use ringmq_storage::LogConfig;

use crate::admin::Admin;
use crate::backstage::{ADDRESS, Housekeeping, LOG_DIR, SimStore};
use crate::checker::{Anomaly, Checker, Contents, Queue, TopicId, Violation};
use crate::client::{Asked, Client, Context, Counts, Role, Topic, TopicState, Trouble, connect};
use crate::consumer::{Consumer, ask_commit};
use crate::producer::Producer;
use crate::ring::{Planted, SharedWatch, Watch, WatchedRing};
use crate::wire::Wire;

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLI;
/// Longest time in which everything has to be answered once nothing goes wrong any more: the longest hold, and room
/// for zeroing to be tried again.
const ANSWER_NANOS: u64 = 30 * SECOND;
/// Longest time that a stop may take.
const STOP_NANOS: u64 = 10 * SECOND;

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

/// What happened in a run besides sends and pulls.
#[derive(Clone, Copy, Default, Debug)]
pub struct Coverage {
    pub requests: u64,
    pub crashes: u64,
    pub stops: u64,
    pub faults: u64,
    pub segments: u64,
    pub disk_reads: u64,
    pub disk_writes: u64,
    pub busy: u64,
    pub no_space: u64,
    pub failed: u64,
    pub long_polls: u64,
    pub cut_tails: u64,
    pub damage_reports: u64,
    pub failed_logs: u64,
    pub deleted_topics: u64,
}

impl Coverage {
    pub fn add(&mut self, other: &Coverage) {
        self.requests += other.requests;
        self.crashes += other.crashes;
        self.stops += other.stops;
        self.faults += other.faults;
        self.segments += other.segments;
        self.disk_reads += other.disk_reads;
        self.disk_writes += other.disk_writes;
        self.busy += other.busy;
        self.no_space += other.no_space;
        self.failed += other.failed;
        self.long_polls += other.long_polls;
        self.cut_tails += other.cut_tails;
        self.damage_reports += other.damage_reports;
        self.failed_logs += other.failed_logs;
        self.deleted_topics += other.deleted_topics;
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

#[derive(Clone, Copy, Debug)]
enum Fault {
    Reset,
    Cut(Direction, u64),
    Dawdle(u64),
    ClockJump(i64),
    Write(WriteFault),
    Read(ReadFault),
    DiskLatency(u64, u64),
    NetDelay(u64, u64),
    NoSpace(u64),
    SlowHousekeeping(u64),
    Rot,
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
    rot_percent: u64,
    segment_bytes: u64,
    sector_bytes: u32,
    is_direct: bool,
    coverage: Coverage,
}

impl World {
    fn new(seed: u64, options: Options) -> World {
        let mut random = Random::new(seed);
        let disk = SimDisk::new(random.next_u64());
        let watch = Rc::new(RefCell::new(Watch::new(random.next_u64(), options.planted)));
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
        let mut roles = vec![Role::Admin(Admin::new(&mut random))];
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
            checker: Checker::default(),
            clients: roles.into_iter().map(Client::new).collect(),
            topics,
            counts: Counts::default(),
            connections: 0,
            trouble: Trouble::default(),
            broker: None,
            is_active: false,
            faults: Vec::new(),
            rot_percent: if random.chance(15) { 50 } else { 0 },
            segment_bytes: random.between(1, 4) << 20,
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
            coverage: Coverage {
                requests: counts.requests,
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
            flush: FlushDiskType::Sync,
            auto_create_topics: true,
            key_salt: self.random.next_u64() as u32,
        };
        let wall_ms = ring.now().wall_ms;
        let record_bytes_max = log.record_bytes_max;
        let boot =
            match Shard::boot(config, log.clone(), &mut SimStore(self.disk.clone()), wall_ms, &mut |_| {}) {
                Ok(boot) => boot,
                Err(error) => {
                    self.checker.report(Anomaly::Stuck, format!("the broker does not start: {error}"));
                    return false;
                }
            };
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
        for damage in &report.damaged {
            self.checker.lost(damage.position.0..damage.position.0 + damage.bytes);
            self.coverage.damage_reports += 1;
        }
        let complaints = report.damaged.len() + report.unreadable_records.len() + boot.problems.len();
        if complaints > 0 && !self.checker.has_rot() {
            let text = format!(
                "a sound disk is reported damaged: {:?} {:?} {:?}",
                report.damaged, report.unreadable_records, boot.problems
            );
            self.checker.report(Anomaly::LostWrite, text);
        }
        let (backstage, mut housekeeping) = Housekeeping::new(self.disk.clone(), log, self.random.next_u64());
        housekeeping.forgets_to_sync = self.options.planted == Some(Planted::UnsyncedSegment);
        let files = LogFiles::new(LOG_DIR.into(), self.is_direct);
        let driver = Driver::new(ring, vec![listener], boot.shard, Limits::default(), files, backstage);
        self.checker.restarted();
        self.trouble = Trouble::default();
        {
            let watch = &mut *self.watch.borrow_mut();
            watch.log_failed_at = None;
            watch.write_fault = None;
            watch.read_fault = None;
            watch.wake_at = 0;
        }
        self.disk.set_latency(Duration::from_micros(20), Duration::from_micros(400));
        self.broker = Some(Broker { driver, net, housekeeping, record_bytes_max });
        true
    }

    /// Faults of this life, by time.
    fn draw_faults(&mut self) {
        let random = &mut self.random;
        let count = [0, 2, 5, 12][random.below(4) as usize];
        let start = self.watch.borrow().base;
        let mut faults: Vec<(u64, Fault)> = Vec::new();
        for _ in 0..count {
            // Lives are long or short: early moments get as many faults as late ones.
            let at = start + (random.below(4 * SECOND) >> random.below(12));
            let fault = match random.below(100) {
                0..18 => Fault::Reset,
                18..28 => {
                    let direction = if random.chance(50) { Direction::ToServer } else { Direction::ToClient };
                    Fault::Cut(direction, random.between(MILLI, 3 * SECOND))
                }
                28..40 => Fault::Dawdle(random.between(MILLI, 2 * SECOND)),
                40..46 => Fault::ClockJump(random.below(172_800_000) as i64 - 86_400_000),
                46..50 => Fault::Write(WriteFault::Io),
                50..52 => Fault::Write(WriteFault::NoSpace),
                52..62 => Fault::Write(WriteFault::Slow(Duration::from_nanos(random.below(SECOND)))),
                62..66 => Fault::Read(ReadFault::Io),
                66..72 => Fault::Read(ReadFault::FlipBit),
                72..76 => Fault::Read(ReadFault::Slow(Duration::from_nanos(random.below(SECOND)))),
                76..82 => Fault::DiskLatency(random.below(MILLI), random.between(MILLI, 30 * MILLI)),
                82..88 => Fault::NetDelay(random.below(5 * MILLI), random.between(5 * MILLI, 20 * MILLI)),
                88..95 => Fault::NoSpace(random.between(10 * MILLI, 3 * SECOND)),
                _ => Fault::SlowHousekeeping(random.between(10 * MILLI, SECOND)),
            };
            faults.push((at, fault));
        }
        if random.chance(self.rot_percent) {
            let at = start + (random.below(4 * SECOND) >> random.below(12));
            faults.push((at, Fault::Rot));
        }
        // Latest first: they are taken from the end.
        faults.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        self.faults = faults;
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
        let wake_at = [clients, fault, broker.housekeeping.next_at()].into_iter().flatten().min();
        {
            let watch = &mut *self.watch.borrow_mut();
            watch.wake_at = wake_at.unwrap_or(until).min(until).saturating_sub(watch.base);
        }
        let goes_on = broker.driver.turn().expect("a simulated ring does not fail");
        let now = self.now();
        let broker = self.broker.as_mut().expect("it is alive");
        broker.housekeeping.act(now);
        for range in broker.housekeeping.lines.damaged.drain(..) {
            self.coverage.damage_reports += 1;
            self.checker.unreadable(range);
        }
        if let Some(at) = self.watch.borrow().log_failed_at
            && !self.trouble.log_failed
        {
            self.trouble.log_failed = true;
            self.coverage.failed_logs += 1;
            self.checker.log_failed(at);
        }
        while self.faults.last().is_some_and(|(at, _)| *at <= now) {
            let (_, fault) = self.faults.pop().expect("just seen");
            self.inflict(fault);
        }
        self.visit();
        goes_on
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

    fn inflict(&mut self, fault: Fault) {
        self.coverage.faults += 1;
        self.say(|| format!("fault: {fault:?}"));
        let now = self.now();
        let victim = self.random.below(self.clients.len() as u64) as usize;
        let victim = &mut self.clients[victim];
        let broker = self.broker.as_mut().expect("it is alive");
        let nanos = Duration::from_nanos;
        match fault {
            Fault::Reset => victim.reset(),
            Fault::Cut(direction, time) => {
                if let Some(wire) = &mut victim.wire {
                    wire.cut(direction, now + time);
                }
            }
            Fault::Dawdle(time) => {
                if let Some(wire) = &mut victim.wire {
                    wire.dawdle(now + time);
                }
            }
            Fault::ClockJump(ms) => self.watch.borrow_mut().wall_shift_ms += ms,
            Fault::Write(fault) => self.watch.borrow_mut().write_fault = Some(fault),
            Fault::Read(fault) => {
                self.trouble.reads_failed = true;
                self.watch.borrow_mut().read_fault = Some(fault);
            }
            Fault::DiskLatency(low, high) => self.disk.set_latency(nanos(low), nanos(high)),
            Fault::NetDelay(low, high) => broker.net.set_delay(nanos(low), nanos(high)),
            Fault::NoSpace(time) => {
                self.trouble.disk_was_full = true;
                broker.housekeeping.full_until = now + time;
            }
            Fault::SlowHousekeeping(slowest) => broker.housekeeping.slowest = slowest,
            Fault::Rot => self.rot(),
        }
    }

    /// Inverts a bit of what was written long ago, so that what was written since proves that it was durable.
    fn rot(&mut self) {
        let Some(end) = self.checker.last_position().checked_sub(1 << 20).filter(|end| *end > 0) else {
            return;
        };
        let position = self.random.below(end);
        let segment = ringmq_storage::SegmentBase(position - position % self.segment_bytes);
        let bit = self.random.below(8) as u8;
        let path = crate::backstage::segment_path(segment);
        self.disk.flip_bit(&path, position - segment.0, bit).expect("it was written");
        self.checker.rot();
        self.trouble.reads_failed = true;
    }

    /// Takes the faults back and demands an answer to every request.
    fn settle(&mut self) {
        self.faults.clear();
        let broker = self.broker.as_mut().expect("it is alive");
        broker.housekeeping.full_until = 0;
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
    }

    /// Cuts the power, and lets some time go by.
    fn crash(&mut self) {
        let now = self.now();
        self.broker = None;
        let report = self.disk.crash(self.random.next_u64());
        self.coverage.crashes += 1;
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
            let Some(answer) = self.answer(&mut wire) else { return };
            let found = (answer.code == ResponseCode::SUCCESS.0)
                .then(|| OffsetResponse::decode(&answer.header().ext).map(|found| found.offset as u64).ok());
            self.checker.offset_found(key, since, found.flatten());
        }
        self.checker.finish(&contents);
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
            let answer = self.answer(wire)?;
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

    fn answer(&mut self, wire: &mut Wire<Asked>) -> Option<RemotingCommand> {
        let until = self.now() + ANSWER_NANOS;
        while self.now() < until {
            wire.flush();
            self.step(until);
            let now = self.now();
            if let Some((_, answer)) = wire.pump(now, &mut self.checker).pop() {
                return Some(answer);
            }
        }
        self.checker.report(Anomaly::Unanswered, "the auditor got no answer");
        None
    }
}
