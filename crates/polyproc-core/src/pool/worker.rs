//! The worker's loop: claims a task from the board, runs its items, and writes their results, until the pool retires it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::orders::{LIMITED, Orders, SPLITTABLE, TaskDescriptor, WITH_FDS};
use super::result_ring::{
    self, IDLE, INLINE_LEN, RING_LEN, ResultKind, ResultRing, WORD_LEN, WorkerPhase, WorkerState,
};
use super::task::{Setup, decode_function, next_item, tag};
use super::task_table::TaskTable;
use crate::conn::Channel;
use crate::deadline::Deadline;
use crate::error_chain;
use crate::prim::{AtomicBool, AtomicU64, Ordering};
use crate::process::{self, Function, FunctionError, Handler, Outcome, ResolvedFunction, panic};
use crate::robust::{HAS_SPARE_PROCESSOR, RecheckInterval, WaitError, spin_until};
use crate::shm::budget::{self, Share};
use crate::shm::wait_for_room;
use crate::shm::{self, Blocks, Extent, MemoryError};
use crate::sys::clock;
use crate::sys::crash::{self, Step};
use crate::sys::watch::EventFd;
use crate::wire::{Context, Input, Payload, Verdict};

/// How long a worker without a task sleeps before it re-checks. Only a death loses a wake-up, and then the parent wakes all
/// workers; this is for the case that it does not.
const RECHECK_AFTER: Duration = Duration::from_secs(5);
/// How long a worker waits for room for its only result before it takes more than its share.
const SOON: Duration = Duration::from_secs(1);
/// Maximum number of functions with a context that are cached.
const CONTEXTS: usize = 64;
/// Buffers above this capacity in bytes are freed after use.
const KEPT: usize = 4 << 20;

/// The channel to which [`log`] sends.
static CHANNEL: OnceLock<&'static Channel> = OnceLock::new();
/// The position of the task that runs, or ran last.
static POSITION: AtomicU64 = AtomicU64::new(u64::MAX);
/// Something was logged since the last item ended.
static LOGGED: AtomicBool = AtomicBool::new(false);

/// In a worker: sends `record` to the parent, which calls [`on_log`](super::PoolSettings::on_log) with it before it delivers
/// the result of the running task. Returns false in any other process, or if the parent has exited.
pub fn log(record: &[u8]) -> bool {
    let head = || [&POSITION.load(Ordering::Relaxed).to_le_bytes(), record].concat();
    let sent = CHANNEL.get().is_some_and(|channel| channel.send(tag::LOG, &head(), &[]).is_ok());
    if sent {
        // Pairs with the Acquire in `answer`: the record is in the channel.
        LOGGED.store(true, Ordering::Release);
    }
    sent
}

#[cfg(feature = "crash-points")]
pub(super) fn channel() -> Option<&'static Channel> {
    CHANNEL.get().copied()
}

#[cfg(feature = "crash-points")]
pub(super) fn stream() -> Option<&'static ResultRing> {
    LENDING.get().map(|(stream, _)| &**stream)
}

/// Sends a message to the parent. Blocks while the channel is full.
fn send(channel: &Channel, tag: u8, head: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = Ok(());
    process::idle(|| sent = channel.send(tag, head, fds));
    sent
}

/// In a worker: its result ring, which counts the result descriptors that the parent holds, and their maximum number.
static LENDING: OnceLock<(Arc<ResultRing>, u64)> = OnceLock::new();

/// Returns whether a result may use a descriptor where a copy would do. False while the parent holds many descriptors of this
/// worker's results that were not taken yet.
#[must_use]
pub fn may_lend() -> bool {
    LENDING.get().is_none_or(|(stream, most)| {
        let cell = stream.state();
        cell.sent.load(Ordering::Relaxed).saturating_sub(cell.received.load(Ordering::Relaxed)) < *most
    })
}

/// Returns the name of the function that a worker process runs.
pub(super) fn worker_function() -> Result<Function, FunctionError> {
    struct RunsWorker;
    impl Handler<fn()> for RunsWorker {
        fn handle(_: fn(), input: Input<'_>, _: &mut Payload) -> Verdict {
            let channel = panic::parent_channel().expect("a worker has a parent");
            let setup = Payload { bytes: input.bytes.to_vec(), fds: input.fds };
            process::end(&run(channel, setup), channel)
        }
    }
    Function::new::<fn(), RunsWorker>(|| ())
}

