//! Failures of `Pool`: each is reported by its name, and the pool still works afterwards.

mod support;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use polyproc::{Failure, NoWorkers, Pool, PoolError, PoolEvent, Signal, StillOpen, active_children, current_process};
use polyproc_core::crash::{self, STEPS, Step};
use serde::{Deserialize, Serialize};
use support::{Clean, TestResult, children_of, is_gone, overflow, wait_until};

const LONG: Duration = Duration::from_secs(3600);

fn sleep(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}

fn still_works(pool: &Pool) -> TestResult {
    assert_eq!(pool.map(|x: u64| x + 1, 0..20)?, (1..21).collect::<Vec<_>>());
    Ok(())
}

/// Kills a worker at each step of claiming, running and answering: every item ends once, and only an item that ran is lost.
#[test]
fn a_worker_killed_while_taking_running_or_answering() -> TestResult {
    let _clean = Clean::start();
    let first = STEPS.iter().position(|step| *step == Step::TaskClaimed).expect("a step of the pool");
    for (at, step) in STEPS.iter().enumerate().skip(first) {
        for times in [1, 2, 5] {
            let pool = Pool::new(2)?;
            let arm = |(index, step, times): (usize, usize, u32)| {
                if index == 3 {
                    crash::arm(STEPS[step], times);
                }
                index
            };
            let results: Vec<_> =
                pool.chunksize(2).imap_unordered(arm, (0..40).map(|index| (index, at, times))).collect();
            let mut seen = BTreeMap::new();
            let mut lost = 0;
            for result in results {
                let index = match result {
                    Ok(index) => index,
                    Err(error) => {
                        assert!(matches!(error.failure, Failure::WorkerLost(_)), "{step:?}: {error}");
                        lost += 1;
                        error.index
                    }
                };
                assert_eq!(seen.insert(index, ()), None, "{step:?}: item {index} ended twice");
            }
            assert_eq!(seen.len(), 40, "{step:?}");
            assert!(lost <= 1, "{step:?}: {lost} items lost for one death");
            if matches!(step, Step::TaskClaimed | Step::TaskAnswered | Step::ParentTold) {
                assert_eq!(lost, 0, "{step:?}: nothing ran");
            }
            // A worker that was armed but has not reached the step dies now.
            assert_eq!(pool.options().retries(1).map(|x: u64| x, 0..20)?.len(), 20);
        }
    }
    Ok(())
}

fn fail(how: &str) -> u32 {
    match how {
        "panic" => panic!("as told"),
        "abort" => std::process::abort(),
        "exit" => std::process::exit(3),
        "overflow" => u32::try_from(overflow(0)).unwrap_or(0),
        _ => 7,
    }
}

/// A failure in the middle of a chunk: the items before and after it have their results.
#[test]
fn panic_abort_exit_and_stack_overflow_cost_one_item_of_a_chunk() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    for (how, cause) in [
        ("panic", "the task panicked at"),
        ("abort", "killed by SIGABRT"),
        ("exit", "exit code 3"),
        ("overflow", "stack overflow (killed by SIGSEGV)"),
    ] {
        let items = (0..20).map(|index| if index == 13 { how } else { "fine" }.to_owned());
        let results: Vec<_> = pool.chunksize(20).imap(|how: String| fail(&how), items).collect();
        for (index, result) in results.into_iter().enumerate() {
            match result {
                Ok(seven) => assert!(seven == 7 && index != 13),
                Err(error) => {
                    assert_eq!(error.index, 13);
                    assert!(error.to_string().contains(cause), "{error}");
                }
            }
        }
        still_works(&pool)?;
    }
    Ok(())
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u32),
}

#[derive(Debug, Deserialize)]
struct Unwritable(u32);

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("no"))
    }
}

