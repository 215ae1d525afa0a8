//! The three start methods. `docs/design/start.md` says what a death at each step leaves behind.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use super::child::Facts;
use super::enter::Forked;
use super::forkserver::{ForkRequest, GiveUp, lock_unless, tell};
use super::order::{EnvDelta, StartRequest, Work};
use super::state::lock;
use super::{
    Child, Current, EnvChange, Function, FunctionError, Parent, ProcessState, Settings, Signal, StartMethod, Stdio,
    current, enter, host,
};
use crate::conn::Channel;
use crate::deadline::Deadline;
use crate::frame::Payload;
use crate::prim::Ordering;
use crate::shm::{budget, registry};
use crate::sys::bootstrap::{self, Role};
use crate::sys::bounds::Bounds;
use crate::sys::clone::{self, Copied};
use crate::sys::life::LifePipe;
use crate::sys::per_process::PerProcess;
use crate::sys::{exec, fd, pidfd, watch};

/// What a process is to run.
pub enum Job<'a> {
    /// A named function and its argument.
    Call(Function, Payload),
    /// A closure, for [`StartMethod::Fork`] only.
    Closure(Box<dyn FnOnce() -> Result<Payload, Payload> + 'a>),
}

impl fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(function, input) => f.debug_tuple("Call").field(function).field(input).finish(),
            Self::Closure(_) => f.write_str("Closure(..)"),
        }
    }
}

