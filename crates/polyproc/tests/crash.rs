//! Kills a process at each step of a start. `docs/design/start.md` lists the steps.

mod support;

use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use polyproc::{JoinError, Pool, Process, StartError, StartMethod};
use support::{Clean, TestResult, forkserver, sandbox, wait_until};

fn kill(pid: u32, signal: &str) {
    // Ignores an error: the process has then already exited.
    let _ = std::process::Command::new("kill")
        .args([signal, &pid.to_string()])
        .stderr(std::process::Stdio::null())
        .status();
}

#[test]
fn a_forkserver_killed_between_starts_is_replaced() -> TestResult {
    let _clean = Clean::start();
    for _ in 0..3 {
        let old = forkserver().ok_or("a fork server")?;
        kill(old, "-9");
        wait_until(|| forkserver() != Some(old));
        // The first process may be the spare of the old fork server.
        for _ in 0..3 {
            assert_eq!(Process::new(|n: u32| n + 1, 1).start()?.join()?, 2);
        }
        assert!(forkserver().is_some_and(|new| new != old));
    }
    Ok(())
}

#[test]
fn children_outlive_a_killed_forkserver() -> TestResult {
    let (read, write) = std::io::pipe()?;
    let child = Process::new(|()| std::io::read_to_string(std::io::stdin()).expect("stdin"), ());
    let child = child.stdin(polyproc::Stdio::Fd(read.into())).start()?;
    let old = forkserver().ok_or("a fork server")?;
    kill(old, "-9");
    wait_until(|| forkserver() != Some(old));
    assert!(child.is_alive());
    drop(write);
    assert_eq!(child.join()?, "");
    Ok(())
}

/// Writes one byte to standard output: the number of bytes is the number of runs.
fn leave_a_mark((n, _): (u32, Vec<u8>)) -> u32 {
    std::io::Write::write_all(&mut std::io::stdout(), b".").expect("a pipe");
    std::io::Write::flush(&mut std::io::stdout()).expect("a pipe");
    n
}

#[test]
fn a_forkserver_killed_at_any_moment_of_a_start_loses_and_doubles_nothing() -> TestResult {
    start_while_the_forkserver_is_killed()
}

#[test]
fn a_forkserver_without_clone3_killed_at_any_moment_of_a_start_loses_and_doubles_nothing() -> TestResult {
    let in_a_sandbox = |()| {
        sandbox::refuse(&[(libc::SYS_clone3, libc::ENOSYS)]);
        start_while_the_forkserver_is_killed().map_err(|error| error.to_string())
    };
    Ok(Process::new(in_a_sandbox, ()).start()?.join()??)
}

