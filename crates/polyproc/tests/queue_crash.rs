//! Processes that die in the middle of a put or a get: at every marked step, and at random.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use polyproc::{
    ForkWithThreads, GetError, JoinError, JoinableQueue, OnConsumerDeath, Process, Queue, Receiver, Sender,
    SharedMemory, Signal, simplex_pipe,
};
use polyproc_core::crash::{self, STEPS, Step};
use serde::{Deserialize, Serialize};

mod support;
use support::{Clean, TestResult};

/// A value whose bytes follow from its number. Some are small, some fill chunks, some have a block of their own.
#[derive(Serialize, Deserialize)]
struct Item {
    number: u64,
    bytes: serde_bytes::ByteBuf,
}

impl Item {
    fn new(number: u64) -> Self {
        let len = [8, 16_000, 15_000, 20_000, 100][(number % 5) as usize];
        Self { number, bytes: vec![(number % 251) as u8; len].into() }
    }

    fn is_whole(&self) -> bool {
        self.bytes == Self::new(self.number).bytes
    }
}

/// An operation that the victim has completed.
#[derive(Debug, Serialize, Deserialize)]
enum Seen {
    Put(u64),
    Got(u64),
    Done(u64),
}

const ROUNDS: u64 = 60;

fn victim((queue, seen, step, times): (JoinableQueue<Item>, Sender<Seen>, usize, u32)) {
    crash::arm(STEPS[step], times);
    for number in 0..ROUNDS {
        queue.put(Item::new(number)).expect("an open queue");
        seen.send(Seen::Put(number)).expect("it is read");
        if number % 3 != 0 {
            let item = queue.get().expect("one is in it");
            assert!(item.is_whole());
            seen.send(Seen::Got(item.number)).expect("it is read");
            if number % 3 == 2 {
                queue.task_done().expect("one was taken");
                // `task_done` counts for the earliest get that is not done yet.
                seen.send(Seen::Done(item.number)).expect("it is read");
            }
        }
    }
}

/// Returns the numbers that the victim put and got, and how many items it marked as done. Blocks until it has exited.
fn read(seen: &Receiver<Seen>) -> (BTreeSet<u64>, BTreeSet<u64>, usize) {
    let (mut put, mut got, mut done) = (BTreeSet::new(), BTreeSet::new(), 0);
    while let Ok(event) = seen.recv() {
        match event {
            Seen::Put(number) => assert!(put.insert(number)),
            Seen::Got(number) => assert!(got.insert(number), "{number} was taken twice"),
            Seen::Done(_) => done += 1,
        }
    }
    (put, got, done)
}

/// Makes a process die at `step`, and checks the state that it left. Returns false if it never reached the step.
fn die_at(step: usize, times: u32, on_death: OnConsumerDeath) -> Result<bool, Box<dyn std::error::Error>> {
    let queue = JoinableQueue::with_on_consumer_death(0, on_death)?;
    let (seen, telling) = simplex_pipe()?;
    let child = Process::new(victim, (queue.clone(), telling, step, times)).start()?;
    let (put, got, done) = read(&seen);
    let died = match child.join() {
        Ok(()) => false,
        Err(JoinError::Died(death)) if death.status.signal() == Some(Signal::KILL) => true,
        Err(error) => return Err(error.into()),
    };
    let what = format!("{:?} {times} {on_death:?}", STEPS[step]);
    let mut left = BTreeSet::new();
    loop {
        match queue.try_get() {
            Ok(item) => {
                assert!(item.is_whole() && left.insert(item.number), "{what}: {} came twice", item.number);
            }
            Err(GetError::Empty) => break,
            Err(error) => return Err(format!("{what}: {error}").into()),
        }
    }
    let unknown: Vec<_> = left.iter().chain(&got).filter(|number| !put.contains(number)).collect();
    assert!(unknown.len() <= 1, "{what}: {unknown:?} came and were not put");
    if on_death == OnConsumerDeath::PutBack {
        // Delivery at least once: items that were not done are put back. One may be done without having been reported.
        let missing = put.iter().filter(|number| !left.contains(number)).count();
        assert!((done..=done + 1).contains(&missing), "{what}: {missing} are missing, {done} are done");
    } else {
        let twice: Vec<_> = left.intersection(&got).collect();
        assert!(twice.is_empty(), "{what}: {twice:?} came again");
        let missing: Vec<_> = put.iter().filter(|number| !left.contains(number) && !got.contains(number)).collect();
        assert!(missing.len() <= usize::from(died), "{what}: {missing:?} are lost");
    }
    // The queue still works, and `join` returns when all items are done.
    for number in 0..20 {
        queue.put(Item::new(number))?;
        assert_eq!(queue.try_get()?.number, number);
    }
    if on_death != OnConsumerDeath::Nothing {
        for _ in 0..left.len() + 20 {
            queue.task_done().map_err(|error| format!("{what}: {error}"))?;
        }
        assert!(queue.join_timeout(Duration::ZERO), "{what}: not all is done");
        assert!(queue.task_done().is_err(), "{what}: more is done than was taken");
    }
    assert_eq!(crash::blocks_in_use(), 1, "{what}: but for the last chunk, all memory is free again");
    Ok(died)
}

