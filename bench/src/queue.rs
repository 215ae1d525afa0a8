//! Messages of 64 bytes from producers to consumers, ping-pong, and large payloads.
#![expect(unsafe_code, reason = "the bare futex that ping-pong is measured by")]

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ipc_channel::ipc;
use polyproc::{Child, ForkWithThreads, Process, Queue, SharedBytes, SharedBytesMut};
use serde_bytes::{ByteArray, ByteBuf};

use crate::table::{self, Row};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// 64 bytes: a number, and seven words that follow from it. Serde writes the bytes unchanged.
type Message = ByteArray<64>;

const ROUNDS: usize = 7;
const MESSAGES: u64 = 400_000;
const SLOW_MESSAGES: u64 = 40_000;
const END: u64 = u64::MAX;

fn message(number: u64) -> Message {
    let mut bytes = [0; 64];
    let words = [number, 1, 2, 3, number >> 1, 5, 6, !number];
    bytes.chunks_exact_mut(8).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
    ByteArray::new(bytes)
}

fn number(message: &Message) -> u64 {
    u64::from_ne_bytes(*message.first_chunk().expect("64 bytes"))
}

/// A channel for messages from any number of producers to any number of consumers.
trait Link: Sync {
    fn send(&self, message: Message);
    fn receive(&self) -> Message;
}

impl Link for Queue<Message> {
    fn send(&self, message: Message) {
        self.put(message).expect("an open queue");
    }
    fn receive(&self) -> Message {
        self.get().expect("an open queue")
    }
}

struct Pipe(File, File);
impl Pipe {
    fn new() -> Result<Self> {
        let (read, write) = std::io::pipe()?;
        Ok(Self(OwnedFd::from(read).into(), OwnedFd::from(write).into()))
    }
}
impl Link for Pipe {
    fn send(&self, message: Message) {
        (&self.1).write_all(&*message).expect("an open pipe");
    }
    fn receive(&self) -> Message {
        let mut got = [0; 64];
        (&self.0).read_exact(&mut got).expect("an open pipe");
        ByteArray::new(got)
    }
}

struct Socket(UnixDatagram, UnixDatagram);
impl Link for Socket {
    fn send(&self, message: Message) {
        self.0.send(&*message).expect("an open socket");
    }
    fn receive(&self) -> Message {
        let mut got = [0; 64];
        self.1.recv(&mut got).expect("an open socket");
        ByteArray::new(got)
    }
}

/// For one consumer only; the locks are never contended.
struct IpcChannel(Mutex<ipc::IpcSender<Message>>, Mutex<ipc::IpcReceiver<Message>>);
impl Link for IpcChannel {
    fn send(&self, message: Message) {
        self.0.lock().expect("not poisoned").send(message).expect("an open channel");
    }
    fn receive(&self) -> Message {
        self.1.lock().expect("not poisoned").recv().expect("an open channel")
    }
}

struct Crossbeam(crossbeam_channel::Sender<Message>, crossbeam_channel::Receiver<Message>);
impl Link for Crossbeam {
    fn send(&self, message: Message) {
        self.0.send(message).expect("an open channel");
    }
    fn receive(&self) -> Message {
        self.1.recv().expect("an open channel")
    }
}

fn new_link(who: &str) -> Result<Box<dyn Link + Send>> {
    Ok(match who {
        "polyproc" => Box::new(Queue::<Message>::new(0)?),
        "polyproc maxsize 1000" => Box::new(Queue::<Message>::new(1000)?),
        "pipe" => Box::new(Pipe::new()?),
        "Unix socket" => {
            let (sending, receiving) = UnixDatagram::pair()?;
            Box::new(Socket(sending, receiving))
        }
        "ipc-channel" => {
            let (sender, receiver) = ipc::channel()?;
            Box::new(IpcChannel(Mutex::new(sender), Mutex::new(receiver)))
        }
        "crossbeam-channel, threads" => {
            let (sender, receiver) = crossbeam_channel::unbounded();
            Box::new(Crossbeam(sender, receiver))
        }
        "crossbeam bounded 1000, threads" => {
            let (sender, receiver) = crossbeam_channel::bounded(1000);
            Box::new(Crossbeam(sender, receiver))
        }
        _ => return Err(format!("nobody is called {who}").into()),
    })
}

fn fork<R: polyproc::Transfer>(job: impl FnOnce() -> R) -> Result<Child<R>> {
    // SAFETY: this program's other threads are polyproc's own, or are blocked at that moment.
    let promise = unsafe { ForkWithThreads::new() };
    Ok(Process::fork(job).fork_with_threads(promise).start()?)
}

fn produce(link: &dyn Link, from: u64, count: u64) {
    (from..from + count).for_each(|number| link.send(message(number)));
}

