//! The worker's loop: claims tasks on the board, runs their items, and writes the results, until the pool retires it.
//!
//! Runs in the main thread of each worker process. The face's code reaches it through the task's function, the
//! initializer, and [`log`], [`may_lend`] and [`serve`]. `docs/design/pool.md` describes the protocol, with what a
//! death after each step costs.
//!
//! # Life of a worker
//!
//! 1. The process starts with the function of [`worker_function`] and a [`Setup`], opens the pool's memory
//!    ([`Plan::open`]), and sets niceness and processors.
//! 2. It runs the initializer. If that fails, it sends `UNFIT` with the reason, and exits.
//! 3. It sends `READY`, and repeats: announce results, claim a task ([`WorkerLoop::next`]), run it
//!    ([`WorkerLoop::run_task`]).
//! 4. When it must retire, it runs the finalizer and exits. The parent detects each exit by the pidfd and the closed
//!    channel.
//!
//! # Who writes what
//!
//! The worker writes its result ring, its own fields of [`WorkerState`], claims on the board, its entry among the
//! polling workers, and rings of the doorbell. It cannot write the orders. It shares no lock with other processes of
//! the pool: a worker that is killed or stopped at any instruction affects only the task that it has claimed.
//!
//! In the worker's state, the parent also writes `current`, for which both use compare-and-swaps
//! ([`WorkerLoop::declare`]), and `retire` and `received`, which the worker only reads.
//!
//! A failure of one item never ends the worker: a function that cannot be found, descriptors that do not arrive and a
//! result without memory become [`ResultKind::Refused`]. Only shared memory that cannot be used ends it, with an error
//! as its outcome.
//!
//! Each wait of the loop, for tasks, for room in the ring, for memory for a result or for the channel, runs inside
//! `process::idle`, so that an interpreter can run its other threads meanwhile.

mod function_cache;
mod questions;
mod result_blocks;
#[cfg(feature = "crash-points")]
#[doc(hidden)]
pub mod wild;

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use function_cache::{CachedFunction, FunctionCache};
use questions::send;
use result_blocks::ResultBlocks;

use crate::conn::Channel;
use crate::deadline::Deadline;
use crate::error_chain;
use crate::pool::shared::orders::{LIMITED, Orders, SPLITTABLE, WITH_FDS};
use crate::pool::shared::result_index::RING_LEN;
use crate::pool::shared::result_ring::{
    self, IDLE, INLINE_LEN, ResultKind, ResultRing, WORD_LEN, WorkerPhase, WorkerState,
};
use crate::pool::shared::task::{Setup, next_item, tag};
use crate::pool::shared::task_table::TaskTable;
use crate::prim::{AtomicBool, AtomicU64, Ordering};
use crate::process::{self, Function, FunctionError, Handler, Outcome, ResolvedFunction, panic};
use crate::robust::{HAS_SPARE_PROCESSOR, RecheckInterval, WaitError, spin_until};
use crate::shm::{self, MemoryError, budget};
use crate::sys::clock;
use crate::sys::crash::{self, Step};
use crate::sys::watch::EventFd;
use crate::wire::{Context, Input, Payload, Verdict};

/// How long a worker without a task sleeps before it re-checks. Only a death loses a wake-up, and then the parent wakes all
/// workers; this is for the case that it does not.
///
/// Doubles with each sleep that nothing ends: see [`RecheckInterval`].
const RECHECK_AFTER: Duration = Duration::from_secs(5);
/// Buffers above this capacity in bytes are freed after use.
///
/// Applies to the buffers for arguments and for results, so that one large item does not fix the memory of the worker.
const KEPT: usize = 4 << 20;

/// The channel to which [`log`] sends.
///
/// Set once, before the initializer runs. Unset in any process that is no worker.
static CHANNEL: OnceLock<&'static Channel> = OnceLock::new();
/// The position of the task that runs, or ran last.
///
/// `u64::MAX`, which is no position, before the first task. Written by the loop, read by [`log`] on any thread.
static POSITION: AtomicU64 = AtomicU64::new(u64::MAX);
/// Something was logged since the last item ended.
///
/// Set by [`log`] on any thread, reset by [`WorkerLoop::answer`], which sets the flag of the same name in the next
/// record.
static LOGGED: AtomicBool = AtomicBool::new(false);

