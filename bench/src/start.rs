//! Start, return and join of a trivial function, in a small process, beside 1 GiB of memory, and beside 16 threads.
#![expect(unsafe_code, reason = "the bare fork that others are measured by")]

use std::collections::BTreeMap;
use std::error::Error;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use polyproc::{ForkWithThreads, Process, StartMethod};

use crate::table::{self, Row};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const CASES: [&str; 3] = ["small process", "1 GiB resident", "16 threads"];
const ROUNDS: usize = 7;
/// Maximum number of starts of each rival in each round.
const STARTS: usize = 100;
/// Time after which a round ends, once it has three starts.
const ROUND_TIME: Duration = Duration::from_millis(400);
const LIMIT: &str = "fork + waitpid, tiny process";

/// The function that every rival runs.
fn double(x: u64) -> u64 {
    x * 2
}

#[crossmist::func]
fn crossmist_double(x: u64) -> u64 {
    double(x)
}

/// Starts a process that doubles the number, joins it, and returns the result.
type Rival = fn(u64) -> Result<u64>;

const RIVALS: [(&str, Rival); 7] = [
    ("polyproc forkserver", |x| Ok(Process::new(double, x).start()?.join()?)),
    ("polyproc spawn", |x| Ok(Process::new(double, x).start_method(StartMethod::Spawn).start()?.join()?)),
    ("polyproc fork", |x| {
        // SAFETY: the child multiplies, allocates and sends; libc's fork makes its allocator safe for that.
        let promise = unsafe { ForkWithThreads::new() };
        Ok(Process::fork(|| double(x)).fork_with_threads(promise).start()?.join()?)
    }),
    ("fork + waitpid, this process", |x| fork_and_wait().map(|()| double(x))),
    ("Command of true", |x| {
        let status = Command::new("true").status()?;
        if status.success() { Ok(double(x)) } else { Err("true failed".into()) }
    }),
    ("procspawn", |x| Ok(procspawn::spawn(x, double).join()?)),
    ("crossmist", |x| Ok(crossmist_double.spawn(x)?.join()?)),
];

fn fork_and_wait() -> Result<()> {
    // SAFETY: the child ends at once.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error().into()),
        // SAFETY: ends the child without touching anything.
        0 => unsafe { libc::_exit(0) },
        pid => {
            let mut status = 0;
            // SAFETY: waits for a child of this process and writes its status.
            let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            if waited == pid && status == 0 { Ok(()) } else { Err("the fork failed".into()) }
        }
    }
}

/// Returns the microseconds of each start in one round.
fn round(mut start: impl FnMut(u64) -> Result<u64>) -> Result<Vec<f64>> {
    let begin = Instant::now();
    let mut samples = Vec::with_capacity(STARTS);
    while samples.len() < 3 || samples.len() < STARTS && begin.elapsed() < ROUND_TIME {
        let x = samples.len() as u64;
        let started = Instant::now();
        let result = start(x)?;
        samples.push(started.elapsed().as_secs_f64() * 1e6);
        if result != 2 * x {
            return Err(format!("{result} for {x}").into());
        }
    }
    Ok(samples)
}

/// Runs all cases, each in a process of its own.
pub(crate) fn run(json: Option<&Path>) -> Result<()> {
    let mut rows = Vec::new();
    for case in CASES {
        let output =
            Command::new(std::env::current_exe()?).args(["start-in", case]).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            return Err(format!("{case}: {}", output.status).into());
        }
        let samples: BTreeMap<String, Vec<f64>> = serde_json::from_slice(&output.stdout)?;
        let order = RIVALS.iter().map(|(who, _)| *who).chain([LIMIT]);
        rows.extend(order.filter_map(|who| Row::from_samples(case, who, "us", samples.get(who)?.clone())));
    }
    println!("start + return + join of a trivial function; ratios of medians");
    table::print(&rows, LIMIT, "polyproc");
    if let Some(path) = json {
        table::write_json(&rows, path)?;
    }
    Ok(())
}

/// Runs one case, and prints the samples of each rival as JSON.
pub(crate) fn run_in(arguments: &[String]) -> Result<()> {
    let case = arguments.first().map_or("", String::as_str);
    let memory = if case == CASES[1] { vec![1u8; 1 << 30] } else { Vec::new() };
    if case == CASES[2] {
        for _ in 0..16 {
            std::thread::spawn(|| {
                loop {
                    std::thread::park()
                }
            });
        }
    }
    let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut failed = BTreeMap::new();
    for number in 0..=ROUNDS {
        for (who, start) in RIVALS {
            if failed.contains_key(who) {
                continue;
            }
            match catch_unwind(|| round(start)) {
                Ok(Ok(times)) if number > 0 => samples.entry(who).or_default().extend(times),
                Ok(Ok(_)) => {} // the first round warms up
                Ok(Err(error)) => _ = failed.insert(who, error.to_string()),
                Err(_) => _ = failed.insert(who, "it panicked (see above)".to_owned()),
            }
        }
        let fork = Command::new(std::env::current_exe()?).arg("start-fork").output()?;
        let times: Vec<f64> = serde_json::from_slice(&fork.stdout)?;
        if number > 0 {
            samples.entry(LIMIT).or_default().extend(times);
        }
    }
    std::hint::black_box(&memory);
    failed.iter().for_each(|(who, why)| eprintln!("{case}: {who} gave no figures: {why}"));
    println!("{}", serde_json::to_string(&samples)?);
    Ok(())
}

/// Measures the limit: one round of bare forks of a process that does nothing else.
pub(crate) fn run_fork(_: &[String]) -> Result<()> {
    let times = round(|x| fork_and_wait().map(|()| double(x)))?;
    println!("{}", serde_json::to_string(&times)?);
    Ok(())
}
