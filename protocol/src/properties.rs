//! Message properties: `name 0x01 value 0x02 name 0x01 value 0x02 …`.
//!
//! As in Java, a pair without a name or without a value does not exist, the last pair needs no 0x02 behind it, and
//! of two pairs of one name the later counts. A server may therefore append its own behind those of the client, see
//! [`separator`].

use crate::find;

/// Between name and value.
pub const NAME_VALUE_SEPARATOR: u8 = 1;
/// Behind each pair.
pub const PROPERTY_SEPARATOR: u8 = 2;
/// The most bytes that properties may take in a stored message.
pub const PROPERTIES_BYTES_MAX: usize = i16::MAX as usize;

/// Names that mean something to brokers and clients.
pub mod names {
    pub const KEYS: &str = "KEYS";
    pub const TAGS: &str = "TAGS";
    pub const WAIT_STORE_MSG_OK: &str = "WAIT";
    pub const DELAY_TIME_LEVEL: &str = "DELAY";
    pub const UNIQUE_CLIENT_MESSAGE_ID_KEYIDX: &str = "UNIQ_KEY";
    /// Short for [`UNIQUE_CLIENT_MESSAGE_ID_KEYIDX`].
    pub const UNIQ_KEY: &str = UNIQUE_CLIENT_MESSAGE_ID_KEYIDX;
    pub const EXTEND_UNIQ_INFO: &str = "EXTEND_UNIQ_INFO";
    pub const RETRY_TOPIC: &str = "RETRY_TOPIC";
    pub const ORIGIN_MESSAGE_ID: &str = "ORIGIN_MESSAGE_ID";
    pub const RECONSUME_TIME: &str = "RECONSUME_TIME";
    pub const MAX_RECONSUME_TIMES: &str = "MAX_RECONSUME_TIMES";
    pub const REAL_TOPIC: &str = "REAL_TOPIC";
    pub const REAL_QUEUE_ID: &str = "REAL_QID";
    pub const TRANSACTION_PREPARED: &str = "TRAN_MSG";
    pub const PRODUCER_GROUP: &str = "PGROUP";
    pub const TRANSACTION_ID: &str = "__transactionId__";
    pub const CHECK_IMMUNITY_TIME_IN_SECONDS: &str = "CHECK_IMMUNITY_TIME_IN_SECONDS";
    pub const TRANSACTION_CHECK_TIMES: &str = "TRANSACTION_CHECK_TIMES";
    pub const TRAN_PREPARED_QUEUE_OFFSET: &str = "TRAN_PREPARED_QUEUE_OFFSET";
    pub const MIN_OFFSET: &str = "MIN_OFFSET";
    pub const MAX_OFFSET: &str = "MAX_OFFSET";
    pub const CORRELATION_ID: &str = "CORRELATION_ID";
    pub const REPLY_TO_CLIENT: &str = "REPLY_TO_CLIENT";
    pub const TTL: &str = "TTL";
    pub const MSG_TYPE: &str = "MSG_TYPE";
    pub const PUSH_REPLY_TIME: &str = "PUSH_REPLY_TIME";
    pub const CLUSTER: &str = "CLUSTER";
    pub const MSG_REGION: &str = "MSG_REGION";
    pub const TRACE_ON: &str = "TRACE_ON";
    pub const TIMER_DELAY_SEC: &str = "TIMER_DELAY_SEC";
    pub const TIMER_DELAY_MS: &str = "TIMER_DELAY_MS";
    pub const TIMER_DELIVER_MS: &str = "TIMER_DELIVER_MS";
    pub const TIMER_OUT_MS: &str = "TIMER_OUT_MS";
    pub const TIMER_DEL_UNIQKEY: &str = "TIMER_DEL_UNIQKEY";
    pub const SHARDING_KEY: &str = "__SHARDINGKEY";
    pub const POP_CK: &str = "POP_CK";
    pub const FIRST_POP_TIME: &str = "1ST_POP_TIME";
    pub const INNER_NUM: &str = "INNER_NUM";
    pub const INSTANCE_ID: &str = "INSTANCE_ID";
    pub const DLQ_ORIGIN_TOPIC: &str = "DLQ_ORIGIN_TOPIC";
    pub const DLQ_ORIGIN_MESSAGE_ID: &str = "DLQ_ORIGIN_MESSAGE_ID";
}

