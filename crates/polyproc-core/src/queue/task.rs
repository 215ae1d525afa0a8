//! Which messages are done, and what becomes of those whose consumer died.
//!
//! Where nothing becomes of them, `done` is a mere count. Otherwise a message that was taken stays in its block, held by its
//! consumer, until that process says that it is done; all this is under the consumers' lock.

use super::handle::GetError;
use super::layout::Tasks;
use super::ring::Ring;
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::robust::Guard;
use crate::shm::MemoryError;
use crate::shm::arena::{Block, BlockState};
use crate::sys::crash::{self, Step};
use crate::sys::identity::Identity;

/// What becomes of the items that a consumer took and did not report as done, when it dies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum OnConsumerDeath {
    /// Nothing, as in Python: they stay unfinished, and `join` waits.
    #[default]
    Nothing = 0,
    /// They count as done.
    CountAsDone = 1,
    /// They are put back for another consumer: each item is taken at least once, perhaps twice.
    PutBack = 2,
}

/// A task was reported as done that nobody took.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskDoneError {
    /// All that was put is done already; or, where a consumer's death matters, all that this process took.
    #[error("task_done was called more often than there were items")]
    TooMany,
    /// The queue's memory is unusable.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

#[inline]
pub(super) fn on_death(ring: &Ring) -> OnConsumerDeath {
    match ring.layout().settings.on_death.load(Ordering::Relaxed) {
        1 => OnConsumerDeath::CountAsDone,
        2 => OnConsumerDeath::PutBack,
        _ => OnConsumerDeath::Nothing,
    }
}

fn tasks(ring: &Ring) -> &Tasks {
    &ring.layout().tasks
}

/// How many messages are not done.
pub(super) fn unfinished(ring: &Ring) -> u64 {
    let done = tasks(ring).done.load(Ordering::Acquire); // first: it never passes the other
    ring.layout().put.count.load(Ordering::Acquire).wrapping_sub(done)
}

/// Of the blocks in `state` that `matches`, the one whose message is the oldest.
fn oldest(
    ring: &Ring,
    state: BlockState,
    matches: impl Fn(Identity, u64) -> bool,
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

/// One message of this process is done.
pub(super) fn task_done(ring: &Ring) -> Result<(), TaskDoneError> {
    if on_death(ring) == OnConsumerDeath::Nothing {
        let put = ring.layout().put.count.load(Ordering::Acquire);
        let one_more = |done: u64| (done < put).then(|| done + 1);
        tasks(ring)
            .done
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .map_err(|_| TaskDoneError::TooMany)?;
    } else {
        let _guard = lock_for_sure(ring)?;
        let taken = ring.layout().get.count.load(Ordering::Relaxed);
        let block = match oldest_held(ring, taken)? {
            Some(block) => block,
            // What an earlier handle of this process took.
            None => {
                let is_own = |owner, position| owner == Identity::own() && position < taken;
                oldest(ring, BlockState::Held, is_own)?.ok_or(TaskDoneError::TooMany)?
            }
        };
        retire(ring, block)?;
    }
    wake_joiners(ring);
    Ok(())
}

/// The oldest message that this process took by this handle. Under the consumers' lock.
fn oldest_held(ring: &Ring, taken: u64) -> Result<Option<Block>, MemoryError> {
    let Ok(mut held) = ring.held.try_lock() else { return Ok(None) };
    while let Some((position, block)) = held.pop_first() {
        let record = ring.arena().record(block)?;
        let is_it = record.state() == Some(BlockState::Held) && record.position() == position && position < taken;
        // A forked copy of a consumer has taken nothing.
        if is_it && record.owner() == Identity::own() {
            return Ok(Some(block));
        }
    }
    Ok(None)
}

fn wake_joiners(ring: &Ring) {
    crate::prim::fence(Ordering::SeqCst);
    if unfinished(ring) == 0 {
        ring.layout().unfinished.wake_all();
    }
}

/// The consumers' lock, whatever signals come.
fn lock_for_sure(ring: &Ring) -> Result<Guard<'_>, MemoryError> {
    loop {
        match ring.lock_get::<GetError>(Deadline::NEVER) {
            Ok(guard) => return Ok(guard),
            Err(GetError::Memory(error)) => return Err(error),
            Err(_) => {} // a signal
        }
    }
}

