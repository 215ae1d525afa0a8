//! Messages that are done, and messages whose consumer died.
//!
//! With [`OnConsumerDeath::Nothing`], `done` is only a count. Otherwise a taken message stays in its block, held by its
//! consumer, until that process reports it as done; all this is under the consumers' lock.
//!
//! Users: `done`, which reports and reclaims; `get`, which takes returned messages and repairs; `handle`. Counting a message
//! and freeing its block are two steps, so [`retire`] records its intention first: the new value of `done`, then the block.
//! The next owner of the lock completes it ([`repair`]). Storing `done` again is harmless, since the value is recorded and not
//! incremented.

use super::block::BlockState;
use super::layout::UnfinishedTasks;
use super::ring::Ring;
use crate::prim::Ordering;
use crate::shm::MemoryError;
use crate::shm::arena::Block;
use crate::sys::crash::{self, Step};
use crate::sys::process_stamp::ProcessStamp;

/// The treatment of items that a consumer took and had not reported as done when it died. Fixed at the creation of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum OnConsumerDeath {
    /// As in Python: they stay unfinished, and `join` keeps blocking.
    #[default]
    Nothing = 0,
    /// They count as done.
    CountAsDone = 1,
    /// They are put back for another consumer: each item is taken at least once, perhaps more often. Items with descriptors
    /// are refused.
    PutBack = 2,
}

/// Returns the setting of this queue. A word that is no choice counts as [`OnConsumerDeath::Nothing`].
#[inline]
pub(super) fn on_death(ring: &Ring) -> OnConsumerDeath {
    match ring.layout().settings.on_death.load(Ordering::Relaxed) {
        1 => OnConsumerDeath::CountAsDone,
        2 => OnConsumerDeath::PutBack,
        _ => OnConsumerDeath::Nothing,
    }
}

/// The counts, which are changed under the consumers' lock, except for `done` with [`OnConsumerDeath::Nothing`].
fn tasks(ring: &Ring) -> &UnfinishedTasks {
    &ring.layout().tasks
}

/// Returns the number of messages that are not done. Includes messages in the queue. The call needs no lock.
pub(super) fn unfinished(ring: &Ring) -> u64 {
    // Pair with the Release in `task_done` or `finish_retiring`, and in `commit`. `done` is read first, so that it
    // never exceeds the producers' count.
    let done = tasks(ring).done.load(Ordering::Acquire);
    ring.layout().put.count.load(Ordering::Acquire).wrapping_sub(done)
}

/// Returns the block of the oldest message, among the blocks in `state` for which `matches`, called with owner and position,
/// returns true. Scans all records. The caller holds the consumers' lock, which keeps held and returned blocks as they are.
/// Linear in the number of records, which is about that of messages in the queue at its longest.
///
/// # Errors
/// [`MemoryError`] if a record cannot be read.
pub(super) fn oldest(
    ring: &Ring,
    state: BlockState,
    matches: impl Fn(ProcessStamp, u64) -> bool,
) -> Result<Option<Block>, MemoryError> {
    let arena = ring.arena();
    let mut found: Option<(u64, Block)> = None;
    for block in arena.blocks() {
        let record = arena.record(block)?;
        let position = record.position();
        if record.state() == Some(state)
            && matches(record.owner(), position)
            && found.is_none_or(|(oldest, _)| position < oldest)
        {
            found = Some((position, block));
        }
    }
    Ok(found.map(|(_, block)| block))
}

/// Counts the message in `block` as done and frees it. The block is held. The caller holds the consumers' lock, and wakes the
/// joiners afterwards.
///
/// # Errors
/// As [`Arena::free`](crate::shm::Arena::free). The record of the intention then stays until the next repair.
pub(super) fn retire(ring: &Ring, block: Block) -> Result<(), MemoryError> {
    let tasks = tasks(ring);
    tasks.target.store(tasks.done.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    // Pairs with the Acquire in `repair`: `target` is stored before, wherever this process dies.
    tasks.retiring.store(block.0.wrapping_add(1), Ordering::Release);
    crash::point(Step::DoneRecorded);
    finish_retiring(ring, block)
}

/// Finishes a [`retire`] that may have been interrupted anywhere, even more than once. The order matters: the count, the
/// block, then the record.
fn finish_retiring(ring: &Ring, block: Block) -> Result<(), MemoryError> {
    let tasks = tasks(ring);
    // Pairs with the Acquire in `unfinished`. `retiring` is stored before, so a death from here on is repaired.
    tasks.done.store(tasks.target.load(Ordering::Relaxed), Ordering::Release);
    crash::point(Step::DoneCounted);
    // If it is held, it was not freed yet: only the owner of this lock makes a block held.
    if ring.arena().record(block)?.state() == Some(BlockState::Held) {
        ring.arena().free(block)?;
    }
    // Pairs with the Acquire in `repair`: after `done` is stored and the block is free.
    tasks.retiring.store(0, Ordering::Release);
    Ok(())
}

/// Finishes the retiring that a dead owner of the consumers' lock had begun, and counts the returned messages. Part of
/// `repair_get`.
///
/// # Errors
/// As [`retire`].
pub(super) fn repair(ring: &Ring) -> Result<(), MemoryError> {
    // Pairs with the Release in `retire`, by a dead owner of the same lock.
    if let Some(block) = tasks(ring).retiring.load(Ordering::Acquire).checked_sub(1) {
        finish_retiring(ring, Block(block))?;
    }
    count_returned(ring)
}

/// Counts the returned messages anew from the records, which are authoritative. The caller holds the consumers' lock. An
/// interrupted take or reclaim leaves a count that is wrong, never a record.
pub(super) fn count_returned(ring: &Ring) -> Result<(), MemoryError> {
    let arena = ring.arena();
    let mut returned = 0;
    for block in arena.blocks() {
        returned += u32::from(arena.record(block)?.state() == Some(BlockState::Returned));
    }
    // Pairs with the Acquire in `len`.
    tasks(ring).returned.store(returned, Ordering::Release);
    Ok(())
}

/// Takes the oldest returned message for this process: the store of the state is the commit. Returns its block, which this
/// process then holds, or `None` if there is none. The caller holds the consumers' lock.
///
/// # Errors
/// [`MemoryError::Corrupt`] if the count says that there are some, and no record does.
#[cold]
pub(super) fn take_returned(ring: &Ring) -> Result<Option<Block>, MemoryError> {
    let returned = &tasks(ring).returned;
    let count = returned.load(Ordering::Relaxed);
    if count == 0 {
        return Ok(None);
    }
    let Some(block) = oldest(ring, BlockState::Returned, |_, _| true)? else { return Err(MemoryError::Corrupt) };
    let record = ring.arena().record(block)?;
    record.set_owner(ProcessStamp::own());
    record.set_state(BlockState::Held);
    ring.note_held(record.position(), block);
    crash::point(Step::ReturnMarked);
    // Pairs with the Acquire in `len`. The block is marked before: a death in between leaves a number that is too high.
    returned.store(count - 1, Ordering::Release);
    Ok(Some(block))
}
