//! The JSON header codec, and the scanner under it.
//!
//! The scanner makes one pass and copies nothing: strings stay as they are on the wire until somebody asks for their
//! text. It is lenient where Java is (control characters in strings, numbers in strings) and bounded where it nests.

use std::borrow::Cow;

use super::{Codec, Ext, Fields, FrameError, Head, Header, Language, Value};
use crate::find;
use crate::types::Opaque;

/// How deep a value may nest that is skipped.
const DEPTH_MAX: u32 = 64;

/// A string of the text, without its quotes; its escapes have been checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawStr<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a> RawStr<'a> {
    pub(crate) fn text(self) -> Cow<'a, str> {
        if self.escaped { Cow::Owned(unescape(self.raw)) } else { Cow::Borrowed(self.raw) }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum RawValue<'a> {
    Null,
    Str(RawStr<'a>),
    /// A number or a boolean, as written.
    Bare(&'a str),
    /// An object or an array, as written.
    Nested(&'a str),
}

impl<'a> RawValue<'a> {
    /// The value as a string; `None` for null.
    pub(crate) fn text(self) -> Option<Cow<'a, str>> {
        match self {
            RawValue::Null => None,
            RawValue::Str(string) => Some(string.text()),
            RawValue::Bare(text) | RawValue::Nested(text) => Some(Cow::Borrowed(text)),
        }
    }
}

/// How many bytes there are before the first quote or backslash.
#[inline]
fn plain_len(bytes: &[u8]) -> usize {
    find::either(b'"', b'\\', bytes).unwrap_or(bytes.len())
}

/// Key and value of a member as most are, `"key":"value"` without a space or an escape, and the bytes that it takes with the comma behind
/// it. `None` says nothing.
#[inline]
fn plain_member(text: &str) -> Option<(&str, &str, usize)> {
    let rest = text.strip_prefix('"')?;
    let (key, rest) = rest.split_at_checked(plain_len(rest.as_bytes()))?;
    let rest = rest.strip_prefix("\":\"")?;
    let (value, rest) = rest.split_at_checked(plain_len(rest.as_bytes()))?;
    let len = key.len() + value.len() + "'':''".len();
    match rest.as_bytes() {
        [b'"', b',', ..] => Some((key, value, len + 1)),
        [b'"', b'}', ..] | [b'"'] => Some((key, value, len)),
        _ => None,
    }
}

/// A place in a JSON text.
#[derive(Clone, Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn error(&self, problem: &'static str) -> FrameError {
        FrameError::Json { at: self.at, problem }
    }

    /// The next byte that is no white space, which stays where it is; `None` at the end.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    /// Steps over the byte that `peek` has shown.
    pub(crate) fn bump(&mut self) {
        self.at += 1;
    }

    #[inline]
    pub(crate) fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    #[inline]
    pub(crate) fn expect(&mut self, byte: u8, problem: &'static str) -> Result<(), FrameError> {
        if self.eat(byte) { Ok(()) } else { Err(self.error(problem)) }
    }

    #[inline]
    pub(crate) fn string(&mut self) -> Result<RawStr<'a>, FrameError> {
        self.expect(b'"', "a string expected")?;
        let bytes = self.text.as_bytes();
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at += plain_len(&bytes[self.at..]);
            match bytes.get(self.at) {
                Some(b'"') => break,
                Some(_) => escaped = true,
                None => return Err(self.error("an open string")),
            }
            self.at += match bytes.get(self.at + 1) {
                Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
                Some(b'u') => match bytes.get(self.at + 2..self.at + 6) {
                    Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => 6,
                    _ => return Err(self.error("a bad \\u escape")),
                },
                _ => return Err(self.error("an unknown escape")),
            };
        }
        let raw = &self.text[start..self.at];
        self.at += 1;
        Ok(RawStr { raw, escaped })
    }

    /// A number, `true`, `false` or `null`, as written.
    pub(crate) fn bare(&mut self) -> Result<&'a str, FrameError> {
        self.peek();
        let rest = &self.text.as_bytes()[self.at..];
        let len = rest
            .iter()
            .position(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'E' | b'-' | b'+' | b'.'))
            .unwrap_or(rest.len());
        let word = &self.text[self.at..self.at + len];
        let is_number = match word.as_bytes() {
            digits if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => true,
            [b'0'..=b'9', ..] | [b'-', b'0'..=b'9', ..] => word.parse::<f64>().is_ok(),
            _ => false,
        };
        if !is_number && !matches!(word, "true" | "false" | "null") {
            return Err(self.error("a value expected"));
        }
        self.at += len;
        Ok(word)
    }

    #[inline]
    pub(crate) fn value(&mut self) -> Result<RawValue<'a>, FrameError> {
        match self.peek() {
            Some(b'"') => self.string().map(RawValue::Str),
            Some(b'{' | b'[') => self.nested().map(RawValue::Nested),
            _ => self.bare().map(|word| if word == "null" { RawValue::Null } else { RawValue::Bare(word) }),
        }
    }

    /// Steps over an object or array. Its strings and brackets are checked, the grammar between them is not.
    fn nested(&mut self) -> Result<&'a str, FrameError> {
        let start = self.at;
        let (mut objects, mut depth) = (0u64, 0u32);
        loop {
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    if depth == DEPTH_MAX {
                        return Err(self.error("nested too deep"));
                    }
                    objects = objects << 1 | u64::from(open == b'{');
                    depth += 1;
                    self.at += 1;
                }
                Some(close @ (b'}' | b']')) => {
                    if (objects & 1 == 1) != (close == b'}') {
                        return Err(self.error("brackets do not match"));
                    }
                    objects >>= 1;
                    depth -= 1;
                    self.at += 1;
                    if depth == 0 {
                        return Ok(&self.text[start..self.at]);
                    }
                }
                Some(b'"') => drop(self.string()?),
                Some(_) => self.at += 1,
                None => return Err(self.error("an open bracket")),
            }
        }
    }

    /// One `"key": value` and the comma behind it; `None` where the text or the object ends.
    #[inline]
    pub(crate) fn member(&mut self) -> Result<Option<(RawStr<'a>, RawValue<'a>)>, FrameError> {
        match plain_member(&self.text[self.at..]) {
            Some((key, value, len)) => {
                self.at += len;
                let string = |raw| RawStr { raw, escaped: false };
                Ok(Some((string(key), RawValue::Str(string(value)))))
            }
            None => self.any_member(),
        }
    }

    fn any_member(&mut self) -> Result<Option<(RawStr<'a>, RawValue<'a>)>, FrameError> {
        if matches!(self.peek(), None | Some(b'}')) {
            return Ok(None);
        }
        let key = self.string()?;
        self.expect(b':', "a colon expected")?;
        let value = self.value()?;
        if !self.eat(b',') && !matches!(self.peek(), None | Some(b'}')) {
            return Err(self.error("a comma or the end of the object expected"));
        }
        Ok(Some((key, value)))
    }

    /// The members of an object of which the opening brace has been eaten, up to and with its closing brace.
    fn members(&mut self) -> Result<&'a str, FrameError> {
        let start = self.at;
        while self.member()?.is_some() {}
        let members = &self.text[start..self.at];
        self.expect(b'}', "an open object")?;
        Ok(members)
    }

    fn number(&mut self) -> Result<i32, FrameError> {
        let value = self.value()?;
        match value.text() {
            None => Ok(0),
            Some(text) => text.trim().parse().map_err(|_| self.error("a 32-bit number expected")),
        }
    }
}

