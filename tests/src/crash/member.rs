//! A consumer in a process of its own, so that it can crash; and the side of the one who starts it.
//!
//! It tells of itself on standard output, a line an event, each written before the next thing happens:
//!
//! ```text
//! own SHARD_PORT/QUEUE,…          the queues it has now
//! begin NANOS PORT QUEUE OFFSET   a handler was given a message
//! end NANOS PORT QUEUE OFFSET     and came to its end
//! ```
//!
//! It leaves in order when its standard input ends, as it does when whoever started it is gone.

use super::Failure;
use super::deliveries::{Deliveries, Nanos, Queue};
use ringmq_client::{Client, ConsumeFrom, ConsumeResult, MessageExt, OrderlyResult, PushConsumer};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;

/// How often a consumer stores its offsets.
pub const PERSIST: Duration = Duration::from_secs(1);
/// Handlers take up to this long.
const WORK_MAX: Duration = Duration::from_millis(8);
/// How often a consumer looks which queues it has.
const LOOK: Duration = Duration::from_millis(20);

/// What a consumer is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Membership {
    #[arg(long)]
    pub namesrv: String,
    #[arg(long)]
    pub group: String,
    #[arg(long)]
    pub topic: String,
    /// Milliseconds between rebalances that nobody asked for
    #[arg(long)]
    pub rebalance_ms: u64,
    #[arg(long)]
    pub orderly: bool,
}

impl Membership {
    /// Joins the group, and tells of each message by `tell(is_end, message)`.
    pub async fn join(
        &self,
        client: &Client,
        tell: impl Fn(bool, &MessageExt) + Send + Sync + 'static,
    ) -> Result<PushConsumer, Failure> {
        let builder = client.push_consumer(&self.group).subscribe(&self.topic, "*");
        let builder = builder.consume_from(ConsumeFrom::FirstOffset).persist_interval(PERSIST);
        let builder = builder.rebalance_interval(Duration::from_millis(self.rebalance_ms));
        let tell = Arc::new(tell);
        let work = move |message: MessageExt| {
            let tell = Arc::clone(&tell);
            async move {
                tell(false, &message);
                // The work that a handler is there for.
                tokio::time::sleep(WORK_MAX.mul_f64(rand::random())).await;
                tell(true, &message);
            }
        };
        let consumer = if self.orderly {
            builder
                .start_orderly(move |message| {
                    let done = work(message);
                    async move {
                        done.await;
                        OrderlyResult::Success
                    }
                })
                .await?
        } else {
            builder
                .start(move |message| {
                    let done = work(message);
                    async move {
                        done.await;
                        ConsumeResult::Success
                    }
                })
                .await?
        };
        Ok(consumer)
    }

