//! `Pool`: results, deaths of workers, and the ends of a pool.

mod support;

use std::collections::BTreeSet;
use std::sync::mpsc::channel;
use std::time::Duration;

use polyproc::{AsyncResult, Event, Failure, Pool, PoolError, Process, Queue, active_children, current_process};
use support::{Clean, TestResult, overflow, wait_until};

#[test]
fn map_keeps_the_order_whatever_the_chunks() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(3)?;
    let expected: Vec<u64> = (0..1000).map(|x| x * x).collect();
    assert_eq!(pool.map(|x: u64| x * x, 0..1000)?, expected);
    for chunksize in [1, 2, 7, 999, 1000, 5000] {
        assert_eq!(pool.chunksize(chunksize).map(|x: u64| x * x, 0..1000)?, expected);
    }
    assert_eq!(pool.map(|x: u64| x, [])?, []);
    assert_eq!(pool.apply(|text: String| text.len(), "four".to_owned())?, 4);
    Ok(())
}

#[test]
fn imap_unordered_gives_each_result_once_and_reads_ahead_within_a_bound() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    for chunksize in [1, 10] {
        let results: Result<BTreeSet<u32>, _> =
            pool.chunksize(chunksize).imap_unordered(|x: u32| x + 1, 0..500).collect();
        assert_eq!(results?, (1..501).collect());
    }
    let taken = std::cell::Cell::new(0);
    let endless = std::iter::repeat_with(|| taken.replace(taken.get() + 1));
    assert_eq!(
        pool.options().look_ahead(4).imap_unordered(|x: u32| x, endless).take(50).filter_map(Result::ok).count(),
        50
    );
    assert!(taken.get() <= 50 + 4, "{} items were taken for 50 results", taken.get());
    Ok(())
}

#[test]
fn work_is_done_by_as_many_daemonic_workers_as_asked_for() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(3)?;
    let who = |_: u32| (current_process().pid(), current_process().name().to_owned(), current_process().is_daemon());
    let seen: BTreeSet<_> = pool.chunksize(1).map(who, 0..200)?.into_iter().collect();
    assert!(!seen.is_empty() && seen.len() <= 3, "{seen:?}");
    assert!(
        seen.iter().all(|(pid, name, daemon)| *pid != std::process::id() && name.starts_with("PoolWorker-") && *daemon)
    );
    assert_eq!(active_children().len(), 3);
    assert_eq!(Pool::new(None)?.workers(), polyproc::cpu_count()?);
    assert!(matches!(Pool::new(0), Err(PoolError::NoWorkers)));
    Ok(())
}

fn fail(how: String) -> String {
    match how.as_str() {
        "panic" => panic!("as told"),
        "abort" => std::process::abort(),
        "exit" => std::process::exit(3),
        "overflow" => overflow(0).to_string(),
        "kill" => {
            let me = std::process::id().to_string();
            std::process::Command::new("kill").args(["-9", &me]).status().expect("kill(1)");
            unreachable!("the signal came before kill(1) was reaped")
        }
        _ => how,
    }
}

#[test]
fn each_failure_fails_its_own_item_and_names_the_cause() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let cases = [
        ("panic", "the task panicked at"),
        ("abort", "killed by SIGABRT"),
        ("exit", "exit code 3"),
        ("overflow", "stack overflow (killed by SIGSEGV)"),
        ("kill", "killed by SIGKILL"),
    ];
    let items: Vec<String> = (0..50).map(|n| cases.get(n % 10).map_or("fine", |(how, _)| how).to_owned()).collect();
    let mut failed = 0;
    let mut fine = 0;
    for result in pool.imap_unordered(fail, items.clone()) {
        match result {
            Ok(how) => fine += usize::from(how == "fine"),
            Err(error) => {
                let (_, cause) = cases[error.index % 10];
                assert!(error.to_string().contains(cause), "{}: {error}", items[error.index]);
                failed += 1;
            }
        }
    }
    assert_eq!((failed, fine), (25, 25));
    // The pool still works, with all its workers.
    assert_eq!(pool.map(|x: u32| x, 0..100)?.len(), 100);
    assert_eq!(active_children().len(), 2);
    Ok(())
}

#[test]
fn map_gives_the_failure_of_the_lowest_index() -> TestResult {
    let pool = Pool::new(2)?;
    let error =
        pool.chunksize(1).map(|x: u32| if x % 4 == 3 { panic!("at {x}") } else { x }, 0..12).expect_err("it panics");
    assert_eq!(error.index, 3);
    assert!(matches!(error.failure, Failure::Panicked(panic) if panic.message == "at 3"));
    Ok(())
}

