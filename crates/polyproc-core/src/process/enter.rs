//! The child's side: set up, run, report, end.
//!
//! [`run`] is the last part of every executed or cloned process, called by [`boot`](super::boot) and [`zygote`](super::zygote);
//! [`run_forked`] that of a copy made by `fork`. The set-up requires that the process has one thread, as it changes the
//! environment. Neither function returns once the user's function has begun.
//!
//! [`run`] performs these steps in this order:
//!
//! 1. Receive the order. The end of file in its place means that the parent died or gave this process up: exit with 0.
//! 2. Lead a process group, if this is a worker, so that the bonds can refer to the group.
//! 3. Bind this process to its parent's life, or remove the bond that the zygote requested for it.
//! 4. Leave `SIGINT` to the parent (a worker), show the program's own command line, unblock all signals. Pending signals act
//!    here.
//! 5. Publish the channel for panics and stack overflows.
//! 6. Join the program's ledger; set standard streams, environment, working directory, thread name and identity.
//! 7. Apply the parent's bounds, last, since a lower limit on descriptors could make the steps before it fail.
//! 8. Resolve and call the function, report its outcome, end.
//!
//! A system call that fails in steps 1 to 5, or while a descriptor of step 6 is moved, makes the process exit with 70 and no
//! report; a bond that cannot be made, with 0. Later failures are reported as [`Outcome::Refused`] with the reason. The parent
//! is trusted: the order names code to run. A process without a bond notices the death of its parent only when it sends its
//! report.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use super::current::set_current;
use super::order::{EnvDelta, Inherited, StartRequest};
use super::{Current, Outcome, Parent, panic, tag};
use crate::conn::{Channel, bare_message, is_peer_gone};
use crate::error_chain;
use crate::function::{Function, Handler};
use crate::shm::budget;
use crate::sys::bounds::Bounds;
use crate::sys::exit::exit_now;
use crate::sys::parent_death::{self, DeathScope};
use crate::sys::{clone, env, fd, signal, title};
use crate::wire::WireError;
use crate::wire::{Input, Payload, Verdict};

/// Runs a process that was executed or cloned: receives its order over `channel`, carries it out, reports and exits. Exits with
/// 0 if the parent closes the channel without an order, or if the parent to which this process must be bound has ended.
///
/// # Errors
/// When the order is malformed or a system call of the set-up failed. The caller exits with 70.
pub(crate) fn run(channel: Channel) -> io::Result<Infallible> {
    let Some(message) = channel.receive()? else {
        exit_now(0) // the parent closed the channel without an order
    };
    let (order, Inherited { stdio, parent_death, ledger }, input) = StartRequest::decode(message)?;
    let scope = if order.leads_group { DeathScope::Group } else { DeathScope::Process };
    if scope == DeathScope::Group {
        parent_death::lead_group()?;
    }
    if order.process.bound {
        die_with_parent(parent_death::die_with_creator(parent_pid(&order.process), scope));
        // Without `/proc` this bond fails, and the one above remains.
        die_with_parent(parent_death.map_or(Ok(true), |parent_death| {
            Ok(parent_death::die_with_writer(parent_death.as_fd(), scope).unwrap_or(true))
        }));
    } else {
        parent_death::outlive_creator()?;
    }
    if order.leads_group {
        signal::leave_sigint_to_parent()?;
    }
    title::restore();
    signal::unblock_all();
    signal::report_overflow_to(channel.as_fd(), bare_message(tag::STACK_OVERFLOW));
    let channel = panic::report_to(channel);
    // If standard streams are closed, received descriptors may have their numbers, and `set_up` would overwrite them.
    if let Some(ledger) = ledger {
        budget::join(fd::above_standard(ledger)?);
    }
    let [stdin, stdout, stderr] = stdio.map(fd::above_standard);
    let stdio = [Some(stdin?), Some(stdout?), Some(stderr?)];
    let set_up = set_up(order.process, &order.env, order.current_dir.as_deref(), &stdio);
    drop(stdio);
    // Last: a lower descriptor limit must not make the set-up fail.
    let bound =
        || order.bounds.apply().map_err(|(what, error)| format!("could not apply {what} of the parent: {error}"));
    let set_up = set_up.and_then(|()| bound());
    let function = || order.function.resolve().map_err(|error| error.to_string());
    let outcome = match set_up.and_then(|()| function()) {
        Err(why) => Outcome::Refused(why),
        Ok(function) => outcome_of(|| function.call_once(input)),
    };
    end(&outcome, channel)
}

