//! [`Condition`]: blocks until notified. Its user holds a lock of their own around it.
//!
//! 1. [`Condition::enter`], with the user's lock held: takes a place in the table of waiters.
//! 2. The user releases their lock. From now on a notification finds the place.
//! 3. [`Condition::wait`] blocks until the place is notified.
//! 4. The user acquires their lock again; [`Condition::leave`] frees the place, and says whether it was notified.
//!
//! Each waiter has a place in the table. A notification goes to the first waiters that are *alive*. If a waiter dies after it
//! was notified and before it left, its notification passes to the next one: notifiers and waiters check for dead waiters.
//! Each step is one store of a place's state, so a dead owner of the object's mutex leaves nothing to repair.
//!
//! The mutex is held to enter, to notify, and to pass notifications on; not to leave. Notifications are not counted: without a
//! waiter, one is lost, as with any condition variable.

use std::io;
use std::sync::Arc;

use super::layout::{Waiter, Waiting};
use super::object::{Object, RECHECK_AFTER, TooManyWaiters, handle};
use crate::deadline::Deadline;
use crate::prim::{AtomicBool, Ordering};
use crate::retry::Interrupt;
use crate::robust::{RecheckInterval, WaitError};
use crate::sys::process_stamp::ProcessStamp;

/// A condition. Clones refer to the same condition.
#[derive(Debug, Clone)]
pub struct Condition(Arc<Object>);
handle!(Condition, 4);

/// The thread could not become a waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnterError {
    /// The table of waiters is full.
    #[error(transparent)]
    TooManyWaiters(#[from] TooManyWaiters),
    /// The deadline passed while a stopped process holds the condition's mutex; or a signal handler ran.
    #[error(transparent)]
    Wait(#[from] WaitError),
}

impl Interrupt for EnterError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::Wait(WaitError::Interrupted))
    }
}

/// A place in the table of waiters. It belongs to the thread that entered, and may be waited for several times.
#[derive(Debug)]
#[must_use = "the place is taken until `Condition::leave`"]
pub struct Ticket {
    /// The number of the place.
    place: u32,
    /// True after the first check of a wait: from then on the waiter checks for dead waiters. It outlives a wait that a signal
    /// handler interrupted, so that repeated waits make progress.
    has_waited: AtomicBool,
}

impl Ticket {
    fn new(place: u32) -> Self {
        Self { place, has_waited: AtomicBool::new(false) }
    }
}

