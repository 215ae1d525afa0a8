//! Kills workers of all start methods at random, also while they start, and checks that every task still ends exactly once.
//!
//! `POLYPROC_STORM_ROUNDS` and `POLYPROC_STORM_TASKS` set the length: a full run has 100 rounds of 100,000 tasks.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use polyproc::{Failure, ForkWithThreads, Pool, StartMethod, active_children};
use support::{Clean, Random, TestResult};

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Kills a worker every few milliseconds until `over` is set. Returns the number of kills.
fn kill(over: &AtomicBool, seed: u64) -> usize {
    let (mut random, mut kills) = (Random(seed), 0);
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_micros(500 + random.below(3000)));
        let workers = active_children();
        if let Some(worker) = workers.get(usize::try_from(random.below(workers.len().max(1) as u64)).unwrap_or(0)) {
            kills += usize::from(worker.kill().is_ok());
        }
    }
    kills
}

fn work(x: u64) -> u64 {
    // Some tasks take longer, so that workers are killed while they run one.
    let end = if x.is_multiple_of(50) { 50_000 } else { 5_000 };
    (0..end).fold(x, |x, _| std::hint::black_box(x)) ^ 1
}

const METHODS: [StartMethod; 3] = [StartMethod::Forkserver, StartMethod::Spawn, StartMethod::Fork];

/// Runs one storm. Returns the number of killed workers and the number of lost items.
fn storm(round: u64, tasks: u64, retries: u32) -> Result<(usize, usize), Box<dyn std::error::Error>> {
    #[expect(unsafe_code, reason = "the promise that a test is")]
    // SAFETY: the copies run `work`, which uses no state of the test's threads.
    let promise = unsafe { ForkWithThreads::new() };
    let method = METHODS[usize::try_from(round % 3)?];
    let pool = Pool::builder().workers(3).start_method(method).fork_with_threads(promise).build()?;
    let over = AtomicBool::new(false);
    let chunksize = [1, 7, 1, 100][usize::try_from(round / 3 % 4)?];
    /// Ends the killer, also when an assertion fails.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let end = End(&over);
        let killer = scope.spawn(|| kill(&over, round + 1));
        let mut ended = vec![false; usize::try_from(tasks)?];
        let mut lost = 0;
        let options = || pool.chunksize(chunksize).retries(retries).backoff(Duration::from_micros(100));
        if (round / 3).is_multiple_of(3) && retries > 0 {
            let results = options().map(work, 0..tasks)?;
            assert!(results.iter().zip(0..).all(|(result, x)| *result == work(x)));
            ended.fill(true);
        } else {
            // Each result carries its index, as the order is not known.
            for result in options().imap_unordered(|x: u64| (x, work(x)), 0..tasks) {
                let index = match result {
                    Ok((x, result)) => {
                        assert_eq!(result, work(x));
                        usize::try_from(x)?
                    }
                    Err(error) => {
                        assert!(matches!(error.failure, Failure::WorkerLost(_)), "{error}");
                        lost += 1;
                        error.index
                    }
                };
                assert!(
                    !std::mem::replace(&mut ended[index], true),
                    "item {index} ended twice: round {round}, {method:?}, chunks of {chunksize}, {retries} retries, {lost} lost"
                );
            }
        }
        drop(end);
        let kills = killer.join().expect("no panic");
        assert!(ended.iter().all(|ended| *ended), "an item did not end");
        assert!(lost <= kills, "{lost} items lost by {kills} kills");
        assert!(retries == 0 || lost == 0, "{lost} items lost in spite of {retries} retries");
        Ok((kills, lost))
    })
}

#[test]
fn every_task_ends_exactly_once() -> TestResult {
    let _clean = Clean::start();
    let (rounds, tasks) = (setting("POLYPROC_STORM_ROUNDS", 6), setting("POLYPROC_STORM_TASKS", 5_000));
    for (what, retries) in [("no retries", 0), ("with retries", 1000)] {
        let (mut kills, mut lost) = (0, 0);
        for round in 0..rounds {
            let (more_kills, more_lost) = storm(round as u64, tasks as u64, retries)?;
            kills += more_kills;
            lost += more_lost;
        }
        println!("{what}: {rounds} rounds of {tasks} tasks, {kills} workers killed, {lost} items lost");
    }
    Ok(())
}
