//! The three start methods. `docs/design/start.md` lists the state that a death at each step leaves.
//!
//! The faces call [`start`], a pool calls [`start_group`] for its workers. Both give the new process its identity, then take
//! one of two ways:
//!
//! - [`start_program`], for `forkserver` and `spawn`: the process is created elsewhere, by the zygote or the supervisor thread,
//!   and learns everything from an [order](super::order).
//! - [`fork`]: the calling thread copies this process, and the child continues in [`enter::run_forked`] on the copied values.
//!
//! A thread holds [`ProcessState::starting`] from the time when it reads the environment until the child exists. This
//! serialises the starts of a process, and ensures that no thread of the engine holds the lock of std's environment at a fork.
//! The fork server's mutex is acquired after it; the supervisor's after both. A start refuses to begin once
//! [`ProcessState::exiting`] is set. One that has begun completes, and the exit function joins or ends its child
//! ([`exit`](super::exit)).
//!
//! A process that learns its work from an order has not begun it when a start fails. After `fork` the child runs at once: if
//! the parent then gets no pidfd, it kills the child, in which the job may have begun.
//!
//! Settings cover environment, directory and streams; bounds and credentials follow the parent by themselves. All else that the
//! kernel lets a child inherit, such as namespaces, root directory or control group, comes from the process that creates it:
//! this process by `spawn` and `fork`, the zygote by `forkserver`, as it was when the zygote was executed.

use std::fmt;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::child::ProcessInfo;
use super::enter::{self, Closure, ForkedOrder};
use super::environment::{current_dir, delta, environment};
use super::error::{StartError, os};
use super::forkserver::{has_preload, lock_forkserver};
use super::give_up::{GiveUp, lock_unless};
use super::launch::{execute, known, send_order};
use super::order::StartRequest;
use super::role::Role;
use super::server::ForkRequest;
use super::state::{ProcessState, lock};
use super::stdio::streams;
use super::supervisor::Supervisor;
use super::threads::own_threads;
use super::{Child, Current, Parent, Settings, StartMethod, Stdio, current, host};
use crate::conn::Channel;
use crate::function::Function;
use crate::prim::Ordering;
use crate::shm::budget;
use crate::sys::bounds::Bounds;
use crate::sys::clone::{self, Copied};
use crate::sys::exit::exit_now;
use crate::sys::parent_death::ParentDeathPipe;
use crate::wire::Payload;

/// The work of a new process: what the faces pass to [`start`]. Consumed by it; a closure runs in the child only.
pub enum Job<'a> {
    /// A named function and its argument. Its result, or its error in the encoding of the face, becomes the process's
    /// [`Outcome`](super::Outcome).
    Call(Function, Payload),
    /// A closure, for [`StartMethod::Fork`] only: it runs on the copy of this process's memory, with the values that it
    /// captured, and may borrow from the caller. `Ok` and `Err` are results in the encoding of the face.
    Closure(Closure<'a>),
}

impl fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(function, input) => f.debug_tuple("Call").field(function).field(input).finish(),
            Self::Closure(_) => f.write_str("Closure(..)"),
        }
    }
}

/// Starts a process that runs `job`. Returns when the process exists and has its order; the job may not have begun yet. By
/// `forkserver`, the first start waits for the fork server and its preload function; a program may give up that wait (see
/// [`set_on_interrupt`](super::set_on_interrupt)).
///
/// The descriptors in `settings` and `job` are copied into the process; this process's own are closed on return. By
/// `forkserver` and `spawn` the process gets no other descriptors of this one, by `fork` a copy of all.
///
/// The process continues to run when the [`Child`] is dropped. At its end, this process joins it, or ends it if it is daemonic.
///
/// # Errors
/// [`StartError`]. No process was started then.
pub fn start(settings: Settings, job: Job<'_>) -> Result<Child, StartError> {
    let process = next_process(&settings, "Process");
    match (settings.method, job) {
        (StartMethod::Fork, Job::Closure(closure)) => fork(process, false, settings, closure),
        (StartMethod::Fork, Job::Call(function, input)) => {
            let function = function.resolve()?;
            fork(process, false, settings, Box::new(move || function.call_once(input)))
        }
        (_, Job::Closure(_)) => Err(StartError::ClosureNeedsFork),
        (_, Job::Call(function, input)) => {
            start_program(process, false, settings, function, &input, &host::is_interrupted)
        }
    }
}

