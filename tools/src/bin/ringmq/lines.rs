//! Standard input as lines, read ahead by a thread of its own and within bounds.

use std::io::Read;
use std::thread;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Mutex, mpsc};

use crate::Failure;

const READ_BYTES: usize = 256 * 1024;
/// Chunks read ahead; each is about one read.
const CHUNKS_AHEAD: usize = 8;

/// Hands out the lines of an input in batches, in order, to whoever asks next.
pub(crate) struct Lines {
    feed: Mutex<Feed>,
}

struct Feed {
    chunks: mpsc::Receiver<Result<Vec<Bytes>, Failure>>,
    rest: std::vec::IntoIter<Bytes>,
    /// Taken already, but too much for the batch before.
    held: Option<Bytes>,
    count: u64,
}

/// Consecutive lines, without their ends.
pub(crate) struct LineBatch {
    /// Number of the first line, from 1.
    pub(crate) first: u64,
    pub(crate) lines: Vec<Bytes>,
}

impl Lines {
    /// Lines longer than `line_bytes_max` are an error, so that they need not be kept.
    pub(crate) fn read(input: impl Read + Send + 'static, line_bytes_max: usize) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        // Not a task: reading a terminal or a pipe may take for ever.
        thread::spawn(move || read_chunks(input, line_bytes_max, &sender));
        Self { feed: Mutex::new(Feed { chunks, rest: Vec::new().into_iter(), held: None, count: 0 }) }
    }

    /// The next lines: at least one, and of those that are there at most `lines_max` and about `bytes_max`, counting
    /// `overhead` for each. `None` at the end.
    pub(crate) async fn next_batch(
        &self,
        lines_max: usize,
        bytes_max: usize,
        overhead: usize,
    ) -> Result<Option<LineBatch>, Failure> {
        let mut feed = self.feed.lock().await;
        let mut lines = Vec::new();
        let mut bytes = 0;
        loop {
            let line = match feed.held.take().or_else(|| feed.rest.next()) {
                Some(line) => line,
                None => {
                    // Wait for the first line only: what is there is sent.
                    let chunk = match lines.is_empty() {
                        true => feed.chunks.recv().await,
                        false => feed.chunks.try_recv().ok(),
                    };
                    match chunk {
                        Some(Ok(chunk)) => feed.rest = chunk.into_iter(),
                        // Lines before the error are sent first; the reader ends after it, so it is kept for later.
                        Some(Err(error)) if lines.is_empty() => return Err(error),
                        Some(Err(error)) => {
                            let (sender, chunks) = mpsc::channel(1);
                            drop(sender.try_send(Err(error)));
                            feed.chunks = chunks;
                            break;
                        }
                        None => break,
                    }
                    continue;
                }
            };
            bytes += line.len() + overhead;
            if !lines.is_empty() && bytes > bytes_max {
                feed.held = Some(line);
                break;
            }
            lines.push(line);
            if lines.len() == lines_max {
                break;
            }
        }
        if lines.is_empty() {
            return Ok(None);
        }
        let first = feed.count + 1;
        feed.count += lines.len() as u64;
        Ok(Some(LineBatch { first, lines }))
    }
}

fn read_chunks(
    mut input: impl Read,
    line_bytes_max: usize,
    chunks: &mpsc::Sender<Result<Vec<Bytes>, Failure>>,
) {
    let mut buffer = BytesMut::new();
    // Bytes of the buffer known to hold no line end.
    let mut searched = 0;
    let mut line_number = 0u64;
    loop {
        let filled = buffer.len();
        buffer.resize(filled + READ_BYTES, 0);
        let outcome = loop {
            match input.read(&mut buffer[filled..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
        };
        let read = match outcome {
            Ok(read) => read,
            Err(error) => {
                drop(chunks.blocking_send(Err(Failure::new(format!("cannot read standard input: {error}")))));
                return;
            }
        };
        buffer.truncate(filled + read);
        let mut lines = Vec::new();
        while let Some(at) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
            let mut line = buffer.split_to(searched + at + 1);
            line.truncate(searched + at);
            searched = 0;
            lines.push(line.freeze());
        }
        searched = buffer.len();
        if read == 0 && !buffer.is_empty() {
            // A last line without an end is a line.
            lines.push(buffer.split().freeze());
        }
        line_number += lines.len() as u64;
        let longest_open = buffer.len();
        let too_long = lines
            .iter()
            .position(|line| line.len() > line_bytes_max)
            .map(|at| (at, line_number - lines.len() as u64 + at as u64 + 1));
        if let Some((at, _)) = too_long {
            lines.truncate(at);
        }
        if !lines.is_empty() && chunks.blocking_send(Ok(lines)).is_err() {
            return;
        }
        let too_long = too_long.map(|(_, number)| number);
        if let Some(number) = too_long.or_else(|| (longest_open > line_bytes_max).then_some(line_number + 1))
        {
            let problem =
                format!("line {number} is longer than the {line_bytes_max} bytes that a message may have");
            drop(chunks.blocking_send(Err(Failure::new(problem))));
            return;
        }
        if read == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &'static [u8], line_bytes_max: usize, lines_max: usize) -> (Vec<Vec<u8>>, Option<String>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let lines = Lines::read(input, line_bytes_max);
            let mut all = Vec::new();
            loop {
                match lines.next_batch(lines_max, 1000, 10).await {
                    Ok(Some(batch)) => {
                        assert_eq!(batch.first, all.len() as u64 + 1);
                        assert!(!batch.lines.is_empty() && batch.lines.len() <= lines_max);
                        all.extend(batch.lines.iter().map(|line| line.to_vec()));
                    }
                    Ok(None) => return (all, None),
                    Err(Failure::Message(message)) => return (all, Some(message)),
                    Err(Failure::BrokenPipe) => panic!("nothing is written here"),
                }
            }
        })
    }

    #[test]
    fn lines_are_whatever_stands_between_line_ends() {
        let (lines, error) = all(b"one\n\n\xff\r\n last", 100, 2);
        assert_eq!(lines, [&b"one"[..], b"", b"\xff\r", b" last"]);
        assert_eq!(error, None);
        assert_eq!(all(b"", 100, 2).0.len(), 0);
        assert_eq!(all(b"\n", 100, 2).0, [b""]);
        assert_eq!(all(b"a\n", 100, 2).0, [b"a"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_named_after_those_before_it() {
        for input in [&b"12345\n123456\n1"[..], b"12345\n123456"] {
            let (lines, error) = all(input, 5, 10);
            assert_eq!(lines, [b"12345"]);
            assert!(error.is_some_and(|error| error.starts_with("line 2 is longer than the 5 bytes")));
        }
    }

    #[test]
    fn many_lines_come_in_order_and_within_bounds() {
        let text: String = (0..300_000).map(|number| format!("{number}\n")).collect();
        let expected: Vec<Vec<u8>> = text.lines().map(|line| line.as_bytes().to_vec()).collect();
        let (lines, error) = all(Box::leak(text.into_bytes().into_boxed_slice()), 100, 70);
        assert_eq!(error, None);
        assert!(lines == expected);
    }
}