/// `raw` has been checked by `Scanner::string`. Half a surrogate pair becomes U+FFFD.
fn unescape(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let kind = rest.as_bytes()[at + 1];
        rest = &rest[at + 2..];
        text.push(match kind {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = take_unit(&mut rest);
                match unit {
                    0xD800..=0xDBFF => take_low_surrogate(&mut rest).map_or('\u{FFFD}', |low| {
                        let point = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
                        char::from_u32(point).unwrap_or('\u{FFFD}')
                    }),
                    _ => char::from_u32(unit).unwrap_or('\u{FFFD}'),
                }
            }
            plain => char::from(plain),
        });
    }
    text.push_str(rest);
    text
}

fn take_unit(rest: &mut &str) -> u32 {
    let (digits, behind) = rest.split_at(4);
    *rest = behind;
    u32::from_str_radix(digits, 16).unwrap_or(0xFFFD)
}

fn take_low_surrogate(rest: &mut &str) -> Option<u32> {
    let mut behind = rest.strip_prefix("\\u")?;
    let unit = take_unit(&mut behind);
    (0xDC00..=0xDFFF).contains(&unit).then(|| {
        *rest = behind;
        unit
    })
}

pub(super) fn decode_header(bytes: &[u8]) -> Result<Header<'_>, FrameError> {
    let text = std::str::from_utf8(bytes).map_err(|_| FrameError::NotUtf8)?;
    let mut scanner = Scanner::new(text);
    let mut header = Header {
        codec: Codec::Json,
        code: 0,
        language: Language::Other,
        version: 0,
        opaque: Opaque(0),
        flag: 0,
        remark: None,
        ext: Ext::default(),
    };
    scanner.expect(b'{', "an object expected")?;
    while !matches!(scanner.peek(), None | Some(b'}')) {
        let key = scanner.string()?;
        scanner.expect(b':', "a colon expected")?;
        match &*key.text() {
            "code" => header.code = scanner.number()?,
            "version" => header.version = scanner.number()?,
            "opaque" => header.opaque = Opaque(scanner.number()?),
            "flag" => header.flag = scanner.number()?,
            "language" => {
                header.language =
                    scanner.value()?.text().map_or(Language::Other, |name| Language::from_name(&name));
            }
            "remark" => header.remark = scanner.value()?.text(),
            "extFields" if scanner.eat(b'{') => header.ext = Ext::json(scanner.members()?),
            "extFields" => match scanner.value()? {
                RawValue::Null => header.ext = Ext::default(),
                _ => return Err(scanner.error("extFields is no object")),
            },
            _ => drop(scanner.value()?),
        }
        if !scanner.eat(b',') {
            break;
        }
    }
    scanner.expect(b'}', "a comma or the end of the header expected")?;
    match scanner.peek() {
        None => Ok(header),
        Some(_) => Err(scanner.error("something follows the header")),
    }
}

