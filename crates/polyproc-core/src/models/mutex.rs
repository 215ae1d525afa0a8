//! The mutex whose owner may die: `robust/mutex.rs`.

use loom::sync::Arc;
use loom::thread;

use super::{begin_thread, model};
use crate::deadline::Deadline;
use crate::prim::{AtomicUsize, Ordering};
use crate::robust::{Guard, Mutex};
use crate::sys::robust::through_death;

impl Mutex {
    /// Lets the calling thread die while it holds the lock.
    pub(super) fn die(&self, guard: Guard<'_>) {
        std::mem::forget(guard);
        through_death(&self.robust.word);
    }

    pub(super) fn take(&self) -> Guard<'_> {
        self.lock(Deadline::NEVER).expect("no thread gives up")
    }
}

#[test]
fn a_mutex_excludes_and_wakes() {
    model(|| {
        let shared = Arc::new((Mutex::default(), AtomicUsize::new(0)));
        let add = |tid, shared: &(Mutex, AtomicUsize)| {
            begin_thread(tid, false);
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
    model(|| {
        let shared = Arc::new((Mutex::default(), AtomicUsize::new(0)));
        let dying = thread::spawn({
            let shared = shared.clone();
            move || {
                begin_thread(2, false);
                let guard = shared.0.take();
                shared.0.die(guard);
            }
        });
        let look = |tid, shared: &(Mutex, AtomicUsize)| {
            begin_thread(tid, false);
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

#[test]
fn the_kernel_passes_on_a_wake_up_for_a_mutex() {
    model(|| {
        let mutex = Arc::new(Mutex::default());
        begin_thread(1, false);
        let guard = mutex.take();
        let dying = thread::spawn({
            let mutex = mutex.clone();
            move || {
                begin_thread(2, true);
                if mutex.lock(Deadline::NEVER).is_err() {
                    through_death(&mutex.robust.word); // killed after its wake-up, while the word is pending
                }
            }
        });
        let living = thread::spawn({
            let mutex = mutex.clone();
            move || {
                begin_thread(3, false);
                drop(mutex.take());
            }
        });
        drop(guard);
        dying.join().expect("no panic");
        living.join().expect("no panic");
    });
}
