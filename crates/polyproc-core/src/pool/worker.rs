//! The child's loop: take a task off the board, run its items, write how each ended; until told to retire.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use super::board::{Board, LIMITED, Order, WITH_FDS};
use super::stream::{self, Cell, DOOMED, IDLE, INLINE_LEN, Kind, Phase, RING_LEN, Stream};
use super::task::{Setup, decode_function, next_item, tag};
use crate::conn::Channel;
use crate::deadline::Deadline;
use crate::frame::{Context, Input, Payload, Verdict};
use crate::prim::{AtomicBool, AtomicU64, Ordering};
use crate::process::{Outcome, ResolvedFunction, panic};
use crate::robust::{HAS_SPARE_PROCESSOR, Spin, WaitError};
use crate::shm::{Blocks, Extent, MemoryError};
use crate::sys::clock;
use crate::sys::watch::Bell;

/// How long a worker without a task sleeps before it looks for itself. No wake-up is lost but by a death, which the parent
/// sees and then wakes everybody: this is for the case that it does not.
const SLICE: Duration = Duration::from_secs(5);
/// So many functions with their contexts are kept.
const KNOWN: usize = 64;
/// Memory above this is given back after use.
const KEPT: usize = 4 << 20;

/// Where [`log`] sends to.
static CHANNEL: OnceLock<&'static Channel> = OnceLock::new();
/// Something was logged since the last item ended.
static LOGGED: AtomicBool = AtomicBool::new(false);

/// In a worker: has the parent's [`on_log`](super::PoolSettings::on_log) called with `record`, before the result of the task
/// that runs is seen. False in any other process, or when the parent is gone.
pub fn log(record: &[u8]) -> bool {
    let sent = CHANNEL.get().is_some_and(|channel| channel.send(tag::LOG, record, &[]).is_ok());
    if sent {
        LOGGED.store(true, Ordering::Release);
    }
    sent
}

/// Serves tasks until the pool says otherwise. The outcome is for the process, not for a task.
pub(crate) fn run(channel: &'static Channel, setup: Payload) -> Outcome {
    let _ = CHANNEL.set(channel); // once per process
    match Worker::set_up(channel, setup).and_then(|worker| worker.map_or(Ok(()), Worker::serve)) {
        Ok(()) => Outcome::Returned(Payload::default()),
        Err(error) => Outcome::Refused(error.to_string()),
    }
}

/// A function that was found, and what all its calls have in common.
struct Known {
    function: Result<ResolvedFunction, String>,
    context: Context,
}

struct Worker<'a> {
    channel: &'a Channel,
    board: Board,
    stream: Stream,
    bell: Bell,
    number: u32,
    /// How many items are left to run, where that is limited.
    left: Option<u64>,
    finalizer: Option<ResolvedFunction>,
    known: HashMap<u64, Known>,
    blocks: Blocks,
    /// Large results that the parent has not read, by offset.
    lent: HashMap<u64, Extent>,
    spin: Spin,
    /// Something was written since the parent was told.
    untold: bool,
    busy_since: u64,
    argument: Vec<u8>,
    out: Payload,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

impl<'a> Worker<'a> {
    /// `None` when the initializer failed, which was said.
    fn set_up(channel: &'a Channel, payload: Payload) -> io::Result<Option<Self>> {
        let setup = Setup::decode(&payload.head)?;
        let mut fds = payload.fds.into_iter();
        let mut next = || fds.next().ok_or(io::ErrorKind::InvalidData);
        let (board, stream, bell) = (Board::open(next()?)?, Stream::open(next()?)?, Bell::from(next()?));
        if let Some(nice) = setup.nice {
            crate::sys::priority::set_nice(nice)?;
        }
        crate::sys::priority::pin(&setup.cpus)?;
        stream.cell().phase.store(Phase::Initialising as u32, Ordering::Relaxed);
        if let Some((function, argument)) = setup.initializer {
            let outcome = match function.resolve() {
                Err(error) => Outcome::Refused(error.to_string()),
                Ok(function) => {
                    let input = Payload { head: argument, fds: fds.collect() };
                    match panic::catch(true, || function.call_once(input)) {
                        Ok(Ok(payload)) => Outcome::Returned(payload),
                        Ok(Err(payload)) => Outcome::Raised(payload),
                        Err(panic) => Outcome::Panicked(panic),
                    }
                }
            };
            if !matches!(outcome, Outcome::Returned(_)) {
                let (kind, bytes, _) = outcome.parts();
                channel.send(tag::UNFIT, &[&[kind], &*bytes].concat(), &[])?;
                return Ok(None);
            }
        }
        let finalizer = setup.finalizer.map(|function| function.resolve()).transpose().map_err(io::Error::other)?;
        channel.send(tag::READY, &[], &[])?;
        Ok(Some(Self {
            channel,
            board,
            stream,
            bell,
            number: setup.number,
            left: (setup.max_tasks > 0).then_some(setup.max_tasks),
            finalizer,
            known: HashMap::new(),
            blocks: Blocks::new(stream::FIRST_BLOCK),
            lent: HashMap::new(),
            spin: Spin::new(),
            untold: false,
            busy_since: clock::monotonic_nanos(),
            argument: Vec::new(),
            out: Payload::default(),
        }))
    }

