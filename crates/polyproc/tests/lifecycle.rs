//! The ends of a program and of the processes that it started. Each case is a program of its own: an ignored test that another
//! test runs.

mod support;

use std::collections::BTreeSet;
use std::io::Read;
use std::time::Duration;

use polyproc::{Pool, Process, StartMethod};
use support::{
    TestResult, children_of, descriptors, is_gone, is_program, line_after, run_program, start_program,
    state_and_parent, wait_until,
};

fn sleep_for_ever(_: ()) {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Runs a program that must succeed, and returns its output.
fn output_of(name: &str) -> String {
    let output = run_program(name);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn a_daemon_gets_sigterm_at_the_end_and_may_catch_it() {
    let output = output_of("program_daemon");
    assert!(output.contains("main ends"), "{output}");
    assert!(output.split("main ends").nth(1).is_some_and(|after| after.contains("caught")), "{output}");
}

#[test]
#[ignore = "a program, run by a_daemon_gets_sigterm_at_the_end_and_may_catch_it"]
fn program_daemon() -> TestResult {
    assert!(is_program());
    let (mut ready, tell) = std::io::pipe()?;
    let daemon = |_: ()| -> () {
        let mut signals = signal_hook::iterator::Signals::new([15]).expect("SIGTERM can be caught");
        println!("ready");
        signals.forever().next();
        eprintln!("caught");
        std::process::exit(0);
    };
    // The daemon's standard error is this program's output; its standard output signals that the handler is set.
    let stderr = std::io::stdout();
    let stderr = std::os::fd::AsFd::as_fd(&stderr).try_clone_to_owned()?;
    let child = Process::new(daemon, ()).daemon(true);
    child.stdout(polyproc::Stdio::Fd(tell.into())).stderr(polyproc::Stdio::Fd(stderr)).start()?;
    let mut line = [0; 6];
    ready.read_exact(&mut line)?;
    println!("main ends");
    Ok(())
}

#[test]
fn a_daemon_that_ignores_sigterm_is_killed_after_the_grace_period() {
    let output = output_of("program_stubborn_daemon");
    let pid: u32 = line_after(&mut output.lines().map(|line| Ok(line.to_owned())), "daemon ").parse().expect("a pid");
    assert!(is_gone(pid));
}

#[test]
#[ignore = "a program, run by a_daemon_that_ignores_sigterm_is_killed_after_the_grace_period"]
fn program_stubborn_daemon() -> TestResult {
    assert!(is_program());
    polyproc::set_daemon_grace(Duration::from_millis(50));
    let (mut ready, tell) = std::io::pipe()?;
    let stubborn = |_: ()| {
        let _signals = signal_hook::iterator::Signals::new([15]).expect("SIGTERM can be caught");
        println!("ready");
        sleep_for_ever(());
    };
    let child = Process::new(stubborn, ()).daemon(true).stdout(polyproc::Stdio::Fd(tell.into())).start()?;
    ready.read_exact(&mut [0; 6])?;
    println!("daemon {}", child.pid());
    Ok(())
}

#[test]
fn others_are_joined_at_the_end() {
    for name in ["program_joined", "program_joined_nested"] {
        let output = output_of(name);
        assert!(output.split("main ends").nth(1).is_some_and(|after| after.contains("finished")), "{output}");
    }
}

#[test]
#[ignore = "a program, run by others_are_joined_at_the_end"]
fn program_joined() -> TestResult {
    assert!(is_program());
    let (wait, go) = std::io::pipe()?;
    let slow = |_: ()| {
        std::io::stdin().read_to_end(&mut Vec::new()).expect("stdin can be read");
        println!("finished");
    };
    Process::new(slow, ()).stdin(polyproc::Stdio::Fd(wait.into())).start()?;
    println!("main ends");
    // The child continues when the other end of the pipe is closed: after this program's end, if the child is not joined there.
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(go);
    });
    Ok(())
}

#[test]
#[ignore = "a program, run by others_are_joined_at_the_end"]
fn program_joined_nested() -> TestResult {
    assert!(is_program());
    let outer = |_: ()| {
        let inner = |_: ()| {
            std::thread::sleep(Duration::from_millis(100));
            println!("finished");
        };
        Process::new(inner, ()).start().expect("a child may start one");
    };
    println!("main ends");
    Process::new(outer, ()).start()?.join()?;
    Ok(())
}

