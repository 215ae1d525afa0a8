//! Locks, semaphores, conditions, events and barriers between processes, and the effects of a death on them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use polyproc::{
    Barrier, BarrierError, BoundedSemaphore, Condition, Event, Lock, LockError, Process, Queue, RLock, ReleaseError,
    Semaphore, active_children,
};

mod support;
use support::{Clean, TestResult, wait_until};

const LONG: Duration = Duration::from_secs(3600);

/// Puts this process's id into `queue`, then sleeps for ever.
fn sleep(queue: &Queue<u32>) {
    queue.put(std::process::id()).expect("an open queue");
    loop {
        std::thread::sleep(LONG);
    }
}

fn kill_children() -> TestResult {
    for child in active_children() {
        child.kill()?;
        child.wait_timeout(LONG)?;
    }
    Ok(())
}

#[test]
fn a_lock_admits_one_process_at_a_time() -> TestResult {
    let _clean = Clean::start();
    let (lock, numbers) = (Lock::new()?, Queue::new(0)?);
    numbers.put(0u64)?;
    // Takes the number out and puts the next one in: without the lock, another process would find the queue empty.
    let count = |(lock, numbers): (Lock, Queue<u64>)| {
        for _ in 0..2000 {
            let _guard = lock.lock().expect("nobody dies");
            let number = numbers.try_get().expect("one is in it");
            numbers.put(number + 1).expect("an open queue");
        }
    };
    let counting: Vec<_> =
        (0..4).map(|_| Process::new(count, (lock.clone(), numbers.clone())).start()).collect::<Result<_, _>>()?;
    for child in counting {
        child.join()?;
    }
    assert_eq!(numbers.get()?, 8000);
    assert!(!lock.is_locked());
    Ok(())
}

#[test]
fn the_next_owner_is_told_of_a_death() -> TestResult {
    let _clean = Clean::start();
    let (lock, queue) = (Lock::new()?, Queue::new(0)?);
    let hold = |(lock, queue): (Lock, Queue<u32>)| {
        let _guard = lock.lock();
        sleep(&queue)
    };
    let holding = Process::new(hold, (lock.clone(), queue.clone())).start()?;
    let _: u32 = queue.get()?;
    assert!(matches!(lock.try_lock(), Err(LockError::TimedOut)));
    assert!(matches!(lock.lock_timeout(Duration::from_millis(5)), Err(LockError::TimedOut)));
    let wait = |lock: Lock| matches!(lock.lock(), Err(LockError::OwnerDied(_)));
    let waiting = Process::new(wait, lock.clone()).start()?;
    holding.kill()?;
    assert!(waiting.join()?, "it waited, and the owner died");
    assert!(lock.lock().is_ok(), "told once");
    Ok(())
}

#[test]
fn a_lock_may_be_released_elsewhere_and_an_rlock_not() -> TestResult {
    let _clean = Clean::start();
    let (lock, rlock) = (Lock::new()?, RLock::new()?);
    std::mem::forget(lock.lock().map_err(|_| "free")?);
    let once = rlock.lock().map_err(|_| "free")?;
    let twice = rlock.try_lock().map_err(|_| "its own")?;
    let release = |(lock, rlock): (Lock, RLock)| {
        let refused = rlock.release() == Err(ReleaseError::NotOwner) && rlock.try_lock().is_err();
        refused && lock.release().is_ok() && lock.release() == Err(ReleaseError::NotHeld)
    };
    assert!(Process::new(release, (lock.clone(), rlock.clone())).start()?.join()?);
    assert!(!lock.is_locked());
    drop(twice);
    assert!(rlock.is_locked());
    drop(once);
    assert!(!rlock.is_locked());
    Ok(())
}

#[test]
fn a_killed_waiter_takes_no_wake_up_with_it() -> TestResult {
    let _clean = Clean::start();
    let (lock, queue) = (Lock::new()?, Queue::new(0)?);
    for _ in 0..20 {
        let guard = lock.lock().map_err(|_| "free")?;
        let wait = |(lock, queue): (Lock, Queue<u32>)| {
            queue.put(std::process::id()).expect("an open queue");
            lock.lock().is_ok()
        };
        let children: Vec<_> =
            (0..3).map(|_| Process::new(wait, (lock.clone(), queue.clone())).start()).collect::<Result<_, _>>()?;
        for _ in 0..3 {
            let _: u32 = queue.get()?;
        }
        children[0].kill()?;
        drop(guard);
        children[1].kill()?;
        // The third process gets the lock, whether or not the killed one had acquired it.
        let [.., third] = <[_; 3]>::try_from(children).map_err(|_| "three")?;
        third.join()?;
        wait_until(|| active_children().is_empty());
        drop(lock.lock().map_err(LockError::into_inner));
    }
    Ok(())
}