/// Returns the number of steps of queues, which come first in [`STEPS`].
fn queue_steps() -> usize {
    STEPS.iter().position(|step| *step == Step::ReturnMarked).expect("the last of them") + 1
}

#[test]
fn a_death_at_any_step_loses_nothing() -> TestResult {
    let _clean = Clean::start();
    let mut reached = BTreeSet::new();
    for on_death in [OnConsumerDeath::Nothing, OnConsumerDeath::CountAsDone, OnConsumerDeath::PutBack] {
        for step in 0..queue_steps() {
            for times in (1..16).chain([23, 30]) {
                if die_at(step, times, on_death)? {
                    reached.insert(step);
                }
            }
        }
    }
    let missed: Vec<Step> = (0..queue_steps()).filter(|step| !reached.contains(step)).map(|step| STEPS[step]).collect();
    assert_eq!(missed, [Step::ReturnMarked], "the one that `a_returned_item_is_returned_again` comes to");
    Ok(())
}

#[test]
fn a_returned_item_is_returned_again() -> TestResult {
    let _clean = Clean::start();
    let queue = JoinableQueue::with_on_consumer_death(0, OnConsumerDeath::PutBack)?;
    (0..5).try_for_each(|number| queue.put(Item::new(number)))?;
    let take = |(queue, step): (JoinableQueue<Item>, Option<usize>)| {
        if let Some(step) = step {
            crash::arm(STEPS[step], 2);
        }
        (0..5).for_each(|_| _ = queue.get());
        std::process::abort();
    };
    let at = STEPS.iter().position(|step| *step == Step::ReturnMarked);
    for step in [None, at, None, at] {
        let died: Result<(), _> = Process::new(take, (queue.clone(), step)).start()?.join();
        let Err(JoinError::Died(death)) = died else { return Err("it does not come back".into()) };
        assert_eq!(death.status.signal(), Some(if step.is_some() { Signal::KILL } else { Signal::new(libc::SIGABRT) }));
    }
    let items: Vec<u64> = (0..5).map(|_| queue.try_get().map(|item| item.number)).collect::<Result<_, _>>()?;
    assert_eq!(items, [0, 1, 2, 3, 4]);
    (0..5).try_for_each(|_| queue.task_done())?;
    queue.join();
    Ok(())
}

