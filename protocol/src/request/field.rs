//! How a field is read, written and declared.

use std::borrow::Cow;

use thiserror::Error;

use crate::frame::{Text, Value};
use crate::types::{PhysicalOffset, QueueId};

/// Why the fields of a header are not those of the request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("field {field} {problem}")]
pub struct FieldError {
    /// The name on the wire.
    pub field: &'static str,
    pub problem: FieldProblem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FieldProblem {
    #[error("is missing")]
    Missing,
    #[error("is no number, or one out of range")]
    NotANumber,
}

/// A type that a field can have. Strings keep emptiness apart from absence; for everything else an empty string is
/// absence, because the binary codec of old clients cannot say null otherwise.
pub(super) trait Field<'a>: Sized {
    fn read(text: Text<'a>) -> Result<Option<Self>, FieldProblem>;
    /// The value of a field that is not there; `None` if it must be.
    fn absent() -> Option<Self> {
        None
    }
    fn value(&self) -> Option<Value<'_>>;
}

/// For a field that is seldom looked at, or never as text.
impl<'a> Field<'a> for Text<'a> {
    fn read(text: Text<'a>) -> Result<Option<Self>, FieldProblem> {
        Ok(Some(text))
    }
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Raw(self.as_bytes()))
    }
}

impl<'a> Field<'a> for Cow<'a, str> {
    fn read(text: Text<'a>) -> Result<Option<Self>, FieldProblem> {
        Ok(Some(text.into_text()))
    }
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Str(self))
    }
}

/// The number that a few digits say, which may have a minus sign: nearly all that there are. `None` says nothing.
#[inline]
fn short_number(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if !(1..=18).contains(&digits.len()) {
        return None;
    }
    let mut number = 0;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + i64::from(digit);
    }
    Some(if is_negative { -number } else { number })
}

macro_rules! number_field {
    ($($type:ty, $value:expr;)*) => {$(
        impl<'a> Field<'a> for $type {
            fn read(text: Text<'a>) -> Result<Option<Self>, FieldProblem> {
                let text = text.as_bytes();
                if text.is_empty() {
                    return Ok(None);
                }
                let number = match short_number(text) {
                    Some(number) => number.try_into().ok(),
                    None => std::str::from_utf8(text).ok().and_then(|digits| digits.parse().ok()),
                };
                number.map(Some).ok_or(FieldProblem::NotANumber)
            }
            fn value(&self) -> Option<Value<'_>> {
                let value: fn($type) -> Value<'static> = $value;
                Some(value(*self))
            }
        }
    )*};
}

number_field! {
    i32, Value::I32;
    i64, Value::I64;
    u64, Value::U64;
    u32, |number| Value::U64(u64::from(number));
}

impl<'a> Field<'a> for QueueId {
    fn read(text: Text<'a>) -> Result<Option<Self>, FieldProblem> {
        Ok(u32::read(text)?.map(Self))
    }
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::U64(u64::from(self.0)))
    }
}

impl<'a> Field<'a> for PhysicalOffset {
    fn read(text: Text<'a>) -> Result<Option<Self>, FieldProblem> {
        Ok(u64::read(text)?.map(Self))
    }
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::U64(self.0))
    }
}

impl<'a> Field<'a> for bool {
    /// As Java: any case of "true", and everything else is false.
    fn read(text: Text<'a>) -> Result<Option<Self>, FieldProblem> {
        let text = text.as_bytes();
        Ok((!text.is_empty()).then(|| text.eq_ignore_ascii_case(b"true")))
    }
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Bool(*self))
    }
}

/// Which message a time between two stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BoundaryType {
    /// The first message at or after the time.
    #[default]
    Lower,
    /// The last message at or before the time.
    Upper,
}

impl<'a> Field<'a> for BoundaryType {
    fn read(text: Text<'a>) -> Result<Option<Self>, FieldProblem> {
        Ok(Some(if text.as_bytes().eq_ignore_ascii_case(b"upper") { Self::Upper } else { Self::Lower }))
    }
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Str(match self {
            Self::Lower => "LOWER",
            Self::Upper => "UPPER",
        }))
    }
}