#[test]
fn a_result_that_cannot_be_serialised_or_deserialised() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    let error = pool.apply(|x: u32| Unwritable(x), 5).map(|Unwritable(x)| x).expect_err("it cannot be written");
    assert!(error.to_string().contains("could not encode the result of type"), "{error}");
    let error = pool.apply(Untagged::Number, 5).expect_err("it cannot be read");
    assert!(error.to_string().contains("could not decode the result of type"), "{error}");
    let error = pool.apply(|Untagged::Number(x)| x, Untagged::Number(5)).expect_err("it cannot be read");
    assert!(error.to_string().contains("could not decode the argument of type"), "{error}");
    let error = pool.apply(|Unwritable(x)| x, Unwritable(5)).expect_err("it cannot be written");
    assert!(error.to_string().contains("could not encode the argument of type"), "{error}");
    still_works(&pool)
}

#[test]
fn an_argument_iterator_that_panics() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let items = || (0..100_000u64).map(|x| if x == 50_000 { panic!("no more") } else { x });
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    for chunksize in [1, 1000] {
        let map = std::panic::AssertUnwindSafe(|| pool.chunksize(chunksize).map(|x: u64| x, items()));
        assert!(std::panic::catch_unwind(map).is_err());
        let imap = std::panic::AssertUnwindSafe(|| pool.chunksize(chunksize).imap(|x: u64| x, items()).count());
        assert!(std::panic::catch_unwind(imap).is_err());
    }
    std::panic::set_hook(quiet);
    still_works(&pool)
}

#[test]
fn an_initializer_that_panics_is_told_at_once() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::builder().workers(2).initializer(|()| panic!("not fit"), ()).build()?;
    let error = pool.apply(|x: u32| x, 1).expect_err("nobody is fit to run it");
    assert!(
        matches!(&error.failure, Failure::NoWorkers(NoWorkers::Panicked(panic)) if panic.message == "not fit"),
        "{error}"
    );
    wait_until(|| active_children().is_empty());
    // An initializer that kills its process is not retried for ever.
    let pool = Pool::builder().workers(2).initializer(|()| std::process::exit(9), ()).build()?;
    let error = pool.map(|x: u32| x, 0..10).expect_err("nobody is fit to run it");
    assert!(error.to_string().contains("workers die before they take a task: exit code 9"), "{error}");
    Ok(())
}

#[test]
fn each_worker_has_a_state_of_its_own_and_ends_it() -> TestResult {
    let _clean = Clean::start();
    let file = std::env::temp_dir().join(format!("polyproc-{}", std::process::id()));
    let pool = Pool::builder()
        .workers(2)
        .initializer(|path: String| (path, 0u32), file.to_str().expect("text").to_owned())
        .finalizer(|(path, count): (String, u32)| {
            use std::io::Write;
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a file");
            (&file).write_all(format!("{count}\n").as_bytes()).expect("room");
        })
        .build()?;
    let count = |state: &mut (String, u32), by: u32| {
        state.1 += by;
        (current_process().pid(), state.1)
    };
    let seen = pool.state_with(pool.chunksize(1)).map(count, [1; 100])?;
    let mut most = BTreeMap::new();
    seen.into_iter().for_each(|(pid, count)| _ = most.insert(pid, count.max(most.get(&pid).copied().unwrap_or(0))));
    assert_eq!(most.values().sum::<u32>(), 100);
    pool.close();
    pool.join()?;
    let told = std::fs::read_to_string(&file)?;
    std::fs::remove_file(file)?;
    assert_eq!(told.lines().map(|line| line.parse::<u32>().expect("a number")).sum::<u32>(), 100);
    Ok(())
}

#[test]
fn callbacks_run_and_one_that_panics_does_no_harm() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let (tell, told) = channel();
    let tell_error = tell.clone();
    let fine = pool.apply_async(|x: u32| x * 2, 21).callback(move |x| tell.send(x.to_string()).expect("heard"));
    assert_eq!(fine.get()?, 42);
    assert_eq!(told.recv()?, "42");
    let bad = pool
        .apply_async(|x: u32| if x == 0 { panic!("zero") } else { x }, 0)
        .callback(|_| unreachable!("it has failed"))
        .error_callback(move |error| tell_error.send(error.to_string()).expect("heard"));
    assert!(bad.get().is_err());
    assert!(told.recv()?.contains("zero"));
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    assert_eq!(pool.apply_async(|x: u32| x, 1).callback(|_| panic!("in a callback")).get()?, 1);
    assert_eq!(pool.map_async(|x: u32| x, 0..3).callback(|_| ()).get()?, [0, 1, 2]);
    std::panic::set_hook(hook);
    still_works(&pool)
}

