//! A worker of a pool, from its wake-up through claim, begin, run and answer to its next sleep.
//!
//! The other worker is stopped until the victim has reached its target, so that the victim claims the task.

use std::time::{Duration, Instant};

use polyproc::{AsyncResult, Failure, Pool, SharedMemory, TaskError};

use super::plan::{Mode, Random, Row, Scale, Target, targets};
use super::trace::{Maps, Reached, Stop, Tracee};
use super::trial::{Error, HANGS, LESS_PATIENCE, PATIENCE, Said};

/// The limit of a task whose worker is stopped.
const LIMIT: Duration = Duration::from_millis(60);
/// Time limit of a task: it takes microseconds, but longer under a tracer.
const TASK: Duration = Duration::from_secs(20);
/// How long a worker may sleep in a system call before that counts as the end of the operation.
const ASLEEP: Duration = Duration::from_millis(100);
const SLOTS: usize = 1 << 17;
const FUTEX: u64 = 202;
/// Tasks from this number on keep their worker busy for 2 ms.
const WARM_UP: usize = SLOTS - 64;

/// Counts the runs of each task.
fn task(runs: &mut SharedMemory, number: usize) -> usize {
    let count = runs.read_at(number, 1).expect("a slot")[0];
    runs.write_at(number, &[count.saturating_add(1)]).expect("a slot");
    if number >= WARM_UP {
        std::thread::sleep(Duration::from_millis(2));
    }
    number * 3
}

struct Subject {
    pool: Pool<SharedMemory>,
    runs: SharedMemory,
    next: usize,
}

type Answer = Option<Result<usize, TaskError>>;

impl Subject {
    fn new() -> Result<Self, Error> {
        let runs = SharedMemory::new(SLOTS)?;
        let pool = Pool::builder().workers(2).initializer(|runs: SharedMemory| runs, runs.clone()).build()?;
        Ok(Self { pool, runs, next: 0 })
    }

    /// Returns two workers that have run the task before, stopped in their sleep.
    fn workers(&self) -> Result<[(u32, Tracee); 2], Error> {
        let since = Instant::now();
        loop {
            let stats = self.pool.stats().workers;
            if stats.len() == 2 && stats.iter().all(|worker| worker.tasks > 0) {
                // Once both sleep, the warm-up is complete.
                if stats.iter().all(|worker| sleeps_in_futex(worker.pid)) {
                    let [one, other] = [stats[0].pid, stats[1].pid];
                    return Ok([(one, Tracee::stop(one)?), (other, Tracee::stop(other)?)]);
                }
                if since.elapsed() < PATIENCE {
                    std::thread::sleep(Duration::from_micros(200));
                    continue;
                }
            }
            if since.elapsed() > PATIENCE * 2 {
                return Err(format!("the pool has no two workers that answer: {stats:?}").into());
            }
            let warm = self.pool.state_with(self.pool.chunksize(1)).map_async(task, [WARM_UP, WARM_UP + 1]);
            let _ = warm.wait_timeout(PATIENCE);
        }
    }

    fn submit(&mut self, retries: u32, limit: Option<Duration>) -> (usize, AsyncResult<usize>) {
        let number = self.next;
        self.next = (self.next + 1) % WARM_UP;
        self.runs.write_at(number, &[0]).expect("a slot");
        let options = self.pool.options().retries(retries).backoff(Duration::from_millis(1));
        let options = if let Some(limit) = limit { options.timeout(limit) } else { options };
        (number, self.pool.state_with(options).apply_async(task, number))
    }

    fn count(&self, number: usize) -> u8 {
        self.runs.read_at(number, 1).expect("a slot")[0]
    }

    fn goes_on(&mut self, said: &mut Said) {
        let numbers: Vec<usize> = (0..4).map(|offset| WARM_UP + 8 + offset).collect();
        let more = self.pool.state_with(self.pool.options().retries(1)).map_async(task, numbers.clone());
        match more.get_timeout(PATIENCE) {
            Ok(Ok(results)) => {
                let right = results.iter().zip(&numbers).all(|(result, number)| *result == number * 3);
                said.check(right, || format!("wrong results afterwards: {results:?}"));
            }
            Ok(Err(error)) => said.complain(format!("tasks afterwards: {error}")),
            Err(_) => said.complain("tasks afterwards have no outcome"),
        }
    }
}

fn sleeps_in_futex(pid: u32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    call.split_whitespace().next().and_then(|number| number.parse().ok()) == Some(FUTEX)
}

/// A thread that waits for the result, as in most programs; at every other target, no thread waits.
enum Waiter {
    Thread(std::thread::JoinHandle<Answer>),
    Later(AsyncResult<usize>),
}

impl Waiter {
    fn new(pending: AsyncResult<usize>, waits: bool, patience: Duration) -> Self {
        if !waits {
            return Self::Later(pending);
        }
        let thread = std::thread::spawn(move || pending.get_timeout(patience).ok());
        std::thread::sleep(Duration::from_micros(300));
        Self::Thread(thread)
    }

    fn answer(self, patience: Duration) -> Answer {
        match self {
            Self::Thread(thread) => thread.join().unwrap_or(None),
            Self::Later(pending) => pending.get_timeout(patience).ok(),
        }
    }
}

