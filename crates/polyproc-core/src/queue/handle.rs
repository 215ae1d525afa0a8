//! [`Queue`]: a process's handle to a queue.
//!
//! The faces wrap it: `polyproc::queue` and `polyproc-py/src/queue.rs`. All its functions may be called from any thread, and
//! in a forked child, which shares the queue with its parent.
//!
//! [`Ring::put`] and [`Ring::get`] are short sections that never wait for messages or space. This module waits around them,
//! without a lock: first for room in the memory budget ([`wait_for_room`]), then by an [`EventCount`] of the queue:
//!
//! | waiter | event count | woken by |
//! |---|---|---|
//! | put | `space` | a get that freed a message, bytes or descriptors; close |
//! | get | `items` | a put; close; a reclaim that put messages back |
//! | join | `unfinished` | the `task_done` or the reclaim that leaves no message unfinished |
//!
//! Repairs and [`SharedObject::recover`] wake the waiters too, as a death may have lost a wake-up. Before it sleeps for items,
//! a consumer spins. After its first sleep it reclaims from dead consumers if the queue handles their death, and returns the
//! free memory of a queue that is still empty.
//!
//! A wait ends with `Interrupted` after a signal handler ran. The caller repeats the call with the same [`Deadline`], which
//! was made once. A deadline may be exceeded by 100 ms for each lock that a stopped process holds.
//!
//! [`EventCount`]: crate::robust::EventCount

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::bell::PollSocket;
use super::block::BlockState;
use super::done;
use super::error::{GetError, PutError, TaskDoneError};
use super::get::Out;
use super::index::IndexPlace;
use super::layout::{CHUNK_LEN, FIRST, FIRST_BLOCK_TABLE, FIRST_REGION, HEADER_LEN, INLINE_LEN, MAGIC, REGION_TABLE};
use super::put::MessageBody;
use super::ring::Ring;
use super::task::{self, OnConsumerDeath};
use crate::deadline::Deadline;
use crate::prim::{Ordering, fence};
use crate::process::watch_death;
use crate::robust::{AdaptiveSpin, RecheckInterval, WaitError};
use crate::shm::arena::Block;
use crate::shm::registry::{self, SharedObject};
use crate::shm::{MemoryError, Segment, wait_for_room};
use crate::sys::crash::{self, Step};
use crate::sys::process_stamp::ProcessStamp;
use crate::sys::socket::MAX_FDS;

/// How long a waiter sleeps at first before it re-checks, as its wake-up may be lost with a process that no process reaps.
/// Doubles with each sleep: see [`RecheckInterval`].
const RECHECK_AFTER: Duration = Duration::from_millis(200);

/// The settings of a queue. They are stored in its memory, hold for all its processes, and never change.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueSettings {
    /// Maximum number of messages in the queue; 0 for no limit. Messages that a consumer has taken do not count.
    pub maxsize: u64,
    /// Maximum number of bytes of all messages in the queue; 0 for no limit. Descriptors do not count.
    pub max_bytes: u64,
    /// The treatment of items that a dead consumer had taken. Anything but [`OnConsumerDeath::Nothing`] costs a block for each
    /// message, and the consumers' lock for each `task_done`.
    pub on_consumer_death: OnConsumerDeath,
}

/// Watches these processes for death, so that the queue recovers when one dies. If one cannot be watched, restarts the
/// interval, so that the waiter re-checks often.
fn watch_deaths(interval: &RecheckInterval, living: Vec<ProcessStamp>) {
    if !living.into_iter().all(watch_death) {
        interval.restart();
    }
}

/// A queue, as this process has mapped it: one for each memory file, shared by all handles of the process and found in
/// [`registry`]. It is unmapped with the last handle.
#[derive(Debug)]
struct SharedQueue {
    /// The memory and the socket.
    ring: Ring,
    /// Whether spinning before a sleep has succeeded lately, for all consumers of this process.
    spin: AdaptiveSpin,
}