/// Starts the leader of a process group, which ends with it: a pool's worker, named after `kind` unless `settings` name it. The
/// leader leaves `SIGINT` to this process; its group has the processes that it starts, unless they leave it. By `fork`, the
/// function is resolved here, before the copy. `give_up` ends a wait for the fork server or for another thread's start; by
/// `fork` it is not called.
///
/// # Errors
/// As [`start`]; [`StartError::Interrupted`] when `give_up` returned true.
pub(crate) fn start_group(
    kind: &str,
    settings: Settings,
    function: Function,
    input: Payload,
    give_up: GiveUp<'_>,
) -> Result<Child, StartError> {
    let process = next_process(&settings, kind);
    match settings.method {
        StartMethod::Fork => {
            let function = function.resolve()?;
            fork(process, true, settings, Box::new(move || function.call_once(input)))
        }
        _ => start_program(process, true, settings, function, &input, give_up),
    }
}

/// Returns the identity of the next child, and takes a number for it. Numbers of failed starts are not used again. Without a
/// name in the settings it is `kind`, then the numbers, as in `Process-1:2` for the second child of the first. The child is
/// bound to this process's life if it is daemonic, or if this process is bound itself: the descendants of a daemon end with it.
fn next_process(settings: &Settings, kind: &str) -> Current {
    let me = current();
    let mut identity = me.identity;
    identity.push(ProcessState::current().next_number());
    let numbers: Vec<_> = identity.iter().map(ToString::to_string).collect();
    Current {
        name: settings.name.clone().unwrap_or_else(|| format!("{kind}-{}", numbers.join(":"))),
        identity,
        daemon: settings.daemon,
        bound: settings.daemon || me.bound,
        parent: Some(Parent { name: me.name, pid: std::process::id() }),
    }
}

/// Starts a process by `forkserver` or `spawn`. `leads_group` makes the process a leader as for [`start_group`].
///
/// 1. Waits for other starts, then resolves environment, directory and streams, and reads the bounds of this thread.
/// 2. Creates what the order carries: the program's ledger, and the parent-death pipe for a bound process.
/// 3. By `forkserver`, lets the fork server create the process; [`Server::start`](super::server::Server::start) sends the
///    order.
/// 4. By `spawn`, or if the system refuses the fork server and there is no preload function, executes the program. Its
///    environment comes by `execve(2)` and most bounds by inheritance, so the order has the directory and the bounds of the
///    thread.
/// 5. [Assigns](Child::assign) the child's properties. Until then it is invisible to the user, and the exit function kills it
///    instead of joining it.
///
/// # Errors
/// - [`StartError::Exiting`], [`StartError::Env`], [`StartError::CurrentDir`], [`StartError::NotInitialised`].
/// - [`StartError::Interrupted`] when `give_up` returned true; [`StartError::Preload`] and [`StartError::Forkserver`] from the
///   fork server.
/// - [`StartError::Os`] when a system call failed. A process that was created is killed, or reads the end of file in place of
///   its order.
fn start_program(
    process: Current,
    leads_group: bool,
    settings: Settings,
    function: Function,
    input: &Payload,
    give_up: GiveUp<'_>,
) -> Result<Child, StartError> {
    let state = ProcessState::current();
    if state.exiting.load(Ordering::Relaxed) {
        return Err(StartError::Exiting);
    }
    let _starting = lock_unless(&state.starting, give_up)?;
    let env = environment(&settings.env)?;
    let current_dir = current_dir(settings.current_dir.as_deref())?;
    let (stdio, captured) = streams(settings.stdio)?;
    let stdio = [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()];
    let bounds = Bounds::own();
    let mut order =
        StartRequest { process, env: Vec::new(), current_dir: None, bounds: Bounds::default(), leads_group, function };
    let _ = budget::descriptor(); // created here, since the order carries it
    let parent_death = if order.process.bound {
        Some(state.parent_death_pipe().map_err(os("creating a pipe"))?.as_fd())
    } else {
        None
    };

    let mut child = None;
    if settings.method == StartMethod::Forkserver {
        let current_dir = current_dir.as_ref();
        let request = ForkRequest {
            order: &mut order,
            env: &env,
            current_dir,
            bounds: &bounds,
            stdio: &stdio,
            parent_death,
            input,
        };
        child = lock_forkserver(give_up)?.start(request, give_up)?;
        if child.is_none() && has_preload() {
            let why = "the system does not let the fork server create processes (clone3 and clone are refused, or /proc is not \
                       mounted), and no other start method can preload: allow one of them, or start without preloading";
            return Err(StartError::Preload { why: why.to_owned() });
        }
    }
    let child = match child {
        Some(child) => child,
        // Where the system refuses the fork server, the program is executed, which is only slower.
        None => {
            let (channel, theirs) = Channel::pair().map_err(os("creating a channel"))?;
            order.env = Vec::new();
            order.current_dir = current_dir.map(Into::into);
            order.bounds = bounds.of_thread(); // the supervisor thread executes it, and may have others
            let child = execute(Role::Process, env, channel, vec![theirs])?;
            // If it has been killed already, a join reports that.
            send_order(&child, &order, &stdio, parent_death, input)?;
            child
        }
    };
    child.assign(ProcessInfo { name: order.process.name, daemon: order.process.daemon, leads_group, captured });
    Ok(child)
}

