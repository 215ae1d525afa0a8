//! One operation on shared objects, by a victim, with other processes that check the state that it leaves.
//!
//! | process | role |
//! |---|---|
//! | this one | creates the objects, traces the victim; at every other target it drops its own handles, so that no process that reaps has any |
//! | victim | prepares, stops, performs the operation under the tracer, stops |
//! | second | in `Mode::Double`: the same, with an operation that recovers the state that the victim left |
//! | checker | makes calls with limits while the victim is stopped, and checks everything after its end |

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use polyproc::{Child, Process, Receiver, Sender, simplex_pipe};
use serde::{Deserialize, Serialize};

use super::plan::{Mode, Random, Row, Scale, Target, targets, trim};
use super::support;
use super::trace::{Maps, Reached, Stop, Tracee};

/// How late a call may return on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// The limit of calls while the victim is stopped.
pub(crate) const LIMIT: Duration = Duration::from_millis(50);
/// Number of hangs after which waits are shortened to [`LESS_PATIENCE`], as each hang costs [`PATIENCE`].
pub(crate) const HANGS: usize = 3;
pub(crate) const LESS_PATIENCE: Duration = Duration::from_millis(800);
/// A recovery of more instructions is stopped by a breakpoint in half of the trials.
const LONG_RECOVERY: usize = 3000;
/// Time limit of an undisturbed operation: it takes microseconds, but seconds under single steps in a debug build.
const OPERATION: Duration = Duration::from_secs(60);

pub(crate) type Error = Box<dyn std::error::Error>;

/// The state of the victims, as reported to the checker.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Situation {
    /// The victim completed its operation.
    pub(crate) acknowledged: bool,
    /// False if the victim was stopped and then completed its operation.
    pub(crate) killed: bool,
    /// A second process was killed while it recovered.
    pub(crate) second: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum Order {
    CallWithLimits,
    Check(Situation),
}

/// The report of a checker: violations and observations.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Said {
    pub(crate) complaints: Vec<String>,
    pub(crate) seen: Vec<String>,
    /// Whether the operation took effect, if that can be determined.
    pub(crate) happened: Option<bool>,
}

impl Said {
    pub(crate) fn complain(&mut self, what: impl Into<String>) {
        self.complaints.push(what.into());
    }

    pub(crate) fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.complaints.push(what());
        }
    }

    /// Makes a call that has a limit, and records a violation if it returns late.
    pub(crate) fn in_time<T>(&mut self, what: &str, limit: Duration, call: impl FnOnce() -> T) -> T {
        let since = Instant::now();
        let result = call();
        let took = since.elapsed();
        self.check(took < limit + PATIENCE, || format!("{what} with a limit of {limit:?} took {took:?}"));
        result
    }
}

/// An operation, and the checks that must hold wherever in it its process dies.
pub(crate) trait Operation: Copy + Serialize + serde::de::DeserializeOwned + 'static {
    type Objects: Clone + Serialize + serde::de::DeserializeOwned + 'static;
    /// The result of [`get_ready`](Self::get_ready), for [`operate`](Self::operate).
    type Ready;
    type Checker;

    fn name(self) -> String;
    fn objects(self) -> std::io::Result<Self::Objects>;
    fn get_ready(self, objects: &Self::Objects) -> Self::Ready;
    fn operate(self, objects: &Self::Objects, ready: Self::Ready);
    /// Performs an operation that recovers the state that a dead process left.
    fn recover(self, objects: &Self::Objects);
    /// Creates the checker before the victim operates.
    fn checker(self, objects: Self::Objects) -> Self::Checker;
    fn call_with_limits(checker: &mut Self::Checker, said: &mut Said);
    fn check(checker: Self::Checker, situation: Situation, said: &mut Said);
    /// Describes leftovers at the end, in the process that reaped the victim.
    fn left_over(self, _: &Self::Objects) -> Option<String> {
        None
    }
}

fn mark() {
    raise(Signal::SIGSTOP).expect("a process may stop itself");
}

type Gate = (Sender<()>, Receiver<()>);

