//! [`Barrier`]: waiting until so many have come.
//!
//! Each who comes takes a place in the table, with the barrier's generation. The last one runs the action and begins the
//! next generation: that store releases all who wait in earlier ones, whoever marks their places. A party that dies while it
//! waits, or while it runs the action, breaks the barrier: the others are told at once, and nobody waits for the dead.

use std::io;
use std::sync::Arc;

use super::object::{Object, SLICE, TooManyWaiters, Waiter, Waiting, handle};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::robust::{Guard, WaitError};
use crate::sys::identity::Identity;

const FILLING: u32 = 0;
/// The owner runs the action.
const RUNNING: u32 = 1;
const BROKEN: u32 = 2;
/// Broken for those who wait, and then as new.
const RESETTING: u32 = 3;

/// A wait at a barrier failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// The barrier is broken: a party died, gave up, or aborted it; or it was reset during the wait.
    #[error("the barrier is broken: a party died, ran out of time or aborted it")]
    Broken,
    /// A signal handler ran. This party still counts as waiting: wait on with the same turn.
    #[error("a signal handler ran during the wait")]
    Interrupted,
    /// More wait than there are places for.
    #[error(transparent)]
    TooManyWaiters(#[from] TooManyWaiters),
}

/// What a party that came has to do.
#[derive(Debug)]
#[must_use]
pub enum Turn {
    /// Wait for the others: [`Barrier::wait`].
    Wait {
        /// Which one it is, from 0 for the first.
        index: usize,
        #[doc(hidden)]
        place: u32,
    },
    /// It is the last: run the action, then [`Barrier::release`], or [`Barrier::abort`].
    Last {
        /// One less than the number of parties.
        index: usize,
    },
}

/// A barrier. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Barrier(Arc<Object>);
handle!(Barrier, 5);

