//! Which messages of a queue a subscription wants, decided by the tags code that the queue entry carries.

use ringmq_protocol::body::SubscriptionData;
use ringmq_protocol::types::TagsCode;

/// A compiled tag expression. Two tags may share a code; the client compares the tags themselves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Filter {
    All,
    /// Sorted.
    Tags(Vec<TagsCode>),
}

impl Filter {
    /// `None` if the expression is of a kind that this broker does not evaluate.
    pub(super) fn of(subscription: &SubscriptionData) -> Option<Self> {
        if !subscription.is_tag() {
            return None;
        }
        Some(match &subscription.code_set[..] {
            [] => Filter::All,
            codes => Filter::Tags(codes.iter().copied().map(TagsCode).collect()),
        })
    }

    pub(super) fn matches(&self, code: TagsCode) -> bool {
        match self {
            Filter::All => true,
            Filter::Tags(codes) => codes.binary_search(&code).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_match_by_code_and_no_tag_matches_only_all() {
        let filter_of = |expression| Filter::of(&SubscriptionData::tag_expression("T", expression)).unwrap();
        let filter = filter_of("TagB || TagA");
        assert!(filter.matches(TagsCode::of("TagA")) && filter.matches(TagsCode::of("TagB")));
        assert!(!filter.matches(TagsCode::of("TagC")) && !filter.matches(TagsCode(0)));
        assert!(filter_of("*").matches(TagsCode(0)));
    }
}
