//! Locks, conditions, semaphores, events, barriers.

use std::sync::mpsc;
use std::time::Duration;

use polyproc::{Barrier, BarrierError, Condition, Event, Lock, LockError, LockGuard, RLock, Semaphore};
use serde::{Deserialize, Serialize};

use super::trial::{LIMIT, Operation, PATIENCE, Said, Situation};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ObjectOperation {
    Lock,
    /// Acquires it twice, nested.
    RLock,
    Notify,
    /// Enters and leaves the table of waiters; does not sleep.
    Wait,
    Semaphore,
    Event,
    /// Arrives, gives up at once, which breaks the barrier, and resets it.
    Barrier,
}

pub(crate) const OBJECTS: [ObjectOperation; 7] = {
    use ObjectOperation::{Barrier, Event, Lock, Notify, RLock, Semaphore, Wait};
    [Lock, RLock, Notify, Wait, Semaphore, Event, Barrier]
};

/// The objects that an operation needs; the others are `None`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Objects {
    lock: Option<Lock>,
    rlock: Option<RLock>,
    condition: Option<Condition>,
    semaphore: Option<Semaphore>,
    event: Option<Event>,
    barrier: Option<Barrier>,
}

impl Objects {
    fn lock(&self) -> &Lock {
        self.lock.as_ref().expect("made for this operation")
    }

    fn rlock(&self) -> &RLock {
        self.rlock.as_ref().expect("made for this operation")
    }

    fn condition(&self) -> &Condition {
        self.condition.as_ref().expect("made for this operation")
    }

    fn semaphore(&self) -> &Semaphore {
        self.semaphore.as_ref().expect("made for this operation")
    }

    fn event(&self) -> &Event {
        self.event.as_ref().expect("made for this operation")
    }

    fn barrier(&self) -> &Barrier {
        self.barrier.as_ref().expect("made for this operation")
    }
}

const PERMITS: usize = 2;

pub(crate) struct Checker {
    operation: ObjectOperation,
    objects: Objects,
    /// Reports whether the thread that has waited since before the victim's operation was notified.
    waiter: Option<mpsc::Receiver<bool>>,
    /// Number of permits that the checker acquired while the victim was stopped.
    permits: usize,
}

/// Returns the guard, also from a dead owner; `None` after a timeout.
fn any<G>(result: Result<G, LockError<G>>) -> Option<G> {
    result.map_or_else(LockError::into_inner, Some)
}

/// Starts a thread that waits for the condition. Returns once it waits; the channel reports whether it was notified.
fn wait_in_thread(objects: &Objects) -> mpsc::Receiver<bool> {
    let ((tell, told), (enter, entered)) = (mpsc::channel(), mpsc::channel());
    let own = objects.clone();
    std::thread::spawn(move || {
        let Some(guard) = any(own.lock().lock_timeout(PATIENCE)) else { return };
        let _ = enter.send(());
        let notified = match own.condition().wait_timeout(guard, PATIENCE * 4) {
            Ok((_, notified)) | Err(LockError::OwnerDied((_, notified))) => notified,
            Err(LockError::TimedOut) => false,
        };
        let _ = tell.send(notified);
    });
    let _ = entered.recv();
    // The waiter is in the table when it has released the lock.
    drop(any(objects.lock().lock()));
    told
}

impl Operation for ObjectOperation {
    type Objects = Objects;
    type Ready = ();
    type Checker = Checker;

    fn name(self) -> String {
        match self {
            Self::Lock => "Lock acquire, release",
            Self::RLock => "RLock twice",
            Self::Notify => "Condition notify",
            Self::Wait => "Condition wait, no time",
            Self::Semaphore => "Semaphore acquire, release",
            Self::Event => "Event set",
            Self::Barrier => "Barrier wait, no time, reset",
        }
        .to_owned()
    }

