//! From the text of an SQL92 filter to its program: the grammar, and what is wrong before any message is seen.
//!
//! ```text
//! or          := and ( OR and )*
//! and         := equality ( AND equality )*
//! equality    := comparison ( "=" comparison | "<>" comparison | IS [NOT] NULL )*
//! comparison  := unary ( ("<" | "<=" | ">" | ">=") unary
//!                      | [NOT] ( CONTAINS | STARTSWITH | ENDSWITH ) string
//!                      | [NOT] BETWEEN unary AND unary
//!                      | [NOT] IN "(" string ( "," string )* ")" )*
//! unary       := ( "+" | "-" | NOT ) unary | string | number | TRUE | FALSE | NULL | property | "(" or ")"
//! ```
//!
//! Keywords are keywords in any case, names of properties are what they are. Unlike RocketMQ's parser, which ignores
//! whatever follows an expression, this one wants the text to end there: `a = 'x' ANDb = 'y'` is a mistake.

use super::super::limits::{SQL_BYTES_MAX, SQL_DEPTH_MAX, SQL_NAMES_MAX, SQL_NODES_MAX};
use super::{Comparison, NameIx, Node, NodeIx, Place, Sql, Value, compare};
use winnow::ascii::digit1;
use winnow::combinator::{alt, delimited, eof, not, opt, preceded, repeat, separated, terminated};
use winnow::error::{ErrMode, ParserError};
use winnow::stream::{Stateful, Stream};
use winnow::token::{one_of, take_till, take_until, take_while};
use winnow::{ModalResult, Parser};

/// Why an expression is no filter.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SqlError {
    #[error("the expression is empty; to get every message, subscribe to the tag *")]
    Empty,
    #[error("the expression has {0} bytes, more than the {SQL_BYTES_MAX} allowed")]
    TooLong(usize),
    #[error("character {at}, at {near}: {problem}")]
    Wrong {
        /// Of the first character that is wrong, from 1.
        at: usize,
        /// What stands there.
        near: String,
        /// What is wrong, or what is allowed.
        problem: String,
    },
}

pub(super) fn compile(text: &str) -> Result<Sql, SqlError> {
    if text.trim_matches(WHITE).is_empty() {
        return Err(SqlError::Empty);
    }
    if text.len() > SQL_BYTES_MAX {
        return Err(SqlError::TooLong(text.len()));
    }
    let mut input = Input { input: text, state: Builder::default() };
    match whole(&mut input) {
        Ok(root) => {
            let Builder { nodes, names, .. } = input.state;
            let searches = nodes.iter().filter(|node| matches!(node, Node::Search { .. })).count() as u64;
            Ok(Sql { text: text.into(), nodes: nodes.into(), root, names: names.into(), searches })
        }
        Err(error) => {
            let fault = error.into_inner().expect("a text is all there");
            let (before, rest) = text.split_at(text.len() - fault.left);
            let near: String = rest.chars().take(20).collect();
            Err(SqlError::Wrong {
                at: before.chars().count() + 1,
                near: if near.is_empty() { "the end".into() } else { format!("`{near}`") },
                problem: fault.problem,
            })
        }
    }
}

type Input<'i> = Stateful<&'i str, Builder>;
type Parsed<T> = ModalResult<T, Fault>;

/// The program as far as it is there. No parser that may be taken back adds to it.
#[derive(Debug, Default)]
struct Builder {
    nodes: Vec<Node>,
    /// By node: how deep what hangs below it is.
    depths: Vec<usize>,
    names: Vec<Box<str>>,
    /// Of the parser, in brackets and signs.
    depth: usize,
}

/// A part of the expression, and where it begins, counted from the end of the text.
#[derive(Clone, Copy)]
struct Part {
    node: NodeIx,
    left: usize,
}

/// What is wrong, and where, counted from the end of the text.
#[derive(Debug)]
struct Fault {
    left: usize,
    problem: String,
}

impl<'i> ParserError<Input<'i>> for Fault {
    type Inner = Self;

    fn from_input(input: &Input<'i>) -> Self {
        Fault { left: input.eof_offset(), problem: String::new() }
    }

    fn into_inner(self) -> Result<Self, Self> {
        Ok(self)
    }
}

/// What has to stand here; there is no other way to go on.
fn must<'i, T>(
    mut parser: impl Parser<Input<'i>, T, ErrMode<Fault>>,
    allowed: &'static str,
) -> impl FnMut(&mut Input<'i>) -> Parsed<T> {
    move |input| {
        let left = input.eof_offset();
        parser.parse_next(input).map_err(|error| match error {
            ErrMode::Backtrack(_) => {
                ErrMode::Cut(Fault { left, problem: format!("{allowed} is wanted here") })
            }
            error => error,
        })
    }
}

