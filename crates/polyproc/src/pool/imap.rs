//! [`Imap`] and [`ImapUnordered`]: iterators over results.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use polyproc_core::Deadline;
use polyproc_core::pool::{ReadAhead, WaitFor};

use super::call::Call;
use super::{Failure, TaskError};
use crate::codec::Transfer;
use crate::progress::Progress;

/// An iterator over the results of `imap_unordered`: one for each item, in the order of arrival.
///
/// When it is dropped, items that no worker has begun do not run.
pub struct ImapUnordered<'a, I, A, R: Transfer> {
    call: Call<A, R>,
    /// The remaining items; `None` after the last one.
    items: Option<I>,
    total: Option<usize>,
    window: ReadAhead,
    ready: VecDeque<(usize, Result<R, Failure>)>,
    /// The number of results that were taken.
    taken: usize,
    on_progress: Option<Box<dyn FnMut(Progress) + 'a>>,
}

impl<I, A, R: Transfer> fmt::Debug for ImapUnordered<'_, I, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImapUnordered").field("under_way", &(self.call.count() - self.taken)).finish_non_exhaustive()
    }
}

impl<'a, I: Iterator<Item = A>, A: Transfer, R: Transfer> ImapUnordered<'a, I, A, R> {
    pub(crate) fn new(
        call: Call<A, R>,
        items: I,
        window: ReadAhead,
        on_progress: Option<Box<dyn FnMut(Progress) + 'a>>,
    ) -> Self {
        let (at_least, at_most) = items.size_hint();
        let total = (at_most == Some(at_least)).then_some(at_least);
        Self { call, items: Some(items), total, window, ready: VecDeque::new(), taken: 0, on_progress }
    }

    /// Reads items while there is room for them.
    fn fill(&mut self) {
        while let Some(items) = &mut self.items
            && self.call.may_read_on(self.taken, self.window)
        {
            match items.next() {
                Some(item) => _ = self.call.push(&item),
                None => {
                    self.items = None;
                    return self.call.seal();
                }
            }
        }
    }

    fn next_with_index(&mut self) -> Option<(usize, Result<R, Failure>)> {
        self.fill();
        while self.ready.is_empty() {
            if self.call.count() == self.taken {
                return None;
            }
            self.call.flush(); // the expected items may be in an unfinished chunk
            self.call.wait(WaitFor::Next, Deadline::NEVER);
            self.call.take(|index, end| self.ready.push_back((index, end)));
        }
        self.taken += 1;
        self.ready.pop_front()
    }

    /// Reports that `done` results were returned.
    fn report_progress(&mut self, done: usize) {
        let total = self.total;
        if let Some(see) = &mut self.on_progress {
            see(Progress { done, total });
        }
    }
}

impl<I: Iterator<Item = A>, A: Transfer, R: Transfer> Iterator for ImapUnordered<'_, I, A, R> {
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (index, end) = self.next_with_index()?;
        self.report_progress(self.taken);
        Some(end.map_err(|failure| TaskError { index, failure }))
    }
}

impl<I, A, R: Transfer> Drop for ImapUnordered<'_, I, A, R> {
    fn drop(&mut self) {
        self.call.give_up();
    }
}

/// An iterator over the results of `imap`: one for each item, in the order of the items.
///
/// When it is dropped, items that no worker has begun do not run.
pub struct Imap<'a, I, A, R: Transfer> {
    unordered: ImapUnordered<'a, I, A, R>,
    next: usize,
    early: BTreeMap<usize, Result<R, Failure>>,
}

impl<I, A, R: Transfer> fmt::Debug for Imap<'_, I, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imap").field("next", &self.next).finish_non_exhaustive()
    }
}

impl<'a, I: Iterator<Item = A>, A: Transfer, R: Transfer> Imap<'a, I, A, R> {
    pub(crate) fn new(unordered: ImapUnordered<'a, I, A, R>) -> Self {
        Self { unordered, next: 0, early: BTreeMap::new() }
    }
}

impl<I: Iterator<Item = A>, A: Transfer, R: Transfer> Iterator for Imap<'_, I, A, R> {
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next;
        let end = loop {
            if let Some(end) = self.early.remove(&index) {
                break end;
            }
            // Buffered out-of-order results still occupy the window, which counts items whose results were not returned.
            self.unordered.taken -= self.early.len();
            let next = self.unordered.next_with_index();
            self.unordered.taken += self.early.len();
            let (found, end) = next?;
            if found == index {
                break end;
            }
            self.early.insert(found, end);
        };
        self.next += 1;
        self.unordered.report_progress(self.next);
        Some(end.map_err(|failure| TaskError { index, failure }))
    }
}