#[test]
fn semaphores_count_across_processes() -> TestResult {
    let _clean = Clean::start();
    let (semaphore, bounded) = (Semaphore::new(2)?, BoundedSemaphore::new(1)?);
    semaphore.acquire();
    assert!(semaphore.try_acquire());
    assert!(!semaphore.try_acquire());
    assert!(!semaphore.acquire_timeout(Duration::from_millis(1)));
    let waiting = Process::new(|semaphore: Semaphore| semaphore.acquire(), semaphore.clone()).start()?;
    semaphore.release()?;
    waiting.join()?;
    semaphore.release_many(3)?;
    assert_eq!(semaphore.value(), 3);
    assert!(bounded.release().is_err());
    bounded.acquire();
    assert!(bounded.release().is_ok());
    Ok(())
}

/// One thread writes and sets the event, which is set already; another clears it and reads. Either the event stays set, or the
/// reader has seen what was written.
#[test]
fn a_set_of_an_event_that_is_set_is_not_lost() -> TestResult {
    const ROUNDS: u32 = 200_000;
    let event = Event::new()?;
    let (written, starts, ends) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let meet = |at: &AtomicU32, count: u32| {
        at.fetch_add(1, Ordering::SeqCst);
        // Polls, so that both threads go on in the same moment; yields, as there may be one processor only.
        for spins in 0.. {
            match at.load(Ordering::SeqCst) < count {
                true if spins % 1000 < 999 => std::hint::spin_loop(),
                true => std::thread::yield_now(),
                false => break,
            }
        }
    };
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for round in 1..=ROUNDS {
                meet(&starts, 2 * round);
                written.store(round, Ordering::Relaxed);
                event.set();
                meet(&ends, 2 * round);
            }
        });
        let mut lost = 0;
        for round in 1..=ROUNDS {
            event.set();
            meet(&starts, 2 * round);
            (0..round % 64).for_each(|_| std::hint::spin_loop());
            event.clear();
            let seen = written.load(Ordering::Relaxed);
            meet(&ends, 2 * round);
            lost += u32::from(!event.is_set() && seen != round);
        }
        assert_eq!(lost, 0, "sets were lost");
    });
    Ok(())
}

#[test]
fn an_event_wakes_all_who_live() -> TestResult {
    let _clean = Clean::start();
    let (event, queue) = (Event::new()?, Queue::new(0)?);
    assert!(!event.wait_timeout(Duration::from_millis(1)));
    let wait = |(event, queue): (Event, Queue<u32>)| {
        queue.put(std::process::id()).expect("an open queue");
        event.wait();
    };
    let waiting: Vec<_> =
        (0..5).map(|_| Process::new(wait, (event.clone(), queue.clone())).start()).collect::<Result<_, _>>()?;
    for _ in 0..5 {
        let _: u32 = queue.get()?;
    }
    waiting[0].kill()?;
    event.set();
    for child in waiting.into_iter().skip(1) {
        child.join()?;
    }
    assert!(event.is_set());
    event.clear();
    assert!(!event.is_set());
    wait_until(|| active_children().is_empty());
    Ok(())
}

#[test]
fn a_notification_goes_to_one_who_lives() -> TestResult {
    let _clean = Clean::start();
    let (lock, condition, queue) = (Lock::new()?, Condition::new()?, Queue::new(0)?);
    let wait = |(lock, condition, queue): (Lock, Condition, Queue<u32>)| {
        let guard = lock.lock().expect("nobody dies holding it");
        queue.put(std::process::id()).expect("an open queue");
        condition.wait(guard).is_ok()
    };
    let start = || Process::new(wait, (lock.clone(), condition.clone(), queue.clone())).start();
    let children: Vec<_> = (0..3).map(|_| start()).collect::<Result<_, _>>()?;
    let order: Vec<u32> = (0..3).map(|_| queue.get()).collect::<Result<_, _>>()?;
    let of = |pid: u32| children.iter().find(|child| child.pid() == pid).ok_or("one of them");
    drop(lock.lock().map_err(|_| "free")?); // the last waiter has released the lock, so it waits
    // The first waiter dies: notifications go to the others.
    of(order[0])?.kill()?;
    of(order[0])?.wait_timeout(LONG)?;
    condition.notify_one();
    wait_until(|| children.iter().filter(|child| child.is_alive()).count() == 1);
    condition.notify_all();
    for child in children.into_iter().filter(|child| child.pid() != order[0]) {
        assert!(child.join()?);
    }
    // No process waits: the notification is not stored.
    condition.notify_one();
    let guard = lock.lock().map_err(|_| "free")?;
    let (_guard, notified) = condition.wait_timeout(guard, Duration::from_millis(5)).map_err(|_| "nobody died")?;
    assert!(!notified);
    Ok(())
}

#[test]
fn a_notification_is_waited_for_with_an_rlock_held_twice() -> TestResult {
    let _clean = Clean::start();
    let (lock, condition) = (RLock::new()?, Condition::new()?);
    let notify = |(lock, condition): (RLock, Condition)| {
        let _guard = lock.lock().expect("free while the other waits");
        condition.notify_one();
    };
    let _outer = lock.lock().map_err(|_| "free")?;
    let inner = lock.lock().map_err(|_| "its own")?;
    let child = Process::new(notify, (lock.clone(), condition.clone())).start()?;
    let inner = condition.wait(inner).map_err(|_| "nobody died")?;
    drop(inner);
    child.join()?;
    assert!(lock.is_locked());
    Ok(())
}

