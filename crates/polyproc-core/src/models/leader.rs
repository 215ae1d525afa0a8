//! Which thread reads the results, and that every waiting thread is woken: `pool/parent/leader.rs`, with `doorbell` and `latch`.
//!
//! Two calls, 0 and 1. Workers write results for them; threads wait for one call each, as [`leader::step`] says.

use std::time::Duration;

use loom::sync::{Arc, Mutex};
use loom::thread;

use super::{begin_thread, model};
use crate::deadline::Deadline;
use crate::pool::parent::key::CallKey;
use crate::pool::parent::latch::Parker;
use crate::pool::parent::leader::{self, Leadership, ResultState, ResultWait, ResultWaiter, WaitFor, WaitStep};
use crate::pool::shared::doorbell::{ASLEEP, ASLEEP_UNTIL_LOW, Doorbell};
use crate::prim::{AtomicU32, AtomicUsize, Ordering};
use crate::sys::futex::{self, Wait};

/// What the threads of the parent share under the lock.
#[derive(Default)]
struct Locked {
    leadership: Leadership,
    /// Number of results of each call that were read.
    read: [usize; 2],
    /// Wake-ups to send after the lock is released: the followers of each call, the leader, the pool's thread.
    unpark: [bool; 2],
    ring_leader: bool,
    ring_pool_thread: bool,
}

#[derive(Default)]
struct Pool {
    locked: Mutex<Locked>,
    doorbell: Doorbell,
    parkers: [Parker; 2],
    /// Number of results of each call that workers have written.
    written: [AtomicUsize; 2],
    /// Stands for the eventfd of the pool's thread.
    bell: AtomicU32,
    /// A call is over when it has this many results.
    wanted: usize,
}

fn key(call: usize) -> CallKey {
    CallKey { at: call, serial: 1 }
}

struct State<'a> {
    pool: &'a Pool,
    locked: &'a mut Locked,
}

impl ResultState for State<'_> {
    fn leadership(&mut self) -> &mut Leadership {
        &mut self.locked.leadership
    }

    fn doorbell(&self) -> &Doorbell {
        &self.pool.doorbell
    }

    fn is_anything_unread(&self) -> bool {
        (0..2).any(|call| self.pool.written[call].load(Ordering::Acquire) > self.locked.read[call])
    }

    fn collect(&mut self) {
        for call in 0..2 {
            let written = self.pool.written[call].load(Ordering::Acquire);
            if std::mem::replace(&mut self.locked.read[call], written) < written {
                let woken = self.locked.leadership.wake(key(call));
                self.locked.unpark[call] |= woken.followers;
                self.locked.ring_leader |= woken.leader;
                self.locked.ring_pool_thread |= self.locked.leadership.is_eager(); // for the callback
            }
        }
    }

    fn ticket(&self, call: CallKey) -> u32 {
        self.pool.parkers[call.at].ticket()
    }

    fn unpark(&mut self, call: CallKey) {
        self.locked.unpark[call.at] = true;
    }

    fn wake_pool_thread(&mut self) {
        self.locked.ring_pool_thread = true;
    }

    fn keep_leader_asleep(&mut self) {
        self.locked.ring_leader = false;
    }

    fn is_satisfied(&self, call: CallKey, _: WaitFor) -> bool {
        self.locked.read[call.at] == self.pool.wanted
    }

    fn way_to_sleep(&mut self, wait: &ResultWait) -> u32 {
        if wait.want == WaitFor::All && !self.locked.leadership.is_each_wanted() { ASLEEP_UNTIL_LOW } else { ASLEEP }
    }
}

impl Pool {
    fn new(wanted: usize) -> Arc<Self> {
        Arc::new(Self { wanted, ..Self::default() })
    }

