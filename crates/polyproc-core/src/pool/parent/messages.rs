//! Messages of workers, and the answers. The table of messages is in `task`. No message is trusted: a malformed or
//! unexpected message is ignored, and a question that refers to a task of another worker gets an empty answer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::driver::{Driver, Logged};
use super::scheduler::{Place, SchedulerEvent};
use super::state::PoolState;
use super::tasks::Task;
use crate::conn::{Arrival, Message};
use crate::pool::shared::claim::TableWords;
use crate::pool::shared::task::{PoolEvent, decode_unfit, tag};
use crate::prim::Ordering;
use crate::process::tag as process;

/// More messages than fit in a channel.
pub(super) const CHANNEL_MESSAGES: usize = 1024;

impl Driver {
    /// Reads at most `most` messages of a worker. Returns false if no more will come.
    ///
    /// Never blocks. Also called by a thread that reads a result whose descriptors or log records are in the channel.
    /// Stops early if the descriptors of too many results wait ([`WorkerHandle::has_many_fds`]): the caller must read
    /// the ring first. A worker for whose descriptors there is no result is discarded.
    pub(super) fn hear_channel(&self, pool: &mut PoolState, at: usize, most: usize) -> bool {
        for _ in 0..most {
            let Some(worker) = pool.workers.get_mut(at) else { return false };
            if worker.has_many_fds() {
                // Their results are read first. If none is unread, the descriptors belong to no result, since the next result
                // alone cannot have that many: the worker is faulty.
                if !worker.stream.is_anything_unread() {
                    pool.discard(at);
                }
                return true;
            }
            match worker.child.channel().try_receive_any() {
                Ok(Some(Arrival::Whole(message))) => self.on_message(pool, at, message),
                Ok(Some(Arrival::FdsLost(tag::RESULT_FDS))) => {
                    let why = "the result's descriptors could not be received: too many open files".to_owned();
                    worker.fds.push_back(Err(why));
                }
                Ok(Some(Arrival::FdsLost(_))) => {} // a log record that was sent in a memory file
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Ok(None) | Err(_) => return false,
            }
        }
        true
    }

    /// Handles a message of the worker at place `at`.
    ///
    /// The table of messages is in `task`. The tags from `RETURNED` to `STACK_OVERFLOW` are the last messages of any
    /// process; they only say how it ends, and are used after its death.
    ///
    /// Its side effects on the pool: `READY` ends the series of deaths that [`UNFIT_LIMIT`] counts; `UNFIT` ends the
    /// pool; descriptors of a result stay in [`WorkerHandle::fds`] until its record is read.
    fn on_message(&self, pool: &mut PoolState, at: usize, message: Message) {
        let Some(worker) = pool.workers.get_mut(at) else { return };
        match message.tag {
            tag::READY => {
                pool.notifications.events.push(PoolEvent::WorkerReady { pid: worker.child.pid() });
                pool.unfit = 0;
                self.handle(pool, SchedulerEvent::Ready(Place(at)));
            }
            tag::UNFIT => {
                if let Ok(why) = decode_unfit(message.payload) {
                    pool.no_workers = Some(why);
                    self.handle(pool, SchedulerEvent::Broken);
                }
            }
            tag::RESULT_FDS => worker.fds.push_back(Ok(message.payload.fds)),
            tag::LOG => {
                let pid = worker.child.pid();
                self.on_log_message(pool, pid, message.payload.bytes);
            }
            tag::NEED_FDS => self.send_fds(pool, at, &message.payload.bytes),
            tag::NEED_FUNCTION => {
                let id = message.payload.bytes.first_chunk().map(|id| u64::from_le_bytes(*id)).unwrap_or_default();
                self.answer(pool, at, tag::FUNCTION, &self.functions.answer(id), &[]);
            }
            process::RETURNED..=process::STACK_OVERFLOW => {
                // A malformed message is ignored.
                let _ = worker.exit_report.on_message(message);
            }
            _ => {}
        }
    }

    /// Answers a question of a worker without blocking. Kills a worker that does not read its answers. If the answer cannot be
    /// sent for another reason, sends an empty one, with which the task fails in the worker.
    ///
    /// `head` begins with the 8 bytes that identify the question, if the answer has any; the empty answer keeps them.
    fn answer(&self, pool: &PoolState, at: usize, tag: u8, head: &[u8], fds: &[BorrowedFd<'_>]) {
        let Some(worker) = pool.workers.get(at) else { return };
        let channel = worker.child.channel();
        let sent = channel.try_send(tag, head, fds).or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Err(error),
            _ => channel.try_send(tag, head.get(..8).unwrap_or_default(), &[]),
        });
        if sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            worker.kill();
        }
    }

    /// Queues a log record of a worker, which begins with the 8 bytes of the position of the worker's task.
    ///
    /// The record is for the callback of the call whose task is out at that position. If there is no such task, or its
    /// call has no callback, the pool's callback gets it. It is delivered after the lock is released, and before the
    /// result of its item: see [`Driver::deliver_logs`].
    fn on_log_message(&self, pool: &mut PoolState, pid: u32, mut record: Vec<u8>) {
        let Some(position) = record.split_first_chunk().map(|(position, _)| u64::from_le_bytes(*position)) else {
            return;
        };
        record.drain(..8);
        let call = self.task_at(pool, position).and_then(|task| pool.calls.get(task.call()));
        let on_log = call.and_then(|call| call.settings().on_log.clone());
        self.add_log(pool, Logged { pid, record, on_log });
    }

    /// Returns the task at a position, if it is out.
    ///
    /// The slot number is read from shared memory and may be wrong. The result is still the task of that position,
    /// since the position is compared with the parent's own record.
    fn task_at<'a>(&self, pool: &'a PoolState, position: u64) -> Option<&'a Task> {
        let slot = self.board.number(position).load(Ordering::Relaxed);
        Some(pool.tasks.at(slot as usize, position)?.1)
    }

    /// Sends a worker the descriptors of the argument of the task that it has claimed.
    ///
    /// `position` is the head of the worker's question. If the worker has not claimed that task, or if the head is
    /// malformed, the answer has no descriptors.
    fn send_fds(&self, pool: &PoolState, at: usize, position: &[u8]) {
        let Some(worker) = pool.workers.get(at) else { return };
        let position = position.try_into().map(u64::from_le_bytes);
        let task = position.ok().and_then(|position| {
            let task = self.task_at(pool, position)?;
            let slot = task.out()?.slot;
            (self.board.table().holder(slot, position) == Some(worker.number)).then_some(task)
        });
        let fds: Vec<_> = task.iter().flat_map(|task| task.fds.iter().map(AsFd::as_fd)).collect();
        self.answer(pool, at, tag::FDS, &[], &fds);
    }
}
