//! [`Queue`]: what a process holds.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::bell::PollSocket;
use super::index::IndexPlace;
use super::layout::{CHUNK_LEN, FIRST, FIRST_BLOCK_TABLE, FIRST_REGION, HEADER_LEN, INLINE_LEN, MAGIC, REGION_TABLE};
use super::ring::{MessageBody, Out, Ring};
use super::task::{self, OnConsumerDeath, TaskDoneError};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::process::watch_death;
use crate::retry::Interrupt;
use crate::robust::{AdaptiveSpin, RecheckInterval, WaitError};
use crate::shm::arena::{Block, BlockState};
use crate::shm::budget::{OutOfSpace, wait_for_room};
use crate::shm::registry::{self, SharedObject};
use crate::shm::{MemoryError, Segment};
use crate::sys::crash::{self, Step};
use crate::sys::identity::Identity;
use crate::sys::socket::MAX_FDS;

/// How long a sleeper sleeps at most before it looks for itself: what a wake-up that died costs where nobody reaps.
const RECHECK_AFTER: Duration = Duration::from_millis(200);

/// A message could not be put.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// As many messages wait as the queue may hold; or more with descriptors than the system lets wait (some 250).
    #[error("the queue is full")]
    Full,
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed,
    /// A signal handler ran during the wait.
    #[error("a signal handler ran during the wait")]
    Interrupted,
    /// Descriptors cannot be put back when their consumer dies.
    #[error("a queue that puts items back cannot hold items with descriptors")]
    NotReturnable,
    /// As much is in flight as may be.
    #[error(transparent)]
    OutOfSpace(OutOfSpace),
    /// The queue's memory is unusable, or there is none.
    #[error(transparent)]
    Memory(MemoryError),
    /// The descriptors could not be sent.
    #[error("the system refused the descriptors: {0}")]
    Descriptors(#[from] io::Error),
}

/// A message could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// No message came.
    #[error("the queue is empty")]
    Empty,
    /// The queue was closed, and all messages are taken.
    #[error("the queue is closed")]
    Closed,
    /// A signal handler ran during the wait.
    #[error("a signal handler ran during the wait")]
    Interrupted,
    /// A message was taken, but its descriptors are gone.
    #[error("the descriptors of a message are gone")]
    DescriptorsLost,
    /// The queue's memory is unusable.
    #[error(transparent)]
    Memory(MemoryError),
    /// The descriptors could not be received: the message is still there.
    #[error("the system refused the descriptors: {0}")]
    Descriptors(#[from] io::Error),
}

impl Interrupt for PutError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

impl Interrupt for GetError {
    fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

impl PutError {
    fn out_of_space(&self) -> Option<OutOfSpace> {
        if let Self::OutOfSpace(error) = self { Some(*error) } else { None }
    }
}

impl From<MemoryError> for PutError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Busy => Self::Full, // for now, as behind any process that stands still
            MemoryError::Interrupted => Self::Interrupted,
            MemoryError::OutOfSpace(error) => Self::OutOfSpace(error),
            error => Self::Memory(error),
        }
    }
}

impl From<MemoryError> for GetError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Busy => Self::Empty,
            MemoryError::Interrupted => Self::Interrupted,
            error => Self::Memory(error),
        }
    }
}

impl From<WaitError> for PutError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::Full,
            WaitError::Interrupted => Self::Interrupted,
        }
    }
}

impl From<WaitError> for GetError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::Empty,
            WaitError::Interrupted => Self::Interrupted,
        }
    }
}

/// What a queue is to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueSettings {
    /// How many messages may wait; 0 for no limit.
    pub maxsize: u64,
    /// How many bytes these may have together; 0 for no limit.
    pub max_bytes: u64,
    /// What becomes of what a dead consumer had taken.
    pub on_consumer_death: OnConsumerDeath,
}

