//! Pipes, connections by address, waits for several objects, handles sent between processes, async code.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use polyproc::{
    Condition, ConnectError, Connection, Event, ForkWithThreads, GetError, JoinableQueue, Listener, Lock, Pool,
    Process, PutError, Queue, RecvError, SendError, SharedBytes, SharedBytesMut, SharedMemory, connect, pipe,
    simplex_pipe, wait,
};

mod support;
use support::{Clean, TestResult, scratch};

#[test]
fn values_and_bytes_of_every_size_go_both_ways() -> TestResult {
    let _clean = Clean::start();
    let (ours, theirs) = pipe::<Vec<u8>, usize>()?;
    let lengths = |connection: Connection<usize, Vec<u8>>| {
        while let Ok(bytes) = connection.recv() {
            connection.send(bytes.len()).expect("it waits for the answer");
        }
        connection.send_bytes(b"never read").is_err()
    };
    let child = Process::new(lengths, theirs).start()?;
    for len in [0, 1, 32_000, 33_000, 5_000_000] {
        ours.send(vec![1; len])?;
        assert_eq!(ours.recv()?, len);
    }
    assert!(!ours.poll(Duration::from_millis(1))?);
    assert!(matches!(ours.try_recv(), Err(RecvError::Empty)));
    assert!(matches!(ours.recv_timeout(Duration::from_millis(1)), Err(RecvError::Empty)));
    drop(ours);
    assert!(child.join()?, "the other end is closed");
    Ok(())
}

#[test]
fn two_senders_on_one_end_do_not_mix() -> TestResult {
    let _clean = Clean::start();
    let (receiver, sender) = simplex_pipe::<Vec<u32>>()?;
    let send = |(sender, who): (polyproc::Sender<Vec<u32>>, u32)| {
        (1..300u32).for_each(|n| sender.send(vec![who; n as usize * 40]).expect("it is read"));
    };
    let senders: Vec<_> = (0..3)
        .map(|who| Process::new(send, (sender.try_clone().expect("open"), who)).start())
        .collect::<Result<_, _>>()?;
    drop(sender);
    let mut next = [1; 3];
    while let Ok(values) = receiver.recv() {
        let who = values[0] as usize;
        assert!(values.iter().all(|value| *value as usize == who) && values.len() == next[who] * 40);
        next[who] += 1;
    }
    assert_eq!(next, [300; 3]);
    for sender in senders {
        sender.join()?;
    }
    Ok(())
}

#[test]
fn the_end_of_a_killed_process_is_seen_and_a_full_pipe_waits() -> TestResult {
    let _clean = Clean::start();
    let (ours, theirs) = pipe::<u32, u32>()?;
    let sleep = |connection: Connection<u32>| {
        connection.send(1).expect("it is read");
        std::thread::sleep(Duration::from_secs(3600));
    };
    let child = Process::new(sleep, theirs).start()?;
    assert_eq!(ours.recv()?, 1);
    let sent = (0..100_000).find_map(|n| ours.send_timeout(n, Duration::from_millis(1)).err());
    assert!(matches!(sent, Some(SendError::Full(_))));
    child.kill()?;
    assert!(matches!(ours.recv(), Err(RecvError::Closed)));
    assert!(matches!(ours.send(7), Err(SendError::Closed(7))));
    child.join().expect_err("killed");
    Ok(())
}

#[test]
fn who_knows_the_key_is_accepted() -> TestResult {
    let _clean = Clean::start();
    let path = scratch("listener");
    let path = path.to_str().ok_or("a path of text")?.to_owned();
    {
        let listener = Listener::bind(Some(&path), Some(b"key"))?;
        assert_eq!(Listener::bind(Some(&path), None).map_err(|e| e.kind()).err(), Some(io::ErrorKind::AddrInUse));
        let call = |(path, key): (String, Vec<u8>)| match connect::<u32, u32>(path, Some(&key)) {
            Ok(connection) => connection.recv().ok(),
            Err(_) => None,
        };
        let stranger = Process::new(call, (path.clone(), b"other".to_vec())).start()?;
        assert!(matches!(listener.accept::<u32, u32>(), Err(ConnectError::Auth { .. })));
        assert_eq!(stranger.join()?, None);
        let friend = Process::new(call, (path.clone(), b"key".to_vec())).start()?;
        listener.accept::<u32, u32>()?.send(5)?;
        assert_eq!(friend.join()?, Some(5));
        let timeout = listener.accept_timeout::<u32, u32>(Duration::from_millis(1));
        assert!(matches!(timeout, Err(ConnectError::Os { source, .. }) if source.kind() == io::ErrorKind::TimedOut));
    }
    assert!(!std::path::Path::new(&path).exists());
    assert!(matches!(connect::<u32, u32>(&path, None), Err(ConnectError::Os { .. })));
    Ok(())
}

