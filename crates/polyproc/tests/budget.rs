//! The budget for data in flight: one for all processes of a program. Queues, pipes, pools and loans keep within it, whichever
//! process dies.

mod support;

use std::time::Duration;

use polyproc::{
    Connection, GetError, Pool, Process, PutError, Queue, SharedBytesMut, SharedMemory, memory_budget, pipe,
    set_memory_budget,
};
use support::{TestResult, wait_until};

const MIB: usize = 1 << 20;

fn large(len: usize) -> String {
    "x".repeat(len)
}

fn produce((queue, count, len): (Queue<String>, usize, usize)) -> Result<(), String> {
    (0..count).try_for_each(|_| queue.put(large(len))).map_err(|error| error.to_string())
}

/// Puts values until there is no room; returns their number.
fn fill(queue: &Queue<String>, len: usize) -> Result<usize, PutError<String>> {
    let mut count = 0;
    loop {
        match queue.try_put(large(len)) {
            Ok(()) => count += 1,
            Err(PutError::OutOfSpace(value, error)) => {
                assert_eq!(value.len(), len, "it is given back");
                assert!(error.wanted >= len as u64 && error.limit == memory_budget().limit, "{error:?}");
                return Ok(count);
            }
            Err(error) => return Err(error),
        }
    }
}

#[test]
fn a_queue_without_a_bound_has_that_of_the_program() -> TestResult {
    set_memory_budget(16 << 20);
    for len in [MIB, 20_000, 100] {
        let queue = Queue::new(0)?;
        let count = fill(&queue, len)?;
        let budget = memory_budget();
        assert!(count * len >= 6 * MIB && budget.in_use <= budget.limit, "{count} of {len} bytes: {budget:?}");
        let timeout = queue.put_timeout(large(len), Duration::from_millis(20));
        assert!(matches!(timeout, Err(PutError::OutOfSpace(..))), "{timeout:?}");
        assert_eq!(queue.get()?.len(), len);
        while queue.try_get().is_ok() {}
        queue.put(large(len))?;
    }
    Ok(())
}

#[test]
fn what_cannot_fit_alone_is_refused_at_once() -> TestResult {
    set_memory_budget(4 << 20);
    let queue = Queue::new(0)?;
    let put = queue.put(large(3 * MIB));
    let Err(PutError::OutOfSpace(_, error)) = put else { panic!("{put:?}") };
    assert_eq!(error.limit, 4 << 20);
    assert!(error.to_string().contains("4194304"), "{error}");
    queue.put(large(MIB))?;
    Ok(())
}

#[test]
fn a_producer_waits_for_its_consumer() -> TestResult {
    set_memory_budget(8 << 20);
    for len in [MIB, 2 * MIB, 10_000] {
        let count = (48 << 20) / len;
        let queue = Queue::new(0)?;
        let producer = Process::new(produce, (queue.clone(), count, len)).start()?;
        for _ in 0..count {
            assert_eq!(queue.get()?.len(), len);
            let budget = memory_budget();
            assert!(budget.in_use <= budget.limit, "{budget:?}");
        }
        producer.join()??;
    }
    Ok(())
}

/// A process that takes from one queue and puts into another finds room there, however fast the first producer is.
#[test]
fn a_queue_that_is_full_leaves_room_for_the_next_one() -> TestResult {
    set_memory_budget(16 << 20);
    let (first, second) = (Queue::new(0)?, Queue::new(0)?);
    let producer = Process::new(produce, (first.clone(), 100, MIB)).start()?;
    wait_until(|| first.len() > 4);
    let pass_on = |(from, to): (Queue<String>, Queue<String>)| {
        (0..100).try_for_each(|_| to.put(from.get().map_err(|error| error.to_string())?).map_err(|e| e.to_string()))
    };
    let stage = Process::new(pass_on, (first, second.clone())).start()?;
    for _ in 0..100 {
        assert_eq!(second.get()?.len(), MIB);
    }
    producer.join()??;
    stage.join()??;
    Ok(())
}