fn victim<O: Operation>((operation, objects, (ready, go)): (O, O::Objects, Gate)) {
    let prepared = operation.get_ready(&objects);
    ready.send(()).expect("it is read");
    go.recv().expect("it is sent");
    mark();
    operation.operate(&objects, prepared);
    mark();
}

fn second<O: Operation>((operation, objects, (ready, go)): (O, O::Objects, Gate)) {
    ready.send(()).expect("it is read");
    go.recv().expect("it is sent");
    mark();
    operation.recover(&objects);
    mark();
}

type Line = (Sender<Said>, Receiver<Order>);

fn checker<O: Operation>((operation, objects, (said, orders)): (O, O::Objects, Line)) {
    let mut checker = operation.checker(objects);
    said.send(Said::default()).expect("it is read");
    while let Ok(order) = orders.recv() {
        let mut new = Said::default();
        match order {
            Order::CallWithLimits => O::call_with_limits(&mut checker, &mut new),
            Order::Check(situation) => {
                O::check(checker, situation, &mut new);
                return said.send(new).expect("it is read");
            }
        }
        said.send(new).expect("it is read");
    }
}

/// A process that is stopped at the start of its operation.
struct Victim {
    child: Child<()>,
    tracee: Tracee,
}

impl Victim {
    fn start<O: Operation>(run: fn((O, O::Objects, Gate)), operation: O, objects: &O::Objects) -> Result<Self, Error> {
        let ((ready, tell_ready), (go, tell_go)) = (simplex_pipe()?, simplex_pipe()?);
        let child = Process::new(run, (operation, objects.clone(), (tell_ready, go))).daemon(true).start()?;
        ready.recv()?;
        let tracee = Tracee::seize(child.pid())?;
        tell_go.send(())?;
        match tracee.wait(PATIENCE) {
            Stop::Signal(Signal::SIGSTOP) => Ok(Self { child, tracee }),
            other => Err(format!("the victim did not come to the start of its operation: {other:?}").into()),
        }
    }

    fn kill(self) -> Result<(), Error> {
        self.tracee.kill();
        // Reaps it, and recovers the objects of this process that it used.
        match self.child.join_timeout(PATIENCE) {
            Ok(_) => Ok(()),
            Err(_) => Err("a killed process cannot be joined".into()),
        }
    }
}

/// Records every instruction of the operation, from the first mark to the second. Returns the trimmed recording, the number of
/// instructions trimmed at its start, and the mappings.
fn record<O: Operation>(operation: O, run: fn((O, O::Objects, Gate))) -> Result<(Vec<u64>, usize, Maps), Error> {
    let objects = operation.objects()?;
    let mut victim = Victim::start(run, operation, &objects)?;
    let checker = Checker::start(operation, &objects)?;
    let maps = Maps::of(victim.child.pid())?;
    let mut addresses = Vec::new();
    loop {
        addresses.push(victim.tracee.at()?);
        match victim.tracee.step(OPERATION)? {
            Stop::Trap => {}
            Stop::Signal(Signal::SIGSTOP) => break,
            other => return Err(format!("the recorded operation ended by {other:?}").into()),
        }
    }
    victim.kill()?;
    checker.child.kill()?;
    let (skipped, own) = trim(&addresses, &maps);
    Ok((own.to_vec(), skipped, maps))
}

