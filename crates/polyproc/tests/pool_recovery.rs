//! `Pool` after a failure: no unrelated task is lost, held up or run twice.

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use polyproc::{Failure, Pool, PoolEvent, Process, StartError, StartMethod, active_children};
use polyproc_core::crash::{self, STEPS, Step};
use support::{
    Clean, TestResult, children_of, forkserver, is_gone, is_program, limit_descriptors, line_after, sandbox, scratch,
    start_program, state_and_parent, wait_until,
};

const LONG: Duration = Duration::from_secs(3600);

fn die((): ()) {
    std::process::abort();
}

/// Runs until the file exists.
fn wait_for_file(path: PathBuf) {
    wait_until(|| path.exists());
}

#[test]
fn to_cancel_some_of_many_loses_no_other() -> TestResult {
    let _clean = Clean::start();
    let (pool, go) = (Pool::new(1)?, scratch("cancel-some"));
    let hold = pool.apply_async(wait_for_file, go.clone());
    let mut results: Vec<_> = (0..3000u32).map(|x| pool.apply_async(|x: u32| x, x)).collect();
    for result in results.drain(100..120) {
        result.cancel();
    }
    std::fs::write(&go, "")?;
    hold.get()?;
    let expected = (0..3000u32).filter(|x| !(100..120).contains(x));
    for (result, x) in results.into_iter().zip(expected) {
        assert_eq!(result.get()?, x);
    }
    std::fs::remove_file(go)?;
    Ok(())
}

#[test]
fn tasks_that_make_way_for_urgent_ones_lose_none_of_these() -> TestResult {
    let _clean = Clean::start();
    let (pool, go) = (Pool::new(1)?, scratch("make-way"));
    let hold = pool.apply_async(wait_for_file, go.clone());
    let submit = |priority: i32, count: u32| -> Vec<_> {
        (0..count).map(|x| pool.options().priority(priority).apply_async(|x: u32| x, x)).collect()
    };
    let all = [submit(5, 10), submit(0, 1000), submit(3, 1), submit(0, 1000), submit(3, 20)];
    std::fs::write(&go, "")?;
    hold.get()?;
    for (result, x) in all.into_iter().flat_map(|results| results.into_iter().zip(0..)) {
        assert_eq!(result.get()?, x);
    }
    std::fs::remove_file(go)?;
    Ok(())
}

#[test]
fn an_argument_above_the_memory_limit_is_told_and_not_tried_for_ever() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::builder().workers(1).memory_limit(64 << 20).build()?;
    let error = pool.apply(|text: String| text.len(), "x".repeat(160 << 20)).expect_err("too much");
    assert!(matches!(error.failure, Failure::OutOfMemory | Failure::WorkerLost(_)), "{error}");
    assert_eq!(pool.apply(|x: u32| x, 5)?, 5);
    Ok(())
}

#[test]
fn a_map_that_was_given_up_keeps_no_worker_from_ending() -> TestResult {
    let _clean = Clean::start();
    let (pool, go) = (Pool::new(1)?, scratch("given-up"));
    let items = [0, 1].into_iter().inspect(|x| assert!(*x == 0, "no more")).map(|_| go.clone());
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.chunksize(1).map(wait_for_file, items)));
    std::panic::set_hook(quiet);
    assert!(panicked.is_err());
    std::fs::write(&go, "")?;
    pool.close();
    pool.join()?;
    std::fs::remove_file(go)?;
    Ok(())
}

#[test]
fn a_panic_in_on_event_ends_no_thread_of_the_pool() -> TestResult {
    let _clean = Clean::start();
    let ends = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&ends);
    let see = move |event: &PoolEvent| {
        if matches!(event, PoolEvent::WorkerEnded { .. }) {
            seen.fetch_add(1, Ordering::Relaxed);
            panic!("as told");
        }
    };
    let pool = Pool::builder().workers(1).on_event(see).build()?;
    for _ in 0..3 {
        let error = pool.apply(die, ()).expect_err("it died");
        assert!(matches!(error.failure, Failure::WorkerLost(_)), "{error}");
    }
    assert_eq!(pool.apply(|x: u32| x, 5)?, 5);
    wait_until(|| ends.load(Ordering::Relaxed) == 3);
    Ok(())
}

