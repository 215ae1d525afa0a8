//! Waiting for room in the budget.
//!
//! Users: puts of a queue (`queue::handle`) and results of a worker (`pool::worker`). Arguments of tasks wait in the scheduler
//! instead, and loans become copies.
//!
//! 1. Attempt. Most requests succeed here, and cost nothing more.
//! 2. Free what this process keeps for reuse: its objects in shared memory, and its loans. Attempt again.
//! 3. Become a waiter; attempt after each wake-up and each interval, until the deadline.
//!
//! Waiters are woken when a file gets smaller, a block of whole pages is freed, a row is freed, the budget is set, or the
//! parent of a pool returns the block of a result. Freeing wakes all of them, as requests differ in size and in the file whose
//! free blocks they can use.

use std::time::Duration;

use super::budget::{self, OutOfSpace};
use super::{loan, registry};
use crate::deadline::Deadline;
use crate::robust::{RecheckInterval, WaitError};

/// How long a waiter for room sleeps at first before it checks whether a process that held memory has died.
const RECHECK_AFTER: Duration = Duration::from_secs(1);

/// Calls `attempt` until it does not fail for lack of room, or until the deadline. `out_of_space` returns the figures of such
/// an error.
///
/// `attempt` runs while this thread is a waiter. It must not wake the waiters when it fails, as it would wake itself: see
/// [`Arena::free_quietly`](super::Arena::free_quietly). It may block for locks.
///
/// # Errors
/// Any error of `attempt`, also the lack of room if the deadline passes, there can never be enough, or there is no ledger;
/// [`WaitError::Interrupted`].
pub(crate) fn wait_for_room<T, E: From<WaitError>>(
    deadline: Deadline,
    out_of_space: impl Fn(&E) -> Option<OutOfSpace>,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let is_passing = |error: &E| out_of_space(error).is_some_and(|error| error.is_passing());
    match attempt() {
        Err(error) if is_passing(&error) => {}
        done => return done,
    }
    registry::trim_all();
    loan::trim();
    let mut failed = match attempt() {
        Err(error) if deadline != Deadline::PASSED && is_passing(&error) => error,
        done => return done,
    };
    let Some(room) = budget::room() else { return Err(failed) };
    let waited = room.wait(deadline, &RecheckInterval::new(RECHECK_AFTER), || match attempt() {
        Err(error) if is_passing(&error) => {
            failed = error;
            Ok(None)
        }
        Err(error) => Err(AttemptError::Failed(error)),
        Ok(done) => Ok(Some(done)),
    });
    waited.map_err(|ended| match ended {
        AttemptError::Failed(error) => error,
        AttemptError::Wait(WaitError::TimedOut) => failed,
        AttemptError::Wait(error) => error.into(),
    })
}

/// Why the wait ended without a result. It keeps an error of `attempt` apart from the wait's own, which has the same type `E`.
enum AttemptError<E> {
    Failed(E),
    Wait(WaitError),
}

impl<E> From<WaitError> for AttemptError<E> {
    fn from(error: WaitError) -> Self {
        Self::Wait(error)
    }
}
