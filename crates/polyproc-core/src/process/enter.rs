//! The child's side: set up, run, report, end.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use super::current::set_current;
use super::order::{EnvDelta, Inherited, StartRequest, Work};
use super::outcome::tag;
use super::{Current, Function, Handler, Outcome, Parent, panic};
use crate::conn::{Channel, bare_message, is_peer_gone};
use crate::frame::wire::WireError;
use crate::frame::{Input, Payload, Verdict};
use crate::shm::budget;
use crate::sys::bounds::Bounds;
use crate::sys::life::{self, Whom};
use crate::sys::{bootstrap, clone, fd, signal, title};

/// Runs this process, which was executed or cloned for it: the order comes over `channel`.
pub(crate) fn run(channel: Channel) -> io::Result<Infallible> {
    let Some(message) = channel.receive()? else {
        clone::exit_now(0) // the parent was gone before it said what to do
    };
    let (order, Inherited { stdio, life, ledger }, input) = StartRequest::decode(message)?;
    let whom = if matches!(order.work, Work::Pool) { Whom::Group } else { Whom::Process };
    if whom == Whom::Group {
        life::lead_group()?;
    }
    if order.who.bound {
        die_with_parent(life::die_with_creator(parent_pid(&order.who), whom));
        // Without `/proc` there is the other bond.
        die_with_parent(life.map_or(Ok(true), |life| Ok(life::die_with_writer(life.as_fd(), whom).unwrap_or(true))));
    } else {
        life::outlive_creator()?;
    }
    if matches!(order.work, Work::Pool) {
        signal::leave_sigint_to_parent()?;
    }
    title::restore();
    signal::unblock_all();
    signal::report_overflow_to(channel.as_fd(), bare_message(tag::STACK_OVERFLOW));
    let channel = panic::report_to(channel);
    // Where standard streams are closed, what was received may have their numbers, and would be overwritten in its turn.
    if let Some(ledger) = ledger {
        budget::join(fd::above_standard(ledger)?);
    }
    let [stdin, stdout, stderr] = stdio.map(fd::above_standard);
    let stdio = [Some(stdin?), Some(stdout?), Some(stderr?)];
    let set_up = set_up(order.who, &order.env, order.current_dir.as_deref(), &stdio);
    drop(stdio);
    // Last: a lower descriptor limit must not make the set-up fail.
    let bound = || order.bounds.apply().map_err(|(what, error)| format!("could not take over {what}: {error}"));
    let set_up = set_up.and_then(|()| bound());
    let outcome = match (set_up, order.work) {
        (Err(why), _) => Outcome::Refused(why),
        (Ok(()), Work::Call(function)) => match function.resolve() {
            Err(error) => Outcome::Refused(error.to_string()),
            Ok(function) => outcome_of(|| function.call_once(input)),
        },
        (Ok(()), Work::Pool) => crate::pool::run_worker(channel, input),
    };
    end(&outcome, channel)
}

/// What a fork runs.
pub(super) enum Forked<'a> {
    Call(Box<dyn FnOnce() -> Result<Payload, Payload> + 'a>),
    /// The loop of a pool's worker.
    Worker(Payload),
}

/// Runs this process, which is a fork of its parent's memory, and ends it.
pub(crate) fn run_forked(
    who: Current,
    life: Option<&life::LifePipe>,
    env: &EnvDelta,
    current_dir: Option<&OsStr>,
    stdio: &[Option<OwnedFd>; 3],
    channel: Channel,
    job: Forked<'_>,
) -> ! {
    signal::restore_mask();
    let whom = if matches!(job, Forked::Worker(_)) { Whom::Group } else { Whom::Process };
    if whom == Whom::Group {
        die_with_parent(life::lead_group().map(|()| true));
    }
    match life {
        Some(life) if who.bound => die_with_parent(life.die_with_parent(whom)),
        Some(life) => life.close_copies(),
        None => {}
    }
    signal::report_overflow_to(channel.as_fd(), bare_message(tag::STACK_OVERFLOW));
    let channel = panic::report_to(channel);
    panic::install_hook(true);
    let outcome = match (set_up(who, env, current_dir, stdio), job) {
        (Err(why), _) => Outcome::Refused(why),
        (Ok(()), Forked::Call(job)) => outcome_of(job),
        (Ok(()), Forked::Worker(input)) => match signal::leave_sigint_to_parent() {
            Ok(()) => crate::pool::run_worker(channel, input),
            Err(error) => Outcome::Refused(format!("could not leave SIGINT to the parent: {error}")),
        },
    };
    end(&outcome, channel)
}

