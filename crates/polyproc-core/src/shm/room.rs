//! Waiting for room in the budget.

use std::time::Duration;

use super::budget::{self, OutOfSpace};
use super::{loan, registry};
use crate::deadline::Deadline;
use crate::robust::{RecheckInterval, WaitError};

/// How long a waiter for room sleeps at first before it checks whether a process that held memory has died.
const RECHECK_AFTER: Duration = Duration::from_secs(1);

/// Calls `attempt` until it does not fail for lack of room, or until the deadline.
///
/// # Errors
/// Any error of `attempt`, also the lack of room if the deadline passes or there can never be enough;
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

enum AttemptError<E> {
    Failed(E),
    Wait(WaitError),
}

impl<E> From<WaitError> for AttemptError<E> {
    fn from(error: WaitError) -> Self {
        Self::Wait(error)
    }
}
