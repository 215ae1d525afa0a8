//! Kills or stops a process at every single instruction of an operation, and checks what the other processes observe.
//!
//! An operation is recorded once by single steps (`ptrace(2)`). Then each of its distinct instructions is a target, at its
//! first, second and last pass and at two seeded ones: a new victim runs to it and is killed or stopped there.
//! `docs/design/instructions.md` describes the method and the results.
//!
//! | file | content |
//! |---|---|
//! | `trace` | a process under `ptrace` |
//! | `plan` | the targets, and the report |
//! | `trial` | one operation on shared objects: victim, second victim, checker |
//! | `queues`, `objects` | put, get, `task_done`; locks, conditions, semaphores, events |
//! | `workers` | a pool's worker |
//! | `forkserver` | the fork server |
//!
//! As for all tests, the engine is built with `crash-points`: one relaxed load at each marked step.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod forkserver;
mod objects;
mod plan;
mod queues;
#[path = "../support/mod.rs"]
mod support;
mod trace;
mod trial;
mod workers;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use objects::OBJECTS;
use plan::{MODES, Mode, Row, Scale, Violation};
use polyproc::Process;
use queues::QUEUES;
use serde::{Deserialize, Serialize};
use support::TestResult;
use trial::{Before, Operation};

/// The subject of a job: an operation by its index in the tables, or a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Subject {
    Queue(usize),
    Object(usize),
    Worker,
    Forkserver,
}