/// Counts the message in `block` as done and frees it. Under the consumers' lock.
fn retire(ring: &Ring, block: Block) -> Result<(), MemoryError> {
    let tasks = tasks(ring);
    tasks.target.store(tasks.done.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    tasks.retiring.store(block.0.wrapping_add(1), Ordering::Release);
    crash::point(Step::DoneRecorded);
    finish_retiring(ring, block)
}

/// Can be done any number of times.
fn finish_retiring(ring: &Ring, block: Block) -> Result<(), MemoryError> {
    let tasks = tasks(ring);
    tasks.done.store(tasks.target.load(Ordering::Relaxed), Ordering::Release);
    crash::point(Step::DoneCounted);
    // Held: nobody has freed it yet. Only who has this lock makes a block held.
    if ring.arena().record(block)?.state() == Some(BlockState::Held) {
        ring.arena().free(block)?;
    }
    tasks.retiring.store(0, Ordering::Release);
    Ok(())
}

/// Finishes what a dead owner of the consumers' lock had begun.
pub(super) fn repair(ring: &Ring) -> Result<(), MemoryError> {
    if let Some(block) = tasks(ring).retiring.load(Ordering::Acquire).checked_sub(1) {
        finish_retiring(ring, Block(block))?;
    }
    count_returned(ring)
}

fn count_returned(ring: &Ring) -> Result<(), MemoryError> {
    let arena = ring.arena();
    let mut returned = 0;
    for block in arena.blocks() {
        returned += u32::from(arena.record(block)?.state() == Some(BlockState::Returned));
    }
    tasks(ring).returned.store(returned, Ordering::Release);
    Ok(())
}

/// The oldest message of a dead consumer, now of this process. Under the consumers' lock.
#[cold]
pub(super) fn take_returned(ring: &Ring) -> Result<Option<Block>, MemoryError> {
    let returned = &tasks(ring).returned;
    let count = returned.load(Ordering::Relaxed);
    if count == 0 {
        return Ok(None);
    }
    let Some(block) = oldest(ring, BlockState::Returned, |_, _| true)? else { return Err(MemoryError::Corrupt) };
    let record = ring.arena().record(block)?;
    record.set_owner(Identity::own());
    record.set_state(BlockState::Held);
    ring.note_held(record.position(), block);
    crash::point(Step::ReturnMarked);
    returned.store(count - 1, Ordering::Release);
    Ok(Some(block))
}

/// Takes back what dead processes held: blocks that they were filling or reading, and messages that they had taken. Gives those
/// that hold something and live.
pub(super) fn reclaim(ring: &Ring) -> Result<Vec<Identity>, MemoryError> {
    let arena = ring.arena();
    let is_held = |state| matches!(state, Some(BlockState::Owned | BlockState::Held));
    let mut owners = Vec::new();
    for block in arena.blocks() {
        let record = arena.record(block)?;
        let owner = record.owner();
        if is_held(record.state()) && owner != Identity::own() && !owners.contains(&owner) {
            owners.push(owner);
        }
    }
    let (owners, living): (Vec<_>, Vec<_>) = owners.into_iter().partition(|owner| owner.is_dead());
    if owners.is_empty() {
        return Ok(living);
    }
    if !arena.is_available() {
        return Ok(living); // somebody was stopped in there: the next one tries again
    }
    // Under this lock nobody else takes blocks from the dead, so what belongs to one stays as it is. Whoever reaps comes
    // here, and must not wait for ever for a process that was stopped holding it: the next one tries again.
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
            (Some(BlockState::Held), _) if record.position() >= taken => {} // it died before it took it
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