/// In a worker: sends `record` to the parent, which calls [`on_log`](crate::pool::PoolSettings::on_log) with it before it delivers
/// the result of the running task. Returns false in any other process, or if the parent has exited.
///
/// May be called on any thread. Blocks while the channel is full, which is only while the parent does not read it.
pub fn log(record: &[u8]) -> bool {
    let head = || [&POSITION.load(Ordering::Relaxed).to_le_bytes(), record].concat();
    let sent = CHANNEL.get().is_some_and(|channel| channel.send(tag::LOG, &head(), &[]).is_ok());
    if sent {
        // Pairs with the Acquire in `answer`: the record is in the channel.
        LOGGED.store(true, Ordering::Release);
    }
    sent
}

/// Returns the channel to the parent, for `wild`. `None` in a process that is no worker.
#[cfg(feature = "crash-points")]
pub(in crate::pool) fn channel() -> Option<&'static Channel> {
    CHANNEL.get().copied()
}

/// Returns the worker's result ring, for `wild`. `None` in a process that is no worker.
#[cfg(feature = "crash-points")]
pub(in crate::pool) fn stream() -> Option<&'static ResultRing> {
    LENDING.get().map(|(stream, _)| &**stream)
}

/// In a worker: its result ring, which counts the result descriptors that the parent holds, and their maximum number.
static LENDING: OnceLock<(Arc<ResultRing>, u64)> = OnceLock::new();

/// Returns whether a result may use a descriptor where a copy would do. False while the parent holds many descriptors of this
/// worker's results that were not taken yet.
///
/// The caller may be any thread. True in a process that is no worker.
#[must_use]
pub fn may_lend() -> bool {
    LENDING.get().is_none_or(|(stream, most)| {
        let cell = stream.state();
        cell.sent.load(Ordering::Relaxed).saturating_sub(cell.received.load(Ordering::Relaxed)) < *most
    })
}

