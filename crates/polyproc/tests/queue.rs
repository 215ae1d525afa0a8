//! Queues between processes.

use std::time::Duration;

use polyproc::{GetError, JoinableQueue, Process, PutError, Queue, SimpleQueue};

mod support;
use support::{Clean, TestResult};

#[test]
fn values_come_in_the_order_of_each_producer() -> TestResult {
    let _clean = Clean::start();
    let queue = Queue::new(0)?;
    let produce = |(queue, who): (Queue<(u32, u32)>, u32)| (0..5000).try_for_each(|n| queue.put((who, n))).is_ok();
    let producers: Vec<_> =
        (0..3).map(|who| Process::new(produce, (queue.clone(), who)).start()).collect::<Result<_, _>>()?;
    let mut next = [0; 3];
    for _ in 0..15000 {
        let (who, n) = queue.get()?;
        assert_eq!(n, next[who as usize]);
        next[who as usize] += 1;
    }
    for producer in producers {
        assert!(producer.join()?);
    }
    assert!(matches!(queue.try_get(), Err(GetError::Empty)));
    Ok(())
}

#[test]
fn a_producer_may_end_before_anybody_takes() -> TestResult {
    let _clean = Clean::start();
    let queue = SimpleQueue::new()?;
    let produce = |queue: SimpleQueue<u64>| (0..100_000).for_each(|n| queue.put(n).expect("no limit"));
    Process::new(produce, queue.clone()).start()?.join()?;
    assert_eq!(queue.len(), 100_000);
    for n in 0..100_000 {
        assert_eq!(queue.try_get()?, n);
    }
    assert!(queue.is_empty());
    Ok(())
}

#[test]
fn values_of_every_size_go_through() -> TestResult {
    let _clean = Clean::start();
    let (there, back) = (Queue::new(0)?, Queue::new(0)?);
    let echo = |(there, back): (Queue<Vec<u8>>, Queue<Vec<u8>>)| {
        for value in &there {
            back.put(value.expect("good bytes")).expect("no limit");
        }
    };
    let echoing = Process::new(echo, (there.clone(), back.clone())).start()?;
    for len in [0, 1, 7, 8, 100, 16_000, 16_383, 16_384, 16_385, 65_536, 100_000, 3_000_000] {
        let value: Vec<u8> = (0..=250).cycle().take(len).collect();
        there.put(value.clone())?;
        assert!(back.get()? == value, "{len} bytes came back changed");
    }
    there.close()?;
    echoing.join()?;
    Ok(())
}

#[test]
fn a_full_queue_says_so_and_waits() -> TestResult {
    let _clean = Clean::start();
    let queue = Queue::new(2)?;
    queue.put(1)?;
    assert!(!queue.is_full());
    queue.put(2)?;
    assert!(queue.is_full());
    assert!(matches!(queue.try_put(3), Err(PutError::Full(3))));
    assert!(matches!(queue.put_timeout(4, Duration::from_millis(1)), Err(PutError::Full(4))));
    let producer = Process::new(|queue: Queue<i32>| queue.put(5).is_ok(), queue.clone()).start()?;
    assert_eq!((queue.get()?, queue.get()?, queue.get()?), (1, 2, 5));
    assert!(producer.join()?);
    assert!(matches!(queue.get_timeout(Duration::from_millis(1)), Err(GetError::Empty)));
    Ok(())
}

#[test]
fn a_closed_queue_is_emptied_and_ends() -> TestResult {
    let _clean = Clean::start();
    let queue = Queue::new(0)?;
    let sum = |queue: Queue<u32>| queue.iter().map(|item| item.expect("a number")).sum::<u32>();
    let waiting = Process::new(sum, queue.clone()).start()?;
    queue.put(40)?;
    queue.put(2)?;
    queue.close()?;
    assert_eq!(waiting.join()?, 42);
    assert!(matches!(queue.put(7), Err(PutError::Closed(7))));
    assert!(matches!(queue.get(), Err(GetError::Closed)));
    Ok(())
}

#[test]
fn joinable() -> TestResult {
    let _clean = Clean::start();
    let queue = JoinableQueue::new(1000)?;
    (0..5).try_for_each(|n| queue.put(n))?;
    assert!(!queue.join_timeout(Duration::from_millis(1)));
    let consume = |queue: JoinableQueue<u32>| queue.iter().map(|_| queue.task_done().is_ok()).filter(|ok| *ok).count();
    let consumers: Vec<_> = (0..3).map(|_| Process::new(consume, queue.clone()).start()).collect::<Result<_, _>>()?;
    queue.join();
    assert!(queue.task_done().is_err());
    queue.close()?;
    let mut done = 0;
    for consumer in consumers {
        done += consumer.join()?;
    }
    assert_eq!(done, 5);
    Ok(())
}
