//! The bare echo: what the ring alone can do. Every request is answered; nothing is decoded, stored or looked up.
//! The figure to hold a server against, with the same client.
//!
//! A server (one thread, one send per connection and turn), and a client of plain threads that measures it.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use ringmq_ring::{Config, Op, Outcome, Ring, Socket, Uring, pin_current_thread};

const USAGE: &str = "\
echo serve  [--listen 127.0.0.1:7001] [--request BYTES|prefixed] [--reply BYTES] [--core N] [--whole-buffers]
            answers each request with --reply bytes (default 100), or with itself if --reply is 0;
            --whole-buffers receives without incremental consumption;
            a request has a fixed number of bytes (default 200), or a length of 4 bytes (big-endian, of what follows)
echo client [--connect 127.0.0.1:7001] [--request BYTES] [--reply BYTES] [--connections N] [--depth N] [--seconds S] [--core N]
            keeps --depth requests of fixed size in flight on each of --connections connections
";

const ACCEPT: u64 = u64::MAX - 1;

/// Options of both commands, as given on the command line.
struct Options {
    address: SocketAddr,
    /// `None` for length-prefixed requests.
    request: Option<usize>,
    reply: usize,
    connections: usize,
    depth: usize,
    seconds: u64,
    core: Option<usize>,
    incremental: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, Box<dyn Error>> {
        let mut options = Options {
            address: "127.0.0.1:7001".parse()?,
            request: Some(200),
            reply: 100,
            connections: 16,
            depth: 16,
            seconds: 5,
            core: None,
            incremental: true,
        };
        while let Some(name) = args.next() {
            if name == "--whole-buffers" {
                options.incremental = false;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{name} needs a value\n\n{USAGE}"))?;
            match name.as_str() {
                "--listen" | "--connect" => options.address = value.parse()?,
                "--request" if value == "prefixed" => options.request = None,
                "--request" => options.request = Some(value.parse::<usize>()?.max(1)),
                "--reply" => options.reply = value.parse()?,
                "--connections" => options.connections = value.parse()?,
                "--depth" => options.depth = value.parse()?,
                "--seconds" => options.seconds = value.parse()?,
                "--core" => options.core = Some(value.parse()?),
                _ => return Err(format!("unknown option {name}\n\n{USAGE}").into()),
            }
        }
        Ok(options)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("serve") => serve(&Options::parse(args)?),
        Some("client") => measure(&Options::parse(args)?),
        _ => {
            print!("{USAGE}");
            Ok(())
        }
    }
}

/// What the server keeps of a connection.
#[derive(Default)]
struct Connection {
    socket: Option<Socket>,
    /// The beginning of a request whose end has not come: its bytes if they are echoed or still tell its length.
    partial: BytesMut,
    /// Bytes of a request of fixed size that were counted and dropped.
    counted: usize,
    /// To be sent at the end of the turn.
    replies: Vec<Bytes>,
    dirty: bool,
}

fn serve(options: &Options) -> Result<(), Box<dyn Error>> {
    if let Some(core) = options.core {
        pin_current_thread(core)?;
    }
    let mut ring = Uring::new(Config { recv_incremental: options.incremental, ..Config::default() })?;
    let (listener, address) = ring.listen(options.address)?;
    ring.submit(ACCEPT, Op::Accept { listener });
    eprintln!("listening on {address}");
    let reply = Bytes::from(vec![b'r'; options.reply.max(1) * 1024]);
    let mut connections: Vec<Connection> = Vec::new();
    let mut dirty: Vec<usize> = Vec::new();
    let mut completions = Vec::new();
    loop {
        ring.turn(None, &mut completions)?;
        for completion in completions.drain(..) {
            let index = completion.tag as usize;
            match completion.outcome {
                Outcome::Accepted(Ok((socket, _))) => {
                    let index = socket.index();
                    if connections.len() <= index {
                        connections.resize_with(index + 1, Connection::default);
                    }
                    connections[index] = Connection { socket: Some(socket), ..Connection::default() };
                    ring.submit(index as u64, Op::Receive { socket });
                }
                Outcome::Accepted(Err(error)) => return Err(error.into()),
                Outcome::Received(Ok(Some(buffer))) => {
                    let connection = &mut connections[index];
                    connection.take(ring.received(&buffer), options, &reply);
                    ring.recycle(buffer);
                    if !connection.replies.is_empty() && !std::mem::replace(&mut connection.dirty, true) {
                        dirty.push(index);
                    }
                }
                Outcome::Received(_) | Outcome::Sent(Err(_)) => {
                    // Either may come first, and only the first one closes.
                    if let Some(socket) = connections[index].socket.take() {
                        ring.submit(index as u64, Op::Close { socket });
                    }
                }
                _ => {}
            }
        }
        for index in dirty.drain(..) {
            let connection = &mut connections[index];
            connection.dirty = false;
            let parts = std::mem::take(&mut connection.replies);
            if let Some(socket) = connection.socket {
                ring.submit(index as u64, Op::Send { socket, parts });
            }
        }
    }
}

impl Connection {
    fn take(&mut self, bytes: &[u8], options: &Options, reply: &Bytes) {
        match options.request {
            Some(size) if options.reply > 0 => {
                self.counted += bytes.len();
                let mut count = self.counted / size;
                self.counted %= size;
                while count > 0 {
                    // 1,024 replies lie side by side: one part for many of them.
                    let together = count.min(1024);
                    self.replies.push(reply.slice(..together * options.reply));
                    count -= together;
                }
            }
            size => {
                self.partial.extend_from_slice(bytes);
                let mut whole = 0;
                while let Some(rest) = self.partial.get(whole..) {
                    let len = match size {
                        Some(size) => size,
                        None if rest.len() < 4 => break,
                        None => 4 + u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize,
                    };
                    if rest.len() < len {
                        break;
                    }
                    if options.reply > 0 {
                        self.replies.push(reply.slice(..options.reply));
                    }
                    whole += len;
                }
                let requests = self.partial.split_to(whole).freeze();
                if options.reply == 0 && !requests.is_empty() {
                    self.replies.push(requests);
                }
            }
        }
    }
}

/// What one connection of the client has seen.
struct Seen {
    requests: u64,
    latencies: Vec<Duration>,
}

fn measure(options: &Options) -> Result<(), Box<dyn Error>> {
    let size = options.request.ok_or("the client sends requests of fixed size: --request BYTES")?;
    if let Some(core) = options.core {
        // The threads inherit it.
        pin_current_thread(core)?;
    }
    let reply = if options.reply == 0 { size } else { options.reply };
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let (address, depth) = (options.address, options.depth);
    let threads: Vec<_> = (0..options.connections)
        .map(|_| std::thread::spawn(move || drive(address, size, reply, depth, end)))
        .collect();
    let (mut requests, mut latencies) = (0, Vec::new());
    for thread in threads {
        let seen = thread.join().map_err(|_| "a client thread panicked")??;
        requests += seen.requests;
        latencies.extend(seen.latencies);
    }
    latencies.sort_unstable();
    let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied().unwrap_or_default();
    println!(
        "{} requests/s, {} connections x {} in flight, {size} -> {reply} bytes, p50 {:?}, p99 {:?}",
        requests / options.seconds.max(1),
        options.connections,
        depth,
        at(50),
        at(99),
    );
    Ok(())
}

fn drive(
    address: SocketAddr,
    size: usize,
    reply: usize,
    depth: usize,
    end: Instant,
) -> std::io::Result<Seen> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let batch = vec![b'q'; size * depth];
    let mut answer = vec![0; reply * depth];
    let mut seen = Seen { requests: 0, latencies: Vec::new() };
    // When each request in flight was sent.
    let mut sent: VecDeque<Instant> = VecDeque::new();
    stream.write_all(&batch)?;
    sent.extend(std::iter::repeat_n(Instant::now(), depth));
    let mut partial = 0;
    while Instant::now() < end {
        let count = partial + stream.read(&mut answer)?;
        let answered = count / reply;
        partial = count % reply;
        let now = Instant::now();
        seen.latencies.extend(sent.drain(..answered).map(|sent| now - sent));
        seen.requests += answered as u64;
        stream.write_all(&batch[..answered * size])?;
        sent.extend(std::iter::repeat_n(now, answered));
    }
    Ok(seen)
}