/// Why a process was not started. None exists then, and nothing ran.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another copy of this program would run `main` again instead of the function.
    #[error(
        "nothing in this program takes over its child processes before `main` runs: call `polyproc::init()` as the first \
         line of `main`, or build with the feature `auto-init`"
    )]
    NotInitialised,
    /// The function has no name that another process could find.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The face could not encode the argument.
    #[error(transparent)]
    Argument(Box<dyn std::error::Error + Send + Sync>),
    /// `fork` in a process with other threads.
    #[error(
        "fork refused: {count} threads run in this process, and the child would get the locks they hold without them; use \
         the start method `forkserver` or `spawn`, or promise that it is sound with `ForkWithThreads`"
    )]
    Threads {
        /// The user's threads, the calling one included.
        count: usize,
    },
    /// A closure with another start method than `fork`.
    #[error("a closure can be started by `fork` only: another process does not have what it captured")]
    ClosureNeedsFork,
    /// The preload function failed, so the fork server cannot start.
    #[error("preloading the fork server failed: {why}")]
    Preload {
        /// What happened.
        why: String,
    },
    /// The fork server did not come up.
    #[error("{why}")]
    Forkserver {
        /// What happened.
        why: String,
    },
    /// The working directory asked for is not there.
    #[error("cannot start a process in the directory {}: {source}", path.display())]
    CurrentDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system knows no such environment variable.
    #[error(
        "{name:?} cannot be set in the environment: a name is not empty and holds no '=', and neither name nor value holds a NUL byte"
    )]
    Env {
        /// The variable's name.
        name: OsString,
    },
    /// A signal handler ran, and the program gave the start up: see [`set_on_interrupt`](super::set_on_interrupt).
    #[error("the start of a process was interrupted while it waited for the fork server")]
    Interrupted,
    /// The program is ending.
    #[error("cannot start a process while the program is ending")]
    Exiting,
    /// A system call failed.
    #[error("{doing} failed: {source}")]
    Os {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

pub(super) fn os(doing: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Os { doing, source }
}

static EXECUTABLE: PerProcess<Mutex<Option<OsString>>> = PerProcess::inherited();

/// The program that `spawn` and the fork server execute, in place of `/proc/self/exe`: needed where that link leads to an
/// emulator or to the dynamic linker. It must be the same build. Takes effect at the next start of either.
pub fn set_executable(path: impl Into<OsString>) {
    *lock(EXECUTABLE.get()) = Some(path.into());
}

/// A function that runs once in the fork server; what it leaves in memory is shared by all processes made from then on.
/// None takes that back.
pub fn set_preload(preload: Option<(Function, Payload)>) {
    let state = ProcessState::current();
    *lock(&state.preload) = preload;
    let _ = lock(&state.forkserver).retire(state); // the next one starts with the new function
}

/// Starts the fork server, if none runs, and does not wait until it is ready: it runs its preload function meanwhile. The next
/// start with [`StartMethod::Forkserver`] waits for what is left, and fails where that fails.
///
/// # Errors
/// [`StartError::NotInitialised`], and [`StartError::Os`] when the system lets no program be executed.
pub fn start_forkserver() -> Result<(), StartError> {
    let state = ProcessState::current();
    if state.exiting.load(Ordering::Relaxed) {
        return Err(StartError::Exiting);
    }
    let _starting = lock(&state.starting);
    lock(&state.forkserver).launch(state)
}

/// Ends the fork server in order, if one runs: what a preload function left to be done at the end is done. It is killed when that
/// takes longer than `grace`.
pub fn end_forkserver(grace: Duration) {
    let Some(state) = ProcessState::existing() else { return };
    let deadline = Deadline::after(grace);
    let Ok(mut forkserver) = lock_unless(&state.forkserver, &|| deadline.has_passed()) else { return };
    let zygote = forkserver.retire(state);
    drop(forkserver);
    if let Some(zygote) = zygote
        && !matches!(zygote.wait_through_signals(deadline), Ok(Some(_)))
    {
        let _ = zygote.signal(Signal::KILL); // fails only when it has ended
    }
}

/// Whether the system let the fork server make no processes: programs are executed in its place, which is slower.
#[must_use]
pub fn is_forkserver_refused() -> bool {
    let server = ProcessState::existing().map(|state| state.forkserver.try_lock());
    matches!(server, Some(Ok(server)) if matches!(*server, super::forkserver::Forkserver::Refused))
}

/// The process id of this process's fork server, if one runs.
#[must_use]
pub fn forkserver_pid() -> Option<u32> {
    lock(&ProcessState::current().forkserver).pid()
}

/// Starts a process that runs `job`.
///
/// # Errors
/// See [`StartError`]; nothing was started then.
pub fn start(settings: Settings, job: Job<'_>) -> Result<Child, StartError> {
    let state = ProcessState::current();
    let who = who(state, &settings, "Process");
    match (settings.method, job) {
        (StartMethod::Fork, Job::Closure(closure)) => fork(state, who, settings, Forked::Call(closure)),
        (StartMethod::Fork, Job::Call(function, input)) => {
            let function = function.resolve()?;
            fork(state, who, settings, Forked::Call(Box::new(move || function.call_once(input))))
        }
        (_, Job::Closure(_)) => Err(StartError::ClosureNeedsFork),
        (_, Job::Call(function, input)) => {
            start_program(state, who, settings, Work::Call(function), &input, &host::is_interrupted)
        }
    }
}

/// Starts a pool's worker: it runs [`crate::pool::run_worker`] with `input`.
pub(crate) fn start_worker(settings: Settings, input: Payload, give_up: GiveUp<'_>) -> Result<Child, StartError> {
    let state = ProcessState::current();
    let who = who(state, &settings, "PoolWorker");
    match settings.method {
        StartMethod::Fork => fork(state, who, settings, Forked::Worker(input)),
        _ => start_program(state, who, settings, Work::Pool, &input, give_up),
    }
}

fn who(state: &ProcessState, settings: &Settings, kind: &str) -> Current {
    let me = current();
    let mut identity = me.identity;
    identity.push(state.next_number());
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
    state: &'static ProcessState,
    who: Current,
    settings: Settings,
    work: Work,
    input: &Payload,
    give_up: GiveUp<'_>,
) -> Result<Child, StartError> {
    if state.exiting.load(Ordering::Relaxed) {
        return Err(StartError::Exiting);
    }
    let _starting = lock_unless(&state.starting, give_up)?;
    let env = environment(&settings.env)?;
    let current_dir = current_dir(settings.current_dir.as_deref())?;
    let (stdio, captured) = streams(settings.stdio)?;
    let stdio = [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()];
    let leads_group = matches!(work, Work::Pool);
    let bounds = Bounds::own();
    let mut order = StartRequest { who, env: Vec::new(), current_dir: None, bounds: Bounds::default(), work };
    let _ = budget::descriptor(); // it goes with the order
    let life = if order.who.bound { Some(state.life_pipe().map_err(os("making a pipe"))?.as_fd()) } else { None };

    let mut child = None;
    if settings.method == StartMethod::Forkserver {
        let current_dir = current_dir.as_ref();
        let request =
            ForkRequest { order: &mut order, env: &env, current_dir, bounds: &bounds, stdio: &stdio, life, input };
        child = lock_unless(&state.forkserver, give_up)?.start(state, request, give_up)?;
        if child.is_none() && lock(&state.preload).is_some() {
            let why = "the system lets the fork server make no processes (by `clone3` or `clone`, with `/proc` to count threads), \
                       and no other start method shares its memory: allow one of them, or start without a preload";
            return Err(StartError::Preload { why: why.to_owned() });
        }
    }
    let child = match child {
        Some(child) => child,
        // A new program is as good where the system refuses the fork server: only slower.
        None => {
            let (channel, theirs) = Channel::pair().map_err(os("making a channel"))?;
            order.env = Vec::new();
            order.current_dir = current_dir.map(Into::into);
            order.bounds = bounds.of_thread(); // it is the supervisor that executes
            let child = execute(state, Role::Process, env, channel, vec![theirs])?;
            // If somebody has killed it already, joining it says so.
            tell(&child, &order, &stdio, life, input)?;
            child
        }
    };
    child.introduce(Facts { name: order.who.name, daemon: order.who.daemon, leads_group, captured });
    Ok(child)
}

/// Executes this program anew as `role`, at the other end of `channel`; the supervisor knows it from then on.
pub(super) fn execute(
    state: &'static ProcessState,
    role: Role,
    mut env: Vec<(OsString, OsString)>,
    channel: Channel,
    fds: Vec<OwnedFd>,
) -> Result<Child, StartError> {
    bootstrap::keep_constructor();
    if !bootstrap::is_in_place() {
        return Err(StartError::NotInitialised);
    }
    env.push(role.token());
    let (path, argv) = match host::program() {
        Some(argv) => (argv[0].clone(), argv),
        None => ("/proc/self/exe".into(), std::env::args_os().collect()),
    };
    let path = lock(EXECUTABLE.get()).clone().unwrap_or(path);
    let program = exec::Program { path, argv, env, fds };
    let pid = state.supervisor()?.exec(program).map_err(os("executing the program anew"))?;
    known(state, pid, channel, StartMethod::Spawn)
}

/// The child `pid` of this process, known to the supervisor from now on.
pub(super) fn known(
    state: &'static ProcessState,
    pid: u32,
    channel: Channel,
    method: StartMethod,
) -> Result<Child, StartError> {
    let opening = os("opening a process descriptor (pidfd_open, Linux 5.3)");
    let child = match pidfd::open_or_end(pid) {
        Ok(pidfd) => Child::new(pid, pidfd, channel, method),
        // It has ended, and other code of the program reaped it (`waitpid(-1)`): what it said is in its channel.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
            return Child::ended(pid, channel, method).map_err(opening);
        }
        Err(error) => return Err(opening(error)),
    };
    state.adopt(&child)?;
    Ok(child)
}

