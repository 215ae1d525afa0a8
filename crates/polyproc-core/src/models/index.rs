//! The counts and places of a queue: `queue/index.rs`.

use loom::sync::Arc;
use loom::thread;

use super::{begin_thread, model};
use crate::queue::index::IndexPlace;
use crate::queue::layout::Side;
use crate::sys::plain::Plain;

/// A queue of two words, used as a ring so that a count that is too high is detected.
struct Queue {
    put: Side,
    get: Side,
    words: [Plain; 2],
}

impl Queue {
    fn new() -> Arc<Self> {
        Arc::new(Self { put: Side::default(), get: Side::default(), words: [Plain::new(), Plain::new()] })
    }

    /// Puts `value`, or dies immediately before the commit. Returns false if the queue is full.
    fn put(&self, tid: u32, value: u64, dies: bool) -> bool {
        begin_thread(tid, false);
        let guard = self.put.lock.take();
        let (count, place) = self.put.place();
        assert_eq!(place.at, count % 2, "the place belongs to the count");
        if !self.put.may_put(count, &self.get, 2) {
            return false;
        }
        self.words[usize::from(place.at == 1)].write(value);
        self.put.prepare(count + 1, IndexPlace { at: (place.at + 1) % 2, ..place });
        if dies {
            self.put.lock.die(guard);
            return true;
        }
        self.put.commit(count);
        true
    }

    fn get(&self, tid: u32) -> Option<u64> {
        begin_thread(tid, false);
        let _guard = self.get.lock.take();
        let (count, place) = self.get.place();
        assert_eq!(place.at, count % 2, "the place belongs to the count");
        if !self.get.may_get(count, &self.put) {
            return None;
        }
        let value = self.words[usize::from(place.at == 1)].read();
        self.get.prepare(count + 1, IndexPlace { at: (place.at + 1) % 2, ..place });
        self.get.commit(count);
        Some(value)
    }
}

#[test]
fn what_is_put_is_taken_once_and_whole() {
    model(|| {
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
    model(|| {
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