/// Runs the initializer, then serves tasks until the pool retires the worker. Returns the outcome of the process.
fn run(channel: &'static Channel, setup: Payload) -> Outcome {
    let _ = CHANNEL.set(channel); // once per process
    let ran = Plan::open(channel, setup).and_then(|(plan, initializer)| {
        _ = REST.replace(Some(Box::new(|| WorkerLoop::new(plan)?.serve())));
        let outcome = initializer.map_or_else(|| Outcome::Returned(Payload::default()), initialize);
        match (REST.take(), outcome) {
            (Some(rest), Outcome::Returned(_)) => rest().map(|()| Outcome::Returned(Payload::default())),
            (Some(_), unfit) => {
                let (kind, bytes, _) = unfit.parts();
                channel.send(tag::UNFIT, &[&[kind], &*bytes].concat(), &[])?;
                Ok(Outcome::Returned(Payload::default()))
            }
            (None, served) => Ok(served),
        }
    });
    ran.unwrap_or_else(|error| Outcome::Refused(error_chain(&error)))
}

type Rest = Box<dyn FnOnce() -> io::Result<()>>;

thread_local! {
    /// While the initializer runs: serves the tasks.
    static REST: RefCell<Option<Rest>> = const { RefCell::new(None) };
}

/// In a pool's initializer: serves tasks until the pool retires the worker, then returns. An initializer that calls this
/// encloses the whole life of its worker, as the main function of an interpreter does. Otherwise tasks are served after the
/// initializer has returned.
///
/// # Errors
/// Fails if no initializer runs in this thread, if tasks were served already, or if the pool's memory cannot be used.
pub fn serve() -> io::Result<()> {
    let rest = REST
        .take()
        .ok_or_else(|| io::Error::other("tasks can be served only in a pool's initializer, and only once"))?;
    rest()
}

fn initialize((function, input): (Function, Payload)) -> Outcome {
    match function.resolve() {
        Err(error) => Outcome::Refused(error.to_string()),
        Ok(function) => match panic::catch(true, || function.call_once(input)) {
            Ok(Ok(payload)) => Outcome::Returned(payload),
            Ok(Err(payload)) => Outcome::Raised(payload),
            Err(panic) => Outcome::Panicked(panic),
        },
    }
}

/// The resources that a worker received from its pool.
struct Plan {
    channel: &'static Channel,
    board: TaskTable,
    orders: Orders,
    stream: Arc<ResultRing>,
    bell: EventFd,
    number: u32,
    max_tasks: u64,
    finalizer: Option<Function>,
}

impl Plan {
    /// Opens the descriptors that the pool has sent. Returns the initializer with its argument, too.
    fn open(channel: &'static Channel, payload: Payload) -> io::Result<(Self, Option<(Function, Payload)>)> {
        let setup = Setup::decode(&payload.bytes)?;
        let mut fds = payload.fds.into_iter();
        let mut next = || fds.next().ok_or(io::ErrorKind::InvalidData);
        let (board, orders) = (TaskTable::open(next()?)?, Orders::open(next()?)?);
        let (bell, stream) = (EventFd::from(next()?), Arc::new(ResultRing::open(next()?)?));
        let _ = LENDING.set((Arc::clone(&stream), setup.most_fds)); // once per process
        if let Some(nice) = setup.nice {
            crate::sys::priority::set_nice(nice)?;
        }
        crate::sys::priority::pin(&setup.cpus)?;
        stream.state().phase.store(WorkerPhase::Initialising as u32, Ordering::Relaxed);
        let Setup { number, max_tasks, finalizer, initializer, .. } = setup;
        let initializer = initializer.map(|(function, head)| (function, Payload { bytes: head, fds: fds.collect() }));
        Ok((Self { channel, board, orders, stream, bell, number, max_tasks, finalizer }, initializer))
    }
}

/// A resolved function, and the context that all its tasks share.
struct CachedFunction {
    function: Result<ResolvedFunction, String>,
    context: Option<Context>,
}

