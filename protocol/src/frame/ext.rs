//! The named string fields of a header ("extFields"), as read and as written.

use std::borrow::Cow;

use super::{binary, json};

/// The fields of a received header. Their form has been checked when the frame was decoded, so reading cannot fail. What is
/// not UTF-8 in the binary codec is replaced as it is read, as in Java.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ext<'a>(Source<'a>);

#[derive(Clone, Copy, Debug, Default)]
enum Source<'a> {
    #[default]
    None,
    /// The members of a JSON object, without its braces.
    Json(&'a str),
    /// The entries of the binary codec.
    Binary(&'a [u8]),
    Pairs(&'a [(String, String)]),
}

impl<'a> Ext<'a> {
    /// `members` must have passed `json::Scanner::members`.
    pub(super) fn json(members: &'a str) -> Self {
        Self(Source::Json(members))
    }

    /// `entries` must be whole entries, one behind the other.
    pub(super) fn binary(entries: &'a [u8]) -> Self {
        Self(Source::Binary(entries))
    }

    /// Fields that are already strings.
    pub fn pairs(pairs: &'a [(String, String)]) -> Self {
        Self(Source::Pairs(pairs))
    }

    /// All fields in the order of the wire. JSON numbers and booleans come as their text, nulls not at all.
    pub fn iter(&self) -> ExtIter<'a> {
        ExtIter(match self.0 {
            Source::None => Iter::Pairs([].iter()),
            Source::Json(members) => Iter::Json(json::Scanner::new(members)),
            Source::Binary(entries) => Iter::Binary(entries),
            Source::Pairs(pairs) => Iter::Pairs(pairs.iter()),
        })
    }

    /// Calls `f` with each field in the order of the wire, until it fails. Nothing is looked at that `f` does not look at.
    pub(crate) fn try_for_each<E>(
        &self,
        mut f: impl FnMut(&[u8], Text<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Source::Binary(mut entries) = self.0 {
            while let Some((key, value, rest)) = binary::split_entry(entries) {
                f(key, Text(Raw::Unchecked(value)))?;
                entries = rest;
            }
            return Ok(());
        }
        self.iter().try_for_each(|(key, value)| f(key.as_bytes(), value.into()))
    }

    /// The value of a field; the last one if a key occurs twice, as in a Java map.
    pub fn get(&self, key: &str) -> Option<Cow<'a, str>> {
        self.iter().filter(|(name, _)| name == key).last().map(|(_, value)| value)
    }

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

impl<'a> IntoIterator for &Ext<'a> {
    type Item = (Cow<'a, str>, Cow<'a, str>);
    type IntoIter = ExtIter<'a>;

    fn into_iter(self) -> ExtIter<'a> {
        self.iter()
    }
}

/// The text of a field as it came. Whether it is UTF-8 is found out by whoever asks for its text; what is not is replaced then, as
/// in Java.
#[derive(Clone, Debug)]
pub struct Text<'a>(Raw<'a>);

#[derive(Clone, Debug)]
enum Raw<'a> {
    Unchecked(&'a [u8]),
    Checked(Cow<'a, str>),
}

impl<'a> Text<'a> {
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Raw::Unchecked(bytes) => bytes,
            Raw::Checked(text) => text.as_bytes(),
        }
    }

    #[inline]
    pub fn into_text(self) -> Cow<'a, str> {
        match self.0 {
            Raw::Unchecked(bytes) => text(bytes),
            Raw::Checked(text) => text,
        }
    }

    pub fn to_text(&self) -> Cow<'_, str> {
        match &self.0 {
            Raw::Unchecked(bytes) => text(bytes),
            Raw::Checked(text) => Cow::Borrowed(text),
        }
    }
}

impl<'a, T: Into<Cow<'a, str>>> From<T> for Text<'a> {
    fn from(text: T) -> Self {
        Text(Raw::Checked(text.into()))
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Text<'_> {}

/// Iterator over the fields of an [`Ext`].
#[derive(Clone, Debug)]
pub struct ExtIter<'a>(Iter<'a>);

