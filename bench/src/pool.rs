//! Pools of two workers: throughput, round trips, distribution of work, values of all sizes.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use polyproc::Pool;
use rayon::prelude::*;
use serde_bytes::ByteBuf;

use crate::table::{self, Row};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const WORKERS: usize = 2;
const RUNS: usize = 5;

fn same(x: u64) -> u64 {
    black_box(x)
}

/// Spins for `nanos` nanoseconds.
fn busy(nanos: u64) -> u64 {
    let start = Instant::now();
    while start.elapsed() < Duration::from_nanos(nanos) {
        std::hint::spin_loop();
    }
    nanos
}

fn echo(bytes: ByteBuf) -> ByteBuf {
    bytes
}

/// Two threads that take jobs from one channel and answer on another.
struct Threads<A, R> {
    jobs: Option<crossbeam_channel::Sender<(usize, A)>>,
    results: crossbeam_channel::Receiver<(usize, R)>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl<A: Send + 'static, R: Send + 'static> Threads<A, R> {
    fn new(function: fn(A) -> R) -> Self {
        let (jobs, work) = crossbeam_channel::unbounded::<(usize, A)>();
        let (answer, results) = crossbeam_channel::unbounded();
        let threads = (0..WORKERS)
            .map(|_| {
                let (work, answer) = (work.clone(), answer.clone());
                std::thread::spawn(move || {
                    for (index, argument) in work {
                        if answer.send((index, function(argument))).is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        Self { jobs: Some(jobs), results, threads }
    }

    fn map(&self, items: impl Iterator<Item = A>) -> Vec<R> {
        let jobs = self.jobs.as_ref().expect("not dropped");
        let mut count = 0;
        for (index, item) in items.enumerate() {
            jobs.send((index, item)).expect("the threads live");
            count += 1;
        }
        let mut results: Vec<Option<R>> = std::iter::repeat_with(|| None).take(count).collect();
        for (index, result) in self.results.iter().take(count) {
            results[index] = Some(result);
        }
        results.into_iter().flatten().collect()
    }
}

impl<A, R> Drop for Threads<A, R> {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            thread.join().expect("no panic");
        }
    }
}

/// Returns the nanoseconds per item of several runs, and checks the results.
fn per_item(count: u64, mut map: impl FnMut() -> Result<Vec<u64>>) -> Result<Vec<f64>> {
    map()?; // warm
    let mut samples = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        let results = map()?;
        let nanos = start.elapsed().as_nanos();
        if results.len() as u64 != count || results.iter().sum::<u64>() != count * (count - 1) / 2 {
            return Err("wrong results".into());
        }
        samples.push(nanos as f64 / count as f64);
    }
    Ok(samples)
}

/// Returns the microseconds of each call, with a pause before it.
fn round_trips(rounds: usize, pause: Duration, mut call: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    for _ in 0..100.min(rounds) {
        call()?;
    }
    let mut samples = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let start = Instant::now();
        call()?;
        samples.push(start.elapsed().as_nanos() as f64 / 1e3);
    }
    Ok(samples)
}

struct Table(Vec<Row>);

impl Table {
    fn add(&mut self, case: &str, who: &str, unit: &'static str, samples: Result<Vec<f64>>) {
        match samples {
            Ok(samples) => self.0.extend(Row::from_samples(case, who, unit, samples)),
            Err(error) => eprintln!("{case}, {who}: {error}"),
        }
    }
}

/// Measures Python's pool: nanoseconds per task with chunks of one task and of the default size, microseconds per `apply`.
fn python() -> Result<[f64; 3]> {
    let program = "
import multiprocessing as mp, time, statistics
def same(x): return x
def timed(f):
    f()
    out = []
    for _ in range(3):
        t = time.perf_counter(); f(); out.append(time.perf_counter() - t)
    return statistics.median(out)
if __name__ == '__main__':
    with mp.Pool(2) as pool:
        n = 20000
        print(timed(lambda: pool.map(same, range(n), chunksize=1)) / n * 1e9)
        n = 1000000
        print(timed(lambda: pool.map(same, range(n))) / n * 1e9)
        n = 2000
        print(timed(lambda: [pool.apply(same, (1,)) for _ in range(n)]) / n * 1e6)
";
    let output = std::process::Command::new("python3").args(["-c", program]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.lines().map(str::parse).collect::<std::result::Result<_, _>>()?;
    numbers.try_into().map_err(|_| "python3 did not run".into())
}

fn procspawn_map(pool: &procspawn::Pool, count: u64) -> Result<Vec<u64>> {
    let mut results = Vec::new();
    // Handles hold descriptors until they are joined, so tasks are submitted in batches.
    for start in (0..count).step_by(200) {
        let handles: Vec<_> =
            (start..count.min(start + 200)).map(|x| procspawn::spawn!(in pool, (x => x) || same(x))).collect();
        for handle in handles {
            results.push(handle.join()?);
        }
    }
    Ok(results)
}

fn throughput(table: &mut Table, pool: &Pool, rayon: &rayon::ThreadPool, python: Option<[f64; 3]>) {
    let case = "empty tasks, one by one";
    let count = 200_000;
    table.add(case, "polyproc map", "ns", per_item(count, || Ok(pool.chunksize(1).map(same, 0..count)?)));
    let unordered = || Ok(pool.imap_unordered(same, 0..count).collect::<std::result::Result<Vec<u64>, _>>()?);
    table.add(case, "polyproc imap_unordered", "ns", per_item(count, unordered));
    let threads = Threads::new(same);
    table.add(case, "crossbeam-channel, 2 threads", "ns", per_item(count, || Ok(threads.map(0..count))));
    let items: Vec<u64> = (0..count).collect();
    let one_by_one = || Ok(rayon.install(|| items.par_iter().with_max_len(1).map(|x| same(*x)).collect::<Vec<u64>>()));
    table.add(case, "rayon", "ns", per_item(count, one_by_one));
    let threadpool = threadpool::ThreadPool::new(WORKERS);
    let boxed = || {
        let (sender, receiver) = std::sync::mpsc::channel();
        for x in 0..count {
            let sender = sender.clone();
            threadpool.execute(move || sender.send(same(x)).expect("somebody listens"));
        }
        Ok(receiver.iter().take(usize::try_from(count)?).collect())
    };
    table.add(case, "threadpool", "ns", per_item(count, boxed));
    match procspawn::Pool::new(WORKERS) {
        Ok(procspawn) => table.add(case, "procspawn", "ns", per_item(2000, || procspawn_map(&procspawn, 2000))),
        Err(error) => eprintln!("procspawn: {error}"),
    }
    if let Some([nanos, _, _]) = python {
        table.add(case, "Python multiprocessing.Pool", "ns", Ok(vec![nanos]));
    }

    let case = "empty tasks, chunks of the default size";
    let count = 2_000_000;
    table.add(case, "polyproc map", "ns", per_item(count, || Ok(pool.map(same, 0..count)?)));
    let items: Vec<u64> = (0..count).collect();
    let all = || Ok(rayon.install(|| items.par_iter().map(|x| same(*x)).collect::<Vec<u64>>()));
    table.add(case, "rayon", "ns", per_item(count, all));
    let chunked = Threads::new(|chunk: Vec<u64>| chunk.into_iter().map(same).collect::<Vec<u64>>());
    let chunks = || Ok(chunked.map(items.chunks(2048).map(<[u64]>::to_vec)).concat());
    table.add(case, "crossbeam-channel, 2 threads", "ns", per_item(count, chunks));
    if let Some([_, nanos, _]) = python {
        table.add(case, "Python multiprocessing.Pool", "ns", Ok(vec![nanos]));
    }
}

fn latency(table: &mut Table, pool: &Pool, rayon: &rayon::ThreadPool, python: Option<[f64; 3]>) {
    for (case, rounds, pause) in
        [("apply, hot", 20_000, Duration::ZERO), ("apply, idle before", 200, Duration::from_millis(2))]
    {
        let check = |x: u64| if x == 7 { Ok(()) } else { Err("wrong result".into()) };
        table.add(case, "polyproc", "us", round_trips(rounds, pause, || check(pool.apply(same, 7)?)));
        let threads = Threads::new(same);
        let one = || check(threads.map([7].into_iter()).iter().sum());
        table.add(case, "crossbeam-channel, 2 threads", "us", round_trips(rounds, pause, one));
        table.add(case, "rayon", "us", round_trips(rounds, pause, || check(rayon.install(|| same(7)))));
        if let (Some([_, _, micros]), true) = (python, pause.is_zero()) {
            table.add(case, "Python multiprocessing.Pool", "us", Ok(vec![micros]));
        }
    }
}

fn spreading(table: &mut Table, pool: &Pool, rayon: &rayon::ThreadPool) {
    for (case, nanos, count) in
        [("tasks of 10 us, each", 10_000, 20_000_usize), ("tasks of 1 ms, each", 1_000_000, 500)]
    {
        let timed = |map: &dyn Fn() -> Result<usize>| -> Result<Vec<f64>> {
            let mut samples = Vec::new();
            for _ in 0..RUNS {
                let start = Instant::now();
                if map()? != count {
                    return Err("wrong results".into());
                }
                samples.push(start.elapsed().as_nanos() as f64 / count as f64 / 1e3);
            }
            Ok(samples)
        };
        let items = || std::iter::repeat_n(nanos, count);
        table.add(case, "polyproc map", "us", timed(&|| Ok(pool.chunksize(1).map(busy, items())?.len())));
        let threads = Threads::new(busy);
        table.add(case, "crossbeam-channel, 2 threads", "us", timed(&|| Ok(threads.map(items()).len())));
        let rayon = || {
            let items: Vec<u64> = items().collect();
            Ok(rayon.install(|| items.par_iter().with_max_len(1).map(|x| busy(*x)).collect::<Vec<_>>().len()))
        };
        table.add(case, "rayon", "us", timed(&rayon));
        table.add(case, "ideal", "us", Ok(vec![nanos as f64 / WORKERS as f64 / 1e3]));
    }
}

fn payloads(table: &mut Table, pool: &Pool) {
    for (case, len, rounds) in [
        ("1 KiB there and back", 1 << 10, 2000),
        ("1 MiB there and back", 1 << 20, 100),
        ("64 MiB there and back", 64 << 20, 5),
    ] {
        let bytes = ByteBuf::from(vec![7; len]);
        let check =
            |back: &[u8]| if back.len() == len && back[len / 2] == 7 { Ok(()) } else { Err("wrong result".into()) };
        let ours = || check(&pool.apply(echo, bytes.clone())?);
        table.add(case, "polyproc apply", "us", round_trips(rounds, Duration::ZERO, ours));
        let threads = Threads::new(echo);
        let theirs = || check(&threads.map([bytes.clone()].into_iter())[0]);
        table.add(case, "crossbeam-channel, 2 threads", "us", round_trips(rounds, Duration::ZERO, theirs));
        if len <= 1 << 20
            && let Ok(procspawn) = procspawn::Pool::new(WORKERS)
        {
            let theirs = || {
                let handle = procspawn::spawn!(in procspawn, (bytes.clone() => bytes) || echo(bytes));
                check(&handle.join()?)
            };
            table.add(case, "procspawn", "us", round_trips(rounds.min(200), Duration::ZERO, theirs));
        }
    }
}

fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Measures the time and memory of `imap_unordered` for ten million items, then the cost per task for growing numbers of tasks.
fn growth() -> Result<()> {
    let pool = Pool::new(WORKERS)?;
    pool.map(same, 0..100_000)?;
    let before = resident_kib()?;
    let start = Instant::now();
    let (mut count, mut sum, mut most) = (0u64, 0u64, 0);
    for result in pool.chunksize(64).imap_unordered(same, 0..10_000_000) {
        sum = sum.wrapping_add(result?);
        count += 1;
        if count.is_multiple_of(1_000_000) {
            most = most.max(resident_kib()?);
        }
    }
    assert_eq!((count, sum), (10_000_000, 10_000_000 * 9_999_999 / 2));
    println!(
        "\n10,000,000 items through imap_unordered, chunks of 64: {:.2} s; resident memory of the parent {before} KiB \
              before, {most} KiB at most",
        start.elapsed().as_secs_f64()
    );

    println!(
        "\nmap of empty tasks, one by one; microseconds a task\n{:>10} {:>10} {:>10} {:>10} {:>10} {:>12}",
        "tasks", "1 worker", "2", "8", "50", "200 workers"
    );
    let pools = [1, 2, 8, 50, 200].map(Pool::new);
    for count in [10u64, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000] {
        print!("{count:>10}");
        // Ten million tasks take minutes if many workers share few processors.
        for pool in pools.iter().take(if count < 10_000_000 { 5 } else { 3 }) {
            let pool = pool.as_ref().map_err(ToString::to_string)?;
            let start = Instant::now();
            let results = pool.chunksize(1).map(same, 0..count)?;
            assert_eq!(results.len() as u64, count);
            print!(" {:>10.2}", start.elapsed().as_nanos() as f64 / 1e3 / count as f64);
        }
        println!();
    }
    Ok(())
}

pub(crate) fn run(json: Option<&Path>) -> Result<()> {
    let mut table = Table(Vec::new());
    let pool = Pool::new(WORKERS)?;
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(WORKERS).build()?;
    let python = python().inspect_err(|error| eprintln!("Python: {error}")).ok();
    throughput(&mut table, &pool, &rayon, python);
    latency(&mut table, &pool, &rayon, python);
    spreading(&mut table, &pool, &rayon);
    payloads(&mut table, &pool);
    table::print(&table.0, "ideal", "polyproc");
    if let Some(path) = json {
        table::write_json(&table.0, path)?;
    }
    drop(pool);
    growth()
}