#[test]
fn who_waits_gets_what_the_dead_leave() -> TestResult {
    let _clean = Clean::start();
    let queue = JoinableQueue::with_on_consumer_death(1, OnConsumerDeath::PutBack)?;
    let (told, tell) = simplex_pipe()?;
    let hold = |(queue, tell): (JoinableQueue<u32>, Sender<u32>)| {
        tell.send(queue.get().expect("an open queue")).expect("it is read");
        std::thread::sleep(Duration::from_secs(3600));
    };
    let take = |queue: JoinableQueue<u32>| {
        let item = queue.get().expect("an open queue");
        queue.task_done().expect("one was taken");
        item
    };
    let holding = Process::new(hold, (queue.clone(), tell)).start()?;
    queue.put(7)?;
    assert_eq!(told.recv()?, 7);
    let waiting = Process::new(take, queue.clone()).start()?;
    holding.kill()?;
    assert_eq!(waiting.join()?, 7);
    queue.join();
    drop(holding.join());
    Ok(())
}

/// A log that outlives its writer: the number of entries, then the entries.
struct Log(SharedMemory);

impl Log {
    const ENTRIES: usize = 100_000;

    fn new() -> std::io::Result<Self> {
        Ok(Self(SharedMemory::new(8 * (Self::ENTRIES + 1))?))
    }

    fn write(&self, at: usize, entry: u64) {
        self.0.write_at(8 * (at + 1), &entry.to_ne_bytes()).expect("room");
        self.0.write_at(0, &(at as u64 + 1).to_ne_bytes()).expect("room");
    }

    fn read(&self) -> Vec<u64> {
        let word = |at: usize| {
            let bytes = self.0.read_at(8 * at, 8).expect("inside");
            u64::from_ne_bytes(bytes.try_into().expect("eight"))
        };
        let len = usize::try_from(word(0)).expect("few");
        let bytes = self.0.read_at(8, 8 * len).expect("inside");
        bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight"))).collect()
    }
}

/// Puts items numbered from `first` on, and logs each that was put.
fn produce((queue, log, first): (Queue<Item>, SharedMemory, u64)) {
    let log = Log(log);
    for at in 0..Log::ENTRIES {
        let number = first + at as u64;
        queue.put(Item::new(number)).expect("an open queue");
        log.write(at, number);
    }
}

/// Takes items, and logs each.
fn consume((queue, log): (Queue<Item>, SharedMemory)) {
    let log = Log(log);
    for at in 0..Log::ENTRIES {
        let item = queue.get().expect("an open queue");
        assert!(item.is_whole());
        log.write(at, item.number);
    }
}

