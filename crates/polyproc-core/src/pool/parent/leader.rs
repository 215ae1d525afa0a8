//! Which thread reads the results: a state machine, and the steps of a thread that waits.
//!
//! A thread that waits for results reads them itself, for all calls, as the *leader*; so a result passes through no
//! further thread. There is one leader at a time. The other waiting threads, the *followers*, sleep until their own
//! call has a result, or until the leader leaves and one of them takes its place. Without a leader, workers wake the
//! pool's thread. (After D. Schmidt et al., "Leader/Followers", 2000. Departures: a leader serves the calls of all
//! threads and stays the leader meanwhile; a thread of its own takes over if no thread waits.)
//!
//! | thread | sleeps on | is woken by |
//! |---|---|---|
//! | leader | the doorbell's word | a worker with a result; a thread with a result for its call |
//! | follower | the parker of its call | the thread that reads a result of the call; a leader that leaves |
//! | the pool's thread | `epoll_wait(2)` | a worker, by the `eventfd(2)`, if the doorbell is [`AWAY`] |
//!
//! All state is read and changed under the lock of the pool's state; threads sleep without it. No wake-up is lost, since
//! each sleeper announces itself first and checks after that: the leader and the pool's thread set the doorbell, then
//! check the rings (`doorbell`); a follower takes a ticket of its parker, under the lock under which its condition is
//! false.
//!
//! The functions reach the rest of the pool through [`ResultState`], so that the models in `models/leader.rs` run them
//! as they are.

use std::collections::BTreeSet;

use super::key::CallKey;
use crate::deadline::Deadline;
use crate::pool::shared::doorbell::{AWAKE, AWAY, Doorbell};

/// How often results are read before other threads can acquire the lock: workers may answer as fast as results are read.
///
/// Then the waiting thread releases the lock, yields, and continues.
const ROUNDS: usize = if cfg!(loom) { 2 } else { 64 };

/// A thread that waits for a call.
///
/// Created at the first step of a wait; it identifies the leader and the followers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ResultWaiter {
    /// The key of the call that it waits for.
    pub(crate) call: CallKey,
    /// Distinguishes threads that wait for the same call.
    pub(crate) serial: u64,
}

/// The leader, the followers, and whether the pool's thread reads results without them.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    /// `None` while no thread waits. The pool's thread reads results then, if `eager` is not 0.
    leader: Option<ResultWaiter>,
    /// The followers that sleep and were not woken.
    followers: BTreeSet<ResultWaiter>,
    /// Number of calls whose results must be read as they arrive, even if no thread waits for them.
    eager: usize,
}

/// The threads to wake for a change of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WaitersToWake {
    /// The followers that wait for this call.
    pub(crate) followers: bool,
    /// The leader.
    pub(crate) leader: bool,
}

impl Leadership {
    /// Counts one more call whose results are read even if no thread waits.
    pub(crate) fn add_eager(&mut self) {
        self.eager += 1;
    }

    /// Undoes one [`Leadership::add_eager`].
    pub(crate) fn remove_eager(&mut self) {
        self.eager -= 1;
    }

    /// Returns whether results are read even if no thread waits.
    pub(crate) fn is_eager(&self) -> bool {
        self.eager > 0
    }

    /// Returns whether a thread leads.
    pub(crate) fn is_led(&self) -> bool {
        self.leader.is_some()
    }

    /// Returns whether someone wants each result at once: a follower, or a callback.
    pub(crate) fn is_each_wanted(&self) -> bool {
        self.is_eager() || !self.followers.is_empty()
    }

    /// Returns the threads that wait for this call, and counts its followers as woken. A follower that sleeps again
    /// follows again.
    pub(crate) fn wake(&mut self, call: CallKey) -> WaitersToWake {
        let mut followers = false;
        while let Some(&waiter) = self.followers.range(ResultWaiter { call, serial: 0 }..).next()
            && waiter.call == call
        {
            followers |= self.followers.remove(&waiter);
        }
        WaitersToWake { followers, leader: self.leader.is_some_and(|leader| leader.call == call) }
    }

    /// Makes `me` the leader, unless another thread is. Returns whether `me` leads.
    fn lead(&mut self, me: ResultWaiter) -> bool {
        *self.leader.get_or_insert(me) == me
    }

    /// Ends the role of `me`. Returns the call of the follower that must be woken to lead, if `me` led or was woken to
    /// lead, and another one follows.
    fn leave(&mut self, me: ResultWaiter) -> Option<CallKey> {
        self.followers.remove(&me);
        if self.leader.is_some_and(|leader| leader != me) {
            return None;
        }
        self.leader = None;
        self.followers.first().map(|waiter| waiter.call)
    }
}

