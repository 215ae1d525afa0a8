//! Models of the locks, the waits, the indices of queues, and a pool's table and doorbell. Loom tries every interleaving of a
//! few threads that has at most two preemptions.
//!
//! The engine's own sources are compiled a second time, against a model of the system. A futex is a mutex and a condition
//! variable, without timeouts, so a lost wake-up is a deadlock, which loom reports. A thread that dies takes the steps that
//! the kernel takes for a dead thread.

#![allow(dead_code, reason = "the models use a part of each source")]

use std::ops::Deref;

use loom::model::Builder;
use loom::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use loom::sync::{Arc, Condvar, Mutex as ModelMutex};
use loom::thread;

use os::{Deadline, Ordering, through_death};

#[path = "../../src/pool/claim.rs"]
mod claim;
#[path = "../../src/pool/doorbell.rs"]
mod doorbell;
#[path = "../../src/robust/event_count.rs"]
mod event_count;
#[path = "../../src/queue/index.rs"]
mod index;
#[path = "../../src/robust/mutex.rs"]
mod mutex;

use index::IndexPlace;
use mutex::Guard;

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitError {
    TimedOut,
    Interrupted,
}

/// The kernel's side of a futex word: the sleeping threads, in the order in which they went to sleep.
#[derive(Debug, Default)]
struct Bucket {
    next: usize,
    asleep: Vec<usize>,
}

#[derive(Debug)]
struct FutexWord {
    value: AtomicU32,
    bucket: ModelMutex<Bucket>,
    condition: Condvar,
}

impl Deref for FutexWord {
    type Target = AtomicU32;
    fn deref(&self) -> &AtomicU32 {
        &self.value
    }
}

#[derive(Debug)]
struct RobustWord {
    word: FutexWord,
}

impl FutexWord {
    fn new() -> Self {
        let bucket = ModelMutex::new(Bucket::default());
        Self { value: AtomicU32::new(0), bucket, condition: Condvar::new() }
    }
}

#[derive(Debug)]
struct Mutex {
    robust: RobustWord,
}

#[derive(Debug)]
struct EventCount {
    word: FutexWord,
}

/// The table of a pool with two slots, as in `pool/task_table.rs`.
struct Board {
    head: AtomicU64,
    tail: AtomicU64,
    numbers: [AtomicU32; 2],
    states: [AtomicU64; 2],
}

struct ClaimTable<'a> {
    board: &'a Board,
}

/// The word by which workers wake the parent of a pool.
struct Doorbell {
    word: FutexWord,
}

/// A side of a queue, as in `queue/layout.rs`.
struct Side {
    lock: Mutex,
    slots: [[AtomicU64; 2]; 2],
    other: AtomicU64,
    count: AtomicU64,
}

/// The model of the system.
mod os {
    use std::time::Duration;

    pub(super) use loom::sync::atomic::{Ordering, fence};

    use super::{FutexWord, RobustWord};

    pub(super) const WAITERS: u32 = 1 << 31;
    pub(super) const OWNER_DIED: u32 = 1 << 30;
    pub(super) const OWNER: u32 = OWNER_DIED - 1;
    pub(super) const ALL: u32 = u32::MAX;
    pub(super) const SPINS: u32 = 1;

    loom::thread_local! {
        static TID: std::cell::Cell<u32> = std::cell::Cell::new(0);
        /// True if this thread dies when it is woken.
        static SIGNALLED: std::cell::Cell<bool> = std::cell::Cell::new(false);
    }

    /// Always false: in the model, the kernel marks the word of every owner that dies.
    pub(super) fn is_gone(_: u32) -> bool {
        false
    }