fn wrong<T>(left: usize, problem: impl Into<String>) -> Parsed<T> {
    Err(ErrMode::Cut(Fault { left, problem: problem.into() }))
}

// ---- words

const A_STRING: &str = "a string in single quotes";
const WHITE: [char; 5] = [' ', '\t', '\n', '\r', '\x0c'];
const RESERVED: [&str; 12] = [
    "NOT",
    "AND",
    "OR",
    "BETWEEN",
    "IN",
    "TRUE",
    "FALSE",
    "NULL",
    "IS",
    "CONTAINS",
    "STARTSWITH",
    "ENDSWITH",
];

/// What may stand between words.
fn gap(input: &mut Input<'_>) -> Parsed<()> {
    let line = ("--", take_till(0.., ['\n', '\r'])).void();
    let block = ("/*", must((take_until(0.., "*/"), "*/"), "the `*/` that ends this comment")).void();
    repeat(0.., alt((one_of(WHITE).void(), line, block))).parse_next(input)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$'
}

fn word<'i>(input: &mut Input<'i>) -> Parsed<&'i str> {
    (one_of(|c: char| is_word(c) && !c.is_ascii_digit()), take_while(0.., is_word)).take().parse_next(input)
}

fn keyword<'i>(wanted: &'static str) -> impl Parser<Input<'i>, (), ErrMode<Fault>> {
    terminated(word.verify(move |word: &str| word.eq_ignore_ascii_case(wanted)), gap).void()
}

fn symbol<'i>(wanted: &'static str) -> impl Parser<Input<'i>, (), ErrMode<Fault>> {
    terminated(wanted, gap).void()
}

fn name<'i>(input: &mut Input<'i>) -> Parsed<&'i str> {
    let is_free = |word: &&str| !RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(word));
    terminated(word.verify(is_free), gap).parse_next(input)
}

fn string(input: &mut Input<'_>) -> Parsed<Box<str>> {
    // Two quotes in a string are one.
    let inside = repeat(0.., alt((take_till(1.., '\''), "''".value("'"))));
    let end = must("'", "the quote that ends this string");
    let text: String = delimited("'", inside, (end, gap)).parse_next(input)?;
    Ok(text.into())
}

fn number(input: &mut Input<'_>) -> Parsed<Node> {
    let left = input.eof_offset();
    let exponent = || (one_of(['e', 'E']), opt(one_of(['+', '-'])), digit1).void();
    let float = alt((
        (digit1, '.', opt(digit1), opt(exponent())).void(),
        ('.', digit1, opt(exponent())).void(),
        (digit1, exponent()).void(),
    ));
    if let Some(text) = opt(terminated(float.take(), gap)).parse_next(input)? {
        let value: f64 = text.parse().expect("the grammar of a number");
        return if value > 0.0 && value.is_finite() {
            Ok(Node::Double(value))
        } else {
            wrong(
                left,
                format!("a number with a fraction lies between {:e} and {:e}", f64::from_bits(1), f64::MAX),
            )
        };
    }
    let digits = alt(("0", digit1));
    let text = terminated(terminated(digits, long_mark), gap).parse_next(input)?;
    let Ok(value) = text.parse::<i64>() else {
        return wrong(left, format!("a whole number is at most {}", i64::MAX));
    };
    Ok(i32::try_from(value).map_or(Node::Long(value), Node::Int))
}

/// An `L` behind a whole number says nothing: its size says how it is compared.
fn long_mark(input: &mut Input<'_>) -> Parsed<()> {
    opt(one_of(['l', 'L'])).void().parse_next(input)
}

// ---- the grammar

fn whole(input: &mut Input<'_>) -> Parsed<NodeIx> {
    gap.parse_next(input)?;
    let part = or.parse_next(input)?;
    must(eof, "AND, OR, a comparison or the end of the expression")(input)?;
    condition(part, input)
}

fn or(input: &mut Input<'_>) -> Parsed<Part> {
    chain("OR", and, Node::Or, input)
}

fn and(input: &mut Input<'_>) -> Parsed<Part> {
    chain("AND", equality, Node::And, input)
}

/// One operand, or several between which a word stands.
fn chain<'i>(
    word: &'static str,
    operand: fn(&mut Input<'i>) -> Parsed<Part>,
    node: fn(Box<[NodeIx]>) -> Node,
    input: &mut Input<'i>,
) -> Parsed<Part> {
    let first = operand(input)?;
    let mut operands = Vec::new();
    while opt(keyword(word)).parse_next(input)?.is_some() {
        if operands.is_empty() {
            operands.push(condition(first, input)?);
        }
        let next = operand(input)?;
        operands.push(condition(next, input)?);
    }
    if operands.is_empty() { Ok(first) } else { input.state.add(node(operands.into()), first.left) }
}

