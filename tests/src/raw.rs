//! Frames on a plain socket.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use bytes::Bytes;
use ringmq_protocol::frame::{Codec, FLAG_ONEWAY, FRAME_BYTES_MAX, Fields, RemotingCommand, frame_len};
use ringmq_protocol::types::Opaque;

use crate::PATIENCE;

/// A connection to a broker or name server, without any of a client's manners.
pub struct Raw {
    stream: TcpStream,
    codec: Codec,
    opaque: i32,
    received: Vec<u8>,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("{address} cannot be reached: {error}"))
    }

    pub fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, codec: Codec::Json, opaque: 0, received: Vec::new() })
    }

    #[must_use]
    pub fn with_codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The bytes of a request, with an opaque of its own.
    pub fn encode(
        &mut self,
        code: impl Into<i32>,
        ext: &dyn Fields,
        body: impl Into<Bytes>,
    ) -> (Opaque, Vec<u8>) {
        self.opaque += 1;
        let mut request = RemotingCommand::request(code, ext, body);
        request.opaque = Opaque(self.opaque);
        let mut bytes = Vec::new();
        request.encode(self.codec, &mut bytes);
        (request.opaque, bytes)
    }

    /// Sends a request.
    pub fn send(
        &mut self,
        code: impl Into<i32>,
        ext: &dyn Fields,
        body: impl Into<Bytes>,
    ) -> io::Result<Opaque> {
        let (opaque, bytes) = self.encode(code, ext, body);
        self.stream.write_all(&bytes)?;
        Ok(opaque)
    }

    /// Sends a request that wants no answer.
    pub fn send_one_way(
        &mut self,
        code: impl Into<i32>,
        ext: &dyn Fields,
        body: impl Into<Bytes>,
    ) -> io::Result<()> {
        let mut request = RemotingCommand::request(code, ext, body);
        self.opaque += 1;
        request.opaque = Opaque(self.opaque);
        request.flag |= FLAG_ONEWAY;
        let mut bytes = Vec::new();
        request.encode(self.codec, &mut bytes);
        self.stream.write_all(&bytes)
    }

    /// Sends any bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next frame, whatever it is; `None` if the broker has closed the connection.
    ///
    /// # Panics
    /// If what comes is no frame.
    pub fn receive(&mut self) -> io::Result<Option<RemotingCommand>> {
        loop {
            let len = frame_len(&self.received, FRAME_BYTES_MAX).expect("the broker sends frames");
            if let Some(len) = len.filter(|len| *len <= self.received.len()) {
                let frame: Vec<u8> = self.received.drain(..len).collect();
                return Ok(Some(RemotingCommand::decode(&frame.into()).expect("the broker sends frames")));
            }
            let mut chunk = [0; 64 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Closed with data of ours unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next response; requests of the broker are passed over.
    ///
    /// # Panics
    /// If there is none.
    pub fn response(&mut self) -> RemotingCommand {
        loop {
            match self.receive() {
                Ok(Some(frame)) if frame.is_response() => return frame,
                Ok(Some(_)) => {}
                Ok(None) => panic!("the broker closed the connection"),
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    /// Sends a request and waits for its answer, which must be the next one.
    ///
    /// # Panics
    /// If none comes, or one to something else.
    pub fn call(
        &mut self,
        code: impl Into<i32>,
        ext: &dyn Fields,
        body: impl Into<Bytes>,
    ) -> RemotingCommand {
        let opaque = self.send(code, ext, body).expect("the broker reads");
        let response = self.response();
        assert_eq!(response.opaque, opaque, "an answer to something else: {response:?}");
        response
    }

    /// Whether the broker has closed the connection, or does so; frames that come before are dropped.
    pub fn is_closed_by_broker(&mut self) -> bool {
        loop {
            match self.receive() {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }
}
