//! How the receiving end of a queue's socket is readable while there is news: messages, or the queue is closed.
//!
//! A *ring* is a message in the socket. The word `rung` says that one is in the socket, or about to be sent, so that only one
//! process makes the system call. A producer makes news, passes a full barrier, then reads `polled` and sets `rung`. A
//! consumer that has emptied the socket clears `rung`, passes a full barrier, then *re-checks* for news; so does a process
//! that has set `polled`. The socket itself is in `bell`: `ring` sends a ring.
//!
//! `ring` and `get` call these functions with closures that make the system calls. Without a process that polls, each costs
//! one load. A ring that is lost with a dead process is replaced by the poller's re-check ([`QueueLayout::ring_for_news`]). A
//! superfluous ring only wakes pollers in vain.

use super::layout::QueueLayout;
use crate::prim::{Ordering, fence};

impl QueueLayout {
    /// Returns the number of messages that consumers can take.
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        // Both pair with the Release in `commit`. The consumers' count is read first, so that it never exceeds the
        // producers'.
        let taken = self.get.count.load(Ordering::Acquire);
        let waiting = self.put.count.load(Ordering::Acquire).wrapping_sub(taken);
        // Pairs with the Release in `count_returned` and `take_returned`. Only the number is used.
        waiting.saturating_add(self.tasks.returned.load(Ordering::Acquire).into())
    }

    /// Returns whether the receiving end should be readable for pollers.
    pub(crate) fn has_news(&self) -> bool {
        // Pairs with the Release in `close`. Only the flag is used.
        self.len() > 0 || self.settings.closed.load(Ordering::Acquire) != 0
    }

    /// Returns whether any process has asked for the descriptor to poll. Once true, it stays so.
    fn is_polled(&self) -> bool {
        self.settings.polled.load(Ordering::Relaxed) != 0
    }

    /// Makes the receiving end readable for pollers, if there are any and no ring is in the socket. Needs no lock. If a
    /// process dies between the swap and the system call, the word stays 1 and the socket empty, until a poller re-checks.
    #[inline]
    pub(crate) fn ring_once(&self, ring: impl FnOnce()) {
        // The swap pairs with the store of 0 and the fence in `ring_for_news`, the load of `polled` with the fence in
        // `start_ringing`. The caller has made news, then passed a full barrier: a fence, or the release of a lock with a
        // wake-up.
        if self.is_polled() && self.polled.rung.swap(1, Ordering::SeqCst) == 0 {
            ring();
        }
    }

    /// Rings again after rings were removed from the socket. The caller holds the consumers' lock. Called after a search for
    /// descriptors, which removes the rings before them.
    pub(crate) fn ring_again(&self, ring: impl FnOnce()) {
        if self.is_polled() && self.has_news() {
            // Pairs with the swap in `ring_once`: producers leave the ring to this process.
            self.polled.rung.swap(1, Ordering::SeqCst);
            ring();
        }
    }

    /// Makes the receiving end readable, from now on, while there is news.
    pub(crate) fn start_ringing(&self, ring: impl FnOnce()) {
        // Between setting `polled` and the check. Pairs with the barrier between a commit and `ring_once`, by the
        // release of the producers' lock and `wake_one`: the producer reads `polled` as 1, or this process finds the
        // message.
        self.settings.polled.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.has_news() {
            self.ring_once(ring);
        }
    }

    /// Makes the receiving end unreadable if the queue is empty and not closed, and a process polls: calls `empty`, which
    /// removes the rings from the socket. The caller holds the consumers' lock.
    #[inline]
    pub(crate) fn silence(&self, empty: impl FnOnce(), ring: impl FnOnce()) {
        let ends = self.settings.closed.load(Ordering::Relaxed) != 0; // then it stays readable
        if !self.is_polled() || ends || self.len() != 0 {
            return;
        }
        empty();
        self.ring_for_news(ring);
    }

    /// Rings if there is news, although the socket is empty. Called by the owner of the consumers' lock, or by a poller that
    /// has found the socket empty.
    pub(crate) fn ring_for_news(&self, ring: impl FnOnce()) {
        // Pairs with the swap in `ring_once`. It is a swap as well, since loom would order a store before a swap that has not
        // read it; on x86-64 both are one instruction.
        self.polled.rung.swap(0, Ordering::SeqCst);
        fence(Ordering::SeqCst); // a producer whose message `has_news` misses reads `rung` as 0
        if self.has_news() {
            self.ring_once(ring);
        }
    }
}
