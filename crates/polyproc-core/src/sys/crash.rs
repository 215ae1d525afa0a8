//! Crash points: a process kills or stops itself at a marked step, so that tests can check the state that it leaves. Only with
//! the feature `crash-points`; without it, [`point`] is empty and no state exists.
//!
//! A test arms one step in a process that it may lose (`crate::crash`), lets it work, and then checks from another process that
//! nothing is lost, doubled or blocked: `crates/polyproc/tests` (`queue_crash`, `pool_failures`, `pool_recovery`). A step is
//! marked by `crash::point(Step::...)` directly after the action. `docs/design/ring.md`, `segment.md` and `pool.md` say which
//! state each death leaves. Steps inside `robust/` are not marked: `docs/design/instructions.md` describes the test of each
//! instruction.
//!
//! | step | action just completed | file |
//! |---|---|---|
//! | `GrownUncounted` | a place for a block was found, and the file grown if necessary; `used` is not stored | `shm/arena.rs` |
//! | `AllocateUnclaimed` | length and owner of a block written, its state not | `shm/arena.rs` |
//! | `AllocateListed` | state `Owned`; the block is still in its free list, or its new record is not counted | `shm/arena.rs` |
//! | `FreedUnlisted` | state `Free`; the block is in no list | `shm/arena.rs` |
//! | `PutFilled` | the block of a message filled; the queue is not locked | `queue/handle.rs` |
//! | `PutLocked` | producers' lock acquired | `queue/put.rs` |
//! | `PutLinked` | a new chunk allocated and `Queued`; no entry refers to it | `queue/put.rs` |
//! | `PutWritten` | entry written, not committed | `queue/put.rs` |
//! | `PutCommitted` | entry committed; the lock is held | `queue/put.rs` |
//! | `PutUnlocked` | lock released; no consumer is woken | `queue/put.rs` |
//! | `GetLocked` | consumers' lock acquired | `queue/get.rs` |
//! | `GetClaimed` | message copied and its block claimed, not committed | `queue/get.rs` |
//! | `GetCommitted` | get committed; an old chunk is not freed | `queue/get.rs` |
//! | `GetFreed` | old chunk freed; descriptors are still in the bell | `queue/get.rs` |
//! | `GetUnlocked` | lock released; no producer is woken | `queue/get.rs` |
//! | `DoneRecorded` | target count and block of a finished message recorded, not counted | `queue/task.rs` |
//! | `DoneCounted` | message counted as done; its block is not freed | `queue/task.rs` |
//! | `ReturnMarked` | a returned message marked as held by its next consumer, still counted as returned | `queue/task.rs` |
//! | `TaskClaimed` | task claimed from the table | `pool/worker/mod.rs` |
//! | `TaskDeclared` | item declared as running in the worker's state | `pool/worker/mod.rs` |
//! | `TaskBegun` | record *begin* written | `pool/worker/mod.rs` |
//! | `ItemRun` | function of an item returned; no record of its result | `pool/worker/mod.rs` |
//! | `ItemAnswered` | result of an item written | `pool/worker/mod.rs` |
//! | `TaskAnswered` | all results written; the worker is declared idle | `pool/worker/mod.rs` |
//! | `ParentTold` | doorbell of the parent rung, or found unnecessary | `pool/worker/mod.rs` |

macro_rules! steps {
    ($($step:ident,)*) => {
        /// A step of a protocol at which a process can kill or stop itself, named after the action completed just before it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        #[cfg_attr(feature = "crash-points", expect(missing_docs, reason = "the code that marks it tells more"))]
        #[cfg_attr(not(feature = "crash-points"), expect(unreachable_pub, reason = "public for tests only"))]
        pub enum Step { $($step,)* }

        /// All steps, for tests that try each of them.
        #[cfg(feature = "crash-points")]
        pub const STEPS: &[Step] = &[$(Step::$step,)*];
    };
}
steps! {
    GrownUncounted,
    AllocateUnclaimed,
    AllocateListed,
    FreedUnlisted,
    PutFilled,
    PutLocked,
    PutLinked,
    PutWritten,
    PutCommitted,
    PutUnlocked,
    GetLocked,
    GetClaimed,
    GetCommitted,
    GetFreed,
    GetUnlocked,
    DoneRecorded,
    DoneCounted,
    ReturnMarked,
    TaskClaimed,
    TaskDeclared,
    TaskBegun,
    ItemRun,
    ItemAnswered,
    TaskAnswered,
    ParentTold,
}

#[cfg(feature = "crash-points")]
mod armed {
    use rustix::process::Signal;

    use super::Step;
    use crate::prim::{AtomicBool, AtomicU32, Ordering};

    /// The armed step, as a number; `u32::MAX` for none. Copies of the process inherit it.
    static STEP: AtomicU32 = AtomicU32::new(u32::MAX);
    /// The remaining passes of the step. The last of them ends or stops the process; later ones do nothing.
    static PASSES: AtomicU32 = AtomicU32::new(0);
    /// True to stop the process rather than kill it.
    static FREEZES: AtomicBool = AtomicBool::new(false);

    /// Makes this process kill itself with `SIGKILL` when it reaches `step` for the `times`th time from now.
    pub fn arm(step: Step, times: u32) {
        FREEZES.store(false, Ordering::Relaxed);
        PASSES.store(times, Ordering::Relaxed);
        STEP.store(step as u32, Ordering::Relaxed);
    }

    /// Makes this process stop itself with `SIGSTOP` when it reaches `step` for the `times`th time from now.
    pub fn freeze(step: Step, times: u32) {
        arm(step, times);
        FREEZES.store(true, Ordering::Relaxed);
    }

    /// Ends or stops this process if `step` is armed and is reached for the last of its times.
    pub(crate) fn point(step: Step) {
        if STEP.load(Ordering::Relaxed) == step as u32 && PASSES.fetch_sub(1, Ordering::Relaxed) == 1 {
            let signal = if FREEZES.load(Ordering::Relaxed) { Signal::STOP } else { Signal::KILL };
            let sent = rustix::process::kill_process(rustix::process::getpid(), signal);
            assert!(signal == Signal::STOP, "SIGKILL to oneself does not return: {sent:?}");
        }
    }
}
#[cfg(feature = "crash-points")]
pub(crate) use armed::point;
#[cfg(feature = "crash-points")]
pub use armed::{arm, freeze};

/// Does nothing in this build.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn point(_: Step) {}
