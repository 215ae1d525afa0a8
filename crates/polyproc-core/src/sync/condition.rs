//! [`Condition`]: waiting to be notified. Its user holds a lock of its own around it.
//!
//! Each waiter has a place in the table; a notification goes to those who came first and *live*. One that dies after it was
//! notified, and before it left, passes the notification on to the next: whoever notifies or waits looks for the dead.
//! The store of a place's state is each step.

use std::io;
use std::sync::Arc;

use super::object::{Object, RECHECK_AFTER, TooManyWaiters, Waiter, Waiting, handle};
use crate::deadline::Deadline;
use crate::prim::{AtomicBool, Ordering};
use crate::retry::Interrupt;
use crate::robust::{RecheckInterval, WaitError};
use crate::sys::identity::Identity;

/// A condition. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Condition(Arc<Object>);
handle!(Condition, 4);

/// There is no place among those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnterError {
    /// More wait than there are places for.
    #[error(transparent)]
    TooManyWaiters(#[from] TooManyWaiters),
    /// The deadline passed, while a process stands still in the middle of using the condition; or a signal handler ran.
    #[error(transparent)]
    Wait(#[from] WaitError),
}

impl Interrupt for EnterError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::Wait(WaitError::Interrupted))
    }
}

/// A place among those who wait.
#[derive(Debug)]
#[must_use = "the place is taken until `Condition::leave`"]
pub struct Ticket {
    place: u32,
    /// It was waited with before: the dead are looked for.
    has_waited: AtomicBool,
}

impl Ticket {
    fn new(place: u32) -> Self {
        Self { place, has_waited: AtomicBool::new(false) }
    }
}

impl Condition {
    /// One that nobody waits for.
    ///
    /// # Errors
    /// When the system gives no memory or no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Object::create_with_waiters(4, 0, 0)?))
    }

    /// From now on this thread counts as waiting: to be called before the user's lock is released.
    ///
    /// # Errors
    /// [`EnterError`].
    pub fn enter(&self, deadline: Deadline) -> Result<Ticket, EnterError> {
        {
            let _mutex = self.0.lock(deadline, || {})?;
            if let Ok(place) = self.0.enlist(0) {
                return Ok(Ticket::new(place));
            }
        }
        // The dead may fill it.
        let dead = self.0.dead();
        let _mutex = self.0.lock(deadline, || {})?;
        self.bury(&dead);
        Ok(self.0.enlist(0).map(Ticket::new)?)
    }

    /// Waits until this place is notified.
    ///
    /// # Errors
    /// [`WaitError`].
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

    /// Gives the place back. True when it was notified, if only just now.
    pub fn leave(&self, ticket: Ticket) -> bool {
        let waiter = self.0.waiter(ticket.place);
        // Without the mutex: a wait that is over does not wait for a process that stands still. Whoever notifies finds one of both.
        if waiter.change(Waiting::Waits, Waiting::Free) {
            return false;
        }
        waiter.change(Waiting::Released, Waiting::Free)
    }

    /// How many wait and have not been notified.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.waiters().filter(|waiter| waiter.state() == Waiting::Waits).count()
    }

    /// Those who wait, in the order in which they came.
    fn in_order(&self) -> Vec<&Waiter> {
        let mut waiting: Vec<_> = self.0.waiters().filter(|waiter| waiter.state() == Waiting::Waits).collect();
        waiting.sort_by_key(|waiter| waiter.ticket.load(Ordering::Relaxed));
        waiting
    }

    /// Frees the places of the dead; their notifications go to those who wait. Under the mutex.
    fn bury(&self, dead: &[Identity]) {
        for waiter in self.0.waiters().filter(|waiter| dead.contains(&waiter.owner())) {
            let state = waiter.state();
            // First to the heir: if this process dies in between, the next one passes it on once more, which is harmless.
            if state == Waiting::Released {
                let mut heirs = self.in_order().into_iter().filter(|heir| !dead.contains(&heir.owner()));
                heirs.find(|heir| heir.change(Waiting::Waits, Waiting::Released));
            }
            waiter.set(Waiting::Free);
        }
    }

    fn pass_on(&self, dead: &[Identity], deadline: Deadline) -> Result<(), WaitError> {
        if !dead.is_empty() {
            let mutex = self.0.lock(deadline, || {})?;
            self.bury(dead);
            drop(mutex);
            self.0.layout().waiters.wake_all();
        }
        Ok(())
    }

    /// Those who died of the ones that were notified and have not left, and of the first that wait, up to so many that live: each
    /// costs some system calls.
    fn dead_before(&self, count: usize) -> Vec<Identity> {
        let (mut dead, mut living) = (Vec::new(), Vec::new());
        let mut lives = |owner: Identity| {
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

    /// Notifies up to `count` of those who wait and live, the first first.
    pub fn notify(&self, count: usize) {
        // Where all are notified, no notification can be lost to a dead one.
        let dead = if count < self.0.waiters().count() { self.dead_before(count) } else { Vec::new() };
        let mutex = self.0.lock_through_signals(|| {});
        self.bury(&dead);
        // One that leaves just now is passed over.
        let notified = self.in_order().into_iter().filter(|waiter| waiter.change(Waiting::Waits, Waiting::Released));
        notified.take(count).for_each(drop);
        drop(mutex);
        self.0.layout().waiters.wake_all();
    }
}