struct WorkerLoop {
    channel: &'static Channel,
    board: TaskTable,
    orders: Orders,
    stream: Arc<ResultRing>,
    bell: EventFd,
    number: u32,
    /// Number of items that remain until the worker retires; `None` if unlimited.
    left: Option<u64>,
    finalizer: Option<ResolvedFunction>,
    known: HashMap<u64, Rc<CachedFunction>>,
    no_context: Context,
    /// The function of the last task.
    last: Option<(u64, Rc<CachedFunction>)>,
    blocks: Blocks,
    /// Blocks of large results that the parent has not returned, by offset.
    lent: HashMap<u64, Extent>,
    /// Results were written since the parent was last notified.
    untold: bool,
    busy_since: u64,
    argument: Vec<u8>,
    out: Payload,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

impl WorkerLoop {
    /// Prepares the worker for tasks, and reports to the parent that it is ready.
    fn new(plan: Plan) -> io::Result<Self> {
        let Plan { channel, board, orders, stream, bell, number, max_tasks, finalizer } = plan;
        let finalizer = finalizer.map(|function| function.resolve()).transpose().map_err(io::Error::other)?;
        channel.send(tag::READY, &[], &[])?;
        Ok(Self {
            channel,
            board,
            orders,
            stream,
            bell,
            number,
            left: (max_tasks > 0).then_some(max_tasks),
            finalizer,
            known: HashMap::new(),
            no_context: Context::default(),
            last: None,
            blocks: Blocks::new(result_ring::FIRST_BLOCK),
            lent: HashMap::new(),
            untold: false,
            busy_since: clock::monotonic_nanos(),
            argument: Vec::new(),
            out: Payload::default(),
        })
    }

    fn state(&self) -> &WorkerState {
        self.stream.state()
    }

    fn serve(mut self) -> io::Result<()> {
        self.begin_busy();
        self.state().ready.store(self.busy_since, Ordering::Relaxed);
        while let Some((slot, position)) = self.next() {
            self.run_task(slot, position).map_err(io::Error::other)?;
        }
        if let Some(finalizer) = self.finalizer {
            // A panic is printed; no process waits for the result.
            let _ = panic::catch(false, || finalizer.call_once(Payload::default()));
        }
        Ok(())
    }

    fn is_to_retire(&self) -> bool {
        // Pairs with the Release in `end_worker`. Only the flag is used.
        self.state().retire.load(Ordering::Acquire) != 0 || self.left == Some(0)
    }

    /// Blocks until there is a task. Returns its slot and position, or `None` if the worker must retire.
    fn next(&mut self) -> Option<(u32, u64)> {
        loop {
            if self.is_to_retire() {
                self.notify(true);
                return None;
            }
            // Before the claim, so that a worker that is stopped in here holds no task that it has not begun.
            self.notify(false);
            if let Some(claimed) = self.board.table().claim(self.number) {
                crash::point(Step::TaskClaimed);
                return Some(claimed);
            }
            self.notify(true);
            self.idle();
        }
    }

    /// Blocks until there may be a task, or the worker must retire.
    fn idle(&mut self) {
        let something = || self.board.table().waiting() > 0 || self.is_to_retire();
        let lookers = self.board.lookers();
        if *HAS_SPARE_PROCESSOR && let Some(place) = lookers.enter(self.number) {
            let found = spin_until(place > 0, something);
            lookers.leave(self.number);
            if found {
                return;
            }
        }
        self.begin_idle();
        process::begin_wait();
        // Each sleep also ends after a signal or an interval.
        let (mut slept, interval) = (false, RecheckInterval::new(RECHECK_AFTER));
        while self.board.table().waiting() == 0 && !self.is_to_retire() {
            self.take_back();
            if std::mem::replace(&mut slept, true) {
                let _ = self.blocks.trim(self.stream.segment());
                shm::trim_loans();
            }
            let look = || {
                let something = self.board.table().waiting() > 0 || self.is_to_retire();
                // While a process waits for room, the parent wakes workers that have blocks to free.
                Ok::<_, WaitError>((something || self.stream.has_returned()).then_some(()))
            };
            process::idle(|| _ = self.board.waiters().wait(Deadline::after(interval.next()), &interval, look));
            interval.lengthen();
        }
        self.begin_busy();
    }