/// Has these processes' deaths seen; where that cannot be, who waits looks often.
fn watch_deaths(interval: &RecheckInterval, living: Vec<Identity>) {
    if !living.into_iter().all(watch_death) {
        interval.restart();
    }
}

/// One queue as one process sees it.
#[derive(Debug)]
struct SharedQueue {
    ring: Ring,
    spin: AdaptiveSpin,
}

impl SharedObject for SharedQueue {
    fn recover(&self) {
        // What cannot be taken back now is tried again with the next death, and by consumers that wait.
        let _ = task::reclaim(&self.ring);
        let layout = self.ring.layout();
        for waiters in [&layout.items, &layout.space, &layout.unfinished] {
            waiters.recover();
        }
        self.refresh();
    }

    fn refresh(&self) {
        if self.ring.layout().settings.polled.load(Ordering::Relaxed) != 0 {
            let _ = task::reclaim(&self.ring);
            self.ring.ring_if_silent();
        }
    }

    fn bytes_of(&self, process: Identity) -> u64 {
        let arena = self.ring.arena();
        let records = arena.blocks().filter_map(|block| arena.record(block).ok());
        let put = records.filter(|record| {
            matches!(record.state(), Some(BlockState::Owned | BlockState::Queued)) && record.owner() == process
        });
        put.fold(0, |sum, record| sum.saturating_add(record.capacity()))
    }

    fn trim(&self) {
        // What somebody is at just now is in use.
        let _ = self.ring.arena().trim();
    }

    #[cfg(feature = "crash-points")]
    fn blocks_in_use(&self) -> usize {
        let arena = self.ring.arena();
        let is_used = |block: &Block| arena.record(*block).is_ok_and(|record| record.state() != Some(BlockState::Free));
        arena.blocks().filter(is_used).count()
    }
}

/// A queue of messages, each some bytes and descriptors, for any number of producers and consumers in any processes.
#[derive(Debug, Clone)]
pub struct Queue(Arc<SharedQueue>);

impl Queue {
    /// How many descriptors a queue is.
    pub const FDS: usize = 3;