#[test]
fn one_wait_for_many_things() -> TestResult {
    let _clean = Clean::start();
    let (queue, other) = (Queue::<u32>::new(0)?, Queue::<u32>::new(0)?);
    let (ours, theirs) = pipe::<u32, u32>()?;
    let go = Event::new()?;
    let act = |(queue, connection, go): (Queue<u32>, Connection<u32>, Event)| {
        queue.put(1).expect("an open queue");
        connection.send(1).expect("it is read");
        go.wait();
        connection.send(2).expect("it is read");
    };
    let child = Process::new(act, (queue.clone(), theirs, go.clone())).start()?;
    let ready = |timeout| wait(&[queue.as_fd(), other.as_fd(), ours.as_fd(), child.as_fd()], timeout);
    let ready_for = |at| -> io::Result<()> {
        while !ready(None)?.contains(&at) {}
        Ok(())
    };
    ready_for(0)?;
    assert_eq!(queue.try_get()?, 1);
    ready_for(2)?;
    assert_eq!(ours.recv()?, 1);
    // The put has completed. It may have made the queue readable after the first `try_get`; this one resets that.
    assert!(matches!(queue.try_get(), Err(GetError::Empty)));
    assert_eq!(ready(Some(Duration::from_millis(1)))?, [0; 0]);
    go.set();
    ready_for(2)?;
    assert_eq!(ours.recv()?, 2);
    ready_for(3)?;
    child.join()?;
    other.put(3)?;
    assert!(wait(&[other.as_fd()], None)?.contains(&0));
    other.close()?;
    assert_eq!(other.get()?, 3);
    assert!(wait(&[other.as_fd()], None)?.contains(&0), "the end is news");
    assert!(matches!(other.try_get(), Err(GetError::Closed)));
    Ok(())
}

#[test]
fn handles_go_through_queues_pipes_and_pools() -> TestResult {
    type Handles = (Queue<u32>, Lock, Connection<u32>, SharedMemory, SharedBytes);
    let _clean = Clean::start();
    let (queue, lock) = (Queue::new(0)?, Lock::new()?);
    let (ours, theirs) = pipe()?;
    let memory = SharedMemory::new(100)?;
    let mut bytes = SharedBytesMut::new(10)?;
    bytes[3] = 33;
    let bytes: SharedBytes = bytes.freeze()?.into();
    let through = Queue::<Handles>::new(0)?;
    let (pipe_out, pipe_in) = simplex_pipe::<Handles>()?;
    let use_them = |(queue, lock, connection, memory, bytes): Handles| {
        let _guard = lock.lock().expect("free");
        queue.put(11).expect("an open queue");
        connection.send(22).expect("it is read");
        memory.write_at(50, &bytes[3..4]).is_ok()
    };
    let handles = || -> io::Result<Handles> {
        Ok((queue.clone(), lock.clone(), theirs.try_clone()?, memory.clone(), bytes.clone()))
    };
    let check = || -> TestResult {
        assert_eq!((queue.get()?, ours.recv()?, memory.read_at(50, 1)?), (11, 22, vec![33]));
        assert!(!lock.is_locked());
        memory.write_at(50, &[0])?;
        Ok(())
    };
    through.put(handles()?)?;
    assert!(use_them(through.get()?));
    check()?;
    pipe_in.send(handles()?)?;
    assert!(use_them(pipe_out.recv()?));
    check()?;
    let pool = Pool::new(1)?;
    assert!(pool.apply(use_them, handles()?)?);
    check()?;
    pool.close();
    pool.join()?;
    // From a process that has exited before the handles are taken.
    let pass = |(through, handles): (Queue<Handles>, Handles)| through.put(handles).is_ok();
    assert!(Process::new(pass, (through.clone(), handles()?)).start()?.join()?);
    assert!(use_them(through.get()?));
    check()
}