fn equality(input: &mut Input<'_>) -> Parsed<Part> {
    let mut left = comparison(input)?;
    loop {
        let equal = alt((symbol("=").value(true), symbol("<>").value(false)));
        if let Some(is_equal) = opt(equal).parse_next(input)? {
            let right = comparison(input)?;
            input.state.check_equal(left, right)?;
            left = input.state.add(Node::Equal(left.node, right.node), left.left)?;
            left = input.state.negate(left, !is_equal)?;
        } else if opt(keyword("IS")).parse_next(input)?.is_some() {
            let (negated, ()) = must((opt(keyword("NOT")), keyword("NULL")), "NULL or NOT NULL")(input)?;
            left = input.state.add(Node::IsNull(left.node), left.left)?;
            left = input.state.negate(left, negated.is_some())?;
        } else {
            return Ok(left);
        }
    }
}

/// An operator that compares, behind its left side.
#[derive(Clone, Copy)]
enum Operator {
    Order(Comparison),
    Search(Place),
    Between,
    In,
}

fn comparison(input: &mut Input<'_>) -> Parsed<Part> {
    let mut left = unary(input)?;
    loop {
        let order = alt((
            symbol(">=").value(Comparison::GreaterOrEqual),
            symbol(">").value(Comparison::Greater),
            symbol("<=").value(Comparison::LessOrEqual),
            terminated(("<", not('>')), gap).value(Comparison::Less),
        ));
        let may_be_negated = || {
            alt((
                keyword("CONTAINS").value(Operator::Search(Place::Anywhere)),
                keyword("STARTSWITH").value(Operator::Search(Place::Start)),
                keyword("ENDSWITH").value(Operator::Search(Place::End)),
                keyword("BETWEEN").value(Operator::Between),
                keyword("IN").value(Operator::In),
            ))
        };
        let behind_not = must(may_be_negated(), "CONTAINS, STARTSWITH, ENDSWITH, BETWEEN or IN");
        let operator = alt((
            order.map(|order| (Operator::Order(order), false)),
            may_be_negated().map(|operator| (operator, false)),
            preceded(keyword("NOT"), behind_not).map(|operator| (operator, true)),
        ));
        let Some((operator, negated)) = opt(operator).parse_next(input)? else { return Ok(left) };
        let node = match operator {
            Operator::Order(order) => {
                let right = unary(input)?;
                input.state.check_ordered(left)?;
                input.state.check_ordered(right)?;
                Node::Compare(order, left.node, right.node)
            }
            Operator::Search(place) => {
                let text = must(string, A_STRING)(input)?;
                Node::Search { place, value: left.node, text, negated }
            }
            Operator::Between => {
                let low = unary(input)?;
                must(keyword("AND"), "AND and the upper end of BETWEEN")(input)?;
                let high = unary(input)?;
                input.state.check_between(left, low, high, negated)?;
                Node::Between { value: left.node, low: low.node, high: high.node, negated }
            }
            Operator::In => {
                let Node::Property(property) = *input.state.node(left) else {
                    return wrong(left.left, "only a property can be IN a list");
                };
                must(symbol("("), "the list of IN in brackets")(input)?;
                let mut list: Vec<Box<str>> =
                    separated(1.., must(string, A_STRING), symbol(",")).parse_next(input)?;
                must(symbol(")"), "`,` or `)`")(input)?;
                list.sort_unstable();
                Node::In { property, list: list.into(), negated }
            }
        };
        left = input.state.add(node, left.left)?;
    }
}

fn unary(input: &mut Input<'_>) -> Parsed<Part> {
    let left = input.eof_offset();
    input.state.depth += 1;
    if input.state.depth > SQL_DEPTH_MAX {
        return wrong(left, too_deep());
    }
    let part = if opt(symbol("+")).parse_next(input)?.is_some() {
        unary(input)?
    } else if opt(symbol("-")).parse_next(input)?.is_some() {
        let operand = unary(input)?;
        input.state.add(Node::Negate(operand.node), left)?
    } else if opt(keyword("NOT")).parse_next(input)?.is_some() {
        let operand = unary(input)?;
        let operand = condition(operand, input)?;
        input.state.add(Node::Not(operand), left)?
    } else if opt(symbol("(")).parse_next(input)?.is_some() {
        let part = or(input)?;
        must(symbol(")"), "an operator or `)`")(input)?;
        Part { left, ..part }
    } else {
        let constant = alt((
            string.map(Node::Text),
            number,
            keyword("TRUE").value(Node::Bool(true)),
            keyword("FALSE").value(Node::Bool(false)),
            keyword("NULL").value(Node::Null),
        ));
        match opt(constant).parse_next(input)? {
            Some(constant) => input.state.add(constant, left)?,
            None => {
                let allowed =
                    "a property, a string in single quotes, a number, TRUE, FALSE, NULL, NOT, a sign or `(`";
                let name = must(name, allowed)(input)?;
                input.state.property(name, left)?
            }
        }
    };
    input.state.depth -= 1;
    Ok(part)
}

