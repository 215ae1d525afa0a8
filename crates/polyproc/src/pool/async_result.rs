//! [`AsyncResult`]: a result that arrives later.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use polyproc_core::pool::{self as core, WaitFor};
use polyproc_core::{Deadline, retry_interrupted};

use super::call::Call;
use super::{Failure, TaskError};
use crate::codec::Transfer;

/// Collects the results of a call.
trait Gather<T>: Send {
    /// Takes the results that have arrived. Once all have, returns the result of the whole call.
    fn take(&mut self) -> Option<Result<T, TaskError>>;
}

struct Gathered<A, R, T> {
    call: Call<A, R>,
    results: Vec<Option<R>>,
    error: Option<TaskError>,
    finish: fn(Vec<Option<R>>) -> Option<T>,
}

impl<A, R: Transfer + Send, T> Gather<T> for Gathered<A, R, T> {
    fn take(&mut self) -> Option<Result<T, TaskError>> {
        let (results, error) = (&mut self.results, &mut self.error);
        let left = self.call.take(|index, end| match end {
            Ok(result) => {
                if let Some(place) = results.get_mut(index) {
                    *place = Some(result);
                }
            }
            Err(failure) if error.as_ref().is_none_or(|first| index < first.index) => {
                *error = Some(TaskError { index, failure });
            }
            Err(_) => {}
        });
        if left > 0 {
            return None;
        }
        let finished = (self.finish)(std::mem::take(&mut self.results));
        Some(match (self.error.take(), finished) {
            (Some(error), _) => Err(error),
            (None, Some(finished)) => Ok(finished),
            (None, None) => Err(TaskError { index: 0, failure: Failure::Terminated }),
        })
    }
}

/// The state that an [`AsyncResult`] and its callbacks share.
struct Shared<T> {
    /// The engine's call; `None` if it could not be submitted. No lock guards it, so that one thread can cancel the call while
    /// others wait for it. Unwind safety: a thread that panics leaves the call consistent, as its state is changed by the engine
    /// only.
    call: AssertUnwindSafe<Option<Arc<core::Call>>>,
    state: Mutex<State<T>>,
    /// Notified when a callback has run.
    changed: Condvar,
}

struct State<T> {
    /// `None` once all results have been taken.
    gather: Option<Box<dyn Gather<T>>>,
    result: Option<Result<T, TaskError>>,
    /// The number of callbacks that have not run.
    callbacks: usize,
    waker: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded data stays consistent when a decoder panics: the item's entry stays `None`.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Shared<T> {
    /// Takes the results that have arrived. Returns true once all have.
    fn take(&self) -> bool {
        let mut state = lock(&self.state);
        if let Some(result) = state.gather.as_mut().and_then(|gather| gather.take()) {
            state.result = Some(result);
            state.gather = None;
        }
        state.gather.is_none()
    }

    /// Blocks until the call is over. Returns false if the deadline passed first.
    fn wait(&self, deadline: Deadline) -> bool {
        let Some(call) = &*self.call else { return true };
        retry_interrupted(|| call.wait(WaitFor::All, deadline)).unwrap_or(false)
    }

    fn call_back(&self, see: impl FnOnce(&Result<T, TaskError>)) {
        self.take();
        let result = lock(&self.state).result.take();
        // The panic hook has reported a panic.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            if let Some(result) = &result {
                see(result);
            }
        }));
        let mut state = lock(&self.state);
        state.result = result;
        state.callbacks -= 1;
        let waker = if state.callbacks == 0 { state.waker.take() } else { None };
        drop(state);
        self.changed.notify_all();
        waker.into_iter().for_each(Waker::wake);
    }
}

/// The result of `apply_async`, `map_async` or `starmap_async`, which arrives later. It is also a future, for any executor.
///
/// Dropping it does not stop the tasks.
///
/// ```
/// let pool = polyproc::Pool::new(2)?;
/// let square = pool.apply_async(|x: u64| x * x, 12).callback(|result| println!("{result}"));
/// let more = pool.map_async(|x: u64| x + 1, [1, 2]);
/// assert_eq!((square.get()?, more.get()?), (144, vec![2, 3]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping it discards the result"]
pub struct AsyncResult<T> {
    shared: Arc<Shared<T>>,
}

impl<T> fmt::Debug for AsyncResult<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncResult").finish_non_exhaustive()
    }
}

impl<R: Transfer + Send> AsyncResult<R> {
    pub(crate) fn single<A: Transfer>(call: Call<A, R>) -> Self {
        Self::new(call, |results| results.into_iter().next().flatten())
    }
}

