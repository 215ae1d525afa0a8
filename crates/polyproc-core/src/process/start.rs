//! The three start methods. `docs/design/start.md` lists the state that a death at each step leaves.

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

/// The work of a new process.
pub enum Job<'a> {
    /// A named function and its argument.
    Call(Function, Payload),
    /// A closure, for [`StartMethod::Fork`] only.
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

/// Starts a process that runs `job`.
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

/// Starts the leader of a process group, which ends with it: a pool's worker, named after `kind` unless `settings` name it.
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

/// Returns what the next child knows of itself.
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