    /// The whole life of such a process.
    pub fn live(&self) -> Result<(), Failure> {
        let (ended, mut end) = oneshot::channel();
        thread::spawn(move || {
            // Nothing is ever written to it; it ends, one way or the other.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = ended.send(());
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = Client::new(&*self.namesrv).await?;
            let consumer = self
                .join(&client, |is_end, message| {
                    let what = if is_end { "end" } else { "begin" };
                    let (port, queue, offset) =
                        (message.store_host.port(), message.queue_id, message.queue_offset);
                    println!("{what} {} {port} {queue} {offset}", now());
                })
                .await?;
            let mut told = None;
            loop {
                let mut queues = consumer.assignment();
                queues.retain(|queue| queue.topic == self.topic);
                let names: Vec<_> =
                    queues.iter().map(|queue| format!("{}/{}", queue.broker_name, queue.queue_id)).collect();
                if told.as_ref() != Some(&names) {
                    println!("own {}", names.join(","));
                    told = Some(names);
                }
                tokio::select! {
                    _ = &mut end => break,
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
            consumer.shutdown().await;
            client.shutdown().await;
            Ok(())
        })
    }
}

pub fn now() -> Nanos {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as Nanos)
}

/// What all consumers of a run have told.
#[derive(Debug, Default)]
pub struct Told {
    pub deliveries: Deliveries,
    /// The queues that each living consumer has.
    pub owned: BTreeMap<u32, BTreeSet<Queue>>,
    /// Lines that make no sense.
    pub strange: Vec<String>,
}

pub type Ledger = Arc<Mutex<Told>>;

pub fn lock(ledger: &Ledger) -> std::sync::MutexGuard<'_, Told> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A consumer process; dropping it kills it.
pub struct Member {
    pub number: u32,
    child: Child,
    stdin: Option<ChildStdin>,
    reader: Option<JoinHandle<()>>,
    ledger: Ledger,
}

impl Member {
    /// Starts this very program as a consumer. `ports` are those of the shards, in their order.
    pub fn start(
        number: u32,
        membership: &Membership,
        ports: &[u16],
        ledger: &Ledger,
    ) -> Result<Self, Failure> {
        let Membership { namesrv, group, topic, rebalance_ms, orderly } = membership;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["consumer", "--namesrv", namesrv, "--group", group, "--topic", topic]);
        command.args(["--rebalance-ms", &rebalance_ms.to_string()]).args(orderly.then_some("--orderly"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let missing = || Failure("a pipe is missing".to_owned());
        let (stdout, ports, shared) = (stdout.ok_or_else(missing)?, ports.to_vec(), Arc::clone(ledger));
        lock(ledger).owned.insert(number, BTreeSet::new());
        let reader = thread::spawn(move || read(number, stdout, &ports, &shared));
        Ok(Self { number, child, stdin, reader: Some(reader), ledger: Arc::clone(ledger) })
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) -> Result<(), Failure> {
        self.end(true)
    }

    /// Lets it leave its group in order.
    pub fn leave(mut self) -> Result<(), Failure> {
        self.end(false)
    }

    fn end(&mut self, by_force: bool) -> Result<(), Failure> {
        if by_force {
            self.child.kill()?;
        }
        drop(self.stdin.take());
        let status = self.child.wait()?;
        let died = now();
        if let Some(reader) = self.reader.take() {
            reader.join().map_err(|_| Failure("the reader of a consumer panicked".to_owned()))?;
        }
        let mut told = lock(&self.ledger);
        told.owned.remove(&self.number);
        told.deliveries.died(died, self.number);
        if by_force || status.success() {
            Ok(())
        } else {
            Err(Failure(format!("consumer {} ended with {status}", self.number)))
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.reader.is_some() {
            // Whatever went wrong was said before.
            let _ = self.end(true);
        }
    }
}

fn read(number: u32, from: impl Read, ports: &[u16], ledger: &Ledger) {
    for line in BufReader::new(from).lines() {
        let Ok(line) = line else { return };
        let mut told = lock(ledger);
        if told.note(number, &line, ports).is_none() {
            told.strange.push(format!("consumer {number}: {line}"));
        }
    }
}

impl Told {
    /// Takes down a line; `None` if it is none.
    fn note(&mut self, number: u32, line: &str, ports: &[u16]) -> Option<()> {
        let (what, rest) = line.split_once(' ')?;
        if what == "own" {
            let names = rest.split(',').filter(|name| !name.is_empty());
            let queue = |name: &str| {
                let (broker, queue) = name.split_once('/')?;
                Some(Queue { shard: shard_of(broker)?, queue: queue.parse().ok()? })
            };
            let queues: Option<BTreeSet<Queue>> = names.map(queue).collect();
            self.owned.insert(number, queues?);
            return Some(());
        }
        let numbers: Result<Vec<u64>, _> = rest.split(' ').map(str::parse).collect();
        let [at, port, queue, offset] = numbers.ok()?[..] else { return None };
        let shard = ports.iter().position(|own| u64::from(*own) == port)?;
        let queue = Queue { shard: u16::try_from(shard).ok()?, queue: u32::try_from(queue).ok()? };
        match what {
            "begin" => self.deliveries.begun(at, number, queue, offset),
            "end" => return self.deliveries.ended(at, number, queue, offset).then_some(()),
            _ => return None,
        }
        Some(())
    }
}

/// The number at the end of a broker's name is that of its shard.
pub fn shard_of(broker: &str) -> Option<u16> {
    broker.rsplit_once('-')?.1.parse().ok()
}
