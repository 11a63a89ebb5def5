//! The writer: a serde `Serializer` of fastjson's form. Compact, because Go clients split it by hand.

use serde::Serialize;
use serde::ser::{self, Impossible};

use super::JsonError;
use crate::frame::json::put_string;

/// Writes a value. Members that are `None` are left out.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, JsonError> {
    let mut out = Vec::new();
    value.serialize(Writer { out: &mut out })?;
    Ok(out)
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn number(self, number: impl itoa::Integer) -> Result<(), JsonError> {
        self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        Ok(())
    }

    fn word(self, word: &str) -> Result<(), JsonError> {
        self.out.extend_from_slice(word.as_bytes());
        Ok(())
    }
}

macro_rules! numbers {
    ($($method:ident($type:ty))*) => {$(
        fn $method(self, number: $type) -> Result<(), JsonError> {
            self.number(number)
        }
    )*};
}

impl<'a> ser::Serializer for Writer<'a> {
    type Ok = ();
    type Error = JsonError;
    type SerializeSeq = Items<'a>;
    type SerializeTuple = Items<'a>;
    type SerializeTupleStruct = Items<'a>;
    type SerializeTupleVariant = Impossible<(), JsonError>;
    type SerializeMap = Items<'a>;
    type SerializeStruct = Items<'a>;
    type SerializeStructVariant = Impossible<(), JsonError>;

    numbers! {
        serialize_i8(i8) serialize_i16(i16) serialize_i32(i32) serialize_i64(i64)
        serialize_u8(u8) serialize_u16(u16) serialize_u32(u32) serialize_u64(u64)
    }

    fn serialize_bool(self, value: bool) -> Result<(), JsonError> {
        self.word(if value { "true" } else { "false" })
    }

    fn serialize_f32(self, number: f32) -> Result<(), JsonError> {
        self.serialize_f64(f64::from(number))
    }

    fn serialize_f64(self, number: f64) -> Result<(), JsonError> {
        // `Debug` writes the shortest text that reads back, always with a point or an exponent.
        if number.is_finite() { self.word(&format!("{number:?}")) } else { self.word("null") }
    }

    fn serialize_char(self, value: char) -> Result<(), JsonError> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, text: &str) -> Result<(), JsonError> {
        put_string(self.out, text);
        Ok(())
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), JsonError> {
        self.collect_seq(bytes)
    }

    fn serialize_none(self) -> Result<(), JsonError> {
        self.word("null")
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), JsonError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), JsonError> {
        self.word("null")
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), JsonError> {
        self.word("null")
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, name: &'static str) -> Result<(), JsonError> {
        self.serialize_str(name)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), JsonError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), JsonError> {
        Err(no_variants())
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Items<'a>, JsonError> {
        Ok(Items::open(self.out, b'[', b']'))
    }

    fn serialize_tuple(self, _: usize) -> Result<Items<'a>, JsonError> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Items<'a>, JsonError> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Impossible<(), JsonError>, JsonError> {
        Err(no_variants())
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Items<'a>, JsonError> {
        Ok(Items::open(self.out, b'{', b'}'))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Items<'a>, JsonError> {
        self.serialize_map(None)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Impossible<(), JsonError>, JsonError> {
        Err(no_variants())
    }
}

fn no_variants() -> JsonError {
    JsonError::Content("an enum with contents has no form in fastjson".to_owned())
}

/// What is being written between a pair of brackets.
struct Items<'a> {
    out: &'a mut Vec<u8>,
    close: u8,
    first: bool,
}

impl<'a> Items<'a> {
    fn open(out: &'a mut Vec<u8>, open: u8, close: u8) -> Self {
        out.push(open);
        Self { out, close, first: true }
    }

    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        if !std::mem::replace(&mut self.first, false) {
            self.out.push(b',');
        }
        value.serialize(Writer { out: self.out })
    }

    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        self.out.push(b':');
        value.serialize(Writer { out: self.out })
    }

    fn close(self) -> Result<(), JsonError> {
        self.out.push(self.close);
        Ok(())
    }
}

macro_rules! elements {
    ($($trait:ident $method:ident)*) => {$(
        impl ser::$trait for Items<'_> {
            type Ok = ();
            type Error = JsonError;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
                self.item(value)
            }

            fn end(self) -> Result<(), JsonError> {
                self.close()
            }
        }
    )*};
}

elements! { SerializeSeq serialize_element SerializeTuple serialize_element SerializeTupleStruct serialize_field }

impl ser::SerializeMap for Items<'_> {
    type Ok = ();
    type Error = JsonError;

    /// Strings get their quotes, numbers none, and structs are written as they are.
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), JsonError> {
        self.item(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        self.value(value)
    }

    fn end(self) -> Result<(), JsonError> {
        self.close()
    }
}

impl ser::SerializeStruct for Items<'_> {
    type Ok = ();
    type Error = JsonError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), JsonError> {
        self.item(name)?;
        self.value(value)
    }

    fn end(self) -> Result<(), JsonError> {
        self.close()
    }
}