/// The state of the pool, under its lock, as this protocol needs it.
///
/// In the engine, `LockedState` (`results`); in the models, a small one.
pub(crate) trait ResultState {
    /// The state machine.
    fn leadership(&mut self) -> &mut Leadership;
    /// How workers wake the leader or the pool's thread.
    fn doorbell(&self) -> &Doorbell;
    /// Returns whether a worker has written results that were not read.
    fn is_anything_unread(&self) -> bool;
    /// Reads the results of all workers, and wakes the threads that [`Leadership::wake`] returns for their calls.
    fn collect(&mut self);
    /// Returns a ticket with which a follower of this call parks.
    fn ticket(&self, call: CallKey) -> u32;
    /// Wakes the followers of this call, once the lock is released.
    fn unpark(&mut self, call: CallKey);
    /// Wakes the pool's thread, once the lock is released.
    fn wake_pool_thread(&mut self);
    /// Takes back a wake-up of the leader that was not sent.
    fn keep_leader_asleep(&mut self);
    /// Returns whether the wanted condition of a call holds.
    fn is_satisfied(&self, call: CallKey, want: WaitFor) -> bool;
    /// Returns how the thread must be woken if it sleeps as the leader: a value of the doorbell.
    fn way_to_sleep(&mut self, wait: &ResultWait) -> u32;
}

/// What a thread waits for.
///
/// A call that is over satisfies each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// A result, or the end of the call.
    Next,
    /// Room for more tasks, or the end of the call.
    Room,
    /// The end of the call.
    All,
}

/// The wait of a thread.
#[derive(Debug)]
pub(crate) struct ResultWait {
    /// The thread.
    pub(crate) me: ResultWaiter,
    /// The condition.
    pub(crate) want: WaitFor,
    /// When the wait ends at the latest.
    pub(crate) deadline: Deadline,
    /// The thread has neither spun nor slept as the leader.
    pub(crate) may_spin: bool,
}

/// The next step of a waiting thread.
///
/// Decided under the lock by [`step`], carried out without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitStep {
    /// The wanted condition holds.
    Done,
    /// The deadline has passed.
    TimedOut,
    /// Repeat, after other threads had the lock.
    Again,
    /// Sleep while the doorbell has this value.
    ///
    /// The thread stays the leader while it sleeps.
    Lead(u32),
    /// Sleep until unparked after this ticket.
    ///
    /// Each sleep ends after an interval, too.
    Follow(u32),
}

/// Decides what a waiting thread does next.
///
/// 1. If there is no other leader and the wanted condition does not hold, becomes the leader and reads all results.
/// 2. If the condition holds or the deadline has passed, leaves.
/// 3. As a follower: takes a ticket. If a leader sleeps until few tasks are left, asks to be woken for the next result
///    instead ([`Doorbell::hurry`]), and reads the results that this may have come too late for.
/// 4. As the leader: sets how it must be woken, then re-checks. If no result has arrived in between, it may sleep.
///
/// At most [`ROUNDS`] rounds of reading happen under one acquisition of the lock.
pub(crate) fn step(state: &mut impl ResultState, wait: &mut ResultWait) -> WaitStep {
    let (me, want) = (wait.me, wait.want);
    state.leadership().followers.remove(&me);
    let leads = !state.is_satisfied(me.call, want) && state.leadership().lead(me);
    if leads {
        state.doorbell().set(AWAKE);
        state.collect();
    }
    for _ in 0..ROUNDS {
        let is_done = state.is_satisfied(me.call, want);
        if is_done || wait.deadline.has_passed() {
            leave(state, me);
            return if is_done { WaitStep::Done } else { WaitStep::TimedOut };
        }
        if leads {
            let how = state.way_to_sleep(wait);
            state.doorbell().set(how);
            state.keep_leader_asleep(); // this thread is the leader
            if !state.is_anything_unread() {
                wait.may_spin = false;
                return WaitStep::Lead(how);
            }
            state.doorbell().set(AWAKE);
        } else {
            state.leadership().followers.insert(me);
            let ticket = state.ticket(me.call);
            if !state.doorbell().hurry() || !state.is_anything_unread() {
                return WaitStep::Follow(ticket);
            }
            state.leadership().followers.remove(&me);
        }
        state.collect();
    }
    WaitStep::Again
}

/// Ends the wait of a thread. If there is no other leader, a follower or the pool's thread takes its place.
///
/// A follower that is woken to lead becomes the leader in its next step; one whose own wait is over by then wakes the
/// next one here.
pub(crate) fn leave(state: &mut impl ResultState, me: ResultWaiter) {
    let next = state.leadership().leave(me);
    if state.leadership().is_led() {
        return;
    }
    state.keep_leader_asleep();
    hand_over(state);
    if let Some(call) = next {
        state.leadership().wake(call);
        state.unpark(call);
    }
}

/// Without a leader, reads the results and has workers wake the pool's thread from then on, unless no call needs that.
///
/// Without such a call the doorbell stays [`AWAKE`]: no worker rings, and results stay in the rings until a thread
/// waits. After [`ROUNDS`] rounds the pool's thread continues.
pub(crate) fn hand_over(state: &mut impl ResultState) {
    for _ in 0..ROUNDS {
        if state.leadership().is_led() {
            return;
        }
        if !state.leadership().is_eager() {
            return state.doorbell().set(AWAKE);
        }
        state.doorbell().set(AWAY);
        if !state.is_anything_unread() {
            return;
        }
        state.collect();
    }
    state.wake_pool_thread(); // it continues here, after other threads had the lock
}