fn start_while_the_forkserver_is_killed() -> TestResult {
    let _clean = Clean::start();
    let (mut marks, write) = std::io::pipe()?;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let killer = std::thread::spawn({
        let stop = std::sync::Arc::clone(&stop);
        move || {
            let mut kills = 0u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if let Some(pid) = forkserver() {
                    kill(pid, "-9");
                    kills += 1;
                }
            }
            kills
        }
    });
    let (mut ran, mut killed) = (0, 0);
    for n in 0..300u32 {
        match Process::new(leave_a_mark, (n, Vec::new())).stdout(polyproc::Stdio::Fd(write.try_clone()?.into())).start()
        {
            Ok(child) => match child.join() {
                Ok(result) => ran += usize::from(result == n),
                // The killer finds the fork server by its name, which a new process has for a moment, too.
                Err(JoinError::Died(death)) if death.status.exit_code() == Some(-9) => killed += 1,
                Err(error) => panic!("{error}"),
            },
            // Only if the fork server was killed while it started, or three times in a row.
            Err(StartError::Forkserver { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let kills = killer.join().expect("no panic");
    drop(write);
    let mut seen = Vec::new();
    marks.read_to_end(&mut seen)?;
    let seen = seen.len();
    assert!((ran..=ran + killed).contains(&seen), "{ran} ran and {killed} were killed, but there are {seen} marks");
    assert!(kills > 10 && ran > 10, "{kills} kills, {ran} ran");
    // The last fork server may have been killed.
    Process::new(|()| (), ()).start()?.join()?;
    Ok(())
}

#[test]
fn a_child_killed_at_any_moment_of_its_start_is_told() -> TestResult {
    let _clean = Clean::start();
    for method in [StartMethod::Forkserver, StartMethod::Spawn] {
        for round in 0..50u64 {
            let child =
                Process::new(|()| std::thread::sleep(Duration::from_secs(3600)), ()).start_method(method).start()?;
            // Each round kills the child later in its start. The reported status does not depend on it.
            std::thread::sleep(Duration::from_micros(20 * round));
            child.kill()?;
            match child.join() {
                Err(JoinError::Died(death)) => assert_eq!(death.status.exit_code(), Some(-9)),
                other => panic!("{other:?}"),
            }
        }
    }
    Ok(())
}

/// A parent that is killed during a start leaves no daemon: its children die with it, whichever step they have reached.
#[test]
fn a_parent_killed_at_any_moment_of_a_start_leaves_nobody() -> TestResult {
    for round in 0..40u64 {
        let method = if round % 2 == 0 { StartMethod::Forkserver } else { StartMethod::Spawn };
        let (mut alive, held) = std::io::pipe()?;
        // The parent and its descendants hold the pipe as their standard error: at end of file all have exited.
        let parent = Process::new(
            |spawn: bool| -> () {
                let method = if spawn { StartMethod::Spawn } else { StartMethod::Forkserver };
                loop {
                    let sleep = |()| std::thread::sleep(Duration::from_secs(3600));
                    Process::new(sleep, ()).daemon(true).start_method(method).start().expect("it can be started");
                }
            },
            method == StartMethod::Spawn,
        );
        let parent = parent.stderr(polyproc::Stdio::Fd(held.into())).start()?;
        std::thread::sleep(Duration::from_micros(1000 + 300 * round));
        parent.kill()?;
        assert!(parent.join().is_err());
        alive.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

#[test]
fn too_many_open_files_is_an_error_and_nothing_ran_or_is_left() -> TestResult {
    let _clean = Clean::start();
    let (mut marks, write) = std::io::pipe()?;
    let open = i32::try_from(support::descriptors().values().sum::<usize>())?;
    let mut returned = 0;
    for room in 0..24 {
        for method in [StartMethod::Forkserver, StartMethod::Spawn] {
            let stdout = polyproc::Stdio::Fd(write.try_clone()?.into());
            let old = support::limit_descriptors(u64::try_from(open - 8 + room)?);
            // A large argument needs a descriptor of its own.
            let argument = (7, vec![0; if room % 2 == 0 { 0 } else { 100_000 }]);
            let started = Process::new(leave_a_mark, argument).start_method(method).stdout(stdout).start();
            support::limit_descriptors(old);
            match started {
                Ok(child) => returned += usize::from(child.join()? == 7),
                Err(StartError::Os { source, .. }) => assert_eq!(source.raw_os_error(), Some(libc::EMFILE)),
                Err(error) => panic!("{error}"),
            }
        }
    }
    drop(write);
    let mut seen = Vec::new();
    marks.read_to_end(&mut seen)?;
    assert_eq!(seen.len(), returned);
    assert!((4..44).contains(&returned), "{returned} of 48 starts found room");
    Ok(())
}

/// Starts processes while the system refuses `calls`. Returns whether the fork server created them, the sum that a pool
/// computed, and the preloaded value in a child, or whether the preload was refused.
fn start_without(calls: Vec<i64>) -> Result<(bool, u64, Result<u32, bool>), String> {
    static PRELOADED: AtomicU32 = AtomicU32::new(0);
    let refused: Vec<_> = calls.into_iter().map(|call| (call, libc::ENOSYS)).collect();
    sandbox::refuse(&refused);
    let text = |error: &dyn std::error::Error| error.to_string();
    let child = Process::new(|n: u32| n + 1, 1).start().map_err(|error| text(&error))?;
    let is_cloned = child.start_method() == StartMethod::Forkserver;
    child.join().map_err(|error| text(&error))?;
    for n in 0..20u32 {
        let child = Process::new(|n: u32| n + 1, n).start().map_err(|error| text(&error))?;
        assert_eq!(child.join().ok(), Some(n + 1));
    }
    let pool = Pool::new(2).map_err(|error| text(&error))?;
    let sum = pool.map(|x: u64| x, 0..100).map_err(|error| text(&error))?.into_iter().sum();
    polyproc::set_forkserver_preload(|()| PRELOADED.store(7, Ordering::Relaxed), ()).expect("a named function");
    let preloaded = match Process::new(|()| PRELOADED.load(Ordering::Relaxed), ()).start() {
        Ok(child) => Ok(child.join().map_err(|error| text(&error))?),
        Err(error) => Err(matches!(error, StartError::Preload { .. })),
    };
    Ok((is_cloned, sum, preloaded))
}

#[test]
fn where_clone3_is_refused_the_fork_server_clones_otherwise() -> TestResult {
    let started = Process::new(start_without, vec![libc::SYS_clone3]).start()?.join()?;
    assert_eq!(started, Ok((true, 4950, Ok(7))));
    Ok(())
}

#[test]
fn where_close_range_is_refused_descriptors_are_closed_otherwise() -> TestResult {
    let started = Process::new(start_without, vec![libc::SYS_close_range]).start()?.join()?;
    assert_eq!(started, Ok((true, 4950, Ok(7))));
    Ok(())
}

#[test]
fn where_pidfd_open_is_missing_a_start_says_so() -> TestResult {
    let started = Process::new(start_without, vec![libc::SYS_pidfd_open]).start()?.join()?;
    assert!(started.as_ref().is_err_and(|why| why.contains("pidfd_open")), "{started:?}");
    Ok(())
}

#[test]
fn where_nothing_can_be_cloned_processes_are_spawned() -> TestResult {
    // A fork server learns libc's addresses by `get_robust_list`. A preload needs a fork server, so it fails.
    let started = Process::new(start_without, vec![libc::SYS_clone3, libc::SYS_get_robust_list]).start()?.join()?;
    assert_eq!(started, Ok((false, 4950, Err(true))));
    Ok(())
}
