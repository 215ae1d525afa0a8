//! Why a task has no result.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use polyproc_core::pool::{Ended, NoWorkersReason, TaskEnd};
use polyproc_core::process::{FunctionError, Panic, StartError};

use crate::codec::{self, CodecError};
use crate::process::Death;

/// Why a task has no result.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The function panicked. The worker continues.
    #[error("the task {0}")]
    Panicked(Panic),
    /// The worker died while it ran the task: a signal killed it, or the task called [`std::process::exit`]. The worker was
    /// replaced.
    #[error("the worker was lost while it ran the task: {0}")]
    WorkerLost(Death),
    /// The task exceeded its time limit ([`timeout`](crate::CallOptions::timeout),
    /// [`call_timeout`](crate::CallOptions::call_timeout)). A worker that ran it was killed and replaced.
    #[error("the task exceeded its time limit")]
    TimedOut,
    /// The worker exceeded its memory limit ([`memory_limit`](crate::PoolBuilder::memory_limit)) while it ran the task, and was
    /// killed and replaced.
    #[error("the worker exceeded its memory limit while it ran the task, and was killed")]
    OutOfMemory,
    /// The task was cancelled.
    #[error("the task was cancelled")]
    Cancelled,
    /// The task did not run, or its result could not be passed on; the text gives the reason.
    #[error("the task could not be run: {0}")]
    Refused(String),
    /// The argument or the result could not be encoded or decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The function has no name that a worker can find.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The pool was closed or terminated before the task ended.
    #[error("the pool was closed or terminated before the task ended")]
    Terminated,
    /// The pool has no workers, and cannot start any that would run the task.
    #[error(transparent)]
    NoWorkers(NoWorkers),
}

/// Why a pool has no workers.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum NoWorkers {
    /// Workers could not be started.
    #[error("the pool has no workers: none could be started")]
    NotStarted(#[source] Arc<StartError>),
    /// Workers died before they took a task. This is the death of the last one.
    #[error("the pool has no workers: workers die before they take a task: {0}")]
    Died(Death),
    /// The initializer panicked.
    #[error("the pool has no workers: the initializer {0}")]
    Panicked(Panic),
    /// The initializer's argument could not be decoded.
    #[error("the pool has no workers: the initializer could not be called")]
    Codec(#[source] CodecError),
    /// The initializer did not run; the text gives the reason.
    #[error("the pool has no workers: the initializer could not be called: {0}")]
    Refused(String),
}

impl From<Ended> for Death {
    fn from(ended: Ended) -> Self {
        Self { status: ended.status, stack_overflow: ended.stack_overflow }
    }
}

impl From<TaskEnd> for Failure {
    fn from(end: TaskEnd) -> Self {
        match end {
            TaskEnd::Raised(bytes) => Self::Codec(codec::raised(&bytes)),
            TaskEnd::Panicked(panic) => Self::Panicked(panic),
            TaskEnd::Refused(why) => Self::Refused(why),
            TaskEnd::WorkerLost(ended) => Self::WorkerLost(ended.into()),
            TaskEnd::TimedOut => Self::TimedOut,
            TaskEnd::OutOfMemory => Self::OutOfMemory,
            TaskEnd::Cancelled => Self::Cancelled,
            TaskEnd::Terminated => Self::Terminated,
            TaskEnd::NoWorkers(why) => Self::NoWorkers(match why {
                NoWorkersReason::Start(error) => NoWorkers::NotStarted(error),
                NoWorkersReason::Died(ended) => NoWorkers::Died(ended.into()),
                NoWorkersReason::InitializerPanicked(panic) => NoWorkers::Panicked(panic),
                NoWorkersReason::InitializerRaised(bytes) => NoWorkers::Codec(codec::raised(&bytes)),
                NoWorkersReason::InitializerRefused(why) => NoWorkers::Refused(why),
            }),
        }
    }
}

/// A task that has no result: its index, and the reason.
///
/// Its text contains that of the reason, so its [`source`](Error::source) is the source of the reason.
#[derive(Debug, Clone)]
pub struct TaskError {
    /// The position of the argument among the items of the call, from 0.
    pub index: usize,
    /// The reason.
    pub failure: Failure,
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "item {}: {}", self.index, self.failure)
    }
}

impl Error for TaskError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.failure.source()
    }
}