#[test]
fn the_death_of_the_program_takes_daemons_workers_and_the_forkserver_along() {
    for fault in ["-9", "-15", "-6"] {
        let (mut program, mut lines) = start_program("program_with_everything");
        let pids: BTreeSet<u32> =
            line_after(&mut lines, "all ").split(' ').map(|pid| pid.parse().expect("a pid")).collect();
        // At least two daemons, a grandchild with its fork server, two workers, this program's fork server, a forked daemon.
        assert!(pids.len() >= 7, "{pids:?}");
        assert!(pids.iter().all(|pid| !is_gone(*pid)));
        let kill =
            std::process::Command::new("kill").args([fault, &program.id().to_string()]).status().expect("kill(1)");
        assert!(kill.success());
        program.wait().expect("it was started here");
        wait_until(|| pids.iter().all(|pid| is_gone(*pid)));
        // No process keeps the output open: a reader reaches the end of file.
        lines.for_each(drop);
    }
}

/// Sends the signal to the whole process group, as a terminal does. The program dies from the signal (a shell reports 130); the
/// workers print nothing.
#[test]
fn ctrl_c_ends_the_program_and_its_workers_without_a_word() {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    let mut command = support::program("program_with_busy_workers");
    let mut program = command.env("POLYPROC_TEST_PROGRAM", "1").process_group(0).spawn().expect("it can be started");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(program.stdout.take().expect("piped")));
    let workers: BTreeSet<u32> = (0..2).map(|_| line_after(&mut lines, "worker ").parse().expect("a pid")).collect();
    let group = format!("-{}", program.id());
    let kill = std::process::Command::new("kill").args(["-2", "--", &group]).status().expect("kill(1)");
    assert!(kill.success());
    let output = program.wait_with_output().expect("it was started here");
    assert_eq!((output.status.signal(), String::from_utf8_lossy(&output.stderr)), (Some(2), "".into()));
    wait_until(|| workers.iter().all(|pid| is_gone(*pid)));
    lines.for_each(drop); // no process keeps the output open
}

#[test]
#[ignore = "a program, run by ctrl_c_ends_the_program_and_its_workers_without_a_word"]
fn program_with_busy_workers() -> TestResult {
    assert!(is_program());
    let work = |_: u32| {
        // A single write, so that lines of two workers do not mix.
        let line = format!("worker {}\n", std::process::id());
        std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes()).expect("a pipe");
        sleep_for_ever(());
    };
    Pool::new(2)?.map(work, 0..1000)?;
    Ok(())
}

#[test]
#[ignore = "a program, run by the_death_of_the_program_takes_daemons_workers_and_the_forkserver_along"]
fn program_with_everything() -> TestResult {
    assert!(is_program());
    let me = std::process::id();
    let pool = Pool::new(2)?;
    pool.map(|x: u32| x, 0..2)?;
    let with_child = |_: ()| {
        // Not a daemon, but the child of one.
        let grandchild = Process::new(sleep_for_ever, ()).start().expect("a daemon may have children");
        println!("grandchild {}", grandchild.pid());
        sleep_for_ever(());
    };
    let (mut read, write) = std::io::pipe()?;
    Process::new(with_child, ()).daemon(true).stdout(polyproc::Stdio::Fd(write.into())).start()?;
    Process::new(sleep_for_ever, ()).daemon(true).start_method(StartMethod::Spawn).start()?;
    #[expect(unsafe_code, reason = "fork in a program of a test runner")]
    // SAFETY: the child only sleeps.
    let promise = unsafe { polyproc::ForkWithThreads::new() };
    let forked = Process::fork(|| sleep_for_ever(())).daemon(true).fork_with_threads(promise);
    std::thread::spawn(move || read.read_exact(&mut [0; 11]).map(|()| read)).join().expect("no panic")?;
    forked.start()?;
    let mut all = children_of(me);
    let below: Vec<_> = all.iter().flat_map(|pid| children_of(*pid)).collect();
    all.extend(below);
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    println!("all {}", all.join(" "));
    sleep_for_ever(());
    Ok(())
}

#[test]
fn the_forkserver_goes_with_a_program_that_ends_well() {
    let output = output_of("program_with_forkserver");
    let pid: u32 =
        line_after(&mut output.lines().map(|line| Ok(line.to_owned())), "forkserver ").parse().expect("a pid");
    assert_eq!(state_and_parent(pid), None, "reaped by the program itself");
}

