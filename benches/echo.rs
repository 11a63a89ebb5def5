//! What the ring and the network cost without a broker: a server that answers requests of one size with responses of another.
//!
//!   cargo bench --bench echo -- [--connections 64] [--request 1240] [--response 180] [--spread 0 [--file PATH]] [--seconds 3] [--json]
//!
//! The server is a shard's loop with nothing in it: the same ring, receives and gathered sends, one send for each connection
//! and turn, on the first core. The client has one request in flight on each connection, on the last core. Prints requests a second, their
//! latency, and the CPU of the server, with the kernel's workers for it, for each.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use clap::Parser;
use ringmq_ring::{
    Access, Completion, Config, File, Op, OpenMode, Outcome, Ring, Socket, Uring, Waker, available_cores,
    pin_current_thread, prefer_huge_pages,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Bytes.
    #[arg(long, default_value_t = 1240)]
    request: usize,
    /// Bytes.
    #[arg(long, default_value_t = 180)]
    response: usize,
    /// Bytes of memory, in huge pages, out of which responses are sent one after the other, like messages of a log. With less than
    /// a response's all are the same bytes, which stay in the processor's cache.
    #[arg(long, default_value_t = 0)]
    spread: usize,
    /// Send the responses out of this file, from the page cache, and not out of memory. It is written first, with `spread` bytes.
    #[arg(long)]
    file: Option<PathBuf>,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// One JSON object instead of a line.
    #[arg(long)]
    json: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

const ACCEPT: u64 = 1 << 32;
const SEND: u64 = 1 << 33;

#[derive(Default)]
struct Peer {
    socket: Option<Socket>,
    received: usize,
    /// Responses that wait for the send in flight to end.
    owed: usize,
    is_sending: bool,
}

/// Where responses come from: one place after the other, and again from the start.
struct Responses {
    memory: Bytes,
    file: Option<File>,
    len: usize,
    next: usize,
}

impl Responses {
    fn new(ring: &mut Uring, arguments: &Arguments) -> io::Result<Self> {
        let mut memory = BytesMut::with_capacity(arguments.spread.max(arguments.response));
        prefer_huge_pages(&mut memory);
        memory.resize(memory.capacity(), b'r');
        let open = |path: &PathBuf| {
            std::fs::write(path, &memory)?;
            ring.open(path, OpenMode { access: Access::Read, direct: false })
        };
        let file = arguments.file.as_ref().map(open).transpose()?;
        Ok(Responses { memory: memory.freeze(), file, len: arguments.response, next: 0 })
    }

    fn next_at(&mut self) -> usize {
        let at = if self.next + self.len > self.memory.len() { 0 } else { self.next };
        self.next = at + self.len;
        at
    }

    /// As many responses as are owed, or one from a file.
    fn send(&mut self, socket: Socket, owed: &mut usize) -> Op {
        if let Some(file) = self.file {
            *owed -= 1;
            return Op::SendFile { socket, file, offset: self.next_at() as u64, len: self.len as u64 };
        }
        let mut part = || {
            let at = self.next_at();
            self.memory.slice(at..at + self.len)
        };
        let parts = (0..std::mem::take(owed)).map(|_| part()).collect();
        Op::Send { socket, parts }
    }
}

/// Serves until it is woken.
fn serve(
    mut ring: Uring,
    mut responses: Responses,
    arguments: &Arguments,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut peers: Vec<Peer> = Vec::new();
    let mut completions: Vec<Completion> = Vec::new();
    let mut dirty = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        ring.turn(None, &mut completions)?;
        for completion in completions.drain(..) {
            let at = (completion.tag & !SEND) as usize;
            match completion.outcome {
                Outcome::Accepted(Ok((socket, _))) => {
                    ring.submit(peers.len() as u64, Op::Receive { socket });
                    peers.push(Peer { socket: Some(socket), ..Peer::default() });
                }
                Outcome::Received(Ok(Some(buffer))) => {
                    let peer = &mut peers[at];
                    peer.received += buffer.len();
                    peer.owed += peer.received / arguments.request;
                    peer.received %= arguments.request;
                    ring.recycle(buffer);
                    dirty.push(at);
                }
                Outcome::Sent(Ok(())) => {
                    peers[at].is_sending = false;
                    dirty.push(at);
                }
                _ => {}
            }
        }
        for at in dirty.drain(..) {
            let peer = &mut peers[at];
            if let Some(socket) = peer.socket.filter(|_| peer.owed > 0 && !peer.is_sending) {
                peer.is_sending = true;
                ring.submit(at as u64 | SEND, responses.send(socket, &mut peer.owed));
            }
        }
    }
    Ok(())
}

/// Latencies of the requests of one connection.
async fn ask(
    mut stream: TcpStream,
    request: Vec<u8>,
    response: usize,
    until: Instant,
) -> io::Result<Vec<Duration>> {
    let mut answer = vec![0; response];
    let mut times = Vec::new();
    loop {
        let began = Instant::now();
        if began >= until {
            return Ok(times);
        }
        stream.write_all(&request).await?;
        stream.read_exact(&mut answer).await?;
        times.push(began.elapsed());
    }
}

async fn load(arguments: &Arguments, address: std::net::SocketAddr) -> io::Result<Vec<Duration>> {
    let until = Instant::now() + Duration::from_secs_f64(arguments.seconds);
    let mut tasks = JoinSet::new();
    for _ in 0..arguments.connections {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        tasks.spawn(ask(stream, vec![b'q'; arguments.request], arguments.response, until));
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.append(&mut done??);
    }
    Ok(times)
}

/// CPU time of the process but for this thread.
fn cpu_of_others() -> Duration {
    let used = |clock| {
        let used = clock_gettime(clock);
        Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
    };
    used(ClockId::ProcessCPUTime) - used(ClockId::ThreadCPUTime)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arc::new(Arguments::parse());
    let cores = available_cores()?;
    let (told, tell) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let server = {
        let (arguments, stop, core) = (arguments.clone(), stop.clone(), cores[0]);
        thread::spawn(move || -> io::Result<()> {
            pin_current_thread(core)?;
            let mut ring = Uring::new(Config::default()).map_err(io::Error::other)?;
            let (listener, address) = ring.listen(([127, 0, 0, 1], 0).into())?;
            ring.submit(ACCEPT, Op::Accept { listener });
            let waker: Waker = ring.waker();
            let responses = Responses::new(&mut ring, &arguments)?;
            told.send((address, waker)).map_err(io::Error::other)?;
            serve(ring, responses, &arguments, &stop)
        })
    };
    let (address, waker) = tell.recv()?;
    pin_current_thread(*cores.last().ok_or("no core")?)?;
    let before = cpu_of_others();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut times = runtime.block_on(load(&arguments, address))?;
    stop.store(true, Ordering::Relaxed);
    waker.wake();
    server.join().map_err(|_| "the server has panicked")??;
    let cpu = cpu_of_others() - before;
    times.sort_unstable();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    let (rate, p50, p99) = (times.len() as f64 / arguments.seconds, percentile(50), percentile(99));
    let cpu = cpu.as_secs_f64() * 1e6 / times.len() as f64;
    if arguments.json {
        let row =
            serde_json::json!({"requests_per_second": rate, "p50_us": p50, "p99_us": p99, "cpu_us": cpu});
        println!("{row}");
    } else {
        println!(
            "{rate:.0} requests/s, p50 {p50:.1}, p99 {p99:.1} µs, {cpu:.2} µs CPU of the server for each"
        );
    }
    Ok(())
}