/// Called by the thread that has reaped a process, or noticed a death: none of these blocks for long behind a stopped process.
impl SharedObject for SharedQueue {
    /// Reclaims, then wakes the waiters whose wake-up may be lost.
    fn recover(&self) {
        // If this fails, it is tried again after the next death, and by waiting consumers.
        let _ = done::reclaim(&self.ring);
        let layout = self.ring.layout();
        for waiters in [&layout.items, &layout.space, &layout.unfinished] {
            waiters.recover();
        }
        self.refresh();
    }

    /// Does nothing unless a process has asked for the descriptor to poll ([`Queue::as_fd`]).
    fn refresh(&self) {
        if self.ring.layout().settings.polled.load(Ordering::Relaxed) != 0 {
            let _ = done::reclaim(&self.ring);
            self.ring.ring_if_silent();
        }
    }

    /// Returns the capacity in bytes of the blocks that `process` has allocated and no consumer has taken. Messages in a chunk
    /// count for the process that allocated the chunk.
    fn bytes_of(&self, process: ProcessStamp) -> u64 {
        let arena = self.ring.arena();
        let records = arena.blocks().filter_map(|block| arena.record(block).ok());
        let put = records.filter(|record| {
            matches!(record.state(), Some(BlockState::Owned | BlockState::Queued)) && record.owner() == process
        });
        put.fold(0, |sum, record| sum.saturating_add(record.capacity()))
    }

    /// Returns the memory of free blocks. Called when this process finds no room in the budget.
    fn trim(&self) {
        // Fails while a stopped process holds the arena's lock: then the memory is kept.
        let _ = self.ring.arena().trim();
    }

    #[cfg(feature = "crash-points")]
    fn blocks_in_use(&self) -> usize {
        let arena = self.ring.arena();
        let is_used = |block: &Block| arena.record(*block).is_ok_and(|record| record.state() != Some(BlockState::Free));
        arena.blocks().filter(is_used).count()
    }
}

/// A queue of messages, each of bytes and descriptors, for any number of producers and consumers in any processes. Clones
/// refer to the same queue. The kernel frees the queue when no process has it open.
#[derive(Debug, Clone)]
pub struct Queue(Arc<SharedQueue>);

impl Queue {
    /// Number of descriptors that make up a queue: the memory file, and the two ends of its socket pair.
    pub const FDS: usize = 3;

    /// Creates an empty queue.
    ///
    /// # Errors
    /// If the system has no memory or no descriptor left; [`io::ErrorKind::OutOfMemory`] also if the memory budget has no room
    /// for the first chunk (64 KiB).
    pub fn new(settings: QueueSettings) -> io::Result<Self> {
        let segment = Segment::create(c"polyproc-queue", FIRST_REGION, REGION_TABLE, FIRST_BLOCK_TABLE)?.counted();
        segment.reserve(0, HEADER_LEN)?;
        let ring = Ring { segment, bell: PollSocket::new()?, held: Mutex::default() };
        ring.arena().initialise(FIRST_BLOCK_TABLE);
        let first_chunk = || -> Result<IndexPlace, MemoryError> {
            let block = ring.arena().allocate(CHUNK_LEN, Deadline::NEVER)?;
            let record = ring.arena().record(block)?;
            record.set_state(BlockState::Queued);
            IndexPlace::start_of(block, record)
        };
        let place = first_chunk().map_err(|error| match error {
            MemoryError::System(error) => error,
            MemoryError::OutOfSpace(error) => io::Error::new(io::ErrorKind::OutOfMemory, error),
            error @ (MemoryError::Corrupt | MemoryError::Busy | MemoryError::Interrupted) => io::Error::other(error),
        })?;
        let layout = ring.layout();
        for side in [&layout.put, &layout.get] {
            side.prepare(FIRST, place);
            side.other().store(FIRST, Ordering::Relaxed);
            side.count.store(FIRST, Ordering::Relaxed);
        }
        layout.tasks.done.store(FIRST, Ordering::Relaxed);
        layout.settings.maxsize.store(settings.maxsize, Ordering::Relaxed);
        layout.settings.max_bytes.store(settings.max_bytes, Ordering::Relaxed);
        layout.settings.on_death.store(settings.on_consumer_death as u32, Ordering::Relaxed);
        // Pairs with the Acquire in `from_fds`: the header is complete.
        layout.settings.magic.store(MAGIC, Ordering::Release);
        // The descriptors are passed on only later, so no other process has the file yet.
        Ok(Self(registry::note(ring.segment.inode(), SharedQueue { ring, spin: AdaptiveSpin::new() })))
    }