#[test]
fn workers_killed_at_random_lose_their_own_tasks_only() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let (tell, killer) = std::sync::mpsc::channel::<()>();
    let killer = std::thread::spawn(move || {
        let mut kills = 0;
        while killer.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
            for worker in active_children() {
                worker.kill().expect("own children can be killed");
                kills += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        kills
    });
    let (mut fine, mut lost) = (BTreeSet::new(), BTreeSet::new());
    for result in pool.imap_unordered(|x: usize| x, 0..3000) {
        let new = match result {
            Ok(index) => fine.insert(index),
            Err(error) => {
                assert!(
                    matches!(error.failure, Failure::WorkerLost(death) if death.status.exit_code() == Some(-9)),
                    "{error}"
                );
                lost.insert(error.index)
            }
        };
        assert!(new, "each item ends once");
    }
    drop(tell);
    let kills = killer.join().expect("no panic");
    assert_eq!(fine.len() + lost.len(), 3000);
    assert!(fine.is_disjoint(&lost));
    assert!(lost.len() <= kills, "{} lost with {kills} kills", lost.len());
    Ok(())
}

#[test]
fn an_idle_worker_that_is_killed_is_replaced() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    pool.map(|x: u32| x, 0..10)?;
    let before: BTreeSet<u32> = active_children().iter().map(polyproc::ActiveChild::pid).collect();
    active_children().iter().try_for_each(polyproc::ActiveChild::kill)?;
    wait_until(|| {
        let now: BTreeSet<u32> = active_children().iter().map(polyproc::ActiveChild::pid).collect();
        now.len() == 2 && now.is_disjoint(&before)
    });
    assert_eq!(pool.map(|x: u32| x, 0..10)?.len(), 10);
    Ok(())
}

#[test]
fn ctrl_c_is_left_to_the_parent() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    let pid = pool.apply(|()| std::process::id(), ())?;
    let interrupt = std::process::Command::new("kill").args(["-2", &pid.to_string()]).status()?;
    assert!(interrupt.success());
    assert_eq!(pool.apply(|()| std::process::id(), ())?, pid);
    // A command that a worker starts receives the signal as usual.
    let status = pool.apply(
        |()| {
            let status = std::process::Command::new("sh").args(["-c", "kill -2 $$; exit 0"]).status().expect("sh");
            std::os::unix::process::ExitStatusExt::signal(&status)
        },
        (),
    )?;
    assert_eq!(status, Some(2));
    Ok(())
}

#[test]
fn terminate_fails_what_is_under_way_and_later_calls() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let (read, write) = std::io::pipe()?;
    let error = std::thread::scope(|scope| {
        let call = scope.spawn(|| pool.chunksize(1).map(|_: u32| std::thread::sleep(Duration::from_secs(3600)), 0..10));
        scope.spawn(|| {
            pool.terminate();
            drop(write);
        });
        call.join().expect("no panic")
    });
    drop(read);
    assert!(matches!(error, Err(ref error) if matches!(error.failure, Failure::Terminated)), "{error:?}");
    assert!(matches!(pool.apply(|x: u32| x, 1), Err(error) if matches!(error.failure, Failure::Terminated)));
    pool.join()?;
    Ok(())
}

#[test]
fn a_worker_that_ignores_sigterm_is_terminated_all_the_same() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    pool.apply(|()| std::mem::forget(signal_hook::iterator::Signals::new([15]).expect("SIGTERM can be caught")), ())?;
    pool.terminate();
    pool.join()?;
    Ok(())
}

/// Terminates a pool whose workers this process may no longer signal.
fn terminate_as_another_user((): ()) -> Result<(), String> {
    let pool = Pool::new(2).map_err(|error| error.to_string())?;
    pool.map(|x: u32| x, 0..10).map_err(|error| error.to_string())?;
    support::become_another_user();
    pool.terminate();
    pool.join().map_err(|error| error.to_string())
}

#[test]
fn a_program_that_gave_up_privileges_terminates_its_workers() -> TestResult {
    if support::may_change_user() {
        let _clean = Clean::start();
        Process::new(terminate_as_another_user, ()).start()?.join()??;
    }
    Ok(())
}

#[test]
fn closing_runs_what_was_submitted() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let mut results = pool.imap_unordered(|x: u32| x, 0..4);
    assert!(results.next().is_some_and(|first| first.is_ok()));
    pool.close();
    assert_eq!(results.filter(Result::is_ok).count(), 3);
    assert!(matches!(pool.apply(|x: u32| x, 1), Err(error) if matches!(error.failure, Failure::Terminated)));
    pool.join()?;
    Ok(())
}

#[test]
fn pools_are_dropped_in_every_state() -> TestResult {
    let _clean = Clean::start();
    for round in 0..20 {
        let pool = Pool::new(2)?;
        if round % 2 == 0 {
            pool.apply(|x: u32| x, 1)?;
        }
        if round % 3 == 0 {
            let mut results = pool.imap_unordered(|_: u32| std::thread::sleep(Duration::from_secs(3600)), 0..);
            std::thread::scope(|scope| {
                scope.spawn(|| pool.terminate());
                assert!(results.next().is_some_and(|first| first.is_err()));
            });
        }
        if round % 5 == 0 {
            pool.close();
        }
    }
    Ok(())
}