    fn begin_idle(&mut self) {
        let now = clock::monotonic_nanos();
        count(&self.state().busy, now.saturating_sub(self.busy_since));
        self.state().since.store(now, Ordering::Relaxed);
        // Pairs with the Acquire in `idle_for`.
        self.state().phase.store(WorkerPhase::Idle as u32, Ordering::Release);
    }

    fn begin_busy(&mut self) {
        self.busy_since = clock::monotonic_nanos();
        self.state().since.store(self.busy_since, Ordering::Relaxed);
        // Pairs with the Acquire in `stats`.
        self.state().phase.store(WorkerPhase::Busy as u32, Ordering::Release);
    }

    /// Notifies the parent of new results, unless it does not want to be woken yet.
    fn notify(&mut self, at_once: bool) {
        if !self.untold {
            return;
        }
        let is_low = || {
            at_once
                || self.board.table().waiting() <= self.board.low_water().load(Ordering::Relaxed)
                || self.stream.unread() > RING_LEN / 2
        };
        self.untold = !self.board.doorbell().ring(is_low, || self.bell.ring());
        crash::point(Step::ParentTold);
    }

    /// Changes the word `current` of the cell. Returns false if the parent has cut the task. Blocks permanently if the parent
    /// has marked this worker for killing.
    fn declare(&self, from: u64, to: u64) -> bool {
        // Release pairs with the parent's Acquire, in `limit`, `revoke_at` and the audit: the start time and all
        // results so far are written before. Acquire pairs with its Release in `cut` and `revoke_at`.
        match self.state().current.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(now) if result_ring::is_cut(now) => {
                if to == IDLE {
                    self.declare(now, IDLE);
                }
                false
            }
            Err(_) => loop {
                std::thread::park();
            },
        }
    }