impl<'a, T: Field<'a>> Field<'a> for Option<T> {
    fn read(text: Text<'a>) -> Result<Option<Self>, FieldProblem> {
        T::read(text).map(Some)
    }
    fn absent() -> Option<Self> {
        Some(None)
    }
    fn value(&self) -> Option<Value<'_>> {
        self.as_ref().and_then(T::value)
    }
}

/// Declares typed headers: `field: type = "wireName"`, or `field: type = "wireName" or default`.
/// `renamed struct` leaves out `decode`, for a header that has other names as well: it gets `decode_by`.
macro_rules! headers {
    () => {};
    ($(#[$doc:meta])* renamed struct $name:ident<$lt:lifetime> { $($body:tt)* } $($rest:tt)*) => {
        headers!(@header [$(#[$doc])*] $name [<$lt>] $lt { $($body)* });
        headers!($($rest)*);
    };
    ($(#[$doc:meta])* struct $name:ident<$lt:lifetime> { $($body:tt)* } $($rest:tt)*) => {
        headers!(@header [$(#[$doc])*] $name [<$lt>] $lt { $($body)* });
        impl<$lt> $name<$lt> {
            /// Reads the fields; fields of other names are ignored.
            pub fn decode(ext: &$crate::frame::Ext<$lt>) -> Result<Self, $crate::request::FieldError> {
                Self::decode_by(ext, Self::index_of)
            }
        }
        headers!($($rest)*);
    };
    ($(#[$doc:meta])* struct $name:ident { $($body:tt)* } $($rest:tt)*) => {
        headers!(@header [$(#[$doc])*] $name [] '_ { $($body)* });
        impl $name {
            /// Reads the fields; fields of other names are ignored.
            pub fn decode(ext: &$crate::frame::Ext<'_>) -> Result<Self, $crate::request::FieldError> {
                Self::decode_by(ext, Self::index_of)
            }
        }
        headers!($($rest)*);
    };
    (@header [$(#[$doc:meta])*] $name:ident [$($generics:tt)*] $lt:lifetime {
        $($(#[$field_doc:meta])* $field:ident: $type:ty = $wire:literal $(or $default:expr)?,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name $($generics)* {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $($generics)* $name $($generics)* {
            /// The number of the field with a name.
            #[inline]
            fn index_of(name: &[u8]) -> Option<usize> {
                const NAMES: &[&str] = &[$($wire),*];
                NAMES.iter().position(|known| known.as_bytes() == name)
            }

            /// Reads the fields, `index` of a name being the number of its field.
            #[inline]
            fn decode_by(
                ext: &$crate::frame::Ext<$lt>,
                index: impl Fn(&[u8]) -> Option<usize>,
            ) -> Result<Self, $crate::request::FieldError> {
                use $crate::request::{FieldError, FieldProblem, field::Field};
                #[allow(non_camel_case_types)]
                #[derive(Clone, Copy)]
                enum Index {
                    $($field,)*
                }
                $(let mut $field: Option<$type> = None;)*
                ext.try_for_each(|name, text| {
                    match index(name) {
                        $(Some(index) if index == Index::$field as usize => {
                            $field = <$type>::read(text)
                                .map_err(|problem| FieldError { field: $wire, problem })?;
                        })*
                        _ => {}
                    }
                    Ok(())
                })?;
                Ok(Self {$(
                    $field: $field
                        .or_else(<$type as Field<$lt>>::absent)
                        $(.or_else(|| Some($default)))?
                        .ok_or(FieldError { field: $wire, problem: FieldProblem::Missing })?,
                )*})
            }
        }

        impl $($generics)* $crate::frame::Fields for $name $($generics)* {
            fn for_each(&self, f: &mut dyn FnMut(&str, $crate::frame::Value<'_>)) {
                $(if let Some(value) = $crate::request::field::Field::value(&self.$field) {
                    f($wire, value);
                })*
            }
        }
    };
}
pub(super) use headers;