/// Receives messages until the end. Returns how many there were, and the sum of their numbers.
fn consume(link: &dyn Link) -> (u64, u64) {
    let (mut count, mut sum) = (0u64, 0u64);
    loop {
        let got = link.receive();
        let number = number(&got);
        if number == END {
            return (count, sum);
        }
        assert_eq!(got, message(number));
        count += 1;
        sum = sum.wrapping_add(number);
    }
}

/// Returns the throughput in millions of messages per second.
fn throughput(who: &str, producers: u64, consumers: u64, messages: u64) -> Result<f64> {
    let link = new_link(who)?;
    let link: &(dyn Link + Send) = &*link;
    let each = messages / producers;
    let threads = who.contains("threads");
    let (count, sum, time) = if threads {
        std::thread::scope(|scope| {
            let consumers: Vec<_> = (0..consumers).map(|_| scope.spawn(move || consume(link))).collect();
            std::thread::sleep(Duration::from_millis(5)); // then they are ready, as the processes below are
            let start = Instant::now();
            let producers: Vec<_> =
                (0..producers).map(|at| scope.spawn(move || produce(link, at * each, each))).collect();
            producers.into_iter().for_each(|producer| producer.join().expect("no panic"));
            consumers.iter().for_each(|_| link.send(message(END)));
            let got: Vec<_> = consumers.into_iter().map(|consumer| consumer.join().expect("no panic")).collect();
            let time = start.elapsed();
            (got.iter().map(|got| got.0).sum::<u64>(), got.iter().map(|got| got.1).sum::<u64>(), time)
        })
    } else {
        // One byte for each producer starts it.
        let go = Pipe::new()?;
        let consumers: Vec<_> = (0..consumers).map(|_| fork(|| consume(link))).collect::<Result<_>>()?;
        let producers: Vec<_> = (0..producers)
            .map(|at| {
                let go = &go;
                fork(move || {
                    (&go.0).read_exact(&mut [0]).expect("an open pipe");
                    produce(link, at * each, each);
                })
            })
            .collect::<Result<_>>()?;
        std::thread::sleep(Duration::from_millis(5));
        let start = Instant::now();
        (&go.1).write_all(&vec![0; producers.len()])?;
        for producer in producers {
            producer.join()?;
        }
        consumers.iter().for_each(|_| link.send(message(END)));
        let (mut count, mut sum) = (0, 0);
        for consumer in consumers {
            let got = consumer.join()?;
            count += got.0;
            sum += got.1;
        }
        (count, sum, start.elapsed())
    };
    let expected = each * producers;
    if (count, sum) != (expected, expected * (expected - 1) / 2) {
        return Err(format!("{who}: {count} messages of {expected} came, sum {sum}").into());
    }
    Ok(expected as f64 / time.as_secs_f64() / 1e6)
}

/// Two words that two processes map, for the bare futex.
struct FutexLink(&'static [AtomicU32; 2]);
impl FutexLink {
    fn new() -> Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: zeros, mapped for as long as this program runs.
        Ok(Self(unsafe { &*at.cast() }))
    }
    fn add(&self, at: usize) {
        self.0[at].fetch_add(1, Ordering::Release);
        // SAFETY: the word is mapped.
        unsafe { libc::syscall(libc::SYS_futex, self.0[at].as_ptr(), libc::FUTEX_WAKE, 1) };
    }
    fn wait_above(&self, at: usize, seen: u32) {
        while self.0[at].load(Ordering::Acquire) == seen {
            // SAFETY: the word is mapped.
            unsafe { libc::syscall(libc::SYS_futex, self.0[at].as_ptr(), libc::FUTEX_WAIT, seen, ptr::null::<()>()) };
        }
    }
}

