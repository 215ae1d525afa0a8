//! `Process` and `Child`: arguments, results, and how the end of a process is reported.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use polyproc::{
    ExitStatus, JoinError, Process, Run, Signal, StartError, StartMethod, Stdio, active_children, current_process,
    parent_process, wait,
};
use serde::{Deserialize, Serialize};
use support::{Clean, TestResult, overflow};

const METHODS: [StartMethod; 2] = [StartMethod::Forkserver, StartMethod::Spawn];

fn sleep_for_ever(_: ()) {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

#[test]
fn values_of_every_size_go_and_come_back() -> TestResult {
    let _clean = Clean::start();
    for method in METHODS {
        for len in [0, 1, 100_000, 20_000_000] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let reversed = Process::new(
                |mut bytes: Vec<u8>| {
                    bytes.reverse();
                    bytes
                },
                bytes.clone(),
            );
            let mut back = reversed.start_method(method).start()?.join()?;
            back.reverse();
            assert!(back == bytes, "{len} bytes by {method:?}");
        }
    }
    Ok(())
}

#[test]
fn structs_and_maps_are_arguments() -> TestResult {
    #[derive(Serialize, Deserialize)]
    struct Job {
        names: BTreeMap<String, u32>,
        limit: Option<f64>,
    }
    let job = Job { names: BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]), limit: Some(0.5) };
    let sum = Process::new(|job: Job| f64::from(job.names.values().sum::<u32>()) * job.limit.unwrap_or(1.0), job);
    assert_eq!(sum.start()?.join()?, 1.5);
    Ok(())
}

#[test]
fn a_runner_is_made_here_and_runs_there() -> TestResult {
    #[derive(Serialize, Deserialize)]
    struct Runner {
        made_in: u32,
    }
    impl Run for Runner {
        type Output = (u32, u32);
        fn run(self) -> (u32, u32) {
            (self.made_in, std::process::id())
        }
    }
    let child = Process::run(Runner { made_in: std::process::id() }).start()?;
    let pid = child.pid();
    assert_eq!(child.join()?, (std::process::id(), pid));
    Ok(())
}

#[test]
fn names_count_and_nest_as_in_python() -> TestResult {
    assert_eq!(current_process().name(), "MainProcess");
    assert!(parent_process().is_none());
    let name = |()| {
        let parent = parent_process().expect("a child has a parent");
        (current_process().name().to_owned(), parent.name().to_owned(), parent.pid(), parent.is_alive())
    };
    for (method, number) in METHODS.into_iter().zip(1..) {
        let child = Process::new(name, ()).start_method(method).start()?;
        assert_eq!(child.name(), format!("Process-{number}"));
        let expected = (format!("Process-{number}"), "MainProcess".to_owned(), std::process::id(), true);
        assert_eq!(child.join()?, expected);
    }
    let nested = Process::new(
        |()| {
            let first =
                Process::new(|()| current_process().name().to_owned(), ()).start().expect("a child may start one");
            first.join().expect("it returns");
            let second = Process::new(|()| current_process().name().to_owned(), ()).start().expect("and another");
            second.join().expect("it returns")
        },
        (),
    );
    assert_eq!(nested.start()?.join()?, "Process-3:2");
    let named = Process::new(|()| (current_process().name().to_owned(), current_process().is_daemon()), ());
    assert_eq!(named.name("TEST").daemon(true).start()?.join()?, ("TEST".to_owned(), true));
    Ok(())
}

