//! Cuts a stream of bytes into frames.

use ringmq_protocol::frame::{Frame, FrameError, frame_len};

/// Memory kept for cut frames while a connection is busy; more is given back after each frame.
const KEPT_BYTES: usize = 256 << 10;
/// Length prefix and header word: what must be there before a frame's length can be checked.
const PREFIX_BYTES: usize = 8;

/// Turns received bytes into frames. Holds only the beginning of a frame whose end has not arrived.
#[derive(Debug)]
pub struct FrameReader {
    partial: Vec<u8>,
    frame_bytes_max: u32,
}

impl FrameReader {
    /// `frame_bytes_max` bounds the announced length of a frame.
    pub fn new(frame_bytes_max: u32) -> Self {
        FrameReader { partial: Vec::new(), frame_bytes_max }
    }

    /// Bytes held of a frame that is not complete yet.
    pub fn partial_bytes(&self) -> usize {
        self.partial.len()
    }

    /// Gives back memory that is not in use.
    pub fn shrink(&mut self) {
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
    }

    /// Calls `on_frame` for each frame that `data` completes, in order, until it answers `false` (the rest of `data`
    /// is then dropped: the connection is being closed). After an error the stream cannot be followed any further.
    pub fn feed(
        &mut self,
        mut data: &[u8],
        mut on_frame: impl FnMut(&Frame<'_>) -> bool,
    ) -> Result<(), FrameError> {
        while !data.is_empty() {
            if self.partial.is_empty() {
                match frame_len(data, self.frame_bytes_max)? {
                    Some(len) if len <= data.len() => {
                        let (frame, rest) = data.split_at(len);
                        if !on_frame(&Frame::decode(frame)?) {
                            return Ok(());
                        }
                        data = rest;
                    }
                    _ => {
                        self.partial.extend_from_slice(data);
                        return Ok(());
                    }
                }
            } else {
                let wanted = frame_len(&self.partial, self.frame_bytes_max)?.unwrap_or(PREFIX_BYTES);
                let take = wanted.saturating_sub(self.partial.len()).min(data.len());
                self.partial.extend_from_slice(&data[..take]);
                data = &data[take..];
                if frame_len(&self.partial, self.frame_bytes_max)? == Some(self.partial.len()) {
                    let go_on = on_frame(&Frame::decode(&self.partial)?);
                    self.partial.clear();
                    if self.partial.capacity() > KEPT_BYTES {
                        self.partial = Vec::new();
                    }
                    if !go_on {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