/// Encoded properties, to be read. Any bytes are properties: a pair that is not UTF-8 does not exist either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// All pairs as bytes, for who looks for a few names among many messages.
    pub fn raw(&self) -> impl DoubleEndedIterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        Pairs(self.0).filter_map(|pair| {
            let middle = find::byte(NAME_VALUE_SEPARATOR, pair)?;
            let (name, value) = (&pair[..middle], &pair[middle + 1..]);
            (!name.is_empty() && !value.is_empty()).then_some((name, value))
        })
    }

    /// All pairs in their order; a name may occur more than once.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&'a str, &'a str)> + use<'a> {
        self.raw().filter_map(|(name, value)| {
            Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
        })
    }

    /// The value of a name; the last one if there are several.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.raw()
            .rev()
            .filter(|(candidate, _)| *candidate == name.as_bytes())
            .find_map(|(_, value)| std::str::from_utf8(value).ok())
    }
}

/// What lies between separators. Behind the last one, if that ends the properties, there is nothing.
struct Pairs<'a>(&'a [u8]);

impl<'a> Iterator for Pairs<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let end = find::byte(PROPERTY_SEPARATOR, self.0).unwrap_or(self.0.len());
        let pair = &self.0[..end];
        self.0 = self.0.get(end + 1..).unwrap_or_default();
        Some(pair)
    }
}

impl<'a> DoubleEndedIterator for Pairs<'a> {
    fn next_back(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        // One separator at the end ends the last pair; others stand for empty ones.
        let rest = self.0.strip_suffix(&[PROPERTY_SEPARATOR]).unwrap_or(self.0);
        let start = rest.iter().rposition(|byte| *byte == PROPERTY_SEPARATOR).map_or(0, |at| at + 1);
        self.0 = &rest[..start];
        Some(&rest[start..])
    }
}

/// What has to stand between encoded properties and others that follow them: the 0x02 that some clients leave out
/// behind their last pair, or nothing.
pub fn separator(properties: &[u8]) -> &'static [u8] {
    match properties.last() {
        None | Some(&PROPERTY_SEPARATOR) => &[],
        Some(_) => &[PROPERTY_SEPARATOR],
    }
}

/// Why a pair cannot be a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PropertyError {
    #[error("a property needs a name and a value")]
    Empty,
    #[error("a property must contain neither U+0001 nor U+0002")]
    Separator,
}

/// Appends one pair to encoded properties.
pub fn put(out: &mut Vec<u8>, name: &str, value: &str) -> Result<(), PropertyError> {
    if name.is_empty() || value.is_empty() {
        return Err(PropertyError::Empty);
    }
    let is_separator = |byte: &u8| matches!(*byte, NAME_VALUE_SEPARATOR | PROPERTY_SEPARATOR);
    if name.as_bytes().iter().chain(value.as_bytes()).any(is_separator) {
        return Err(PropertyError::Separator);
    }
    out.extend_from_slice(separator(out));
    out.extend_from_slice(name.as_bytes());
    out.push(NAME_VALUE_SEPARATOR);
    out.extend_from_slice(value.as_bytes());
    out.push(PROPERTY_SEPARATOR);
    Ok(())
}

/// Encodes pairs, in their order.
pub fn encode<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>) -> Result<Vec<u8>, PropertyError> {
    let mut out = Vec::new();
    for (name, value) in pairs {
        put(&mut out, name, value)?;
    }
    Ok(out)
}

/// Appends all pairs of `properties` whose name `keep` admits, as they are.
pub fn put_filtered(out: &mut Vec<u8>, properties: Properties<'_>, mut keep: impl FnMut(&[u8]) -> bool) {
    for (name, value) in properties.raw().filter(|(name, _)| keep(name)) {
        out.extend_from_slice(separator(out));
        out.extend_from_slice(name);
        out.push(NAME_VALUE_SEPARATOR);
        out.extend_from_slice(value);
        out.push(PROPERTY_SEPARATOR);
    }
}

#[cfg(test)]
mod tests;