#[test]
fn a_barrier_releases_all_at_once_again_and_again() -> TestResult {
    let _clean = Clean::start();
    let (barrier, actions) = (Barrier::new(4)?, Queue::new(0)?);
    let rounds = |(barrier, actions): (Barrier, Queue<u32>)| {
        (0..50)
            .map(|round| barrier.wait_with(|| actions.put(round).expect("an open queue")).expect("whole"))
            .sum::<usize>()
    };
    let parties: Vec<_> =
        (0..4).map(|_| Process::new(rounds, (barrier.clone(), actions.clone())).start()).collect::<Result<_, _>>()?;
    let mut sum: usize = 0;
    for party in parties {
        sum += party.join()?;
    }
    assert_eq!(sum, 50 * (1 + 2 + 3), "each round has each index once");
    assert!((0..50).all(|round| actions.try_get().is_ok_and(|got| got == round)), "one action a round, in order");
    assert!(actions.is_empty());
    Ok(())
}

#[test]
fn an_action_during_which_the_barrier_is_reset_releases_nobody() -> TestResult {
    let barrier = Barrier::new(1)?;
    let ((begin, begun), (end, ended)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    std::thread::scope(|scope| {
        let mut next = None;
        let waited = barrier.wait_with(|| {
            barrier.reset();
            let barrier = &barrier;
            next = Some(scope.spawn(move || {
                barrier.wait_with(|| {
                    begin.send(()).expect("received");
                    ended.recv().expect("sent");
                })
            }));
            begun.recv().expect("sent");
        });
        assert_eq!(waited, Err(BarrierError::Broken));
        end.send(()).expect("received");
        assert_eq!(next.and_then(|next| next.join().ok()), Some(Ok(0)));
    });
    Ok(())
}

#[test]
fn a_barrier_breaks_for_the_dead_and_the_late() -> TestResult {
    let _clean = Clean::start();
    let barrier = Barrier::new(3)?;
    let wait = |barrier: Barrier| barrier.wait() == Err(BarrierError::Broken);
    let first = Process::new(wait, barrier.clone()).start()?;
    let second = Process::new(wait, barrier.clone()).start()?;
    wait_until(|| barrier.n_waiting() == 2);
    first.kill()?;
    assert!(second.join()?, "told that it is broken");
    assert!(barrier.is_broken());
    assert_eq!(barrier.wait(), Err(BarrierError::Broken));
    barrier.reset();
    assert_eq!(barrier.wait_timeout(Duration::from_millis(1)), Err(BarrierError::Broken));
    barrier.reset();
    // A party that dies while it runs the action.
    let third = Process::new(wait, barrier.clone()).start()?;
    let fourth = Process::new(wait, barrier.clone()).start()?;
    wait_until(|| barrier.n_waiting() == 2);
    let die = |barrier: Barrier| barrier.wait_with(|| std::process::abort()).is_ok();
    assert!(Process::new(die, barrier.clone()).start()?.join().is_err());
    assert!(third.join()? && fourth.join()?);
    barrier.reset();
    let reset = Process::new(wait, barrier.clone()).start()?;
    wait_until(|| barrier.n_waiting() == 1);
    barrier.reset();
    assert!(reset.join()?);
    assert!(!barrier.is_broken());
    kill_children()
}

#[test]
fn thousands_take_few_descriptors_and_go_in_one_message() -> TestResult {
    let limit = libc::rlimit { rlim_cur: 256, rlim_max: 256 };
    #[expect(unsafe_code, reason = "limits have no safe call")]
    // SAFETY: the call reads `limit`, which outlives it.
    let is_set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(is_set, 0);
    let locks = (0..10_000).map(|_| Lock::new()).collect::<Result<Vec<_>, _>>()?;
    let events = (0..10_000).map(|_| Event::new()).collect::<Result<Vec<_>, _>>()?;
    let set_all = |(locks, events): (Vec<Lock>, Vec<Event>)| {
        for (lock, event) in locks.iter().zip(&events) {
            let _guard = lock.lock().expect("nobody dies");
            event.set();
        }
        locks.len()
    };
    assert_eq!(Process::new(set_all, (locks.clone(), events.clone())).start()?.join()?, 10_000);
    assert!(events.iter().all(Event::is_set));
    // Through a queue, with one lock twice.
    let queue = polyproc::Queue::new(0)?;
    queue.put([&locks[..600], &locks[..1]].concat())?;
    let arrived = queue.get()?;
    let _guard = locks[0].lock().expect("nobody dies");
    assert!(arrived.first().is_some_and(|lock| lock.try_lock().is_err()));
    assert!(arrived.last().is_some_and(|lock| lock.try_lock().is_err()) && arrived[1].try_lock().is_ok());
    Ok(())
}
