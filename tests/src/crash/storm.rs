//! A rebalance storm: consumers of one group come, leave and crash at random while messages flow.
//!
//!   start all ─▶ change, change, change … ─▶ all are there again ─▶ settled? ─▶ load ends ─▶ all consumed? ─▶ check
//!
//! A change is the start of a consumer process, its leaving in order, or its kill -9. Two in three that go are killed.
//! What must hold of the deliveries is in `deliveries`; besides, after the last change each queue must have exactly one owner
//! within a rebalance period, or, of queues that are locked, within the time that the lock of a dead consumer lives.

use super::Failure;
use super::deliveries::{Nanos, Queue};
use super::member::{Ledger, Member, Membership, lock, now, shard_of};
use super::process::{Process, Spec};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use ringmq_client::{Admin, Client, Message, TopicSettings};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

const TOPIC: &str = "Storm";
const GROUP: &str = "StormGroup";
const SHARDS: u16 = 2;
/// Queues of the topic on each shard.
const QUEUES: u32 = 16;
/// Pauses between changes.
const PAUSE_MS: std::ops::Range<u64> = 100..2500;
/// What a rebalance that nobody asked for waits for.
const REBALANCE: Duration = Duration::from_secs(5);
/// What a busy machine may take beyond a period.
const GRACE: Duration = Duration::from_secs(5);
/// How long the lock of a dead consumer lives.
const LOCK: Duration = Duration::from_secs(60);
/// How often the group's offsets are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// What was committed so long before is not given again.
const WINDOW: Duration = REBALANCE.saturating_mul(2);
/// How long it may take to consume what was sent, after the group has settled.
const DRAIN: Duration = Duration::from_secs(120);
/// Senders, each of which waits for its answers.
const SENDERS: u32 = 4;

/// What a storm is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    pub broker: PathBuf,
    pub data: PathBuf,
    pub lasts: Duration,
    pub consumers: usize,
    pub seed: u64,
    /// Messages a second.
    pub rate: u32,
    pub orderly: bool,
    pub verbose: bool,
}

/// What it came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub acknowledged: usize,
    pub delivered: usize,
    /// Deliveries beyond the first of each message; and those of them after a crash.
    pub repeats: usize,
    pub repeats_after_crashes: usize,
    /// Messages that were delivered and not committed when their consumer was about to be killed.
    pub in_flight_at_crashes: usize,
    /// Times that a committed offset went back, as a consumer gave up a queue late.
    pub went_back: usize,
    pub started: usize,
    pub left: usize,
    pub crashed: usize,
    pub settled_in: Duration,
    pub queues: usize,
    /// What must not be.
    pub wrong: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} starts, {} leaves and {} crashes of consumers; {} messages acknowledged, {} deliveries; {} delivered again, {} of them after crashes, when {} were in flight; committed offsets went back {} times; {} queues settled {} ms after the last change; {} things wrong",
            self.started,
            self.left,
            self.crashed,
            self.acknowledged,
            self.delivered,
            self.repeats,
            self.repeats_after_crashes,
            self.in_flight_at_crashes,
            self.went_back,
            self.queues,
            self.settled_in.as_millis(),
            self.wrong.len(),
        )
    }
}

type Sent = Arc<Mutex<Vec<(Queue, u64)>>>;

