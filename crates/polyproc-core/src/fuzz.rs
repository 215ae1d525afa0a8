//! Entry points for the fuzz targets (`fuzz/fuzz_targets`), which decode arbitrary bytes of a peer; the tests run them on
//! random bytes. Compiled for tests and with the feature `fuzzing` only.
//!
//! They must not panic or access memory outside the objects. Shared memory that a peer has overwritten may cause errors or
//! wrong messages. They must not block either: each wait has a deadline that has passed, and words of locks are left alone.
//!
//! | entry point | input | code under test |
//! |---|---|---|
//! | [`message`] | a message on a channel | decoders of `conn`, `process`, `pool` |
//! | [`queue`] | the settings in one byte, then words to overwrite | `queue`, `shm` |
//! | [`sync`] | words to overwrite | `sync`, `robust` |
//!
//! Words are overwritten between operations, not during one: races with a faulty peer are not covered.

use crate::conn::channel;
use crate::deadline::Deadline;
use crate::pool::decode_any;
use crate::process::{Outcome, StartRequest};
use crate::queue::{OnConsumerDeath, Queue, QueueSettings};
use crate::sync::{Barrier, Condition, Event, Lock, Owner, Semaphore};
use crate::wire::Payload;

/// Decodes `bytes` as a message on a channel, and as the messages of each protocol. The message has no descriptors.
///
/// # Panics
/// Any panic is a bug.
pub fn message(bytes: &[u8]) {
    let decoded = || channel::decode((bytes.to_vec(), Vec::new())).ok().flatten();
    if let Some(message) = decoded() {
        let _ = Outcome::decode(message.tag, Payload::from(message.payload.bytes));
    }
    if let Some(message) = decoded() {
        let _ = StartRequest::decode(message);
    }
    decode_any(bytes);
}

/// Overwrites words of a memory file, as a faulty peer might: of each 12 bytes of `words`, 4 are the offset and 8 the new
/// value, both little-endian. Skips the words of locks: a peer that writes these can block all others.
///
/// `memfd` and `start` are the file and the offset of the object in it, `len` is the length of its interesting part in bytes,
/// `locks` are the offsets of the lock words in the object.
fn scribble((memfd, start): (std::os::fd::BorrowedFd<'_>, u64), words: &[u8], len: u64, locks: &[u64]) {
    for word in words.chunks_exact(12) {
        let (offset, value) = word.split_at(4);
        let offset = u64::from(u32::from_le_bytes(offset.try_into().unwrap_or_default())) % len / 4 * 4;
        if !locks.iter().any(|lock| (lock / 8 * 8..lock / 8 * 8 + 8).contains(&offset) || offset + 4 == *lock) {
            crate::sys::memory::overwrite(memfd, start + offset, value);
        }
    }
}

/// Uses a queue whose memory a peer has overwritten: puts, overwrites, then puts, gets and counts as done messages of several
/// sizes. The first byte selects what happens at a consumer's death, and the limits.
///
/// # Panics
/// If the system has no memory. Any other panic is a bug.
pub fn queue(words: &[u8]) {
    let (choice, words) = words.split_first().unwrap_or((&0, words));
    let on_consumer_death =
        [OnConsumerDeath::Nothing, OnConsumerDeath::CountAsDone, OnConsumerDeath::PutBack][usize::from(choice % 3)];
    let queue = Queue::new(QueueSettings {
        maxsize: u64::from(choice / 3 % 4) * 4,
        max_bytes: u64::from(choice / 12 % 2) * 30_000,
        on_consumer_death,
    })
    .expect("memory");
    let mut out = (Vec::new(), Vec::new());
    for len in [8, 10_000, 20_000] {
        let _ = queue.put(&vec![1; len], &[], Deadline::PASSED);
    }
    let _ = queue.get(&mut out.0, &mut out.1, Deadline::PASSED);
    scribble((queue.fds()[0], 0), words, 0x6000, &[64, 192, 1280]);
    for len in [8, 16_000, 20_000, 100_000] {
        let _ = queue.put(&vec![1; len], &[], Deadline::PASSED);
        let _ = queue.get(&mut out.0, &mut out.1, Deadline::PASSED);
        let _ = queue.task_done();
    }
    let _ = (queue.len(), queue.join(Deadline::PASSED), queue.close());
}

/// Uses locks and other synchronisation objects whose memory a peer has overwritten. All objects get the same words.
///
/// # Panics
/// If the system has no memory. Any other panic is a bug.
pub fn sync(words: &[u8]) {
    /// The length in bytes of an object, and of one with a table of waiters.
    const LENS: [u64; 2] = [0x100, 0x1200];
    let (lock, semaphore) = (Lock::new().expect("memory"), Semaphore::new(1, 2).expect("memory"));
    let (event, condition) = (Event::new().expect("memory"), Condition::new().expect("memory"));
    let barrier = Barrier::new(2).expect("memory");
    let ticket = condition.enter(Deadline::PASSED);
    for place in [lock.place(), semaphore.place(), event.place()] {
        scribble(place, words, LENS[0], &[64]);
    }
    for place in [condition.place(), barrier.place()] {
        scribble(place, words, LENS[1], &[64]);
    }
    let _ = (lock.acquire(Owner::Process, Deadline::PASSED), lock.release(Owner::Process));
    let _ = (semaphore.release(1), semaphore.acquire(Deadline::PASSED));
    event.set();
    let _ = event.wait(event.sets(), Deadline::PASSED);
    condition.notify(1);
    if let Ok(ticket) = ticket {
        let _ = condition.wait(&ticket, Deadline::PASSED);
        condition.leave(ticket);
    }
    if let Ok(turn) = barrier.arrive(Deadline::PASSED) {
        let _ = barrier.wait(&turn, Deadline::PASSED);
    }
    barrier.reset();
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_message_is_read_or_refused(bytes: Vec<u8>) {
            super::message(&bytes);
            // With a valid header, to reach the decoders behind it.
            let mut framed = vec![bytes.first().copied().unwrap_or(0) % 16, 0];
            framed.extend(&(bytes.len() as u64).to_le_bytes()[..6]);
            framed.extend(&bytes);
            super::message(&framed);
        }

        #[test]
        fn any_queue_memory_gives_errors(choice: u8, words in vec(word(0x6000), 1..40)) {
            super::queue(&[vec![choice], words.concat()].concat());
        }

        #[test]
        fn any_lock_memory_gives_errors(words in vec(word(0x1200), 1..40)) {
            super::sync(&words.concat());
        }
    }

    /// Generates an offset, mostly in the header, and a value, often a small one.
    fn word(len: u32) -> impl Strategy<Value = Vec<u8>> {
        let offset = prop_oneof![0u32..0x900, 0x1000u32..0x1200, 0u32..len];
        let value = prop_oneof![0u64..4, any::<u64>(), Just(u64::MAX), (0u64..0x7000).prop_map(|value| value << 8 | 2)];
        (offset, value).prop_map(|(offset, value)| [&offset.to_le_bytes()[..], &value.to_le_bytes()].concat())
    }
}