/// The work of a process made by `fork`. `Ok` is its result, `Err` its error in the encoding of the face. It may borrow from
/// the parent's stack, which the child has a copy of.
pub(super) type Closure<'a> = Box<dyn FnOnce() -> Result<Payload, Payload> + 'a>;

/// The order of a process made by `fork`. It has the same settings as its parent otherwise. Prepared by the parent before the
/// fork, as far as possible, and consumed by the child.
pub(super) struct ForkedOrder<'a> {
    /// The identity of the child.
    pub(super) process: Current,
    /// True if the child leads a process group and leaves `SIGINT` to its parent: a pool's worker.
    pub(super) leads_group: bool,
    /// The parent's pipe, of which the child has copies of both ends. `Some` whenever the pipe exists: a child that is not
    /// bound must close them.
    pub(super) parent_death: Option<&'a parent_death::ParentDeathPipe>,
    /// Changes to the inherited environment.
    pub(super) env: EnvDelta,
    /// The absolute path of the working directory; `None` to stay in the inherited one.
    pub(super) current_dir: Option<&'a OsStr>,
    /// The new standard streams; `None` for an unchanged stream.
    pub(super) stdio: [Option<OwnedFd>; 3],
    /// The function to run.
    pub(super) job: Closure<'a>,
}

/// Runs a process made by `fork`: carries out its order, reports over `channel` and exits. Restores the signal mask first; then
/// as [`run`], but on copied memory: it receives no order, applies no bounds, and leaves `SIGINT` to its parent after the
/// set-up. The program's own panic hook continues to print.
///
/// # Panics
/// Only from the engine's own code, as [`outcome_of`] catches panics of the job. The caller catches them and exits.
pub(super) fn run_forked(order: ForkedOrder<'_>, channel: Channel) -> ! {
    let ForkedOrder { process, leads_group, parent_death, env, current_dir, stdio, job } = order;
    signal::restore_mask();
    let scope = if leads_group { DeathScope::Group } else { DeathScope::Process };
    if scope == DeathScope::Group {
        die_with_parent(parent_death::lead_group().map(|()| true));
    }
    match parent_death {
        Some(parent_death) if process.bound => die_with_parent(parent_death.die_with_parent(scope)),
        Some(parent_death) => parent_death.close_copies(),
        None => {}
    }
    signal::report_overflow_to(channel.as_fd(), bare_message(tag::STACK_OVERFLOW));
    let channel = panic::report_to(channel);
    panic::install_hook(true);
    let leave_sigint = || match leads_group {
        true => {
            signal::leave_sigint_to_parent().map_err(|error| format!("could not leave SIGINT to the parent: {error}"))
        }
        false => Ok(()),
    };
    let outcome = match set_up(process, &env, current_dir, &stdio).and_then(|()| leave_sigint()) {
        Err(why) => Outcome::Refused(why),
        Ok(()) => outcome_of(job),
    };
    end(&outcome, channel)
}

/// Reports and exits, as Python's processes do: flushes standard output and ends or joins children. `atexit(3)` handlers and
/// static destructors do not run, since a copied process shares them with its original. A pool's worker calls this itself, from
/// inside the function that [`run`] called.
pub(crate) fn end(outcome: &Outcome, channel: &Channel) -> ! {
    super::exit::leave(report(outcome, channel))
}

/// Returns the process id of the parent; 0, which no process has, if there is none.
fn parent_pid(process: &Current) -> u32 {
    process.parent.as_ref().map_or(0, |parent| parent.pid)
}

/// Exits with 0 unless this process is bound to its parent: it must not run without that bond. `Ok(false)` means that the
/// parent has ended.
fn die_with_parent(bound: io::Result<bool>) {
    if !matches!(bound, Ok(true)) {
        exit_now(0)
    }
}