    /// As `Driver::with`.
    fn with<T>(&self, f: impl FnOnce(&mut State<'_>) -> T) -> T {
        let mut locked = self.locked.lock().expect("not poisoned");
        let result = f(&mut State { pool: self, locked: &mut locked });
        let unpark = std::mem::take(&mut locked.unpark);
        let ring_leader = std::mem::take(&mut locked.ring_leader);
        let ring_pool_thread = std::mem::take(&mut locked.ring_pool_thread);
        drop(locked);
        (0..2).filter(|call| unpark[*call]).for_each(|call| self.parkers[call].unpark());
        if ring_leader {
            self.doorbell.ring(|| true, || self.ring());
        }
        if ring_pool_thread {
            self.ring();
        }
        result
    }

    fn ring(&self) {
        self.bell.swap(1, Ordering::SeqCst);
        futex::wake(&self.bell, 1);
    }

    /// As a worker that writes a result. `is_low` is whether few tasks are left.
    fn write(&self, call: usize, is_low: bool) {
        self.written[call].fetch_add(1, Ordering::Release);
        self.doorbell.ring(|| is_low, || self.ring());
    }

    /// As `Driver::wait`. Returns whether no signal handler ran.
    fn wait(&self, call: usize, want: WaitFor) -> bool {
        let me = ResultWaiter { call: key(call), serial: 1 };
        let mut wait = ResultWait { me, want, deadline: Deadline::NEVER, may_spin: false };
        loop {
            let woken = match self.with(|state| leader::step(state, &mut wait)) {
                WaitStep::Done => return true,
                WaitStep::TimedOut => unreachable!("there is no deadline"),
                WaitStep::Again => {
                    thread::yield_now();
                    continue;
                }
                WaitStep::Lead(how) => futex::wait(&self.doorbell.word, how, Duration::ZERO),
                WaitStep::Follow(ticket) => self.parkers[call].park(ticket, Duration::ZERO),
            };
            if woken == Wait::Interrupted {
                self.with(|state| leader::leave(state, me));
                return false;
            }
        }
    }
}

/// Two threads wait for a call each; a worker answers them one after the other. Whichever leads, the other one is woken for its
/// result, or takes the place of the leader.
#[test]
fn a_follower_is_woken_for_its_result_or_leads() {
    model(|| {
        let pool = Pool::new(1);
        let waiter = thread::spawn({
            let pool = pool.clone();
            move || assert!(pool.wait(0, WaitFor::Next))
        });
        let worker = thread::spawn({
            let pool = pool.clone();
            move || (0..2).for_each(|call| pool.write(call, true))
        });
        assert!(pool.wait(1, WaitFor::Next));
        [waiter, worker].into_iter().for_each(|thread| thread.join().expect("no panic"));
    });
}

/// A signal handler ends the wait of a thread, which may lead, at the first result; the other thread still gets its result.
#[test]
fn a_leader_that_is_interrupted_is_replaced() {
    model(|| {
        let pool = Pool::new(1);
        let interrupted = thread::spawn({
            let pool = pool.clone();
            move || {
                begin_thread(2, true);
                pool.wait(0, WaitFor::Next)
            }
        });
        let worker = thread::spawn({
            let pool = pool.clone();
            move || (0..2).for_each(|call| pool.write(call, true))
        });
        begin_thread(1, false);
        assert!(pool.wait(1, WaitFor::Next));
        worker.join().expect("no panic");
        interrupted.join().expect("no panic");
    });
}

/// No thread waits for call 1, but a callback does, which here runs on the pool's thread: that thread or the leader reads the
/// result. The leader of call 0 finds its result at once, and hands over while the worker writes.
#[test]
fn the_pools_thread_takes_over() {
    model(|| {
        let pool = Pool::new(1);
        pool.with(|state| {
            state.leadership().add_eager();
            leader::hand_over(state);
        });
        // Before the threads start: loom does not infer from the swap in `ring` which of two stores is the later one.
        pool.write(0, true);
        let waiter = thread::spawn({
            let pool = pool.clone();
            move || assert!(pool.wait(0, WaitFor::Next))
        });
        let worker = thread::spawn({
            let pool = pool.clone();
            move || pool.write(1, true)
        });
        // As the loop of the pool's thread.
        while !pool.with(|state| {
            leader::hand_over(state);
            state.is_satisfied(key(1), WaitFor::Next)
        }) {
            while pool.bell.swap(0, Ordering::SeqCst) == 0 {
                futex::wait(&pool.bell, 0, Duration::ZERO);
            }
        }
        [waiter, worker].into_iter().for_each(|thread| thread.join().expect("no panic"));
    });
}

/// The leader waits for all results of call 0, and is woken when few tasks are left. A thread that then waits for one result of
/// call 1 gets it nevertheless; only after that does the last result of call 0 come.
#[test]
fn a_leader_that_waits_for_all_serves_a_follower_at_once() {
    model(|| {
        let pool = Pool::new(1);
        let bulk = thread::spawn({
            let pool = pool.clone();
            move || assert!(pool.wait(0, WaitFor::All))
        });
        let worker = thread::spawn({
            let pool = pool.clone();
            move || pool.write(1, false)
        });
        assert!(pool.wait(1, WaitFor::Next));
        pool.write(0, true);
        [bulk, worker].into_iter().for_each(|thread| thread.join().expect("no panic"));
    });
}