impl Barrier {
    /// One for so many parties.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for none; when the system gives no memory or no descriptor.
    pub fn new(parties: usize) -> io::Result<Self> {
        if parties == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a barrier for no parties"));
        }
        Ok(Self(Object::create(5, 0, parties as u64)?))
    }

    /// How many have to come.
    #[must_use]
    pub fn parties(&self) -> usize {
        usize::try_from(self.0.layout().kind.limit.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    fn mutex(&self) -> Guard<'_> {
        self.0.lock_through_signals(|| self.mend())
    }

    /// Finishes what a dead owner of the mutex had begun.
    fn mend(&self) {
        let state = self.0.state();
        let phase = state.phase.load(Ordering::Relaxed);
        match phase {
            BROKEN | RESETTING => self.mark(Waiting::Broken, |_| true),
            _ => {}
        }
        if phase == RESETTING {
            state.phase.store(FILLING, Ordering::Relaxed);
        }
        let generation = state.value.load(Ordering::Relaxed);
        let is_earlier = |of| of != generation;
        if phase == RUNNING && self.waiting().any(|waiter| is_earlier(waiter.generation.load(Ordering::Relaxed))) {
            state.phase.store(FILLING, Ordering::Relaxed);
        }
        self.mark(Waiting::Released, is_earlier);
    }

    fn waiting(&self) -> impl Iterator<Item = &Waiter> {
        self.0.waiters().filter(|waiter| waiter.state() == Waiting::Waits)
    }

    fn mark(&self, state: Waiting, of_generation: impl Fn(u64) -> bool) {
        self.waiting()
            .filter(|waiter| of_generation(waiter.generation.load(Ordering::Relaxed)))
            .for_each(|waiter| waiter.set(state));
    }

    /// How many wait.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        self.waiting().count()
    }

    /// Whether it is broken.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.0.state().phase.load(Ordering::Relaxed) == BROKEN
    }

    /// One more party is there; waits until the deadline while the action of the last generation runs.
    ///
    /// # Errors
    /// [`BarrierError`].
    pub fn come(&self, deadline: Deadline) -> Result<Turn, BarrierError> {
        let state = self.0.state();
        let come = || -> Result<Option<Turn>, BarrierError> {
            if self.n_waiting() + 1 >= self.parties() || state.phase.load(Ordering::Relaxed) == RUNNING {
                self.break_if_dead(&self.0.dead());
            }
            let _mutex = self.mutex();
            match state.phase.load(Ordering::Relaxed) {
                FILLING => {}
                RUNNING => return Ok(None),
                _ => return Err(BarrierError::Broken),
            }
            let index = self.waiting().count();
            if index + 1 >= self.parties() {
                state.owner.store(Identity::own().bits(), Ordering::Relaxed);
                state.phase.store(RUNNING, Ordering::Relaxed);
                return Ok(Some(Turn::Last { index }));
            }
            let place = self.0.enlist(state.value.load(Ordering::Relaxed))?;
            Ok(Some(Turn::Wait { index, place }))
        };
        let came = self.0.layout().sleepers.wait(deadline, SLICE, || come().map_err(Ended::Barrier));
        came.map_err(|ended| match ended {
            Ended::Barrier(error) => error,
            Ended::Wait(WaitError::Interrupted) => BarrierError::Interrupted,
            Ended::Wait(WaitError::TimedOut) => {
                self.abort();
                BarrierError::Broken
            }
        })
    }

    /// Waits for the others. The deadline breaks the barrier, as in Python.
    ///
    /// # Errors
    /// [`BarrierError::Broken`]; [`BarrierError::Interrupted`]: then wait again, or [`Barrier::abort`].
    pub fn wait(&self, turn: &Turn, deadline: Deadline) -> Result<usize, BarrierError> {
        let &Turn::Wait { index, place } = turn else { return Err(BarrierError::Broken) };
        let waiter = self.0.waiter(place);
        let waited = self.0.layout().sleepers.wait(deadline, SLICE, || {
            if waiter.state() == Waiting::Waits {
                self.break_if_dead(&self.0.dead_behind(place));
            }
            Ok(Some(waiter.state()).filter(|state| *state != Waiting::Waits))
        });
        match waited {
            Err(WaitError::Interrupted) => return Err(BarrierError::Interrupted),
            Err(WaitError::TimedOut) => {
                let mutex = self.mutex();
                if waiter.state() == Waiting::Waits {
                    self.abort_locked(mutex);
                }
            }
            Ok(_) => {}
        }
        let _mutex = self.mutex();
        let released = waiter.state() == Waiting::Released;
        waiter.set(Waiting::Free);
        if released { Ok(index) } else { Err(BarrierError::Broken) }
    }

    /// The action has run: all go on.
    ///
    /// # Errors
    /// [`BarrierError::Broken`] when it was aborted meanwhile.
    pub fn release(&self) -> Result<(), BarrierError> {
        let state = self.0.state();
        let mutex = self.mutex();
        if state.phase.load(Ordering::Relaxed) != RUNNING {
            return Err(BarrierError::Broken);
        }
        let next = state.value.load(Ordering::Relaxed).wrapping_add(1);
        state.value.store(next, Ordering::Release); // releases all of earlier generations
        state.phase.store(FILLING, Ordering::Relaxed); // the mutex is held: nobody comes in between
        self.mark(Waiting::Released, |of| of != next);
        drop(mutex);
        self.0.layout().sleepers.wake_all();
        Ok(())
    }

    /// Breaks the barrier: all who wait, and who come, are told so, until it is reset.
    pub fn abort(&self) {
        self.abort_locked(self.mutex());
    }

    /// In the same section in which it was found that there is a reason.
    fn abort_locked(&self, mutex: Guard<'_>) {
        self.0.state().phase.store(BROKEN, Ordering::Relaxed);
        self.mark(Waiting::Broken, |_| true);
        drop(mutex);
        self.0.layout().sleepers.wake_all();
    }

    /// As new. Those who wait are told that it is broken.
    pub fn reset(&self) {
        let state = self.0.state();
        let mutex = self.mutex();
        state.phase.store(RESETTING, Ordering::Relaxed);
        self.mark(Waiting::Broken, |_| true);
        state.phase.store(FILLING, Ordering::Relaxed);
        drop(mutex);
        self.0.layout().sleepers.wake_all();
    }

    /// Breaks the barrier when one of the `dead` waits, or who runs the action has died. Places of the dead are freed.
    fn break_if_dead(&self, dead: &[Identity]) {
        let state = self.0.state();
        let runner = Identity::from_bits(state.owner.load(Ordering::Relaxed));
        let runner_died = state.phase.load(Ordering::Relaxed) == RUNNING && runner.is_dead();
        if dead.is_empty() && !runner_died {
            return;
        }
        let mutex = self.mutex();
        let mut breaks = runner_died
            && state.phase.load(Ordering::Relaxed) == RUNNING
            && state.owner.load(Ordering::Relaxed) == runner.bits();
        for waiter in self.0.waiters().filter(|waiter| dead.contains(&waiter.owner())) {
            breaks |= waiter.state() == Waiting::Waits;
            if waiter.state() != Waiting::Waits {
                waiter.set(Waiting::Free);
            }
        }
        if breaks {
            self.abort_locked(mutex); // marks the dead one's place as well, which the next look frees
        }
    }
}

/// Why the wait in [`Barrier::come`] ended.
enum Ended {
    Barrier(BarrierError),
    Wait(WaitError),
}

impl From<WaitError> for Ended {
    fn from(error: WaitError) -> Self {
        Self::Wait(error)
    }
}