#[test]
fn a_panic_comes_back_with_message_and_place() -> TestResult {
    let _clean = Clean::start();
    for method in METHODS {
        let child = Process::new(|n: u32| -> u32 { panic!("number {n}") }, 7)
            .start_method(method)
            .stderr(Stdio::Captured)
            .start()?;
        assert!(wait(&[&child], None)? == [0]);
        assert_eq!(child.exit_status(), Some(ExitStatus::Exited(101)));
        let printed = String::from_utf8(child.captured_stderr()?.ok_or("captured")?)?;
        assert!(printed.contains(&format!("process '{}' panicked at", child.name())), "{printed}");
        assert!(printed.contains("number 7"), "{printed}");
        match child.join() {
            Err(JoinError::Panicked(panic)) => {
                assert_eq!(panic.message, "number 7");
                assert!(panic.location.is_some_and(|at| at.contains("tests/process.rs:")));
            }
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}

#[test]
fn a_backtrace_comes_back_when_asked_for() -> TestResult {
    let child =
        Process::new(|()| -> () { panic!("trace me") }, ()).env("RUST_BACKTRACE", "1").stderr(Stdio::Null).start()?;
    match child.join() {
        Err(JoinError::Panicked(panic)) => assert!(panic.backtrace.is_some_and(|trace| trace.contains("panic"))),
        other => panic!("{other:?}"),
    }
    Ok(())
}

#[test]
#[expect(unsafe_code, reason = "a real fault has to be made")]
fn every_death_is_told_by_its_cause() -> TestResult {
    let _clean = Clean::start();
    let died = |process: Process<'_, ()>| match process.stderr(Stdio::Null).start().map(|child| child.join()) {
        Ok(Err(JoinError::Died(death))) => death,
        other => panic!("{other:?}"),
    };
    for method in METHODS {
        let death = died(Process::new(|()| std::process::exit(3), ()).start_method(method));
        assert_eq!((death.status, death.status.exit_code()), (ExitStatus::Exited(3), Some(3)));

        let death = died(Process::new(|()| std::process::abort(), ()).start_method(method));
        assert_eq!(death.status.signal().and_then(Signal::name), Some("SIGABRT"));

        // SAFETY: deliberately not sound: the address is never mapped, so the process dies.
        let death = died(
            Process::new(|()| unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) }, ())
                .start_method(method),
        );
        assert_eq!((death.status.exit_code(), death.stack_overflow), (Some(-11), false));

        let death = died(Process::new(|()| _ = overflow(0), ()).start_method(method));
        assert_eq!((death.status.exit_code(), death.stack_overflow), (Some(-11), true));
        assert_eq!(death.to_string(), "stack overflow (killed by SIGSEGV)");
    }
    Ok(())
}