/// Sets the standard streams, the environment, the working directory, the name of the thread and the identity of this process.
/// Only in a process with one thread, or after the user's promise ([`ForkWithThreads`](super::ForkWithThreads)), as it changes
/// the environment.
///
/// `stdio` has `None` for a stream that stays as it is. Its descriptors are copied one after the other, so they must have
/// numbers above 2: [`run`] moves them there. After `fork` they have such numbers unless this process's standard streams were
/// closed.
///
/// # Errors
/// The reason, as text for [`Outcome::Refused`]. Settings before the failed one are in effect.
fn set_up(
    process: Current,
    variables: &EnvDelta,
    current_dir: Option<&OsStr>,
    stdio: &[Option<OwnedFd>; 3],
) -> Result<(), String> {
    for (number, stream) in (0..).zip(stdio) {
        if let Some(stream) = stream {
            fd::set_standard_stream(number, stream)
                .map_err(|error| format!("could not set up standard stream {number}: {error}"))?;
        }
    }
    for (name, value) in variables {
        env::set(name, value.as_deref());
    }
    if let Some(path) = current_dir {
        std::env::set_current_dir(path)
            .map_err(|error| format!("could not change the working directory to {}: {error}", path.display()))?;
    }
    // `ps` and `top` show 15 bytes of the name.
    clone::name_thread(&process.name);
    set_current(process);
    Ok(())
}

/// Runs the steps of [`run`] once in the zygote, except for those that would change it, so that its children find symbols
/// bound, allocations made and code mapped. The order travels over a channel of this process to itself, and its function does
/// nothing.
///
/// Afterwards the zygote has an identity with an empty parent, which every child replaces. The zygote has no children, so the
/// step that ends them has no effect.
///
/// # Errors
/// When there are no descriptors or no memory. The zygote ignores that, as only speed is lost.
pub(crate) fn rehearse() -> io::Result<()> {
    struct Nothing;
    impl Handler<fn()> for Nothing {
        fn handle(function: fn(), _: Input<'_>, _: &mut Payload) -> Verdict {
            function();
            Verdict::Returned
        }
    }
    let (parents, childs) = Channel::pair()?;
    let childs = Channel::from(childs);
    let function = Function::new::<fn(), Nothing>(|| ()).map_err(io::Error::other)?;
    let process = Current { parent: Some(Parent { name: String::new(), pid: 0 }), ..super::current() };
    let null = fd::dev_null()?;
    StartRequest {
        process,
        env: Vec::new(),
        current_dir: None,
        bounds: Bounds::default(),
        leads_group: false,
        function,
    }
    .send(&parents, &[null.as_fd(); 3], None, &Payload::default())?;
    let message = childs.receive()?.ok_or(WireError)?;
    let (order, _, input) = StartRequest::decode(message)?;
    let function = order.function.resolve().map_err(io::Error::other)?;
    report(&outcome_of(|| function.call_once(input)), &childs);
    set_current(order.process);
    super::exit::end_children();
    io::stdout().flush()
}

/// Runs `job` and returns its outcome. A panic is caught here: it was printed by the hook.
fn outcome_of(job: impl FnOnce() -> Result<Payload, Payload>) -> Outcome {
    match panic::catch(false, job) {
        Ok(Ok(payload)) => Outcome::Returned(payload),
        Ok(Err(payload)) => Outcome::Raised(payload),
        Err(panic) => Outcome::Panicked(panic),
    }
}

/// Sends the outcome to the parent and returns the exit code that corresponds to it. Blocks while the channel is full. An
/// outcome that cannot be sent is replaced by [`Outcome::Refused`] with the reason, as when no memory file can be created for a
/// large result.
///
/// A parent that has closed its end is not an error: the exit code is then the whole report.
fn report(outcome: &Outcome, channel: &Channel) -> i32 {
    match outcome.send(channel) {
        Ok(()) => outcome.exit_code(),
        // The parent has closed its end, so no process would read more than the exit code.
        Err(error) if is_peer_gone(&error) => outcome.exit_code(),
        Err(error) => {
            let why = format!("the result could not be sent to the parent: {}", error_chain(&error));
            let refused = Outcome::Refused(why);
            // If this fails too, the parent observes an end without an outcome.
            let _ = refused.send(channel);
            refused.exit_code()
        }
    }
}