#[test]
fn terminate_from_a_callback() -> TestResult {
    let _clean = Clean::start();
    let pool = std::sync::Arc::new(Pool::new(2)?);
    let stuck = pool.apply_async(sleep, 3600);
    let callbacks_pool = std::sync::Arc::clone(&pool);
    let first = pool.apply_async(|x: u32| x, 1).callback(move |_| {
        callbacks_pool.terminate();
        callbacks_pool.join().expect("it was terminated");
    });
    assert_eq!(first.get()?, 1);
    assert!(matches!(stuck.get(), Err(error) if matches!(error.failure, Failure::Terminated)));
    Ok(())
}

#[test]
fn get_after_terminate_and_after_drop() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    let done = pool.apply_async(|x: u32| x, 1);
    done.wait();
    let stuck = pool.apply_async(sleep, 3600);
    let waiting = pool.map_async(|x: u32| x, 0..10);
    assert_eq!((done.successful(), stuck.successful()), (Some(true), None));
    let Err(stuck) = stuck.get_timeout(Duration::from_millis(10)) else { panic!("it sleeps") };
    drop(pool);
    assert_eq!(done.get()?, 1);
    for failure in [stuck.get(), waiting.get().map(|_| ())] {
        assert!(matches!(failure, Err(error) if matches!(error.failure, Failure::Terminated)));
    }
    Ok(())
}

#[test]
fn join_while_the_pool_is_open_or_tasks_remain() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    assert_eq!(pool.join(), Err(StillOpen));
    let results = pool.map_async(|x: u64| std::thread::sleep(Duration::from_millis(x)), [5; 20]);
    pool.close();
    pool.join()?;
    assert!(results.ready());
    assert_eq!(results.get()?.len(), 20);
    // These results are never read.
    let pool = Pool::new(2)?;
    let mut unread = pool.imap(|x: u64| x, 0..10_000);
    assert_eq!(unread.next().transpose()?, Some(0));
    pool.close();
    pool.join()?;
    Ok(())
}

#[test]
fn cancel_takes_back_what_waits_and_ends_what_runs() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    let pid = pool.apply(|()| std::process::id(), ())?;
    let begun = std::env::temp_dir().join(format!("polyproc-begun-{pid}"));
    let begin = |path: std::path::PathBuf| {
        std::fs::write(path, "").expect("room");
        std::thread::sleep(LONG);
    };
    let (running, waiting) = (pool.apply_async(begin, begun.clone()), pool.apply_async(|x: u32| x, 1));
    waiting.cancel();
    assert!(matches!(waiting.get(), Err(error) if matches!(error.failure, Failure::Cancelled)));
    assert_eq!(pool.stats().lost, 0, "nobody was killed for it");
    // The file shows that the task has begun.
    wait_until(|| std::fs::remove_file(&begun).is_ok());
    running.cancel();
    assert!(matches!(running.get(), Err(error) if matches!(error.failure, Failure::Cancelled)));
    assert_ne!(pool.apply(|()| std::process::id(), ())?, pid);
    let done = pool.apply_async(|x: u32| x, 5);
    done.wait();
    done.cancel();
    assert_eq!(done.get()?, 5);
    still_works(&pool)
}

#[test]
fn time_limits_kill_and_cost_one_item() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let limit = Duration::from_millis(60);
    let results: Vec<_> =
        pool.chunksize(5).timeout(limit).imap(sleep, (0..20).map(|x| if x % 7 == 3 { 3600 } else { 0 })).collect();
    for (index, result) in results.into_iter().enumerate() {
        let timed_out = matches!(&result, Err(error) if matches!(error.failure, Failure::TimedOut));
        assert_eq!(timed_out, index % 7 == 3, "{index}: {result:?}");
        assert_eq!(result.is_ok(), index % 7 != 3);
    }
    let error = pool.chunksize(1).call_timeout(limit).map(sleep, [0, 3600, 3600, 3600]).expect_err("too long");
    assert!(matches!(error.failure, Failure::TimedOut) && error.index > 0, "{error}");
    still_works(&pool)
}