/// Reports and ends, as Python's processes do: standard output is flushed, children are ended or joined, but `atexit(3)`
/// handlers and static destructors, which a copied process shares with the one it was copied from, do not run.
fn end(outcome: &Outcome, channel: &Channel) -> ! {
    super::exit::leave(report(outcome, channel))
}

fn parent_pid(who: &Current) -> u32 {
    who.parent.as_ref().map_or(0, |parent| parent.pid)
}

/// A process that must not outlive its parent does not begin without that bond.
fn die_with_parent(bound: io::Result<bool>) {
    if !matches!(bound, Ok(true)) {
        clone::exit_now(0)
    }
}

fn set_up(
    who: Current,
    env: &EnvDelta,
    current_dir: Option<&OsStr>,
    stdio: &[Option<OwnedFd>; 3],
) -> Result<(), String> {
    for (number, stream) in (0..).zip(stdio) {
        if let Some(stream) = stream {
            fd::set_standard_stream(number, stream)
                .map_err(|error| format!("could not set up standard stream {number}: {error}"))?;
        }
    }
    for (name, value) in env {
        bootstrap::set_env(name, value.as_deref());
    }
    if let Some(path) = current_dir {
        std::env::set_current_dir(path)
            .map_err(|error| format!("could not make {} the working directory: {error}", path.display()))?;
    }
    // What ps and top show; 15 bytes of it.
    clone::name_thread(&who.name);
    set_current(who);
    Ok(())
}

/// Goes once through all that [`run`] does in a child, but for what would change this process: in the zygote, so that its
/// children find symbols bound, allocations made and code mapped.
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
    let work = Work::Call(Function::new::<fn(), Nothing>(|| ()).map_err(io::Error::other)?);
    let who = Current { parent: Some(Parent { name: String::new(), pid: 0 }), ..super::current() };
    let null = fd::dev_null()?;
    StartRequest { who, env: Vec::new(), current_dir: None, bounds: Bounds::default(), work }.send(
        &parents,
        &[null.as_fd(); 3],
        None,
        &Payload::default(),
    )?;
    let message = childs.receive()?.ok_or(WireError)?;
    let (order, _, input) = StartRequest::decode(message)?;
    if let Work::Call(function) = order.work {
        let function = function.resolve().map_err(io::Error::other)?;
        report(&outcome_of(|| function.call_once(input)), &childs);
    }
    set_current(order.who);
    super::exit::end_children();
    io::stdout().flush()
}

fn outcome_of(job: impl FnOnce() -> Result<Payload, Payload>) -> Outcome {
    match panic::catch(false, job) {
        Ok(Ok(payload)) => Outcome::Returned(payload),
        Ok(Err(payload)) => Outcome::Raised(payload),
        Err(panic) => Outcome::Panicked(panic),
    }
}

/// Tells the parent, and gives the exit code that says the same.
fn report(outcome: &Outcome, channel: &Channel) -> i32 {
    match outcome.send(channel) {
        Ok(()) => outcome.exit_code(),
        // The parent is gone, and with it whoever would read more than the code.
        Err(error) if is_peer_gone(&error) => outcome.exit_code(),
        Err(error) => {
            let why = format!("the result could not be sent to the parent: {error}");
            let refused = Outcome::Refused(why);
            // If even that does not go through, the parent sees an end without a result.
            let _ = refused.send(channel);
            refused.exit_code()
        }
    }
}