/// Returns the microseconds from sending a message to receiving its answer, for each of `rounds`.
fn ping_pong(who: &str, rounds: u64, pause: Duration) -> Result<Vec<f64>> {
    let mut samples = Vec::new();
    let mut measure = |ping: &mut dyn FnMut(u64) -> Result<()>| -> Result<()> {
        for round in 0..rounds {
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
            let start = Instant::now();
            ping(round)?;
            samples.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(())
    };
    if who == "bare futex" {
        let link = FutexLink::new()?;
        let answering = fork(|| {
            for round in 0..u32::try_from(rounds).expect("few") {
                link.wait_above(0, round);
                link.add(1);
            }
        })?;
        measure(&mut |round| {
            link.add(0);
            link.wait_above(1, u32::try_from(round)?);
            Ok(())
        })?;
        answering.join()?;
        return Ok(samples);
    }
    let (there, back) = (new_link(who)?, new_link(who)?);
    let answer = || {
        for _ in 0..rounds {
            back.send(there.receive());
        }
    };
    let mut ping = |round| {
        there.send(message(round));
        if back.receive() == message(round) { Ok(()) } else { Err("another answer came".into()) }
    };
    if who.contains("threads") {
        std::thread::scope(|scope| {
            scope.spawn(answer);
            measure(&mut ping)
        })?;
    } else {
        let answering = fork(answer)?;
        measure(&mut ping)?;
        answering.join()?;
    }
    Ok(samples)
}

/// A channel for byte strings of one length.
trait BulkLink: Sync {
    fn send(&self, bytes: Vec<u8>);
    fn receive(&self) -> Vec<u8>;
}

impl BulkLink for Queue<ByteBuf> {
    fn send(&self, bytes: Vec<u8>) {
        self.put(ByteBuf::from(bytes)).expect("an open queue");
    }
    fn receive(&self) -> Vec<u8> {
        self.get().expect("an open queue").into_vec()
    }
}

/// The two ends of a stream, and the length of each string in bytes.
struct Stream(File, File, usize);
impl BulkLink for Stream {
    fn send(&self, bytes: Vec<u8>) {
        (&self.1).write_all(&bytes).expect("an open stream");
    }
    fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.2];
        (&self.0).read_exact(&mut bytes).expect("an open stream");
        bytes
    }
}

struct IpcBulk(Mutex<ipc::IpcBytesSender>, Mutex<ipc::IpcBytesReceiver>);
impl BulkLink for IpcBulk {
    fn send(&self, bytes: Vec<u8>) {
        self.0.lock().expect("not poisoned").send(&bytes).expect("an open channel");
    }
    fn receive(&self) -> Vec<u8> {
        self.1.lock().expect("not poisoned").recv().expect("an open channel")
    }
}

struct CrossbeamBulk(crossbeam_channel::Sender<Vec<u8>>, crossbeam_channel::Receiver<Vec<u8>>);
impl BulkLink for CrossbeamBulk {
    fn send(&self, bytes: Vec<u8>) {
        self.0.send(bytes).expect("an open channel");
    }
    fn receive(&self) -> Vec<u8> {
        self.1.recv().expect("an open channel")
    }
}

fn new_bulk_link(who: &str, len: usize) -> Result<Box<dyn BulkLink + Send>> {
    Ok(match who {
        "polyproc" => Box::new(Queue::<ByteBuf>::new(8)?),
        "pipe" => {
            let (read, write) = std::io::pipe()?;
            Box::new(Stream(OwnedFd::from(read).into(), OwnedFd::from(write).into(), len))
        }
        "Unix socket" => {
            let (one, other) = std::os::unix::net::UnixStream::pair()?;
            Box::new(Stream(OwnedFd::from(one).into(), OwnedFd::from(other).into(), len))
        }
        "ipc-channel" => {
            let (sender, receiver) = ipc::bytes_channel()?;
            Box::new(IpcBulk(Mutex::new(sender), Mutex::new(receiver)))
        }
        "crossbeam-channel, threads" => {
            let (sender, receiver) = crossbeam_channel::bounded(8);
            Box::new(CrossbeamBulk(sender, receiver))
        }
        _ => return Err(format!("nobody is called {who}").into()),
    })
}

/// Returns the microseconds for each string of `len` bytes: copied from a template, sent, received, one byte read per page.
fn bulk(who: &str, len: usize, count: usize) -> Result<f64> {
    let link = new_bulk_link(who, len)?;
    let link: &(dyn BulkLink + Send) = &*link;
    let template: Vec<u8> = (0..=250).cycle().take(len).collect();
    let look = |bytes: &[u8]| bytes.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>();
    let expected = look(&template);
    let produce = || (0..count).for_each(|_| link.send(template.clone()));
    let consume = || (0..count).all(|_| look(&link.receive()) == expected);
    let (good, start) = if who.contains("threads") {
        std::thread::scope(|scope| {
            let start = Instant::now();
            scope.spawn(produce);
            (consume(), start)
        })
    } else {
        let producer = fork(produce)?;
        let start = Instant::now();
        let good = consume();
        producer.join()?;
        (good, start)
    };
    let time = start.elapsed().as_secs_f64() * 1e6 / count as f64;
    if good { Ok(time) } else { Err(format!("{who}: other bytes came").into()) }
}

/// Returns the microseconds to lend `len` bytes that the producer has filled: from the put until the answer of the consumer,
/// which reads the first and the last byte.
fn hand_over(len: usize) -> Result<Vec<f64>> {
    let (queue, answers) = (Queue::<SharedBytes>::new(0)?, Queue::<(u8, u8)>::new(0)?);
    const ROUNDS: u8 = 20;
    let consumer = fork(|| {
        for _ in 0..ROUNDS {
            let bytes = queue.get().expect("an open queue");
            answers.put((bytes[0], bytes[len - 1])).expect("an open queue");
        }
    })?;
    let mut bytes = SharedBytesMut::new(len)?;
    (bytes[0], bytes[len - 1]) = (1, 2);
    let bytes = SharedBytes::from(bytes.freeze()?);
    let mut samples = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        queue.put(bytes.clone())?;
        if answers.get()? != (1, 2) {
            return Err("other bytes came".into());
        }
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    consumer.join()?;
    Ok(samples)
}

