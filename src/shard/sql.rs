//! SQL92 filters: an expression over the properties of a message, compiled once and evaluated for each message.
//!
//! The language is RocketMQ's. Values of properties are strings; compared with a number they are read as a number of that
//! number's kind. Logic has three values: what is said of a property that a message does not have is unknown.
//!
//! Q1  A message matches only if the whole is TRUE: not if it is unknown, and not if a value cannot be read as needed.
//! Q2  Neither compiling nor evaluating recurses deeper than `SQL_DEPTH_MAX`, whatever the expression.
//! Q3  Evaluating allocates nothing, reads the properties of the message once and visits each node at most once.

mod parser;

use super::limits::SQL_NAMES_MAX;
use ringmq_protocol::properties::Properties;
use std::cmp::Ordering;

pub use parser::SqlError;

/// A compiled expression. Two are equal if their texts are.
#[derive(Debug)]
pub struct Sql {
    text: Box<str>,
    /// Operands come before what is made of them.
    nodes: Box<[Node]>,
    root: NodeIx,
    /// The properties it speaks of, each once.
    names: Box<[Box<str>]>,
    /// Nodes that walk over the bytes of a value.
    searches: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct NodeIx(u16);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct NameIx(u16);

#[derive(Clone, PartialEq, Debug)]
enum Node {
    Null,
    Bool(bool),
    Int(i32),
    Long(i64),
    Double(f64),
    Text(Box<str>),
    Property(NameIx),
    Negate(NodeIx),
    /// A property where a condition is wanted.
    Cast(NodeIx),
    Not(NodeIx),
    And(Box<[NodeIx]>),
    Or(Box<[NodeIx]>),
    Equal(NodeIx, NodeIx),
    IsNull(NodeIx),
    Compare(Comparison, NodeIx, NodeIx),
    Between {
        value: NodeIx,
        low: NodeIx,
        high: NodeIx,
        negated: bool,
    },
    In {
        property: NameIx,
        /// Sorted.
        list: Box<[Box<str>]>,
        negated: bool,
    },
    Search {
        place: Place,
        value: NodeIx,
        text: Box<str>,
        negated: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Comparison::Less => ordering.is_lt(),
            Comparison::LessOrEqual => ordering.is_le(),
            Comparison::Greater => ordering.is_gt(),
            Comparison::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

/// Where in a value a text is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Anywhere,
    Start,
    End,
}

#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Null,
    Bool(bool),
    Int(i32),
    Long(i64),
    Double(f64),
    Text(&'a str),
}

/// A value cannot be read as what it is compared with: the message does not match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Unreadable;

/// TRUE, FALSE, or unknown.
type Truth = Option<bool>;

impl Sql {
    /// Compiles an expression. The error says where it is wrong and what is allowed there.
    pub fn compile(text: &str) -> Result<Self, SqlError> {
        parser::compile(text)
    }

    /// The expression as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a message with these properties is wanted.
    pub fn matches(&self, properties: Properties<'_>) -> bool {
        let mut values = [""; SQL_NAMES_MAX];
        let mut missing = self.names.len();
        // Of several pairs of one name the last counts, and a pair that is not UTF-8 does not exist.
        for (name, value) in properties.raw().rev() {
            if let Some(at) = self.names.iter().position(|wanted| wanted.as_bytes() == name)
                && values[at].is_empty()
                && let Ok(value) = std::str::from_utf8(value)
            {
                values[at] = value;
                missing -= 1;
                if missing == 0 {
                    break;
                }
            }
        }
        self.truth(self.root, &values) == Ok(Some(true))
    }

    /// What an evaluation may cost, in bytes looked at.
    pub(super) fn cost(&self, properties: Properties<'_>) -> u64 {
        (1 + self.searches) * properties.as_bytes().len() as u64 + self.nodes.len() as u64
    }

    fn truth(&self, node: NodeIx, values: &[&str; SQL_NAMES_MAX]) -> Result<Truth, Unreadable> {
        match self.value(node, values)? {
            Value::Null => Ok(None),
            Value::Bool(truth) => Ok(Some(truth)),
            _ => Ok(Some(false)),
        }
    }

