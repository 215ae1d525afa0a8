//! Processes: starting, waiting, ending. `docs/design/start.md` describes the protocol.
//!
//! The faces use this room for processes, a pool for its workers (`start_group`), queues and locks for the deaths of other
//! processes (`watch_death`). A process is the parent of all that it starts, and reaps them; each has one channel to its parent
//! and a pidfd.
//!
//! | file | purpose |
//! |---|---|
//! | `start` | the three start methods |
//! | `settings`, `stdio`, `environment` | the settings of a new process, and their resolution |
//! | `launch` | the steps that start methods share |
//! | `forkserver`, `server`, `give_up` | the program's side of the fork server |
//! | `order` | the order that a new process receives, and its wire format |
//! | `child` | the parent's handle, and the table of children |
//! | `supervisor` | the permanent thread that executes programs and reaps children |
//! | `boot`, `role` | an executed child runs its work before `main` |
//! | `zygote` | the fork server's side |
//! | `enter` | the child's side: set up, run, report |
//! | `outcome`, `tag` | the final report of a process |
//! | `panic` | panics as values |
//! | `exit` | ends and joins children at the end of the program |
//! | `wait` | waiting for any of several descriptors |
//! | `host` | hooks of programs that load the engine as a library |
//! | `current`, `state`, `threads` | the identity of this process, its state, the engine's own threads |
//! | `error` | why a process was not started |

mod boot;
mod child;
mod current;
mod enter;
mod environment;
mod error;
mod exit;
mod forkserver;
mod give_up;
mod host;
mod launch;
mod order;
mod outcome;
pub(crate) mod panic;
mod role;
mod server;
mod settings;
mod start;
mod state;
mod stdio;
mod supervisor;
pub(crate) mod tag;
mod threads;
mod wait;
mod zygote;

pub use crate::function::{Binary, Callable, Function, Handler};
pub use crate::sys::image::FunctionError;
pub use crate::sys::status::{ExitStatus, Signal};
pub use boot::init;
pub use child::{Child, Ending, active_children};
pub use current::{Current, Parent, current};
pub use error::StartError;
pub use exit::{leave, set_daemon_grace};
pub use forkserver::{end_forkserver, forkserver_pid, is_forkserver_refused, set_preload, start_forkserver};
pub use host::{
    AroundFork, AroundIdle, OnInterrupt, begin_wait, has_environment_changed, set_around_fork, set_around_idle,
    set_at_forkserver_end, set_on_interrupt, set_program,
};
pub use launch::set_executable;
pub use outcome::Outcome;
pub use panic::Panic;
pub use settings::{EnvChange, ForkWithThreads, Settings, StartMethod, Stdio};
pub use start::{Job, start};
pub use wait::wait;

pub(crate) use crate::function::Resolved as ResolvedFunction;
pub(crate) use enter::end;
pub(crate) use give_up::GiveUp;
pub(crate) use host::{idle, is_interrupted};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use order::StartRequest;
pub(crate) use start::start_group;
pub(crate) use state::lock;
pub(crate) use supervisor::watch_death;
pub(crate) use threads::{call_user, own_threads};
