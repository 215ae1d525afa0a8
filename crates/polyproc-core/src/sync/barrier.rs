//! [`Barrier`]: blocks until a number of parties have arrived.
//!
//! Each party but the last takes a place in the table of waiters, with the barrier's generation. One word holds the generation
//! and the phase, and each step is one change of that word:
//!
//! | from | to | by | under the mutex |
//! |---|---|---|---|
//! | filling | running | the last party that arrives | yes |
//! | running | filling, next generation | the last party, after the action: releases all waiters | no |
//! | filling or running | broken | any process: a deadline, an abort, or a dead party | no |
//! | any | resetting | a reset | yes |
//! | resetting | filling, next generation | the same reset, or the next owner of the mutex after its death | yes |
//!
//! A party that dies while it waits, or while it runs the action, breaks the barrier: the waiters return at once, and no party
//! waits for a dead one. Waiters and arriving parties look for the dead; no thread of the engine does.
//!
//! The mutex is held only to arrive and to reset, so a wait that has ended never blocks behind a stopped process. System calls
//! that find out which processes are dead are made before it is acquired.
//!
//! The faces call [`Barrier::arrive`], then [`Barrier::wait`], or run the action and call [`Barrier::release`]: the action is
//! the user's code, so it does not run in here. A barrier holds no lock of its user. `docs/design/lock.md` compares the
//! primitives.

use std::io;
use std::sync::Arc;

use super::layout::{Waiter, Waiting};
use super::object::{Object, RECHECK_AFTER, TooManyWaiters, handle};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::process::watch_death;
use crate::retry::Interrupt;
use crate::robust::{RecheckInterval, WaitError};
use crate::sys::process_stamp::ProcessStamp;

/// The phase of a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum BarrierPhase {
    /// Parties arrive. The initial phase.
    Filling = 0,
    /// The process in `owner` runs the action. Further parties wait in `arrive` until it is over.
    Running = 1,
    /// All waits and arrivals fail until a reset.
    Broken = 2,
    /// Broken for the current waiters, until the next generation begins.
    Resetting = 3,
}

/// The generation and the phase of a barrier: the phase in the two lowest bits. Any word is valid, whatever a peer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word(u64);

impl Word {
    /// The generation wraps at 2^62.
    fn new(generation: u64, phase: BarrierPhase) -> Self {
        Self(generation.wrapping_mul(4) + phase as u64)
    }

    /// Returns the phase: each value of the two bits is one.
    fn phase(self) -> BarrierPhase {
        match self.0 % 4 {
            0 => BarrierPhase::Filling,
            1 => BarrierPhase::Running,
            2 => BarrierPhase::Broken,
            _ => BarrierPhase::Resetting,
        }
    }

    /// Returns the number of meetings and resets so far.
    fn generation(self) -> u64 {
        self.0 / 4
    }

    /// Returns the word of the same generation in another phase.
    fn with(self, phase: BarrierPhase) -> Self {
        Self::new(self.generation(), phase)
    }

    /// Returns the word with which the next generation begins.
    fn next(self) -> Self {
        Self::new(self.generation().wrapping_add(1), BarrierPhase::Filling)
    }
}

/// A wait at a barrier failed. It concerns one party; the phase of the barrier concerns all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// The barrier is broken: a party died, timed out or aborted it; or it was reset during the wait. Until a reset, further
    /// calls fail in the same way.
    #[error("the barrier is broken: a party died, timed out or aborted it")]
    Broken,
    /// A signal handler ran. In [`Barrier::wait`], this party still counts as waiting: wait again with the same turn. In
    /// [`Barrier::arrive`], it has not arrived.
    #[error("a signal handler ran during the wait")]
    Interrupted,
    /// The table of waiters is full. At most 4,000 parties can wait at a time.
    #[error(transparent)]
    TooManyWaiters(#[from] TooManyWaiters),
}

impl Interrupt for BarrierError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

/// The next step of a party that has arrived.
#[derive(Debug)]
#[must_use]
pub enum BarrierTurn {
    /// Wait for the others: [`Barrier::wait`].
    Wait {
        /// The order of arrival, from 0.
        index: usize,
        /// The number of its place in the table of waiters.
        #[doc(hidden)]
        place: u32,
    },
    /// This is the last party: run the action, then call [`Barrier::release`] or [`Barrier::abort`].
    Last {
        /// One less than the number of parties.
        index: usize,
        /// The generation in which it arrived: a reset or abort meanwhile makes [`Barrier::release`] fail.
        #[doc(hidden)]
        generation: u64,
    },
}

/// A barrier. Clones refer to the same barrier. It is used again after each meeting, without a reset. The table of waiters is
/// in a file of its own, so a barrier costs a descriptor.
#[derive(Debug, Clone)]
pub struct Barrier(Arc<Object>);
handle!(Barrier, 5);

