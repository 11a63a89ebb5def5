//! What shards must not wait for: name servers, zeroing of segments, lines for the operator. Plain tokio, one thread.
//!
//!   shard ──FromShard──▶ channel ─▶ run ─▶ zeroing (blocking pool), registration (one task a name server), log
//!   shard ◀──ToShard─── channel ◀── results, with a wake-up through the shard's ring
//!
//! K1  Nothing here is on the path of a message. If this thread is late, space ahead of the log runs short and routes
//!     get old; no acknowledged message is in danger.
//! K2  A shard's channel is bounded on both sides, and neither side ever waits for the other.

mod registration;
mod rewrite;
mod scrub;
mod segments;

use crate::driver::{FromShard, ToShard};
use crate::shard::News;
use crossbeam::channel::{Receiver, Sender, TryRecvError};
use registration::Registrar;
pub use rewrite::{Look, Outlived};
use ringmq_protocol::body::TopicConfig;
use ringmq_ring::Waker;
use ringmq_storage::{IndexHeader, LogConfig};
use scrub::scrub;
use segments::{Job, keep};
pub use segments::{Retention, Tenure, is_short_with};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;

/// How long what needs room on the disk rests after the disk refused it.
const RETRY: Duration = Duration::from_secs(1);
/// How long a stopping broker waits for its shards.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A running shard, as seen from here.
pub struct ShardLink {
    pub broker_name: String,
    pub address: SocketAddr,
    pub directory: PathBuf,
    pub log: LogConfig,
    pub retention: Retention,
    /// How fast sealed segments are read to see whether they are still right; 0: not at all.
    pub scrub_bytes_per_s: u64,
    /// How fast segments are rewritten without messages whose own time is over, read and written bytes; 0: not at all.
    pub rewrite_bytes_per_s: u64,
    /// Segments that are sealed at the start.
    pub sealed: Vec<IndexHeader>,
    pub topics: Vec<TopicConfig>,
    pub inbox: Receiver<FromShard>,
    pub outbox: Sender<ToShard>,
    pub waker: Waker,
}

impl ShardLink {
    fn tell(&self, message: ToShard) {
        // The channel has room for all that can be on its way; a shard that has ended needs no news.
        let _ = self.outbox.try_send(message);
        self.waker.wake();
    }
}

/// Why the broker stops by itself.
#[derive(Debug, thiserror::Error)]
#[error("shard {0} has ended: see its last line above")]
pub struct ShardEnded(String);

impl ShardEnded {
    pub fn new(shard: &str) -> Self {
        ShardEnded(shard.to_owned())
    }
}

/// Serves the shards until `stop` is ready or one of them ends. `ready` is called once the name servers were told of
/// every shard, with the name servers that could not be reached.
pub async fn run(
    shards: Vec<ShardLink>,
    name_servers: Vec<String>,
    cluster_name: String,
    notify: Arc<Notify>,
    ready: impl FnOnce(&[String]),
    stop: impl Future<Output = ()>,
) -> Result<(), ShardEnded> {
    let shards: Rc<[ShardLink]> = shards.into();
    let tasks = LocalSet::new();
    tasks
        .run_until(async {
            let registrar = Registrar::start(&shards, name_servers, cluster_name);
            // Segments are prepared while the first registration is under way: a shard may wait for them.
            let mut serving = Box::pin(serve(&shards, &registrar, &notify));
            tokio::pin!(stop);
            tokio::select! {
                unreachable = registrar.first_round() => ready(&unreachable),
                ended = &mut serving => return Err(ended),
            }
            tokio::select! {
                () = &mut stop => {}
                ended = &mut serving => return Err(ended),
            }
            // It waits to be notified as well, and would take from `all_ended` what tells that a shard has ended.
            drop(serving);
            registrar.unregister().await;
            for shard in shards.iter() {
                shard.tell(ToShard::Stop);
            }
            // All shards end, one after the other; whichever takes too long is left to the end of the process.
            let _ = tokio::time::timeout(STOP_PATIENCE, all_ended(&shards, &notify)).await;
            Ok(())
        })
        .await
}

async fn serve(shards: &Rc<[ShardLink]>, registrar: &Registrar, notify: &Notify) -> ShardEnded {
    let start_keeper = |index| {
        // No bound is needed: a shard has only so many full segments.
        let (jobs, to_do) = mpsc::unbounded_channel();
        tokio::task::spawn_local(keep(shards.clone(), index, jobs.downgrade(), to_do));
        if shards[index].scrub_bytes_per_s > 0 {
            tokio::task::spawn_local(scrub(shards.clone(), index, jobs.clone()));
        }
        jobs
    };
    let keepers: Vec<mpsc::UnboundedSender<Job>> = (0..shards.len()).map(start_keeper).collect();
    loop {
        for (index, shard) in shards.iter().enumerate() {
            loop {
                match shard.inbox.try_recv() {
                    Ok(FromShard::Prepare(prepare)) => {
                        let shards = shards.clone();
                        tokio::task::spawn_local(prepare_segment(shards, index, prepare));
                    }
                    Ok(FromShard::News(news)) => {
                        // The keeper lives as long as this loop.
                        let give = |job| drop(keepers[index].send(job));
                        match news {
                            News::Log { error, line } => log(error, &line),
                            News::TopicChanged { config, ticket } => {
                                give(Job::Topic(config.clone()));
                                registrar.topic_changed(index, config, ticket);
                            }
                            News::RouteWanted { topic, ticket } => registrar.find_route(index, topic, ticket),
                            News::TopicDeleted { topic } => {
                                registrar.topic_deleted(index, &topic);
                                give(Job::TopicDeleted(topic));
                            }
                            News::GivenUp { segment, topics } => give(Job::GivenUp { segment, topics }),
                            News::Seal(segment) => give(Job::Seal(segment)),
                            News::Rebuild { segment, replay_from } => {
                                give(Job::Rebuild { segment, replay_from })
                            }
                            News::Released(segment) => give(Job::Released(segment)),
                            News::Kept { segment, reason } => give(Job::Kept { segment, reason }),
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return ShardEnded(shard.broker_name.clone()),
                }
            }
        }
        notify.notified().await;
    }
}

async fn all_ended(shards: &[ShardLink], notify: &Notify) {
    for shard in shards {
        loop {
            match shard.inbox.try_recv() {
                Ok(FromShard::News(News::Log { error, line })) => log(error, &line),
                Ok(_) => {}
                Err(TryRecvError::Empty) => notify.notified().await,
                Err(TryRecvError::Disconnected) => break,
            }
        }
    }
}

async fn prepare_segment(shards: Rc<[ShardLink]>, index: usize, prepare: ringmq_storage::Prepare) {
    let shard = &shards[index];
    let (directory, segment_bytes) = (shard.directory.clone(), shard.log.segment_bytes);
    let done =
        tokio::task::spawn_blocking(move || ringmq_storage::prepare(&directory, prepare, segment_bytes))
            .await;
    let result =
        done.map_err(|error| error.to_string()).and_then(|result| result.map_err(|error| error.to_string()));
    match result {
        Ok(to) => shard.tell(ToShard::Prepared { segment: prepare.segment, to }),
        Err(reason) => {
            log(
                true,
                &format!("{}: no room for more of the log, will try again: {reason}", shard.broker_name),
            );
            shard.tell(ToShard::PrepareFailed { reason });
            tokio::time::sleep(RETRY).await;
            shard.tell(ToShard::PrepareAgain);
        }
    }
}

fn log(error: bool, line: &str) {
    if error {
        tracing::error!("{line}");
    } else {
        tracing::info!("{line}");
    }
}
