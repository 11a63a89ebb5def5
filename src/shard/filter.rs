//! Which messages of a queue a subscription wants: decided by the tags code that the queue's entry carries, or, for an SQL
//! filter, by the properties of the message.

use super::Refusal;
use super::limits::SQL_CACHE_COUNT;
use super::sql::{Sql, SqlError};
use ringmq_protocol::body::{EXPRESSION_TYPE_SQL92, EXPRESSION_TYPE_TAG, SubscriptionData};
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::types::TagsCode;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::rc::Rc;

/// A compiled expression.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Filter {
    All,
    /// Sorted. Two tags may share a code; the client compares the tags themselves.
    Tags(Vec<TagsCode>),
    Sql(Rc<Sql>),
}

/// Why an expression is no filter.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum FilterError {
    #[error(
        "The broker does not support consumer to filter message by {0}; it knows the expression types TAG and SQL92"
    )]
    Unknown(String),
    #[error("parse the consumer's subscription failed: {0}; the expression was: {1}")]
    Sql(SqlError, String),
}

impl From<FilterError> for Refusal {
    fn from(error: FilterError) -> Self {
        let code = match error {
            FilterError::Unknown(_) => ResponseCode::SYSTEM_ERROR,
            FilterError::Sql(..) => ResponseCode::SUBSCRIPTION_PARSE_FAILED,
        };
        Refusal::new(code, error.to_string())
    }
}

impl Filter {
    pub(super) fn of(subscription: &SubscriptionData) -> Result<Self, FilterError> {
        if subscription.expression_type == EXPRESSION_TYPE_SQL92 {
            let expression = &subscription.sub_string;
            let excerpt = || expression.chars().take(200).collect();
            return Sql::compile(expression)
                .map(|sql| Filter::Sql(Rc::new(sql)))
                .map_err(|error| FilterError::Sql(error, excerpt()));
        }
        if !subscription.is_tag() {
            return Err(FilterError::Unknown(subscription.expression_type.clone()));
        }
        Ok(match &subscription.code_set[..] {
            [] => Filter::All,
            codes => Filter::Tags(codes.iter().copied().map(TagsCode).collect()),
        })
    }

    /// Whether a message with this tags code may be wanted; for an SQL filter its properties decide.
    pub(super) fn may_match(&self, code: TagsCode) -> bool {
        match self {
            Filter::All | Filter::Sql(_) => true,
            Filter::Tags(codes) => codes.binary_search(&code).is_ok(),
        }
    }

    pub(super) fn sql(&self) -> Option<&Sql> {
        match self {
            Filter::Sql(sql) => Some(sql),
            Filter::All | Filter::Tags(_) => None,
        }
    }
}

/// The SQL filters that lately came with requests, so that a consumer's next pull does not compile its filter again.
#[derive(Default)]
pub(super) struct Filters {
    compiled: FxHashMap<Rc<str>, Rc<Filter>>,
    oldest_first: VecDeque<Rc<str>>,
}

impl Filters {
    /// The filter of an expression that came with a request.
    pub(super) fn get(
        &mut self,
        topic: &str,
        expression_type: &str,
        expression: &str,
    ) -> Result<Rc<Filter>, FilterError> {
        if expression_type == EXPRESSION_TYPE_TAG {
            return Ok(Rc::new(Filter::of(&SubscriptionData::tag_expression(topic, expression))?));
        }
        if let Some(filter) =
            self.compiled.get(expression).filter(|_| expression_type == EXPRESSION_TYPE_SQL92)
        {
            return Ok(filter.clone());
        }
        let subscription = SubscriptionData {
            expression_type: expression_type.to_owned(),
            sub_string: expression.to_owned(),
            ..SubscriptionData::default()
        };
        let filter = Rc::new(Filter::of(&subscription)?);
        if self.oldest_first.len() == SQL_CACHE_COUNT
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.compiled.remove(&oldest);
        }
        let key: Rc<str> = expression.into();
        self.oldest_first.push_back(key.clone());
        self.compiled.insert(key, filter.clone());
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_match_by_code_and_no_tag_matches_only_all() {
        let filter_of = |expression| Filter::of(&SubscriptionData::tag_expression("T", expression)).unwrap();
        let filter = filter_of("TagB || TagA");
        assert!(filter.may_match(TagsCode::of("TagA")) && filter.may_match(TagsCode::of("TagB")));
        assert!(!filter.may_match(TagsCode::of("TagC")) && !filter.may_match(TagsCode(0)));
        assert!(filter_of("*").may_match(TagsCode(0)));
    }

    #[test]
    fn filters_of_requests_are_compiled_once_and_the_oldest_forgotten() {
        let mut filters = Filters::default();
        let first = filters.get("T", "SQL92", "a = 'x'").unwrap();
        assert!(Rc::ptr_eq(&first, &filters.get("U", "SQL92", "a = 'x'").unwrap()));
        assert_eq!(*filters.get("T", "TAG", "a = 'x'").unwrap(), Filter::Tags(vec![TagsCode::of("a = 'x'")]));
        for i in 1..SQL_CACHE_COUNT {
            filters.get("T", "SQL92", &format!("a = {i}")).unwrap();
        }
        assert!(Rc::ptr_eq(&first, &filters.get("T", "SQL92", "a = 'x'").unwrap()));
        filters.get("T", "SQL92", "b IS NULL").unwrap();
        assert!(!Rc::ptr_eq(&first, &filters.get("T", "SQL92", "a = 'x'").unwrap()));
        assert_eq!((filters.compiled.len(), filters.oldest_first.len()), (SQL_CACHE_COUNT, SQL_CACHE_COUNT));
    }
}