#[test]
fn all_processes_of_a_program_have_one_account() -> TestResult {
    set_memory_budget(16 << 20);
    let (ready, go) = (Queue::new(0)?, Queue::<()>::new(0)?);
    let hold = |(ready, go): (Queue<u64>, Queue<()>)| {
        let own = Queue::new(0).expect("memory");
        fill(&own, MIB).expect("room");
        ready.put(memory_budget().limit).expect("room");
        let _ = go.get();
    };
    let child = Process::new(hold, (ready.clone(), go.clone())).start()?;
    assert_eq!(ready.get()?, 16 << 20, "the limit is the program's");
    let queue = Queue::new(0)?;
    let left = fill(&queue, MIB)?;
    assert!(left <= 2, "{left} values more than there is room for");
    // The room of the data that the dead process had in flight is free again.
    child.kill()?;
    wait_until(|| queue.try_put(large(MIB)).is_ok());
    assert!(left + 1 + fill(&queue, MIB)? > 4);
    Ok(())
}

#[test]
fn threads_that_ask_at_once_in_a_new_process_have_the_account_of_the_program() -> TestResult {
    set_memory_budget(12_345_678);
    let ask = |()| {
        let all = std::sync::Barrier::new(8);
        let limit = || {
            all.wait();
            memory_budget().limit
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(limit)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        })
    };
    for _ in 0..50 {
        assert_eq!(Process::new(ask, ()).start()?.join()?, [12_345_678; 8]);
    }
    Ok(())
}

#[test]
fn arguments_and_results_of_a_pool_wait_for_room() -> TestResult {
    set_memory_budget(16 << 20);
    let pool = Pool::new(2)?;
    let texts: Vec<_> = (0..60).map(|n| large(n % 3 * MIB + 10)).collect();
    let lens = pool.map(|text: String| text.len(), texts.clone())?;
    assert_eq!(lens, texts.iter().map(String::len).collect::<Vec<_>>());
    let results = pool.map(|len: usize| "y".repeat(len), lens)?;
    assert!(results.iter().zip(&texts).all(|(result, text)| result.len() == text.len()));
    let (queue, limit) = (Queue::new(0)?, memory_budget().limit);
    fill(&queue, MIB)?;
    // The queue uses nearly the whole budget: the items pass one by one.
    let results = pool.map(|text: String| text, vec![large(2 * MIB); 10])?;
    assert!(results.iter().all(|result| result.len() == 2 * MIB));
    assert!(memory_budget().in_use <= limit);
    // A value that can never fit fails, and no other task does.
    let error = pool.apply(|text: String| text.len(), large(9 * MIB)).expect_err("more than there may be");
    assert!(error.to_string().contains("16777216"), "{error}");
    let error = pool.apply(|len: usize| "y".repeat(len), 9 * MIB).expect_err("more than there may be");
    assert!(error.to_string().contains("16777216"), "{error}");
    assert_eq!(pool.apply(|n: u32| n + 1, 1)?, 2);
    Ok(())
}

#[test]
fn a_queue_may_have_a_bound_in_bytes() -> TestResult {
    for len in [100, 20_000] {
        // A string is encoded as its length and its bytes.
        let queue = Queue::with_max_bytes(0, 10 * (len + 8))?;
        for _ in 0..3 {
            let count = std::iter::repeat_with(|| queue.try_put(large(len))).take_while(Result::is_ok).count();
            assert_eq!(count, 10, "of {len} bytes");
            assert!(matches!(queue.put_timeout(large(len), Duration::from_millis(10)), Err(PutError::Full(_))));
            for _ in 0..10 {
                assert_eq!(queue.get()?.len(), len);
            }
            assert!(matches!(queue.try_get(), Err(GetError::Empty)));
        }
        let put = queue.put(large(10 * (len + 8) + 1));
        assert!(matches!(put, Err(PutError::OutOfSpace(..))), "{put:?}");
        let producer = Process::new(produce, (queue.clone(), 200, len)).start()?;
        for _ in 0..200 {
            assert_eq!(queue.get()?.len(), len);
            assert!(queue.len() <= 10);
        }
        producer.join()??;
    }
    Ok(())
}

