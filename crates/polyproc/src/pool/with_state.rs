//! [`WithState`]: options for functions that take the worker's state, and their calls.

use std::marker::PhantomData;

use super::function::Named;
use super::{AsyncResult, CallOptions, Imap, ImapUnordered, TaskError};
use crate::codec::Transfer;

/// [`CallOptions`] for functions that take the worker's own state; see [`Pool::state`](crate::Pool::state).
#[must_use = "options do nothing without a call"]
#[derive(Debug)]
pub struct WithState<'a, S> {
    options: CallOptions<'a>,
    types: PhantomData<fn(S)>,
}

impl<'a, S> WithState<'a, S> {
    pub(super) fn new(options: CallOptions<'a>) -> Self {
        Self { options, types: PhantomData }
    }
}

impl<'a, S: 'static> WithState<'a, S> {
    /// Runs `function` on `argument` in a worker, and returns the result. Blocks until the task has ended.
    ///
    /// # Errors
    /// [`TaskError`], with index 0, when the task failed.
    pub fn apply<A: Transfer, R: Transfer>(self, function: fn(&mut S, A) -> R, argument: A) -> Result<R, TaskError> {
        self.options.apply_named(Named::stateful(function), &argument)
    }

    /// Starts `function` on `argument` in a worker, and returns without waiting for the result.
    pub fn apply_async<A: Transfer, R: Transfer + Send>(
        self,
        function: fn(&mut S, A) -> R,
        argument: A,
    ) -> AsyncResult<R> {
        AsyncResult::single(self.options.call_one(Named::stateful(function), &argument, false))
    }

    /// Runs `function` on all `items`, and returns the results in the order of the items. Blocks until all have ended.
    ///
    /// By default the items are split into four chunks per worker, or into more if a chunk would exceed 2048 items.
    ///
    /// # Errors
    /// [`TaskError`] of the failed item with the lowest index, after all items have ended.
    pub fn map<A: Transfer, R: Transfer>(
        self,
        function: fn(&mut S, A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>, TaskError> {
        self.options.map_named(Named::stateful(function), items)
    }

    /// Starts `function` on all `items`, and returns without waiting for the results. Reads all items first.
    pub fn map_async<A: Transfer, R: Transfer + Send>(
        self,
        function: fn(&mut S, A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> AsyncResult<Vec<R>> {
        self.options.map_async_named(Named::stateful(function), items)
    }

    /// Returns an iterator over the results of `function`, in the order of `items`.
    ///
    /// It reads ahead within a limit (64 tasks per worker, or [`CallOptions::look_ahead`]), so `items` may be endless.
    /// Each item is a task of its own unless a chunk size is set.
    pub fn imap<A: Transfer, R: Transfer, I: IntoIterator<Item = A>>(
        self,
        function: fn(&mut S, A) -> R,
        items: I,
    ) -> Imap<'a, I::IntoIter, A, R> {
        Imap::new(self.options.imap_unordered_named(Named::stateful(function), items.into_iter()))
    }

    /// Returns an iterator over the results of `function`, in the order of arrival. Otherwise as `imap`.
    pub fn imap_unordered<A: Transfer, R: Transfer, I: IntoIterator<Item = A>>(
        self,
        function: fn(&mut S, A) -> R,
        items: I,
    ) -> ImapUnordered<'a, I::IntoIter, A, R> {
        self.options.imap_unordered_named(Named::stateful(function), items.into_iter())
    }
}
