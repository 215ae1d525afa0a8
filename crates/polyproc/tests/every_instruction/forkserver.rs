//! The fork server, from a request to its next sleep, twice: for the requested process and for the spare.
//!
//! The victim runs in single steps: a breakpoint would be copied into the processes that it forks.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use polyproc::{Process, SharedMemory, StartError, active_children};
use polyproc_core::process::forkserver_pid;

use super::plan::{Mode, Random, Row, Scale, Target, targets};
use super::support::{children_of, is_childless, wait_until};
use super::trace::{Maps, Place, Stop, Tracee};
use super::trial::{Error, LIMIT, PATIENCE, Said};

const SLOTS: usize = 1 << 17;
/// How long the victim may sleep between two requests before that counts as the end.
const ASLEEP: Duration = Duration::from_millis(400);
const RECVMSG: u64 = 47;
const MOST_FROZEN: usize = 300;

fn leave_a_mark((runs, number): (SharedMemory, usize)) -> usize {
    let count = runs.read_at(number, 1).expect("a slot")[0];
    runs.write_at(number, &[count.saturating_add(1)]).expect("a slot");
    number
}

struct Subject {
    runs: SharedMemory,
    next: usize,
}

/// How a start ended.
enum Started {
    /// The process ran and returned.
    Returned,
    /// The process was not started, with this error.
    Refused(String),
    Wrong(String),
}

/// Starts and joins a process.
fn start(runs: SharedMemory, number: usize) -> Started {
    match Process::new(leave_a_mark, (runs, number)).start() {
        Ok(child) => match child.join_timeout(PATIENCE * 2) {
            Ok(Ok(returned)) if returned == number => Started::Returned,
            Ok(other) => Started::Wrong(format!("joining it gives {other:?}")),
            Err(_) => Started::Wrong("the process does not end".to_owned()),
        },
        Err(error @ StartError::Forkserver { .. }) => Started::Refused(error.to_string()),
        Err(error) => Started::Wrong(error.to_string()),
    }
}

impl Subject {
    fn next(&mut self) -> usize {
        self.next = (self.next + 1) % SLOTS;
        self.runs.write_at(self.next, &[0]).expect("a slot");
        self.next
    }

    /// Starts a process in a new thread. Returns its number, and the channel of the outcome.
    fn start(&mut self) -> (usize, mpsc::Receiver<Started>) {
        let number = self.next();
        let (tell, told) = mpsc::channel();
        let runs = self.runs.clone();
        std::thread::spawn(move || tell.send(start(runs, number)));
        (number, told)
    }

    /// Replaces the fork server. Returns the id of the new one, which has created one process and no spare.
    fn fresh(&mut self) -> Result<u32, Error> {
        let old = forkserver_pid();
        if let Some(old) = old {
            let _ = kill(Pid::from_raw(old.cast_signed()), Signal::SIGKILL); // it may be dead
            wait_until(|| !children_of(std::process::id()).contains(&old));
        }
        for _ in 0..4 {
            let number = self.next();
            if let Started::Wrong(why) = start(self.runs.clone(), number) {
                return Err(why.into());
            }
            if let Some(new) = forkserver_pid().filter(|new| Some(*new) != old) {
                return Ok(new);
            }
        }
        Err("no new fork server comes".into())
    }

    fn judge(&self, what: &str, number: usize, started: Result<Started, mpsc::RecvTimeoutError>, said: &mut Said) {
        let runs = self.runs.read_at(number, 1).expect("a slot")[0];
        match started {
            Ok(Started::Returned) => {
                said.seen.push("started".to_owned());
                said.check(runs == 1, || format!("{what} ran {runs} times"));
            }
            Ok(Started::Refused(why)) => {
                said.seen.push(format!("refused: {why}"));
                said.check(runs == 0, || format!("{what} was refused and ran {runs} times"));
            }
            Ok(Started::Wrong(why)) => said.complain(format!("{what}: {why}")),
            Err(_) => said.complain(format!("{what} does not end")),
        }
    }
}

/// Waits at most [`PATIENCE`] until only the fork server and its spare are left. Returns whether that is so.
fn is_childless_soon() -> bool {
    let since = Instant::now();
    while !is_childless() && since.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
    is_childless()
}

