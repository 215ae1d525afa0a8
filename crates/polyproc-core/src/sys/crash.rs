//! Crash points: a process kills or stops itself at a marked step, so that tests can check the state that it leaves. Only with
//! the feature `crash-points`.

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

    static STEP: AtomicU32 = AtomicU32::new(u32::MAX);
    static PASSES: AtomicU32 = AtomicU32::new(0);
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