#[test]
fn a_soft_signal_lets_a_task_end_in_its_own_way() -> TestResult {
    static CAUGHT: AtomicU32 = AtomicU32::new(0);
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    let task = |gives_in: bool| {
        let mut signals = signal_hook::iterator::Signals::new([12]).expect("SIGUSR2 can be caught");
        let caught = signals.forever().next().expect("a signal");
        CAUGHT.fetch_add(1, Ordering::Relaxed);
        if !gives_in {
            std::thread::sleep(LONG);
        }
        caught
    };
    let usr2 = Signal::new(12);
    let options = || pool.options().timeout(Duration::from_millis(20)).soft_signal(usr2, Duration::from_millis(200));
    assert_eq!(options().apply(task, true)?, 12);
    assert!(matches!(options().apply(task, false), Err(error) if matches!(error.failure, Failure::TimedOut)));
    still_works(&pool)
}

/// Increments a count that tasks of several workers share, and returns it.
fn count_in_file(path: &str) -> usize {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a file");
    (&file).write_all(b"x").expect("room");
    std::fs::read(path).map(|bytes| bytes.len()).unwrap_or(0)
}

#[test]
fn lost_workers_and_panics_are_tried_again_within_the_limit() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let path = std::env::temp_dir().join(format!("polyproc-retry-{}", std::process::id()));
    let path = path.to_str().expect("text").to_owned();
    let dies_twice = |path: String| {
        let count = count_in_file(&path);
        if count < 3 { std::process::abort() } else { count }
    };
    let retried = pool.options().retries(2).backoff(Duration::from_millis(1)).apply(dies_twice, path.clone());
    std::fs::remove_file(&path)?;
    assert_eq!(retried?, 3);
    let error = pool.options().retries(1).apply(dies_twice, path.clone()).expect_err("it dies twice");
    assert_eq!(std::fs::read(&path)?.len(), 2);
    std::fs::remove_file(&path)?;
    assert!(matches!(error.failure, Failure::WorkerLost(_)), "{error}");
    let panics_twice = |path: String| {
        let count = count_in_file(&path);
        if count < 3 { panic!("attempt {count}") } else { count }
    };
    let error = pool.options().retries(5).apply(panics_twice, path.clone()).expect_err("a panic is an answer");
    assert!(matches!(&error.failure, Failure::Panicked(panic) if panic.message == "attempt 1"), "{error}");
    let retried = pool.options().retries(5).retry_panics().apply(panics_twice, path.clone());
    std::fs::remove_file(&path)?;
    assert_eq!(retried?, 3);
    still_works(&pool)
}

#[test]
fn a_worker_above_its_memory_limit_is_killed_and_says_so() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::builder().workers(2).memory_limit(200 << 20).build()?;
    let fill = |mib: usize| {
        let ballast = vec![1u8; mib << 20];
        if mib > 200 {
            std::thread::sleep(LONG);
        }
        ballast.len() >> 20
    };
    let error = pool.apply(fill, 300).expect_err("too much");
    assert!(matches!(error.failure, Failure::OutOfMemory), "{error}");
    assert_eq!(pool.map(fill, [10, 20])?, [10, 20]);
    still_works(&pool)
}

#[test]
fn urgent_tasks_go_first() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    pool.apply(sleep, 0)?;
    let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let hold = pool.apply_async(|ms: u64| std::thread::sleep(Duration::from_millis(ms)), 100);
    let note = |n: u32| {
        let order = std::sync::Arc::clone(&order);
        move |_: &u32| order.lock().expect("not poisoned").push(n)
    };
    let results = [
        pool.options().apply_async(|x: u32| x, 0).callback(note(0)),
        pool.options().priority(-1).apply_async(|x: u32| x, 1).callback(note(1)),
        pool.options().priority(5).apply_async(|x: u32| x, 2).callback(note(2)),
        pool.options().apply_async(|x: u32| x, 3).callback(note(3)),
    ];
    hold.get()?;
    for result in results {
        result.get()?;
    }
    assert_eq!(*order.lock().expect("not poisoned"), [2, 0, 3, 1]);
    Ok(())
}

