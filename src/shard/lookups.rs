//! Look-ups in the sealed indexes, whose pages are read when they are needed.
//!
//! A look-up is a plain function over the pages in memory: it answers, or names the pages that it misses. Who asked then
//! waits, and asks again from the start when they are there.
//!
//! W1  Whoever waits is answered once: after all pages that it misses have come, or when one of them cannot be had.
//! W2  A page is checked before it is used. A wrong one is read a second time, then its index is rebuilt.
//! W3  Pages under way are far fewer than pages kept, so that nobody's pages are gone before it is asked again.

use super::delay::DelayLevel;
use super::effects::{ConnectionId, Effects, FileRead, LogFile, News};
use super::find::Find;
use super::hold::Pull;
use super::limits::{INDEX_READS_MAX, LOOKUPS_WAITING_MAX, RETENTION_CHECK_MS};
use super::pop::{Pop, Revive};
use super::topics::oldest;
use super::{Refusal, Shard};
use bytes::Bytes;
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::frame::Frame;
use ringmq_protocol::types::QueueOffset;
use ringmq_storage::{IndexHeader, Missing, PAGE_BYTES, PageId, QueueIx, SealedEntry, SegmentBase};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

/// Who waits for pages of indexes.
pub(super) enum Waiter {
    Pull(Pull),
    Find(Box<Find>),
    /// Any other request: handled again from its frame.
    Request {
        connection: ConnectionId,
        peer: SocketAddr,
        frame: Box<[u8]>,
    },
    Release {
        segment: SegmentBase,
        forced: bool,
    },
    GiveUp {
        segment: SegmentBase,
        topics: Vec<String>,
        forced: bool,
    },
    /// A delay level looks at its queue.
    Delay(DelayLevel),
    Pop(Box<Pop>),
    Revive(Revive),
}

struct Waiting {
    waiter: Waiter,
    missing: BTreeSet<PageId>,
}

struct PageRead {
    page: PageId,
    is_second_try: bool,
    /// The index was made anew since the read began: what it brings is of the old one.
    is_stale: bool,
}

#[derive(Default)]
pub(super) struct Lookups {
    waiting: BTreeMap<u64, Waiting>,
    next_waiting: u64,
    /// Who waits for each page that is being read, or will be.
    pages: BTreeMap<PageId, Vec<u64>>,
    to_read: VecDeque<PageId>,
    /// By the read's id.
    in_flight: BTreeMap<u64, PageRead>,
    /// Indexes that are being rebuilt.
    rebuilding: BTreeSet<SegmentBase>,
}

impl Lookups {
    pub(super) fn is_reading(&self, segment: SegmentBase) -> bool {
        self.in_flight.values().any(|read| read.page.segment == segment)
    }
}

impl Shard {
    /// First and last-plus-one offset that a consumer can see.
    pub(super) fn bounds(&mut self, queue: QueueIx) -> Result<(QueueOffset, QueueOffset), Missing> {
        let state = &self.queues[queue.0 as usize];
        if state.is_removed {
            return Ok((QueueOffset(0), QueueOffset(0)));
        }
        let visible = state.visible;
        Ok((self.min_offset(queue)?.min(visible), visible))
    }

    /// First offset of the queue; the next one to be given if the queue is empty.
    fn min_offset(&mut self, queue: QueueIx) -> Result<QueueOffset, Missing> {
        let state = &self.queues[queue.0 as usize];
        let (visible, retention_ms, now_ms) = (state.visible, state.retention_ms, self.now.monotonic_ms);
        let oldest = oldest(retention_ms, state.given_up, self.now.wall_ms);
        let is_fresh = retention_ms.is_none() || now_ms < state.min_until_ms;
        if state.min_releases == Some(self.releases) && is_fresh {
            return Ok(state.min);
        }
        let Some((sealed_queue, first)) = self.index.sealed_queue(queue) else { return Ok(QueueOffset(0)) };
        let min = if sealed_queue.born >= self.log_start() {
            first // nothing of the queue was ever deleted
        } else {
            self.sealed.first_offset(sealed_queue)?.unwrap_or_else(|| self.index.memory_start(queue))
        };
        let min = match oldest {
            Some(oldest) => min.max(self.first_at_time(queue, oldest, false, visible)?.unwrap_or(visible)),
            None => min,
        };
        let state = &mut self.queues[queue.0 as usize];
        (state.min, state.min_releases) = (min, Some(self.releases));
        state.min_until_ms = now_ms + RETENTION_CHECK_MS;
        Ok(min)
    }

