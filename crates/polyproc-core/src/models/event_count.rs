//! Blocking until a condition holds: `robust/event_count.rs`.

use std::time::Duration;

use loom::sync::{Arc, Mutex};
use loom::thread;

use super::{begin_thread, model};
use crate::deadline::Deadline;
use crate::robust::{EventCount, RecheckInterval, WaitError};

/// Items that consumers wait for: a count under a lock.
struct Items {
    count: Mutex<usize>,
    waiters: EventCount,
}

impl Items {
    fn new() -> Arc<Self> {
        Arc::new(Self { count: Mutex::new(0), waiters: EventCount::default() })
    }

    fn put(&self, tid: u32) {
        begin_thread(tid, false);
        *self.count.lock().expect("not poisoned") += 1;
        self.waiters.wake_one();
    }

    /// Takes one item. Returns false if the thread died instead.
    fn get(&self, tid: u32, signalled: bool) -> bool {
        begin_thread(tid, signalled);
        let interval = RecheckInterval::new(Duration::from_secs(1));
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
    model(|| {
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
    model(|| {
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