#[test]
fn a_pool_grows_shrinks_retires_and_replaces() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    pool.resize(4)?;
    wait_until(|| active_children().len() == 4);
    still_works(&pool)?;
    pool.resize(2)?;
    wait_until(|| active_children().len() == 2);
    still_works(&pool)?;
    assert!(matches!(pool.resize(0), Err(PoolError::NoWorkers)));
    assert!(matches!(pool.resize(1 << 20), Err(PoolError::TooManyWorkers { .. })));
    drop(pool);

    let started = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&started);
    let see = move |event: &PoolEvent| {
        count.fetch_add(usize::from(matches!(event, PoolEvent::WorkerStarted { .. })), Ordering::Relaxed);
    };
    let pool = Pool::builder().workers(2).retire_idle(Duration::from_millis(20)).on_event(see).build()?;
    still_works(&pool)?;
    wait_until(|| active_children().is_empty());
    // Another pool works in the meantime, longer than a replacement would take to start; none does before there are tasks.
    let before = started.load(Ordering::Relaxed);
    still_works(&Pool::new(2)?)?;
    assert_eq!(started.load(Ordering::Relaxed), before);
    still_works(&pool)?;
    assert!(started.load(Ordering::Relaxed) > before);
    drop(pool);

    let three = NonZeroU64::new(3).expect("not 0");
    let pool = Pool::builder().workers(1).max_tasks_per_child(three).build()?;
    let pids = pool.chunksize(1).map(|()| std::process::id(), [(); 9])?;
    assert_eq!(pids.iter().collect::<std::collections::BTreeSet<_>>().len(), 3, "{pids:?}");
    assert_eq!(pool.stats().lost, 0);
    Ok(())
}

#[test]
fn workers_have_names_niceness_processors_and_environment() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::builder().workers(2).name("parser").nice(5).cpus([vec![0]]).env("COLOUR", "red").build()?;
    let look = |()| {
        let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc");
        let nice: i64 = stat
            .rsplit_once(')')
            .expect("a name")
            .1
            .split_whitespace()
            .nth(16)
            .expect("nice")
            .parse()
            .expect("a number");
        (current_process().name().to_owned(), nice, polyproc::cpu_count().expect("known"), std::env::var("COLOUR").ok())
    };
    let (name, nice, cpus, colour) = pool.apply(look, ())?;
    assert!(name == "parser-1" || name == "parser-2", "{name}");
    assert_eq!((nice, cpus, colour.as_deref()), (5, 1, Some("red")));
    let pool = Pool::builder().workers(1).cpus([vec![100_000]]).build()?;
    let error = pool.apply(look, ()).expect_err("there is no such processor");
    assert!(matches!(error.failure, Failure::NoWorkers(_)), "{error}");
    Ok(())
}

#[test]
fn statistics_and_progress() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let mut seen = Vec::new();
    let results = pool.chunksize(3).on_progress(|progress| seen.push(progress)).map(|x: u64| x, 0..10)?;
    assert_eq!(results.len(), 10);
    assert!(seen.windows(2).all(|pair| pair[0].done <= pair[1].done));
    assert_eq!(seen.last().map(|last| (last.done, last.total)), Some((10, Some(10))));
    let mut count = 0;
    let endless = std::iter::repeat_with(|| 1u8);
    pool.options().on_progress(|progress| count = progress.done).imap(|x: u8| x, endless).take(7).for_each(drop);
    assert_eq!(count, 7);
    wait_until(|| pool.stats().workers.iter().all(|worker| worker.start.is_some()));
    let stats = pool.stats();
    assert_eq!(stats.workers.len(), 2);
    assert!(stats.workers.iter().map(|worker| worker.tasks).sum::<u64>() >= 17);
    assert!(stats.workers.iter().map(|worker| worker.bytes_in).sum::<u64>() > 0);
    assert!(stats.workers.iter().all(|worker| worker.peak_memory.is_some()));
    assert_eq!(stats.to_string().lines().count(), 4);
    Ok(())
}

