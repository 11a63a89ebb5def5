//! A broker process: opens the data directory, starts a thread for each shard, embeds a name server if none is named,
//! says where everything is, and keeps house until it is told to stop.

use crate::config::{Config, ConfigError, Flush, NameServers};
use crate::driver::{Backstage, Driver, FromShard, LogFiles, ToShard};
use crate::housekeeping::{self, Retention, ShardEnded, ShardLink};
use crate::namesrv::{self, BIND_PATIENCE};
use crate::shard::{DelayTable, FlushDiskType, Shard, ShardConfig, limits};
use crossbeam::channel::{Receiver, Sender, bounded};
use ringmq_net::Limits;
use ringmq_protocol::body::TopicConfig;
use ringmq_ring::{Access, Config as RingConfig, Listener, OpenMode, Ring, SetupError, Uring, Waker};
use ringmq_storage::{
    DataDir, FsStore, IndexHeader, LogConfig, NewDataDir, OpenError, RecoverError, RecoveryReport, Wanted,
};
use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot};

/// Ports of neighbouring shards are this far apart: RocketMQ clients may dial two below or one above a broker's port.
const PORT_STEP: u16 = 10;
/// Below the main port; where clients with RocketMQ's VIP channel send.
const VIP_PORT_OFFSET: u16 = 2;
/// Messages between a shard and the housekeeping thread that may wait.
const CHANNEL_MESSAGES_MAX: usize = 4096;

/// Why a broker does not start, or stops by itself; one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    DataDir(#[from] OpenError),
    #[error(transparent)]
    Ring(#[from] SetupError),
    #[error("{0}")]
    LogSize(String),
    #[error("cannot listen on {address}: {source}; {}", advice(.source))]
    Listen { address: SocketAddr, source: io::Error },
    #[error("shard {shard} needs port {port}, which is too high: choose a lower port for --listen")]
    Port { shard: u16, port: u32 },
    #[error("the log of shard {shard} cannot be read: {source}; nothing was changed")]
    Recover { shard: u16, source: RecoverError },
    #[error("name server: {0}")]
    NameServer(io::Error),
    #[error(transparent)]
    ShardEnded(#[from] ShardEnded),
    #[error("a thread cannot be started: {0}")]
    Thread(io::Error),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "stop the process that uses the port, or choose another one with --listen"
        }
        io::ErrorKind::AddrNotAvailable => {
            "it is no address of this machine: choose another one with --listen"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need a privilege: choose a higher one with --listen"
        }
        _ => "choose another address with --listen",
    }
}

/// What a shard's thread needs.
struct ShardPlan {
    index: u16,
    core: usize,
    listen: SocketAddr,
    advertise: IpAddr,
    broker_name: String,
    cluster_name: String,
    flush: FlushDiskType,
    auto_create_topics: bool,
    delays: DelayTable,
    key_salt: u32,
    log: LogConfig,
    directory: PathBuf,
    /// A file of the data directory that exists.
    metadata_path: PathBuf,
    store: FsStore,
    lock: File,
    spin: Duration,
    inbox: Receiver<ToShard>,
    outbox: Sender<FromShard>,
    notify: Arc<Notify>,
}

/// What it tells once it serves.
struct ShardReady {
    listen: SocketAddr,
    address: SocketAddr,
    topics: Vec<TopicConfig>,
    waker: Waker,
    report: RecoveryReport,
    notes: Vec<String>,
    problems: Vec<String>,
    log: LogConfig,
    sealed: Vec<IndexHeader>,
    recovery: Duration,
    direct: bool,
}