    fn run_task(&mut self, slot: u32, position: u64) -> Result<(), MemoryError> {
        let order = self.orders.read(slot)?;
        if order.flags & LIMITED != 0 {
            // Before `declare`, so that the parent never relates this item to the start time of an earlier one.
            self.state().started.store(clock::monotonic_nanos(), Ordering::Relaxed);
        }
        let mut running = result_ring::running(position, 0);
        self.declare(IDLE, running);
        POSITION.store(position, Ordering::Relaxed);
        crash::point(Step::TaskDeclared);
        self.write(|stream| stream.write_begin(slot, position))?;
        crash::point(Step::TaskBegun);
        // After the begin record: a death for lack of memory for the argument counts against this task.
        let mut argument = std::mem::take(&mut self.argument);
        argument.clear();
        self.orders.read_argument(slot, &order, &mut argument)?;
        let mut fds = if order.flags & WITH_FDS != 0 { self.ask_for_fds(position) } else { Ok(Vec::new()) };
        let known = self.know(&order);
        let _quiet = panic::Quiet::new();
        let mut rest = &argument[..];
        let mut ran = 0;
        for item in 0..order.items {
            if order.flags & (LIMITED | SPLITTABLE) != 0 {
                if order.flags & LIMITED != 0 {
                    self.state().started.store(clock::monotonic_nanos(), Ordering::Relaxed);
                }
                let next = result_ring::running(position, item);
                if item > 0 && !self.declare(running, next) {
                    break;
                }
                running = next;
            }
            let bytes = next_item(&mut rest).map_err(|_| MemoryError::Corrupt)?;
            self.run_item(&known, bytes, std::mem::replace(&mut fds, Ok(Vec::new())))?;
            crash::point(Step::ItemAnswered);
            ran += 1;
        }
        count(&self.state().items, ran);
        count(&self.state().bytes_in, argument.len() as u64);
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(ran);
        }
        self.untold = true;
        if argument.capacity() <= KEPT {
            self.argument = argument;
        }
        self.declare(running, IDLE);
        crash::point(Step::TaskAnswered);
        Ok(())
    }

    /// Returns the function of a task, from the cache or from the parent.
    fn know(&mut self, order: &TaskDescriptor) -> Rc<CachedFunction> {
        if let Some((_, known)) = self.last.as_ref().filter(|(id, _)| *id == order.function) {
            return Rc::clone(known);
        }
        let known = match self.known.get(&order.function) {
            Some(known) => Rc::clone(known),
            None => {
                // Contexts belong to calls, which end; the number of functions without a context is that of the program.
                if self.known.values().filter(|known| known.context.is_some()).count() >= CONTEXTS {
                    self.known.retain(|_, known| known.context.is_none());
                }
                let known = Rc::new(self.find(order.function));
                if known.function.is_err() {
                    return known; // not cached: a shortage may be over when the next task asks
                }
                self.known.insert(order.function, Rc::clone(&known));
                known
            }
        };
        self.last = Some((order.function, Rc::clone(&known)));
        known
    }

    /// Asks the parent for a function. A name determines which code runs, so it travels over this worker's channel, where no
    /// other worker can write.
    fn find(&self, id: u64) -> CachedFunction {
        let ask = || -> io::Result<(Function, Vec<u8>)> {
            let answer = self.ask(tag::NEED_FUNCTION, id, tag::FUNCTION)?;
            let (of, name) = answer.bytes.split_first_chunk().ok_or(io::ErrorKind::InvalidData)?;
            if u64::from_le_bytes(*of) != id {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(decode_function(name)?)
        };
        match ask() {
            Err(error) => {
                let why = format!("the function could not be received from the parent: {}", error_chain(&error));
                CachedFunction { function: Err(why), context: None }
            }
            Ok((function, context)) => CachedFunction {
                function: function.resolve().map_err(|error| error.to_string()),
                context: (!context.is_empty()).then(|| Context::new(context)),
            },
        }
    }

    fn ask(&self, question: u8, number: u64, answer: u8) -> io::Result<Payload> {
        send(self.channel, question, &number.to_le_bytes(), &[])?;
        let mut received = Ok(None);
        process::idle(|| received = self.channel.receive());
        let message = received?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if message.tag == answer { Ok(message.payload) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn ask_for_fds(&self, position: u64) -> Result<Vec<OwnedFd>, String> {
        let answer = self.ask(tag::NEED_FDS, position, tag::FDS);
        answer
            .map(|payload| payload.fds)
            .map_err(|error| format!("the argument's descriptors could not be received: {}", error_chain(&error)))
    }

    fn run_item(
        &mut self,
        known: &CachedFunction,
        bytes: &[u8],
        fds: Result<Vec<OwnedFd>, String>,
    ) -> Result<(), MemoryError> {
        let mut out = std::mem::take(&mut self.out);
        out.bytes.clear();
        out.bytes.extend([0; WORD_LEN]); // space for the record's word
        let kind = match (&known.function, fds) {
            (Err(why), _) => {
                out.bytes.extend(why.as_bytes());
                ResultKind::Refused
            }
            (_, Err(why)) => {
                out.bytes.extend(why.into_bytes());
                ResultKind::Refused
            }
            (Ok(function), Ok(fds)) => {
                let input = Input { bytes, fds, context: known.context.as_ref().unwrap_or(&self.no_context) };
                match panic::catch_again(|| function.call(input, &mut out)) {
                    Ok(Verdict::Returned) => ResultKind::Returned,
                    Ok(Verdict::Raised) => ResultKind::Raised,
                    Err(panic) => {
                        out = Payload::from([&[0; WORD_LEN][..], &panic.encode()].concat());
                        ResultKind::Panicked
                    }
                }
            }
        };
        crash::point(Step::ItemRun);
        count(&self.state().bytes_out, (out.bytes.len() - WORD_LEN) as u64);
        let is_plain = out.fds.is_empty() && out.bytes.len() <= INLINE_LEN && !LOGGED.load(Ordering::Relaxed);
        if !is_plain || !self.stream.write_end(kind, 0, &mut out.bytes)? {
            self.answer(kind, &mut out)?;
        }
        if out.bytes.capacity() <= KEPT {
            self.out = out;
        }
        Ok(())
    }

    /// Writes the result of an item: the bytes after the space for the record's word. Blocks until there is room.
    #[cold]
    fn answer(&mut self, kind: ResultKind, out: &mut Payload) -> Result<(), MemoryError> {
        // Acquire pairs with the Release in `log`.
        let mut flags = if LOGGED.swap(false, Ordering::AcqRel) { result_ring::LOGGED } else { 0 };
        let fds = std::mem::take(&mut out.fds);
        if !fds.is_empty() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            if let Err(error) = send(self.channel, tag::RESULT_FDS, &[], &borrowed) {
                let why = format!("the result's descriptors could not be sent to the parent: {}", error_chain(&error));
                return self.refuse(flags, &why);
            }
            count(&self.state().sent, fds.len() as u64);
            flags |= result_ring::WITH_FDS;
        }
        if out.bytes.len() <= INLINE_LEN {
            return self.write(|stream| stream.write_end(kind, flags, &mut out.bytes));
        }
        let len = out.bytes.len() - WORD_LEN;
        match self.lend(&out.bytes[WORD_LEN..]) {
            Ok(offset) => {
                self.write(|stream| stream.write_end_in_block(kind, flags, offset, len as u64))?;
                if budget::is_room_awaited() {
                    self.ring(); // once the parent has read this block, there is room
                }
                Ok(())
            }
            Err(error) => {
                let why = format!("could not allocate {len} bytes for the result: {}", error_chain(&error));
                self.refuse(flags, &why)
            }
        }
    }

    fn refuse(&self, flags: u8, why: &str) -> Result<(), MemoryError> {
        let mut record = [&[0; WORD_LEN][..], why.as_bytes()].concat();
        self.write(|stream| stream.write_end(ResultKind::Refused, flags, &mut record))
    }

    /// Copies bytes to a block of their own. Returns its offset.
    fn lend(&mut self, bytes: &[u8]) -> Result<u64, MemoryError> {
        let extent = self.room_for(bytes.len() as u64)?;
        self.lent.insert(extent.offset, extent);
        self.stream.segment().copy_in(extent.offset, bytes)?;
        Ok(extent.offset)
    }

    /// Frees the blocks of results that the parent has read.
    fn take_back(&mut self) {
        while let Some(extent) = self.stream.take_back().and_then(|offset| self.lent.remove(&offset)) {
            self.blocks.free(self.stream.segment(), extent);
        }
    }

    fn allocate(&mut self, len: u64, share: Share) -> Result<Extent, MemoryError> {
        self.take_back();
        let segment = self.stream.segment();
        match self.blocks.allocate(segment, len, share) {
            Err(MemoryError::OutOfSpace(_)) if self.blocks.trim(segment) => self.blocks.allocate(segment, len, share),
            allocated => allocated,
        }
    }

    /// Wakes the parent to read the results.
    fn ring(&self) {
        self.board.doorbell().ring(|| true, || self.bell.ring());
    }

    /// Allocates a block for a result. Blocks while too much memory is in flight; the parent can kill the worker then as at any
    /// other time. A worker with no other result in flight blocks for [`SOON`] only: other processes may hold memory until they
    /// have its answer.
    fn room_for(&mut self, len: u64) -> Result<Extent, MemoryError> {
        let mut allocated = self.allocate(len, Share::of(self.blocks.in_use()));
        while matches!(allocated, Err(MemoryError::OutOfSpace(error)) if error.is_passing())
            || matches!(allocated, Err(MemoryError::Interrupted))
        {
            process::idle(|| {
                allocated = wait_for_room(Deadline::after(SOON), MemoryError::out_of_space, || {
                    // Each time, since earlier results take room until the parent reads them.
                    self.allocate(len, Share::of(self.blocks.in_use())).inspect_err(|_| self.ring())
                });
                if matches!(allocated, Err(MemoryError::OutOfSpace(_))) && Share::of(self.blocks.in_use()) == Share::All
                {
                    allocated = self.allocate(len, Share::More);
                }
            });
        }
        allocated
    }

    /// Writes a record. Blocks until there is room.
    fn write(&self, mut write: impl FnMut(&ResultRing) -> Result<bool, MemoryError>) -> Result<(), MemoryError> {
        while !write(&self.stream)? {
            self.ring();
            let has_room = || Ok::<_, WaitError>((self.stream.unread() <= RING_LEN / 2).then_some(()));
            process::idle(|| {
                _ = self.stream.space().wait(
                    Deadline::after(RECHECK_AFTER),
                    &RecheckInterval::new(RECHECK_AFTER),
                    has_room,
                )
            });
        }
        Ok(())
    }
}
