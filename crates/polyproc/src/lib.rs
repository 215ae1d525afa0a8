//! Python's `multiprocessing`, rebuilt in Rust: processes as easy to use as threads, typed, and safe when any of them dies.
//!
//! ```
//! use polyproc::Process;
//!
//! let child = Process::new(|(a, b): (u64, u64)| a * b, (6, 7)).start()?;
//! assert_eq!(child.join()?, 42);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! There are no macros, no registry and no set-up. Functions are `fn` pointers, which a child finds by their location in the
//! program. A constructor takes control of a child before `main` runs. A production program may prefer an explicit call: build
//! with `default-features = false` and make [`init`] the first line of `main`.
//!
//! | Python | here |
//! |---|---|
//! | `Process(target=f, args=a)` | [`Process::new`]`(f, a)` |
//! | subclass with `run()` | [`Run`], [`Process::run`] |
//! | `p.start()`, `p.join()` | [`Process::start`], [`Child::join`], which returns the result |
//! | `p.exitcode` | [`Child::exit_status`], [`ExitStatus::exit_code`] |
//! | `p.sentinel`, `connection.wait` | [`Child`] as a descriptor, [`wait`] |
//! | `current_process()`, `parent_process()`, `active_children()` | the same names |
//! | `set_forkserver_preload` | [`set_forkserver_preload`] |
//! | `Pool(n)`, `apply`, `map`, `imap`, `starmap_async` and the rest | [`Pool`], with methods of the same names |
//! | `AsyncResult` | [`AsyncResult`], also a future |
//! | `Pool(initializer=f, initargs=a)` | [`Pool::builder`], [`PoolBuilder::initializer`] |
//! | `Queue(n)`, `JoinableQueue(n)`, `SimpleQueue()` | [`Queue::new`]`(n)`, [`JoinableQueue`], [`SimpleQueue`] |
//! | `Lock()`, `RLock()`, `Semaphore(n)`, `Condition()`, `Event()`, `Barrier(n)` | [`Lock`] and types of the same names |
//! | `Pipe()`, `Pipe(duplex=False)` | [`pipe`], [`simplex_pipe`] |
//! | `connection.Listener`, `Client` | [`Listener`], [`connect`] |
//! | `shared_memory.SharedMemory` | [`SharedMemory`]; [`SharedBytes`], which are immutable |
//! | `map(f, xs, chunksize=2)` | `pool.`[`chunksize`](Pool::chunksize)`(2).map(f, xs)` |
//!
//! # What happens when a process dies
//!
//! [`Child::join`] returns a [`JoinError`] that says whether the child panicked, was killed or exited early. When the program
//! ends, it sends `SIGTERM` to daemonic processes and waits for the others. When the program is killed, the kernel kills its
//! daemonic processes, its pool workers and all processes that they started.

#![warn(clippy::print_stdout)]

mod codec;
mod connection;
mod current;
mod forward;
#[cfg(feature = "log")]
mod logging;
mod memory;
mod pool;
mod process;
mod progress;
mod queue;
mod sync;
#[cfg(feature = "tracing")]
mod traces;

pub use codec::{CodecError, Transfer, TransferError};
pub use connection::{
    Address, AuthError, ConnectError, Connection, Listener, Receiver, RecvError, SendError, Sender, connect, pipe,
    simplex_pipe,
};
pub use current::{
    ActiveChild, CurrentProcess, ParentProcess, active_children, cpu_count, current_process, parent_process,
    set_daemon_grace,
};
pub use memory::{OutOfBounds, SharedBytes, SharedBytesMut, SharedMemory};
pub use polyproc_core::pool::{Ended, PoolError, PoolEvent};
pub use polyproc_core::process::{
    ExitStatus, ForkWithThreads, FunctionError, Panic, Signal, StartError, StartMethod, Stdio, init, set_executable,
    start_forkserver,
};
pub use polyproc_core::queue::{OnConsumerDeath, TaskDoneError};
pub use polyproc_core::{MemoryBudget, MemoryError, OutOfSpace, WaitError, memory_budget, set_memory_budget};
pub use pool::{
    AsyncResult, CallOptions, Failure, Imap, ImapUnordered, NoWorkers, Pool, PoolBuilder, PoolStats, StillOpen,
    TaskError, WithContext, WithState, WorkerStats,
};
pub use process::{Child, Death, JoinError, Process, Run, set_forkserver_preload, wait};
pub use progress::Progress;
pub use queue::{GetError, Iter, JoinableQueue, PutError, Queue, SimpleQueue};
pub use sync::{
    Barrier, BarrierError, BoundedSemaphore, Condition, Event, Lock, LockError, LockGuard, OverRelease, RLock,
    RLockGuard, ReleaseError, Semaphore, TooManyWaiters, Waited,
};
