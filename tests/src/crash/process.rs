//! A broker that may be killed at any moment, also before it is ready. (`crate::Broker` is for tests that expect it to
//! start, and panics otherwise; here a failed start is a finding, and a file system must be unmounted after it.)

use super::Failure;
use crate::{PATIENCE, ports};
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How a broker is started, time and again.
#[derive(Clone, Debug)]
pub struct Spec {
    pub program: PathBuf,
    pub data: PathBuf,
    pub shards: u16,
    pub segment_size: String,
    /// `sync` or `async`.
    pub flush: &'static str,
    pub port: u16,
    pub name_server_port: u16,
    pub arguments: Vec<String>,
    /// Arguments that change from start to start.
    pub drawn: Vec<String>,
}

impl Spec {
    pub fn new(
        program: PathBuf,
        data: PathBuf,
        shards: u16,
        segment_size: String,
        flush: &'static str,
    ) -> Self {
        let (port, name_server_port) = (ports::free_for_shards(shards), ports::free());
        let (arguments, drawn) = (Vec::new(), Vec::new());
        Self { program, data, shards, segment_size, flush, port, name_server_port, arguments, drawn }
    }

    /// Where the shards listen.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let port = |shard| self.port + ports::SHARD_STEP * shard;
        (0..self.shards).map(|shard| SocketAddr::from((Ipv4Addr::LOCALHOST, port(shard)))).collect()
    }
}

/// A broker process; dropping it kills it.
pub struct Process {
    child: Child,
    started: Instant,
    ready: Receiver<Instant>,
    /// Standard error so far.
    said: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts a broker and does not wait for it.
    pub fn spawn(spec: &Spec) -> Result<Self, Failure> {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string();
        let mut command = Command::new(&spec.program);
        command.arg("--data").arg(&spec.data).args(["--listen", &local(spec.port)]);
        command.args(["--embedded-namesrv", &local(spec.name_server_port)]);
        command.args(["--shards", &spec.shards.to_string()]).args(["--segment-size", &spec.segment_size]);
        command.args(&spec.arguments).args(&spec.drawn);
        command.args(["--flush", spec.flush]).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for this program, which then ends the broker and cleans up.
        command.process_group(0);
        let started = Instant::now();
        let mut child = command.spawn()?;
        let (tell, ready) = mpsc::channel();
        let said = Arc::default();
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(read_lines(stdout, move |line| {
                if line.contains("is ready") {
                    // Whoever waited may have given up.
                    let _ = tell.send(Instant::now());
                }
            }));
        }
        if let Some(stderr) = child.stderr.take() {
            let said: Arc<Mutex<String>> = Arc::clone(&said);
            readers.push(read_lines(stderr, move |line| lock(&said).push_str(line)));
        }
        Ok(Self { child, started, ready, said, readers })
    }

    /// Whether it is gone without having been killed.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// What it has said on standard error.
    pub fn said(&self) -> String {
        lock(&self.said).clone()
    }

    /// Waits for the banner; the time from the start of the process to it.
    pub fn wait_ready(&mut self) -> Result<Duration, Failure> {
        match self.ready.recv_timeout(PATIENCE) {
            Ok(ready) => Ok(ready.duration_since(self.started)),
            Err(problem) => Err(Failure(format!("the broker is not ready ({problem})\n{}", self.kill()))),
        }
    }

    /// Ends the process as a crash does, waits until it is gone, and gives what it said on standard error.
    pub fn kill(&mut self) -> String {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            // A reader that panicked has read nothing more.
            let _ = reader.join();
        }
        self.said()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock(text: &Mutex<String>) -> MutexGuard<'_, String> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads lines until the other end closes.
fn read_lines(from: impl Read + Send + 'static, on_line: impl Fn(&str) + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            on_line(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}