impl Condition {
    /// Creates a condition without waiters.
    ///
    /// # Errors
    /// If the system has no memory or no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Object::create_with_waiters(4, 0, 0)?))
    }

    /// Makes this thread a waiter. Must be called before the user's lock is released. If the table is full, first frees the
    /// places of dead waiters.
    ///
    /// # Errors
    /// [`EnterError::TooManyWaiters`] if 4,000 living threads wait; [`EnterError::Wait`]. Then this thread is not a waiter.
    pub fn enter(&self, deadline: Deadline) -> Result<Ticket, EnterError> {
        {
            let _mutex = self.0.lock(deadline, || {})?;
            if let Ok(place) = self.0.enlist(0) {
                return Ok(Ticket::new(place));
            }
        }
        // Dead waiters may fill the table.
        let dead = self.0.dead();
        let _mutex = self.0.lock(deadline, || {})?;
        self.free_dead_waiters(&dead);
        Ok(self.0.enlist(0).map(Ticket::new)?)
    }

    /// Blocks until this place is notified. From the first re-check on, checks the waiters after it for deaths and has the
    /// processes of all waiters watched.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`]; [`WaitError::Interrupted`] after a signal handler ran. The place is still taken: wait again or
    /// leave.
    pub fn wait(&self, ticket: &Ticket, deadline: Deadline) -> Result<(), WaitError> {
        let waiter = self.0.waiter(ticket.place);
        let interval = RecheckInterval::new(RECHECK_AFTER);
        self.0.layout().waiters.wait(deadline, &interval, || {
            if ticket.has_waited.swap(true, Ordering::Relaxed) && waiter.state() == Waiting::Waits {
                self.0.watch_waiters(&interval);
                self.pass_on(&self.0.dead_behind(ticket.place), deadline)?;
            }
            Ok((waiter.state() == Waiting::Released).then_some(()))
        })
    }

    /// Frees the place. Returns whether it was notified, even if only after the wait ended.
    pub fn leave(&self, ticket: Ticket) -> bool {
        let waiter = self.0.waiter(ticket.place);
        // Without the mutex, so that this never blocks behind a stopped process. A notifier finds the place either waiting or
        // free.
        if waiter.change(Waiting::Waits, Waiting::Free) {
            return false;
        }
        waiter.change(Waiting::Released, Waiting::Free)
    }

    /// Returns the number of waiters that were not notified. Dead waiters count until they are found.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.waiters().filter(|waiter| waiter.state() == Waiting::Waits).count()
    }

    /// Returns the waiters that were not notified, in the order of their arrival. The order is that of the tickets, which are
    /// given out under the mutex. The list may be outdated at once: each use of it changes the state of a place by
    /// compare-and-swap.
    fn in_order(&self) -> Vec<&Waiter> {
        let mut waiting: Vec<_> = self.0.waiters().filter(|waiter| waiter.state() == Waiting::Waits).collect();
        waiting.sort_by_key(|waiter| waiter.ticket.load(Ordering::Relaxed));
        waiting
    }

    /// Frees the places of dead waiters and passes their notifications to living ones. The caller holds the mutex. The
    /// processes in `dead` were found dead before the mutex was acquired.
    fn free_dead_waiters(&self, dead: &[ProcessStamp]) {
        for waiter in self.0.waiters().filter(|waiter| dead.contains(&waiter.owner())) {
            let state = waiter.state();
            // Notify first: if this process dies before it frees the place, the notification is passed on twice, which is
            // harmless.
            if state == Waiting::Released {
                let mut heirs = self.in_order().into_iter().filter(|next_waiter| !dead.contains(&next_waiter.owner()));
                heirs.find(|next_waiter| next_waiter.change(Waiting::Waits, Waiting::Released));
            }
            waiter.set(Waiting::Free);
        }
    }

    /// Frees the places of `dead` and wakes the waiters that get their notifications. Does nothing if there are none.
    fn pass_on(&self, dead: &[ProcessStamp], deadline: Deadline) -> Result<(), WaitError> {
        if !dead.is_empty() {
            let mutex = self.0.lock(deadline, || {})?;
            self.free_dead_waiters(dead);
            drop(mutex);
            self.0.layout().waiters.wake_all();
        }
        Ok(())
    }

    /// Returns the dead among the notified waiters that have not left, and among the first waiters up to `count` living ones.
    /// Each check costs some system calls. The others need no check: they are not about to get a notification. Not called
    /// under the mutex.
    fn dead_before(&self, count: usize) -> Vec<ProcessStamp> {
        let (mut dead, mut living) = (Vec::new(), Vec::new());
        let mut lives = |owner: ProcessStamp| {
            if !dead.contains(&owner) && !living.contains(&owner) {
                if owner.is_dead() { &mut dead } else { &mut living }.push(owner);
            }
            living.contains(&owner)
        };
        let notified = self.0.waiters().filter(|waiter| waiter.state() == Waiting::Released);
        notified.for_each(|waiter| _ = lives(waiter.owner()));
        let first = self.in_order().into_iter().filter(|waiter| lives(waiter.owner()));
        first.take(count).for_each(drop);
        dead
    }

    /// Notifies up to `count` living waiters, in the order of their arrival; [`usize::MAX`] notifies all.
    ///
    /// Looks for dead waiters first, unless all are notified, then changes places under the mutex, then wakes all waiters, of
    /// which the others sleep again. Waits for the mutex however long it takes, as a notification must not be lost. Never
    /// blocks for the waiters.
    pub fn notify(&self, count: usize) {
        // If all are notified, no notification can be lost to a dead waiter.
        let dead = if count < self.0.waiters().count() { self.dead_before(count) } else { Vec::new() };
        let mutex = self.0.lock_through_signals(|| {});
        self.free_dead_waiters(&dead);
        // A waiter that leaves at this moment is skipped.
        let notified = self.in_order().into_iter().filter(|waiter| waiter.change(Waiting::Waits, Waiting::Released));
        notified.take(count).for_each(drop);
        drop(mutex);
        self.0.layout().waiters.wake_all();
    }
}