    /// Entries of a queue from an offset on, of one segment, at most `count`; none if they are in memory, or nowhere.
    pub(super) fn sealed_entries(
        &mut self,
        queue: QueueIx,
        from: QueueOffset,
        count: usize,
    ) -> Result<Vec<(QueueOffset, SealedEntry)>, Missing> {
        match self.index.sealed_queue(queue).filter(|_| from < self.index.memory_start(queue)) {
            Some((sealed_queue, _)) => self.sealed.entries(sealed_queue, from, count),
            None => Ok(Vec::new()),
        }
    }

    /// Lets someone wait for pages.
    pub(super) fn wait_for(&mut self, missing: Missing, waiter: Waiter, fx: &mut Effects) {
        if self.lookups.waiting.len() >= LOOKUPS_WAITING_MAX {
            let remark = format!("[OVERLOAD]{LOOKUPS_WAITING_MAX} look-ups are waiting, which is the limit");
            return self.refuse_waiter(waiter, ResponseCode::SYSTEM_BUSY, &remark, fx);
        }
        if let Some(page) = missing.0.iter().find(|page| self.lookups.rebuilding.contains(&page.segment)) {
            let remark = format!("the index of segment {} is being rebuilt, try again soon", page.segment);
            return self.refuse_waiter(waiter, ResponseCode::SYSTEM_BUSY, &remark, fx);
        }
        let lookups = &mut self.lookups;
        let id = lookups.next_waiting;
        lookups.next_waiting += 1;
        for page in &missing.0 {
            let waiting = lookups.pages.entry(*page).or_insert_with(|| {
                lookups.to_read.push_back(*page);
                Vec::new()
            });
            waiting.push(id);
        }
        lookups.waiting.insert(id, Waiting { waiter, missing: missing.0.into_iter().collect() });
        self.read_pages(fx);
    }

    fn read_pages(&mut self, fx: &mut Effects) {
        while self.lookups.in_flight.len() < INDEX_READS_MAX
            && let Some(page) = self.lookups.to_read.pop_front()
        {
            self.read_page(page, false, fx);
        }
    }

    fn read_page(&mut self, page: PageId, is_second_try: bool, fx: &mut Effects) {
        let id = self.next_read_id();
        let offset = u64::from(page.page) * PAGE_BYTES as u64;
        let (file, len) = (LogFile::Index, PAGE_BYTES as u32);
        fx.reads.push(FileRead { id, file, segment: page.segment, offset, len });
        self.lookups.in_flight.insert(id, PageRead { page, is_second_try, is_stale: false });
    }

    /// A read has ended, if it was one of ours.
    pub(super) fn on_page_read(&mut self, id: u64, result: &Result<Bytes, String>, fx: &mut Effects) -> bool {
        let Some(PageRead { page, is_second_try, is_stale }) = self.lookups.in_flight.remove(&id) else {
            return false;
        };
        if is_stale {
            self.read_page(page, false, fx);
            return true;
        }
        let taken = match result {
            Ok(bytes) => self.sealed.put_page(page, bytes.clone()).map_err(|error| error.to_string()),
            Err(reason) => Err(reason.clone()),
        };
        match taken {
            Ok(()) => self.on_page(page, fx),
            // Released meanwhile: whoever waits asks again, and is told of the new first offset.
            Err(_) if self.sealed.header(page.segment).is_none() => self.on_page(page, fx),
            Err(_) if !is_second_try => self.read_page(page, true, fx),
            Err(problem) => self.on_bad_page(page, &problem, fx),
        }
        self.read_pages(fx);
        true
    }

