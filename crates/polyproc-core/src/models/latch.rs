//! Waiting for an event in one process: `pool/parent/latch.rs`.

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;

use super::model;
use crate::deadline::Deadline;
use crate::pool::parent::latch::{Latch, Parker};
use crate::prim::{AtomicU64, Ordering};
use crate::sys::plain::Plain;

/// As `Driver::wait_to_submit`: a thread takes a ticket, checks, and parks. The event is a flag that orders nothing.
#[test]
fn a_thread_that_parks_is_unparked() {
    model(|| {
        let shared = Arc::new((Parker::default(), AtomicU64::new(0)));
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || {
                    loop {
                        let ticket = shared.0.ticket();
                        if shared.1.load(Ordering::Relaxed) != 0 {
                            break;
                        }
                        shared.0.park(ticket, Duration::ZERO);
                    }
                })
            })
            .collect();
        shared.1.store(1, Ordering::Relaxed);
        shared.0.unpark();
        waiters.into_iter().for_each(|waiter| waiter.join().expect("no panic"));
    });
}

#[test]
fn a_latch_releases_its_waiters_and_what_was_done_before() {
    model(|| {
        let shared = Arc::new((Latch::default(), Plain::new()));
        let waiter = thread::spawn({
            let shared = shared.clone();
            move || {
                assert_eq!(shared.0.wait(Deadline::NEVER), Ok(true));
                assert_eq!(shared.1.read(), 7);
            }
        });
        shared.1.write(7);
        shared.0.set();
        waiter.join().expect("no panic");
    });
}