/// Steps until the target, or until the victim sleeps after its second request. Returns whether it reached the target.
fn walk(victim: &mut Tracee, steps: usize, mut each: impl FnMut(u64)) -> Result<bool, Error> {
    let mut received = 0;
    for _ in 0..steps {
        let at = victim.at()?;
        each(at);
        if victim.system_call()? == Some(RECVMSG) {
            received += 1;
        }
        // The call that the first request ends does not count: the victim was stopped inside it.
        match victim.step(if received > 1 { ASLEEP } else { PATIENCE })? {
            Stop::Trap => {}
            Stop::Running => {
                victim.halt()?;
                return Ok(false);
            }
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Tries the targets of a fork server in one mode.
pub(crate) fn run(mode: Mode, scale: Scale) -> Result<Row, Error> {
    let since = Instant::now();
    let mut row = Row::new("fork server, one start".to_owned(), mode);
    let mut subject = Subject { runs: SharedMemory::new(SLOTS)?, next: 0 };
    let pid = subject.fresh()?;
    let mut victim = Tracee::stop(pid)?;
    let maps = Maps::of(pid)?;
    let (_, started) = subject.start();
    let mut recording = Vec::new();
    walk(&mut victim, usize::MAX, |at| recording.push(at))?;
    victim.release();
    let _ = started.recv_timeout(PATIENCE);
    row.recorded(&recording);
    let mut random = Random(scale.seed);
    let scale = scale.of(mode);
    // Each trial executes the program twice, so only kills are tried at every target.
    let most = if mode == Mode::Kill { scale.most } else { scale.most.or(Some(MOST_FROZEN)) };
    let targets = targets(&recording, Scale { most, ..scale });
    let begun = Instant::now();
    for (number, target) in targets.iter().enumerate() {
        if scale.is_over(begun, 0) {
            row.left_out = targets.len() - number;
            break;
        }
        let mut said = Said::default();
        let steps = random.below(2000);
        let reached = trial(&mut subject, mode, target, number, steps, &mut said)?;
        row.tried += usize::from(reached);
        row.missed += usize::from(!reached);
        said.seen.into_iter().for_each(|seen| row.see(seen));
        let place: Place = maps.place(target.address);
        row.complain(target.step, &place, said.complaints);
        if !is_childless_soon() {
            let left = format!("processes are left: {:?}", children_of(std::process::id()));
            row.complain(target.step, &place, [left]);
            row.left_out = targets.len() - number - 1;
            break;
        }
    }
    row.seconds = since.elapsed().as_secs_f64();
    Ok(row)
}

fn trial(
    subject: &mut Subject,
    mode: Mode,
    target: &Target,
    number: usize,
    steps: usize,
    said: &mut Said,
) -> Result<bool, Error> {
    let pid = subject.fresh()?;
    let mut victim = Tracee::stop(pid)?;
    let (task, started) = subject.start();
    let reached = walk(&mut victim, target.step, |_| ())?;
    match mode {
        Mode::Kill => victim.kill(),
        Mode::Freeze => {
            // A start has no limit. Calls that have one, and calls that only query, must return in time.
            let (tell, told) = mpsc::channel();
            std::thread::spawn(move || {
                let ready = polyproc::wait::<std::fs::File>(&[], Some(LIMIT)).is_ok();
                let count = active_children().len();
                let _ = tell.send((ready, count));
            });
            let ended = told.recv_timeout(LIMIT + PATIENCE);
            said.check(ended.is_ok(), || "a wait with a limit does not end while a start waits".to_owned());
            if number.is_multiple_of(3) { victim.kill() } else { victim.release() }
        }
        Mode::Double => {
            victim.kill();
            kill_next(subject, pid, steps, said);
        }
    }
    subject.judge("the start", task, started.recv_timeout(PATIENCE * 2), said);
    for _ in 0..2 {
        let (task, started) = subject.start();
        subject.judge("a start afterwards", task, started.recv_timeout(PATIENCE * 2), said);
    }
    Ok(reached)
}

/// Returns the children of this process, faster than a scan of all processes.
fn own_children() -> Vec<u32> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Kills the fork server that replaces the dead one, `steps` instructions after it was found.
fn kill_next(subject: &mut Subject, old: u32, steps: usize, said: &mut Said) {
    // The process that executes this program again: copies of a fork server have other names.
    let is_new = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        *pid != old && name.trim_end() == "exe"
    };
    // The first start may not need another fork server, but one of these starts does.
    let more = [subject.start(), subject.start(), subject.start()];
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(100) {
        let Some(next) = own_children().into_iter().find(is_new) else { continue };
        let Ok(mut second) = Tracee::stop(next) else { continue };
        for _ in 0..steps {
            if !matches!(second.step(Duration::from_millis(20)), Ok(Stop::Trap)) {
                break;
            }
        }
        second.kill();
        said.seen.push("second fork server killed".to_owned());
        break;
    }
    for (task, started) in more {
        subject.judge("another start", task, started.recv_timeout(PATIENCE * 2), said);
    }
}
