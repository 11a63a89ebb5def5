//! Numbers of the protocol that must not be mixed up.

use std::fmt;

macro_rules! number {
    ($($(#[$doc:meta])* $name:ident($inner:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl From<$inner> for $name {
            fn from(number: $inner) -> Self {
                Self(number)
            }
        }

        impl From<$name> for $inner {
            fn from(number: $name) -> $inner {
                number.0
            }
        }
    )*};
}

number! {
    /// Byte offset of a record in the commit log of its broker.
    PhysicalOffset(u64);
    /// Index of a message in its queue, from 0.
    QueueOffset(u64);
    /// Number of a queue of a topic on one broker, from 0.
    QueueId(u32);
    /// When the broker stored a message, in milliseconds since 1970 by the broker's clock.
    StoreTimestamp(i64);
    /// When the client made a message, in milliseconds since 1970 by the client's clock.
    BornTimestamp(i64);
    /// Hash of a message's tag; 0 stands for "no tag".
    TagsCode(i32);
    /// Number that pairs a response with its request; it may be negative.
    Opaque(i32);
    /// Bits that the protocol (not the user) keeps for a message.
    SysFlag(i32);
}

impl TagsCode {
    /// Java's `String.hashCode`, over UTF-16 code units. The empty tag gives 0, like no tag.
    pub fn of(tag: &str) -> Self {
        Self(tag.encode_utf16().fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit))))
    }
}

/// How a body is compressed, as its `SysFlag` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// The LZ4 frame format.
    Lz4,
    /// A Zstandard frame.
    Zstd,
    /// RFC 1950; also what old clients mean that set no type.
    Zlib,
}

/// What a message is to transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionKind {
    /// An ordinary message.
    None,
    /// A half message.
    Prepared,
    /// A message that a commit made visible.
    Commit,
    /// A rolled-back message.
    Rollback,
}

impl SysFlag {
    pub const COMPRESSED: i32 = 0x1;
    pub const MULTI_TAGS: i32 = 0x2;
    pub const TRANSACTION_PREPARED: i32 = 0x4;
    pub const TRANSACTION_COMMIT: i32 = 0x8;
    pub const TRANSACTION_ROLLBACK: i32 = 0xC;
    pub const BORN_HOST_V6: i32 = 0x10;
    pub const STORE_HOST_V6: i32 = 0x20;
    pub const NEED_UNWRAP: i32 = 0x40;
    pub const INNER_BATCH: i32 = 0x80;
    const COMPRESSION_MASK: i32 = 0x700;
    const TRANSACTION_MASK: i32 = 0xC;

    pub fn is_compressed(self) -> bool {
        self.0 & Self::COMPRESSED != 0
    }

    /// How the body is compressed; `None` if it is not. An unknown type is an error that carries the type.
    pub fn compression(self) -> Result<Option<Compression>, u8> {
        if !self.is_compressed() {
            return Ok(None);
        }
        match (self.0 & Self::COMPRESSION_MASK) >> 8 {
            0 | 3 => Ok(Some(Compression::Zlib)),
            1 => Ok(Some(Compression::Lz4)),
            2 => Ok(Some(Compression::Zstd)),
            other => Err(other as u8), // three bits
        }
    }

    /// The same flags, for a body compressed this way, or not at all.
    #[must_use]
    pub fn with_compression(self, compression: Option<Compression>) -> Self {
        let bits = match compression {
            None => 0,
            Some(Compression::Lz4) => 0x101,
            Some(Compression::Zstd) => 0x201,
            Some(Compression::Zlib) => 0x301,
        };
        Self(self.0 & !(Self::COMPRESSION_MASK | Self::COMPRESSED) | bits)
    }

    pub fn transaction(self) -> TransactionKind {
        match self.0 & Self::TRANSACTION_MASK {
            Self::TRANSACTION_PREPARED => TransactionKind::Prepared,
            Self::TRANSACTION_COMMIT => TransactionKind::Commit,
            Self::TRANSACTION_ROLLBACK => TransactionKind::Rollback,
            _ => TransactionKind::None,
        }
    }

    #[must_use]
    pub fn with_transaction(self, kind: TransactionKind) -> Self {
        let bits = match kind {
            TransactionKind::None => 0,
            TransactionKind::Prepared => Self::TRANSACTION_PREPARED,
            TransactionKind::Commit => Self::TRANSACTION_COMMIT,
            TransactionKind::Rollback => Self::TRANSACTION_ROLLBACK,
        };
        Self(self.0 & !Self::TRANSACTION_MASK | bits)
    }

    pub fn is_born_host_v6(self) -> bool {
        self.0 & Self::BORN_HOST_V6 != 0
    }

    pub fn is_store_host_v6(self) -> bool {
        self.0 & Self::STORE_HOST_V6 != 0
    }

    /// The same flags with one bit (or mask) set or cleared.
    #[must_use]
    pub fn with(self, bits: i32, set: bool) -> Self {
        Self(if set { self.0 | bits } else { self.0 & !bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_code_is_javas_hash_code() {
        // Values of `"TagA".hashCode()` and so on, computed by hand from h = 31·h + c.
        assert_eq!(TagsCode::of(""), TagsCode(0));
        assert_eq!(TagsCode::of("a"), TagsCode(97));
        assert_eq!(TagsCode::of("TagA"), TagsCode(2_598_919));
        assert_eq!(TagsCode::of("polygenelubricants"), TagsCode(i32::MIN));
        // U+1F600 is the surrogate pair D83D DE00.
        assert_eq!(TagsCode::of("\u{1F600}"), TagsCode(0xD83D * 31 + 0xDE00));
    }

    #[test]
    fn compression_bits_round_trip() {
        let flag = SysFlag(SysFlag::TRANSACTION_PREPARED | SysFlag::BORN_HOST_V6);
        for compression in [None, Some(Compression::Lz4), Some(Compression::Zstd), Some(Compression::Zlib)] {
            let with = flag.with_compression(compression);
            assert_eq!(with.compression(), Ok(compression));
            assert_eq!(with.transaction(), TransactionKind::Prepared);
            assert_eq!(with.with_compression(None), flag);
        }
        assert_eq!(SysFlag(1).compression(), Ok(Some(Compression::Zlib)), "old clients set no type");
        assert_eq!(SysFlag(0x701).compression(), Err(7));
    }
}
