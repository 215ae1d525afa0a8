//! Processes: starting, waiting, ending. `docs/design/start.md` tells the protocol.
//!
//! | file | what it does |
//! |---|---|
//! | `host` | programs that load the engine as a library |
//! | `settings` | what a process is to be: name, daemon, streams, environment |
//! | `start` | the three start methods |
//! | `order` | what a new process is told, and its wire format |
//! | `forkserver` | the fork server as its program sees it |
//! | `zygote` | the fork server's own side |
//! | `enter` | the child's side: set up, run, report |
//! | `outcome` | how a process says how it ended |
//! | `child` | the parent's handle |
//! | `state` | what a process knows of its children |
//! | `supervisor` | the permanent thread that executes and reaps |
//! | `current` | who this process is |
//! | `exit` | daemons and joins at the end of the program |
//! | `panic` | panics as values |

mod child;
mod current;
mod enter;
mod exit;
mod forkserver;
mod host;
mod order;
pub(crate) mod outcome;
pub(crate) mod panic;
mod settings;
mod start;
mod state;
mod supervisor;
pub(crate) use supervisor::watch_death;
mod threads;
mod zygote;

pub use crate::sys::bootstrap::init;
pub use crate::sys::function::{Binary, Callable, Function, Handler};
pub use crate::sys::image::FunctionError;
pub use crate::sys::status::{ExitStatus, Signal};
pub use child::{Child, Ending};
pub use current::{Current, Parent, current};
pub use exit::{leave, set_daemon_grace};
pub use host::{
    AroundFork, AroundIdle, OnInterrupt, begin_wait, has_environment_changed, set_around_fork, set_around_idle,
    set_at_forkserver_end, set_on_interrupt, set_program,
};
pub use outcome::Outcome;
pub use panic::Panic;
pub use settings::{EnvChange, ForkWithThreads, Settings, StartMethod, Stdio};
pub use start::{
    Job, StartError, active_children, end_forkserver, forkserver_pid, is_forkserver_refused, set_executable,
    set_preload, start, start_forkserver, wait,
};

pub(crate) use crate::sys::function::Resolved as ResolvedFunction;
pub(crate) use enter::run as run_child;
pub(crate) use forkserver::GiveUp;
pub(crate) use host::{idle, is_interrupted};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use order::StartRequest;
pub(crate) use start::start_worker;
pub(crate) use state::{ProcessState, lock};
pub(crate) use threads::call_user;
pub(crate) use zygote::serve as serve_zygote;