/// Copies this process by libc's `fork`, in the calling thread. Returns in the parent only: the child runs `job` and exits.
///
/// 1. Starts the supervisor, then counts threads: refused while there are threads of the user, unless the settings contain the
///    user's promise.
/// 2. Excludes user code from the engine's own threads until the child exists; refused while some runs, with the same
///    exception.
/// 3. Waits for other starts, resolves the settings, creates pipe, ledger and channel, so that their errors are errors of the
///    start.
/// 4. Flushes and locks std's standard output, and forks through the program's hook ([`host`]).
/// 5. The child continues in [`enter::run_forked`]. It never drops the parent's guards and handles, as it does not return, and
///    its engine state is new ([`PerProcess`](crate::sys::per_process::PerProcess)).
/// 6. The parent opens the child's pidfd, registers it and [assigns](Child::assign) its properties.
///
/// The first bond of [`parent_death`](crate::sys::parent_death) would end the child with the calling thread, so a bound child
/// has only the parent-death pipe. A child that is not bound closes its copies of that pipe, if it exists.
///
/// # Errors
/// [`StartError::Threads`], [`StartError::Exiting`], [`StartError::Env`], [`StartError::CurrentDir`], and [`StartError::Os`]
/// when a system call failed, or when a child must be bound and `/proc` is not mounted.
fn fork(process: Current, leads_group: bool, settings: Settings, job: Closure<'_>) -> Result<Child, StartError> {
    let state = ProcessState::current();
    if state.exiting.load(Ordering::Relaxed) {
        return Err(StartError::Exiting);
    }
    Supervisor::get()?; // before threads are counted, so that both counts include it
    if settings.fork_with_threads.is_none() {
        let own = own_threads().count();
        let threads = clone::settled_thread_count(own + 1).map_err(os("counting threads in /proc/self/task"))?;
        let count = threads.saturating_sub(own);
        if count > 1 {
            return Err(StartError::Threads { count });
        }
    }
    // User code (callbacks, wakers, loggers) may run on the engine's threads, and hold any lock.
    let without_user_code = own_threads().without_user_code();
    if settings.fork_with_threads.is_none() && without_user_code.is_none() {
        return Err(StartError::Threads { count: 2 });
    }
    let _starting = lock(&state.starting);
    let env = delta(&std::env::vars_os().collect::<Vec<_>>(), &environment(&settings.env)?);
    let current_dir = current_dir(settings.current_dir.as_deref())?;
    let inherited = settings.stdio.each_ref().map(|stdio| matches!(stdio, Stdio::Inherit));
    let (stdio, captured) = streams(settings.stdio)?;
    let parent_death = match process.bound {
        true => Some(
            state
                .parent_death_pipe()
                .and_then(ParentDeathPipe::check)
                .map_err(os("binding a process to the life of this process"))?,
        ),
        false => state.existing_parent_death_pipe(),
    };
    let _ = budget::descriptor(); // created before the fork, so that both share it
    let (channel, theirs) = Channel::pair().map_err(os("creating a channel"))?;
    // Flushed, so that the child does not write buffered output a second time. Locked during the fork, so that no other
    // thread holds the lock then, and the child can flush its own output.
    let mut stdout = io::stdout().lock();
    let _ = stdout.flush();
    let copied = host::copy(clone::fork);
    drop(stdout);
    match copied.map_err(os("forking"))? {
        Copied::Child => {
            drop(channel);
            let mut inherited = inherited.into_iter();
            let stdio = stdio.map(|stream| if inherited.next() == Some(true) { None } else { stream.into_owned() });
            let current_dir = current_dir.as_deref().map(Path::as_os_str);
            let order = ForkedOrder { process, leads_group, parent_death, env, current_dir, stdio, job };
            // A panic of the engine must not unwind into the caller's frames, which belong to the parent.
            let _ = catch_unwind(AssertUnwindSafe(|| -> () { enter::run_forked(order, theirs.into()) }));
            exit_now(70) // EX_SOFTWARE
        }
        Copied::Parent(pid) => {
            drop(theirs); // its place in the descriptor table may be needed for the process descriptor
            let child = known(pid, channel, StartMethod::Fork)?;
            child.assign(ProcessInfo { name: process.name, daemon: process.daemon, leads_group, captured });
            Ok(child)
        }
    }
}