/// A polled queue stays readable while it holds an item, also after values with handles were taken. A value with more handles
/// than one message can carry is refused; the put does not block.
#[test]
fn values_with_handles_do_not_silence_a_queue() -> TestResult {
    let _clean = Clean::start();
    let queue = Queue::new(0)?;
    let readable = || polyproc::wait(&[&queue], Some(Duration::ZERO)).map(|ready| ready == [0]);
    assert!(!readable()?);
    queue.put(Vec::new())?;
    queue.put(vec![Lock::new()?])?;
    queue.put(Vec::new())?;
    assert!(readable()?);
    assert_eq!((queue.get()?.len(), queue.get()?.len()), (0, 1));
    assert!(readable()?, "one is left");
    assert_eq!(queue.get()?.len(), 0);
    assert!(!readable()?);
    let queue = Queue::new(0)?;
    let Ok(many) = (0..254).map(|_| Condition::new()).collect::<std::io::Result<Vec<_>>>() else {
        eprintln!("not tried: there are not so many descriptors");
        return Ok(());
    };
    let Err(PutError::Failed(many, error)) = queue.put(many) else { return Err("it cannot go".into()) };
    assert_eq!(many.len(), 254);
    let text = polyproc_core::error_chain(&error);
    assert!(text.contains("254 descriptors"), "{text}");
    Ok(())
}

#[test]
fn two_may_accept_and_one_gives_up_in_time() -> TestResult {
    let _clean = Clean::start();
    let path = scratch("two");
    let listener = Listener::bind(path.to_str(), None)?;
    let accepted = std::thread::scope(|scope| -> Result<usize, Box<dyn std::error::Error>> {
        let accept = || listener.accept_timeout::<u8, u8>(Duration::from_millis(300)).is_ok();
        let acceptors = [scope.spawn(accept), scope.spawn(accept)];
        let connection: Connection<u8, u8> = connect(&path, None)?;
        let accepted = acceptors.into_iter().filter_map(|acceptor| acceptor.join().ok()).filter(|ok| *ok).count();
        drop(connection);
        Ok(accepted)
    })?;
    assert_eq!(accepted, 1);
    Ok(())
}

#[test]
fn handles_are_for_polyproc_only() -> TestResult {
    let queue = Queue::<u32>::new(0)?;
    assert!(serde_json::to_string(&queue).is_err_and(|error| error.to_string().contains("by polyproc itself")));
    let returning = JoinableQueue::with_on_consumer_death(0, polyproc::OnConsumerDeath::PutBack)?;
    assert!(returning.put(queue).is_err());
    Ok(())
}

#[test]
fn queues_and_pipes_are_awaited() -> TestResult {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    // Before `Clean::start`: the thread that waits for all async operations keeps its descriptors.
    runtime.block_on(async {
        let (receiver, sender) = simplex_pipe::<u32>().expect("descriptors");
        let waiting = tokio::spawn(async move { receiver.recv_async().await });
        tokio::task::yield_now().await;
        sender.send(1).expect("it is read");
        waiting.await
    })??;
    let _clean = Clean::start();
    let queue = Queue::new(0)?;
    let (receiver, sender) = simplex_pipe()?;
    let go = Event::new()?;
    let act = |(queue, sender, go): (Queue<u32>, polyproc::Sender<u32>, Event)| {
        go.wait();
        (0..100).for_each(|n| queue.put(n).expect("an open queue"));
        (0..100).for_each(|n| sender.send(n).expect("it is read"));
    };
    let child = Process::new(act, (queue.clone(), sender, go.clone())).start()?;
    let (from_queue, from_pipe) = runtime.block_on(async {
        let from_queue = tokio::spawn({
            let queue = queue.clone();
            async move {
                let mut sum = 0;
                for _ in 0..100 {
                    sum += queue.get_async().await.expect("an open queue");
                }
                sum
            }
        });
        let from_pipe = tokio::spawn(async move {
            let mut sum = 0;
            while let Ok(n) = receiver.recv_async().await {
                sum += n;
            }
            sum
        });
        let dropped = queue.get_async();
        drop(dropped);
        go.set();
        (from_queue.await, from_pipe.await)
    });
    assert_eq!((from_queue?, from_pipe?), (4950, 4950));
    child.join()?;
    drop(runtime);
    Ok(())
}