impl<R: Transfer + Send> AsyncResult<Vec<R>> {
    pub(crate) fn many<A: Transfer>(call: Call<A, R>) -> Self {
        Self::new(call, |results| results.into_iter().collect())
    }
}

impl<T> AsyncResult<T> {
    fn new<A: Transfer, R: Transfer + Send>(call: Call<A, R>, finish: fn(Vec<Option<R>>) -> Option<T>) -> Self
    where
        T: 'static,
    {
        let results = std::iter::repeat_with(|| None).take(call.count()).collect();
        let core = call.core().cloned();
        let gather: Box<dyn Gather<T>> = Box::new(Gathered { call, results, error: None, finish });
        let state = State { gather: Some(gather), result: None, callbacks: 0, waker: None };
        Self {
            shared: Arc::new(Shared {
                call: AssertUnwindSafe(core),
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
        }
    }

    fn wait_until(&self, deadline: Deadline) -> bool {
        while !self.shared.take() {
            if !self.shared.wait(deadline) {
                return false;
            }
        }
        let mut state = lock(&self.shared.state);
        while state.callbacks > 0 {
            let Some(left) = deadline.remaining() else {
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if left.is_zero() {
                return false;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn result(&self) -> Result<T, TaskError> {
        let terminated = || Err(TaskError { index: 0, failure: Failure::Terminated });
        lock(&self.shared.state).result.take().unwrap_or_else(terminated)
    }

    /// Blocks until the result has arrived and callbacks have run, and returns the result.
    ///
    /// # Errors
    /// [`TaskError`] of the failed item with the lowest index.
    pub fn get(self) -> Result<T, TaskError> {
        self.wait_until(Deadline::NEVER);
        self.result()
    }

    /// As [`AsyncResult::get`], for at most `timeout`.
    ///
    /// # Errors
    /// The outer error is this `AsyncResult`, on timeout. The inner error is that of [`AsyncResult::get`].
    pub fn get_timeout(self, timeout: Duration) -> Result<Result<T, TaskError>, Self> {
        if self.wait_until(Deadline::after(timeout)) { Ok(self.result()) } else { Err(self) }
    }

    /// Blocks until the result has arrived and callbacks have run.
    pub fn wait(&self) {
        self.wait_until(Deadline::NEVER);
    }

    /// As [`AsyncResult::wait`], for at most `timeout`. Returns false on timeout.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.wait_until(Deadline::after(timeout))
    }

    /// Returns whether the result has arrived and callbacks have run.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.wait_until(Deadline::PASSED)
    }

    /// Returns whether the call succeeded, or `None` while it is not [`ready`](Self::ready).
    #[must_use]
    pub fn successful(&self) -> Option<bool> {
        self.ready().then(|| lock(&self.shared.state).result.as_ref().is_some_and(Result::is_ok))
    }

    /// Cancels the call: withdraws the items that no worker has begun, and kills the workers that run the others.
    ///
    /// These items fail with [`Failure::Cancelled`](crate::Failure::Cancelled). Items that have ended keep their results.
    pub fn cancel(&self) {
        if let Some(call) = &*self.shared.call {
            call.cancel();
        }
    }

    fn on_result(self, see: impl FnOnce(&Result<T, TaskError>) + Send + 'static) -> Self
    where
        T: Send + 'static,
    {
        lock(&self.shared.state).callbacks += 1;
        let shared = Arc::clone(&self.shared);
        let then = move || shared.call_back(see);
        match &*self.shared.call {
            Some(call) => call.then(then),
            None => then(),
        }
        self
    }

    /// Adds a callback, which is called with the result if the call succeeds.
    ///
    /// It runs on the pool's callback thread, before [`AsyncResult::get`] returns. If it panics, the panic is reported and
    /// the pool continues.
    pub fn callback(self, see: impl FnOnce(&T) + Send + 'static) -> Self
    where
        T: Send + 'static,
    {
        self.on_result(|result| {
            if let Ok(result) = result {
                see(result);
            }
        })
    }

    /// Adds a callback as [`AsyncResult::callback`] does, which is called with the error if the call fails.
    pub fn error_callback(self, see: impl FnOnce(&TaskError) + Send + 'static) -> Self
    where
        T: Send + 'static,
    {
        self.on_result(|result| {
            if let Err(error) = result {
                see(error);
            }
        })
    }
}

impl<T> Future for AsyncResult<T> {
    type Output = Result<T, TaskError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        while !self.shared.take() {
            if self.shared.call.as_ref().is_some_and(|call| !call.poll(context.waker())) {
                return Poll::Pending;
            }
        }
        let mut state = lock(&self.shared.state);
        if state.callbacks > 0 {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        Poll::Ready(self.result())
    }
}