/// Measures the queue of Python's standard library: nanoseconds per message, and microseconds per round trip.
const PYTHON: &str = "
import multiprocessing as mp, time, sys
def produce(q, n):
    for _ in range(n): q.put(b'x' * 64)
def answer(q, r, n):
    for _ in range(n): r.put(q.get())
if __name__ == '__main__':
    ctx = mp.get_context('fork')
    n = 20000
    q = ctx.Queue()
    p = ctx.Process(target=produce, args=(q, n)); t = time.perf_counter(); p.start()
    ok = all(q.get() == b'x' * 64 for _ in range(n)); t = time.perf_counter() - t; p.join()
    q, r = ctx.Queue(), ctx.Queue(); m = 2000
    p = ctx.Process(target=answer, args=(q, r, m)); p.start(); times = []
    for i in range(m):
        s = time.perf_counter(); q.put(i); ok &= r.get() == i; times.append(time.perf_counter() - s)
    p.join(); times.sort()
    assert ok
    print(t / n * 1e9, times[m // 2] * 1e6)
";

fn python() -> Option<(f64, f64)> {
    let output = Command::new("python3").args(["-c", PYTHON]).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Returns the samples of all rounds; none if a round fails, after printing the error.
fn samples(who: &str, mut once: impl FnMut() -> Result<Vec<f64>>) -> Vec<f64> {
    let mut all = Vec::new();
    for round in 0..=ROUNDS {
        match once() {
            Ok(samples) if round > 0 => all.extend(samples),
            Ok(_) => {} // the first round warms up
            Err(error) => {
                eprintln!("{who} gave no figures: {error}");
                return Vec::new();
            }
        }
    }
    all
}

/// Runs all cases.
pub(crate) fn run(json: Option<&Path>) -> Result<()> {
    const THREADS: &str = "crossbeam-channel, threads";
    const BOUNDED_THREADS: &str = "crossbeam bounded 1000, threads";
    let everyone =
        ["polyproc", "polyproc maxsize 1000", "ipc-channel", "Unix socket", "pipe", BOUNDED_THREADS, THREADS];
    let mut rows = Vec::new();
    for (producers, consumers) in [(1, 1), (2, 2)] {
        let case = format!("64 bytes, {producers} producers, {consumers} consumers");
        for who in everyone.into_iter().filter(|who| consumers == 1 || *who != "ipc-channel") {
            let slow = ["ipc-channel", "Unix socket", "pipe"].contains(&who);
            let messages = if slow { SLOW_MESSAGES } else { MESSAGES };
            let times = samples(who, || Ok(vec![1e3 / throughput(who, producers, consumers, messages)?]));
            rows.extend(Row::from_samples(&case, who, "ns", times));
        }
    }
    let python = python();
    if let Some((nanos, _)) = python {
        let case = rows.first().map_or_else(String::new, |row| row.case.clone());
        rows.extend(Row::from_samples(&case, "Python multiprocessing.Queue", "ns", vec![nanos]));
    }
    let everyone = ["polyproc", "ipc-channel", "Unix socket", "pipe", THREADS];
    for (case, pause, rounds) in
        [("hot ping-pong, 64 bytes", Duration::ZERO, 3000), ("idle ping-pong, 64 bytes", Duration::from_millis(2), 100)]
    {
        for who in everyone.into_iter().chain(["bare futex"]) {
            rows.extend(Row::from_samples(case, who, "us", samples(who, || ping_pong(who, rounds, pause))));
        }
        if let (Some((_, micros)), true) = (python, pause.is_zero()) {
            rows.extend(Row::from_samples(case, "Python multiprocessing.Queue", "us", vec![micros]));
        }
    }
    for (case, len, count) in [("1 MiB by value", 1 << 20, 100), ("256 MiB by value", 256 << 20, 1)] {
        for who in everyone {
            rows.extend(Row::from_samples(case, who, "us", samples(who, || Ok(vec![bulk(who, len, count)?]))));
        }
        let who = "polyproc SharedBytes, there and back";
        rows.extend(Row::from_samples(case, who, "us", samples(who, || hand_over(len))));
    }
    eprintln!("crossmist gave no figures: it panics with this compiler on every message (see `start`)");
    println!("time for each message (lower is better); ratios of medians");
    table::print(&rows, THREADS, "polyproc");
    if let Some(path) = json {
        table::write_json(&rows, path)?;
    }
    Ok(())
}