#[test]
fn silent_peers_keep_no_honest_one_waiting() -> TestResult {
    let listener = Listener::bind(None, Some(b"open sesame"))?;
    let address = listener.address().to_string();
    // More than the listener authenticates at a time.
    let silent: Vec<_> = (0..100).map(|_| connect::<u32, u32>(&address, None)).collect::<Result<_, _>>()?;
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| -> Result<u32, String> {
            let connection = connect::<u32, u32>(&address, Some(b"open sesame")).map_err(|error| error.to_string())?;
            connection.send(7).map_err(|error| error.to_string())?;
            connection.recv().map_err(|error| error.to_string())
        });
        let accepted = listener.accept::<u32, u32>()?;
        assert_eq!(accepted.recv()?, 7);
        accepted.send(8)?;
        assert_eq!(honest.join().expect("no panic")?, 8);
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    drop(silent);
    Ok(())
}

#[test]
fn a_copy_of_the_process_that_drops_a_listener_leaves_it_its_path() -> TestResult {
    let path = scratch("copied");
    let mut listener = Some(Listener::bind(path.to_str(), None)?);
    #[expect(unsafe_code, reason = "a test of it")]
    // SAFETY: the copy only drops the listener, and returns.
    let promise = unsafe { ForkWithThreads::new() };
    let copy = Process::fork(|| drop(listener.take())).fork_with_threads(promise).start()?;
    copy.join()?;
    let _connection: Connection<u8, u8> = connect(&path, None)?;
    drop(listener);
    assert!(connect::<u8, u8>(&path, None).is_err() && !path.exists(), "it is the owner's to remove");
    Ok(())
}

/// Sends a byte to a listener, and returns its answer.
fn say((address, key, what): (String, Option<Vec<u8>>, u8)) -> Result<u8, String> {
    let connection = connect::<u8, u8>(address.as_str(), key.as_deref()).map_err(|error| error.to_string())?;
    connection.send(what).map_err(|error| error.to_string())?;
    connection.recv().map_err(|error| error.to_string())
}

#[test]
fn a_listener_turns_other_users_away() -> TestResult {
    if !support::may_change_user() {
        return Ok(());
    }
    let _clean = Clean::start();
    let visit = |visit| {
        support::become_another_user();
        say(visit)
    };
    // The visitor runs as another user. Without a key it would not trust the listener; with one it authenticates it.
    let key = Some(b"open sesame".to_vec());
    for is_for_all in [false, true] {
        let listener = Listener::bind(None, key.as_deref())?;
        let listener = if is_for_all { listener.for_all_users() } else { listener };
        let address = listener.address().to_string();
        let accept = std::thread::spawn(move || {
            let visitor = listener.accept::<u8, u8>().expect("one comes");
            let said = visitor.recv().expect("it says something");
            visitor.send(said).expect("it listens");
            said
        });
        let visited = Process::new(visit, (address.clone(), key.clone(), 1)).start()?.join()?;
        assert_eq!(visited.is_ok(), is_for_all, "{visited:?}");
        if !is_for_all {
            assert_eq!(say((address, key.clone(), 2)), Ok(2));
        }
        assert_eq!(accept.join().expect("no panic"), if is_for_all { 1 } else { 2 });
    }
    Ok(())
}

#[test]
fn who_took_an_abstract_name_is_not_trusted_without_a_key() -> TestResult {
    if !support::may_change_user() {
        return Ok(());
    }
    let _clean = Clean::start();
    let (ours, theirs) = pipe::<(), String>()?;
    let listen = |(tell, key): (Connection<String, ()>, Option<Vec<u8>>)| {
        support::become_another_user();
        let listener = Listener::bind(None, key.as_deref()).expect("a new name").for_all_users();
        tell.send(listener.address().to_string()).expect("it is read");
        let _ = listener.accept_timeout::<u8, u8>(Duration::from_secs(20)).map(|connection| connection.recv());
    };
    for key in [None, Some(b"open sesame".to_vec())] {
        let child = Process::new(listen, (theirs.try_clone()?, key.clone())).start()?;
        let connected = connect::<u8, u8>(ours.recv()?, key.as_deref());
        match (&key, connected) {
            (None, Err(ConnectError::Os { source, .. })) => {
                assert_eq!(source.kind(), io::ErrorKind::PermissionDenied, "{source}");
            }
            (Some(_), Ok(_)) => {}
            (_, other) => return Err(format!("{other:?}").into()),
        }
        child.join()?;
    }
    Ok(())
}
