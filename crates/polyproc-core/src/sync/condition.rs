//! [`Condition`]: waiting to be notified. Its user holds a lock of its own around it.
//!
//! Each waiter has a place in the table; a notification goes to those who came first and *live*. One that dies after it was
//! notified, and before it left, passes the notification on to the next: whoever notifies or waits looks for the dead.
//! The store of a place's state is each step.

use std::io;
use std::sync::Arc;

use super::object::{Object, SLICE, TooManyWaiters, Waiter, Waiting, handle};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::robust::{Guard, WaitError};
use crate::sys::identity::Identity;

/// A condition. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Condition(Arc<Object>);
handle!(Condition, 4);

/// A place among those who wait.
#[derive(Debug)]
#[must_use = "the place is taken until `Condition::leave`"]
pub struct Ticket(u32);

impl Condition {
    /// One that nobody waits for.
    ///
    /// # Errors
    /// When the system gives no memory or no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Object::create(4, 0, 0)?))
    }

    fn mutex(&self) -> Guard<'_> {
        self.0.lock(|| {})
    }

    /// From now on this thread counts as waiting: to be called before the user's lock is released.
    ///
    /// # Errors
    /// [`TooManyWaiters`].
    pub fn enter(&self) -> Result<Ticket, TooManyWaiters> {
        {
            let _mutex = self.mutex();
            if let Ok(place) = self.0.enlist(0) {
                return Ok(Ticket(place));
            }
        }
        // The dead may fill it.
        let dead = self.0.dead();
        let _mutex = self.mutex();
        self.bury(&dead);
        self.0.enlist(0).map(Ticket)
    }

    /// Waits until this place is notified.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn wait(&self, ticket: &Ticket, deadline: Deadline) -> Result<(), WaitError> {
        let waiter = self.0.waiter(ticket.0);
        let mut slept = false;
        self.0.layout().sleepers.wait(deadline, SLICE, || {
            if std::mem::replace(&mut slept, true) && waiter.state() == Waiting::Waits {
                self.pass_on(&self.0.dead_behind(ticket.0));
            }
            Ok((waiter.state() == Waiting::Released).then_some(()))
        })
    }

    /// Gives the place back. True when it was notified, if only just now.
    pub fn leave(&self, ticket: Ticket) -> bool {
        let _mutex = self.mutex();
        let waiter = self.0.waiter(ticket.0);
        let notified = waiter.state() == Waiting::Released;
        waiter.set(Waiting::Free);
        notified
    }

    /// How many wait and have not been notified.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let _mutex = self.mutex();
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
            if state == Waiting::Released
                && let Some(heir) = self.in_order().into_iter().find(|heir| !dead.contains(&heir.owner()))
            {
                heir.set(Waiting::Released);
            }
            waiter.set(Waiting::Free);
        }
    }

    fn pass_on(&self, dead: &[Identity]) {
        if !dead.is_empty() {
            let mutex = self.mutex();
            self.bury(dead);
            drop(mutex);
            self.0.layout().sleepers.wake_all();
        }
    }

    /// Notifies up to `count` of those who wait and live, the first first.
    pub fn notify(&self, count: usize) {
        // Where all are notified, no notification can be lost to a dead one.
        let dead = if count < self.0.waiters().count() { self.0.dead() } else { Vec::new() };
        let mutex = self.mutex();
        self.bury(&dead);
        self.in_order().into_iter().take(count).for_each(|waiter| waiter.set(Waiting::Released));
        drop(mutex);
        self.0.layout().sleepers.wake_all();
    }
}