    /// Returns the descriptors by which another process opens the queue ([`Queue::from_fds`]). They stay open as long as a
    /// handle in this process.
    #[must_use]
    pub fn fds(&self) -> [BorrowedFd<'_>; Self::FDS] {
        let [sending, receiving] = self.0.ring.bell.ends();
        [self.0.ring.segment.as_fd(), sending, receiving]
    }

    /// Opens the queue of these descriptors. If this process has it open already, returns a handle to the same object and
    /// closes the descriptors.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] or [`io::ErrorKind::InvalidInput`] if the first is not the memory file of a queue of
    /// this version; else if the system cannot map it. The ends of the socket are not checked.
    pub fn from_fds([memfd, sending, receiving]: [OwnedFd; Self::FDS]) -> io::Result<Self> {
        let segment = Segment::open(memfd, FIRST_REGION, REGION_TABLE, FIRST_BLOCK_TABLE)?.counted();
        let inode = segment.inode();
        if let Some(shared) = registry::find(inode) {
            return Ok(Self(shared));
        }
        let ring = Ring { segment, bell: PollSocket::from_ends([sending, receiving]), held: Mutex::default() };
        // Pairs with the Release in `new`.
        if ring.layout().settings.magic.load(Ordering::Acquire) != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the descriptors do not belong to a queue"));
        }
        Ok(Self(registry::note(inode, SharedQueue { ring, spin: AdaptiveSpin::new() })))
    }

    /// Puts a message. Blocks until the deadline while the queue is full or too many bytes are in flight. On success the
    /// message is in the queue, whichever process dies. The descriptors are duplicated; the caller keeps its own.
    ///
    /// # Errors
    /// Any [`PutError`]. Then the message is not in the queue, and the call may be repeated.
    pub fn put(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<(), PutError> {
        self.put_parts(&[bytes], fds, deadline)
    }

    /// As [`Queue::put`], for a message that consists of the parts, one after the other.
    ///
    /// One part of at most 16 KiB is copied into the current chunk, unless the queue handles the death of consumers. Any other
    /// message gets a block of its own, which is filled before the producers' lock is acquired.
    ///
    /// # Errors
    /// As [`Queue::put`]; [`PutError::Descriptors`] also for more than 253 descriptors, the kernel's limit.
    pub fn put_parts(&self, parts: &[&[u8]], fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<(), PutError> {
        let ring = &self.0.ring;
        if fds.len() > MAX_FDS {
            let why = format!("cannot send {} descriptors in one message: at most {MAX_FDS} are possible", fds.len());
            return Err(PutError::Descriptors(io::Error::new(io::ErrorKind::InvalidInput, why)));
        }
        let on_death = task::on_death(ring);
        if on_death == OnConsumerDeath::PutBack && !fds.is_empty() {
            return Err(PutError::NotReturnable);
        }
        if let [bytes] = parts
            && bytes.len() <= INLINE_LEN
            && on_death == OnConsumerDeath::Nothing
        {
            return match self.put_body(MessageBody::Bytes(bytes), fds, deadline) {
                Err(PutError::OutOfSpace(_)) => wait_for_room(deadline, PutError::out_of_space, || {
                    self.put_body(MessageBody::Bytes(bytes), fds, deadline)
                }),
                put => put,
            };
        }
        wait_for_room(deadline, PutError::out_of_space, || self.put_in_block(parts, fds, deadline))
    }

    /// Puts a message by way of a new block. Each attempt allocates its own: a producer that waits for room in the budget
    /// holds no block meanwhile. After a lack of room the block is freed without a wake-up, which would end the producer's own
    /// next sleep.
    ///
    /// 1. Allocate the block: this process owns it, so after a death it is reclaimed.
    /// 2. Fill it, without a lock.
    /// 3. Put its number. From the commit on the block belongs to the queue.
    fn put_in_block(&self, parts: &[&[u8]], fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<(), PutError> {
        let arena = self.0.ring.arena();
        let block = arena.allocate(parts.iter().map(|part| part.len() as u64).sum(), deadline)?;
        let put = arena.fill(block, parts).map_err(PutError::from).and_then(|()| {
            crash::point(Step::PutFilled);
            self.put_body(MessageBody::Block(block), fds, deadline)
        });
        match put {
            Ok(()) => {}
            Err(PutError::OutOfSpace(_)) => arena.free_quietly(block)?,
            Err(_) => arena.free(block)?,
        }
        put
    }

    /// Puts a message, and waits until the deadline while the queue is full. A lack of room in the budget fails at once: the
    /// caller waits for that, without the block.
    ///
    /// The first attempt sets no flag. Only a producer that finds the queue full becomes a waiter, and re-checks after it has
    /// set the flag, so no wake-up of a consumer in between is lost.
    fn put_body(&self, body: MessageBody<'_>, fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<(), PutError> {
        let ring = &self.0.ring;
        match ring.put(body, fds, deadline) {
            Err(PutError::Full) if deadline != Deadline::PASSED => {}
            done => return done,
        }
        ring.layout().space.wait(deadline, &RecheckInterval::new(RECHECK_AFTER), || {
            match ring.put(body, fds, deadline) {
                Err(PutError::Full) => Ok(None),
                done => done.map(Some),
            }
        })
    }

    /// Takes the next message: its bytes replace the contents of `bytes`, its descriptors the contents of `fds`. Blocks until
    /// the deadline while the queue is empty. Messages of dead consumers that were put back come first.
    ///
    /// If the queue handles the death of consumers, the message is this process's until [`Queue::task_done`].
    ///
    /// # Errors
    /// [`GetError::Empty`] at the deadline; any other [`GetError`] at once. A message was taken only with
    /// [`GetError::DescriptorsLost`], or if [`GetError::Memory`] reports a failure after the commit.
    pub fn get(&self, bytes: &mut Vec<u8>, fds: &mut Vec<OwnedFd>, deadline: Deadline) -> Result<(), GetError> {
        let ring = &self.0.ring;
        bytes.clear();
        fds.clear();
        let mut out = Out { bytes, fds };
        loop {
            match ring.get(&mut out, deadline) {
                Ok(None) => return Ok(()),
                Ok(Some(block)) => return self.read(block, &mut out),
                Err(GetError::Empty) if deadline != Deadline::PASSED => {}
                Err(error) => return Err(error),
            }
            if !self.0.spin.until(|| ring.len() > 0) {
                return self.wait_and_get(&mut out, deadline);
            }
            if deadline.has_passed() {
                return Err(GetError::Empty); // there is a message, but a stopped process holds the lock
            }
        }
    }

    /// Sleeps until there is a message. From the first re-check on, reclaims from dead consumers and watches the living ones,
    /// and trims the arena while the queue is empty.
    ///
    /// The check runs once before the first sleep, so the slow work (system calls that find out which processes are dead) is
    /// left to the re-checks.
    #[cold]
    fn wait_and_get(&self, out: &mut Out<'_>, deadline: Deadline) -> Result<(), GetError> {
        let ring = &self.0.ring;
        let (mut slept, interval) = (false, RecheckInterval::new(RECHECK_AFTER));
        let taken = ring.layout().items.wait(deadline, &interval, || {
            if std::mem::replace(&mut slept, true) {
                if task::on_death(ring) != OnConsumerDeath::Nothing {
                    watch_deaths(&interval, done::reclaim(ring)?);
                }
                if ring.len() == 0 {
                    // An idle queue keeps no free memory. Fails while a stopped process holds the arena's lock.
                    let _ = ring.arena().trim();
                }
            }
            match ring.get(out, deadline) {
                Err(GetError::Empty) => Ok(None),
                taken => taken.map(Some),
            }
        });
        match taken? {
            None => Ok(()),
            Some(block) => self.read(block, out),
        }
    }

    /// Copies a message out of its block, which this process holds. Frees the block, unless it must stay until `task_done`. If
    /// the block is corrupt, it stays held, and the message is lost.
    fn read(&self, block: Block, out: &mut Out<'_>) -> Result<(), GetError> {
        let arena = self.0.ring.arena();
        arena.read(block, out.bytes)?;
        if task::on_death(&self.0.ring) == OnConsumerDeath::Nothing {
            arena.free(block)?;
        }
        Ok(())
    }

    /// Reports one message that this process took as done: the oldest, if the queue handles the death of consumers. Waits for
    /// the consumers' lock however long it takes.
    ///
    /// # Errors
    /// [`TaskDoneError::TooMany`] if there is none; [`TaskDoneError::Memory`].
    pub fn task_done(&self) -> Result<(), TaskDoneError> {
        done::task_done(&self.0.ring)
    }

    /// Blocks until every message that was put is done: at some moment during the call, no message is unfinished. If the queue
    /// handles the death of consumers, reclaims from the first re-check on, so that messages of dead consumers do not keep it
    /// waiting.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`]; [`WaitError::Interrupted`] after a signal handler ran.
    pub fn join(&self, deadline: Deadline) -> Result<(), WaitError> {
        let ring = &self.0.ring;
        let (mut slept, interval) = (false, RecheckInterval::new(RECHECK_AFTER));
        ring.layout().unfinished.wait(deadline, &interval, || {
            if std::mem::replace(&mut slept, true)
                && task::on_death(ring) != OnConsumerDeath::Nothing
                // If this fails, it is tried again after the next interval.
                && let Ok(living) = done::reclaim(ring)
            {
                watch_deaths(&interval, living);
            }
            Ok((task::unfinished(ring) == 0).then_some(()))
        })
    }

    /// Closes the queue permanently: further puts fail, and consumers can take the remaining messages. Wakes all producers and
    /// consumers, and makes the descriptor readable. Waits for the producers' lock, however long it takes, so that every put
    /// either was committed before or fails.
    ///
    /// # Errors
    /// [`MemoryError`] if the queue's memory is unusable.
    pub fn close(&self) -> Result<(), MemoryError> {
        let ring = &self.0.ring;
        let guard = loop {
            match ring.lock_put::<PutError>(Deadline::NEVER) {
                Ok(guard) => break guard,
                Err(PutError::Memory(error)) => return Err(error),
                Err(_) => {} // a signal
            }
        };
        // Pairs with the Acquire in `get`, `has_news` and `is_closed`: every put was committed before, under the same
        // lock.
        ring.layout().settings.closed.store(1, Ordering::Release);
        drop(guard);
        ring.layout().items.wake_generation();
        ring.layout().space.wake_generation();
        fence(Ordering::SeqCst); // pairs with the fence in `start_ringing`: one of the two sees the other's store
        ring.ring_once();
        Ok(())
    }

    /// Returns whether the queue was closed. Messages may be left.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        // Pairs with the Release in `close`.
        self.0.ring.layout().settings.closed.load(Ordering::Acquire) != 0
    }

    /// Returns the number of messages in the queue. Other processes may change it at any time. Includes messages of dead
    /// consumers that were put back.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.ring.len()
    }

    /// Returns whether the queue has no messages. As [`Queue::len`], outdated at once.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the maximum number of bytes of all messages in the queue; 0 for no limit.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.0.ring.layout().settings.max_bytes.load(Ordering::Relaxed)
    }

    /// Returns the maximum number of messages in the queue; 0 for no limit.
    #[must_use]
    pub fn maxsize(&self) -> u64 {
        self.0.ring.layout().settings.maxsize.load(Ordering::Relaxed)
    }
}

/// The descriptor is readable while there is a message, or the queue is closed. It may stay readable for a moment after
/// another consumer has taken the last message.
///
/// The first call makes producers and consumers of all processes keep that socket up to date, which costs a system call when
/// the queue stops being empty, and some when it becomes empty.
impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.ring.start_ringing();
        let [_, receiving] = self.0.ring.bell.ends();
        receiving
    }
}