fn fork(state: &'static ProcessState, who: Current, settings: Settings, job: Forked<'_>) -> Result<Child, StartError> {
    if state.exiting.load(Ordering::Relaxed) {
        return Err(StartError::Exiting);
    }
    state.supervisor()?; // before threads are counted: this one is ours
    if settings.fork_with_threads.is_none() {
        let own = state.own_threads.count();
        let threads = clone::settled_thread_count(own + 1).map_err(os("counting threads in /proc/self/task"))?;
        let count = threads.saturating_sub(own);
        if count > 1 {
            return Err(StartError::Threads { count });
        }
    }
    // Callbacks, wakers and loggers of the user's may run on our threads, and hold any lock.
    let without_user_code = state.own_threads.without_user_code();
    if settings.fork_with_threads.is_none() && without_user_code.is_none() {
        return Err(StartError::Threads { count: 2 });
    }
    let leads_group = matches!(job, Forked::Worker(_));
    let _starting = lock(&state.starting);
    let env = delta(&std::env::vars_os().collect::<Vec<_>>(), &environment(&settings.env)?);
    let current_dir = current_dir(settings.current_dir.as_deref())?;
    let inherited = settings.stdio.each_ref().map(|stdio| matches!(stdio, Stdio::Inherit));
    let (stdio, captured) = streams(settings.stdio)?;
    let life = match who.bound {
        true => Some(state.life_pipe().and_then(LifePipe::check).map_err(os("binding a process to this one"))?),
        false => state.existing_life_pipe(),
    };
    let _ = budget::descriptor(); // the copy has the same
    let (channel, theirs) = Channel::pair().map_err(os("making a channel"))?;
    // Flushed, or the child would write a second time what this process has not written yet; and held over the fork, so
    // that no other thread holds it then and the child can flush its own.
    let mut stdout = io::stdout().lock();
    let _ = stdout.flush();
    let copied = host::copy(clone::fork);
    drop(stdout);
    match copied.map_err(os("fork"))? {
        Copied::Child => {
            drop(channel);
            let mut inherited = inherited.into_iter();
            let stdio = stdio.map(|stream| if inherited.next() == Some(true) { None } else { stream.into_owned() });
            let current_dir = current_dir.as_deref().map(Path::as_os_str);
            // A panic of ours must not unwind into the caller's frames, which are those of the parent.
            let _ = catch_unwind(AssertUnwindSafe(|| -> () {
                enter::run_forked(who, life, &env, current_dir, &stdio, theirs.into(), job)
            }));
            clone::exit_now(70) // EX_SOFTWARE
        }
        Copied::Parent(pid) => {
            drop(theirs); // its place in the table of descriptors is that of the process descriptor
            let child = known(state, pid, channel, StartMethod::Fork)?;
            child.introduce(Facts { name: who.name, daemon: who.daemon, leads_group, captured });
            Ok(child)
        }
    }
}