impl Barrier {
    /// Creates a barrier for this number of parties. With more than 4,001, all parties cannot meet: arrivals fail with
    /// [`BarrierError::TooManyWaiters`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `parties` is 0; else if the system has no memory or no descriptor left.
    pub fn new(parties: usize) -> io::Result<Self> {
        if parties == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a barrier must have at least one party"));
        }
        Ok(Self(Object::create_with_waiters(5, 0, parties as u64)?))
    }

    /// Returns the number of parties. It was fixed at creation; a peer that overwrites it makes the barrier release too early
    /// or never.
    #[must_use]
    pub fn parties(&self) -> usize {
        usize::try_from(self.0.layout().kind.limit.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    /// Returns the word. Generation and phase are from one load, so they belong together.
    fn word(&self) -> Word {
        // Pairs with the Release in `step` and `finish_reset`.
        Word(self.0.state().value.load(Ordering::Acquire))
    }

    /// Changes the word. Returns false if it was no longer `from`. The caller holds the mutex to enter the phase
    /// [`BarrierPhase::Resetting`], and to make a running barrier of a filling one.
    fn step(&self, from: Word, to: Word) -> bool {
        // Release pairs with the Acquire in `word`: a released party sees what the others wrote before they arrived, as
        // they arrived under the mutex.
        self.0.state().value.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Returns the waiters of a generation. Waiters of other generations have been released or broken, and have not freed
    /// their places yet.
    fn waiting(&self, generation: u64) -> impl Iterator<Item = &Waiter> {
        let is_of = move |waiter: &&Waiter| waiter.generation.load(Ordering::Relaxed) == generation;
        self.0.waiters().filter(|waiter| waiter.state() == Waiting::Waits).filter(is_of)
    }

    /// Finishes the reset that a dead owner of the mutex had begun. Only a reset takes several steps under the mutex.
    fn repair(&self) {
        let word = self.word();
        if word.phase() == BarrierPhase::Resetting {
            self.finish_reset(word);
        }
    }

    /// Returns the number of waiters. It is 0 unless the barrier is filling, or its action runs.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        let word = self.word();
        if matches!(word.phase(), BarrierPhase::Filling | BarrierPhase::Running) {
            self.waiting(word.generation()).count()
        } else {
            0
        }
    }

    /// Returns whether the barrier is broken. Another process may break or reset it at any time.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.word().phase() == BarrierPhase::Broken
    }

    /// Registers the arrival of one more party. Blocks while the parties before it run the action; the deadline breaks the
    /// barrier.
    ///
    /// With [`BarrierTurn::Wait`], the party has a place in the table until [`Barrier::wait`] returns, with any result but
    /// [`BarrierError::Interrupted`]. A turn that is dropped instead keeps the place until its process dies. With
    /// [`BarrierTurn::Last`], the other parties wait until this one calls [`Barrier::release`] or [`Barrier::abort`], or dies.
    ///
    /// Before the barrier would be full, or while the action runs, this call looks for dead parties, which break the barrier,
    /// and frees their places.
    ///
    /// # Errors
    /// [`BarrierError::Broken`] if the barrier is broken, or the deadline passes; [`BarrierError::TooManyWaiters`];
    /// [`BarrierError::Interrupted`] after a signal handler ran: this party has not arrived, and may call again.
    pub fn arrive(&self, deadline: Deadline) -> Result<BarrierTurn, BarrierError> {
        let come = || -> Result<Option<BarrierTurn>, ArrivalError> {
            let is_full = self.n_waiting() + 1 >= self.parties() || self.word().phase() == BarrierPhase::Running;
            let dead = if is_full { self.0.dead() } else { Vec::new() };
            self.break_if_dead(&dead);
            let _mutex = self.0.lock(deadline, || self.repair())?;
            // None of them waits in an unbroken generation, after `break_if_dead`.
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
                self.0.state().owner.store(ProcessStamp::own().bits(), Ordering::Relaxed);
                let is_whole = self.step(word, word.with(BarrierPhase::Running));
                let last = BarrierTurn::Last { index, generation: word.generation() };
                return is_whole.then_some(Some(last)).ok_or(ArrivalError::Barrier(BarrierError::Broken));
            }
            let place = self.0.enlist(word.generation()).map_err(|error| ArrivalError::Barrier(error.into()))?;
            Ok(Some(BarrierTurn::Wait { index, place }))
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

    /// Blocks until the other parties have arrived and the action has run. The deadline breaks the barrier, as in Python.
    /// Returns the index of the turn.
    ///
    /// Before each sleep, checks whether the parties after its place are dead; from the first re-check on, has the other
    /// parties and the runner of the action watched.
    ///
    /// # Errors
    /// [`BarrierError::Broken`], also for the turn of the last party; [`BarrierError::Interrupted`]: then wait again, or call
    /// [`Barrier::abort`].
    pub fn wait(&self, turn: &BarrierTurn, deadline: Deadline) -> Result<usize, BarrierError> {
        let &BarrierTurn::Wait { index, place } = turn else { return Err(BarrierError::Broken) };
        let waiter = self.0.waiter(place);
        let generation = waiter.generation.load(Ordering::Relaxed);
        let (mut slept, interval) = (false, RecheckInterval::new(RECHECK_AFTER));
        let waited = self.0.layout().waiters.wait(deadline, &interval, || {
            if self.ended(waiter).is_none() {
                if std::mem::replace(&mut slept, true) {
                    self.0.watch_waiters(&interval);
                    let runner = ProcessStamp::from_bits(self.0.state().owner.load(Ordering::Relaxed));
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

    /// Returns the result of a wait, or `None` while it has not ended. A waiter of an earlier generation that was not marked
    /// as broken was released.
    fn ended(&self, waiter: &Waiter) -> Option<Result<(), BarrierError>> {
        let word = self.word(); // first: a reset marks the waiters before it changes the generation
        match word.phase() {
            _ if waiter.state() == Waiting::Broken => Some(Err(BarrierError::Broken)),
            _ if word.generation() != waiter.generation.load(Ordering::Relaxed) => Some(Ok(())),
            BarrierPhase::Broken | BarrierPhase::Resetting => Some(Err(BarrierError::Broken)),
            BarrierPhase::Filling | BarrierPhase::Running => None,
        }
    }

    /// Releases all waiters, after the action has run. The last party calls it once; if it dies before, the waiters find the
    /// barrier broken.
    ///
    /// # Errors
    /// [`BarrierError::Broken`] if the barrier was broken or reset while the action ran.
    pub fn release(&self, turn: &BarrierTurn) -> Result<(), BarrierError> {
        let &BarrierTurn::Last { generation, .. } = turn else { return Err(BarrierError::Broken) };
        let running = Word::new(generation, BarrierPhase::Running);
        if !self.step(running, running.next()) {
            return Err(BarrierError::Broken);
        }
        self.0.layout().waiters.wake_all();
        Ok(())
    }

    /// Breaks the barrier until it is reset: all waits and arrivals fail with [`BarrierError::Broken`]. Takes no lock, so it
    /// does not block behind a stopped process. Does nothing to a barrier that is broken already.
    pub fn abort(&self) {
        while !self.break_of(self.word().generation()) {}
    }

    /// Breaks the barrier if it is still in this generation, and wakes its waiters. Returns false if the generation has ended:
    /// a wait that was late then has its result already. Needs no mutex.
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

    /// Resets the barrier to its initial state. Current waits fail with [`BarrierError::Broken`]. Blocks behind a process that
    /// is stopped while it holds the mutex.
    pub fn reset(&self) {
        let mutex = self.0.lock_through_signals(|| self.repair());
        loop {
            let word = self.word();
            if self.step(word, word.with(BarrierPhase::Resetting)) {
                self.finish_reset(word); // no other process changes the word in this phase
                break;
            }
        }
        drop(mutex);
        self.0.layout().waiters.wake_all();
    }

    /// Marks the waiters as broken, and begins the next generation. The caller holds the mutex. If this process dies in it,
    /// the next owner of the mutex calls it again.
    fn finish_reset(&self, word: Word) {
        for waiter in self.waiting(word.generation()) {
            waiter.change(Waiting::Waits, Waiting::Broken);
        }
        // Pairs with the Acquire in `word`: the waiters are marked before the generation changes.
        self.0.state().value.store(word.next().0, Ordering::Release);
    }

    /// Breaks the barrier if one of the `dead` is a waiter, or the process that runs the action has died. Not called under the
    /// mutex, as it makes system calls. Called for parties that were found dead before: a place that was freed and taken again
    /// meanwhile has another owner, and does not match.
    fn break_if_dead(&self, dead: &[ProcessStamp]) {
        let word = self.word();
        let runner = ProcessStamp::from_bits(self.0.state().owner.load(Ordering::Relaxed));
        let runner_died = word.phase() == BarrierPhase::Running && runner.is_dead();
        if runner_died || self.waiting(word.generation()).any(|waiter| dead.contains(&waiter.owner())) {
            self.break_of(word.generation());
        }
    }
}

/// Why the wait in [`Barrier::arrive`] ended. It tells a broken barrier from a wait that timed out, which breaks it.
enum ArrivalError {
    /// The barrier is broken, or the table of waiters is full.
    Barrier(BarrierError),
    /// The wait for the mutex, or for the end of the action.
    Wait(WaitError),
}

impl From<WaitError> for ArrivalError {
    fn from(error: WaitError) -> Self {
        Self::Wait(error)
    }
}