#[test]
fn pools_nest_and_large_values_pass() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    let nested = |n: u64| {
        Pool::new(2).expect("a worker may have a pool").map(|x: u64| x * x, 0..n).expect("results").iter().sum::<u64>()
    };
    assert_eq!(pool.map(nested, [3, 4])?, [5, 14]);
    let bytes = vec![7u8; 5_000_000];
    let back = pool.map(|bytes: Vec<u8>| bytes, [bytes.clone(), bytes.clone()])?;
    assert!(back.iter().all(|one| *one == bytes));
    Ok(())
}

#[test]
fn many_threads_share_a_pool() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    std::thread::scope(|scope| {
        for n in 0..8u64 {
            let pool = &pool;
            scope.spawn(move || {
                assert_eq!(
                    pool.map(|(n, x): (u64, u64)| n * x, (0..100).map(|x| (n, x))).map(|v| v.len()).ok(),
                    Some(100)
                )
            });
        }
    });
    Ok(())
}

#[test]
fn a_result_of_a_worker_that_then_dies_is_not_lost() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    for _ in 0..20 {
        // A thread of the worker ends it, at some moment before or after its answer.
        let result = pool.apply(
            |()| {
                std::thread::spawn(|| std::process::exit(0));
                5
            },
            (),
        );
        assert!(result.is_ok_and(|five| five == 5) || pool.workers() == 1);
    }
    let child = Process::new(|()| Pool::new(1).expect("a pool").apply(|x: u32| x, 3).expect("a result"), ()).start()?;
    assert_eq!(child.join()?, 3);
    Ok(())
}

#[test]
fn who_submits_waits_while_too_many_bytes_wait() -> TestResult {
    let go = Event::new()?;
    let pool = Pool::builder().workers(1).max_waiting_bytes(1 << 20).initializer(|go: Event| go, go.clone()).build()?;
    let waiting_bytes = || pool.stats().waiting_bytes;
    std::thread::scope(|scope| -> TestResult {
        let submitter = scope.spawn(|| {
            let wait = |go: &mut Event, text: String| {
                go.wait();
                text.len()
            };
            // More tasks than the table holds.
            let text = "x".repeat(10_000);
            (0..2000).map(|_| pool.state().apply_async(wait, text.clone())).collect::<Vec<_>>()
        });
        // The submitter blocks once the table is full and 1 MiB of arguments waits behind it.
        wait_until(|| {
            let before = waiting_bytes();
            std::thread::sleep(Duration::from_millis(20));
            before > 1 << 20 && waiting_bytes() == before
        });
        assert!(waiting_bytes() <= (1 << 20) + 20_000 && !submitter.is_finished());
        go.set();
        for result in submitter.join().expect("no panic") {
            assert_eq!(result.get()?, 10_000);
        }
        Ok(())
    })?;
    assert_eq!(waiting_bytes(), 0);
    Ok(())
}

/// Calls `act` while another thread blocks in [`AsyncResult::wait`]. Returns when that thread has ended.
fn while_a_thread_waits<T: Send>(result: &AsyncResult<T>, act: impl FnOnce()) {
    std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        scope.spawn(move || {
            sender.send(nix::unistd::gettid()).expect("the receiver exists");
            result.wait();
        });
        let waiter = receiver.recv().expect("the thread sends its number first");
        // The state of a thread that sleeps is `S`.
        wait_until(|| {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{waiter}/stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, fields)| fields.starts_with(" S"))
        });
        act();
    });
}

#[test]
fn a_call_is_cancelled_while_a_thread_waits_for_it() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    let result = pool.apply_async(|()| std::thread::sleep(Duration::from_secs(3600)), ());
    while_a_thread_waits(&result, || result.cancel());
    assert!(matches!(result.get(), Err(error) if matches!(error.failure, Failure::Cancelled)));
    Ok(())
}

#[test]
fn several_threads_wait_for_one_result() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    let go = Event::new()?;
    let wait = |go: Event| {
        go.wait();
        7
    };
    let result = pool.apply_async(wait, go.clone());
    while_a_thread_waits(&result, || {
        while_a_thread_waits(&result, || {
            // The task ends only after these calls have returned.
            assert!(!result.ready());
            assert_eq!(result.successful(), None);
            assert!(!result.wait_timeout(Duration::from_millis(1)));
            go.set();
        });
    });
    assert_eq!(result.successful(), Some(true));
    assert_eq!(result.get()?, 7);
    Ok(())
}

#[test]
fn a_call_that_could_not_be_submitted_runs_its_callbacks() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    let (sender, receiver) = channel();
    // A context must not hold handles, such as a queue.
    let result = pool
        .options()
        .context(&Queue::<u32>::new(0)?)
        .apply_async(|_: &Queue<u32>, x: u32| x, 1)
        .error_callback(|_| panic!("in a callback"))
        .error_callback(move |error| sender.send(error.to_string()).expect("the receiver exists"));
    assert!(receiver.recv()?.contains("it holds handles"));
    assert!(matches!(result.get(), Err(error) if matches!(error.failure, Failure::Codec(_))));
    Ok(())
}