/// Runs a broker until SIGINT or SIGTERM.
pub fn run(config: Config) -> Result<(), BrokerError> {
    let started = Instant::now();
    let cores = ringmq_ring::available_cores().map_err(BrokerError::Thread)?;
    let new = NewDataDir {
        shards: u16::try_from(cores.len()).unwrap_or(u16::MAX),
        segment_bytes: LogConfig::default().segment_bytes,
        log_id: random(),
    };
    let wanted = Wanted { shards: config.shards, segment_bytes: config.segment_bytes };
    let data = DataDir::open(&config.data, new, wanted)?;
    let notify = Arc::new(Notify::new());

    let (mut links, mut ready, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..data.shards() {
        let (to_shard, inbox) = bounded(CHANNEL_MESSAGES_MAX);
        let (outbox, from_shard) = bounded(CHANNEL_MESSAGES_MAX);
        let plan = ShardPlan {
            index,
            core: cores[usize::from(index) % cores.len()],
            listen: shard_address(config.listen, index)?,
            advertise: config.advertise,
            broker_name: format!("{}-{index}", config.name),
            cluster_name: config.cluster.clone(),
            flush: match config.flush {
                Flush::Sync => FlushDiskType::Sync,
                Flush::Async => FlushDiskType::Async,
            },
            auto_create_topics: config.auto_create_topics,
            delays: config.delays.clone(),
            key_salt: random(),
            log: log_config(&config, &data, index)?,
            directory: data.shard_dir(index),
            metadata_path: data.metadata_path(),
            store: data.store(index),
            lock: data.lock_file().try_clone().map_err(BrokerError::Thread)?,
            spin: config.spin,
            inbox,
            outbox,
            notify: notify.clone(),
        };
        links.push((plan.broker_name.clone(), plan.directory.clone(), from_shard, to_shard));
        let (told, tell) = oneshot::channel();
        threads.push(spawn(format!("shard-{index}"), move || shard_thread(plan, told))?);
        ready.push(tell);
    }
    let name_service = match &config.name_servers {
        NameServers::Embedded(listen) => embed_name_server(*listen)
            .map(|(name_server, address)| (Some(name_server), vec![address.to_string()])),
        NameServers::Elsewhere(list) => Ok((None, list.clone())),
    };

    let mut shards = Vec::new();
    for tell in ready {
        // A thread that ends without a word has panicked, and said so.
        shards.push(tell.blocking_recv().map_err(|_| ShardEnded::new("(one that did not start)"))??);
    }
    // Only now: what is wrong with the kernel stops both, and a shard explains it better.
    let (name_server, name_servers) = name_service?;
    let banner =
        Banner { config: &config, shards: &shards, name_servers: &name_servers, started }.to_string();
    report_recovery(&shards);
    let links =
        links.into_iter().zip(&shards).map(|((broker_name, directory, inbox, outbox), ready)| ShardLink {
            broker_name,
            address: ready.address,
            directory,
            log: ready.log.clone(),
            retention: Retention {
                bytes: config.retention.bytes.map(|bytes| bytes / u64::from(data.shards())),
                ..config.retention
            },
            scrub_bytes_per_s: config.scrub_bytes_per_s,
            rewrite_bytes_per_s: config.rewrite_bytes_per_s,
            sealed: ready.sealed.clone(),
            topics: ready.topics.clone(),
            inbox,
            outbox,
            waker: ready.waker.clone(),
        });
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BrokerError::Thread)?;
    let say_ready = |unreachable: &[String]| {
        for address in unreachable {
            tracing::warn!(
                "name server {address} does not answer: clients that ask it cannot find this broker yet"
            );
        }
        // Nobody may be reading, which is no reason not to serve.
        let _ = io::stdout().write_all(banner.as_bytes()).and_then(|()| io::stdout().flush());
    };
    let served = runtime.block_on(housekeeping::run(
        links.collect(),
        name_servers.clone(),
        config.cluster.clone(),
        notify,
        say_ready,
        stop_signal(),
    ));
    served?;
    for thread in threads {
        let _ = thread.join();
    }
    if let Some(name_server) = name_server {
        name_server.stop();
    }
    Ok(())
}

fn shard_address(first: SocketAddr, index: u16) -> Result<SocketAddr, BrokerError> {
    if first.port() == 0 {
        return Ok(first);
    }
    let port = u32::from(first.port()) + u32::from(PORT_STEP) * u32::from(index);
    let port = u16::try_from(port).map_err(|_| BrokerError::Port { shard: index, port })?;
    Ok(SocketAddr::new(first.ip(), port))
}

fn log_config(config: &Config, data: &DataDir, shard: u16) -> Result<LogConfig, BrokerError> {
    let base = LogConfig::default();
    let log = LogConfig {
        shard,
        log_id: data.log_id(),
        segment_bytes: data.segment_bytes(),
        record_bytes_max: limits::RECORD_BYTES_MAX as u32,
        tail_bytes: config.tail_bytes,
        tail_bytes_hard_max: config.tail_bytes.saturating_mul(2),
        staged_bytes_max: config.tail_bytes / 2,
        pad_blocks: config.pad_blocks,
        // Not many segments ahead where they are small.
        prepare_ahead_bytes: base.prepare_ahead_bytes.min(data.segment_bytes()),
        ..base
    };
    log.validate()
        .map_err(|problem| BrokerError::LogSize(format!("the sizes do not fit together: {problem}")))?;
    Ok(log)
}