#[test]
fn a_panic_in_a_waker_ends_no_thread_of_the_pool() -> TestResult {
    struct Panics(AtomicUsize);
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
            panic!("as told");
        }
    }
    let _clean = Clean::start();
    let (pool, go) = (Pool::new(1)?, scratch("panicking-waker"));
    let mut result = Box::pin(pool.apply_async(wait_for_file, go.clone()));
    let panics = Arc::new(Panics(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&panics));
    assert!(result.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    std::fs::write(&go, "")?;
    wait_until(|| panics.0.load(Ordering::Relaxed) > 0);
    assert_eq!(pool.apply(|x: u32| x, 5)?, 5);
    let lost = pool.apply(die, ()).expect_err("it died");
    assert!(matches!(lost.failure, Failure::WorkerLost(_)), "{lost}");
    assert_eq!(pool.apply(|x: u32| x, 6)?, 6);
    Ok(())
}

#[test]
fn fork_is_refused_while_code_of_the_users_runs_on_the_pools_thread() -> TestResult {
    let _clean = Clean::start();
    let (in_callback, is_in_callback) = channel();
    let (may_end, end) = channel();
    let (in_callback, end) = (Mutex::new(in_callback), Mutex::new(end));
    let once = AtomicBool::new(true);
    let see = move |event: &PoolEvent| {
        if matches!(event, PoolEvent::WorkerEnded { .. }) && once.swap(false, Ordering::Relaxed) {
            in_callback.lock().expect("no panic").send(()).expect("the test waits");
            end.lock().expect("no panic").recv().expect("the test ends it");
        }
    };
    let pool = Pool::builder().workers(1).on_event(see).build()?;
    let worker = pool.apply(|()| std::process::id(), ())?;
    active_children().iter().find(|child| child.pid() == worker).expect("a worker").kill()?;
    is_in_callback.recv()?;
    let refused = Process::new(|()| (), ()).start_method(StartMethod::Fork).start();
    may_end.send(())?;
    assert!(matches!(refused, Err(StartError::Threads { .. })), "{refused:?}");
    Ok(())
}

/// Kills every worker as soon as it exists, until `count` are dead.
fn kill_newborn(count: usize) {
    let mut killed = Vec::new();
    while killed.len() < count {
        for child in active_children().iter().filter(|child| child.name().starts_with("PoolWorker")) {
            if !killed.contains(&child.pid()) && child.kill().is_ok() {
                killed.push(child.pid());
            }
        }
        std::thread::yield_now();
    }
}

#[test]
fn workers_killed_from_outside_while_they_start_are_started_again() -> TestResult {
    let _clean = Clean::start();
    let go = scratch("newborn");
    let pool = Pool::builder().workers(2).initializer(wait_for_file, go.clone()).build()?;
    let result = pool.apply_async(|x: u32| x, 7);
    kill_newborn(12);
    std::fs::write(&go, "")?;
    assert_eq!(result.get()?, 7);
    std::fs::remove_file(go)?;
    Ok(())
}

#[test]
fn an_initializer_that_exits_each_time_ends_the_pool() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::builder().workers(2).initializer(exit, 3).build()?;
    let error = pool.apply(|x: u32| x, 7).expect_err("no worker");
    assert!(matches!(error.failure, Failure::NoWorkers(_)), "{error}");
    assert!(error.to_string().contains("exit code 3"), "{error}");
    Ok(())
}

fn exit(code: i32) {
    std::process::exit(code);
}

fn arm_each_worker(step: usize) {
    crash::arm(STEPS[step], 1);
}

/// Every worker dies when it first reaches the step: no task is retried for ever.
#[test]
fn deaths_that_repeat_at_each_step_end_every_task() -> TestResult {
    let _clean = Clean::start();
    let first = STEPS.iter().position(|step| *step == Step::TaskClaimed).expect("a step of the pool");
    for (at, step) in STEPS.iter().enumerate().skip(first) {
        let pool = Pool::builder().workers(2).initializer(arm_each_worker, at).build()?;
        for retries in [0, 2] {
            let results: Vec<_> = pool.chunksize(1).retries(retries).imap_unordered(|x: u32| x, 0..4).collect();
            assert_eq!(results.len(), 4, "{step:?}");
            for result in results {
                if let Err(error) = result {
                    assert!(matches!(error.failure, Failure::WorkerLost(_)), "{step:?}: {error}");
                }
            }
        }
    }
    Ok(())
}