/// Returns the name of the function that a worker process runs.
///
/// The function never returns to its caller: it ends the process. It is called in the parent to get its name, and runs
/// in the worker.
///
/// # Errors
/// [`FunctionError`] if the function has no name that another process can resolve.
pub(in crate::pool) fn worker_function() -> Result<Function, FunctionError> {
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
///
/// If the initializer called [`serve`], its own outcome is that of the process. If it fails without that, the process
/// sends `UNFIT` and ends with exit code 0, as the failure is reported already.
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

/// The rest of the worker's life after its initialization: [`WorkerLoop::new`], then [`WorkerLoop::serve`].
type Rest = Box<dyn FnOnce() -> io::Result<()>>;

thread_local! {
    /// While the initializer runs: serves the tasks.
    ///
    /// Taken by [`serve`], or by [`run`] after the initializer. So tasks are served once.
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

/// Runs the initializer. Its panic, like its error, becomes the reason with which the pool's tasks fail.
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
///
/// Exists from the start of the process until [`WorkerLoop::new`], which takes all fields. The fields are those of
/// [`WorkerLoop`].
struct Plan {
    channel: &'static Channel,
    board: TaskTable,
    orders: Orders,
    stream: Arc<ResultRing>,
    bell: EventFd,
    number: u32,
    /// Number of items after which the worker retires; 0 for no limit.
    max_tasks: u64,
    /// Runs after the last task. Resolved when the loop is created.
    finalizer: Option<Function>,
}

impl Plan {
    /// Opens the descriptors that the pool has sent. Returns the initializer with its argument, too.
    /// Descriptors are taken in the order in which [`Setup`] lists them; the remaining ones
    /// belong to the initializer's argument.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the setup is malformed or descriptors are missing; the errors of mapping the
    /// memory, of `setpriority(2)` and of `sched_setaffinity(2)`. The process then ends before it is ready.
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

/// The state of the worker between tasks. Owned by the main thread, from `READY` to the end of the process.
struct WorkerLoop {
    /// Carries questions, descriptors and log records to the parent, and answers from it.
    channel: &'static Channel,
    /// The table that all workers and the parent write.
    board: TaskTable,
    /// Task descriptors and arguments, which this process can only read.
    orders: Orders,
    /// The ring and the state of this worker. The reference in [`LENDING`] is to the same object.
    stream: Arc<ResultRing>,
    /// The parent's `eventfd(2)`, which wakes the pool's thread.
    bell: EventFd,
    /// The number in its claims, below [`WORKERS`](crate::pool::shared::claim::WORKERS).
    number: u32,
    /// Number of items that remain until the worker retires; `None` if unlimited.
    left: Option<u64>,
    finalizer: Option<ResolvedFunction>,
    /// The functions of earlier tasks.
    functions: FunctionCache,
    /// Passed to functions without a context.
    no_context: Context,
    /// Large results, in the worker's own memory file.
    blocks: ResultBlocks,
    /// Results were written since the parent was last notified.
    is_unannounced: bool,
    /// Monotonic nanoseconds. When the worker last became busy.
    busy_since: u64,
    /// The buffer for the argument of the running task; empty between tasks except for its capacity.
    argument: Vec<u8>,
    /// The buffer for the result of the running item. Its first [`WORD_LEN`] bytes are space for the record's word.
    out: Payload,
}

/// Adds to a counter that only this worker writes, so no atomic addition is needed.
fn count(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// Wakes the parent to read the results.
///
/// Unlike [`WorkerLoop::notify`], also when the parent wants to sleep until few tasks are left: used when this
/// worker would wait for the parent otherwise.
fn ring(board: &TaskTable, bell: &EventFd) {
    board.doorbell().ring(|| true, || bell.ring());
}

impl WorkerLoop {
    /// Prepares the worker for tasks, and reports to the parent that it is ready.
    ///
    /// # Errors
    /// The finalizer cannot be resolved, or the parent has exited.
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
            functions: FunctionCache::default(),
            no_context: Context::default(),
            blocks: ResultBlocks::new(),
            is_unannounced: false,
            busy_since: clock::monotonic_nanos(),
            argument: Vec::new(),
            out: Payload::default(),
        })
    }

    fn state(&self) -> &WorkerState {
        self.stream.state()
    }

    /// Runs tasks until the worker must retire, then runs the finalizer.
    ///
    /// # Errors
    /// [`MemoryError`] if the orders or the ring cannot be used. The item that ran is lost with the process.
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

    /// Returns whether the worker must exit before it claims another task: the parent requested it, or it has run its
    /// number of items.
    fn is_to_retire(&self) -> bool {
        // Pairs with the Release in `end_worker`. Only the flag is used.
        self.state().retire.load(Ordering::Acquire) != 0 || self.left == Some(0)
    }

    /// Blocks until there is a task. Returns its slot and position, or `None` if the worker must retire.
    ///
    /// Announces results before each claim and again, at once, before it sleeps; so results of short tasks share a
    /// wake-up of the parent, and none is left unannounced while the worker sleeps.
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
    ///
    /// Polls the table for up to 30 us first, if the process may use several processors and fewer than four workers
    /// poll. The first poller spins for 5 us before it yields, the others yield from the start. Then it sleeps on the
    /// event count of the board. A worker that has slept once without a task returns its free memory to the system.
    ///
    /// Blocks that the parent has returned are freed before each sleep: the parent wakes idle workers for that if a
    /// process waits for memory.
    fn idle(&mut self) {
        let something = || self.board.table().waiting() > 0 || self.is_to_retire();
        let poll = |place| spin_until(place > 0, something);
        if *HAS_SPARE_PROCESSOR && self.board.lookers().look(self.number, poll) {
            return;
        }
        self.begin_idle();
        process::begin_wait();
        // Each sleep also ends after a signal or an interval.
        let (mut slept, interval) = (false, RecheckInterval::new(RECHECK_AFTER));
        while self.board.table().waiting() == 0 && !self.is_to_retire() {
            self.blocks.take_back(&self.stream);
            if std::mem::replace(&mut slept, true) {
                self.blocks.trim(&self.stream);
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

    /// Counts the time since the worker became busy, and enters [`WorkerPhase::Idle`]. The parent may retire it after a
    /// while.
    fn begin_idle(&mut self) {
        let now = clock::monotonic_nanos();
        count(&self.state().busy, now.saturating_sub(self.busy_since));
        self.state().since.store(now, Ordering::Relaxed);
        // Pairs with the Acquire in `idle_for`.
        self.state().phase.store(WorkerPhase::Idle as u32, Ordering::Release);
    }

    /// Enters [`WorkerPhase::Busy`]. Also called once at the start, which ends [`WorkerPhase::Initialising`].
    fn begin_busy(&mut self) {
        self.busy_since = clock::monotonic_nanos();
        self.state().since.store(self.busy_since, Ordering::Relaxed);
        // Pairs with the Acquire in `stats`.
        self.state().phase.store(WorkerPhase::Busy as u32, Ordering::Release);
    }

    /// Notifies the parent of new results, unless it does not want to be woken yet.
    ///
    /// Results are announced if `at_once`, if few tasks are left on the table, or if more than half of the ring is
    /// unread; see [`ASLEEP_UNTIL_LOW`](crate::pool::shared::doorbell::ASLEEP_UNTIL_LOW). Otherwise they stay marked in `is_unannounced`, and
    /// a later call announces them.
    fn notify(&mut self, at_once: bool) {
        if !self.is_unannounced {
            return;
        }
        let is_low = || {
            at_once
                || self.board.table().waiting() <= self.board.low_water().load(Ordering::Relaxed)
                || self.stream.unread() > RING_LEN / 2
        };
        self.is_unannounced = !self.board.doorbell().ring(is_low, || self.bell.ring());
        crash::point(Step::ParentTold);
    }

    /// Changes the word `current` of the cell. Returns false if the parent has cut the task. Blocks permanently if the parent
    /// has marked this worker for killing.
    ///
    /// The word says which item a kill would hit. `from` is the word that this worker stored last.
    ///
    /// - Unchanged: the worker goes on to `to`.
    /// - Cut: the items after the current one belong to the parent. The worker may only change to [`IDLE`].
    /// - [`REVOKED`](result_ring::REVOKED): a `SIGKILL` follows. The worker must neither begin nor end an item, so it
    ///   never returns. Another word than these was written by a faulty process, and has the same effect.
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

    /// Runs the task that this worker has claimed, and writes a result for each item until the last one or the cut.
    ///
    /// 1. Writes the start time if the task is limited, then declares item 0 in `current`.
    /// 2. Writes the *begin* record. Once it is written, a death costs item 0; before, no item.
    /// 3. Copies the argument out of shared memory, where it stays until the task has ended. Requests descriptors and
    ///    function.
    /// 4. For each item: declares it, if the parent needs to know the item; calls the function; writes the result.
    /// 5. Counts, and declares itself idle. Results are not announced here, but in [`WorkerLoop::next`].
    ///
    /// `item` counts from the first item of this order, which may be a later item of the task. Descriptors go to the
    /// first item only.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if the argument is malformed; otherwise the errors of the orders and of the ring.
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
        let mut fds =
            if order.flags & WITH_FDS != 0 { questions::argument_fds(self.channel, position) } else { Ok(Vec::new()) };
        let channel = self.channel;
        let known = self.functions.get(order.function, |id| questions::function(channel, id));
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
        self.is_unannounced = true;
        if argument.capacity() <= KEPT {
            self.argument = argument;
        }
        self.declare(running, IDLE);
        crash::point(Step::TaskAnswered);
        Ok(())
    }

    /// Calls the function with one item, and writes the result.
    ///
    /// The function appends its result to the buffer `out`, behind the space for the record's word, so that a plain
    /// result is written without another copy. A panic is caught, and is a result, too. `fds` are the descriptors of
    /// the argument, or why there are none.
    ///
    /// # Errors
    /// [`MemoryError`] if the ring cannot be written.
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
    ///
    /// For all results that are not plain: with descriptors, log records or many bytes, or without room in the ring.
    /// Descriptors are sent over the channel *before* the record that announces them, so that the parent finds them
    /// when it reads the record. A result whose descriptors or bytes cannot be sent is replaced by
    /// [`ResultKind::Refused`] with the reason.
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
        match self.blocks.lend(&self.stream, &out.bytes[WORD_LEN..], || ring(&self.board, &self.bell)) {
            Ok(offset) => {
                self.write(|stream| stream.write_end_in_block(kind, flags, offset, len as u64))?;
                if budget::is_room_awaited() {
                    ring(&self.board, &self.bell); // once the parent has read this block, there is room
                }
                Ok(())
            }
            Err(error) => {
                let why = format!("could not allocate {len} bytes for the result: {}", error_chain(&error));
                self.refuse(flags, &why)
            }
        }
    }

    /// Writes that an item could not be run, or that its result could not be sent. Blocks until there is room.
    fn refuse(&self, flags: u8, why: &str) -> Result<(), MemoryError> {
        let mut record = [&[0; WORD_LEN][..], why.as_bytes()].concat();
        self.write(|stream| stream.write_end(ResultKind::Refused, flags, &mut record))
    }

    /// Writes a record. Blocks until there is room.
    ///
    /// `write` is repeated as long as it returns false. The worker sleeps until half of the ring is free, so that it
    /// does not wake for each record that the parent reads.
    fn write(&self, mut write: impl FnMut(&ResultRing) -> Result<bool, MemoryError>) -> Result<(), MemoryError> {
        while !write(&self.stream)? {
            ring(&self.board, &self.bell);
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