    /// A new, empty one.
    ///
    /// # Errors
    /// When the system gives no memory or no descriptor.
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
        layout.settings.magic.store(MAGIC, Ordering::Release);
        // Descriptors are passed on only later, so nobody else has the file yet.
        Ok(Self(registry::note(ring.segment.inode(), SharedQueue { ring, spin: AdaptiveSpin::new() })))
    }

    /// The descriptors that make the queue another process's too, by [`Queue::from_fds`].
    #[must_use]
    pub fn fds(&self) -> [BorrowedFd<'_>; Self::FDS] {
        let [sending, receiving] = self.0.ring.bell.ends();
        [self.0.ring.segment.as_fd(), sending, receiving]
    }

    /// The queue of these descriptors.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when they are none of a queue.
    pub fn from_fds([memfd, sending, receiving]: [OwnedFd; Self::FDS]) -> io::Result<Self> {
        let segment = Segment::open(memfd, FIRST_REGION, REGION_TABLE, FIRST_BLOCK_TABLE)?.counted();
        let inode = segment.inode();
        if let Some(shared) = registry::find(inode) {
            return Ok(Self(shared));
        }
        let ring = Ring { segment, bell: PollSocket::from_ends([sending, receiving]), held: Mutex::default() };
        if ring.layout().settings.magic.load(Ordering::Acquire) != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "these descriptors are not a queue's"));
        }
        Ok(Self(registry::note(inode, SharedQueue { ring, spin: AdaptiveSpin::new() })))
    }

    /// Puts a message; waits until the deadline while the queue is full, or too much is in flight. Once this has returned, the message is in the
    /// queue, whoever dies.
    ///
    /// # Errors
    /// See [`PutError`]. The message is not in the queue then.
    pub fn put(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<(), PutError> {
        self.put_parts(&[bytes], fds, deadline)
    }

    /// As [`Queue::put`]: the message is the parts, one after the other.
    ///
    /// # Errors
    /// See [`PutError`]. The message is not in the queue then.
    pub fn put_parts(&self, parts: &[&[u8]], fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<(), PutError> {
        let ring = &self.0.ring;
        if fds.len() > MAX_FDS {
            let why = format!("{} descriptors in one message: at most {MAX_FDS} are possible", fds.len());
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

    /// Takes the next message: its bytes replace what `bytes` holds, its descriptors what `fds` holds. Waits until the
    /// deadline while there is none.
    ///
    /// # Errors
    /// See [`GetError`].
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
                return Err(GetError::Empty); // there is something, and a process that stands still holds the lock
            }
        }
    }

    #[cold]
    fn wait_and_get(&self, out: &mut Out<'_>, deadline: Deadline) -> Result<(), GetError> {
        let ring = &self.0.ring;
        let (mut slept, interval) = (false, RecheckInterval::new(RECHECK_AFTER));
        let taken = ring.layout().items.wait(deadline, &interval, || {
            if std::mem::replace(&mut slept, true) {
                if task::on_death(ring) != OnConsumerDeath::Nothing {
                    watch_deaths(&interval, task::reclaim(ring)?);
                }
                if ring.len() == 0 {
                    ring.arena().trim()?; // nothing came for a while: an idle queue keeps no memory
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

    fn read(&self, block: Block, out: &mut Out<'_>) -> Result<(), GetError> {
        let arena = self.0.ring.arena();
        arena.read(block, out.bytes)?;
        if task::on_death(&self.0.ring) == OnConsumerDeath::Nothing {
            arena.free(block)?;
        }
        Ok(())
    }

    /// One message that this process took is done.
    ///
    /// # Errors
    /// [`TaskDoneError::TooMany`].
    pub fn task_done(&self) -> Result<(), TaskDoneError> {
        task::task_done(&self.0.ring)
    }

    /// Waits until every message that was put is done.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn join(&self, deadline: Deadline) -> Result<(), WaitError> {
        let ring = &self.0.ring;
        let (mut slept, interval) = (false, RecheckInterval::new(RECHECK_AFTER));
        ring.layout().unfinished.wait(deadline, &interval, || {
            if std::mem::replace(&mut slept, true)
                && task::on_death(ring) != OnConsumerDeath::Nothing
                // What cannot be taken back now is tried again with the next slice.
                && let Ok(living) = task::reclaim(ring)
            {
                watch_deaths(&interval, living);
            }
            Ok((task::unfinished(ring) == 0).then_some(()))
        })
    }

    /// No more puts: they fail. Gets go on until all messages are taken.
    ///
    /// # Errors
    /// [`MemoryError`] when the queue's memory is unusable.
    pub fn close(&self) -> Result<(), MemoryError> {
        let ring = &self.0.ring;
        let guard = loop {
            match ring.lock_put::<PutError>(Deadline::NEVER) {
                Ok(guard) => break guard,
                Err(PutError::Memory(error)) => return Err(error),
                Err(_) => {} // a signal
            }
        };
        ring.layout().settings.closed.store(1, Ordering::Release);
        drop(guard);
        ring.layout().items.wake_generation();
        ring.layout().space.wake_generation();
        ring.ring_once();
        Ok(())
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.ring.layout().settings.closed.load(Ordering::Acquire) != 0
    }

    /// How many messages wait.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.ring.len()
    }

    /// Whether no message waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes the messages that wait may have together; 0 for no limit.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.0.ring.layout().settings.max_bytes.load(Ordering::Relaxed)
    }

    /// How many messages may wait; 0 for no limit.
    #[must_use]
    pub fn maxsize(&self) -> u64 {
        self.0.ring.layout().settings.maxsize.load(Ordering::Relaxed)
    }
}

/// Readable while there is a message, or the queue is closed. It may be readable a moment longer: another consumer may be
/// first.
impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.ring.start_ringing();
        let [_, receiving] = self.0.ring.bell.ends();
        receiving
    }
}
