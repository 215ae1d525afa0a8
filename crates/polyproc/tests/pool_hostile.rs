//! A faulty worker that overwrites the memory that it shares with its pool while the parent runs. It may fail its own task; the
//! parent and all other tasks continue.
//!
//! `POLYPROC_HOSTILE_ROUNDS` sets the number of rounds.

mod support;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use polyproc::{Failure, Pool, TaskError};
use polyproc_core::pool::wild;
use support::{Clean, Random, TestResult};

/// Overwrites random words at the beginning of this worker's memory files named `name`. Returns the number of files.
fn scribble((name, seed, words, len): (String, u64, u64, u64)) -> usize {
    let mut random = Random(seed);
    let mut files = 0;
    for entry in std::fs::read_dir("/proc/self/fd").expect("/proc").flatten() {
        let to = std::fs::read_link(entry.path()).map(|to| to.display().to_string()).unwrap_or_default();
        if !to.starts_with(&format!("/memfd:{name} ")) {
            continue;
        }
        let file = File::options().read(true).write(true).open(entry.path()).expect("a memory file");
        for _ in 0..words {
            // Small numbers, nearly all ones, and any: counts and states are most sensitive to the first two.
            let word = match random.next() % 3 {
                0 => random.next() % 64,
                1 => u64::MAX - random.next() % 64,
                _ => random.next(),
            };
            file.write_all_at(&word.to_ne_bytes(), random.next() % len / 8 * 8).expect("inside");
        }
        files += 1;
    }
    files
}

fn rounds() -> u64 {
    std::env::var("POLYPROC_HOSTILE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// Checks that in each round every submitted task returns the right value; retries make up for lost workers.
fn goes_on_after(name: &str, len: u64) -> TestResult {
    let _clean = Clean::start();
    for round in 1..=rounds() {
        let pool = Pool::new(3)?;
        let before: Vec<_> = (0..20u64).map(|x| pool.options().retries(100).apply_async(|x: u64| x + 1, x)).collect();
        let words = 1 + round % 5 * 8;
        match pool.apply(scribble, (name.to_owned(), round * 0x9E37_79B9, words, len)) {
            Ok(files) => assert!(files > 0, "nothing was written over"),
            Err(error) => assert!(matches!(error.failure, Failure::WorkerLost(_)), "round {round}: {error}"),
        }
        for (x, result) in before.into_iter().enumerate() {
            assert_eq!(result.get()?, x as u64 + 1, "round {round}");
        }
        let after = pool.options().retries(100).map(|x: u64| x * 2, 0..200)?;
        assert!(after.into_iter().eq((0..200).map(|x| x * 2)), "round {round}");
        pool.terminate();
        pool.join()?;
    }
    Ok(())
}

#[test]
fn over_the_words_of_its_own_stream() -> TestResult {
    goes_on_after("polyproc-worker", 12_288)
}

#[test]
fn over_the_counts_of_the_table() -> TestResult {
    goes_on_after("polyproc-pool", 4_096)
}

#[test]
fn over_the_ring_of_the_table() -> TestResult {
    goes_on_after("polyproc-pool", 12_288)
}

#[test]
fn over_the_states_of_the_tasks() -> TestResult {
    goes_on_after("polyproc-pool", 77_824)
}

/// Returns the number of mappings that this process has of memory files named `name`, and the mappings and descriptors by which
/// it could write to them.
fn ways_to_write(name: &str) -> Result<(usize, Vec<String>), String> {
    let name = format!("/memfd:{name} ");
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|error| error.to_string())?;
    let mappings: Vec<_> = maps.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect();
    let mut ways: Vec<_> = mappings.iter().filter(|line| !line.contains(" r--s ")).cloned().collect();
    for entry in std::fs::read_dir("/proc/self/fd").map_err(|error| error.to_string())?.flatten() {
        let to = std::fs::read_link(entry.path()).map(|to| to.display().to_string()).unwrap_or_default();
        let info = std::fs::read_to_string(entry.path().to_string_lossy().replace("/fd/", "/fdinfo/"));
        let flags = info.unwrap_or_default().lines().find_map(|line| line.strip_prefix("flags:").map(str::to_owned));
        if to.starts_with(&name) && !flags.unwrap_or_default().ends_with('0') {
            ways.push(to);
        }
    }
    Ok((mappings.len(), ways))
}

#[test]
fn no_worker_can_write_to_what_others_are_to_do() -> TestResult {
    let pool = Pool::new(1)?;
    let (mappings, ways) = pool.apply(|name: String| ways_to_write(&name), "polyproc-orders".to_owned())??;
    assert!(mappings > 0 && ways.is_empty(), "{mappings} mappings, {ways:?}");
    let (_, ways) = pool.apply(|name: String| ways_to_write(&name), "polyproc-pool".to_owned())??;
    assert!(!ways.is_empty(), "it sees none at all");
    Ok(())
}

/// Checks that the task fails with the loss of its worker, and that the pool still works.
fn loses_only_its_worker(pool: &Pool, task: fn(())) -> TestResult {
    let lost = pool.apply(task, ());
    assert!(matches!(lost, Err(TaskError { failure: Failure::WorkerLost(_), .. })), "{lost:?}");
    assert_eq!(pool.map(|x: u64| x + 1, 0..100)?, (1..101).collect::<Vec<_>>());
    Ok(())
}

/// Repeatedly sends more descriptors than a result may have, without a result, until this worker is killed.
fn send_descriptors_without_end((): ()) {
    let null = File::open("/dev/null").expect("/dev/null");
    let fds = [null.as_fd(); 100];
    loop {
        let _ = wild::send_fds(&fds); // fails when an ordinary user has too many in flight
    }
}

#[test]
fn descriptors_of_no_result_cost_the_worker_that_sends_them() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let sent = || support::descriptors().get("/dev/null").copied().unwrap_or_default();
    let before = sent();
    loses_only_its_worker(&pool, send_descriptors_without_end)?;
    support::wait_until(|| sent() <= before);
    Ok(())
}

