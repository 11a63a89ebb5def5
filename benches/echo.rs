//! What the ring and the network cost without a broker: a server that answers requests of one size with responses of another.
//!
//!   cargo bench --bench echo -- [--connections 64] [--request 1240] [--response 180] [--spread 0] [--seconds 3] [--json]
//!
//! The server is a shard's loop with nothing in it: the same ring, receives and gathered sends, one send for each connection
//! and turn, on the first core. The client has one request in flight on each connection, on the last core. Prints requests a second, their
//! latency, and the CPU of the server for each.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use clap::Parser;
use ringmq_ring::{
    Completion, Config, Op, Outcome, Ring, Socket, Uring, Waker, available_cores, pin_current_thread,
    prefer_huge_pages,
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

/// Serves until it is woken; gives the CPU time that its thread has used.
fn serve(mut ring: Uring, arguments: &Arguments, stop: &AtomicBool) -> io::Result<Duration> {
    let mut memory = BytesMut::with_capacity(arguments.spread.max(arguments.response));
    prefer_huge_pages(&mut memory);
    memory.resize(memory.capacity(), b'r');
    let memory = memory.freeze();
    let mut next = 0;
    let mut response = || {
        let from = if next + arguments.response > memory.len() { 0 } else { next };
        next = from + arguments.response;
        memory.slice(from..next)
    };
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
                let parts = (0..std::mem::take(&mut peer.owed)).map(|_| response()).collect();
                peer.is_sending = true;
                ring.submit(at as u64 | SEND, Op::Send { socket, parts });
            }
        }
    }
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Ok(Duration::new(used.tv_sec as u64, used.tv_nsec as u32))
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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arc::new(Arguments::parse());
    let cores = available_cores()?;
    let (told, tell) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let server = {
        let (arguments, stop, core) = (arguments.clone(), stop.clone(), cores[0]);
        thread::spawn(move || -> io::Result<Duration> {
            pin_current_thread(core)?;
            let mut ring = Uring::new(Config::default()).map_err(io::Error::other)?;
            let (listener, address) = ring.listen(([127, 0, 0, 1], 0).into())?;
            ring.submit(ACCEPT, Op::Accept { listener });
            let waker: Waker = ring.waker();
            told.send((address, waker)).map_err(io::Error::other)?;
            serve(ring, &arguments, &stop)
        })
    };
    let (address, waker) = tell.recv()?;
    pin_current_thread(*cores.last().ok_or("no core")?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut times = runtime.block_on(load(&arguments, address))?;
    stop.store(true, Ordering::Relaxed);
    waker.wake();
    let cpu = server.join().map_err(|_| "the server has panicked")??;
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
