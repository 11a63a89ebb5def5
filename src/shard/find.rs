//! QUERY_MESSAGE (12): messages by key, newest first.
//!
//!   on_query_message → positions that may have the key (memory, then sealed indexes) → each message is read and compared

use super::cold::Purpose;
use super::effects::{Effects, ReplyTo};
use super::limits::{FIND_KEY_MAX, FIND_UNIQUE_MAX};
use super::lookups::Waiter;
use super::{Refusal, Request, Shard};
use bytes::Bytes;
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::properties::names;
use ringmq_protocol::request::{QueryMessageRequest, QueryMessageResponse};
use ringmq_protocol::types::{PhysicalOffset, StoreTimestamp};
use ringmq_storage::{KeyHash, Missing, TopicHash, keys_of};
use std::collections::VecDeque;

/// Candidates that are looked up at a time.
const CANDIDATES_MAX: usize = 1024;

/// A search under way.
#[derive(Debug)]
pub(super) struct Find {
    pub(super) to: ReplyTo,
    topic: String,
    key: String,
    begin: StoreTimestamp,
    end: StoreTimestamp,
    count_max: usize,
    /// Candidates still to be read, newest first.
    candidates: VecDeque<PhysicalOffset>,
    /// Everything at or above this was looked up.
    below: PhysicalOffset,
    found: Vec<Bytes>,
}

impl Shard {
    pub(super) fn on_query_message(
        &mut self,
        request: &Request<'_>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let asked = QueryMessageRequest::decode(&request.header.ext)?;
        let count_max = match usize::try_from(asked.max_num) {
            _ if asked.unique_key_query => FIND_UNIQUE_MAX,
            Ok(count) if count > 0 => count.min(FIND_KEY_MAX),
            _ => return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, "maxNum must be above 0")),
        };
        let find = Find {
            to: request.to,
            topic: asked.topic.into_owned(),
            key: asked.key.into_owned(),
            begin: StoreTimestamp(asked.begin_timestamp),
            end: StoreTimestamp(asked.end_timestamp),
            count_max,
            candidates: VecDeque::new(),
            below: self.log.durable(),
            found: Vec::new(),
        };
        self.go_on_finding(Box::new(find), fx);
        Ok(())
    }

    /// Looks at candidates, and for more of them, until one has to be read or there is an answer.
    pub(super) fn go_on_finding(&mut self, mut find: Box<Find>, fx: &mut Effects) {
        while find.found.len() < find.count_max {
            if find.candidates.is_empty() {
                match self.candidates(&find) {
                    Ok(candidates) => find.candidates = candidates.into(),
                    Err(missing) => return self.wait_for(missing, Waiter::Find(find), fx),
                }
            }
            let Some(&position) = find.candidates.front() else { break };
            let block = match self.block_before(position) {
                Ok(block) => block,
                Err(missing) => return self.wait_for(missing, Waiter::Find(find), fx),
            };
            find.candidates.pop_front();
            find.below = position;
            match (block, self.message_in_memory(position)) {
                (_, Some(message)) => find.take(message),
                (Some(block), None) => return self.read_cold(block, Purpose::Find { find, position }, fx),
                (None, None) => {}
            }
        }
        self.reply_find(&find, fx);
    }

    fn candidates(&mut self, find: &Find) -> Result<Vec<PhysicalOffset>, Missing> {
        let hash = KeyHash::of(TopicHash::of(&find.topic), find.key.as_bytes());
        let mut recent = self.index.find_key(hash, find.below);
        if !recent.is_empty() {
            recent.truncate(CANDIDATES_MAX);
            return Ok(recent);
        }
        self.sealed.find_key(hash, find.begin, find.end, find.below, find.count_max)
    }

    /// A candidate was read, or could not be.
    pub(super) fn on_candidate(&mut self, mut find: Box<Find>, message: Option<Bytes>, fx: &mut Effects) {
        message.into_iter().for_each(|message| find.take(message));
        self.go_on_finding(find, fx);
    }

    fn reply_find(&mut self, find: &Find, fx: &mut Effects) {
        if find.found.is_empty() {
            let remark = "can not find message, maybe time range not correct";
            return fx.replies.push(find.to, ResponseCode::QUERY_NOT_FOUND, Some(remark), &(), &[]);
        }
        let response = QueryMessageResponse {
            index_last_update_timestamp: self.log.sealed_end().store_timestamp.0,
            index_last_update_phyoffset: self.log.durable().0 as i64,
        };
        let oldest_first = find.found.iter().rev().cloned().collect();
        fx.replies.push_ranges(find.to, None, &response, oldest_first);
    }

    /// The message at a position, if it is in the tail or in a stretch that was kept.
    pub(super) fn message_in_memory(&self, position: PhysicalOffset) -> Option<Bytes> {
        match self.log.blocks().containing(position) {
            Some(block) if block.start >= self.log.tail_start() => {
                let bytes = self.log.tail(block.start, block.len)?;
                self.message_in(block.start, &bytes, position)
            }
            _ => self.kept_message(position),
        }
    }
}

impl Find {
    /// Keeps a message that is one of those looked for.
    fn take(&mut self, bytes: Bytes) {
        let Ok((message, _)) = StoredMessage::parse(&bytes) else { return };
        let unique_key = message.property(names::UNIQ_KEY).unwrap_or_default();
        let keys = message.property(names::KEYS).unwrap_or_default();
        let is_wanted = message.topic() == self.topic
            && (self.begin..=self.end).contains(&message.store_timestamp())
            && keys_of(unique_key, keys).any(|key| key == self.key);
        if is_wanted {
            self.found.push(bytes);
        }
    }
}