/// The environment that a process is to have.
fn environment(changes: &[EnvChange]) -> Result<Vec<(OsString, OsString)>, StartError> {
    if changes.is_empty() {
        return Ok(std::env::vars_os().collect());
    }
    let has = |text: &OsStr, bytes: &[u8]| text.as_bytes().iter().any(|byte| bytes.contains(byte));
    for change in changes {
        let (name, value) = match change {
            EnvChange::Clear => continue,
            EnvChange::Set(name, value) => (name, value.as_os_str()),
            EnvChange::Remove(name) => (name, OsStr::new("")),
        };
        if name.is_empty() || has(name, b"=\0") || has(value, b"\0") {
            return Err(StartError::Env { name: name.clone() });
        }
    }
    let mut env: BTreeMap<_, _> = std::env::vars_os().collect();
    for change in changes {
        match change {
            EnvChange::Clear => env.clear(),
            EnvChange::Set(name, value) => _ = env.insert(name.clone(), value.clone()),
            EnvChange::Remove(name) => _ = env.remove(name),
        }
    }
    Ok(env.into_iter().collect())
}

/// What to change to get from one environment to another.
pub(super) fn delta(from: &[(OsString, OsString)], to: &[(OsString, OsString)]) -> EnvDelta {
    if from == to {
        return Vec::new();
    }
    let (from, to): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (from.iter().map(|(n, v)| (n, v)).collect(), to.iter().map(|(n, v)| (n, v)).collect());
    let set = to.iter().filter(|(name, value)| from.get(*name) != Some(value));
    let set = set.map(|(name, value)| ((*name).clone(), Some((*value).clone())));
    let removed = from.keys().filter(|name| !to.contains_key(*name)).map(|name| ((*name).clone(), None));
    set.chain(removed).collect()
}

