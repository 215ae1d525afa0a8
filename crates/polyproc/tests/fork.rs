//! The start method `fork`: a copy of a process with one thread.

mod support;

use polyproc::{ForkWithThreads, JoinError, Pool, PoolError, Process, StartError, StartMethod, current_process};
use support::TestResult;

#[test]
fn refused_while_other_threads_run_unless_promised() -> TestResult {
    let barrier = std::sync::Arc::new(std::sync::Barrier::new(2));
    let other = std::thread::spawn({
        let barrier = std::sync::Arc::clone(&barrier);
        move || barrier.wait()
    });
    let refused = Process::fork(|| 1).start();
    assert!(matches!(refused, Err(StartError::Threads { count }) if count >= 2), "{refused:?}");
    let refused = Process::new(|()| 1, ()).start_method(StartMethod::Fork).start();
    assert!(matches!(refused, Err(StartError::Threads { .. })), "{refused:?}");
    #[expect(unsafe_code, reason = "the promise that this test is about")]
    // SAFETY: the child only returns a number.
    let promise = unsafe { ForkWithThreads::new() };
    assert_eq!(Process::fork(|| 7).fork_with_threads(promise).start()?.join()?, 7);
    let pool = || Pool::builder().workers(1).start_method(StartMethod::Fork);
    assert!(matches!(pool().build(), Err(PoolError::Fork)));
    assert_eq!(pool().fork_with_threads(promise).build()?.apply(|x: u32| x + 1, 1)?, 2);
    // Started by a thread that exits: the child's life is bound to the process, not to the thread.
    let daemon = std::thread::spawn(move || {
        let wait = || std::thread::sleep(std::time::Duration::from_secs(3600));
        Process::fork(wait).daemon(true).fork_with_threads(promise).start()
    });
    let daemon = daemon.join().expect("no panic")?;
    Process::new(|()| (), ()).start()?.join()?;
    assert!(daemon.is_alive());
    daemon.kill()?;
    assert!(daemon.join().is_err());
    barrier.wait();
    other.join().expect("no panic");
    Ok(())
}

/// The copy does not map bytes that are being filled: a mapping at their address is its own.
#[test]
fn a_copy_that_drops_bytes_that_are_being_filled_unmaps_nothing_of_its_own() -> TestResult {
    const LEN: usize = 16 << 20;
    #[expect(unsafe_code, reason = "the promise that a test is")]
    // SAFETY: the copy uses no state of the test's threads.
    let promise = unsafe { ForkWithThreads::new() };
    let mut filling = Some(polyproc::SharedBytesMut::new(LEN)?);
    if let Some(bytes) = &mut filling {
        bytes[..4].copy_from_slice(b"kept");
    }
    let copy = Process::fork(|| {
        let own: Vec<_> = (0..3).map(|_| vec![1u8; LEN - 8192]).collect();
        drop(filling.take());
        own.iter().map(|own| own.iter().map(|byte| usize::from(*byte)).sum::<usize>()).sum::<usize>()
    });
    assert_eq!(copy.fork_with_threads(promise).start()?.join()?, 3 * (LEN - 8192));
    let bytes = filling.take().ok_or("the original has it")?.freeze()?;
    assert_eq!(&bytes[..4], b"kept");
    Ok(())
}

#[test]
fn a_closure_takes_along_what_it_captures() -> TestResult {
    // The test runner has a second thread; a process that the engine starts has one.
    let child = Process::new(|()| in_a_process_with_one_thread().map_err(|error| error.to_string()), ()).start()?;
    Ok(child.join()??)
}

fn in_a_process_with_one_thread() -> TestResult {
    // The engine's own threads do not prevent a fork.
    Process::new(|()| (), ()).start()?.join()?;
    let pool = Pool::new(1)?;
    let (text, numbers) = ("captured".to_owned(), vec![1u64; 1_000_000]);
    let child =
        Process::fork(|| (text.clone(), numbers.iter().sum::<u64>(), current_process().name().to_owned())).name("copy");
    assert_eq!(child.start()?.join()?, ("captured".to_owned(), 1_000_000, "copy".to_owned()));

    let child = Process::new(|n: u32| n + 1, 1).start_method(StartMethod::Fork).env("X", "y").start()?;
    assert_eq!(child.join()?, 2);

    match Process::fork(|| -> u32 { panic!("in the copy") }).stderr(polyproc::Stdio::Null).start()?.join() {
        Err(JoinError::Panicked(panic)) => assert_eq!(panic.message, "in the copy"),
        other => panic!("{other:?}"),
    }
    // A copy may itself start processes, by every method, and create a pool.
    let nested = Process::fork(|| {
        let forkserver = Process::new(|n: u32| n + 1, 1).start().expect("starts").join().expect("returns");
        let fork = Process::fork(|| 3u32).start().expect("starts").join().expect("returns");
        let own_pool = Pool::new(1).expect("a pool").apply(|n: u32| n * 2, 4).expect("a result");
        // The parent's pool has no thread here: the call fails instead of blocking.
        let parents_pool = pool.apply(|n: u32| n, 1).is_err();
        (forkserver, fork, own_pool, parents_pool)
    });
    assert_eq!(nested.start()?.join()?, (2, 3, 8, true));
    assert_eq!(pool.apply(|n: u32| n, 1)?, 1);
    Ok(())
}
