//! The end of a taken message under the consumers' lock: the report of its consumer, or the reclaim after the consumer's
//! death.
//!
//! [`task_done`] is the consumer's call, by way of `handle`. [`reclaim`] runs in each process that shares the queue: after it
//! has reaped or noticed a death, and while it waits on a queue that handles the death of consumers. Both hold the consumers'
//! lock while they change the state of a held block, so a message is retired once. `task` has the steps;
//! `docs/design/ring.md`, "Finished messages", lists the state that a death leaves after each.

use super::block::BlockState;
use super::error::{GetError, TaskDoneError};
use super::ring::Ring;
use super::task::{OnConsumerDeath, count_returned, oldest, on_death, retire, unfinished};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::robust::Guard;
use crate::shm::MemoryError;
use crate::shm::arena::Block;
use crate::sys::process_stamp::ProcessStamp;

/// Reports one message of this process as done. With [`OnConsumerDeath::Nothing`] this is one atomic step without a lock, and
/// any process may report any message. Otherwise it retires the oldest message that this process holds; it waits for the lock
/// without a deadline, as the caller has done the work.
///
/// # Errors
/// [`TaskDoneError::TooMany`] if every message that was put is done, or this process holds none; [`TaskDoneError::Memory`].
pub(super) fn task_done(ring: &Ring) -> Result<(), TaskDoneError> {
    if on_death(ring) == OnConsumerDeath::Nothing {
        // Pairs with the Release in `commit`. Read before `done`, which therefore never exceeds it.
        let put = ring.layout().put.count.load(Ordering::Acquire);
        let one_more = |done: u64| (done < put).then(|| done + 1);
        let done = &ring.layout().tasks.done;
        // Release pairs with the Acquire in `unfinished`: a joiner sees what this consumer wrote before.
        done.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).map_err(|_| TaskDoneError::TooMany)?;
    } else {
        let _guard = lock_for_sure(ring)?;
        let taken = ring.layout().get.count.load(Ordering::Relaxed);
        let block = match oldest_held(ring, taken)? {
            Some(block) => block,
            // A message that an earlier handle of this process took.
            None => {
                let is_own = |owner, position| owner == ProcessStamp::own() && position < taken;
                oldest(ring, BlockState::Held, is_own)?.ok_or(TaskDoneError::TooMany)?
            }
        };
        retire(ring, block)?;
    }
    wake_joiners(ring);
    Ok(())
}

/// Returns the oldest message that this process took by this handle, and removes it from the handle's index. Entries that the
/// records do not confirm are dropped: of a queue that a peer has overwritten, or of the parent of a forked child.
///
/// Returns `None` also if the index is locked, in a child that was forked while another thread held it: the caller then scans
/// the records. The caller holds the consumers' lock. A message at or above the count `taken` is not taken yet.
fn oldest_held(ring: &Ring, taken: u64) -> Result<Option<Block>, MemoryError> {
    let Ok(mut held) = ring.held.try_lock() else { return Ok(None) };
    while let Some((position, block)) = held.pop_first() {
        let record = ring.arena().record(block)?;
        let is_it = record.state() == Some(BlockState::Held) && record.position() == position && position < taken;
        // A forked child of a consumer has taken no message.
        if is_it && record.owner() == ProcessStamp::own() {
            return Ok(Some(block));
        }
    }
    Ok(None)
}

/// Acquires the consumers' lock, however long it takes and whatever signals arrive. Blocks behind a process that is stopped
/// while it holds the lock.
///
/// # Errors
/// Any error of the repair after the death of its owner.
fn lock_for_sure(ring: &Ring) -> Result<Guard<'_>, MemoryError> {
    loop {
        match ring.lock_get::<GetError>(Deadline::NEVER) {
            Ok(guard) => return Ok(guard),
            Err(GetError::Memory(error)) => return Err(error),
            Err(_) => {} // a signal
        }
    }
}

/// Wakes the joiners if no message is unfinished. The caller has counted messages as done, without the fence that the release
/// of a lock would be.
fn wake_joiners(ring: &Ring) {
    // Pairs with the fence in `EventCount::wait`: a joiner finds the last message done, or this process finds its flag.
    crate::prim::fence(Ordering::SeqCst);
    if unfinished(ring) == 0 {
        ring.layout().unfinished.wake_all();
    }
}

/// Takes back blocks that dead processes were filling or reading, and messages that they had taken. Returns the other
/// processes that hold blocks and are alive, which the caller may watch.
///
/// - `Owned` by a dead process: freed.
/// - `Held`, and the message counts as taken: with [`OnConsumerDeath::Nothing`] freed, with [`OnConsumerDeath::CountAsDone`]
///   retired, with [`OnConsumerDeath::PutBack`] marked `Returned`.
/// - `Held`, and the message does not count as taken: left to `repair_get`.
///
/// Scans without a lock first, so that a queue without dead owners costs no lock. Whether a process is dead takes system
/// calls, which are made before the lock is acquired. If a stopped process holds a lock, does nothing after 100 ms: the next
/// call tries again.
///
/// Locks: the consumers', then the arena's for each block that is freed. A death in it leaves blocks as they were or
/// reclaimed.
///
/// # Errors
/// [`MemoryError::Corrupt`] or [`MemoryError::System`] if a record cannot be read or a block not freed; the blocks before it
/// are reclaimed.
pub(super) fn reclaim(ring: &Ring) -> Result<Vec<ProcessStamp>, MemoryError> {
    let arena = ring.arena();
    let is_held = |state| matches!(state, Some(BlockState::Owned | BlockState::Held));
    let mut owners = Vec::new();
    for block in arena.blocks() {
        let record = arena.record(block)?;
        let owner = record.owner();
        if is_held(record.state()) && owner != ProcessStamp::own() && !owners.contains(&owner) {
            owners.push(owner);
        }
    }
    let (owners, living): (Vec<_>, Vec<_>) = owners.into_iter().partition(|owner| owner.is_dead());
    if owners.is_empty() {
        return Ok(living);
    }
    if !arena.is_available() {
        return Ok(living); // a stopped process holds the lock: the next call tries again
    }
    // Under this lock no other process takes blocks from dead processes, so their blocks do not change. A process that reaps
    // calls this and must not wait indefinitely for a stopped owner of the lock: the next call tries again.
    let guard = match ring.lock_get::<GetError>(Deadline::PASSED) {
        Ok(guard) => guard,
        Err(GetError::Memory(error)) => return Err(error),
        Err(_) => return Ok(living),
    };
    let taken = ring.layout().get.count.load(Ordering::Relaxed);
    for block in arena.blocks() {
        let record = arena.record(block)?;
        let state = record.state();
        if !is_held(state) || !owners.contains(&record.owner()) {
            continue;
        }
        match (state, on_death(ring)) {
            (Some(BlockState::Held), _) if record.position() >= taken => {} // its owner died before it took the message
            (Some(BlockState::Held), OnConsumerDeath::CountAsDone) => retire(ring, block)?,
            (Some(BlockState::Held), OnConsumerDeath::PutBack) => record.set_state(BlockState::Returned),
            _ => arena.free(block)?,
        }
    }
    count_returned(ring)?;
    drop(guard);
    ring.layout().items.wake_generation();
    wake_joiners(ring);
    ring.ring_once();
    Ok(living)
}