/// Tries the targets of one operation in one mode.
pub(crate) fn run<O: Operation>(operation: O, mode: Mode, scale: Scale) -> Result<Row, Error> {
    let since = Instant::now();
    let mut row = Row::new(operation.name(), mode);
    let (recording, skipped, maps) = record(operation, victim::<O>)?;
    row.recorded(&recording);
    let recovery = if mode == Mode::Double { record(operation, second::<O>)?.0 } else { Vec::new() };
    let recovery_targets = targets(&recovery, Scale { most: None, ..scale });
    let targets = targets(&recording, scale.of(mode));
    let mut random = Random(scale.seed);
    let mut hangs = 0;
    let mut happened = Vec::new();
    let begun = Instant::now();
    for (number, target) in targets.iter().enumerate() {
        if scale.is_over(begun, hangs) {
            row.left_out = targets.len() - number;
            break;
        }
        let trial = Trial { operation, mode, target, number, first: recording[0], skipped };
        let mut said = Said::default();
        let is_long = recovery.len() > LONG_RECOVERY;
        let second_end = if is_long && random.below(2) == 0 {
            SecondEnd::At(recovery_targets[random.below(recovery_targets.len())])
        } else {
            SecondEnd::After(random.below((recovery.len() + recovery.len() / 2).min(LONG_RECOVERY) + 1))
        };
        let reached = trial.run(second_end, &mut hangs, &mut said)?;
        row.tried += usize::from(reached);
        row.missed += usize::from(!reached);
        if let Some(is) = said.happened.filter(|_| mode == Mode::Kill && reached) {
            happened.push((target, is));
        }
        said.seen.into_iter().for_each(|seen| row.see(seen));
        row.complain(target.step, &maps.place(target.address), said.complaints);
    }
    // One instruction decides: a death after it leaves the operation done, and a death before it does not.
    happened.sort_by_key(|(target, _)| target.step);
    if let Some(first) = happened.iter().position(|(_, is)| *is) {
        for (target, _) in happened[first..].iter().filter(|(_, is)| !is) {
            let what = format!("it had happened after {} instructions, and has not here", happened[first].0.step);
            row.complain(target.step, &maps.place(target.address), [what]);
        }
    }
    row.seconds = since.elapsed().as_secs_f64();
    Ok(row)
}

/// When the second process is killed.
#[derive(Debug, Clone, Copy)]
enum SecondEnd {
    After(usize),
    At(Target),
}

struct Trial<'a, O> {
    operation: O,
    mode: Mode,
    target: &'a Target,
    number: usize,
    first: u64,
    skipped: usize,
}

/// A running checker, as seen by the tracer.
struct Checker {
    child: Child<()>,
    said: Receiver<Said>,
    orders: Sender<Order>,
}

impl Checker {
    fn start<O: Operation>(operation: O, objects: &O::Objects) -> Result<Self, Error> {
        let ((said, say), (orders, order)) = (simplex_pipe()?, simplex_pipe()?);
        let argument = (operation, objects.clone(), (say, orders));
        let child = Process::new(checker::<O>, argument).daemon(true).start()?;
        said.recv()?;
        Ok(Self { child, said, orders: order })
    }

    fn ask(&self, order: Order) -> Result<(), Error> {
        Ok(self.orders.send(order)?)
    }

    /// Adds the checker's next report to `said`. Returns false if none arrives within `patience`.
    fn hear(&self, patience: Duration, what: &str, said: &mut Said) -> Result<bool, Error> {
        if !self.said.poll(patience)? {
            let wait = std::fs::read_to_string(format!("/proc/{}/wchan", self.child.pid())).unwrap_or_default();
            said.complain(format!("{what}: no answer within {patience:?}; the checker is in {wait:?}"));
            return Ok(false);
        }
        match self.said.recv() {
            Ok(new) => {
                said.complaints.extend(new.complaints);
                said.seen.extend(new.seen);
                said.happened = said.happened.or(new.happened);
            }
            Err(error) => said.complain(format!("{what}: the checker ended: {error}")),
        }
        Ok(true)
    }
}

