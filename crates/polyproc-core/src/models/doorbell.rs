//! Waking the parent for results: `pool/shared/doorbell.rs`.

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;

use super::model;
use crate::pool::shared::doorbell::{self, Doorbell};
use crate::prim::{AtomicU32, AtomicUsize, Ordering};
use crate::sys::futex;

/// The parent checks for results, sets how workers must wake it, re-checks, and sleeps; two workers produce one result each.
#[test]
fn the_parent_is_woken_for_a_result() {
    for how in [doorbell::SPINNING, doorbell::ASLEEP, doorbell::ASLEEP_UNTIL_LOW, doorbell::AWAY] {
        model(move || {
            let shared = Arc::new((Doorbell::default(), AtomicUsize::new(0), AtomicU32::default()));
            let workers: Vec<_> = (0..2)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        shared.1.fetch_add(1, Ordering::Release);
                        let ring_driver = || {
                            shared.2.fetch_add(1, Ordering::SeqCst);
                            futex::wake(&shared.2, 1);
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
                                futex::wait(&shared.2, 0, Duration::ZERO);
                            }
                        }
                        _ => _ = futex::wait(&shared.0.word, how, Duration::ZERO),
                    }
                }
                shared.0.set(doorbell::AWAKE);
            }
            workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
        });
    }
}