#[test]
fn signals_arrive_even_before_the_child_is_set_up() -> TestResult {
    let _clean = Clean::start();
    for method in METHODS {
        for _ in 0..20 {
            for (send, number) in [
                (polyproc::Child::terminate as fn(&_) -> _, 15),
                (polyproc::Child::kill, 9),
                (polyproc::Child::interrupt, 2),
            ] {
                let child = Process::new(sleep_for_ever, ()).start_method(method).start()?;
                send(&child)?;
                match child.join() {
                    Err(JoinError::Died(death)) => assert_eq!(death.status.exit_code(), Some(-number)),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_running_process_is_alive_and_is_given_back_by_a_timeout() -> TestResult {
    let _clean = Clean::start();
    let child = Process::new(sleep_for_ever, ()).start()?;
    assert!(child.is_alive());
    assert_eq!(child.exit_status(), None);
    assert_eq!(child.wait_timeout(Duration::from_millis(1))?, None);
    let child = child.join_timeout(Duration::from_millis(1)).expect_err("it sleeps");
    assert_eq!(wait(&[&child], Some(Duration::ZERO))?, Vec::<usize>::new());
    child.kill()?;
    assert_eq!(wait(&[&child], None)?, [0]);
    assert!(!child.is_alive());
    child.terminate()?; // no error: it has ended already
    assert_eq!(child.exit_status().and_then(ExitStatus::exit_code), Some(-9));
    assert!(matches!(child.join_timeout(Duration::ZERO), Ok(Err(JoinError::Died(_)))));
    Ok(())
}

#[test]
fn joining_in_any_order_works() -> TestResult {
    let _clean = Clean::start();
    let children: Vec<_> = (0..20u32).map(|n| Process::new(|n: u32| n * 2, n).start()).collect::<Result<_, _>>()?;
    let results: Result<Vec<_>, _> = children.into_iter().rev().map(polyproc::Child::join).collect();
    assert_eq!(results?, (0..20u32).rev().map(|n| n * 2).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn active_children_are_those_that_run() -> TestResult {
    let _clean = Clean::start();
    assert!(active_children().is_empty());
    let ended = Process::new(|()| (), ()).start()?;
    wait(&[&ended], None)?;
    let running = Process::new(sleep_for_ever, ()).name("runs").daemon(true).start()?;
    let active = active_children();
    let seen: Vec<_> =
        active.iter().map(|child| (child.name(), child.pid(), child.is_daemon(), child.is_alive())).collect();
    assert_eq!(seen, [("runs", running.pid(), true, true)]);
    active[0].kill()?;
    assert_eq!(active[0].wait_timeout(Duration::MAX)?.and_then(ExitStatus::exit_code), Some(-9));
    assert!(active_children().is_empty());
    Ok(())
}

#[test]
fn streams_lead_where_they_are_told() -> TestResult {
    let _clean = Clean::start();
    for method in METHODS {
        let talk = |lines: u32| {
            (0..lines).for_each(|n| println!("line {n}"));
            print!("no newline at the end");
            eprint!("to stderr");
            std::io::read_to_string(std::io::stdin()).expect("stdin can be read")
        };
        let (reader, mut writer) = std::io::pipe()?;
        std::io::Write::write_all(&mut writer, b"from a pipe")?;
        drop(writer);
        let child = Process::new(talk, 100_000).start_method(method);
        let child = child.stdin(Stdio::Fd(reader.into())).stdout(Stdio::Captured).stderr(Stdio::Captured).start()?;
        wait(&[&child], None)?;
        let out = String::from_utf8(child.captured_stdout()?.ok_or("captured")?)?;
        assert!(out.starts_with("line 0\n") && out.ends_with("line 99999\nno newline at the end"));
        assert_eq!(child.captured_stderr()?.as_deref(), Some(&b"to stderr"[..]));
        assert_eq!(child.join()?, "from a pipe");

        let silent = Process::new(talk, 1)
            .start_method(method)
            .stdin(Stdio::Null)
            .stdout(Stdio::Null)
            .stderr(Stdio::Null)
            .start()?;
        assert_eq!(silent.captured_stdout()?, None);
        assert_eq!(silent.join()?, "");
    }
    Ok(())
}

#[test]
#[expect(unsafe_code, reason = "set_var: this test is alone in its process under the test runner")]
fn environment_and_folder_are_the_parents_of_now_and_can_be_changed() -> TestResult {
    let _clean = Clean::start(); // the fork server starts, with the environment before the change
    let look = |()| {
        let vars: BTreeMap<String, String> = std::env::vars().collect();
        (vars, std::env::current_dir().expect("a folder"))
    };
    // SAFETY: nextest runs each test in a process of its own, and no other thread of this one reads the environment.
    unsafe { std::env::set_var("POLYPROC_TEST_LATER", "yes") };
    std::env::set_current_dir("/")?;
    for method in METHODS {
        let process = || Process::new(look, ()).start_method(method);
        let (vars, folder) = process().start()?.join()?;
        assert_eq!(vars, std::env::vars().collect());
        assert_eq!(folder.to_str(), Some("/"));

        let changed = process().env("A", "1").env_remove("POLYPROC_TEST_LATER").current_dir("tmp").start()?;
        let (vars, folder) = changed.join()?;
        assert_eq!((vars.get("A").map(String::as_str), vars.contains_key("POLYPROC_TEST_LATER")), (Some("1"), false));
        assert_eq!(folder.to_str(), Some("/tmp"));

        let (vars, _) = process().env("GONE", "1").env_clear().env("ONLY", "2").start()?.join()?;
        assert_eq!(vars, BTreeMap::from([("ONLY".to_owned(), "2".to_owned())]));

        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
            let refused = process().env(name, value).start();
            assert!(matches!(refused, Err(StartError::Env { .. })), "{refused:?}");
        }
        let nowhere = process().current_dir("/nonexistent").start();
        assert!(matches!(nowhere, Err(StartError::CurrentDir { .. })), "{nowhere:?}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_encoded_or_decoded_is_an_error() -> TestResult {
    #[derive(Debug, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(u32),
    }
    let argument = Process::new(|_: Untagged| (), Untagged::Number(1)).start()?.join();
    assert!(matches!(&argument, Err(JoinError::Codec(_))), "{argument:?}");
    assert!(argument.is_err_and(|error| error.to_string().contains("could not decode the argument of type")));
    let result = Process::new(|()| Untagged::Number(1), ()).start()?.join();
    assert!(result.is_err_and(|error| error.to_string().contains("could not decode the result of type")));

    #[derive(Deserialize)]
    struct Unwritable;
    impl Serialize for Unwritable {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("never"))
        }
    }
    let start = Process::new(|_: Unwritable| (), Unwritable).start();
    assert!(matches!(&start, Err(StartError::Argument(_))), "{start:?}");
    let result = Process::new(|()| Unwritable, ()).start()?.join();
    assert!(result.is_err_and(|error| error.to_string().contains("could not encode the result of type")));
    Ok(())
}

#[test]
fn any_thread_may_start_processes_and_end_before_them() -> TestResult {
    let _clean = Clean::start();
    for method in METHODS {
        let threads: Vec<_> = (0..8u32)
            .map(|n| {
                std::thread::spawn(move || {
                    Process::new(|(n, ()): (u32, ())| n + 1, (n, ())).start_method(method).daemon(true).start()
                })
            })
            .collect();
        let children = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        let children: Vec<_> = children.collect::<Result<_, _>>()?;
        let results: Result<Vec<_>, _> = children.into_iter().map(polyproc::Child::join).collect();
        assert_eq!(results?, (1..9).collect::<Vec<_>>());

        let sleeper =
            std::thread::spawn(move || Process::new(sleep_for_ever, ()).start_method(method).daemon(true).start());
        let sleeper = sleeper.join().expect("no panic")?;
        // The thread that started it has exited. Another start shows that the engine has handled events since then.
        Process::new(|()| (), ()).start_method(method).start()?.join()?;
        assert!(sleeper.is_alive());
        sleeper.kill()?;
        assert!(sleeper.join().is_err());
    }
    Ok(())
}

#[test]
#[expect(unsafe_code, reason = "sched_setaffinity")]
fn cpu_count_honours_affinity() -> TestResult {
    assert_eq!(polyproc::cpu_count()?, std::thread::available_parallelism()?.get());
    let pinned = Process::new(
        |()| {
            // SAFETY: all-zero is an empty CPU set.
            let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
            // SAFETY: the call fills the set.
            assert_eq!(unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) }, 0);
            // SAFETY: the numbers are below the set's size.
            let first = (0..1024).find(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).expect("one CPU at least");
            // SAFETY: as above.
            unsafe { libc::CPU_ZERO(&mut set) };
            // SAFETY: as above.
            unsafe { libc::CPU_SET(first, &mut set) };
            // SAFETY: the call reads the set.
            assert_eq!(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) }, 0);
            polyproc::cpu_count().expect("the system tells")
        },
        (),
    );
    assert_eq!(pinned.start()?.join()?, 1);
    Ok(())
}

#[test]
fn ps_tells_the_fork_server_and_its_spare_from_processes() -> TestResult {
    let own = std::fs::read("/proc/self/cmdline")?;
    let look = |()| (std::fs::read("/proc/self/cmdline").expect("/proc"), std::env::args().collect::<Vec<_>>());
    for _ in 0..2 {
        let process = Process::new(look, ()).start_method(StartMethod::Forkserver).start()?;
        assert_eq!(process.join()?, (own.clone(), std::env::args().collect()), "the arguments of the program");
    }
    let shown = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let helpers = || support::children_of(std::process::id()).into_iter().filter(|pid| !support::is_gone(*pid));
    support::wait_until(|| helpers().count() == 2); // the fork server and its spare
    for pid in helpers() {
        assert_eq!(shown(pid).trim_end_matches('\0'), "multiprocessing.forkserver");
    }
    Ok(())
}

#[test]
fn a_preloaded_value_is_shared_by_all_children() -> TestResult {
    static TABLE: std::sync::OnceLock<(u32, Vec<u64>)> = std::sync::OnceLock::new();
    let fill = |len: u64| {
        println!("preloading");
        assert!(TABLE.set((std::process::id(), (0..len).collect())).is_ok());
    };
    polyproc::set_forkserver_preload(fill, 1000)?;
    let look = |at: usize| TABLE.get().map(|(pid, table)| (*pid, std::ptr::from_ref(table).addr(), table[at]));
    let first = Process::new(look, 10).start()?.join()?.ok_or("preloaded")?;
    let second = Process::new(look, 20).start()?.join()?.ok_or("preloaded")?;
    assert_eq!((first.2, second.2), (10, 20));
    assert_eq!((first.0, first.1), (second.0, second.1), "made once, in the fork server");
    assert_eq!(Some(first.0), support::forkserver());
    assert!(TABLE.get().is_none());
    // A second preload replaces the first.
    polyproc::set_forkserver_preload(fill, 5)?;
    for _ in 0..3 {
        assert_eq!(Process::new(|()| TABLE.get().map(|(_, table)| table.len()), ()).start()?.join()?, Some(5));
    }
    // A third one replaces it, with its spare; no process of the earlier ones is left.
    polyproc::set_forkserver_preload(fill, 6)?;
    assert_eq!(Process::new(|()| TABLE.get().map(|(_, table)| table.len()), ()).start()?.join()?, Some(6));
    support::wait_until(support::is_childless);
    Ok(())
}

#[test]
fn a_fork_server_can_be_started_before_it_is_needed() -> TestResult {
    static PRELOADED_BY: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    polyproc::set_forkserver_preload(|()| PRELOADED_BY.set(std::process::id()).expect("once"), ())?;
    polyproc::start_forkserver()?;
    support::wait_until(|| support::forkserver().is_some()); // it has its name once it executes
    let server = support::forkserver().ok_or("it runs")?;
    polyproc::start_forkserver()?;
    assert_eq!(support::forkserver(), Some(server), "one is enough");
    assert_eq!(Process::new(|()| PRELOADED_BY.get().copied(), ()).start()?.join()?, Some(server));
    // A failure of the preload is an error of the start.
    polyproc::set_forkserver_preload(|()| panic!("no model here"), ())?;
    polyproc::start_forkserver()?;
    assert!(matches!(Process::new(|()| (), ()).start(), Err(StartError::Preload { .. })));
    Ok(())
}

/// Children that nobody joins are reaped while others start, not only in a pause.
#[test]
fn children_that_nobody_joins_are_reaped_while_others_start() -> TestResult {
    let zombies = || support::children_of(std::process::id()).into_iter().filter(|pid| support::is_gone(*pid)).count();
    let starts = Instant::now();
    let mut started = 0;
    // More starts than a reaper that waits for a pause of 10 ms leaves; each takes less than that.
    while started < 100 || starts.elapsed() < Duration::from_millis(500) {
        Process::new(|()| (), ()).start_method(StartMethod::Spawn).start()?;
        started += 1;
    }
    let left = zombies();
    assert!(left < started / 2, "{left} of {started} are zombies");
    Ok(())
}

#[test]
fn a_preload_that_fails_says_so_at_every_start() -> TestResult {
    polyproc::set_forkserver_preload(|()| panic!("no model here"), ())?;
    for _ in 0..2 {
        match Process::new(|()| (), ()).start() {
            Err(StartError::Preload { why }) => assert!(why.contains("no model here"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    polyproc::set_forkserver_preload(|()| _ = std::thread::spawn(|| sleep_for_ever(())), ())?;
    match Process::new(|()| (), ()).start() {
        Err(StartError::Preload { why }) => assert!(why.contains("2 threads"), "{why}"),
        other => panic!("{other:?}"),
    }
    polyproc::set_forkserver_preload(|()| std::process::abort(), ())?;
    match Process::new(|()| (), ()).start() {
        Err(StartError::Preload { why }) => assert!(why.contains("SIGABRT"), "{why}"),
        other => panic!("{other:?}"),
    }
    polyproc::set_forkserver_preload(|()| (), ())?;
    Process::new(|()| (), ()).start()?.join()?;
    Ok(())
}

/// Returns the users of processes that were started before and after this process gave up its privileges.
fn users_of_processes((): ()) -> Result<Vec<u32>, String> {
    let start = || -> Result<u32, String> {
        let child = Process::new(|()| nix::unistd::geteuid().as_raw(), ()).start();
        child.map_err(|error| error.to_string())?.join().map_err(|error| error.to_string())
    };
    let mut users = vec![start()?, start()?, start()?];
    support::become_another_user();
    users.extend([start()?, start()?]);
    Ok(users)
}

#[test]
fn a_program_that_gave_up_privileges_starts_no_process_that_has_them() -> TestResult {
    if support::may_change_user() {
        let _clean = Clean::start();
        let users = Process::new(users_of_processes, ()).start()?.join()??;
        assert_eq!(users, [0, 0, 0, support::OTHER_USER, support::OTHER_USER]);
    }
    Ok(())
}

/// Returns the bounds of this thread and its process: umask, processors, descriptors, niceness.
fn bounds() -> Vec<String> {
    let read = |file: &str| std::fs::read_to_string(file).expect("/proc");
    let status = read("/proc/thread-self/status");
    let mut bounds: Vec<_> = ["Umask:", "Cpus_allowed_list:"]
        .iter()
        .filter_map(|field| status.lines().find(|line| line.starts_with(field)).map(str::to_owned))
        .collect();
    bounds.extend(read("/proc/self/limits").lines().find(|line| line.starts_with("Max open files")).map(str::to_owned));
    let stat = read("/proc/thread-self/stat");
    bounds.extend(stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(16)).map(str::to_owned));
    bounds
}

#[expect(unsafe_code, clippy::multiple_unsafe_ops_per_block, reason = "the calls that a program makes")]
fn change_bounds() {
    // SAFETY: an all-zero set of processors is empty.
    let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the calls access no memory but `cpus`, which outlives them.
    unsafe {
        libc::umask(0o027);
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&cpus), &raw mut cpus), 0);
        let first = (0..1024).find(|cpu| libc::CPU_ISSET(*cpu, &cpus)).expect("it runs somewhere");
        libc::CPU_ZERO(&mut cpus);
        libc::CPU_SET(first, &mut cpus);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&cpus), &raw const cpus), 0);
        assert_eq!(libc::setpriority(libc::PRIO_PROCESS, 0, 7), 0);
    }
    support::limit_descriptors(200);
}

fn bounds_of_processes(method: bool) -> Result<Vec<Vec<String>>, String> {
    let method = METHODS[usize::from(method)];
    let start = || -> Result<Vec<String>, String> {
        let child = Process::new(|()| bounds(), ()).start_method(method).start();
        child.map_err(|error| error.to_string())?.join().map_err(|error| error.to_string())
    };
    let mut found = vec![bounds(), start()?, start()?];
    change_bounds();
    found.extend([bounds(), start()?, start()?]);
    Ok(found)
}

#[test]
fn the_bounds_of_a_process_are_those_that_its_starter_has_then() -> TestResult {
    for method in [false, true] {
        let found = Process::new(bounds_of_processes, method).start()?.join()??;
        assert_eq!(found[0].len(), 4);
        assert_eq!([&found[1], &found[2]], [&found[0]; 2], "{method}: before");
        assert_ne!(found[3], found[0]);
        assert_eq!([&found[4], &found[5]], [&found[3]; 2], "{method}: after");
    }
    Ok(())
}
