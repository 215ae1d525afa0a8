//! The robust list, by which the kernel marks the locks of a thread that dies.
//!
//! Each thread registers a list of the locks that it holds (`set_robust_list(2)`; libc has done so already, for its own
//! robust mutexes). When the thread dies, the kernel walks the list: it marks each word that contains the thread's id as
//! [`OWNER_DIED`] and wakes one waiter. One more entry, `list_op_pending`, is the lock that the thread is acquiring or
//! releasing. If the thread dies while that word names no owner, the kernel wakes one waiter, so that a wake-up that the
//! thread had received, or was about to send, goes to another (Linux 5.5).
//!
//! An entry is the address of a list node at a fixed distance from the futex word. libc chooses the distance; it is read from
//! the list's head. A thread acquires and releases the engine's locks in strictly nested order, so the list is linked in one
//! direction only and the link back is kept in private memory. A peer may overwrite a node, but only the kernel reads it, when
//! the owner dies; at worst, the locks of that thread are not marked.
//!
//! Source: Linux `Documentation/locking/robust-futexes.rst` (I. Molnar, T. Gleixner, 2006) and `kernel/futex/core.c`.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ptr;

use crate::prim::{AtomicPtr, AtomicU32, AtomicU64, Ordering, compiler_fence};

use super::shared::shared;

/// There may be waiters: unlocking must wake one.
pub(crate) const WAITERS: u32 = libc::FUTEX_WAITERS;
/// The owner died: set by the kernel.
pub(crate) const OWNER_DIED: u32 = libc::FUTEX_OWNER_DIED;
/// The id of the thread that owns the word; 0 if it has no owner.
pub(crate) const OWNER: u32 = libc::FUTEX_TID_MASK;

shared! {
    /// A futex word, the list node that the kernel requires beside it, and room for the guarded data, in one cache line.
    ///
    /// | offset | bytes | field | writer, and when |
    /// |---|---|---|---|
    /// | 0 | 4 | word | see the type that contains this |
    /// | 8 | 16 | near | guarded data |
    /// | 24 | 16 | node | the owner, while it holds the lock: a list node (at 32, or at 28 with musl). Only the kernel reads it, when the owner dies |
    /// | 40 | 24 | far | guarded data |
    pub(crate) struct RobustWord {
        pub(crate) word: AtomicU32,
        unused: AtomicU32,
        pub(crate) near: [AtomicU64; 2],
        node: [AtomicU64; 2],
        pub(crate) far: [AtomicU64; 3],
    }
}
const _: () = assert!(size_of::<RobustWord>() == 64);

/// `struct robust_list_head` of `linux/futex.h`, in the thread's private memory.
#[repr(C)]
struct ListHead {
    /// The first entry: the lock acquired last. An empty list points to itself.
    list: AtomicPtr<u8>,
    /// The distance from an entry to its futex word, in bytes, negative. libc chose it.
    futex_offset: AtomicPtr<u8>, // a C `long`, never changed
    /// The entry of the lock that the thread is acquiring or releasing; null for none.
    list_op_pending: AtomicPtr<u8>,
}

/// A thread: its id, and the head of its robust list, which lives as long as the thread.
#[derive(Clone, Copy)]
struct Thread {
    /// The id of the thread's process. In a copy of the process the thread has another id.
    process: u32,
    /// The id of the thread, as in futex words; 0 if it is not known yet.
    tid: u32,
    /// The registered head. Only this thread and the kernel access it.
    head: *const ListHead,
}
/// A thread that has not used the robust list yet.
const UNKNOWN: Thread = Thread { process: 0, tid: 0, head: ptr::null() };

thread_local! {
    /// This thread, as of its last [`introduce`].
    static THREAD: Cell<Thread> = const { Cell::new(UNKNOWN) };
}

/// Returns whether no thread has this id. False for a living thread, and for one whose id was reused. A waiter calls it rarely,
/// for the case that the kernel could not mark the word (`robust::Mutex`).
#[cold]
pub(crate) fn is_gone(tid: u32) -> bool {
    // SAFETY: the call takes a number and changes nothing. (libc's own function always fails with musl.)
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, tid.cast_signed()) };
    policy == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

/// Asks the kernel for the id of this thread and the head of its list, and caches both. Called at a thread's first lock, and
/// again in a copy of the process.
#[cold]
fn introduce() -> Thread {
    let (mut head, mut len) = (ptr::null::<ListHead>(), 0usize);
    // SAFETY: the call fills two words that this function owns.
    let got = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    if got != 0 || head.is_null() {
        head = register();
    }
    let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
    let thread = Thread { process: super::process_stamp::process_id(), tid, head };
    THREAD.set(thread);
    thread
}