    fn on_page(&mut self, page: PageId, fx: &mut Effects) {
        for id in self.lookups.pages.remove(&page).unwrap_or_default() {
            let Some(waiting) = self.lookups.waiting.get_mut(&id) else { continue };
            waiting.missing.remove(&page);
            if waiting.missing.is_empty() {
                let waiting = self.lookups.waiting.remove(&id).expect("just seen");
                self.ask_again(waiting.waiter, fx);
            }
        }
    }

    fn ask_again(&mut self, waiter: Waiter, fx: &mut Effects) {
        match waiter {
            Waiter::Pull(pull) => self.evaluate(pull, fx),
            Waiter::Find(find) => self.go_on_finding(find, fx),
            Waiter::Request { connection, peer, frame } => {
                let frame = Frame::decode(&frame).expect("it was decoded before");
                self.on_frame(connection, peer, &frame, fx);
            }
            Waiter::Release { segment, forced } => self.on_release(segment, forced, fx),
            Waiter::GiveUp { segment, topics, forced } => self.on_give_up(segment, topics, forced, fx),
            Waiter::Delay(level) => self.deliver_level(level, fx),
            Waiter::Pop(pop) => drop(self.evaluate_pop(pop, fx)),
            Waiter::Revive(revive) => self.revive(revive, fx),
        }
    }

    fn on_bad_page(&mut self, page: PageId, problem: &str, fx: &mut Effects) {
        let segment = page.segment;
        let line = format!("page {} of the index of segment {segment} cannot be used: {problem}", page.page);
        if let Some(replay_from) = self.sealed.header(segment).map(|header| header.replay_from)
            && self.lookups.rebuilding.insert(segment)
        {
            fx.log_error(format!("{}: {line}; the index is written anew", self.config.broker_name));
            fx.news.push(News::Rebuild { segment, replay_from });
        }
        for id in self.lookups.pages.remove(&page).unwrap_or_default() {
            if let Some(waiting) = self.lookups.waiting.remove(&id) {
                self.refuse_waiter(waiting.waiter, ResponseCode::SYSTEM_ERROR, &line, fx);
            }
        }
    }

    fn refuse_waiter(&mut self, waiter: Waiter, code: ResponseCode, remark: &str, fx: &mut Effects) {
        let to = match waiter {
            Waiter::Pull(pull) => pull.to,
            Waiter::Find(find) => find.to,
            Waiter::Request { connection, frame, .. } => {
                let frame = Frame::decode(&frame).expect("it was decoded before");
                super::ReplyTo::new(connection, &frame.header)
            }
            Waiter::Release { segment, .. } => {
                return fx.news.push(News::Kept { segment, reason: remark.to_owned() });
            }
            Waiter::GiveUp { segment, .. } => {
                return fx.news.push(News::GivenUp { segment, topics: Vec::new() });
            }
            Waiter::Delay(level) => return self.deliver_later(level),
            Waiter::Pop(pop) => pop.to,
            Waiter::Revive(revive) => return self.revive_failed(revive),
        };
        fx.replies.push(to, code, Some(remark), &(), &[]);
    }

    /// An index was written anew, or could not be.
    pub fn on_rebuilt(
        &mut self,
        segment: SegmentBase,
        result: Result<IndexHeader, String>,
        fx: &mut Effects,
    ) {
        self.lookups.rebuilding.remove(&segment);
        let reads = self.lookups.in_flight.values_mut().filter(|read| read.page.segment == segment);
        reads.for_each(|read| read.is_stale = true);
        if self.sealed.header(segment).is_none() {
            return; // released meanwhile
        }
        match result {
            Ok(header) => self.sealed.replace(header),
            Err(reason) => fx.log_error(format!(
                "{}: the index of segment {segment} cannot be written anew: {reason}; its messages cannot be read until that is mended",
                self.config.broker_name
            )),
        }
    }
}

impl From<Missing> for Refusal {
    fn from(missing: Missing) -> Self {
        Refusal { missing: Some(missing), ..Refusal::new(ResponseCode::SYSTEM_ERROR, "") }
    }
}
