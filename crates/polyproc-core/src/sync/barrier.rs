//! [`Barrier`]: waiting until so many have come.
//!
//! Each who comes takes a place in the table, with the barrier's generation. One word holds the generation and the phase, and
//! each step is one change of it: the last one who comes runs the action and then begins the next generation, which releases
//! all who wait in the one before. A party that dies while it waits, or while it runs the action, breaks the barrier: the
//! others are told at once, and nobody waits for the dead.
//!
//! The mutex is held to come and to reset only. A wait that is over does not wait for a process that stands still.

use std::io;
use std::sync::Arc;

use super::object::{Object, RECHECK_AFTER, TooManyWaiters, Waiter, Waiting, handle};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::process::watch_death;
use crate::retry::Interrupt;
use crate::robust::{RecheckInterval, WaitError};
use crate::sys::identity::Identity;

/// What a barrier does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum BarrierPhase {
    Filling = 0,
    /// The owner runs the action.
    Running = 1,
    Broken = 2,
    /// Broken for those who wait, and then as new.
    Resetting = 3,
}

/// The generation and the phase of a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word(u64);

impl Word {
    fn new(generation: u64, phase: BarrierPhase) -> Self {
        Self(generation.wrapping_mul(4) + phase as u64)
    }

    fn phase(self) -> BarrierPhase {
        match self.0 % 4 {
            0 => BarrierPhase::Filling,
            1 => BarrierPhase::Running,
            2 => BarrierPhase::Broken,
            _ => BarrierPhase::Resetting,
        }
    }

    fn generation(self) -> u64 {
        self.0 / 4
    }

    fn with(self, phase: BarrierPhase) -> Self {
        Self::new(self.generation(), phase)
    }

    fn next(self) -> Self {
        Self::new(self.generation().wrapping_add(1), BarrierPhase::Filling)
    }
}

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

