//! The reader: a serde `Deserializer` over the scanner of the frame header.

use std::borrow::Cow;

use serde::de::{DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::{DEPTH_MAX, JsonError, TEXT_BYTES_MAX};
use crate::frame::FrameError;
use crate::frame::json::{RawValue, Scanner};

/// Reads a value from a text that holds nothing else.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(JsonError::TooLong(bytes.len()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| JsonError::NotUtf8)?;
    let mut reader = Reader { scanner: Scanner::new(text), depth: 0 };
    let value = T::deserialize(&mut reader)?;
    match reader.scanner.peek() {
        None => Ok(value),
        Some(_) => Err(reader.error("something follows the value")),
    }
}

impl From<FrameError> for JsonError {
    /// The scanner reports in terms of the frame.
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Json { at, problem } => Self::Syntax { at, problem },
            other => Self::Content(other.to_string()),
        }
    }
}

struct Reader<'de> {
    scanner: Scanner<'de>,
    depth: u32,
}

impl<'de> Reader<'de> {
    fn error(&self, problem: &'static str) -> JsonError {
        JsonError::Syntax { at: self.scanner.at(), problem }
    }

    /// Reads what stands between a pair of brackets.
    fn nested<T>(
        &mut self,
        close: u8,
        read: impl FnOnce(&mut Self) -> Result<T, JsonError>,
    ) -> Result<T, JsonError> {
        self.scanner.bump();
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error("nested too deep"));
        }
        let value = read(self)?;
        self.depth -= 1;
        self.scanner.expect(close, "a comma or a closing bracket expected")?;
        Ok(value)
    }

    fn map<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, JsonError> {
        self.nested(b'}', |reader| visitor.visit_map(Items { reader, close: b'}', first: true }))
    }

    fn seq<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, JsonError> {
        self.nested(b']', |reader| visitor.visit_seq(Items { reader, close: b']', first: true }))
    }

    /// A string, number or boolean as its text.
    fn text(&mut self) -> Result<Cow<'de, str>, JsonError> {
        match self.scanner.value()? {
            RawValue::Str(string) => Ok(string.text()),
            RawValue::Bare(word) => Ok(Cow::Borrowed(word)),
            RawValue::Null | RawValue::Nested(_) => Err(self.error("a string or a number expected")),
        }
    }

    fn string<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, JsonError> {
        match self.text()? {
            Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
            Cow::Owned(text) => visitor.visit_string(text),
        }
    }

    fn number<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, JsonError> {
        let text = self.text()?;
        match Number::of(text.trim()) {
            Some(number) => number.visit(visitor),
            None => Err(self.error("a number expected")),
        }
    }
}

enum Number {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
}

impl Number {
    fn of(text: &str) -> Option<Self> {
        let signed = text.parse().map(Self::Signed);
        let number = signed.or_else(|_| text.parse().map(Self::Unsigned)).ok();
        // Words like "inf" are no numbers here, and nothing too large for one is.
        let is_numeric =
            text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
        number.or_else(|| text.parse().ok().filter(|n: &f64| is_numeric && n.is_finite()).map(Self::Float))
    }

    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        match self {
            Self::Signed(number) => visitor.visit_i64(number),
            Self::Unsigned(number) => visitor.visit_u64(number),
            Self::Float(number) => visitor.visit_f64(number),
        }
    }
}

macro_rules! by {
    ($how:ident: $($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
            self.$how(visitor)
        }
    )*};
}

impl<'de> serde::Deserializer<'de> for &mut Reader<'de> {
    type Error = JsonError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        match self.scanner.peek() {
            Some(b'{') => self.map(visitor),
            Some(b'[') => self.seq(visitor),
            Some(b'"') => self.string(visitor),
            _ => match self.scanner.bare()? {
                "null" => visitor.visit_unit(),
                "true" => visitor.visit_bool(true),
                "false" => visitor.visit_bool(false),
                number => Number::of(number).ok_or(self.error("a number expected"))?.visit(visitor),
            },
        }
    }

    by!(number: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64);
    by!(number: deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64);
    by!(number: deserialize_f32 deserialize_f64);
    by!(string: deserialize_str deserialize_string deserialize_identifier deserialize_char);

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        match &*self.text()? {
            "0" => visitor.visit_bool(false),
            "1" => visitor.visit_bool(true),
            text if text.eq_ignore_ascii_case("true") => visitor.visit_bool(true),
            text if text.eq_ignore_ascii_case("false") => visitor.visit_bool(false),
            _ => Err(self.error("a boolean expected")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        if self.scanner.peek() == Some(b'n') {
            self.scanner.bare()?;
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        use serde::de::IntoDeserializer;
        visitor.visit_enum(self.text()?.into_deserializer())
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.scanner.value()?;
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { i128 u128 bytes byte_buf unit unit_struct seq tuple tuple_struct map struct }
}

/// The members of an object or the elements of an array.
struct Items<'r, 'de> {
    reader: &'r mut Reader<'de>,
    close: u8,
    first: bool,
}

impl Items<'_, '_> {
    /// Steps to the next item; false at the end.
    fn advance(&mut self) -> Result<bool, JsonError> {
        let first = std::mem::replace(&mut self.first, false);
        if self.reader.scanner.peek() == Some(self.close) {
            return Ok(false);
        }
        if !first {
            self.reader.scanner.expect(b',', "a comma or a closing bracket expected")?;
        }
        Ok(true)
    }

    /// Steps over a member whose value is null: to Java that is the same as no member.
    fn skip_null_member(&mut self) -> Result<bool, JsonError> {
        let mut ahead = self.reader.scanner.clone();
        ahead.value()?;
        ahead.expect(b':', "a colon expected")?;
        let is_null = ahead.peek() == Some(b'n') && matches!(ahead.value()?, RawValue::Null);
        if is_null {
            self.reader.scanner = ahead;
        }
        Ok(is_null)
    }
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = JsonError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, JsonError> {
        if !self.advance()? {
            return Ok(None);
        }
        seed.deserialize(&mut *self.reader).map(Some)
    }
}

impl<'de> MapAccess<'de> for Items<'_, 'de> {
    type Error = JsonError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, JsonError> {
        loop {
            if !self.advance()? {
                return Ok(None);
            }
            if !self.skip_null_member()? {
                return seed.deserialize(&mut *self.reader).map(Some);
            }
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, JsonError> {
        self.reader.scanner.expect(b':', "a colon expected")?;
        seed.deserialize(&mut *self.reader)
    }
}