    fn value<'a>(&'a self, node: NodeIx, values: &[&'a str; SQL_NAMES_MAX]) -> Result<Value<'a>, Unreadable> {
        let text_of = |name: &NameIx| match values[name.0 as usize] {
            "" => Value::Null, // a property without a value does not exist
            text => Value::Text(text),
        };
        let truth = match &self.nodes[node.0 as usize] {
            Node::Null => None,
            Node::Bool(value) => Some(*value),
            Node::Int(value) => return Ok(Value::Int(*value)),
            Node::Long(value) => return Ok(Value::Long(*value)),
            Node::Double(value) => return Ok(Value::Double(*value)),
            Node::Text(value) => return Ok(Value::Text(value)),
            Node::Property(name) => return Ok(text_of(name)),
            Node::Negate(operand) => {
                return Ok(match self.value(*operand, values)? {
                    Value::Int(value) => Value::Int(value.wrapping_neg()),
                    Value::Long(value) => Value::Long(value.wrapping_neg()),
                    Value::Double(value) => Value::Double(-value),
                    Value::Null | Value::Bool(_) | Value::Text(_) => Value::Null,
                });
            }
            Node::Cast(operand) => self.truth(*operand, values)?,
            Node::Not(operand) => self.truth(*operand, values)?.map(|truth| !truth),
            Node::And(operands) => self.all(operands, true, values)?,
            Node::Or(operands) => self.all(operands, false, values)?,
            Node::Equal(left, right) => match (self.value(*left, values)?, self.value(*right, values)?) {
                (Value::Null, Value::Null) => Some(true),
                (Value::Null, _) => None,
                (_, Value::Null) => Some(false),
                (left, right) => Some(compare(left, right)?.is_eq()),
            },
            Node::IsNull(operand) => Some(matches!(self.value(*operand, values)?, Value::Null)),
            Node::Compare(comparison, left, right) => {
                self.compare(*comparison, self.value(*left, values)?, *right, values)?
            }
            Node::Between { value, low, high, negated } => {
                let value = self.value(*value, values)?;
                let (first, second) = match negated {
                    false => (Comparison::GreaterOrEqual, Comparison::LessOrEqual),
                    true => (Comparison::Less, Comparison::Greater),
                };
                let low = self.compare(first, value, *low, values)?;
                if low == Some(*negated) {
                    low
                } else {
                    both(!negated, low, self.compare(second, value, *high, values)?)
                }
            }
            Node::In { property, list, negated } => match text_of(property) {
                Value::Text(text) => {
                    let is_in = list.binary_search_by(|item| (**item).cmp(text)).is_ok();
                    Some(is_in != *negated)
                }
                _ => None,
            },
            Node::Search { text, .. } if text.is_empty() => Some(false),
            Node::Search { place, value, text, negated } => match self.value(*value, values)? {
                Value::Text(value) => {
                    let is_found = match place {
                        Place::Anywhere => value.contains(&**text),
                        Place::Start => value.starts_with(&**text),
                        Place::End => value.ends_with(&**text),
                    };
                    Some(is_found != *negated)
                }
                _ => Some(false),
            },
        };
        Ok(truth.map_or(Value::Null, Value::Bool))
    }

    /// AND of all operands (`neutral` is TRUE), or OR of them. What comes behind the one that decides is not looked at.
    fn all(
        &self,
        operands: &[NodeIx],
        neutral: bool,
        values: &[&str; SQL_NAMES_MAX],
    ) -> Result<Truth, Unreadable> {
        let mut result = Some(neutral);
        for operand in operands {
            let truth = self.truth(*operand, values)?;
            if truth == Some(!neutral) {
                return Ok(truth);
            }
            result = both(neutral, result, truth);
        }
        Ok(result)
    }

    fn compare(
        &self,
        comparison: Comparison,
        left: Value<'_>,
        right: NodeIx,
        values: &[&str; SQL_NAMES_MAX],
    ) -> Result<Truth, Unreadable> {
        if matches!(left, Value::Null) {
            return Ok(None);
        }
        let ordering = match (left, self.value(right, values)?) {
            (_, Value::Null) => return Ok(None),
            // Strings have no order: both are read as numbers.
            (Value::Text(left), Value::Text(right)) => order_of(double(left)?, double(right)?),
            (left, right) => compare(left, right)?,
        };
        Ok(Some(comparison.holds(ordering)))
    }
}

impl PartialEq for Sql {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Sql {}

impl PartialOrd for Sql {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Sql {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

/// AND (`neutral` is TRUE) or OR of two.
fn both(neutral: bool, left: Truth, right: Truth) -> Truth {
    match (left, right) {
        (Some(truth), _) | (_, Some(truth)) if truth != neutral => Some(truth),
        (Some(_), Some(_)) => Some(neutral),
        _ => None,
    }
}

/// Compares two values, neither of them null. Values of kinds that have nothing in common differ.
fn compare(left: Value<'_>, right: Value<'_>) -> Result<Ordering, Unreadable> {
    use Value::{Bool, Double, Int, Long, Text};
    Ok(match (left, right) {
        (Text(left), Text(right)) => left.cmp(right),
        (Bool(left), Bool(right)) => left.cmp(&right),
        (Int(left), Int(right)) => left.cmp(&right),
        (Long(left), Long(right)) => left.cmp(&right),
        (Int(left), Long(right)) => i64::from(left).cmp(&right),
        (Long(left), Int(right)) => left.cmp(&i64::from(right)),
        (Double(left), Double(right)) => order_of(left, right),
        (Double(left), Int(right)) => order_of(left, f64::from(right)),
        (Int(left), Double(right)) => order_of(f64::from(left), right),
        // As in Java: a long is rounded to the double next to it.
        (Double(left), Long(right)) => order_of(left, right as f64),
        (Long(left), Double(right)) => order_of(left as f64, right),
        (Text(left), Bool(right)) => left.eq_ignore_ascii_case("true").cmp(&right),
        // The other way round RocketMQ fails to evaluate it, so that no message matches.
        (Bool(_), Text(_)) => return Err(Unreadable),
        (Text(left), Int(right)) => left.parse::<i32>().map_err(|_| Unreadable)?.cmp(&right),
        (Int(left), Text(right)) => left.cmp(&right.parse().map_err(|_| Unreadable)?),
        (Text(left), Long(right)) => left.parse::<i64>().map_err(|_| Unreadable)?.cmp(&right),
        (Long(left), Text(right)) => left.cmp(&right.parse().map_err(|_| Unreadable)?),
        (Text(left), Double(right)) => order_of(double(left)?, right),
        (Double(left), Text(right)) => order_of(left, double(right)?),
        (Bool(_), _) | (_, Bool(_)) | (Value::Null, _) | (_, Value::Null) => Ordering::Less,
    })
}

/// The order of Java's doubles: NaN is equal to itself and above all others, −0.0 below 0.0.
fn order_of(left: f64, right: f64) -> Ordering {
    left.partial_cmp(&right).filter(|ordering| ordering.is_ne()).unwrap_or_else(|| {
        match (left.is_nan(), right.is_nan()) {
            (false, false) => left.total_cmp(&right),
            (left, right) => left.cmp(&right),
        }
    })
}

/// A double as Java reads it, but for hexadecimal ones.
fn double(text: &str) -> Result<f64, Unreadable> {
    let text = text.trim_matches(|c| c <= ' ');
    let number = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(number, "NaN" | "Infinity") {
        return text.parse().map_err(|_| Unreadable);
    }
    let digits = text.strip_suffix(['d', 'D', 'f', 'F']).unwrap_or(text);
    // Rust reads names like `inf` too, but no number begins with a letter.
    let begins_right = number.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    if begins_right { digits.parse().map_err(|_| Unreadable) } else { Err(Unreadable) }
}

#[cfg(test)]
mod tests;