#[test]
#[ignore = "a program, run by the_forkserver_goes_with_a_program_that_ends_well"]
fn program_with_forkserver() -> TestResult {
    assert!(is_program());
    Process::new(|()| (), ()).start()?.join()?;
    println!("forkserver {}", support::forkserver().ok_or("a fork server")?);
    Ok(())
}

#[test]
fn a_program_that_starts_processes_in_every_process_does_not_bomb() -> TestResult {
    // Each level starts one process, by alternating methods, down to a depth.
    fn descend(depth: u32) -> u32 {
        let below = depth.checked_sub(1).map(|depth| {
            let method = if depth % 2 == 0 { StartMethod::Forkserver } else { StartMethod::Spawn };
            Process::new(descend, depth).start_method(method).start().expect("starts").join().expect("returns")
        });
        below.unwrap_or(0) + 1
    }
    assert_eq!(Process::new(descend, 5).start()?.join()?, 6);
    Ok(())
}

#[test]
fn no_zombie_stays_of_a_child_that_nobody_joins() -> TestResult {
    for method in [StartMethod::Forkserver, StartMethod::Spawn] {
        let kept: Vec<_> =
            (0..20).map(|_| Process::new(|()| (), ()).start_method(method).start()).collect::<Result<_, _>>()?;
        for _ in 0..20 {
            drop(Process::new(|()| (), ()).start_method(method).start()?);
        }
        // Only the fork server and its spare are left, although handles remain and their results can still be read.
        wait_until(support::is_childless);
        kept.into_iter().try_for_each(polyproc::Child::join)?;
    }
    Ok(())
}

#[test]
fn a_status_taken_by_others_is_still_told_or_unknown() -> TestResult {
    // The engine's own thread may reap a child first, but not every time.
    let child = loop {
        let child = Process::new(|()| -> () { std::process::exit(3) }, ()).start()?;
        let pid = i32::try_from(child.pid())?;
        #[expect(unsafe_code, reason = "waitpid, as code beside us might call it")]
        // SAFETY: a null status is allowed.
        let stolen = unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        if stolen == pid {
            break child;
        }
    };
    match child.join() {
        Err(polyproc::JoinError::Died(death)) => assert!(
            matches!(death.status, polyproc::ExitStatus::Exited(3) | polyproc::ExitStatus::Unknown),
            "{death:?}"
        ),
        other => panic!("{other:?}"),
    }
    Ok(())
}

#[test]
#[expect(unsafe_code, reason = "a descriptor without close-on-exec has to be made")]
fn descriptors_do_not_leak_into_children() -> TestResult {
    // SAFETY: dup returns a new descriptor, inherited over exec, that no object owns.
    let leaky = unsafe { libc::dup(1) };
    assert!(leaky > 2);
    let _file = std::fs::File::open("/dev/null")?;
    for method in [StartMethod::Forkserver, StartMethod::Spawn] {
        for _ in 0..3 {
            let seen =
                Process::new(|()| descriptors().values().sum::<usize>(), ()).start_method(method).start()?.join()?;
            assert_eq!(seen, 5, "standard streams, the channel and the ledger, by {method:?}");
        }
    }
    Ok(())
}

#[test]
fn a_thousand_processes_leave_nothing() -> TestResult {
    let _clean = support::Clean::start();
    for n in 0..1000u32 {
        assert_eq!(Process::new(|n: u32| n, n).start()?.join()?, n);
    }
    Ok(())
}

#[test]
#[ignore = "a minute: run by the command in CONTRIBUTING.md"]
fn ten_thousand_processes_leave_nothing() -> TestResult {
    let resident = |pid: u32| -> Result<u64, Box<dyn std::error::Error>> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    let clean = support::Clean::start();
    let forkserver = support::forkserver().ok_or("a fork server")?;
    let mut after_1000 = (0, 0);
    for n in 1..=10_000u32 {
        assert_eq!(Process::new(|n: u32| n, n).start()?.join()?, n);
        if n == 1000 {
            after_1000 = (resident(std::process::id())?, resident(forkserver)?);
        }
    }
    let at_end = (resident(std::process::id())?, resident(forkserver)?);
    println!("resident KiB of parent and fork server after 1,000: {after_1000:?}, after 10,000: {at_end:?}");
    assert!(at_end.0 <= after_1000.0 + 256 && at_end.1 <= after_1000.1 + 64, "memory grows");
    drop(clean);
    Ok(())
}