#[test]
fn many_pools_leave_nothing() -> TestResult {
    let _clean = Clean::start();
    for round in 0..if cfg!(debug_assertions) { 200 } else { 2000 } {
        let pool = Pool::new(1 + round % 3)?;
        if round % 2 == 0 {
            assert_eq!(pool.apply(|x: u32| x, 5)?, 5);
        }
    }
    Ok(())
}

#[test]
fn two_hundred_workers() -> TestResult {
    let _clean = Clean::start();
    // Each worker takes two descriptors of the parent, and temporarily some more.
    let limit = support::limit_descriptors(256);
    support::limit_descriptors(limit);
    let count = usize::try_from(limit / 5)?.min(200);
    let pool = Pool::new(count)?;
    let results = pool.chunksize(1).map(|x: u64| x * 3, 0..20_000)?;
    assert!(results.into_iter().enumerate().all(|(index, x)| x == index as u64 * 3));
    wait_until(|| active_children().len() == count);
    Ok(())
}

/// A worker whose task exceeds its time limit is killed together with all the processes that the task started.
#[test]
fn a_task_that_starts_processes_takes_them_with_it() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    let tree = |depth: u32| {
        let mut children = Vec::new();
        for _ in 0..depth {
            let child =
                polyproc::Process::new(|()| std::thread::sleep(LONG), ()).daemon(true).start().expect("a process");
            println!("{}", child.pid());
            children.push(child.pid());
        }
        std::fs::write(
            std::env::temp_dir().join(format!("polyproc-tree-{}", std::process::id())),
            format!("{children:?}"),
        )
        .expect("room");
        std::thread::sleep(LONG);
    };
    let worker = pool.apply(|()| std::process::id(), ())?;
    let error = pool.options().timeout(Duration::from_millis(300)).apply(tree, 5).expect_err("too long");
    assert!(matches!(error.failure, Failure::TimedOut), "{error}");
    let path = std::env::temp_dir().join(format!("polyproc-tree-{worker}"));
    let told = std::fs::read_to_string(&path)?;
    std::fs::remove_file(path)?;
    let pids: Vec<u32> = told.trim_matches(['[', ']']).split(", ").map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(pids.len(), 5);
    wait_until(|| pids.iter().all(|pid| is_gone(*pid)));
    assert!(children_of(worker).iter().all(|pid| is_gone(*pid)));
    still_works(&pool)
}

#[test]
fn a_result_is_a_future() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let sum = runtime.block_on(async {
        let (a, b) = (pool.apply_async(|x: u64| x, 1), pool.map_async(|x: u64| x, [2, 3]).callback(|_| ()));
        Ok::<_, polyproc::TaskError>(a.await? + b.await?.into_iter().sum::<u64>())
    })?;
    assert_eq!(sum, 6);
    Ok(())
}

#[test]
fn a_context_is_sent_once_and_starmap_takes_pairs() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let table: Vec<u64> = (0..100_000).collect();
    let found = pool.options().context(&table).map(|table: &Vec<u64>, at: usize| table[at], (0..1000).rev())?;
    assert_eq!(found, (0..1000).rev().collect::<Vec<_>>());
    let bytes: u64 = pool.stats().workers.iter().map(|worker| worker.bytes_in).sum();
    assert!(bytes < 50_000, "{bytes} bytes of arguments");
    assert_eq!(pool.starmap(|a: u32, b: String| format!("{a}{b}"), [(1, "x".to_owned())])?, ["1x"]);
    assert_eq!(pool.starmap_async(|a: u32, b: u32| a - b, [(5, 3)]).get()?, [2]);
    Ok(())
}

/// A short task after a long one in the same batch goes to another worker.
#[test]
fn short_tasks_do_not_wait_behind_a_long_one() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    // Enough short tasks first, so that the pool sends tasks in batches.
    let items = (0..20_000u64).map(|x| if x == 15_000 { 3600 } else { 0 });
    let short = pool.imap_unordered(sleep, items).take(19_999).filter(Result::is_ok).count();
    assert_eq!(short, 19_999);
    Ok(())
}