/// The absolute path of the working directory that a process is to have; `None` when this one's own is gone.
fn current_dir(wanted: Option<&Path>) -> Result<Option<PathBuf>, StartError> {
    let here = std::env::current_dir();
    let Some(wanted) = wanted else { return Ok(here.ok()) };
    let found = here.map(|here| here.join(wanted)).and_then(|path| match path.metadata()?.is_dir() {
        true => Ok(path),
        false => Err(io::ErrorKind::NotADirectory.into()),
    });
    found.map(Some).map_err(|source| StartError::CurrentDir { path: wanted.to_owned(), source })
}

/// A descriptor for a new process's stream: one of this process's own, or one made for it.
enum ChildStream {
    Own(BorrowedFd<'static>),
    Made(OwnedFd),
}

impl ChildStream {
    fn into_owned(self) -> Option<OwnedFd> {
        match self {
            Self::Own(_) => None,
            Self::Made(fd) => Some(fd),
        }
    }
}

impl AsFd for ChildStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => *fd,
            Self::Made(fd) => fd.as_fd(),
        }
    }
}

/// The three descriptors for the process, and the two captures (output, error) for the parent to read.
fn streams(stdio: [Stdio; 3]) -> Result<([ChildStream; 3], [Option<File>; 2]), StartError> {
    let mut captured = [None, None];
    let [stdin, stdout, stderr] = stdio;
    let null = || Ok::<_, StartError>(ChildStream::Made(fd::dev_null().map_err(os("opening /dev/null"))?));
    let mut stream = |number: i32, stdio| {
        Ok::<_, StartError>(match stdio {
            Stdio::Fd(fd) => ChildStream::Made(fd),
            Stdio::Captured if number > 0 => {
                let memory = fd::memfd(c"polyproc-captured").map_err(os("making a memory file"))?;
                let copy = memory.try_clone().map_err(os("copying a descriptor"))?;
                captured[usize::from(number == 2)] = Some(File::from(copy));
                ChildStream::Made(memory)
            }
            Stdio::Inherit => fd::standard_stream(number).map_or_else(null, |own| Ok(ChildStream::Own(own)))?,
            Stdio::Captured | Stdio::Null => null()?,
        })
    };
    let streams = [stream(0, stdin)?, stream(1, stdout)?, stream(2, stderr)?];
    Ok((streams, captured))
}

/// The processes that this one started and that still run. Those that have ended are reaped.
#[must_use]
pub fn active_children() -> Vec<Child> {
    let Some(state) = ProcessState::existing() else { return Vec::new() };
    let mut children = state.children();
    children.retain(|child| child.is_visible() && matches!(child.try_wait(), Ok(None)));
    children.sort_by_key(Child::key);
    children
}

/// Waits until one of `fds` is readable and returns the positions of all that are; none when the deadline passed first.
///
/// # Errors
/// [`io::ErrorKind::Interrupted`] when a signal handler ran.
pub fn wait<Fd: AsFd>(fds: &[Fd], deadline: Deadline) -> io::Result<Vec<usize>> {
    let interval = registry::refresh_interval();
    loop {
        let ready = watch::readable(fds, deadline.or_sooner(interval.next()))?;
        if !ready.is_empty() || deadline.has_passed() {
            return Ok(ready);
        }
        interval.lengthen();
        registry::refresh_all();
    }
}
