//! Every bound of a connection, by name.

/// What one connection may hold, and for how long. Times are in nanoseconds of the ring's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest frame accepted, counted as the protocol does: without the four bytes of the length itself.
    pub frame_bytes_max: u32,
    /// Replies not yet taken by the peer. A peer that reads slower than it asks is closed beyond this.
    pub unsent_bytes_max: usize,
    /// A connection without a byte in either direction for this long is closed.
    pub idle_nanos_max: u64,
    /// A frame must be complete this long after its first byte.
    pub frame_nanos_max: u64,
    /// A peer must take the bytes of one send within this long: what is being sent cannot be reused before.
    pub send_nanos_max: u64,
    /// Open connections of one shard.
    pub connection_count_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            frame_bytes_max: 16 << 20,
            unsent_bytes_max: 64 << 20,
            idle_nanos_max: 120 * 1_000_000_000,
            frame_nanos_max: 60 * 1_000_000_000,
            send_nanos_max: 20 * 1_000_000_000,
            connection_count_max: 20_000,
        }
    }
}
