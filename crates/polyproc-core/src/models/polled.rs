//! The ring that makes a queue's socket readable: `queue/polled.rs`. The socket is a flag: whether there is a ring in it.

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;

use super::{begin_thread, model};
use crate::prim::{AtomicU32, Ordering, fence};
use crate::queue::layout::QueueLayout;
use crate::sys::futex;

#[derive(Default)]
struct Polled {
    layout: QueueLayout,
    /// 1 while a ring is in the socket. A poller sleeps on it, as in `poll(2)`.
    socket: AtomicU32,
}

impl Polled {
    /// The kernel changes a socket under a lock: so all changes here are read-modify-writes, each of which sees the last one.
    fn ring(&self) {
        self.socket.swap(1, Ordering::AcqRel);
        futex::wake(&self.socket, futex::ALL);
    }

    /// As `Ring::put`, without the message.
    fn put(&self) {
        let guard = self.layout.put.lock.take();
        let (count, place) = self.layout.put.place();
        self.layout.put.prepare(count + 1, place);
        self.layout.put.commit(count);
        drop(guard);
        self.layout.items.wake_one();
        self.layout.ring_once(|| self.ring());
    }

    /// As `Ring::get`, without the message. Returns false if the queue is empty.
    fn get(&self) -> bool {
        let _guard = self.layout.get.lock.take();
        let (count, place) = self.layout.get.place();
        let may = self.layout.get.may_get(count, &self.layout.put);
        if may {
            self.layout.get.prepare(count + 1, place);
            self.layout.get.commit(count);
        }
        self.layout.silence(|| _ = self.socket.swap(0, Ordering::AcqRel), || self.ring());
        may
    }

    fn poll(&self) {
        while self.socket.load(Ordering::Acquire) == 0 {
            futex::wait(&self.socket, 0, Duration::ZERO);
        }
    }
}

/// A producer puts two messages while a process asks for the descriptor. The process polls before each get.
#[test]
fn a_poller_never_sleeps_while_there_is_a_message() {
    model(|| {
        let queue = Arc::new(Polled::default());
        let producer = thread::spawn({
            let queue = queue.clone();
            move || {
                begin_thread(2, false);
                queue.put();
                queue.put();
            }
        });
        begin_thread(1, false);
        queue.layout.start_ringing(|| queue.ring());
        let mut got = 0;
        while got < 2 {
            queue.poll();
            got += u32::from(queue.get());
        }
        producer.join().expect("no panic");
        assert!(!queue.get());
        assert_eq!(queue.socket.load(Ordering::Acquire), 0, "the socket of an empty queue is not readable");
    });
}

/// A consumer that does not poll takes a message, and removes the ring, while a producer puts another one.
#[test]
fn a_consumer_leaves_the_ring_to_the_poller() {
    model(|| {
        let queue = Arc::new(Polled::default());
        begin_thread(1, false);
        queue.layout.start_ringing(|| queue.ring());
        queue.put();
        let consumer = thread::spawn({
            let queue = queue.clone();
            move || {
                begin_thread(2, false);
                assert!(queue.get());
            }
        });
        let producer = thread::spawn({
            let queue = queue.clone();
            move || {
                begin_thread(3, false);
                queue.put();
            }
        });
        consumer.join().expect("no panic");
        queue.poll();
        producer.join().expect("no panic");
    });
}

/// A queue is closed while a process asks for the descriptor.
#[test]
fn a_closed_queue_is_readable() {
    model(|| {
        let queue = Arc::new(Polled::default());
        let closer = thread::spawn({
            let queue = queue.clone();
            move || {
                // As `Queue::close`, without the lock.
                queue.layout.settings.closed.store(1, Ordering::Release);
                queue.layout.items.wake_generation();
                fence(Ordering::SeqCst);
                queue.layout.ring_once(|| queue.ring());
            }
        });
        queue.layout.start_ringing(|| queue.ring());
        queue.poll();
        closer.join().expect("no panic");
    });
}