impl Interrupt for BarrierError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
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
        #[doc(hidden)]
        generation: u64,
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
        Ok(Self(Object::create_with_waiters(5, 0, parties as u64)?))
    }

    /// How many have to come.
    #[must_use]
    pub fn parties(&self) -> usize {
        usize::try_from(self.0.layout().kind.limit.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    fn word(&self) -> Word {
        Word(self.0.state().value.load(Ordering::Acquire))
    }

    /// One step; false when the word was no longer `from`.
    fn step(&self, from: Word, to: Word) -> bool {
        self.0.state().value.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Those who wait in the generation.
    fn waiting(&self, generation: u64) -> impl Iterator<Item = &Waiter> {
        let is_of = move |waiter: &&Waiter| waiter.generation.load(Ordering::Relaxed) == generation;
        self.0.waiters().filter(|waiter| waiter.state() == Waiting::Waits).filter(is_of)
    }

    /// Finishes what a dead owner of the mutex had begun.
    fn repair(&self) {
        let word = self.word();
        if word.phase() == BarrierPhase::Resetting {
            self.finish_reset(word);
        }
    }

    /// How many wait.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        let word = self.word();
        if matches!(word.phase(), BarrierPhase::Filling | BarrierPhase::Running) {
            self.waiting(word.generation()).count()
        } else {
            0
        }
    }

    /// Whether it is broken.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.word().phase() == BarrierPhase::Broken
    }

    /// One more party is there; waits until the deadline while the action of the last generation runs.
    ///
    /// # Errors
    /// [`BarrierError`].
    pub fn come(&self, deadline: Deadline) -> Result<Turn, BarrierError> {
        let come = || -> Result<Option<Turn>, ArrivalError> {
            let is_full = self.n_waiting() + 1 >= self.parties() || self.word().phase() == BarrierPhase::Running;
            let dead = if is_full { self.0.dead() } else { Vec::new() };
            self.break_if_dead(&dead);
            let _mutex = self.0.lock(deadline, || self.repair())?;
            // None of them waits in a generation that is still whole.
            self.0
                .waiters()
                .filter(|waiter| dead.contains(&waiter.owner()))
                .for_each(|waiter| waiter.set(Waiting::Free));
            let word = self.word();
            match word.phase() {
                BarrierPhase::Filling => {}
                BarrierPhase::Running => return Ok(None),
                BarrierPhase::Broken | BarrierPhase::Resetting => {
                    return Err(ArrivalError::Barrier(BarrierError::Broken));
                }
            }
            let index = self.waiting(word.generation()).count();
            if index + 1 >= self.parties() {
                self.0.state().owner.store(Identity::own().bits(), Ordering::Relaxed);
                let is_whole = self.step(word, word.with(BarrierPhase::Running));
                let last = Turn::Last { index, generation: word.generation() };
                return is_whole.then_some(Some(last)).ok_or(ArrivalError::Barrier(BarrierError::Broken));
            }
            let place = self.0.enlist(word.generation()).map_err(|error| ArrivalError::Barrier(error.into()))?;
            Ok(Some(Turn::Wait { index, place }))
        };
        self.0.layout().waiters.wait(deadline, &RecheckInterval::new(RECHECK_AFTER), come).map_err(
            |ended| match ended {
                ArrivalError::Barrier(error) => error,
                ArrivalError::Wait(WaitError::Interrupted) => BarrierError::Interrupted,
                ArrivalError::Wait(WaitError::TimedOut) => {
                    self.abort();
                    BarrierError::Broken
                }
            },
        )
    }

    /// Waits for the others. The deadline breaks the barrier, as in Python.
    ///
    /// # Errors
    /// [`BarrierError::Broken`]; [`BarrierError::Interrupted`]: then wait again, or [`Barrier::abort`].
    pub fn wait(&self, turn: &Turn, deadline: Deadline) -> Result<usize, BarrierError> {
        let &Turn::Wait { index, place } = turn else { return Err(BarrierError::Broken) };
        let waiter = self.0.waiter(place);
        let generation = waiter.generation.load(Ordering::Relaxed);
        let (mut slept, interval) = (false, RecheckInterval::new(RECHECK_AFTER));
        let waited = self.0.layout().waiters.wait(deadline, &interval, || {
            if self.ended(waiter).is_none() {
                if std::mem::replace(&mut slept, true) {
                    self.0.watch_waiters(&interval);
                    let runner = Identity::from_bits(self.0.state().owner.load(Ordering::Relaxed));
                    if self.word().phase() == BarrierPhase::Running && !watch_death(runner) {
                        interval.restart();
                    }
                }
                self.break_if_dead(&self.0.dead_behind(place));
            }
            Ok(self.ended(waiter))
        });
        let ended = match waited {
            Err(WaitError::Interrupted) => return Err(BarrierError::Interrupted),
            Err(WaitError::TimedOut) => {
                self.break_of(generation);
                self.ended(waiter).unwrap_or(Err(BarrierError::Broken))
            }
            Ok(ended) => ended,
        };
        waiter.set(Waiting::Free);
        ended.map(|()| index)
    }

    /// What became of one who waits; `None` while it is to wait on.
    fn ended(&self, waiter: &Waiter) -> Option<Result<(), BarrierError>> {
        let word = self.word(); // first: a reset marks those who wait before it changes the generation
        match word.phase() {
            _ if waiter.state() == Waiting::Broken => Some(Err(BarrierError::Broken)),
            _ if word.generation() != waiter.generation.load(Ordering::Relaxed) => Some(Ok(())),
            BarrierPhase::Broken | BarrierPhase::Resetting => Some(Err(BarrierError::Broken)),
            BarrierPhase::Filling | BarrierPhase::Running => None,
        }
    }

    /// The action has run: all go on.
    ///
    /// # Errors
    /// [`BarrierError::Broken`] when it was aborted or reset meanwhile.
    pub fn release(&self, turn: &Turn) -> Result<(), BarrierError> {
        let &Turn::Last { generation, .. } = turn else { return Err(BarrierError::Broken) };
        let running = Word::new(generation, BarrierPhase::Running);
        if !self.step(running, running.next()) {
            return Err(BarrierError::Broken);
        }
        self.0.layout().waiters.wake_all();
        Ok(())
    }

    /// Breaks the barrier: all who wait, and who come, are told so, until it is reset.
    pub fn abort(&self) {
        while !self.break_of(self.word().generation()) {}
    }

    /// Breaks the barrier if it is still of this generation; false if it is not.
    fn break_of(&self, generation: u64) -> bool {
        loop {
            let word = self.word();
            let is_whole = matches!(word.phase(), BarrierPhase::Filling | BarrierPhase::Running);
            if word.generation() != generation || !is_whole {
                return word.generation() == generation;
            }
            if self.step(word, word.with(BarrierPhase::Broken)) {
                self.0.layout().waiters.wake_all();
                return true;
            }
        }
    }

    /// As new. Those who wait are told that it is broken.
    pub fn reset(&self) {
        let mutex = self.0.lock_through_signals(|| self.repair());
        loop {
            let word = self.word();
            if self.step(word, word.with(BarrierPhase::Resetting)) {
                self.finish_reset(word); // nobody else changes the word while it is so
                break;
            }
        }
        drop(mutex);
        self.0.layout().waiters.wake_all();
    }

    /// Tells those who wait, and begins the next generation. Under the mutex.
    fn finish_reset(&self, word: Word) {
        for waiter in self.waiting(word.generation()) {
            waiter.change(Waiting::Waits, Waiting::Broken);
        }
        self.0.state().value.store(word.next().0, Ordering::Release);
    }

    /// Breaks the barrier when one of the `dead` waits, or who runs the action has died.
    fn break_if_dead(&self, dead: &[Identity]) {
        let word = self.word();
        let runner = Identity::from_bits(self.0.state().owner.load(Ordering::Relaxed));
        let runner_died = word.phase() == BarrierPhase::Running && runner.is_dead();
        if runner_died || self.waiting(word.generation()).any(|waiter| dead.contains(&waiter.owner())) {
            self.break_of(word.generation());
        }
    }
}

/// Why the wait in [`Barrier::come`] ended.
enum ArrivalError {
    Barrier(BarrierError),
    Wait(WaitError),
}

impl From<WaitError> for ArrivalError {
    fn from(error: WaitError) -> Self {
        Self::Wait(error)
    }
}
