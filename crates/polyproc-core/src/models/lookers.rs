//! Publishing without a wake-up while workers poll: `pool/shared/lookers.rs`. Under loom one worker may poll at a time.

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;

use super::{begin_thread, model};
use crate::deadline::Deadline;
use crate::pool::shared::lookers::Lookers;
use crate::prim::{AtomicU64, Ordering};
use crate::robust::{EventCount, RecheckInterval, WaitError};

#[derive(Default)]
struct Pool {
    /// As in `pool/shared/claim.rs`, whose model is another one: tasks that were claimed, and tasks that were published.
    head: AtomicU64,
    tail: AtomicU64,
    lookers: Lookers,
    waiters: EventCount,
}

impl Pool {
    /// As `ClaimTable::waiting`.
    fn waiting(&self) -> u64 {
        let head = self.head.load(Ordering::Relaxed);
        self.tail.load(Ordering::Relaxed).wrapping_sub(head)
    }

    /// As `ClaimTable::claim`.
    fn claim(&self) -> bool {
        let mut head = self.head.load(Ordering::Acquire);
        while head != self.tail.load(Ordering::Acquire) {
            match self.head.compare_exchange(head, head + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => head = now,
            }
        }
        false
    }

    /// As `WorkerLoop::next` and `idle`: polls once instead of for 30 us, or not at all.
    fn run_next(&self, worker: u32, polls: bool) {
        while !self.claim() {
            let something = || self.waiting() > 0;
            if polls && self.lookers.look(worker, |_| something()) {
                continue;
            }
            let look = || Ok::<_, WaitError>(something().then_some(()));
            let interval = RecheckInterval::new(Duration::from_secs(1));
            self.waiters.wait(Deadline::NEVER, &interval, look).expect("no signal");
        }
    }

    /// As `Driver::with`: publishes a task, and wakes a worker if not enough workers poll.
    fn publish(&self, position: u64) {
        self.tail.store(position + 1, Ordering::Release);
        if !self.lookers.suffice(|| self.waiting()) {
            self.waiters.wake_one();
        }
    }
}

/// Two workers run one task each, and the first one polls before it sleeps. The parent publishes two tasks, and does not wake
/// a worker while one polls. A task that is left unseen while all workers sleep is a deadlock.
#[test]
fn no_task_is_left_while_all_workers_sleep() {
    model(|| {
        let pool = Arc::new(Pool::default());
        let workers: Vec<_> = (1..3)
            .map(|worker| {
                let pool = pool.clone();
                thread::spawn(move || {
                    begin_thread(worker, false);
                    pool.run_next(worker, worker == 1);
                })
            })
            .collect();
        pool.publish(0);
        pool.publish(1);
        workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
    });
}

/// One worker runs two tasks: between them and after each it polls, and then sleeps.
#[test]
fn a_polling_worker_finds_each_task() {
    model(|| {
        let pool = Arc::new(Pool::default());
        let worker = thread::spawn({
            let pool = pool.clone();
            move || {
                begin_thread(1, false);
                pool.run_next(1, true);
                pool.run_next(1, true);
            }
        });
        pool.publish(0);
        pool.publish(1);
        worker.join().expect("no panic");
    });
}
