//! How a field is read, written and declared.

use std::borrow::Cow;

use thiserror::Error;

use crate::frame::Value;
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
    fn read(text: Cow<'a, str>) -> Result<Option<Self>, FieldProblem>;
    /// The value of a field that is not there; `None` if it must be.
    fn absent() -> Option<Self> {
        None
    }
    fn value(&self) -> Option<Value<'_>>;
}

impl<'a> Field<'a> for Cow<'a, str> {
    fn read(text: Cow<'a, str>) -> Result<Option<Self>, FieldProblem> {
        Ok(Some(text))
    }
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Str(self))
    }
}

macro_rules! number_field {
    ($($type:ty, $value:expr;)*) => {$(
        impl<'a> Field<'a> for $type {
            fn read(text: Cow<'a, str>) -> Result<Option<Self>, FieldProblem> {
                match &*text {
                    "" => Ok(None),
                    digits => digits.parse().map(Some).map_err(|_| FieldProblem::NotANumber),
                }
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
    fn read(text: Cow<'a, str>) -> Result<Option<Self>, FieldProblem> {
        Ok(u32::read(text)?.map(Self))
    }
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::U64(u64::from(self.0)))
    }
}

impl<'a> Field<'a> for PhysicalOffset {
    fn read(text: Cow<'a, str>) -> Result<Option<Self>, FieldProblem> {
        Ok(u64::read(text)?.map(Self))
    }
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::U64(self.0))
    }
}

impl<'a> Field<'a> for bool {
    /// As Java: any case of "true", and everything else is false.
    fn read(text: Cow<'a, str>) -> Result<Option<Self>, FieldProblem> {
        Ok((!text.is_empty()).then(|| text.eq_ignore_ascii_case("true")))
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
    fn read(text: Cow<'a, str>) -> Result<Option<Self>, FieldProblem> {
        Ok(Some(if text.eq_ignore_ascii_case("upper") { Self::Upper } else { Self::Lower }))
    }
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Str(match self {
            Self::Lower => "LOWER",
            Self::Upper => "UPPER",
        }))
    }
}

impl<'a, T: Field<'a>> Field<'a> for Option<T> {
    fn read(text: Cow<'a, str>) -> Result<Option<Self>, FieldProblem> {
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
/// `renamed struct` leaves out `decode`, for a header that has to choose the names it reads.
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
                Self::decode_renamed(ext, |name| name)
            }
        }
        headers!($($rest)*);
    };
    ($(#[$doc:meta])* struct $name:ident { $($body:tt)* } $($rest:tt)*) => {
        headers!(@header [$(#[$doc])*] $name [] '_ { $($body)* });
        impl $name {
            /// Reads the fields; fields of other names are ignored.
            pub fn decode(ext: &$crate::frame::Ext<'_>) -> Result<Self, $crate::request::FieldError> {
                Self::decode_renamed(ext, |name| name)
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
            #[inline]
            fn decode_renamed(
                ext: &$crate::frame::Ext<$lt>,
                rename: impl for<'n> Fn(&'n str) -> &'n str,
            ) -> Result<Self, $crate::request::FieldError> {
                use $crate::request::{FieldError, FieldProblem, field::Field};
                $(let mut $field: Option<$type> = None;)*
                for (key, text) in ext.iter() {
                    match rename(&key) {
                        $($wire => {
                            $field = <$type>::read(text)
                                .map_err(|problem| FieldError { field: $wire, problem })?;
                        })*
                        _ => {}
                    }
                }
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
