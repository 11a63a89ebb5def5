//! One run: a broker lives several lives on one disk, under faults drawn from the seed, and is judged at the end.
//!
//!   boot ─▶ work, faults ─▶ (settle) ─▶ crash | stop ─▶ boot … ─▶ settle ─▶ crash ─▶ boot ─▶ audit
//!
//! To settle is to take all faults back, ask for nothing more, and to demand an answer to all that was asked.

mod audit;
mod core;
mod faults;
mod plan;
mod run;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use ringmq::driver::{Driver, LogFiles};
use ringmq::shard::{FlushDiskType, Shard, ShardConfig};
use ringmq_net::Limits;
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::frame::RemotingCommand;
use ringmq_ring::Ring;
use ringmq_ring::sim::{Random, SimConfig, SimDisk, SimRing};
use ringmq_storage::{RecoverError, SegmentBase, SegmentStore};

use self::core::{Broker, Core};
use self::plan::{Plan, delays};
pub use self::run::{Options, Outcome};
use crate::admin::Admin;
use crate::backstage::{Housekeeping, Keeping, Release, index_in};
use crate::checker::{Anomaly, Checker, TopicId, position_in};
use crate::client::{Asked, Client, Context, Counts, Purpose, Role, Topic, TopicState, Trouble, connect};
use crate::consumer::Consumer;
use crate::coverage::Coverage;
use crate::popper::Popper;
use crate::producer::{Producer, on_send_answer};
use crate::retrier::Retrier;
use crate::ring::{Planted, WatchedRing};
use crate::wire::Wire;

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
/// More than the wall clock was ever put back, and the longest delay.
const ALL_DUE_MS: i64 = 100 * 86_400_000;
/// What a segment that spans this knows of times: of so many bits it keeps 32.
const ALL_DUE_UNIT_MS: i64 = 1 << (i64::BITS - ALL_DUE_MS.leading_zeros() - u32::BITS);

/// Runs the world of a seed. The same seed and options give the same outcome.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let mut world = World::new(seed, options.clone());
    world.play();
    world.outcome()
}

struct World {
    options: Options,
    plan: Plan,
    random: Random,
    disk: SimDisk,
    cores: Vec<Core>,
    checker: Checker,
    clients: Vec<Client>,
    topics: Vec<Topic>,
    counts: Counts,
    connections: u64,
    is_active: bool,
    /// Whether this world's disk also makes mistakes that it does not report.
    is_hostile: bool,
    /// Acknowledged is not durable, and the clients know.
    is_async: bool,
    /// When the disk has room again.
    room_at: Option<u64>,
    /// One a core.
    probers: Vec<Producer>,
    segment_bytes: u64,
    sector_bytes: u32,
    is_direct: bool,
    coverage: Coverage,
}

