//! One connection: its reader, its outbox, its deadlines.

use crate::{FrameReader, Limits, Outbox};
use bytes::Bytes;
use ringmq_protocol::frame::{Frame, FrameError};
use std::net::SocketAddr;

/// What [`Connection::check`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// Close it, for the reason given.
    Close(&'static str),
}

/// The state of a connection between the ring and the shard.
#[derive(Debug)]
pub struct Connection {
    peer: SocketAddr,
    reader: FrameReader,
    outbox: Outbox,
    in_flight_bytes: usize,
    active_nanos: u64,
    partial_since_nanos: Option<u64>,
    sending_since_nanos: Option<u64>,
}

impl Connection {
    pub fn new(peer: SocketAddr, limits: &Limits, now_nanos: u64) -> Self {
        Connection {
            peer,
            reader: FrameReader::new(limits.frame_bytes_max),
            outbox: Outbox::default(),
            in_flight_bytes: 0,
            active_nanos: now_nanos,
            partial_since_nanos: None,
            sending_since_nanos: None,
        }
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Takes received bytes; see [`FrameReader::feed`].
    pub fn on_received(
        &mut self,
        data: &[u8],
        now_nanos: u64,
        on_frame: impl FnMut(&Frame<'_>) -> bool,
    ) -> Result<(), FrameError> {
        self.active_nanos = now_nanos;
        let mut any = false;
        let mut on_frame = on_frame;
        self.reader.feed(data, |frame| {
            any = true;
            on_frame(frame)
        })?;
        if self.reader.partial_bytes() == 0 {
            self.partial_since_nanos = None;
        } else if any || self.partial_since_nanos.is_none() {
            self.partial_since_nanos = Some(now_nanos);
        }
        Ok(())
    }

    /// Queues a copy of `head` and then `body`, whose large ranges are sent from where they are.
    pub fn push(&mut self, head: &[u8], body: impl IntoIterator<Item = Bytes>) {
        self.outbox.push(head);
        for range in body {
            self.outbox.push_shared(range);
        }
    }

    /// The next send, if there is something to say and none is in flight.
    pub fn next_send(&mut self, now_nanos: u64) -> Option<Vec<Bytes>> {
        if self.in_flight_bytes > 0 || self.outbox.bytes() == 0 {
            return None;
        }
        self.in_flight_bytes = self.outbox.bytes();
        self.sending_since_nanos = Some(now_nanos);
        Some(self.outbox.take())
    }

    /// The send in flight has ended.
    pub fn on_sent(&mut self, now_nanos: u64) {
        self.in_flight_bytes = 0;
        self.sending_since_nanos = None;
        self.active_nanos = now_nanos;
    }

    /// Bytes that the peer has still to take.
    pub fn unsent_bytes(&self) -> usize {
        self.in_flight_bytes + self.outbox.bytes()
    }

    /// Looks at the deadlines and gives back memory that an idle connection does not need. To be called now and then.
    pub fn check(&mut self, limits: &Limits, now_nanos: u64) -> Verdict {
        if now_nanos.saturating_sub(self.active_nanos) > limits.idle_nanos_max {
            return Verdict::Close("no byte in either direction for longer than the idle limit");
        }
        let is_overdue =
            |since: Option<u64>, max| since.is_some_and(|since| now_nanos.saturating_sub(since) > max);
        if is_overdue(self.partial_since_nanos, limits.frame_nanos_max) {
            return Verdict::Close("a frame was not completed in time");
        }
        if is_overdue(self.sending_since_nanos, limits.send_nanos_max) {
            return Verdict::Close("it did not take what was sent to it in time");
        }
        self.reader.shrink();
        self.outbox.shrink();
        Verdict::Keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Connection::new("127.0.0.1:1".parse().unwrap(), &Limits::default(), 0)
    }

    #[test]
    fn one_send_is_in_flight_at_a_time() {
        let mut connection = connection();
        assert!(connection.next_send(0).is_none());
        connection.push(b"one", []);
        assert_eq!(connection.next_send(1).unwrap().concat(), b"one");
        connection.push(b"two", [Bytes::from_static(b"three")]);
        assert!(connection.next_send(2).is_none());
        assert_eq!(connection.unsent_bytes(), 11);
        connection.on_sent(5);
        assert_eq!(connection.next_send(6).unwrap().concat(), b"twothree");
        let limits = Limits { send_nanos_max: 10, ..Limits::default() };
        assert_eq!(connection.check(&limits, 16), Verdict::Keep);
        assert!(matches!(connection.check(&limits, 17), Verdict::Close(_)));
    }

    #[test]
    fn silence_and_half_frames_have_deadlines() {
        let limits = Limits { idle_nanos_max: 100, frame_nanos_max: 10, ..Limits::default() };
        let mut connection = connection();
        assert_eq!(connection.check(&limits, 100), Verdict::Keep);
        assert!(matches!(connection.check(&limits, 101), Verdict::Close(_)));
        connection.on_received(&[0, 0], 200, |_| true).unwrap();
        assert_eq!(connection.check(&limits, 205), Verdict::Keep);
        // More bytes of the same frame do not push the deadline away.
        connection.on_received(&[0], 209, |_| true).unwrap();
        assert!(matches!(connection.check(&limits, 211), Verdict::Close(_)));
    }
}