/// Registers a list where libc has none yet (musl creates one with the first robust mutex). Each thread leaks its list.
fn register() -> *const ListHead {
    let head: &ListHead = Box::leak(Box::new(ListHead {
        list: AtomicPtr::new(ptr::null_mut()),
        futex_offset: AtomicPtr::new(ptr::without_provenance_mut(32usize.wrapping_neg())),
        list_op_pending: AtomicPtr::new(ptr::null_mut()),
    }));
    head.list.store(ptr::from_ref(head).cast::<u8>().cast_mut(), Ordering::Relaxed);
    // SAFETY: the head is never freed.
    unsafe { libc::syscall(libc::SYS_set_robust_list, ptr::from_ref(head), size_of::<ListHead>()) };
    head
}

/// This thread, as an owner of robust locks. Neither `Send` nor `Sync`. Each lock operation makes one; a guard keeps it until
/// the release.
///
/// The sequence of a lock is `announce`, compare-and-swap of the word, [`Me::link`], [`Me::settle`]; that of a release is
/// `announce`, [`Me::unlink`], store to the word, `settle`. Locks are released in the reverse order of acquisition. The state
/// that a death leaves between any two of these steps is in `docs/design/lock.md`, "Mutex".
#[derive(Clone, Copy)]
pub(crate) struct Me {
    tid: u32,
    head: &'static ListHead,
    not_send: PhantomData<*const ()>,
}

impl fmt::Debug for Me {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Me").field(&self.tid).finish()
    }
}

/// The first entry of the list before a [`Me::link`]: the next outer lock. The guard keeps it in private memory.
#[derive(Debug)]
pub(crate) struct Outer(*mut u8);

impl Me {
    /// Returns this thread. After the first call in this thread and process it makes no system call, if process ids can be
    /// cached.
    #[inline]
    pub(crate) fn new() -> Self {
        let mut thread = THREAD.get();
        if thread.process != super::process_stamp::process_id() {
            thread = introduce();
        }
        // SAFETY: the address is registered with the kernel for this thread. The head lives until the thread ends, and a `Me`
        // does not leave its thread.
        let head = unsafe { &*thread.head };
        Self { tid: thread.tid, head, not_send: PhantomData }
    }

    /// Returns this thread's id, as the kernel expects it in futex words.
    #[inline]
    pub(crate) fn tid(&self) -> u32 {
        self.tid
    }

    /// Returns the address of the node of `word`.
    #[inline]
    fn node(&self, word: &RobustWord) -> *mut u8 {
        let offset = self.head.futex_offset.load(Ordering::Relaxed).addr();
        ptr::from_ref(word).cast::<u8>().cast_mut().wrapping_byte_sub(offset)
    }

    /// Announces `word` to the kernel until [`Me::settle`]. If this thread dies in between, the kernel marks the word if it
    /// names this thread, and wakes one waiter if it names no owner.
    #[inline]
    pub(crate) fn announce(&self, word: &RobustWord) {
        self.head.list_op_pending.store(self.node(word), Ordering::Relaxed);
        // Before any access to the word. Pairs with no other thread: the kernel reads the list on this thread, when it
        // dies, so a compiler fence is enough.
        compiler_fence(Ordering::SeqCst);
    }

    /// Ends [`Me::announce`]. After a release, the word may be unmapped from now on.
    #[inline]
    pub(crate) fn settle(&self) {
        // After the last access to the word. For the kernel, as in `announce`.
        compiler_fence(Ordering::SeqCst);
        self.head.list_op_pending.store(ptr::null_mut(), Ordering::Relaxed);
    }

    /// Adds `word`, which this thread has just acquired, to the list. It stays mapped at its address until [`Me::unlink`]: the
    /// kernel follows the address when the thread dies. Returns the value for `unlink`.
    #[inline]
    pub(crate) fn link(&self, word: &RobustWord) -> Outer {
        let outer = self.head.list.load(Ordering::Relaxed);
        let node = self.node(word);
        let own = ptr::from_ref(&word.node).addr();
        debug_assert!((own..=own + 8).contains(&node.addr()), "libc's list nodes stand elsewhere");
        // SAFETY: libc's distance (32 on glibc, 28 on musl) puts the node in `word.node`, which only the owner of the word
        // writes, and that is this thread.
        unsafe { node.cast::<*mut u8>().write_unaligned(outer) };
        // The node points to the rest of the list before the list points to the node. For the kernel, as in `announce`.
        compiler_fence(Ordering::SeqCst);
        self.head.list.store(node, Ordering::Relaxed);
        Outer(outer)
    }

    /// Removes the word that was added last from the list, before the word is released. `outer` is the value of its
    /// [`Me::link`].
    #[inline]
    pub(crate) fn unlink(&self, outer: &Outer) {
        self.head.list.store(outer.0, Ordering::Relaxed);
        // Before the word is released: from then on another owner writes the node. For the kernel, as in `announce`.
        compiler_fence(Ordering::SeqCst);
    }
}
