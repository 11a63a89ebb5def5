//! A broker in a process of its own.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{PATIENCE, TempDir, binaries, ports};

/// How a broker is started, besides its ports.
#[derive(Debug, Default)]
pub struct Options {
    /// `--shards`; 0 leaves the option out, which needs an existing directory.
    pub shards: u16,
    /// Further arguments.
    pub arguments: Vec<OsString>,
    /// The data directory; a fresh one that goes away with the broker if absent.
    pub data: Option<PathBuf>,
}

/// A running (or just killed) broker with an embedded name server. Dropping it kills it.
pub struct Broker {
    options: Options,
    data: PathBuf,
    port: u16,
    name_server_port: u16,
    running: Option<Running>,
    /// Standard error of all runs.
    errors: Arc<Mutex<String>>,
    /// Standard output of this run.
    banner: Arc<Mutex<String>>,
    /// Last: it goes when the process is gone.
    _temp: Option<TempDir>,
}

struct Running {
    child: Child,
    readers: Vec<JoinHandle<()>>,
}

impl Broker {
    /// A broker with a fresh data directory.
    pub fn start(shards: u16) -> Self {
        Self::start_with(Options { shards, ..Options::default() })
    }

    /// # Panics
    /// With what the broker said, if it does not get ready.
    pub fn start_with(options: Options) -> Self {
        let temp = options.data.is_none().then(|| TempDir::new("broker"));
        let data = match (&options.data, &temp) {
            (Some(data), _) => data.clone(),
            (None, Some(temp)) => temp.path().join("data"),
            (None, None) => unreachable!("made above"),
        };
        let mut broker = Self {
            port: ports::free_for_shards(options.shards.max(1)),
            name_server_port: ports::free(),
            options,
            data,
            running: None,
            errors: Arc::default(),
            banner: Arc::default(),
            _temp: temp,
        };
        broker.launch();
        broker
    }

    /// `host:port` of the name server.
    pub fn name_server(&self) -> String {
        format!("127.0.0.1:{}", self.name_server_port)
    }

    /// Where a shard listens.
    pub fn address(&self, shard: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port + ports::SHARD_STEP * shard))
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// # Panics
    /// If the broker is down.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("the broker runs").child.id()
    }

    /// What the broker printed on standard output since its last start.
    pub fn banner(&self) -> String {
        self.banner.lock().expect("its writer does not panic").clone()
    }

    /// What the broker printed on standard error, in all its runs.
    pub fn errors(&self) -> String {
        self.errors.lock().expect("its writer does not panic").clone()
    }

    /// Ends the process as a crash does, and waits until it is gone.
    pub fn kill9(&mut self) {
        let mut running = self.running.take().expect("the broker runs");
        running.child.kill().expect("it is our child");
        running.child.wait().expect("it was killed");
        running.join();
    }

    /// Asks the broker to stop and waits for it.
    ///
    /// # Panics
    /// If it ends with another code than 0, or not at all.
    pub fn stop(&mut self) {
        let running = self.running.take().expect("the broker runs");
        terminate(running.child.id());
        let status = running.wait(PATIENCE);
        assert!(status.success(), "after SIGTERM: {status}\n{}", self.errors());
    }

    /// Starts the broker again, on the same ports and data. To be called after `kill9` or `stop`.
    pub fn restart(&mut self) {
        assert!(self.running.is_none(), "the broker runs already");
        self.launch();
    }

    /// The command line `ringmq`, told where this broker's name server is.
    pub fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binaries::binary("ringmq"));
        command.arg("--namesrv").arg(self.name_server()).args(arguments);
        command
    }

    /// Runs `ringmq` to its end.
    ///
    /// # Panics
    /// If it fails.
    pub fn run_cli(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments).stdin(Stdio::null()).output().expect("ringmq can be run");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "ringmq {arguments:?}: {}\n{errors}\n{}",
            output.status,
            self.errors()
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn launch(&mut self) {
        let mut command = Command::new(binaries::binary("ringmq-broker"));
        command.arg("--data").arg(&self.data).arg("--listen").arg(self.address(0).to_string());
        command.arg("--embedded-namesrv").arg(self.name_server());
        if self.options.shards > 0 {
            command.arg("--shards").arg(self.options.shards.to_string());
        }
        command.args(&self.options.arguments).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the broker can be run");
        self.banner = Arc::default();
        let (told, ready) = mpsc::channel();
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        let readers = vec![
            collect(stdout, self.banner.clone(), move |line| {
                // The last line of the banner, so that all of it is there.
                if line.contains("consume TopicTest") {
                    // Whoever waited may have given up.
                    let _ = told.send(());
                }
            }),
            collect(stderr, self.errors.clone(), |_| {}),
        ];
        self.running = Some(Running { child, readers });
        if let Err(problem) = ready.recv_timeout(PATIENCE) {
            let end = match problem {
                RecvTimeoutError::Timeout => "says nothing".to_owned(),
                RecvTimeoutError::Disconnected => {
                    let running = self.running.take().expect("just started");
                    format!("ended: {}", running.wait(PATIENCE))
                }
            };
            panic!("the broker is not ready but {end}\n{}{}", self.banner(), self.errors());
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // It may have ended by itself.
            let _ = running.child.kill();
            let _ = running.child.wait();
            running.join();
        }
        if thread::panicking() {
            eprintln!("standard error of the broker:\n{}", self.errors());
        }
    }
}

impl Running {
    /// Waits for the end, and for the last of the output.
    fn wait(mut self, patience: Duration) -> ExitStatus {
        let status = wait(&mut self.child, patience);
        self.join();
        status
    }

    fn join(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().expect("readers do not panic");
        }
    }
}

/// Reads lines into a text until the other end closes.
fn collect(
    from: impl Read + Send + 'static,
    into: Arc<Mutex<String>>,
    on_line: impl Fn(&str) + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line);
            into.lock().expect("its readers do not panic").push_str(&text);
            on_line(&text);
            line.clear();
        }
    })
}

/// Sends SIGTERM.
pub fn terminate(pid: u32) {
    let status = Command::new("kill").args(["-TERM", &pid.to_string()]).status().expect("kill can be run");
    assert!(status.success(), "kill -TERM {pid}: {status}");
}

/// Waits for the end of a process.
///
/// # Panics
/// If it does not end; it is killed then.
pub fn wait(child: &mut Child, patience: Duration) -> ExitStatus {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("process {} does not end", child.id());
        }
        // There is no wait with a deadline in the standard library: looking again is what is left.
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs the broker with these very arguments, which must not let it start.
///
/// # Panics
/// If it goes on running.
pub fn fail_to_start(arguments: &[&str]) -> Output {
    let mut command = Command::new(binaries::binary("ringmq-broker"));
    command.args(arguments);
    run_to_its_end(command)
}

/// Runs a command that ends by itself, and prints no more than fits into a pipe.
///
/// # Panics
/// If it goes on running.
pub fn run_to_its_end(mut command: Command) -> Output {
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command can be run");
    wait(&mut child, PATIENCE);
    child.wait_with_output().expect("it has ended")
}