/// Runs a storm to its end, or to that which `stop` asks for.
pub fn run(settings: &Settings, stop: &AtomicBool) -> Result<Outcome, Failure> {
    let spec = Spec::new(settings.broker.clone(), settings.data.clone(), SHARDS, "64MiB".to_owned(), "sync");
    let mut process = Process::spawn(&spec)?;
    process.wait_ready()?;
    let namesrv = format!("127.0.0.1:{}", spec.name_server_port);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let client = runtime.block_on(Client::new(&*namesrv))?;
    let topic = TopicSettings { queues: QUEUES, readable: true, writable: true, attributes: BTreeMap::new() };
    runtime.block_on(client.admin().create_topic(TOPIC, topic, None))?;

    let is_over = Arc::new(AtomicBool::new(false));
    let sent = Sent::default();
    let load = runtime.block_on(start_load(&client, settings.rate, &sent, &is_over))?;
    let membership = Membership {
        namesrv,
        group: GROUP.to_owned(),
        topic: TOPIC.to_owned(),
        rebalance_ms: REBALANCE.as_millis() as u64,
        orderly: settings.orderly,
    };
    let ports = spec.addresses().iter().map(std::net::SocketAddr::port).collect();
    let mut storm = Storm {
        settings,
        membership,
        ports,
        ledger: Ledger::default(),
        runtime: &runtime,
        admin: client.admin(),
        members: Vec::new(),
        outcome: Outcome::default(),
    };
    storm.blow(stop)?;
    storm.settle()?;
    is_over.store(true, Ordering::Relaxed);
    for sender in load {
        runtime.block_on(sender)??;
    }
    let sent = std::mem::take(&mut *sent.lock().unwrap_or_else(PoisonError::into_inner));
    let outcome = storm.end(&sent)?;
    runtime.block_on(client.shutdown());
    if process.has_ended() {
        return Err(Failure(format!("the broker ended by itself\n{}", process.said())));
    }
    Ok(outcome)
}

/// Senders that go on until it is over.
async fn start_load(
    client: &Client,
    rate: u32,
    sent: &Sent,
    is_over: &Arc<AtomicBool>,
) -> Result<Vec<JoinHandle<Result<(), Failure>>>, Failure> {
    let producer = Arc::new(client.producer("StormProducers").retries(0).build()?);
    let pause = Duration::from_secs(1) * SENDERS / rate.max(1);
    let sender = |number: u32| {
        let (producer, sent, is_over) = (Arc::clone(&producer), Arc::clone(sent), Arc::clone(is_over));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(pause);
            for sequence in 0u64.. {
                ticks.tick().await;
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let answer = producer.send(Message::new(TOPIC, format!("{number}.{sequence}"))).await?;
                let broker = &answer.queue.broker_name;
                let unknown = || Failure(format!("a broker named {broker}"));
                let queue = Queue {
                    shard: shard_of(broker).ok_or_else(unknown)?,
                    queue: answer.queue.queue_id.try_into()?,
                };
                sent.lock().unwrap_or_else(PoisonError::into_inner).push((queue, answer.queue_offset.0));
            }
            Ok(())
        })
    };
    Ok((0..SENDERS).map(sender).collect())
}

struct Storm<'a> {
    settings: &'a Settings,
    membership: Membership,
    ports: Vec<u16>,
    ledger: Ledger,
    runtime: &'a Runtime,
    admin: Admin,
    members: Vec<Member>,
    outcome: Outcome,
}