    pub(super) fn begin_thread(tid: u32, signalled: bool) {
        TID.with(|own| own.set(tid));
        SIGNALLED.with(|own| own.set(signalled));
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Deadline;
    impl Deadline {
        pub(super) const NEVER: Self = Self;
        pub(super) fn remaining(self) -> Option<Duration> {
            None
        }
        pub(super) fn or_after(self, _: Duration) -> Self {
            self
        }
        pub(super) fn has_passed(self) -> bool {
            false
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Wait {
        Woken,
        Again,
        #[expect(dead_code, reason = "here no time ever passes")]
        TimedOut,
        Interrupted,
    }

    /// Sleeps until this thread is woken. In the model no timeout expires.
    pub(super) fn wait(word: &FutexWord, expected: u32, _: Duration) -> Wait {
        let mut bucket = word.bucket.lock().expect("not poisoned");
        if word.value.load(Ordering::SeqCst) != expected {
            return Wait::Again;
        }
        let sleeper = bucket.next;
        bucket.next += 1;
        bucket.asleep.push(sleeper);
        while bucket.asleep.contains(&sleeper) {
            bucket = word.condition.wait(bucket).expect("not poisoned");
        }
        drop(bucket);
        if SIGNALLED.with(std::cell::Cell::get) { Wait::Interrupted } else { Wait::Woken }
    }

    pub(super) fn wake(word: &FutexWord, count: u32) -> usize {
        let mut bucket = word.bucket.lock().expect("not poisoned");
        let woken = bucket.asleep.len().min(count as usize);
        bucket.asleep.drain(..woken);
        word.condition.notify_all();
        woken
    }

    /// Takes the kernel's steps for a thread that dies with `word` in its robust list or as its pending entry.
    pub(super) fn through_death(word: &FutexWord) {
        let seen = word.value.load(Ordering::SeqCst);
        if seen & OWNER == TID.with(std::cell::Cell::get) {
            let marked =
                word.value.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |seen| Some(seen & WAITERS | OWNER_DIED));
            if marked.is_ok_and(|seen| seen & WAITERS != 0) {
                wake(word, 1);
            }
        } else if seen & OWNER == 0 {
            wake(word, 1);
        }
    }

    pub(super) fn spin() {
        loom::thread::yield_now();
    }

    pub(super) fn fence_after_unlock() {
        fence(Ordering::SeqCst);
    }

    /// Keeps no list: the kernel reads it only after a death, and the models then pass the word to [`through_death`].
    #[derive(Debug, Clone, Copy)]
    pub(super) struct Me;
    #[derive(Debug)]
    pub(super) struct Outer;
    impl Me {
        pub(super) fn new() -> Self {
            Self
        }
        pub(super) fn tid(&self) -> u32 {
            TID.with(std::cell::Cell::get)
        }
        pub(super) fn announce(&self, _: &RobustWord) {}
        pub(super) fn settle(&self) {}
        pub(super) fn link(&self, _: &RobustWord) -> Outer {
            Outer
        }
        pub(super) fn unlink(&self, _: &Outer) {}
    }
}

fn model(preemptions: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

impl Mutex {
    fn new() -> Self {
        Self { robust: RobustWord { word: FutexWord::new() } }
    }

    /// Lets the calling thread die while it holds the lock.
    fn die(&self, guard: Guard<'_>) {
        std::mem::forget(guard);
        through_death(&self.robust.word);
    }

    fn take(&self) -> Guard<'_> {
        self.lock(Deadline::NEVER).expect("nobody gives up")
    }
}

#[test]
fn a_mutex_excludes_and_wakes() {
    model(2, || {
        let shared = Arc::new((Mutex::new(), AtomicUsize::new(0)));
        let add = |tid, shared: &(Mutex, AtomicUsize)| {
            os::begin_thread(tid, false);
            let guard = shared.0.take();
            assert!(!guard.owner_died);
            let seen = shared.1.load(Ordering::Relaxed);
            shared.1.store(seen + 1, Ordering::Relaxed);
        };
        let threads: Vec<_> = (2..4)
            .map(|tid| {
                let shared = shared.clone();
                thread::spawn(move || add(tid, &shared))
            })
            .collect();
        add(1, &shared);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        let _guard = shared.0.take();
        assert_eq!(shared.1.load(Ordering::Relaxed), 3);
    });
}

#[test]
fn a_dead_owner_is_told_of_once_and_nobody_waits_for_it() {
    model(2, || {
        let shared = Arc::new((Mutex::new(), AtomicUsize::new(0)));
        let dying = thread::spawn({
            let shared = shared.clone();
            move || {
                os::begin_thread(2, false);
                let guard = shared.0.take();
                shared.0.die(guard);
            }
        });
        let look = |tid, shared: &(Mutex, AtomicUsize)| {
            os::begin_thread(tid, false);
            let guard = shared.0.take();
            if guard.owner_died {
                shared.1.fetch_add(1, Ordering::Relaxed);
            }
        };
        let other = thread::spawn({
            let shared = shared.clone();
            move || look(3, &shared)
        });
        look(1, &shared);
        dying.join().expect("no panic");
        other.join().expect("no panic");
        look(1, &shared);
        assert_eq!(shared.1.load(Ordering::Relaxed), 1);
    });
}

/// Items that consumers wait for: a count under a lock.
struct Items {
    count: ModelMutex<usize>,
    waiters: EventCount,
}

impl Items {
    fn new() -> Arc<Self> {
        let waiters = EventCount { word: FutexWord::new() };
        Arc::new(Self { count: ModelMutex::new(0), waiters })
    }

    fn put(&self, tid: u32) {
        os::begin_thread(tid, false);
        *self.count.lock().expect("not poisoned") += 1;
        self.waiters.wake_one();
    }

    /// Takes one item. Returns false if the thread died instead.
    fn get(&self, tid: u32, signalled: bool) -> bool {
        os::begin_thread(tid, signalled);
        let interval = event_count::RecheckInterval::new(std::time::Duration::from_secs(1));
        let got: Result<(), WaitError> = self.waiters.wait(Deadline::NEVER, &interval, || {
            let mut count = self.count.lock().expect("not poisoned");
            let taken = count.checked_sub(1);
            *count = taken.unwrap_or(0);
            Ok(taken.map(|_| ()))
        });
        got.is_ok()
    }
}

#[test]
fn no_wake_up_is_lost() {
    model(2, || {
        let items = Items::new();
        let consumers: Vec<_> = (2..4)
            .map(|tid| {
                let items = items.clone();
                thread::spawn(move || assert!(items.get(tid, false)))
            })
            .collect();
        items.put(1);
        items.put(1);
        consumers.into_iter().for_each(|consumer| consumer.join().expect("no panic"));
    });
}

#[test]
fn who_reaps_the_dead_wakes_those_who_lost_a_wake_up() {
    model(2, || {
        let items = Items::new();
        let dying = thread::spawn({
            let items = items.clone();
            move || items.get(2, true)
        });
        let living = thread::spawn({
            let items = items.clone();
            move || assert!(items.get(3, false))
        });
        items.put(1);
        items.put(1); // the dying thread may have taken one before it slept
        dying.join().expect("no panic");
        items.waiters.recover();
        living.join().expect("no panic");
    });
}

#[test]
fn the_kernel_passes_on_a_wake_up_for_a_mutex() {
    model(2, || {
        let mutex = Arc::new(Mutex::new());
        os::begin_thread(1, false);
        let guard = mutex.take();
        let dying = thread::spawn({
            let mutex = mutex.clone();
            move || {
                os::begin_thread(2, true);
                if mutex.lock(Deadline::NEVER).is_err() {
                    through_death(&mutex.robust.word); // killed after its wake-up, while the word is pending
                }
            }
        });
        let living = thread::spawn({
            let mutex = mutex.clone();
            move || {
                os::begin_thread(3, false);
                drop(mutex.take());
            }
        });
        drop(guard);
        dying.join().expect("no panic");
        living.join().expect("no panic");
    });
}

impl Side {
    fn new() -> Self {
        let pair = || [AtomicU64::new(0), AtomicU64::new(0)];
        Self { lock: Mutex::new(), slots: [pair(), pair()], other: AtomicU64::new(0), count: AtomicU64::new(0) }
    }

    fn slot(&self, odd: bool) -> (&AtomicU64, &AtomicU64) {
        let [at, rest] = &self.slots[usize::from(odd)];
        (at, rest)
    }

    fn other(&self) -> &AtomicU64 {
        &self.other
    }
}

/// A queue of two words, used as a ring so that a count that is too high is detected.
struct Queue {
    put: Side,
    get: Side,
    words: [AtomicU64; 2],
}

impl Queue {
    fn new() -> Arc<Self> {
        let words = [AtomicU64::new(0), AtomicU64::new(0)];
        Arc::new(Self { put: Side::new(), get: Side::new(), words })
    }

    /// Puts `value`, or dies immediately before the commit. Returns false if the queue is full.
    fn put(&self, tid: u32, value: u64, dies: bool) -> bool {
        os::begin_thread(tid, false);
        let guard = self.put.lock.take();
        let (count, place) = self.put.place();
        assert_eq!(place.at, count % 2, "the place belongs to the count");
        if !self.put.may_put(count, &self.get, 2) {
            return false;
        }
        self.words[usize::from(place.at == 1)].store(value, Ordering::Relaxed);
        self.put.prepare(count + 1, IndexPlace { at: (place.at + 1) % 2, ..place });
        if dies {
            self.put.lock.die(guard);
            return true;
        }
        self.put.commit(count);
        true
    }

    fn get(&self, tid: u32) -> Option<u64> {
        os::begin_thread(tid, false);
        let _guard = self.get.lock.take();
        let (count, place) = self.get.place();
        assert_eq!(place.at, count % 2, "the place belongs to the count");
        if !self.get.may_get(count, &self.put) {
            return None;
        }
        let value = self.words[usize::from(place.at == 1)].load(Ordering::Relaxed);
        self.get.prepare(count + 1, IndexPlace { at: (place.at + 1) % 2, ..place });
        self.get.commit(count);
        Some(value)
    }
}

#[test]
fn what_is_put_is_taken_once_and_whole() {
    model(2, || {
        let queue = Queue::new();
        let producer = thread::spawn({
            let queue = queue.clone();
            move || (1..4).filter(|value| queue.put(2, *value, false)).collect::<Vec<u64>>()
        });
        let mut got: Vec<u64> = (0..2).filter_map(|_| queue.get(1)).collect();
        let put = producer.join().expect("no panic");
        got.extend(std::iter::from_fn(|| queue.get(1)));
        assert_eq!(got, put);
    });
}

#[test]
fn consumers_share_and_a_dead_producer_leaves_nothing() {
    model(2, || {
        let queue = Queue::new();
        let dying = thread::spawn({
            let queue = queue.clone();
            move || queue.put(2, 77, true)
        });
        let other = thread::spawn({
            let queue = queue.clone();
            move || queue.get(3)
        });
        assert!(queue.put(1, 5, false));
        let own = queue.get(1);
        dying.join().expect("no panic");
        let theirs = other.join().expect("no panic");
        let rest = queue.get(1);
        let got: Vec<_> = [own, theirs, rest].into_iter().flatten().collect();
        assert_eq!(got, [5]);
    });
}

impl Board {
    fn new() -> Self {
        let (head, tail) = (AtomicU64::new(0), AtomicU64::new(0));
        let numbers = [AtomicU32::new(0), AtomicU32::new(0)];
        Self { head, tail, numbers, states: [AtomicU64::new(0), AtomicU64::new(0)] }
    }

    fn table(&self) -> ClaimTable<'_> {
        ClaimTable { board: self }
    }
}

impl<'a> ClaimTable<'a> {
    fn head(&self) -> &'a AtomicU64 {
        &self.board.head
    }