/// One worker stops at the step: the other worker serves all other tasks, and time limits are kept.
#[test]
fn a_worker_frozen_at_each_step_holds_up_nobody_else() -> TestResult {
    let _clean = Clean::start();
    let first = STEPS.iter().position(|step| *step == Step::TaskClaimed).expect("a step of the pool");
    for (at, step) in STEPS.iter().enumerate().skip(first) {
        let pool = Pool::new(2)?;
        let freeze = |at: usize| {
            crash::freeze(STEPS[at], 1);
            std::process::id()
        };
        // The worker stops in this task or in its next one.
        let frozen = pool.apply_async(freeze, at);
        let limited = |x: u32| {
            let work = |x: u32| {
                std::thread::sleep(Duration::from_millis(1)); // so that both workers get tasks
                x
            };
            pool.options().timeout(Duration::from_millis(300)).apply_async(work, x)
        };
        for x in 0..10 {
            for result in [limited(x), limited(x), limited(x)] {
                match result.get() {
                    Ok(result) => assert_eq!(result, x),
                    Err(error) => assert!(matches!(error.failure, Failure::TimedOut), "{step:?}: {error}"),
                }
            }
        }
        frozen.cancel();
        let ended = frozen.get();
        assert!(ended.is_ok() || matches!(&ended, Err(e) if matches!(e.failure, Failure::Cancelled)), "{ended:?}");
        drop(pool); // by force, as one worker is stopped
    }
    Ok(())
}

/// Starts a command that runs for 3600 s, writes its process id to `path`, and waits for it.
fn run_command(path: PathBuf) {
    let mut command = Command::new("sleep").arg("3600").spawn().expect("sleep");
    std::fs::write(path.with_extension("new"), command.id().to_string()).expect("room");
    std::fs::rename(path.with_extension("new"), path).expect("the same folder");
    command.wait().expect("it is killed with this process");
}

fn started_command(path: &PathBuf) -> Result<u32, Box<dyn std::error::Error>> {
    wait_until(|| path.exists());
    let pid = std::fs::read_to_string(path)?.parse()?;
    std::fs::remove_file(path)?;
    Ok(pid)
}

#[test]
fn commands_that_a_task_started_end_with_it() -> TestResult {
    let _clean = Clean::start();
    for method in [StartMethod::Forkserver, StartMethod::Spawn] {
        let pool = Pool::builder().workers(1).start_method(method).build()?;
        let path = scratch("command");
        // The worker is killed at this limit, which leaves time for the command's start on a loaded machine.
        let timed = pool.options().timeout(Duration::from_secs(3)).apply_async(run_command, path.clone());
        let command = started_command(&path)?;
        assert!(matches!(timed.get(), Err(error) if matches!(error.failure, Failure::TimedOut)));
        wait_until(|| is_gone(command));
        let cancelled = pool.apply_async(run_command, path.clone());
        let command = started_command(&path)?;
        cancelled.cancel();
        assert!(cancelled.get().is_err());
        wait_until(|| is_gone(command));
        let lost = pool.apply_async(run_command, path.clone());
        let command = started_command(&path)?;
        active_children().iter().for_each(|worker| _ = worker.kill());
        assert!(lost.get().is_err());
        wait_until(|| is_gone(command));
        let _terminated = pool.apply_async(run_command, path.clone());
        let command = started_command(&path)?;
        pool.terminate();
        pool.join()?;
        wait_until(|| is_gone(command));
    }
    Ok(())
}

#[test]
fn commands_end_with_a_worker_that_ends_while_somebody_asks_whether_it_lives() -> TestResult {
    let _clean = Clean::start();
    let (pool, path) = (Pool::new(1)?, scratch("asked"));
    for _ in 0..20 {
        let lost = pool.apply_async(run_command, path.clone());
        let command = started_command(&path)?;
        let workers = active_children();
        std::thread::scope(|scope| {
            for worker in &workers {
                scope.spawn(|| wait_until_quickly(|| !worker.is_alive()));
                _ = worker.kill();
            }
        });
        assert!(lost.get().is_err());
        wait_until(|| is_gone(command));
    }
    Ok(())
}