impl World {
    fn new(seed: u64, options: Options) -> World {
        let mut random = Random::new(seed);
        let plan = Plan::draw(seed, options.planted);
        let disk = SimDisk::new(random.next_u64());
        let mut segment_bytes = random.between(1, 4) << 20;
        if plan.wants_segments() {
            segment_bytes = segment_bytes.min(2 << 20);
        }
        let watch_seed = random.next_u64();
        let core = |number| {
            Core::new(number, disk.clone(), segment_bytes, options.planted, watch_seed.wrapping_add(number))
        };
        let cores = (0..plan.cores).map(core).collect();
        let is_hostile = random.chance(20);
        let is_async = random.chance(25) && options.planted.is_none();
        // What is lost with the end of the log, or with a block, may come again when it is delayed.
        let keeps_all = !is_async && !is_hostile;
        let is_about_later = keeps_all && plan.has_retriers;
        let mut topics: Vec<Topic> = Vec::new();
        for core in 0..plan.cores {
            let mut topic = |name: &str, queues, state, purpose| {
                let (id, name) = (TopicId(topics.len()), name.to_owned());
                topics.push(Topic { id, core, name, queues, state, purpose, keeps_ms: None });
            };
            topic("orders", random.between(1, 4) as u32, TopicState::Wanted, Purpose::All);
            topic("events", 1, TopicState::Wanted, Purpose::All);
            // Made by the first send to it.
            topic("automatic", 2, TopicState::Ready, Purpose::All);
            if is_about_later {
                topic("late", 1, TopicState::Wanted, Purpose::Late);
            }
        }
        let mut checker = Checker::of_async(is_async);
        if let Some(keeps_ms) = plan.brief_ms {
            for core in 0..plan.cores {
                let (id, name) = (TopicId(topics.len()), "brief".to_owned());
                let (state, purpose) = (TopicState::Wanted, Purpose::All);
                topics.push(Topic { id, core, name, queues: 1, state, purpose, keeps_ms: Some(keeps_ms) });
                checker.fades(id);
            }
        }
        let mut clients = Vec::new();
        for core in 0..plan.cores {
            clients.push((core, Role::Admin(Admin::new(core, !is_hostile, &mut random))));
        }
        // Where each one works: everywhere is somebody, as far as they go.
        let somewhere = |number: u32| u64::from(number) % plan.cores;
        for number in 0..random.between(1, 4).max(plan.cores) as u32 {
            let mut producer = Producer::new(number, &mut random);
            if plan.wants_segments() {
                producer.send_more();
            }
            clients.push((somewhere(number), Role::Producer(producer)));
        }
        for group in 0..random.between(1, 4).max(plan.cores) as u32 {
            let consumer = Consumer::new(group, &mut random);
            clients.push((somewhere(group), Role::Consumer(consumer)));
        }
        for core in (0..plan.cores).filter(|_| is_about_later) {
            clients.push((core, Role::Retrier(Retrier::new(core, &mut random))));
        }
        for core in (0..plan.cores).filter(|_| keeps_all && plan.has_poppers) {
            let mut popper = || Popper::new(&mut random, plan.pops_in_order, options.planted);
            clients.extend([0; 2].map(|_| (core, Role::Popper(popper()))));
        }
        let is_direct = random.chance(70);
        disk.set_direct(is_direct);
        World {
            options,
            disk,
            cores,
            checker,
            clients: clients.into_iter().map(|(core, role)| Client::new(core, role)).collect(),
            topics,
            counts: Counts::default(),
            connections: 0,
            is_active: false,
            is_hostile,
            is_async,
            room_at: None,
            probers: (0..plan.cores as u32).map(|core| Producer::new(PROBER + core, &mut random)).collect(),
            segment_bytes,
            sector_bytes: if random.chance(80) { 4096 } else { 8192 },
            is_direct,
            coverage: Coverage::default(),
            plan,
            random,
        }
    }