    fn objects(self) -> std::io::Result<Objects> {
        let mut objects = Objects::default();
        match self {
            Self::Lock => objects.lock = Some(Lock::new()?),
            Self::RLock => objects.rlock = Some(RLock::new()?),
            Self::Notify | Self::Wait => {
                objects.lock = Some(Lock::new()?);
                objects.condition = Some(Condition::new()?);
            }
            Self::Semaphore => objects.semaphore = Some(Semaphore::new(PERMITS)?),
            Self::Event => objects.event = Some(Event::new()?),
            Self::Barrier => objects.barrier = Some(Barrier::new(2)?),
        }
        Ok(objects)
    }

    fn get_ready(self, objects: &Objects) {
        self.operate(objects, ());
        if self == Self::Event {
            objects.event().clear();
        }
    }

    fn operate(self, objects: &Objects, (): ()) {
        match self {
            Self::Lock => drop(objects.lock().lock()),
            Self::RLock => {
                let outer = objects.rlock().lock();
                let inner = objects.rlock().lock();
                drop((inner, outer));
            }
            Self::Notify => {
                let guard = any(objects.lock().lock());
                objects.condition().notify_one();
                drop(guard);
            }
            Self::Wait => {
                let guard = any(objects.lock().lock()).expect("`lock` waits");
                drop(objects.condition().wait_timeout(guard, Duration::ZERO));
            }
            Self::Semaphore => {
                objects.semaphore().acquire();
                objects.semaphore().release().expect("a semaphore without a bound");
            }
            Self::Event => objects.event().set(),
            Self::Barrier => {
                let _ = objects.barrier().wait_timeout(Duration::ZERO);
                objects.barrier().reset();
            }
        }
    }

    fn recover(self, objects: &Objects) {
        self.operate(objects, ());
    }

    fn checker(self, objects: Objects) -> Checker {
        let waits = matches!(self, Self::Notify | Self::Wait);
        let waiter = waits.then(|| wait_in_thread(&objects));
        Checker { operation: self, objects, waiter, permits: 0 }
    }

    fn call_with_limits(checker: &mut Checker, said: &mut Said) {
        let objects = &checker.objects;
        match checker.operation {
            Self::Notify | Self::Wait => {
                let guard = said.in_time("lock", LIMIT, || any(objects.lock().lock_timeout(LIMIT)));
                if let Some(guard) = guard {
                    let wait = || objects.condition().wait_timeout(guard, LIMIT).map(drop).is_ok();
                    let _ = said.in_time("wait", LIMIT, wait);
                }
            }
            Self::Lock => {
                said.limited(|| objects.lock().lock_timeout(LIMIT).map(drop).map_err(|error| format!("{error:?}")));
                said.limited(|| objects.lock().try_lock().map(drop).map_err(|error| format!("{error:?}")));
            }
            Self::RLock => {
                said.limited(|| objects.rlock().lock_timeout(LIMIT).map(drop).map_err(|error| format!("{error:?}")));
                said.limited(|| objects.rlock().try_lock().map(drop).map_err(|error| format!("{error:?}")));
            }
            Self::Semaphore => {
                let took = said.in_time("acquire", LIMIT, || objects.semaphore().acquire_timeout(LIMIT));
                checker.permits += usize::from(took);
            }
            Self::Event => {
                let set = said.in_time("wait", LIMIT, || objects.event().wait_timeout(LIMIT));
                said.seen.push(format!("event set: {set}"));
            }
            Self::Barrier => {
                let waited = said.in_time("wait", LIMIT, || objects.barrier().wait_timeout(LIMIT));
                said.seen.push(format!("barrier: {waited:?}"));
            }
        }
    }

    fn check(checker: Checker, situation: Situation, said: &mut Said) {
        let objects = &checker.objects;
        match checker.operation {
            Self::Lock => check_lock(|| objects.lock().lock_timeout(PATIENCE).map(drop), situation, said),
            Self::RLock => check_lock(|| objects.rlock().lock_timeout(PATIENCE).map(drop), situation, said),
            Self::Notify | Self::Wait => checker.check_condition(situation, said),
            Self::Semaphore => checker.check_semaphore(situation, said),
            Self::Event => {
                let set = objects.event().is_set();
                said.check(set || !situation.acknowledged, || "the event is not set".to_owned());
                said.seen.push(format!("event set: {set}"));
                said.happened = Some(set);
                objects.event().set();
                said.check(objects.event().wait_timeout(PATIENCE), || "nobody sees that the event is set".to_owned());
            }
            Self::Barrier => check_barrier(objects.barrier(), said),
        }
    }
}