    fn tail(&self) -> &'a AtomicU64 {
        &self.board.tail
    }

    fn places(&self) -> u64 {
        2
    }

    fn number(&self, position: u64) -> &'a AtomicU32 {
        &self.board.numbers[usize::from(position % 2 == 1)]
    }

    fn state(&self, slot: u32) -> Option<&'a AtomicU64> {
        self.board.states.get(slot as usize)
    }
}

/// Two workers claim tasks; the parent publishes two, withdraws the first if it can, and then reuses its slot.
#[test]
fn each_task_is_taken_once_and_none_is_passed_over() {
    model(2, || {
        let board = Arc::new(Board::new());
        let (first, second) = (0, 1);
        assert!(board.table().publish(0, first) && board.table().publish(1, second));
        let workers: Vec<_> = (1..3)
            .map(|worker| {
                let board = board.clone();
                thread::spawn(move || {
                    let claimed = board.table().claim(worker);
                    claimed.inspect(|(slot, position)| {
                        assert_eq!(board.table().holder(*slot, *position), Some(worker), "the claim is the record");
                    })
                })
            })
            .collect();
        let withdrawn = board.table().withdraw(0, first);
        let third = withdrawn.then_some(2);
        // After the withdrawal the place at the head is free.
        assert!(third.is_none_or(|third| board.table().publish(0, third)));
        let mut seen: Vec<_> = workers.into_iter().filter_map(|worker| worker.join().expect("no panic")).collect();
        while let Some(claimed) = board.table().claim(9) {
            seen.push(claimed);
        }
        seen.sort_unstable_by_key(|(_, position)| *position);
        let expected: Vec<_> = match third {
            Some(third) => vec![(1, second), (0, third)],
            None => vec![(0, first), (1, second)],
        };
        assert_eq!(seen, expected);
    });
}