impl Subject {
    fn name(self) -> String {
        match self {
            Self::Queue(number) => QUEUES[number].name(),
            Self::Object(number) => OBJECTS[number].name(),
            Self::Worker => "pool worker, one task".to_owned(),
            Self::Forkserver => "fork server, one start".to_owned(),
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Job {
    subject: Subject,
    mode: Mode,
    scale: Scale,
}

/// Runs a job, in a process with a fork server of its own: leftovers can be counted, and a job that hangs can be killed.
fn run(job: Job) -> Result<Row, String> {
    let run = || -> Result<Row, trial::Error> {
        let before = Before::now()?;
        let mut row = match job.subject {
            Subject::Queue(number) => trial::run(QUEUES[number], job.mode, job.scale)?,
            Subject::Object(number) => trial::run(OBJECTS[number], job.mode, job.scale)?,
            Subject::Worker => workers::run(job.mode, job.scale)?,
            Subject::Forkserver => forkserver::run(job.mode, job.scale)?,
        };
        let nowhere = trace::Place { file: "at the end".to_owned(), offset: 0 };
        row.complain(0, &nowhere, before.left_over());
        Ok(row)
    };
    run().map_err(|error| error.to_string())
}

/// Returns whether processes can be traced. If not, fails unless `POLYPROC_WITHOUT_PTRACE` is set.
fn may_trace() -> Result<bool, Box<dyn std::error::Error>> {
    let sleeper = Process::new(|()| std::thread::sleep(Duration::from_secs(3600)), ()).daemon(true).start()?;
    let traced = trace::Tracee::stop(sleeper.pid());
    let error = match traced {
        Ok(tracee) => {
            tracee.kill();
            let _ = sleeper.join();
            return Ok(true);
        }
        Err(error) => error,
    };
    sleeper.kill()?;
    let _ = sleeper.join();
    let why = format!("this system refuses ptrace ({error}): NOT A SINGLE INSTRUCTION WAS TRIED");
    if std::env::var_os("POLYPROC_WITHOUT_PTRACE").is_some() {
        println!("{why}");
        return Ok(false);
    }
    Err(format!("{why}; set POLYPROC_WITHOUT_PTRACE=1 to let this test pass without it").into())
}

/// Returns the function and line of an instruction, if `addr2line` is installed: the innermost inlined frame of this project.
fn symbol(place: &trace::Place) -> String {
    let address = format!("{:#x}", place.offset);
    let output = std::process::Command::new("addr2line").args(["-f", "-C", "-i", "-e", &place.file, &address]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let frames: Vec<_> = lines.chunks_exact(2).map(|frame| (frame[0], frame[1])).collect();
    let own = frames.iter().find(|(_, line)| line.contains("crates/polyproc")).or(frames.first());
    let (function, line) = own.copied().unwrap_or_default();
    let line = line.split_once("crates/").map_or(line, |(_, line)| line);
    format!("{}+{address} {function} {line}", place.file.rsplit('/').next().unwrap_or_default())
}

/// Prints the violations by kind: their number, and the places of a sample.
fn explain(row: &Row) {
    const SHOWN: usize = 12;
    let mut kinds = BTreeMap::<String, Vec<&Violation>>::new();
    for violation in &row.violations {
        let kind = violation.what.replace(|c: char| c.is_ascii_digit(), "");
        kinds.entry(kind).or_default().push(violation);
    }
    for violations in kinds.values() {
        println!("VIOLATION, {} times: {}, {}: {}", violations.len(), row.operation, row.mode, violations[0].what);
        let stride = violations.len().div_ceil(SHOWN);
        let mut shown = None;
        for violation in violations.iter().step_by(stride) {
            if shown.replace(violation.step) != Some(violation.step) {
                println!("    after {} instructions, at {}", violation.step, symbol(&violation.place));
            }
        }
    }
}

fn print(row: &Row) {
    println!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {:.1} |",
        row.operation,
        row.mode,
        row.instructions,
        row.distinct,
        row.tried,
        row.missed,
        row.left_out,
        row.violations.len(),
        row.seconds
    );
}

/// Runs all operations in all modes, two at a time.
fn everything(most: Option<usize>, budget: Option<Duration>, limit: Duration) -> TestResult {
    if !may_trace()? {
        return Ok(());
    }
    let seed = std::env::var("POLYPROC_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let only = std::env::var("POLYPROC_OPERATION").unwrap_or_default();
    let only_mode = std::env::var("POLYPROC_MODE").unwrap_or_default();
    let modes: Vec<_> = MODES.into_iter().filter(|mode| mode.name().contains(&only_mode)).collect();
    let scale = Scale { most, budget, seed };
    let queues = (0..QUEUES.len()).map(Subject::Queue);
    let objects = (0..OBJECTS.len()).map(Subject::Object);
    let subjects = queues.chain(objects).chain([Subject::Worker, Subject::Forkserver]);
    let subjects: Vec<_> = subjects.filter(|subject| subject.name().contains(&only)).collect();
    let jobs: Vec<_> =
        modes.iter().flat_map(|&mode| subjects.iter().map(move |&subject| Job { subject, mode, scale })).collect();
    let jobs = Mutex::new(jobs.into_iter());
    let rows = Mutex::new(Vec::new());
    let since = Instant::now();
    println!("seed {seed}");
    println!("| operation | mode | instructions | distinct | tried | missed | left out | violations | seconds |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let work = || {
        while let Some(job) = { jobs.lock().expect("no panic").next() } {
            let named = |why: String| format!("{}, {}: {why}", job.subject.name(), job.mode.name());
            let row = match Process::new(run, job).start() {
                Err(error) => Err(named(error.to_string())),
                Ok(runner) => match runner.join_timeout(limit) {
                    Ok(Ok(row)) => row.map_err(named),
                    Ok(Err(error)) => Err(named(error.to_string())),
                    Err(runner) => {
                        let _ = runner.kill();
                        let _ = runner.join();
                        Err(named(format!("not at its end after {limit:?}")))
                    }
                },
            };
            match &row {
                Ok(row) => print(row),
                Err(why) => println!("{why}"),
            }
            rows.lock().expect("no panic").push(row);
        }
    };
    std::thread::scope(|scope| {
        (0..2).for_each(|_| _ = scope.spawn(work));
    });
    let rows = rows.into_inner()?;
    println!("{:.0} s", since.elapsed().as_secs_f64());
    let mut wrong = 0;
    for row in &rows {
        match row {
            Err(_) => wrong += 1,
            Ok(row) => {
                println!("{}, {}: {:?}", row.operation, row.mode, row.seen);
                wrong += row.violations.len();
                explain(row);
            }
        }
    }
    assert_eq!(wrong, 0, "violations: see above");
    Ok(())
}

/// A sample: at most 8 instructions of each operation and mode, for at most half a second each.
#[test]
fn some_instructions() -> TestResult {
    everything(Some(8), Some(Duration::from_millis(500)), Duration::from_secs(50))
}

#[test]
#[ignore = "some minutes: run by the command in CONTRIBUTING.md"]
fn every_instruction() -> TestResult {
    everything(None, None, Duration::from_secs(1800))
}