impl<O: Operation> Trial<'_, O> {
    /// Runs the trial. Returns false if the victim did not reach the target.
    fn run(&self, second_end: SecondEnd, hangs: &mut usize, said: &mut Said) -> Result<bool, Error> {
        let objects = self.operation.objects()?;
        let mut victim = Victim::start(victim::<O>, self.operation, &objects)?;
        let other =
            if self.mode == Mode::Double { Some(Victim::start(second::<O>, self.operation, &objects)?) } else { None };
        let checker = Checker::start(self.operation, &objects)?;
        // A process that reaps recovers the objects that it has; at every other target, this one has none.
        let objects = self.number.is_multiple_of(2).then_some(objects);

        let mut reached =
            if self.skipped == 0 { Reached::Target } else { victim.tracee.run_to(self.first, 1, OPERATION)? };
        // The victim is stopped at the first instruction.
        if reached == Reached::Target {
            reached = victim.tracee.run_to(self.target.address, self.target.pass, OPERATION)?;
        }
        let mut situation = Situation { acknowledged: reached != Reached::Target, killed: true, second: false };
        if let Reached::End(stop) = reached
            && stop != Stop::Signal(Signal::SIGSTOP)
        {
            said.complain(format!("the victim, undisturbed, did not come to the end of its operation: {stop:?}"));
        }
        if self.mode == Mode::Freeze {
            checker.ask(Order::CallWithLimits)?;
            let patience = if *hangs < HANGS { PATIENCE + PATIENCE } else { LESS_PATIENCE };
            let in_time = checker.hear(patience, "calls with limits, while the victim stood still", said)?;
            if !self.number.is_multiple_of(3) && !situation.acknowledged {
                let stop = victim.tracee.resume(PATIENCE)?;
                said.check(stop == Stop::Signal(Signal::SIGSTOP), || {
                    format!("the victim went on and came to {stop:?}")
                });
                situation = Situation { acknowledged: true, killed: false, second: false };
            }
            victim.kill()?;
            if !in_time {
                *hangs += 1;
                // Complaints in a late report are about the same hang.
                let mut late = Said::default();
                let came = checker.hear(PATIENCE, "calls with limits, after the victim's end", &mut late)?;
                if !came {
                    said.complaints.append(&mut late.complaints);
                    checker.child.kill()?;
                    return Ok(reached == Reached::Target);
                }
            }
        } else {
            victim.kill()?;
        }
        if let Some(mut other) = other {
            situation.second = true;
            let steps = match second_end {
                SecondEnd::After(steps) => steps,
                SecondEnd::At(target) => {
                    let reached = other.tracee.run_to(target.address, target.pass, PATIENCE)?;
                    let hangs = matches!(reached, Reached::End(Stop::Interrupted | Stop::Running));
                    said.check(!hangs, || "the second process hangs while it recovers".to_owned());
                    0
                }
            };
            for _ in 0..steps {
                match other.tracee.step(PATIENCE)? {
                    Stop::Trap => {}
                    Stop::Running => {
                        said.complain("the second process hangs in a system call while it recovers");
                        break;
                    }
                    _ => break,
                }
            }
            other.kill()?;
        }
        checker.ask(Order::Check(situation))?;
        let patience = if *hangs < HANGS { PATIENCE * 2 } else { PATIENCE / 2 };
        let answered = checker.hear(patience, "the checks", said)?;
        if !answered {
            *hangs += 1;
            checker.child.kill()?;
        }
        if checker.child.join_timeout(PATIENCE).is_err() {
            said.complain("the checker does not end");
        }
        if let Some(objects) = objects {
            // The supervisor reaps and recovers asynchronously.
            let since = Instant::now();
            while let Some(left) = self.operation.left_over(&objects) {
                if since.elapsed() > PATIENCE {
                    said.complain(left);
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(reached == Reached::Target)
    }
}

/// The descriptors of this process before a subject runs, to find what the subject leaves.
pub(crate) struct Before(std::collections::BTreeMap<String, usize>);

impl Before {
    pub(crate) fn now() -> Result<Self, Error> {
        for _ in 0..3 {
            Process::new(|()| (), ()).daemon(true).start()?.join()?;
        }
        drop(polyproc::Lock::new()?); // the file that holds locks stays open
        support::wait_until(|| support::process_descriptors() == support::processes_ahead());
        Ok(Self(support::descriptors()))
    }

    /// Returns the processes and descriptors that were not there before and stay for [`PATIENCE`].
    pub(crate) fn left_over(&self) -> Vec<String> {
        let since = Instant::now();
        loop {
            let mut left = Vec::new();
            if !support::is_childless() {
                left.push(format!("processes are left: {:?}", support::children_of(std::process::id())));
            }
            for (kind, count) in support::descriptors() {
                let before = self.0.get(&kind).copied().unwrap_or(0);
                if count > before {
                    left.push(format!("{} descriptors of {kind:?} are left", count - before));
                }
            }
            if left.is_empty() || since.elapsed() > PATIENCE {
                return left;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