    fn cell(&self) -> &Cell {
        self.stream.cell()
    }

    fn serve(mut self) -> io::Result<()> {
        self.begin_busy();
        self.cell().ready.store(self.busy_since, Ordering::Relaxed);
        while let Some((slot, position)) = self.next() {
            self.run_task(slot, position).map_err(io::Error::other)?;
        }
        if let Some(finalizer) = self.finalizer {
            // A panic there is printed; nobody waits for more.
            let _ = panic::catch(false, || finalizer.call_once(Payload::default()));
        }
        Ok(())
    }

    fn is_to_retire(&self) -> bool {
        self.cell().retire.load(Ordering::Acquire) != 0 || self.left == Some(0)
    }

    /// The next task, once there is one; `None` when it is time to go.
    fn next(&mut self) -> Option<(u32, u64)> {
        loop {
            if self.is_to_retire() {
                self.tell(true);
                return None;
            }
            if let Some(claimed) = self.board.table().claim(self.number) {
                self.tell(false);
                return Some(claimed);
            }
            self.tell(true);
            self.begin_idle();
            self.idle();
            self.begin_busy();
        }
    }

    /// Waits until there may be something to do.
    fn idle(&self) {
        let something = || self.board.table().waiting() > 0 || self.is_to_retire();
        let spinner = self.board.spinner();
        let me = u64::from(self.number) + 1;
        if *HAS_SPARE_PROCESSOR && spinner.compare_exchange(0, me, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            let found = self.spin.until(something);
            let _ = spinner.compare_exchange(me, 0, Ordering::SeqCst, Ordering::Relaxed);
            if found {
                return;
            }
        }
        let look = || Ok::<_, WaitError>(something().then_some(()));
        // Signals and the end of the slice: look again.
        let _ = self.board.sleepers().wait(Deadline::after(SLICE), SLICE, look);
    }

    fn begin_idle(&mut self) {
        let now = clock::monotonic_nanos();
        count(&self.cell().busy, now.saturating_sub(self.busy_since));
        self.cell().since.store(now, Ordering::Relaxed);
        self.cell().phase.store(Phase::Idle as u32, Ordering::Release);
    }

    fn begin_busy(&mut self) {
        self.busy_since = clock::monotonic_nanos();
        self.cell().since.store(self.busy_since, Ordering::Relaxed);
        self.cell().phase.store(Phase::Busy as u32, Ordering::Release);
    }

    /// Tells the parent that there is something to read, if it wants to know.
    fn tell(&mut self, at_once: bool) {
        if !self.untold {
            return;
        }
        let is_low = || {
            at_once
                || self.board.table().waiting() <= self.board.low_water().load(Ordering::Relaxed)
                || self.stream.unread() > RING_LEN / 2
        };
        self.untold = !self.board.doorbell().ring(is_low, || self.bell.ring());
    }