/// Wakes the housekeeping thread when a shard's thread ends, in whichever way: by then its channel is closed.
struct TellEnd(Arc<Notify>);

impl Drop for TellEnd {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// The life of a shard's thread. What stops it before it serves is told through `told`.
fn shard_thread(plan: ShardPlan, told: oneshot::Sender<Result<ShardReady, BrokerError>>) {
    let name = plan.broker_name.clone();
    let _ended = TellEnd(plan.notify.clone());
    match start_shard(plan) {
        Ok((driver, ready)) => {
            let _ = told.send(Ok(ready));
            if let Err(error) = driver.run() {
                tracing::error!("{name}: {error}");
            }
        }
        Err(error) => {
            let _ = told.send(Err(error));
        }
    }
}

fn start_shard(mut plan: ShardPlan) -> Result<(Driver<Uring>, ShardReady), BrokerError> {
    if let Err(error) = ringmq_ring::pin_current_thread(plan.core) {
        tracing::warn!("{}: cannot be pinned to core {}: {error}", plan.broker_name, plan.core);
    }
    let mut ring = Uring::new(RingConfig { spin: plan.spin, ..RingConfig::default() })?;
    ring.hold_open(&plan.lock).map_err(BrokerError::Thread)?;
    let (listener, listen) = bind(&mut ring, plan.listen)?;
    let mut listeners = vec![listener];
    if let Some(vip) = plan.listen.port().checked_sub(VIP_PORT_OFFSET).filter(|_| plan.listen.port() != 0) {
        match bind(&mut ring, SocketAddr::new(plan.listen.ip(), vip)) {
            Ok((listener, _)) => listeners.push(listener),
            Err(error) => tracing::warn!("{}: no VIP channel: {error}", plan.broker_name),
        }
    }
    let address = SocketAddr::new(plan.advertise, listen.port());
    let direct = has_direct_io(&mut ring, &plan.metadata_path);
    let config = ShardConfig {
        broker_name: plan.broker_name,
        cluster_name: plan.cluster_name,
        address,
        flush: plan.flush,
        auto_create_topics: plan.auto_create_topics,
        delays: plan.delays,
        key_salt: plan.key_salt,
    };
    let started = Instant::now();
    let log = plan.log.clone();
    let mut progress = |line| tracing::info!("shard {}: {line}", plan.index);
    let mut boot = Shard::boot(config, plan.log, &mut plan.store, wall_ms(), &mut progress)
        .map_err(|source| BrokerError::Recover { shard: plan.index, source })?;
    boot.shard.prepare_memory_with(ringmq_ring::prefer_huge_pages);
    let ready = ShardReady {
        listen,
        address,
        topics: boot.shard.topic_configs(),
        waker: ring.waker(),
        report: boot.report,
        notes: boot.notes,
        problems: boot.problems,
        log,
        sealed: boot.shard.sealed_headers(),
        recovery: started.elapsed(),
        direct,
    };
    let notify = plan.notify;
    let backstage =
        Backstage { inbox: plan.inbox, outbox: plan.outbox, notify: Box::new(move || notify.notify_one()) };
    let files = LogFiles::new(plan.directory, direct);
    Ok((Driver::new(ring, listeners, boot.shard, Limits::default(), files, backstage), ready))
}

/// Whether files of the data directory can be read and written past the page cache.
fn has_direct_io(ring: &mut Uring, existing: &Path) -> bool {
    match ring.open(existing, OpenMode { access: Access::Read, direct: true }) {
        Ok(file) => {
            ring.close_file(file);
            true
        }
        Err(_) => false,
    }
}

fn bind(ring: &mut Uring, address: SocketAddr) -> Result<(Listener, SocketAddr), BrokerError> {
    let deadline = Instant::now() + BIND_PATIENCE;
    loop {
        match ring.listen(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result.map_err(|source| BrokerError::Listen { address, source }),
        }
    }
}

/// A name server in a thread of this process.
struct EmbeddedNameServer {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl EmbeddedNameServer {
    fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

fn embed_name_server(listen: SocketAddr) -> Result<(EmbeddedNameServer, SocketAddr), BrokerError> {
    let (stop, stopped) = oneshot::channel::<()>();
    let (told, tell) = std::sync::mpsc::channel();
    let thread = spawn("namesrv".to_owned(), move || {
        let ready = {
            let told = told.clone();
            move |address| {
                let _ = told.send(Ok(address));
            }
        };
        let stop = async {
            let _ = stopped.await;
        };
        if let Err(error) = namesrv::run(listen, namesrv::Options::default(), ready, stop) {
            let _ = told.send(Err(error));
        }
    })?;
    let bound = tell.recv().map_err(|_| BrokerError::NameServer(io::Error::other("it did not start")))?;
    let bound = bound.map_err(BrokerError::NameServer)?;
    let address = if bound.ip().is_unspecified() {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), bound.port())
    } else {
        bound
    };
    Ok((EmbeddedNameServer { stop, thread }, address))
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, BrokerError> {
    thread::Builder::new().name(name).spawn(run).map_err(BrokerError::Thread)
}

/// Ready at Ctrl-C or SIGTERM.
pub async fn stop_signal() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals end the process in the ordinary way.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn report_recovery(shards: &[ShardReady]) {
    for (index, shard) in shards.iter().enumerate() {
        let report = &shard.report;
        if report.records > 0 || report.cut_bytes > 0 {
            tracing::info!(
                "shard {index}: {} records in {} MiB of log read in {} ms; {} bytes that were never acknowledged cut off",
                report.records,
                report.bytes >> 20,
                shard.recovery.as_millis(),
                report.cut_bytes
            );
        }
        for note in &shard.notes {
            tracing::info!("shard {index}: {note}");
        }
        for damage in &report.damaged {
            tracing::error!(
                "shard {index}: {} bytes of the log at {} are damaged; the messages in them are lost, all others are there",
                damage.bytes,
                damage.position
            );
        }
        for problem in
            report.unreadable_records.iter().map(ToString::to_string).chain(shard.problems.iter().cloned())
        {
            tracing::error!("shard {index}: {problem}");
        }
        if !shard.direct {
            tracing::warn!(
                "shard {index}: the file system of the data directory has no direct I/O; writes go through the page cache, durable all the same but slower"
            );
        }
    }
}

/// What a person sees when the broker is ready.
struct Banner<'a> {
    config: &'a Config,
    shards: &'a [ShardReady],
    name_servers: &'a [String],
    started: Instant,
}

impl std::fmt::Display for Banner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name_servers = self.name_servers.join(";");
        let data = self.config.data.canonicalize().unwrap_or_else(|_| self.config.data.clone());
        writeln!(
            f,
            "RingMQ {} is ready after {} ms",
            env!("CARGO_PKG_VERSION"),
            self.started.elapsed().as_millis()
        )?;
        for (index, shard) in self.shards.iter().enumerate() {
            let name = &self.config.name;
            writeln!(
                f,
                "  broker {name}-{index}   listens on {}, advertised as {}",
                shard.listen, shard.address
            )?;
        }
        let embedded = matches!(self.config.name_servers, NameServers::Embedded(_));
        writeln!(f, "  name server   {name_servers}{}", if embedded { " (embedded)" } else { "" })?;
        writeln!(f, "  data          {}", data.display())?;
        writeln!(
            f,
            "  flush         {}",
            match self.config.flush {
                Flush::Sync => "sync: a send is acknowledged when it is on disk",
                Flush::Async =>
                    "async: a send is acknowledged at once; a crash may lose the last milliseconds",
            }
        )?;
        let option = if name_servers == "127.0.0.1:9876" {
            String::new()
        } else {
            format!(" --namesrv '{name_servers}'")
        };
        writeln!(f, "try it:")?;
        let ringmq = "cargo run --release -qp ringmq-tools --bin ringmq --";
        writeln!(f, "  {ringmq}{option} send TopicTest 'Hello RingMQ'")?;
        writeln!(f, "  {ringmq}{option} consume TopicTest --from first")
    }
}

fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A number that another process, or a later run of this one, is unlikely to draw too.
fn random() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(wall_ms()) as u32
}