#[test]
fn questions_whose_answers_nobody_reads_cost_the_worker_that_asks() -> TestResult {
    let pool = Pool::new(2)?;
    loses_only_its_worker(&pool, |()| while wild::ask().is_ok() {})
}

#[test]
fn a_worker_that_logs_without_end_keeps_nobody_waiting() -> TestResult {
    let pool = Pool::new(2)?;
    let over = support::scratch("log-without-end");
    let log_until = |over: PathBuf| {
        while !over.exists() {
            polyproc_core::pool::log(b"again");
        }
    };
    let logs = pool.apply_async(log_until, over.clone());
    for x in 0..100u64 {
        assert_eq!(pool.apply(|x: u64| x + 1, x)?, x + 1);
    }
    std::fs::write(&over, "")?;
    logs.get()?;
    Ok(())
}

#[test]
fn no_worker_answers_for_another() -> TestResult {
    let pool = Pool::new(2)?;
    let over = support::scratch("answers-for-another");
    let wait_for = |over: PathBuf| {
        support::wait_until(|| over.exists());
        7u64
    };
    // The first task of a pool is at position 0, in slot 0.
    let victim = pool.apply_async(wait_for, over.clone());
    let forge = |value: u64| {
        wild::answer_for(0, 0, &[u8::try_from(value).unwrap_or(0)]).map_err(|error| error.to_string())?;
        std::thread::sleep(std::time::Duration::from_secs(3600)); // until it is killed
        Ok::<_, String>(())
    };
    let lost = pool.apply(forge, 8);
    assert!(matches!(lost, Err(TaskError { failure: Failure::WorkerLost(_), .. })), "{lost:?}");
    std::fs::write(&over, "")?;
    assert_eq!(victim.get()?, 7);
    Ok(())
}