/// The part as something that is true or not.
fn condition(part: Part, input: &mut Input<'_>) -> Parsed<NodeIx> {
    let builder = &mut input.state;
    match builder.node(part) {
        Node::Property(_) => Ok(builder.add(Node::Cast(part.node), part.left)?.node),
        node if node.is_condition() => Ok(part.node),
        _ => wrong(part.left, "this is a value, not a condition; compare it with something"),
    }
}

fn too_deep() -> String {
    format!("the expression is nested deeper than {SQL_DEPTH_MAX} levels")
}

impl Node {
    fn is_condition(&self) -> bool {
        !matches!(
            self,
            Node::Int(_)
                | Node::Long(_)
                | Node::Double(_)
                | Node::Text(_)
                | Node::Property(_)
                | Node::Negate(_)
        )
    }

    fn constant(&self) -> Option<Value<'_>> {
        Some(match self {
            Node::Null => Value::Null,
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(value) => Value::Int(*value),
            Node::Long(value) => Value::Long(*value),
            Node::Double(value) => Value::Double(*value),
            Node::Text(value) => Value::Text(value),
            _ => return None,
        })
    }

    fn operands(&self) -> Vec<NodeIx> {
        match self {
            Node::Negate(operand) | Node::Cast(operand) | Node::Not(operand) | Node::IsNull(operand) => {
                vec![*operand]
            }
            Node::And(operands) | Node::Or(operands) => operands.to_vec(),
            Node::Equal(left, right) | Node::Compare(_, left, right) => vec![*left, *right],
            Node::Between { value, low, high, .. } => vec![*value, *low, *high],
            Node::Search { value, .. } => vec![*value],
            _ => Vec::new(),
        }
    }
}

impl Builder {
    fn node(&self, part: Part) -> &Node {
        &self.nodes[part.node.0 as usize]
    }

    fn add(&mut self, node: Node, left: usize) -> Parsed<Part> {
        let below = node.operands().into_iter().map(|operand| self.depths[operand.0 as usize]).max();
        let depth = below.unwrap_or(0) + 1;
        if depth > SQL_DEPTH_MAX {
            return wrong(left, too_deep());
        }
        if self.nodes.len() == SQL_NODES_MAX {
            return wrong(
                left,
                format!("the expression has more than {SQL_NODES_MAX} parts; a list of IN is one part"),
            );
        }
        self.nodes.push(node);
        self.depths.push(depth);
        Ok(Part { node: NodeIx(self.nodes.len() as u16 - 1), left }) // at most SQL_NODES_MAX
    }

    fn property(&mut self, name: &str, left: usize) -> Parsed<Part> {
        let at = match self.names.iter().position(|known| **known == *name) {
            Some(at) => at,
            None if self.names.len() == SQL_NAMES_MAX => {
                return wrong(
                    left,
                    format!("the expression has more than {SQL_NAMES_MAX} different properties"),
                );
            }
            None => {
                self.names.push(name.into());
                self.names.len() - 1
            }
        };
        self.add(Node::Property(NameIx(at as u16)), left) // at most SQL_NAMES_MAX
    }

    fn negate(&mut self, part: Part, negated: bool) -> Parsed<Part> {
        if negated { self.add(Node::Not(part.node), part.left) } else { Ok(part) }
    }

    fn check_equal(&self, left: Part, right: Part) -> Parsed<()> {
        for part in [left, right] {
            if *self.node(part) == Node::Null {
                return wrong(part.left, "nothing is equal to NULL; write IS NULL or IS NOT NULL");
            }
        }
        let (of_left, of_right) = (self.node(left), self.node(right));
        if matches!(of_left, Node::Bool(_)) && of_right.constant().is_some() && !of_right.is_condition() {
            return wrong(right.left, "TRUE and FALSE cannot be compared with a constant of another kind");
        }
        Ok(())
    }

    fn check_ordered(&self, part: Part) -> Parsed<()> {
        let node = self.node(part);
        if matches!(node, Node::Text(_)) || node.is_condition() {
            return wrong(part.left, "only properties and numbers have an order; this is neither");
        }
        Ok(())
    }

    fn check_between(&self, value: Part, low: Part, high: Part, negated: bool) -> Parsed<()> {
        for part in [value, low, high] {
            self.check_ordered(part)?;
        }
        match (self.node(low).constant(), self.node(high).constant()) {
            (Some(from), Some(to)) if !negated && compare(from, to).is_ok_and(|order| order.is_gt()) => {
                wrong(low.left, "the lower end of BETWEEN is above the upper one")
            }
            _ => Ok(()),
        }
    }
}