/// As [`wait_until`], without a pause between two checks.
fn wait_until_quickly(condition: impl Fn() -> bool) {
    while !condition() {
        std::hint::spin_loop();
    }
}

#[test]
#[ignore = "a program that another test runs"]
fn program_with_commands() {
    if !is_program() {
        return;
    }
    let pool = Pool::new(2).expect("a pool");
    let path = scratch("program-command");
    let _running = pool.apply_async(run_command, path.clone());
    let command = started_command(&path).expect("it starts");
    println!("command {command}");
    println!("worker {}", pool.apply(|()| std::process::id(), ()).expect("the other one"));
    std::thread::sleep(LONG);
}

#[test]
fn commands_that_a_task_started_end_with_a_program_that_is_killed() -> TestResult {
    let (mut program, mut lines) = start_program("program_with_commands");
    let command: u32 = line_after(&mut lines, "command ").parse()?;
    let worker: u32 = line_after(&mut lines, "worker ").parse()?;
    program.kill()?;
    program.wait()?;
    wait_until(|| is_gone(command) && is_gone(worker));
    Ok(())
}

#[test]
fn a_killed_spare_of_the_fork_server_is_reaped() -> TestResult {
    let _clean = Clean::start();
    for _ in 0..3 {
        Process::new(|()| (), ()).start()?.join()?;
    }
    let zygote = forkserver().expect("a fork server");
    let spare = || children_of(std::process::id()).into_iter().find(|pid| *pid != zygote);
    wait_until(|| spare().is_some());
    let pid = spare().expect("a spare");
    Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    wait_until(|| state_and_parent(pid).is_none_or(|(_, parent)| parent != std::process::id()));
    Process::new(|()| (), ()).start()?.join()?;
    Ok(())
}

#[test]
fn a_stopped_fork_server_does_not_hold_up_the_end_of_a_pool() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(2)?;
    assert_eq!(pool.map(|x: u32| x, 0..100)?.len(), 100);
    let zygote = forkserver().expect("a fork server").to_string();
    Command::new("kill").args(["-STOP", &zygote]).status()?;
    let workers = active_children();
    workers.iter().for_each(|worker| _ = worker.kill());
    let result = pool.apply_async(|x: u32| x, 5);
    pool.terminate();
    pool.join()?;
    assert!(result.get().is_err());
    Command::new("kill").args(["-CONT", &zygote]).status()?;
    Ok(())
}

#[test]
fn a_worker_that_cannot_be_watched_holds_no_task() -> TestResult {
    let in_a_sandbox = |()| -> Result<bool, String> {
        let pool = Pool::new(1).map_err(|error| error.to_string())?;
        let pid = pool.apply(|()| std::process::id(), ()).map_err(|error| error.to_string())?;
        sandbox::refuse(&[(libc::SYS_epoll_ctl, libc::ENOSPC)]);
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).map_err(|error| error.to_string())?;
        // From now on the pool gives up each worker that it starts, and after some of them it fails all tasks.
        let lost = (0..10).map(|x| pool.options().retries(100).apply_async(|x: u32| x, x)).map(|result| result.get());
        Ok(lost
            .into_iter()
            .all(|result| matches!(result, Err(error) if matches!(error.failure, Failure::NoWorkers(_)))))
    };
    assert_eq!(Process::new(in_a_sandbox, ()).start()?.join()?, Ok(true));
    Ok(())
}

#[test]
fn a_function_that_could_not_be_asked_for_is_asked_for_again() -> TestResult {
    let _clean = Clean::start();
    let pool = Pool::new(1)?;
    // A large context needs a descriptor of its own, and the worker may open no more.
    let before = pool.apply(limit_descriptors, 3)?;
    let count = |context: &Vec<u8>, x: usize| context.len() + x;
    let mut results = pool.options().look_ahead(1).context(&vec![0; 200_000]).imap(count, [1, 2]);
    let refused = results.next().and_then(Result::err).expect("the context cannot come");
    assert!(refused.to_string().contains("could not be received from the parent"), "{refused}");
    pool.apply(limit_descriptors, before)?;
    assert_eq!(results.next().transpose()?, Some(200_002));
    Ok(())
}