/// Kills producers and consumers at random moments, `kills` times, and counts lost and duplicate items.
fn torture(kills: usize, maxsize: usize) -> TestResult {
    let queue = Queue::<Item>::new(maxsize)?;
    let mut workers = Vec::new();
    let mut incarnation = 0u64;
    let mut start = |role: usize| -> Result<_, Box<dyn std::error::Error>> {
        let log = Log::new()?;
        incarnation += 1;
        let child = if role < 2 {
            Process::new(produce, (queue.clone(), log.0.clone(), incarnation << 32)).start()?
        } else {
            Process::new(consume, (queue.clone(), log.0.clone())).start()?
        };
        Ok((child, log))
    };
    for role in 0..4 {
        workers.push(start(role)?);
    }
    // The numbers whose put completed; how often each number arrived; how many processes died.
    let mut put = BTreeSet::new();
    let mut came = BTreeMap::<u64, u32>::new();
    let (mut producers_died, mut consumers_died) = (0, 0);
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    for kill in 0..kills + 4 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let role = if kill < kills { (random >> 33) as usize % 4 } else { kill - kills };
        if kill < kills {
            std::thread::sleep(Duration::from_micros(random >> 40 & 0x7FF)); // any moment will do
        }
        let (child, log) = &workers[role];
        child.kill()?;
        child.wait_timeout(Duration::from_secs(3600))?;
        if role < 2 {
            put.extend(log.read());
            producers_died += 1;
        } else {
            log.read().into_iter().for_each(|number| *came.entry(number).or_default() += 1);
            consumers_died += 1;
        }
        if kill < kills {
            workers[role] = start(role)?;
        }
    }
    loop {
        match queue.try_get() {
            Ok(item) => {
                assert!(item.is_whole());
                *came.entry(item.number).or_default() += 1;
            }
            Err(GetError::Empty) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let twice = came.values().filter(|times| **times > 1).count();
    let lost = put.iter().filter(|number| !came.contains_key(number)).count();
    let unknown = came.keys().filter(|number| !put.contains(number)).count();
    println!(
        "{kills} kills: {} put, {} came, {twice} twice, {lost} in dead hands, {unknown} not acknowledged",
        put.len(),
        came.len()
    );
    assert_eq!(twice, 0);
    assert!(lost <= consumers_died, "{lost} lost, {consumers_died} consumers died");
    assert!(unknown <= producers_died, "{unknown} not put, {producers_died} producers died");
    assert!(put.len() > 10 * kills, "the victims did nothing");
    // The memory of the dead processes is free again.
    let blocks = std::fs::read_dir("/proc/self/fd")?.flatten().filter_map(|fd| {
        let name = std::fs::read_link(fd.path()).ok()?;
        use std::os::unix::fs::MetadataExt;
        name.to_str()?
            .starts_with("/memfd:polyproc-queue")
            .then(|| std::fs::metadata(fd.path()).ok())?
            .map(|file| file.blocks())
    });
    let bytes = blocks.max().unwrap_or(0) * 512;
    assert!(maxsize == 0 || bytes < 20 << 20, "{bytes} bytes are left in memory");
    Ok(())
}

fn kills() -> usize {
    std::env::var("POLYPROC_TORTURE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(150)
}

#[test]
fn random_deaths_with_a_bound() -> TestResult {
    let _clean = Clean::start();
    torture(kills(), 100)
}

#[test]
fn random_deaths_without_a_bound() -> TestResult {
    let _clean = Clean::start();
    torture(kills(), 0)
}

#[test]
fn a_copy_of_the_process_takes_back_what_its_own_children_held() -> TestResult {
    let queue = Queue::new(0)?;
    let ((reaped, tell), go) = (simplex_pipe()?, polyproc::Event::new()?);
    #[expect(unsafe_code, reason = "the promise that a test is")]
    // SAFETY: the copies use state that the engine creates again, and no state of the test's threads.
    let promise = unsafe { ForkWithThreads::new() };
    let copy = Process::fork(|| {
        let victim = Process::fork(|| {
            crash::arm(Step::PutFilled, 1);
            queue.put(Item::new(3)).expect("an open queue");
        });
        let died = victim.fork_with_threads(promise).start().expect("starts").join().is_err();
        tell.send(died).expect("it is read");
        go.wait();
    });
    let copy = copy.fork_with_threads(promise).start()?;
    assert!(reaped.recv()?, "the victim came to the step");
    // This process has reaped no process yet.
    assert_eq!(crash::blocks_in_use(), 1, "but for the last chunk, all memory is free again");
    go.set();
    copy.join()?;
    Ok(())
}

/// Stops in the arena's lock, in the middle of a put.
fn stops_while_it_allocates(queue: Queue<Vec<u8>>) {
    let step = STEPS.iter().position(|step| *step == Step::AllocateListed).expect("a step of the arena");
    crash::freeze(STEPS[step], 1);
    let _ = queue.put(vec![0; 1 << 20]);
}

#[test]
fn a_get_waits_until_its_deadline_while_a_process_is_stopped_in_the_arena() -> TestResult {
    let _clean = Clean::start();
    let queue = Queue::new(0)?;
    queue.put(vec![0u8; 1 << 20])?;
    queue.get()?; // its block is free now, and has its memory
    let stopped = Process::new(stops_while_it_allocates, queue.clone()).start()?;
    support::wait_until(|| support::state_and_parent(stopped.pid()).is_some_and(|(state, _)| state == 'T'));
    let (began, patience) = (std::time::Instant::now(), Duration::from_secs(1));
    assert!(matches!(queue.get_timeout(patience), Err(GetError::Empty)));
    assert!(began.elapsed() >= patience, "not before the deadline");
    stopped.kill()?;
    assert!(stopped.join().is_err());
    Ok(())
}