impl Said {
    /// Acquires a lock with a limit. Its owner is alive, so only success and a timeout are right.
    fn limited(&mut self, acquire: impl FnOnce() -> Result<(), String>) {
        match self.in_time("lock", LIMIT, acquire) {
            Ok(()) => {}
            Err(error) if error == "TimedOut" => self.seen.push("lock timed out".to_owned()),
            Err(error) => self.complain(format!("the owner stands still, and the next one gets {error}")),
        }
    }
}

/// Checks that the next owner gets the lock, and learns once if the previous owner died.
fn check_lock<G>(acquire: impl Fn() -> Result<(), LockError<G>>, situation: Situation, said: &mut Said) {
    match acquire() {
        Ok(()) => said.seen.push("free".to_owned()),
        Err(LockError::OwnerDied(_)) => {
            said.seen.push("told of the death".to_owned());
            said.check(!situation.acknowledged || situation.second, || "told of a death after the release".to_owned());
        }
        Err(LockError::TimedOut) => said.complain("nobody gets the lock"),
    }
    let again = acquire();
    said.check(again.is_ok(), || format!("the second time: {:?}", again.err()));
}

/// Checks that two parties pass the barrier after a reset, twice.
fn check_barrier(barrier: &Barrier, said: &mut Said) {
    barrier.reset();
    for _ in 0..2 {
        let other = barrier.clone();
        let other = std::thread::spawn(move || other.wait_timeout(PATIENCE));
        let mut both = [barrier.wait_timeout(PATIENCE), other.join().unwrap_or(Err(BarrierError::Broken))];
        both.sort_by_key(|index| index.unwrap_or(usize::MAX));
        said.check(both == [Ok(0), Ok(1)], || format!("those who come to the barrier get {both:?}"));
    }
}

impl Checker {
    fn lock(&self, said: &mut Said) -> Option<LockGuard<'_>> {
        let guard = any(self.objects.lock().lock_timeout(PATIENCE));
        said.check(guard.is_some(), || "nobody gets the lock of the condition".to_owned());
        guard
    }

    fn check_condition(&self, situation: Situation, said: &mut Said) {
        let Some(waiter) = &self.waiter else { return };
        if self.operation == ObjectOperation::Notify && situation.acknowledged {
            let notified = waiter.recv_timeout(PATIENCE);
            said.check(notified == Ok(true), || format!("the notification did not come: {notified:?}"));
        } else {
            let guard = self.lock(said);
            self.objects.condition().notify_one();
            drop(guard);
            let notified = waiter.recv_timeout(PATIENCE);
            said.check(notified == Ok(true), || format!("a notification after the death did not come: {notified:?}"));
        }
        // The table entry of a dead process consumes no notification.
        let waiter = wait_in_thread(&self.objects);
        let guard = self.lock(said);
        self.objects.condition().notify_one();
        drop(guard);
        let notified = waiter.recv_timeout(PATIENCE);
        said.check(notified == Ok(true), || format!("the next notification did not come: {notified:?}"));
        let again = self.objects.lock().lock_timeout(PATIENCE).map(drop);
        said.check(again.is_ok(), || format!("the lock afterwards: {:?}", again.err()));
    }

    fn check_semaphore(&self, situation: Situation, said: &mut Said) {
        let semaphore = self.objects.semaphore();
        (0..self.permits).for_each(|_| _ = semaphore.release());
        let mut permits = 0;
        while permits < 10 && semaphore.try_acquire() {
            permits += 1;
        }
        let gone = usize::from(!situation.acknowledged) + usize::from(situation.second);
        said.check((PERMITS - gone..=PERMITS).contains(&permits), || {
            format!("of {PERMITS} permits {permits} are there")
        });
        said.seen.push(format!("{permits} permits"));
        let released = semaphore.release();
        said.check(released.is_ok() && semaphore.acquire_timeout(PATIENCE), || "no permit comes back".to_owned());
    }
}
