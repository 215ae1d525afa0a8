//! Long waits cost nothing: no thread wakes the waiter, and it does not wake periodically.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use polyproc::{
    Barrier, Condition, Connection, Event, JoinableQueue, Lock, Pool, Process, Queue, Semaphore, memory_budget, pipe,
    set_memory_budget,
};
use support::{TestResult, children_of, wait_until};

/// Returns, for each thread of a process by name, its voluntary context switches plus the clock ticks that it ran.
fn sleeps(pid: u32) -> BTreeMap<String, u64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives").flatten();
    let of = |task: &std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let field = |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
        let id = task.file_name().into_string().ok()?;
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let times = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
        let ticks: u64 = times.filter_map(|field| field.parse::<u64>().ok()).sum();
        let sleeps: u64 = field("voluntary_ctxt_switches:")?.parse().ok()?;
        Some((format!("{}:{id}", field("Name:")?), sleeps + ticks))
    };
    tasks.filter_map(|task| of(&task)).collect()
}

/// Asserts that the threads that `chosen` takes by name come to rest, and returns how many they are.
///
/// At rest they wake at most twice within 4 s: a wait re-checks at intervals that grow, so none does so twice in a window that
/// it entered asleep. A loaded machine may need several windows until all threads sleep; a thread that polls is at rest in none.
fn assert_rest(pids: &[u32], chosen: impl Fn(&str) -> bool) -> usize {
    let all = || {
        let mut counts: BTreeMap<_, _> = pids.iter().flat_map(|pid| sleeps(*pid)).collect();
        counts.retain(|name, _| chosen(name));
        counts
    };
    let mut wakes = BTreeMap::new();
    for _ in 0..10 {
        let before = all();
        std::thread::sleep(Duration::from_secs(4));
        let woken = |(name, count): (String, u64)| (name.clone(), count - before.get(&name).copied().unwrap_or(0));
        wakes = all().into_iter().map(woken).collect();
        if wakes.values().all(|count| *count <= 2) {
            return wakes.len();
        }
    }
    panic!("they wake in each window of 4 s; in the last: {wakes:?}");
}

type Waits = (Queue<()>, (Lock, Semaphore, Event), (Lock, Condition, Barrier), Queue<()>, JoinableQueue<()>);

/// Puts until there is no room, and then waits for room.
fn fill(len: usize) {
    let queue = Queue::new(0).expect("memory");
    while queue.put("x".repeat(len)).is_ok() {}
}

/// Waits for each object in a thread of its own; puts into `ready` once all threads are started.
fn wait_for_all((ready, (lock, semaphore, event), (around, condition, barrier), queue, joined): Waits) {
    let (_ours, theirs): (Connection<(), ()>, Connection<(), ()>) = pipe().expect("descriptors");
    type Wait = Box<dyn FnOnce() + Send>;
    let waits: Vec<(&str, Wait)> = vec![
        ("lock", Box::new(move || drop(lock.lock()))),
        ("semaphore", Box::new(move || semaphore.acquire())),
        ("event", Box::new(move || event.wait())),
        (
            "condition",
            Box::new(move || {
                let guard = around.lock().expect("nobody dies");
                let _ = condition.wait(guard);
            }),
        ),
        ("barrier", Box::new(move || _ = barrier.wait())),
        ("queue", Box::new(move || drop(queue.get()))),
        ("join", Box::new(move || joined.join())),
        ("pipe", Box::new(move || drop(theirs.recv()))),
        ("room, small", Box::new(|| fill(100))),
        ("room, large", Box::new(|| fill(100_000))),
    ];
    let threads: Vec<_> = waits
        .into_iter()
        .map(|(name, wait)| std::thread::Builder::new().name(name.to_owned()).spawn(wait).expect("a thread"))
        .collect();
    ready.put(()).expect("room");
    threads.into_iter().for_each(|thread| drop(thread.join()));
}

#[test]
fn who_waits_for_long_is_not_woken() -> TestResult {
    set_memory_budget(8 << 20);
    let (lock, semaphore, joined) = (Lock::new()?, Semaphore::new(0)?, JoinableQueue::new(0)?);
    let (ready, queue) = (Queue::new(0)?, Queue::new(0)?);
    joined.put(())?;
    let _held = lock.lock().expect("nobody dies");
    let waits = (
        ready.clone(),
        (lock.clone(), semaphore, Event::new()?),
        (Lock::new()?, Condition::new()?, Barrier::new(2)?),
        queue,
        joined,
    );
    let child = Process::new(wait_for_all, waits).start()?;
    ready.get()?;
    assert!(assert_rest(&[child.pid()], |_| true) >= 11);
    child.kill()?;
    Ok(())
}

/// Each attempt allocates memory for the item, and releases it if there is none for the next chunk of places. That release must
/// not wake waiters for room.
#[test]
fn a_put_that_finds_room_for_its_item_and_none_for_its_place_sleeps() -> TestResult {
    let queue = Queue::new(0)?;
    let item = || "x".repeat(20_000);
    set_memory_budget(1 << 30);
    for _ in 0..8000 {
        queue.put(item())?;
    }
    loop {
        let before = memory_budget().in_use;
        // Queues in use may take half of the budget: there is room for one more item, and none for a chunk of 64 KiB.
        set_memory_budget(2 * (before + (48 << 10)));
        if queue.put_timeout(item(), Duration::from_millis(50)).is_err() {
            break;
        }
        assert!(queue.len() < 8200 && memory_budget().in_use - before < 64 << 10, "a chunk was had");
    }
    let large = "x".repeat((4 << 20) - 64);
    set_memory_budget(2 * (memory_budget().in_use + (4 << 20) + (8 << 10)));
    let waiter = std::thread::Builder::new().name("room".to_owned()).spawn(move || queue.put(large))?;
    assert_eq!(assert_rest(&[std::process::id()], |name| name.starts_with("room")), 1);
    set_memory_budget(1 << 30);
    waiter.join().expect("no panic")?;
    Ok(())
}

#[test]
fn an_idle_pool_does_not_wake() -> TestResult {
    let pool = Pool::new(3)?;
    assert_eq!(pool.map(|n: u32| n + 1, 0..1000)?.len(), 1000);
    let own = std::process::id();
    wait_until(|| children_of(own).len() >= 3);
    let pids: Vec<_> = children_of(own).into_iter().chain([own]).collect();
    assert_rest(&pids, |name| !name.starts_with("an_idle_pool")); // but for this thread
    Ok(())
}