/// The parent checks for results, sets how workers must wake it, re-checks, and sleeps; two workers produce one result each.
#[test]
fn the_parent_is_woken_for_a_result() {
    for how in [doorbell::SPINNING, doorbell::ASLEEP, doorbell::ASLEEP_UNTIL_LOW, doorbell::AWAY] {
        model(2, move || {
            let shared = Arc::new((Doorbell { word: FutexWord::new() }, AtomicUsize::new(0), FutexWord::new()));
            let workers: Vec<_> = (0..2)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        shared.1.fetch_add(1, Ordering::Release);
                        let ring_driver = || {
                            shared.2.fetch_add(1, Ordering::SeqCst);
                            os::wake(&shared.2, 1);
                        };
                        assert!(shared.0.ring(|| true, ring_driver));
                    })
                })
                .collect();
            while shared.1.load(Ordering::Acquire) < 2 {
                shared.0.set(how);
                if shared.1.load(Ordering::Acquire) < 2 {
                    match how {
                        doorbell::SPINNING => {
                            while !shared.0.has_rung(how) {
                                thread::yield_now();
                            }
                        }
                        // The eventfd stays readable until it is read.
                        doorbell::AWAY => {
                            while shared.2.swap(0, Ordering::SeqCst) == 0 {
                                os::wait(&shared.2, 0, std::time::Duration::from_secs(1));
                            }
                        }
                        _ => _ = os::wait(&shared.0.word, how, std::time::Duration::from_secs(1)),
                    }
                }
                shared.0.set(doorbell::AWAKE);
            }
            workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
        });
    }
}
