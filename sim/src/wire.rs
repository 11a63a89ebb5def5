//! A client's end of a connection: real frames, answers paired with requests, and the troubles of a network.

use std::collections::BTreeMap;

use ringmq_protocol::code::RequestCode;
use ringmq_protocol::frame::{Codec, FRAME_BYTES_MAX, Fields, RemotingCommand, frame_len};
use ringmq_protocol::types::Opaque;
use ringmq_ring::sim::{Direction, SimClient};

use crate::checker::{Anomaly, Checker};

/// Bytes taken from the network at a time.
const READ_BYTES: usize = 256 << 10;

/// A connection whose requests are remembered as `T` until they are answered.
pub(crate) struct Wire<T> {
    /// Never used twice.
    pub(crate) number: u64,
    client: SimClient,
    codec: Codec,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    asked: BTreeMap<i32, (u64, T)>,
    next_opaque: i32,
    /// When the directions that are cut will be mended.
    mend_at: Option<u64>,
    /// The client does not read before this time.
    reads_at: u64,
    is_broken: bool,
}

impl<T> Wire<T> {
    pub(crate) fn new(number: u64, client: SimClient, codec: Codec) -> Wire<T> {
        Wire {
            number,
            client,
            codec,
            outgoing: Vec::new(),
            incoming: Vec::new(),
            asked: BTreeMap::new(),
            next_opaque: 0,
            mend_at: None,
            reads_at: 0,
            is_broken: false,
        }
    }

    /// The same, in JSON whatever the others speak.
    pub(crate) fn of_json(self) -> Wire<T> {
        Wire { codec: Codec::Json, ..self }
    }

    pub(crate) fn ask(&mut self, now: u64, code: RequestCode, fields: &dyn Fields, body: Vec<u8>, asked: T) {
        let opaque = self.say(code, fields, body, false);
        self.asked.insert(opaque, (now, asked));
    }

    /// Asks without wanting an answer.
    pub(crate) fn tell(&mut self, code: RequestCode, fields: &dyn Fields, body: Vec<u8>) {
        self.say(code, fields, body, true);
    }

    fn say(&mut self, code: RequestCode, fields: &dyn Fields, body: Vec<u8>, oneway: bool) -> i32 {
        // Opaques may be negative; a client that counts on and on gets there.
        self.next_opaque = self.next_opaque.wrapping_add(0x0100_0001);
        let mut command = RemotingCommand::request(code, fields, body);
        command.opaque = Opaque(self.next_opaque);
        command.flag = if oneway { 2 } else { 0 };
        command.encode(self.codec, &mut self.outgoing);
        self.next_opaque
    }

    /// Requests without an answer.
    pub(crate) fn outstanding(&self) -> usize {
        self.asked.len()
    }

    /// The request that waits longest for its answer: since when, and what it is.
    pub(crate) fn oldest(&self) -> Option<&(u64, T)> {
        self.asked.values().min_by_key(|(since, _)| *since)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// When something has to be done though nothing arrives.
    pub(crate) fn next_at(&self) -> Option<u64> {
        [self.mend_at, Some(self.reads_at).filter(|_| self.client.unread() > 0)].into_iter().flatten().min()
    }

    /// Hands what was said to the network, as far as it takes it.
    pub(crate) fn flush(&mut self) {
        match self.client.write(&self.outgoing) {
            Ok(count) => drop(self.outgoing.drain(..count)),
            // The end of the stream will tell when everything before it is read.
            Err(_) => self.outgoing.clear(),
        }
    }

    /// Takes what has arrived and gives the answers that are complete.
    pub(crate) fn pump(&mut self, now: u64, checker: &mut Checker) -> Vec<(T, RemotingCommand)> {
        if self.mend_at.is_some_and(|at| now >= at) {
            self.mend_at = None;
            self.client.mend(Direction::ToServer);
            self.client.mend(Direction::ToClient);
        }
        let mut answers = Vec::new();
        if self.is_broken || now < self.reads_at {
            return answers;
        }
        let bytes = self.client.read(READ_BYTES);
        if !bytes.is_empty() {
            self.incoming.extend_from_slice(&bytes);
            self.take_frames(checker, &mut answers);
        }
        if self.client.is_ended() {
            self.is_broken = true;
        }
        answers
    }

    fn take_frames(&mut self, checker: &mut Checker, answers: &mut Vec<(T, RemotingCommand)>) {
        let mut at = 0;
        loop {
            let frame = match frame_len(&self.incoming[at..], FRAME_BYTES_MAX) {
                Ok(Some(len)) if self.incoming.len() - at >= len => &self.incoming[at..at + len],
                Ok(_) => break,
                Err(error) => {
                    checker.report(Anomaly::UnexpectedAnswer, format!("no frame: {error}"));
                    self.is_broken = true;
                    return;
                }
            };
            at += frame.len();
            let command = match RemotingCommand::decode(&bytes::Bytes::copy_from_slice(frame)) {
                Ok(command) => command,
                Err(error) => {
                    checker.report(Anomaly::UnexpectedAnswer, format!("no command: {error}"));
                    continue;
                }
            };
            if !command.is_response() {
                if command.code != RequestCode::NOTIFY_CONSUMER_IDS_CHANGED.0 || !command.is_oneway() {
                    let text = format!("a request {} of the broker", command.code);
                    checker.report(Anomaly::UnexpectedAnswer, text);
                }
                continue;
            }
            match self.asked.remove(&command.opaque.0) {
                Some((_, asked)) => answers.push((asked, command)),
                None => {
                    let text = format!("code {} for opaque {}", command.code, command.opaque);
                    checker.report(Anomaly::AnsweredTwice, text);
                }
            }
        }
        self.incoming.drain(..at);
    }

    // ---- troubles

    /// Drops the connection with everything that is on its way.
    pub(crate) fn reset(&mut self) {
        self.client.reset();
        self.is_broken = true;
        self.asked.clear();
    }

    pub(crate) fn cut(&mut self, direction: Direction, mend_at: u64) {
        self.client.cut(direction);
        self.mend_at = Some(mend_at);
    }

    /// Does not read for a while.
    pub(crate) fn dawdle(&mut self, until: u64) {
        self.reads_at = until;
    }

    /// No more troubles from here.
    pub(crate) fn mend(&mut self) {
        self.mend_at = self.mend_at.map(|_| 0);
        self.reads_at = 0;
    }
}
