//! [`AsyncResult`]: a result that arrives later.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use polyproc_core::Deadline;
use polyproc_core::pool::Want;

use super::call::Call;
use super::{Failure, TaskError};
use crate::codec::Transfer;

/// Collects the results of a call.
trait Gather<T>: Send {
    /// Takes the results that have arrived. Returns true once all have.
    fn take(&mut self) -> bool;
    /// Returns the result of the whole call. To be called once.
    fn finish(&mut self) -> Result<T, TaskError>;
    fn wait(&self, deadline: Deadline) -> bool;
    fn poll(&self, waker: &Waker) -> bool;
    fn cancel(&self);
    fn then(&self, then: Box<dyn FnOnce() + Send>);
}

struct Gathered<A, R, T> {
    call: Call<A, R>,
    results: Vec<Option<R>>,
    error: Option<TaskError>,
    finish: fn(Vec<Option<R>>) -> Option<T>,
}

impl<A, R: Transfer + Send, T> Gather<T> for Gathered<A, R, T> {
    fn take(&mut self) -> bool {
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
        left == 0
    }

    fn finish(&mut self) -> Result<T, TaskError> {
        let finished = (self.finish)(std::mem::take(&mut self.results));
        match (self.error.take(), finished) {
            (Some(error), _) => Err(error),
            (None, Some(finished)) => Ok(finished),
            (None, None) => Err(TaskError { index: 0, failure: Failure::Terminated }),
        }
    }

    fn wait(&self, deadline: Deadline) -> bool {
        self.call.wait(Want::All, deadline)
    }

    fn poll(&self, waker: &Waker) -> bool {
        self.call.core().is_none_or(|call| call.poll(waker))
    }

    fn cancel(&self) {
        self.call.cancel();
    }

    fn then(&self, then: Box<dyn FnOnce() + Send>) {
        match self.call.core() {
            Some(call) => call.then(then),
            None => then(),
        }
    }
}

/// The state that an [`AsyncResult`] and its callbacks share.
struct Shared<T> {
    /// Locked after `state`. A waiting thread keeps it locked until its wait ends.
    gather: Mutex<Box<dyn Gather<T>>>,
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    result: Option<Result<T, TaskError>>,
    is_over: bool,
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
        if !state.is_over {
            let mut gather = lock(&self.gather);
            if gather.take() {
                state.is_over = true;
                state.result = Some(gather.finish());
            }
        }
        state.is_over
    }

    fn call_back(&self, see: impl FnOnce(&Result<T, TaskError>)) {
        self.take();
        let result = lock(&self.state).result.take();
        let called = catch_unwind(AssertUnwindSafe(|| {
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
        if let Err(panic) = called {
            resume_unwind(panic); // already reported; the callback thread continues
        }
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
#[must_use = "without it nobody sees the result"]
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
        let gather: Box<dyn Gather<T>> = Box::new(Gathered { call, results, error: None, finish });
        let state = State { result: None, is_over: false, callbacks: 0, waker: None };
        Self {
            shared: Arc::new(Shared { gather: Mutex::new(gather), state: Mutex::new(state), changed: Condvar::new() }),
        }
    }

    fn wait_until(&self, deadline: Deadline) -> bool {
        while !self.shared.take() {
            // The lock is held until the wait ends.
            let waited = lock(&self.shared.gather).wait(deadline);
            if !waited {
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
        lock(&self.shared.gather).cancel();
    }

    fn on_result(self, see: impl FnOnce(&Result<T, TaskError>) + Send + 'static) -> Self
    where
        T: Send + 'static,
    {
        lock(&self.shared.state).callbacks += 1;
        let shared = Arc::clone(&self.shared);
        lock(&self.shared.gather).then(Box::new(move || shared.call_back(see)));
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
            if !lock(&self.shared.gather).poll(context.waker()) {
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