    fn play(&mut self) {
        let lives = self.random.between(2, 6);
        for life in 1..=lives {
            let requests = self.counts.requests + self.options.steps / lives;
            if !self.boot(self.plan.keeping) {
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
        // The auditor wants to see all that is there: nothing goes any more.
        // By now everything is due.
        self.cores.iter().for_each(|core| core.watch.borrow_mut().wall_shift_ms += ALL_DUE_MS);
        self.checker.blur_times(ALL_DUE_UNIT_MS);
        if self.boot(Keeping::ALL) {
            self.audit();
            self.crash();
        }
    }

    fn outcome(self) -> Outcome {
        let counts = self.counts;
        let mut coverage = Coverage {
            requests: counts.requests,
            busy: counts.busy,
            no_space: counts.no_space,
            failed: counts.failed,
            long_polls: counts.long_polls,
            look_ups: counts.look_ups,
            moved: counts.moved,
            deleted_topics: self.topics.iter().filter(|topic| topic.state == TopicState::Deleted).count()
                as u64,
            ..self.coverage
        };
        let mut trace = 0;
        let mut simulated = Duration::ZERO;
        for core in &self.cores {
            let watch = core.watch.borrow();
            trace = (trace ^ watch.trace).rotate_left(1);
            simulated = Duration::from_nanos(watch.base);
            coverage.stutters += watch.ledger.stutters_made;
            coverage.stutters_reported += watch.ledger.stutters_reported;
            coverage.disk_reads += watch.reads;
            coverage.disk_writes += watch.writes;
        }
        Outcome {
            trace,
            simulated,
            acknowledged: self.checker.acknowledged_count(),
            seen: self.checker.seen_count(),
            anomalies: self.checker.counts().clone(),
            coverage,
            violations: self.checker.violations().to_vec(),
        }
    }

    /// Whether what is popped can be held to anything: nothing is lost in this world.
    fn has_poppers(&self) -> bool {
        !self.is_async && !self.is_hostile && self.plan.has_poppers
    }

    /// Time since the beginning of the run, in nanoseconds: of the core that is behind, among those that have not stopped.
    fn now(&self) -> u64 {
        let at_work = self.cores.iter().filter(|core| !core.has_stopped()).map(Core::now).min();
        at_work.unwrap_or_else(|| self.cores.iter().map(Core::now).max().expect("there is one"))
    }

    fn say(&self, core: usize, text: impl FnOnce() -> String) {
        if self.options.verbose {
            let now = self.cores[core].now() as f64 / SECOND as f64;
            println!("{now:>12.6}  {core}  {}", text());
        }
    }

    // ---- a life

    /// Starts the broker on what the disk holds.
    fn boot(&mut self, keeping: Keeping) -> bool {
        self.checker.restarted();
        (0..self.cores.len()).all(|core| self.boot_core(core, keeping))
    }

    fn boot_core(&mut self, index: usize, keeping: Keeping) -> bool {
        let log = self.log_config(index);
        let ring_config = SimConfig {
            recv_buffer_count: [1, 4, 32][self.random.below(3) as usize],
            recv_buffer_bytes: [512, 4096, 16 << 10][self.random.below(3) as usize],
        };
        let ring = SimRing::new(self.random.next_u64(), self.disk.clone(), ring_config);
        let net = ring.net();
        let core = &mut self.cores[index];
        let number = core.number;
        let mut ring = WatchedRing::new(ring, self.disk.clone(), Rc::clone(&core.watch));
        let (listener, address) = ring.listen(core.address).expect("nobody else listens");
        let config = ShardConfig {
            broker_name: format!("broker-a-{number}"),
            cluster_name: "DefaultCluster".to_owned(),
            address,
            flush: if self.is_async || self.options.planted == Some(Planted::AsyncAsSync) {
                FlushDiskType::Async
            } else {
                FlushDiskType::Sync
            },
            auto_create_topics: true,
            delays: delays(),
            key_salt: self.random.next_u64() as u32,
        };
        let wall_ms = ring.now().wall_ms;
        let record_bytes_max = log.record_bytes_max;
        self.coverage.async_lives += u64::from(self.is_async);
        let mut store = core.store.clone();
        let start = store.segments().expect("the disk is there").iter().map(|(base, _)| base.0).min();
        let start = start.unwrap_or(0);
        // An index goes before its segment, and a page that cannot be read is as good as none.
        let mut is_excused = self.checker.begins_at(position_in(number, start));
        self.coverage.interrupted += u64::from(is_excused);
        // Before a look-up is made to fail, which is meant for the broker.
        let owed = self.cores[index].watch.borrow_mut().indexes.owed_at_start();
        if self.random.chance(10) {
            is_excused = true;
            self.count_fault("EIO while the log is recovered");
            self.disk.fail_lookup(Some(self.random.below(4)));
        }
        let mut boot = || Shard::boot(config.clone(), log.clone(), &mut store, wall_ms, &mut |_| {});
        let mut booted = boot();
        let is_first_try = booted.is_ok();
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
        self.say(index, || {
            format!(
                "boot: {} records in {start}..{}, {} bytes cut, {} damaged, {:?}",
                report.records,
                report.end,
                report.cut_bytes,
                report.damaged.len(),
                boot.notes
            )
        });
        if report.cut_bytes > 0 {
            self.coverage.cut_tails += 1;
        }
        let core = &mut self.cores[index];
        if let Some(from) = core.may_lose_from.take() {
            let (end, from) = (position_in(number, report.end.0), position_in(number, from));
            self.coverage.lost_at_end += self.checker.cut(end, from);
        }
        core.watch.borrow_mut().ledger.on_boot(start..report.end.0);
        let said: BTreeSet<SegmentBase> =
            boot.notes.iter().filter_map(|note| index_in(note)).map(SegmentBase).collect();
        for segment in &said {
            let told = core.watch.borrow_mut().indexes.reported(*segment);
            if let Err(text) = told
                && !is_excused
                && !self.checker.has_rot()
            {
                self.checker.report(Anomaly::FalseAlarm, text);
            }
        }
        for segment in owed.unsaid(&said).into_iter().filter(|_| is_first_try) {
            let text = format!("the index of segment {segment} was harmed, and the start did not say so");
            self.checker.report(Anomaly::Unreported, text);
        }
        core.watch.borrow_mut().indexes.forget_undone();
        for damage in &report.damaged {
            let range = damage.position.0..damage.position.0 + damage.bytes;
            let in_all = position_in(number, range.start)..position_in(number, range.end);
            self.coverage.free_again += self.checker.lost(in_all);
            self.coverage.damage_reports += 1;
            if self.options.planted != Some(Planted::SilentDamage) {
                let told = core.watch.borrow_mut().ledger.damage_reported(&range);
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
        let (sealed, topics) = (boot.shard.sealed_headers(), boot.shard.topic_configs());
        let (planted, seed) = (self.options.planted, self.random.next_u64());
        let (backstage, housekeeping) =
            Housekeeping::new(core.store.clone(), log, keeping, (&sealed, &topics), planted, seed);
        let files = LogFiles::new(core.store.directory.clone(), self.is_direct);
        let driver = Driver::new(ring, vec![listener], boot.shard, Limits::default(), files, backstage);
        let index_harmed = core.watch.borrow().indexes.is_any_harmed();
        core.trouble = Trouble { disk_was_full: self.room_at.is_some(), index_harmed, ..Trouble::default() };
        core.is_flushed = false;
        core.watch.borrow_mut().begin_life();
        self.disk.set_latency(FAST.0, FAST.1);
        core.broker = Some(Broker { driver, net, housekeeping, record_bytes_max, has_stopped: false });
        true
    }

    /// Lets clients work until they have made so many requests, or for a few seconds.
    fn work(&mut self, requests: u64) {
        self.is_active = true;
        let until = self.now() + self.random.between(10 * MILLI, 5 * SECOND);
        // Now and then the power is cut while a segment goes.
        let mut is_cut_short = false;
        while self.counts.requests < requests && self.now() < until && !is_cut_short {
            self.step(until);
            let removes = self.cores.iter_mut().any(|core| core.broker().housekeeping.is_removing());
            is_cut_short = removes && self.random.chance(3);
        }
        self.is_active = false;
        self.cores.iter_mut().for_each(|core| core.faults.clear());
    }

    /// One turn of the core that is behind. False once all cores have stopped.
    fn step(&mut self, until: u64) -> bool {
        let alive = self.cores.iter().enumerate().filter(|(_, core)| !core.has_stopped());
        let Some((index, _)) = alive.min_by_key(|(_, core)| core.now()) else { return false };
        let goes_on = self.step_core(index, until);
        self.cores[index].broker().has_stopped = !goes_on;
        true
    }

    /// One turn of a core, and a visit to everybody else there. False once it has stopped.
    fn step_core(&mut self, index: usize, until: u64) -> bool {
        let core = &mut self.cores[index];
        let number = core.number;
        let there = self.clients.iter().filter(|client| client.core == number);
        let clients = there.map(|client| client.next_at(self.is_active)).min();
        let fault = core.faults.last().map(|(at, _)| *at);
        let housekeeping = core.broker().housekeeping.next_at();
        let wake_at = [clients, fault, housekeeping, self.room_at].into_iter().flatten().min();
        {
            let watch = &mut *core.watch.borrow_mut();
            watch.wake_at = wake_at.unwrap_or(until).min(until).saturating_sub(watch.base);
        }
        let goes_on = core.broker().driver.turn().expect("a simulated ring does not fail");
        let now = core.now();
        let broker = core.broker();
        let wall_ms = broker.driver.parts().0.now().wall_ms;
        broker.housekeeping.act(now, wall_ms);
        if let Some(at) = core.watch.borrow().log_failed_at
            && !core.trouble.log_failed
        {
            core.trouble.log_failed = true;
            self.coverage.failed_logs += 1;
            self.checker.log_failed(number, at);
        }
        self.hear(index);
        if self.room_at.is_some_and(|at| at <= now) {
            self.make_room();
        }
        while self.cores[index].faults.last().is_some_and(|(at, _)| *at <= now) {
            let (_, fault) = self.cores[index].faults.pop().expect("just seen");
            self.inflict(index, fault);
        }
        self.visit(index);
        goes_on
    }

    /// What the operator reads.
    fn hear(&mut self, index: usize) {
        let core = &mut self.cores[index];
        let number = core.number;
        let lines = &mut core.broker.as_mut().expect("it is alive").housekeeping.lines;
        let releases = std::mem::take(&mut lines.releases);
        for segment in lines.indexes.drain(..) {
            let told = core.watch.borrow_mut().indexes.reported(SegmentBase(segment));
            // Until the index is written anew, look-ups may be refused.
            core.trouble.index_harmed = true;
            if let Err(text) = told
                && !core.trouble.reads_failed
                && !self.checker.has_rot()
            {
                self.checker.report(Anomaly::FalseAlarm, text);
            }
        }
        self.coverage.segments += std::mem::take(&mut lines.segments_made);
        self.coverage.recycled += std::mem::take(&mut lines.recycled);
        self.coverage.rewritten += std::mem::take(&mut lines.rewritten);
        for (name, end) in lines.given_up.drain(..) {
            let topic = self.topics.iter().find(|topic| topic.core == number && topic.name == name);
            topic.into_iter().for_each(|topic| self.checker.gave_up(topic.id, position_in(number, end)));
        }
        let ledger = &mut core.watch.borrow_mut().ledger;
        for range in lines.stutters.drain(..) {
            ledger.stutter_reported(&range);
        }
        for range in lines.damaged_anew.drain(..) {
            self.coverage.damage_reports += 1;
            let told = ledger.damage_reported(&range);
            told.unwrap_or_else(|text| self.checker.report(Anomaly::FalseAlarm, text));
            self.checker.unreadable(position_in(number, range.start)..position_in(number, range.end));
        }
        for range in lines.damaged.drain(..) {
            self.coverage.damage_reports += 1;
            let told = ledger.block_reported(&range);
            told.unwrap_or_else(|text| self.checker.report(Anomaly::FalseAlarm, text));
            self.checker.unreadable(position_in(number, range.start)..position_in(number, range.end));
        }
        for release in releases {
            match release {
                Release::Asked(end) => self.checker.release_asked(number, position_in(number, end)),
                Release::Kept => {
                    self.coverage.kept += 1;
                    self.checker.release_refused(number);
                }
                Release::Granted(end) => {
                    self.coverage.released += 1;
                    let counts = !self.plan.keeping.retention.forced && !core.trouble.is_stopping;
                    let online = self.clients.iter().filter(|client| client.core == number && counts);
                    let online: Vec<_> = online.flat_map(Client::online).collect();
                    self.checker.release_granted(number, position_in(number, end), &online);
                    ledger.on_released(end);
                }
            }
        }
    }

    fn context<'a>(&'a mut self, index: usize) -> (Context<'a>, &'a mut Vec<Client>) {
        let core = &mut self.cores[index];
        let now = core.now();
        let broker = core.broker.as_mut().expect("it is alive");
        let wall_ms = broker.driver.parts().0.now().wall_ms;
        let context = Context {
            now,
            wall_ms,
            is_active: self.is_active,
            core: core.number,
            address: core.address,
            record_bytes_max: broker.record_bytes_max,
            trouble: core.trouble,
            net: &broker.net,
            random: &mut self.random,
            checker: &mut self.checker,
            topics: &mut self.topics,
            counts: &mut self.counts,
            connections: &mut self.connections,
        };
        (context, &mut self.clients)
    }

    fn visit(&mut self, index: usize) {
        let (mut context, clients) = self.context(index);
        for client in clients.iter_mut().filter(|client| client.core == index as u64) {
            client.act(&mut context);
        }
    }

    /// Takes the faults back and demands an answer to every request.
    fn settle(&mut self) {
        self.make_room();
        self.disk.set_latency(FAST.0, FAST.1);
        for core in &mut self.cores {
            core.faults.clear();
            let watch = &mut *core.watch.borrow_mut();
            (watch.write_fault, watch.read_fault) = (None, None);
        }
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
        self.say(0, || "settled".to_owned());
        for client in &self.clients {
            if let Some(wire) = client.wire.as_ref().filter(|wire| wire.outstanding() > 0) {
                let oldest = wire.oldest();
                let text = format!("{} requests, the oldest {oldest:?}", wire.outstanding());
                self.checker.report(Anomaly::Unanswered, text);
            }
        }
        for core in 0..self.cores.len() {
            self.probe(core);
        }
    }

    /// With all faults taken back, a send has to be taken, unless the log has failed for good.
    fn probe(&mut self, core: usize) {
        let is_open = |topic: &&Topic| {
            topic.core == core as u64 && topic.state == TopicState::Ready && topic.purpose == Purpose::All
        };
        let topic = self.topics.iter().find(is_open).map(|topic| topic.id);
        let Some(topic) = topic.filter(|_| !self.cores[core].trouble.log_failed) else { return };
        let Some(mut wire) = connect(&mut self.context(core).0) else {
            return self.checker.report(Anomaly::Stuck, "nobody listens any more");
        };
        let until = self.now() + ANSWER_NANOS;
        loop {
            while wire.outstanding() == 0 {
                let mut prober = self.probers[core].clone();
                prober.send(&mut wire, &mut self.context(core).0, topic, Some(0), 0);
                self.probers[core] = prober;
            }
            let Some((asked, answer)) = self.answer(core, &mut wire) else { break };
            let Asked::Send(sending) = asked else { unreachable!("probers only send") };
            on_send_answer(sending, &answer, &mut self.context(core).0);
            if answer.code == ResponseCode::SUCCESS.0 {
                self.coverage.probes += 1;
                break;
            }
            if self.cores[core].trouble.log_failed {
                break;
            }
            if self.now() > until {
                let remark = answer.remark.unwrap_or_default();
                self.checker.report(Anomaly::Stuck, format!("a send is still refused: {remark}"));
                break;
            }
        }
    }

    /// The next answer that comes for somebody who is no client of this world.
    fn answer(&mut self, core: usize, wire: &mut Wire<Asked>) -> Option<(Asked, RemotingCommand)> {
        let until = self.now() + ANSWER_NANOS;
        while self.now() < until {
            wire.flush();
            self.step(until);
            let now = self.cores[core].now();
            if let Some(answered) = wire.pump(now, &mut self.checker).pop() {
                return Some(answered);
            }
        }
        self.checker.report(Anomaly::Unanswered, "the auditor or prober got no answer");
        None
    }

    /// Asks the broker to end.
    fn stop(&mut self) {
        self.say(0, || "stop".to_owned());
        self.coverage.stops += 1;
        let start = self.now();
        for core in &mut self.cores {
            core.trouble.is_stopping = true;
            core.broker().housekeeping.stop();
        }
        let until = start + STOP_NANOS;
        while self.step(until) {
            if self.now() >= until {
                return self.checker.report(Anomaly::Stuck, "the broker does not stop");
            }
        }
        for core in &mut self.cores {
            core.is_flushed = !core.trouble.log_failed && core.now() < start + STOP_PATIENCE_NANOS;
        }
    }

    /// Cuts the power, and lets some time go by.
    fn crash(&mut self) {
        let now = self.cores.iter().map(Core::now).max().expect("there is one");
        for core in &mut self.cores {
            let own_now = core.now();
            core.broker = None;
            let is_async = self.is_async && !core.is_flushed;
            let (may_lose_from, told) = core.watch.borrow_mut().ledger.on_crash(is_async, own_now);
            core.may_lose_from = may_lose_from;
            told.unwrap_or_else(|text| self.checker.report(Anomaly::Unreported, text));
        }
        let report = self.disk.crash(self.random.next_u64());
        self.coverage.crashes += 1;
        self.coverage.add_sectors(report);
        let down = self.random.below(3 * SECOND);
        for core in &mut self.cores {
            let watch = &mut *core.watch.borrow_mut();
            watch.base = now + down;
            let told = watch.indexes.on_crash(now);
            told.unwrap_or_else(|text| self.checker.report(Anomaly::Unreported, text));
        }
        if self.plan.harms_indexes {
            for core in 0..self.cores.len() {
                if self.random.chance(30) {
                    self.harm_index(core);
                }
            }
        }
        self.say(0, || format!("crash: {report:?}"));
        for client in &mut self.clients {
            let wait = self.random.below(20 * MILLI);
            client.lose(now + down + wait);
        }
        for topic in self.topics.iter_mut().filter(|topic| topic.state == TopicState::Deleting) {
            topic.state = TopicState::Unknown;
        }
    }
}
