//! The two ids of a message. Both are 32 hex characters (56 with IPv6), and nothing but context tells them apart.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::str::FromStr;

use thiserror::Error;

use crate::types::PhysicalOffset;

/// Where a message is: the broker's address and the physical offset. Clients connect to that very address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetMessageId {
    pub store_host: SocketAddr,
    pub physical_offset: PhysicalOffset,
}

/// Why a text is no offset message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdError {
    #[error("an offset message id has 32 or 56 characters, not {0}")]
    Length(usize),
    #[error("an offset message id consists of hex digits")]
    Digit,
    #[error("port {0} in an offset message id")]
    Port(u32),
}

/// Eight upper-case hex digits, all worked out at once in the bytes of one word.
fn hex_digits(number: u32) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut word = u64::from(number);
    word = (word | word << 16) & 0x0000_FFFF_0000_FFFF;
    word = (word | word << 8) & 0x00FF_00FF_00FF_00FF;
    word = (word | word << 4) & 0x0F0F_0F0F_0F0F_0F0F;
    // From 10 on a letter follows, not the character behind '9'.
    let is_letter = (word + ONES * 6) >> 4 & ONES;
    (word + ONES * u64::from(b'0') + is_letter * u64::from(b'A' - b'9' - 1)).to_be_bytes()
}

/// Upper-case hex digits of up to 28 bytes, put together without a formatter: a broker makes one id a message.
#[derive(Clone, Copy, Debug)]
pub struct HexText {
    digits: [u8; 56],
    len: usize,
}

impl HexText {
    fn new() -> Self {
        Self { digits: [0; 56], len: 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(4);
        for word in &mut words {
            self.push_digits(&hex_digits(u32::from_be_bytes(word.try_into().expect("four bytes"))));
        }
        for byte in words.remainder() {
            self.push_digits(&hex_digits(u32::from(*byte))[6..]);
        }
    }

    fn push_digits(&mut self, digits: &[u8]) {
        self.digits[self.len..][..digits.len()].copy_from_slice(digits);
        self.len += digits.len();
    }
}

impl Deref for HexText {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.digits[..self.len]).expect("hex digits are ASCII")
    }
}

/// The octets of an address at the front of an id, and how many they are.
fn octets(ip: IpAddr) -> ([u8; 16], usize) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&ip.octets());
            (octets, 4)
        }
        IpAddr::V6(ip) => (ip.octets(), 16),
    }
}

impl OffsetMessageId {
    fn text(&self) -> HexText {
        let (octets, len) = octets(self.store_host.ip());
        let mut text = HexText::new();
        text.push(&octets[..len]);
        text.push(&u32::from(self.store_host.port()).to_be_bytes());
        text.push(&self.physical_offset.0.to_be_bytes());
        text
    }
}

/// Makes the offset message ids of one broker, which differ only in their second half.
#[derive(Clone, Debug)]
pub struct OffsetMessageIds {
    host: String,
}

impl OffsetMessageIds {
    pub fn new(store_host: SocketAddr) -> Self {
        let mut host = OffsetMessageId { store_host, physical_offset: PhysicalOffset(0) }.to_string();
        host.truncate(host.len() - 16);
        Self { host }
    }

    /// Appends the id of the message at an offset, at a fraction of the cost of a formatter.
    pub fn push(&self, physical_offset: PhysicalOffset, out: &mut String) {
        let mut offset = HexText::new();
        offset.push(&physical_offset.0.to_be_bytes());
        out.push_str(&self.host);
        out.push_str(&offset);
    }
}

impl fmt::Display for OffsetMessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text())
    }
}

impl FromStr for OffsetMessageId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let ip_len = match text.len() {
            32 => 4,
            56 => 16,
            other => return Err(IdError::Length(other)),
        };
        let mut bytes = [0u8; 28];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |index: usize| char::from(digits[index]).to_digit(16).ok_or(IdError::Digit);
            *byte = (digit(0)? << 4 | digit(1)?) as u8; // two digits
        }
        let number = |at: usize, len: usize| {
            bytes[at..at + len].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let ip = if ip_len == 4 {
            IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
        } else {
            let mut octets = [0; 16];
            octets.copy_from_slice(&bytes[..16]);
            IpAddr::from(octets)
        };
        let port = number(ip_len, 4) as u32; // four bytes
        let port = u16::try_from(port).map_err(|_| IdError::Port(port))?;
        Ok(Self {
            store_host: SocketAddr::new(ip, port),
            physical_offset: PhysicalOffset(number(ip_len + 4, 8)),
        })
    }
}

/// Makes the unique keys (UNIQ_KEY) of one producer process. Keys of one generator differ unless it makes more than
/// 65536 in a millisecond.
#[derive(Clone, Debug)]
pub struct UniqueKeys {
    octets: [u8; 16],
    octets_len: usize,
    process_id: u16,
    salt: u32,
    counter: u16,
    /// When the day of the last key began, and its month, in milliseconds since 1970.
    day_ms: i64,
    month_ms: i64,
}

impl UniqueKeys {
    /// `process_id` and `salt` tell generators on one host apart; Java takes the lower half of the pid and a hash.
    pub fn new(client_ip: IpAddr, process_id: u16, salt: u32) -> Self {
        let (octets, octets_len) = octets(client_ip);
        Self { octets, octets_len, process_id, salt, counter: 0, day_ms: 0, month_ms: 0 }
    }

    /// The next key, at `now_ms` milliseconds since 1970.
    pub fn next_key(&mut self, now_ms: i64) -> HexText {
        self.counter = self.counter.wrapping_add(1);
        if !(self.day_ms..self.day_ms + DAY_MS).contains(&now_ms) {
            self.day_ms = now_ms - now_ms.rem_euclid(DAY_MS);
            self.month_ms = month_start_ms(now_ms);
        }
        // A month has fewer than 2^32 milliseconds.
        let in_month = (now_ms - self.month_ms) as u32;
        let mut text = HexText::new();
        text.push(&self.octets[..self.octets_len]);
        text.push(&self.process_id.to_be_bytes());
        text.push(&self.salt.to_be_bytes());
        text.push(&in_month.to_be_bytes());
        text.push(&self.counter.to_be_bytes());
        text
    }
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// When the month of a time began, in UTC and milliseconds since 1970.
pub fn month_start_ms(now_ms: i64) -> i64 {
    let days = now_ms.div_euclid(DAY_MS);
    // Years are counted from March here, so that the leap day is the last day of a year. 719468 is the number of
    // days from 0000-03-01 to 1970-01-01, and 146097 the number of days in 400 years.
    let day_of_era = (days + 719_468).rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5;
    (days - day_of_month) * DAY_MS
}

#[cfg(test)]
mod tests;