pub(super) fn encode_header(out: &mut Vec<u8>, head: &Head<'_>, ext: &dyn Fields) {
    let mut buffer = itoa::Buffer::new();
    out.extend_from_slice(b"{\"code\":");
    out.extend_from_slice(buffer.format(head.code).as_bytes());
    let mut separator: &[u8] = b",\"extFields\":{";
    ext.for_each(&mut |key, value| {
        out.extend_from_slice(separator);
        separator = b",";
        // Strings without exception: Go drops the whole response for one bare number.
        put_string(out, key);
        out.push(b':');
        match value {
            Value::Str(_) | Value::Raw(_) => value.with_text(|text| put_string(out, text)),
            _ => value.with_text(|text| {
                out.push(b'"');
                out.extend_from_slice(text.as_bytes());
                out.push(b'"');
            }),
        }
    });
    if separator == b"," {
        out.push(b'}');
    }
    out.extend_from_slice(b",\"flag\":");
    out.extend_from_slice(buffer.format(head.flag).as_bytes());
    out.extend_from_slice(b",\"language\":\"");
    out.extend_from_slice(head.language.name().as_bytes());
    out.extend_from_slice(b"\",\"opaque\":");
    out.extend_from_slice(buffer.format(head.opaque.0).as_bytes());
    if let Some(remark) = head.remark {
        out.extend_from_slice(b",\"remark\":");
        put_string(out, remark);
    }
    out.extend_from_slice(b",\"version\":");
    out.extend_from_slice(buffer.format(head.version).as_bytes());
    out.push(b'}');
}

/// Appends a JSON string with its quotes.
pub(crate) fn put_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut start = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[start..at]);
        start = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
    }
    out.extend_from_slice(&bytes[start..]);
    out.push(b'"');
}
