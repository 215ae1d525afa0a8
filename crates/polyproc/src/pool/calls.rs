//! The calls of [`CallOptions`].

use super::function::Named;
use super::{AsyncResult, CallOptions, Imap, ImapUnordered, TaskError};
use crate::codec::Transfer;

impl<'a> CallOptions<'a> {
    /// Runs `function` on `argument` in a worker, and returns the result. Blocks until the task has ended.
    ///
    /// # Errors
    /// [`TaskError`], with index 0, when the task failed.
    pub fn apply<A: Transfer, R: Transfer>(self, function: fn(A) -> R, argument: A) -> Result<R, TaskError> {
        self.apply_named(Named::plain(function), &argument)
    }

    /// Starts `function` on `argument` in a worker, and returns without waiting for the result.
    pub fn apply_async<A: Transfer, R: Transfer + Send>(self, function: fn(A) -> R, argument: A) -> AsyncResult<R> {
        AsyncResult::single(self.call_one(Named::plain(function), &argument, false))
    }

    /// Runs `function` on all `items`, and returns the results in the order of the items. Blocks until all have ended.
    ///
    /// By default the items are split into four chunks per worker, or into more if a chunk would exceed 2048 items.
    ///
    /// # Errors
    /// [`TaskError`] of the failed item with the lowest index, after all items have ended.
    pub fn map<A: Transfer, R: Transfer>(
        self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>, TaskError> {
        self.map_named(Named::plain(function), items)
    }

    /// Starts `function` on all `items`, and returns without waiting for the results. Reads all items first.
    pub fn map_async<A: Transfer, R: Transfer + Send>(
        self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> AsyncResult<Vec<R>> {
        self.map_async_named(Named::plain(function), items)
    }

    /// Returns an iterator over the results of `function`, in the order of `items`.
    ///
    /// It reads ahead within a limit (64 tasks per worker, or [`CallOptions::look_ahead`]), so `items` may be endless.
    /// Each item is a task of its own unless a chunk size is set.
    pub fn imap<A: Transfer, R: Transfer, I: IntoIterator<Item = A>>(
        self,
        function: fn(A) -> R,
        items: I,
    ) -> Imap<'a, I::IntoIter, A, R> {
        Imap::new(self.imap_unordered_named(Named::plain(function), items.into_iter()))
    }

    /// Returns an iterator over the results of `function`, in the order of arrival. Otherwise as `imap`.
    pub fn imap_unordered<A: Transfer, R: Transfer, I: IntoIterator<Item = A>>(
        self,
        function: fn(A) -> R,
        items: I,
    ) -> ImapUnordered<'a, I::IntoIter, A, R> {
        self.imap_unordered_named(Named::plain(function), items.into_iter())
    }

    /// As [`CallOptions::map`], but passes the two parts of each item as separate arguments.
    ///
    /// For more than two parts, use `map` with a pattern: `|(a, b, c)| ...`.
    ///
    /// # Errors
    /// [`TaskError`] of the failed item with the lowest index, after all items have ended.
    pub fn starmap<A: Transfer, B: Transfer, R: Transfer>(
        self,
        function: fn(A, B) -> R,
        items: impl IntoIterator<Item = (A, B)>,
    ) -> Result<Vec<R>, TaskError> {
        self.map_named(Named::star(function), items)
    }

    /// As [`CallOptions::map_async`], but passes the two parts of each item as separate arguments.
    pub fn starmap_async<A: Transfer, B: Transfer, R: Transfer + Send>(
        self,
        function: fn(A, B) -> R,
        items: impl IntoIterator<Item = (A, B)>,
    ) -> AsyncResult<Vec<R>> {
        self.map_async_named(Named::star(function), items)
    }
}
