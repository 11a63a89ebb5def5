//! A large real text through the command line and back.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use ringmq_tests::broker::wait;
use ringmq_tests::{Broker, PATIENCE, binaries};

const LINES_MIN: usize = 100_000;
/// Enough lines come from less than this, unless the sources at hand are few.
const BYTES_MAX: usize = 24 << 20;

/// Rust sources below a folder, in an order that does not depend on the file system.
fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target" && name != ".git") {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// At least 100,000 lines, without their ends: the sources of this workspace and of what it depends on, and lines that
/// nobody writes: empty ones, one of 1 MiB, all bytes that a line can have.
fn lines() -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    sources(binaries::workspace(), &mut paths);
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    if let Some(home) = home {
        sources(&home.join("registry/src"), &mut paths);
    }
    let mut lines: Vec<Vec<u8>> = vec![Vec::new(), Vec::new()];
    let mut bytes = 0;
    for path in &paths {
        if lines.len() >= LINES_MIN + 20_000 || bytes > BYTES_MAX {
            break;
        }
        let text = fs::read(path).unwrap_or_default();
        bytes += text.len();
        lines.extend(text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
    }
    let real = lines.len();
    for number in 0..LINES_MIN.saturating_sub(real) {
        let mut line = format!("{number}: ").into_bytes();
        line.extend_from_slice(&lines[number % real].clone());
        lines.push(line);
    }
    lines.push((0..1 << 20).map(|at: u32| b'a' + (at.wrapping_mul(2_654_435_761) >> 28) as u8).collect());
    lines.push((0..=255).filter(|byte| *byte != b'\n').collect());
    lines.push("Zażółć gęślą jaźń – 消息队列 – \u{1F600}\r".as_bytes().to_vec());
    lines.push(Vec::new());
    lines.push(b"the last line".to_vec());
    eprintln!("{} lines, {real} of them from {} sources at hand", lines.len(), paths.len());
    lines
}

fn text(lines: &[Vec<u8>]) -> Vec<u8> {
    let mut text = lines.join(&b'\n');
    text.push(b'\n');
    text
}

/// `ringmq send`, with a thread that writes its standard input: the second part when it is told to.
fn start_send(
    broker: &Broker,
    arguments: &[&str],
    input: [Vec<u8>; 2],
) -> (Child, Sender<()>, JoinHandle<()>) {
    let mut command = broker.cli(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("ringmq can be run");
    let mut stdin = child.stdin.take().expect("piped");
    let (go_on, told) = mpsc::channel();
    let feeder = thread::spawn(move || {
        let [first, second] = input;
        stdin.write_all(&first).expect("ringmq reads all of its input");
        told.recv().expect("the test goes on");
        stdin.write_all(&second).expect("ringmq reads all of its input");
    });
    (child, go_on, feeder)
}

/// Sends a text to its end.
fn send(broker: &Broker, arguments: &[&str], input: Vec<u8>) {
    let (mut send, go_on, feeder) = start_send(broker, arguments, [input, Vec::new()]);
    go_on.send(()).expect("the feeder waits");
    assert!(wait(&mut send, 4 * PATIENCE).success());
    feeder.join().expect("fed");
}

fn consume(broker: &Broker, topic: &str) -> Vec<u8> {
    let output = broker.cli(&["consume", topic, "--raw"]).stderr(Stdio::inherit()).output();
    let output = output.expect("ringmq can be run");
    assert!(output.status.success(), "ringmq consume: {}", output.status);
    output.stdout
}

/// Where two texts differ, for people; the texts are too long to be printed.
fn assert_same(got: &[u8], wanted: &[u8]) {
    if got != wanted {
        let at = got.iter().zip(wanted).take_while(|(one, other)| one == other).count();
        let around = |text: &[u8]| {
            String::from_utf8_lossy(&text[at.saturating_sub(40).min(text.len())..(at + 80).min(text.len())])
                .into_owned()
        };
        panic!(
            "{} bytes instead of {}; at byte {at} {:?} instead of {:?}",
            got.len(),
            wanted.len(),
            around(got),
            around(wanted)
        );
    }
}

#[test]
fn every_byte_comes_back() {
    let mut broker = Broker::start(2);
    let lines = lines();
    assert!(lines.len() >= LINES_MIN);
    let input = text(&lines);

    // Through one queue: in order.
    send(&broker, &["send", "InOrder", "--queue", "0"], input.clone());
    assert_same(&consume(&broker, "InOrder"), &input);

    // Through all queues of both shards: each line once.
    send(&broker, &["send", "Spread"], input);
    let got = consume(&broker, "Spread");
    let mut counts: BTreeMap<&[u8], i64> = BTreeMap::new();
    for line in &lines {
        *counts.entry(line).or_default() += 1;
    }
    for line in got.strip_suffix(b"\n").expect("a last line").split(|byte| *byte == b'\n') {
        *counts.entry(line).or_default() -= 1;
    }
    let wrong = counts.iter().find(|(_, count)| **count != 0);
    assert!(wrong.is_none(), "{wrong:?}");
    broker.stop();
}

#[test]
fn a_kill_halfway_loses_no_line() {
    let mut broker = Broker::start(1);
    let mut lines = lines();
    for (number, line) in lines.iter_mut().enumerate() {
        // Lines can be told apart, so that order and duplicates show.
        line.splice(0..0, format!("{number:08} ").into_bytes());
    }
    let arguments = ["--json", "send", "Killed", "--queue", "0", "--retry-for", "5m"];
    let (first, second) = lines.split_at(lines.len() / 2);
    let (mut send, go_on, feeder) = start_send(&broker, &arguments, [text(first), text(second)]);
    // An answer for each line. They are read all the time, so that the sender never waits for us.
    let stdout = BufReader::new(send.stdout.take().expect("piped"));
    let (answered, answers) = mpsc::channel();
    let counter = thread::spawn(move || stdout.lines().for_each(|_| answered.send(()).expect("counted")));
    let count = answers.iter().take(lines.len() / 4).count();
    assert_eq!(count, lines.len() / 4, "the sender gave up early");
    // It is in the midst of the first half, and has not seen the second.
    broker.kill9();
    let count = count + answers.try_iter().count();
    go_on.send(()).expect("the feeder waits");
    broker.restart();
    let rest = answers.iter().count();
    counter.join().expect("read to the end");
    assert!(wait(&mut send, 4 * PATIENCE).success());
    feeder.join().expect("fed");
    assert_eq!(count + rest, lines.len(), "an answer for every line");

    let got = consume(&broker, "Killed");
    let (mut next, mut repeated) = (0, 0);
    for line in got.strip_suffix(b"\n").expect("a last line").split(|byte| *byte == b'\n') {
        let number: usize = String::from_utf8_lossy(&line[..8]).parse().expect("a numbered line");
        assert_same(line, &lines[number]);
        assert!(number <= next, "line {next} is missing before line {number}");
        match number == next {
            true => next += 1,
            false => repeated += 1,
        }
    }
    assert_eq!(next, lines.len(), "the last lines are missing");
    eprintln!("killed after about {count} of {} lines; {repeated} came twice", lines.len());
    broker.stop();
}