impl Storm<'_> {
    fn blow(&mut self, stop: &AtomicBool) -> Result<(), Failure> {
        let mut rng = StdRng::seed_from_u64(self.settings.seed);
        let until = Instant::now() + self.settings.lasts;
        while self.members.len() < self.settings.consumers {
            self.start()?;
        }
        let mut next = Instant::now();
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            self.look()?;
            if Instant::now() < next {
                thread::sleep(LOOK);
                continue;
            }
            next = Instant::now() + Duration::from_millis(rng.random_range(PAUSE_MS));
            // As many come as go, around three quarters of all.
            let share = self.members.len() as f64 / self.settings.consumers as f64;
            if self.members.len() < 2 || share < 1.0 && rng.random_bool(1.0 - share / 1.5) {
                self.start()?;
                continue;
            }
            let at = (0..self.members.len()).choose(&mut rng).unwrap_or_default();
            let member = self.members.swap_remove(at);
            if rng.random_ratio(2, 3) {
                self.crash(member)?;
            } else {
                self.outcome.left += 1;
                self.say(format_args!("consumer {} leaves", member.number));
                member.leave()?;
            }
        }
        // The last changes are a crash and a start, at least.
        if let Some(member) = self.members.pop() {
            self.crash(member)?;
        }
        while self.members.len() < self.settings.consumers {
            self.start()?;
        }
        Ok(())
    }

    fn say(&self, what: fmt::Arguments<'_>) {
        if self.settings.verbose {
            eprintln!("{what}");
        }
    }

    fn start(&mut self) -> Result<(), Failure> {
        self.outcome.started += 1;
        let number = self.outcome.started as u32;
        self.say(format_args!("consumer {number} starts"));
        self.members.push(Member::start(number, &self.membership, &self.ports, &self.ledger)?);
        Ok(())
    }

    fn crash(&mut self, member: Member) -> Result<(), Failure> {
        let number = member.number;
        // Before: whoever has its queues next commits at once.
        self.look()?;
        member.kill()?;
        let in_flight = lock(&self.ledger).deliveries.in_flight(number);
        self.outcome.crashed += 1;
        self.outcome.in_flight_at_crashes += in_flight;
        self.say(format_args!("consumer {number} crashed with {in_flight} messages in flight"));
        Ok(())
    }

    /// Takes down what the group has committed.
    fn look(&self) -> Result<(), Failure> {
        let asked = now();
        let offsets = self.runtime.block_on(self.admin.group_offsets(GROUP, TOPIC))?;
        let mut told = lock(&self.ledger);
        for offset in offsets {
            if let Some(shard) = shard_of(&offset.queue.broker_name) {
                let queue = Queue { shard, queue: offset.queue.queue_id.try_into()? };
                told.deliveries.committed(asked, queue, offset.committed.map_or(0, |committed| committed.0));
            }
        }
        Ok(())
    }

    /// Waits until each queue has one owner, and each consumer its share.
    fn settle(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        let allowed = REBALANCE + GRACE + if self.settings.orderly { LOCK } else { Duration::ZERO };
        let all: BTreeSet<Queue> =
            (0..SHARDS).flat_map(|shard| (0..QUEUES).map(move |queue| Queue { shard, queue })).collect();
        self.outcome.queues = all.len();
        let least = all.len() / self.members.len();
        loop {
            let owned: Vec<BTreeSet<Queue>> = lock(&self.ledger).owned.values().cloned().collect();
            let covered: BTreeSet<Queue> = owned.iter().flatten().copied().collect();
            let owners = owned.iter().map(BTreeSet::len).sum::<usize>();
            let is_fair = owned.iter().all(|queues| (least..=least + 1).contains(&queues.len()));
            self.outcome.settled_in = begun.elapsed();
            if covered == all && owners == all.len() && is_fair {
                return Ok(());
            }
            if begun.elapsed() > allowed {
                let nobodys: Vec<_> = all.difference(&covered).map(ToString::to_string).collect();
                let shares: Vec<_> = owned.iter().map(BTreeSet::len).collect();
                self.outcome.wrong.push(format!(
                    "not settled {} s after the last change: shares {shares:?} of {} queues, nobody has {nobodys:?}",
                    allowed.as_secs(),
                    all.len(),
                ));
                return Ok(());
            }
            self.look()?;
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until everything was consumed, ends the consumers and checks.
    fn end(mut self, sent: &[(Queue, u64)]) -> Result<Outcome, Failure> {
        let begun = Instant::now();
        while !lock(&self.ledger).deliveries.unhandled(sent).is_empty() && begun.elapsed() < DRAIN {
            self.look()?;
            thread::sleep(LOOK);
        }
        for member in self.members.drain(..) {
            member.leave()?;
        }
        let told = lock(&self.ledger);
        let deliveries = &told.deliveries;
        let mut wrong = std::mem::take(&mut self.outcome.wrong);
        let strange = told.strange.iter().map(|line| format!("a consumer said what makes no sense: {line}"));
        wrong.extend(strange);
        let unhandled = deliveries.unhandled(sent);
        wrong.extend(unhandled.iter().map(|(queue, offset)| format!("{queue}: {offset} was never handled")));
        wrong.extend(deliveries.beyond_commits(WINDOW.as_nanos() as Nanos));
        if self.settings.orderly {
            wrong.extend(deliveries.disorder());
        }
        let (repeats, repeats_after_crashes) = deliveries.repeats();
        Ok(Outcome {
            acknowledged: sent.len(),
            delivered: deliveries.all().len(),
            repeats,
            repeats_after_crashes,
            went_back: deliveries.went_back(),
            wrong,
            ..self.outcome
        })
    }
}