#[derive(Clone, Debug)]
enum Iter<'a> {
    Json(json::Scanner<'a>),
    Binary(&'a [u8]),
    Pairs(std::slice::Iter<'a, (String, String)>),
}

impl<'a> Iterator for ExtIter<'a> {
    type Item = (Cow<'a, str>, Cow<'a, str>);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            // An error cannot occur here; if it did, the fields would end.
            Iter::Json(scanner) => loop {
                let (key, value) = scanner.member().ok()??;
                if let Some(value) = value.text() {
                    return Some((key.text(), value));
                }
            },
            Iter::Binary(entries) => {
                let (key, value, rest) = binary::split_entry(entries)?;
                *entries = rest;
                Some((text(key), text(value)))
            }
            Iter::Pairs(pairs) => {
                pairs.next().map(|(key, value)| (Cow::Borrowed(&**key), Cow::Borrowed(&**value)))
            }
        }
    }
}

/// What is not UTF-8 is replaced. That it is, nearly always, is found out faster by itself.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// The value of a field to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Str(&'a str),
    /// Text that nobody has looked at yet, see [`Text`].
    Raw(&'a [u8]),
    I32(i32),
    I64(i64),
    U64(u64),
    Bool(bool),
}

impl Value<'_> {
    /// Hands the text of the value to `f`; nothing is allocated unless it is not UTF-8.
    pub fn with_text<R>(&self, f: impl FnOnce(&str) -> R) -> R {
        let mut buffer = itoa::Buffer::new();
        let checked;
        f(match *self {
            Value::Str(text) => text,
            Value::Raw(bytes) => {
                checked = text(bytes);
                &checked
            }
            Value::I32(number) => buffer.format(number),
            Value::I64(number) => buffer.format(number),
            Value::U64(number) => buffer.format(number),
            Value::Bool(true) => "true",
            Value::Bool(false) => "false",
        })
    }
}

/// Fields to be sent: every typed request and response, and lists of pairs.
pub trait Fields {
    /// Calls `f` with each field that is present.
    fn for_each(&self, f: &mut dyn FnMut(&str, Value<'_>));

    /// The fields as owned strings.
    fn to_pairs(&self) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        self.for_each(&mut |key, value| pairs.push((key.to_owned(), value.with_text(str::to_owned))));
        pairs
    }
}

impl Fields for () {
    fn for_each(&self, _: &mut dyn FnMut(&str, Value<'_>)) {}
}

impl<const N: usize> Fields for [(&str, Value<'_>); N] {
    fn for_each(&self, f: &mut dyn FnMut(&str, Value<'_>)) {
        self.iter().for_each(|(key, value)| f(key, *value));
    }
}

impl Fields for &[(&str, Value<'_>)] {
    fn for_each(&self, f: &mut dyn FnMut(&str, Value<'_>)) {
        self.iter().for_each(|(key, value)| f(key, *value));
    }
}

impl Fields for Vec<(String, String)> {
    fn for_each(&self, f: &mut dyn FnMut(&str, Value<'_>)) {
        self.iter().for_each(|(key, value)| f(key, Value::Str(value)));
    }
}

impl Fields for Ext<'_> {
    fn for_each(&self, f: &mut dyn FnMut(&str, Value<'_>)) {
        self.iter().for_each(|(key, value)| f(&key, Value::Str(&value)));
    }
}

/// Two sets of fields as one, so that a server can add its own to a typed response.
#[derive(Clone, Copy)]
pub struct Both<'a>(pub &'a dyn Fields, pub &'a dyn Fields);

impl Fields for Both<'_> {
    fn for_each(&self, f: &mut dyn FnMut(&str, Value<'_>)) {
        self.0.for_each(f);
        self.1.for_each(f);
    }
}