    /// Changes what the cell says that this worker runs. When the parent has doomed it, waits for the end.
    fn declare(&self, from: u64, to: u64) {
        if self.cell().current.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire) == Err(DOOMED) {
            loop {
                std::thread::park();
            }
        }
    }

    fn run_task(&mut self, slot: u32, position: u64) -> Result<(), MemoryError> {
        let order = self.board.read(slot)?;
        let mut argument = std::mem::take(&mut self.argument);
        argument.clear();
        self.board.read_argument(slot, &order, &mut argument)?;
        let mut running = stream::running(position, 0);
        self.declare(IDLE, running);
        self.write(|stream| stream.write_begin(slot))?;
        let mut fds = if order.flags & WITH_FDS != 0 { self.ask_for_fds(position) } else { Ok(Vec::new()) };
        self.know(&order);
        let mut rest = &argument[..];
        for item in 0..order.items {
            if order.flags & LIMITED != 0 {
                self.cell().started.store(clock::monotonic_nanos(), Ordering::Relaxed);
                let next = stream::running(position, item);
                if item > 0 {
                    self.declare(running, next);
                }
                running = next;
            }
            let bytes = next_item(&mut rest).map_err(|_| MemoryError::Corrupt)?;
            self.run_item(&order, bytes, std::mem::replace(&mut fds, Ok(Vec::new())))?;
        }
        count(&self.cell().items, order.items.into());
        count(&self.cell().bytes_in, argument.len() as u64);
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(order.items.into());
        }
        self.untold = true;
        if argument.capacity() <= KEPT {
            self.argument = argument;
        }
        self.declare(running, IDLE);
        Ok(())
    }

    /// Finds the function of a task, unless it is known already.
    fn know(&mut self, order: &Order) {
        if self.known.contains_key(&order.function) {
            return;
        }
        let mut bytes = Vec::new();
        let segment = self.board.segment();
        let read =
            segment.copy_out(order.function_at, order.function_len, &mut bytes).map_err(|error| error.to_string());
        let decoded = read.and_then(|()| decode_function(&bytes).map_err(|error| error.to_string()));
        let known = match decoded {
            Err(why) => Known { function: Err(why), context: Context::default() },
            Ok((function, context)) => Known {
                function: function.resolve().map_err(|error| error.to_string()),
                context: Context::new(context),
            },
        };
        if self.known.len() >= KNOWN {
            self.known.clear();
        }
        self.known.insert(order.function, known);
    }

    fn ask_for_fds(&self, position: u64) -> Result<Vec<OwnedFd>, String> {
        let ask = || -> io::Result<Vec<OwnedFd>> {
            self.channel.send(tag::NEED_FDS, &position.to_le_bytes(), &[])?;
            let answer = self.channel.receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if answer.tag == tag::FDS { Ok(answer.payload.fds) } else { Err(io::ErrorKind::InvalidData.into()) }
        };
        ask().map_err(|error| format!("the argument's descriptors could not be received: {error}"))
    }

    fn run_item(&mut self, order: &Order, bytes: &[u8], fds: Result<Vec<OwnedFd>, String>) -> Result<(), MemoryError> {
        self.out.head.clear();
        let known = self.known.get(&order.function).ok_or(MemoryError::Corrupt)?;
        let kind = match (&known.function, fds) {
            (Err(why), _) => {
                self.out.head.extend(why.as_bytes());
                Kind::Refused
            }
            (_, Err(why)) => {
                self.out.head.extend(why.into_bytes());
                Kind::Refused
            }
            (Ok(function), Ok(fds)) => {
                let input = Input { bytes, fds, context: &known.context };
                let out = &mut self.out;
                match panic::catch(true, || function.call(input, out)) {
                    Ok(Verdict::Returned) => Kind::Returned,
                    Ok(Verdict::Raised) => Kind::Raised,
                    Err(panic) => {
                        self.out = Payload::from(panic.encode());
                        Kind::Panicked
                    }
                }
            }
        };
        self.answer(kind)
    }

    /// Writes how an item ended: `self.out`.
    fn answer(&mut self, kind: Kind) -> Result<(), MemoryError> {
        let fds = std::mem::take(&mut self.out.fds);
        let mut flags = if LOGGED.swap(false, Ordering::AcqRel) { stream::LOGGED } else { 0 };
        if !fds.is_empty() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            if let Err(error) = self.channel.send(tag::RESULT_FDS, &[], &borrowed) {
                let why = format!("the result's descriptors could not be sent to the parent: {error}");
                return self.write(|stream| stream.write_end(Kind::Refused, flags, why.as_bytes()));
            }
            flags |= stream::WITH_FDS;
        }
        let out = std::mem::take(&mut self.out);
        let len = out.head.len();
        count(&self.cell().bytes_out, len as u64);
        if len <= INLINE_LEN {
            self.write(|stream| stream.write_end(kind, flags, &out.head))?;
        } else {
            match self.lend(&out.head) {
                Ok(offset) => {
                    self.write(|stream| stream.write_end_in_block(kind, flags, offset, len as u64))?;
                }
                Err(error) => {
                    let why = format!("there is no memory for the result ({len} bytes): {error}");
                    self.write(|stream| stream.write_end(Kind::Refused, flags, why.as_bytes()))?;
                }
            }
        }
        if out.head.capacity() <= KEPT {
            self.out = out;
        }
        Ok(())
    }

    /// Puts bytes in a block of its own.
    fn lend(&mut self, bytes: &[u8]) -> Result<u64, MemoryError> {
        while let Some(extent) = self.stream.take_back().and_then(|offset| self.lent.remove(&offset)) {
            self.blocks.free(self.stream.segment(), extent);
        }
        let extent = self.blocks.allocate(self.stream.segment(), bytes.len() as u64)?;
        self.lent.insert(extent.offset, extent);
        self.stream.segment().copy_in(extent.offset, bytes)?;
        Ok(extent.offset)
    }

    /// Writes a record; waits for room.
    fn write(&self, write: impl Fn(&Stream) -> Result<bool, MemoryError>) -> Result<(), MemoryError> {
        while !write(&self.stream)? {
            self.board.doorbell().ring(|| true, || self.bell.ring());
            let has_room = || Ok::<_, WaitError>((self.stream.unread() <= RING_LEN / 2).then_some(()));
            let _ = self.stream.space().wait(Deadline::after(SLICE), SLICE, has_room);
        }
        Ok(())
    }
}