#[test]
fn a_pipe_holds_16_mib_and_one_message_more() -> TestResult {
    for len in [MIB, 5 * MIB, 40 * MIB] {
        let (ours, theirs): (Connection<String, ()>, Connection<(), String>) = pipe()?;
        let mut count = 0;
        while ours.send_timeout(large(len), Duration::from_millis(50)).is_ok() {
            count += 1;
            assert!((count - 1) * len <= 16 * MIB, "{count} of {len} bytes are unread");
        }
        assert!(count >= 1 && (count + 1) * len >= 12 * MIB, "{count} of {len} bytes");
        for _ in 0..count {
            assert_eq!(theirs.recv()?.len(), len);
        }
        ours.send(large(len))?;
        assert_eq!(theirs.recv()?.len(), len);
    }
    Ok(())
}

#[test]
fn an_absurd_size_is_an_error_and_reserves_nothing() -> TestResult {
    // If the size were allocated, this limit would stop it before it exhausts the machine.
    let limit = libc::rlimit { rlim_cur: 1 << 30, rlim_max: 1 << 30 };
    #[expect(unsafe_code, reason = "limits have no safe call")]
    // SAFETY: the call reads `limit`, which outlives it.
    let is_set = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
    assert_eq!(is_set, 0);
    for len in [1 << 46, usize::MAX >> 1, usize::MAX] {
        for error in [SharedMemory::new(len).err(), SharedBytesMut::new(len).err()] {
            let error = error.ok_or("such a size was given")?;
            assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory, "{len}: {error}");
            assert!(error.to_string().contains("available"), "{error}");
        }
    }
    Ok(())
}

#[test]
fn memory_goes_back_when_idle() -> TestResult {
    let queue = Queue::new(0)?;
    for _ in 0..32 {
        queue.put(large(MIB))?;
    }
    while queue.try_get().is_ok() {}
    assert!(memory_budget().in_use > 16 << 20, "kept for what comes next");
    let empty = queue.get_timeout(Duration::from_secs(1));
    assert!(matches!(empty, Err(GetError::Empty)));
    let left = memory_budget().in_use;
    assert!(left < 1 << 20, "{left} bytes of an idle queue");
    let pool = Pool::new(2)?;
    pool.map(|text: String| text, vec![large(4 * MIB); 8])?;
    wait_until(|| memory_budget().in_use < 4 << 20);
    Ok(())
}

#[test]
fn a_memory_limit_counts_what_a_worker_put_and_made() -> TestResult {
    let pool = Pool::builder().workers(1).memory_limit(100 << 20).build()?;
    let fill = |queue: Queue<String>| {
        for _ in 0..200 {
            queue.put(large(MIB)).expect("room");
        }
        queue.len() as u64
    };
    let is_killed = |result: Result<u64, polyproc::TaskError>| {
        assert!(matches!(&result, Err(error) if matches!(error.failure, polyproc::Failure::OutOfMemory)), "{result:?}");
    };
    let queue = Queue::new(0)?;
    is_killed(pool.apply(fill, queue.clone()));
    while queue.try_get().is_ok() {}
    is_killed(pool.apply(
        |()| {
            let kept: Vec<_> = (0..40).map(|_| SharedMemory::new(8 * MIB).expect("memory")).collect();
            std::thread::sleep(Duration::from_secs(600));
            kept.len() as u64
        },
        (),
    ));
    // Bytes that other processes put, and bytes that were taken, do not count for the worker.
    let producer = Process::new(produce, (queue.clone(), 300, MIB)).start()?;
    let drain = |queue: Queue<String>| (0..300).map(|_| queue.get().expect("a value").len() as u64).sum::<u64>();
    assert_eq!(pool.apply(drain, queue.clone())?, 300 << 20);
    producer.join()??;
    let (there, back) = (queue.clone(), Queue::new(0)?);
    let consumer = Process::new(
        |(from, to): (Queue<String>, Queue<u64>)| {
            (0..300).for_each(|_| to.put(from.get().expect("a value").len() as u64).expect("room"))
        },
        (there, back.clone()),
    )
    .start()?;
    let pass = |(to, back): (Queue<String>, Queue<u64>)| {
        (0..300).map(|_| to.put(large(MIB)).map(|()| back.get().expect("a value")).expect("room")).sum::<u64>()
    };
    assert_eq!(pool.apply(pass, (queue, back))?, 300 << 20);
    consumer.join()?;
    Ok(())
}
