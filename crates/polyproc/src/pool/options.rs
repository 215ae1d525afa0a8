//! [`CallOptions`]: the options of a call.

use std::fmt;
use std::time::Duration;

use polyproc_core::pool::{self as core, CallSettings};

use super::{WithContext, WithState};
use crate::codec::{self, Transfer};
use crate::{Signal, progress::Progress};

/// The function that [`CallOptions::on_progress`] sets.
pub(super) type OnProgress<'a> = Box<dyn FnMut(Progress) + 'a>;

/// The options of one call; see [`Pool::options`](crate::Pool::options).
#[must_use = "options do nothing without a call"]
pub struct CallOptions<'a> {
    pub(super) pool: &'a core::Pool,
    pub(super) chunksize: Option<usize>,
    pub(super) look_ahead: Option<usize>,
    pub(super) look_ahead_bytes: Option<u64>,
    pub(super) settings: CallSettings,
    pub(super) on_progress: Option<OnProgress<'a>>,
}

impl fmt::Debug for CallOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallOptions")
            .field("chunksize", &self.chunksize)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl<'a> CallOptions<'a> {
    pub(crate) fn new(pool: &'a core::Pool, traces: bool) -> Self {
        let on_log = traces.then(|| {
            #[cfg(feature = "tracing")]
            let _inside = tracing::debug_span!("call").or_current().entered();
            crate::forward::on_log()
        });
        let settings = CallSettings { backoff: Duration::from_millis(10), on_log, ..CallSettings::default() };
        Self { pool, chunksize: None, look_ahead: None, look_ahead_bytes: None, settings, on_progress: None }
    }

    /// Sets how many items go to a worker together.
    ///
    /// Larger chunks cost less per item. Each item has its own outcome: if one panics or kills its worker, only that item
    /// fails.
    ///
    /// # Panics
    /// Panics if `items` is 0.
    pub fn chunksize(mut self, items: usize) -> Self {
        assert!(items > 0, "a chunk must have at least one item");
        self.chunksize = Some(items);
        self
    }

    /// Sets the maximum number of items that `imap` and `imap_unordered` read ahead of the results that the caller has taken.
    ///
    /// # Panics
    /// Panics if `items` is 0.
    pub fn look_ahead(mut self, items: usize) -> Self {
        assert!(items > 0, "at least one item must be in flight");
        self.look_ahead = Some(items);
        self
    }

    /// Limits the arguments and results that `imap` and `imap_unordered` read ahead, to about `bytes` bytes.
    ///
    /// They read enough items to keep all workers busy, whatever the limit. The default is an eighth of the memory budget
    /// ([`set_memory_budget`](crate::set_memory_budget)), at most 256 MiB.
    pub fn look_ahead_bytes(mut self, bytes: u64) -> Self {
        self.look_ahead_bytes = Some(bytes);
        self
    }

    /// Limits how long each item may run, from when a worker begins it.
    ///
    /// On timeout the worker is killed, and the item fails with [`Failure::TimedOut`](crate::Failure::TimedOut).
    pub fn timeout(mut self, each: Duration) -> Self {
        self.settings.limit = Some(each);
        self
    }

    /// With [`CallOptions::timeout`]: on timeout, sends `signal` to the worker first, and kills it only if the item has not
    /// ended after `grace`. A signal handler in the worker may end the item in its own way.
    pub fn soft_signal(mut self, signal: Signal, grace: Duration) -> Self {
        self.settings.soft_signal = Some((signal, grace));
        self
    }

    /// Limits how long the whole call may take, from its start. Items that have not ended by then fail with
    /// [`Failure::TimedOut`](crate::Failure::TimedOut).
    pub fn call_timeout(mut self, all: Duration) -> Self {
        self.settings.call_limit = Some(all);
        self
    }

    /// Sets how many times an item is retried after its worker was lost while running it. An item may thus run more than once.
    ///
    /// If its worker is lost in each attempt, only that item fails, with [`Failure::WorkerLost`](crate::Failure::WorkerLost) or
    /// [`Failure::OutOfMemory`](crate::Failure::OutOfMemory).
    pub fn retries(mut self, retries: u32) -> Self {
        self.settings.retries = retries;
        self
    }

    /// Sets the delay before the first retry of an item, 10 ms by default. The delay doubles with each retry, up to 1 minute.
    pub fn backoff(mut self, first: Duration) -> Self {
        self.settings.backoff = first;
        self
    }

    /// Also retries items that panic, as often as [`CallOptions::retries`] allows.
    pub fn retry_panics(mut self) -> Self {
        self.settings.retries_panics = true;
        self
    }

    /// Sets the priority, 0 by default. Workers take tasks of higher priority first. Running tasks are not interrupted.
    pub fn priority(mut self, priority: i32) -> Self {
        self.settings.priority = priority;
        self
    }

    /// Calls `see` on the calling thread as results arrive: in [`CallOptions::map`] after each batch of results, in `imap` and
    /// `imap_unordered` with each result that is taken.
    pub fn on_progress(mut self, see: impl FnMut(Progress) + 'a) -> Self {
        self.on_progress = Some(Box::new(see));
        self
    }

    /// Draws a progress bar on standard error.
    #[cfg(feature = "indicatif")]
    pub fn progress(self) -> Self {
        self.on_progress(crate::progress::bar())
    }

    /// Returns options for functions that take a context, which each worker receives and decodes once.
    ///
    /// ```
    /// let pool = polyproc::Pool::new(2)?;
    /// let words = vec!["a".to_owned(), "b".to_owned()];
    /// let found = pool.options().context(&words).map(|words: &Vec<String>, at: usize| words[at].clone(), [1, 0, 1])?;
    /// assert_eq!(found, ["b", "a", "b"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn context<C: Transfer>(self, context: &C) -> WithContext<'a, C> {
        let mut bytes = Vec::new();
        let encoded = codec::encode_to("the context", context, &mut bytes).and_then(|fds| match fds.is_empty() {
            true => Ok(bytes),
            false => Err(codec::CodecError::new::<C>("encode", "the context", "it holds handles")),
        });
        WithContext::new(self, encoded)
    }

    pub(crate) fn state<S>(self) -> WithState<'a, S> {
        WithState::new(self)
    }
}