/// Records every instruction of a worker from its wake-up with a task to its next sleep.
fn record(subject: &mut Subject) -> Result<(Vec<u64>, Maps), Error> {
    let [(pid, mut victim), (_, other)] = subject.workers()?;
    let maps = Maps::of(pid)?;
    let (_, pending) = subject.submit(0, None);
    let mut addresses = Vec::new();
    let mut sleeps = 0;
    loop {
        let at = victim.at()?;
        addresses.push(at);
        // The first call is the sleep that the task ends.
        if victim.system_call()?.is_some_and(|number| number == FUTEX) && addresses.len() > 1 {
            sleeps += usize::from(pending.ready());
        }
        if sleeps > 0 {
            break;
        }
        match victim.step(ASLEEP)? {
            Stop::Trap => {}
            Stop::Running => break,
            other => return Err(format!("the recorded worker came to {other:?}").into()),
        }
    }
    victim.release();
    other.release();
    Ok((addresses, maps))
}

/// Tries the targets of a worker in one mode.
pub(crate) fn run(mode: Mode, scale: Scale) -> Result<Row, Error> {
    let since = Instant::now();
    let mut row = Row::new("pool worker, one task".to_owned(), mode);
    let mut subject = Subject::new()?;
    let (recording, maps) = record(&mut subject)?;
    row.recorded(&recording);
    let mut random = Random(scale.seed);
    let mut hangs = 0;
    let targets = targets(&recording, scale.of(mode));
    let begun = Instant::now();
    for (number, target) in targets.iter().enumerate() {
        if scale.is_over(begun, hangs) {
            row.left_out = targets.len() - number;
            break;
        }
        let mut said = Said::default();
        let steps = random.below(recording.len());
        let reached = match trial(&mut subject, mode, target, number, steps, &mut hangs, &mut said) {
            Ok(reached) => reached,
            Err(error) => {
                said.complain(format!("the pool could not be used any more: {error}"));
                subject = Subject::new()?;
                true
            }
        };
        row.tried += usize::from(reached);
        row.missed += usize::from(!reached);
        said.seen.into_iter().for_each(|seen| row.see(seen));
        row.complain(target.step, &maps.place(target.address), said.complaints);
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
    hangs: &mut usize,
    said: &mut Said,
) -> Result<bool, Error> {
    let [mut one, mut two] = subject.workers()?;
    if number % 3 == 1 {
        std::mem::swap(&mut one, &mut two);
    }
    let ((_, mut victim), (_, mut other)) = (one, two);
    let retries = match mode {
        Mode::Freeze => 0,
        _ if number.is_multiple_of(4) || number % 4 == 1 => 0,
        _ => 3,
    };
    let (task, pending) = subject.submit(retries, (mode == Mode::Freeze).then_some(LIMIT));
    let patience = if *hangs < HANGS { PATIENCE + LIMIT } else { LESS_PATIENCE };
    let waiter = Waiter::new(pending, number.is_multiple_of(2), patience);
    let reached = victim.run_to(target.address, target.pass, TASK)?;
    let reached = match reached {
        Reached::Target => true,
        Reached::End(stop) => {
            said.check(stop != Stop::Gone, || "the victim died by itself".to_owned());
            false
        }
    };
    let mut deaths = 1;
    let mut stood_still = None;
    match mode {
        Mode::Kill => {
            victim.kill();
            other.release();
        }
        Mode::Double => {
            victim.kill();
            for _ in 0..steps {
                // This worker sleeps if the victim left it no work.
                if other.step(Duration::from_millis(5))? != Stop::Trap {
                    break;
                }
            }
            other.kill();
            deaths = 2;
        }
        Mode::Freeze => {
            other.release();
            stood_still = Some(victim);
        }
    }
    let mut answer = waiter.answer(patience);
    if let Some(victim) = stood_still {
        // The other worker must still serve tasks.
        let (_, more) = subject.submit(0, None);
        said.check(matches!(more.get_timeout(PATIENCE), Ok(Ok(_))), || "the other worker does not answer".to_owned());
        if answer.is_none() {
            *hangs += 1;
            said.complain(format!("a task with a limit of {LIMIT:?} has no outcome after {patience:?}"));
        }
        if number.is_multiple_of(3) {
            victim.kill()
        } else {
            victim.release()
        }
        deaths = 1;
    }
    let runs = subject.count(task);
    match &mut answer {
        Some(Ok(value)) => {
            said.seen.push("value".to_owned());
            said.check(*value == task * 3, || format!("the result of task {task} is {value}"));
            said.check(runs >= 1, || "a result of a task that did not run".to_owned());
        }
        Some(Err(error)) => {
            let name = match error.failure {
                Failure::WorkerLost(_) => "WorkerLost",
                Failure::TimedOut => "TimedOut",
                _ => "another failure",
            };
            said.seen.push(name.to_owned());
            let allowed = match mode {
                Mode::Freeze => name == "TimedOut",
                _ => name == "WorkerLost" && retries == 0,
            };
            said.check(allowed, || format!("with {retries} retries: {error}"));
        }
        None if mode == Mode::Freeze => {}
        None => said.complain("the task has no outcome"),
    }
    let most = if retries == 0 { 1 } else { 1 + deaths };
    said.check(runs <= most, || format!("a task with {retries} retries and {deaths} deaths ran {runs} times"));
    subject.goes_on(said);
    Ok(reached)
}
