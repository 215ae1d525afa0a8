//! The kernel's help for locks whose owner dies: this thread's robust list.
//!
//! Each thread registers a list of the locks that it holds (`set_robust_list(2)`; libc has done so already, for its own
//! robust mutexes). When the thread dies, the kernel goes through the list: a word with the thread's id in it is marked
//! [`OWNER_DIED`], and one sleeper is woken. One more entry, `list_op_pending`, is for a lock that is just being taken or
//! released; if the thread dies when that word names no owner, the kernel wakes one sleeper, so that a wake-up that this
//! thread had got, or was about to give, goes to another (Linux 5.5).
//!
//! An entry is the address of a list node at a fixed distance from the futex word: libc's choice, read from the list's
//! head. Our locks are taken and released in strictly nested order, so a list with links in one direction is enough, and
//! the way back is remembered in private memory: what a peer writes to a node never reaches anybody but the kernel, at our
//! death, and then costs us at most the recovery of locks.
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
/// The kernel's mark: the owner died.
pub(crate) const OWNER_DIED: u32 = libc::FUTEX_OWNER_DIED;
/// The thread that owns the word; 0 for nobody.
pub(crate) const OWNER: u32 = libc::FUTEX_TID_MASK;

shared! {
    /// A futex word, the list node that the kernel wants beside it, and room for what the lock guards, in one cache line.
    ///
    /// | offset | bytes | field | who writes it, when |
    /// |---|---|---|---|
    /// | 0 | 4 | word | see the user of this |
    /// | 8 | 16 | near | what the lock guards |
    /// | 24 | 16 | node | the owner, while it holds the lock: a list node (at 32, or at 28 with musl). Only the kernel reads it, when the owner dies |
    /// | 40 | 24 | far | what the lock guards |
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
    list: AtomicPtr<u8>,
    futex_offset: AtomicPtr<u8>, // a C `long`, never changed
    list_op_pending: AtomicPtr<u8>,
}

/// What is known of a thread: its id, and the head of its list, which lives as long as the thread.
#[derive(Clone, Copy)]
struct Thread {
    /// The process that it is a thread of: in a copy of that, its id is another.
    process: u32,
    tid: u32,
    head: *const ListHead,
}
const UNKNOWN: Thread = Thread { process: 0, tid: 0, head: ptr::null() };

thread_local! {
    static THREAD: Cell<Thread> = const { Cell::new(UNKNOWN) };
}

/// Whether no thread has this id.
#[cold]
pub(crate) fn is_gone(tid: u32) -> bool {
    // SAFETY: the call takes a number; nothing is changed. Not libc's function: musl's only fails.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, tid.cast_signed()) };
    policy == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

#[cold]
fn introduce() -> Thread {
    let (mut head, mut len) = (ptr::null::<ListHead>(), 0usize);
    // SAFETY: the call fills two words of ours.
    let got = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    if got != 0 || head.is_null() {
        head = register();
    }
    let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
    let thread = Thread { process: super::identity::process_id(), tid, head };
    THREAD.set(thread);
    thread
}

/// A list of our own, where libc has none yet (musl makes one with the first robust mutex). It leaks with the thread.
fn register() -> *const ListHead {
    let head: &ListHead = Box::leak(Box::new(ListHead {
        list: AtomicPtr::new(ptr::null_mut()),
        futex_offset: AtomicPtr::new(ptr::without_provenance_mut(32usize.wrapping_neg())),
        list_op_pending: AtomicPtr::new(ptr::null_mut()),
    }));
    head.list.store(ptr::from_ref(head).cast::<u8>().cast_mut(), Ordering::Relaxed);
    // SAFETY: the head lives for ever.
    unsafe { libc::syscall(libc::SYS_set_robust_list, ptr::from_ref(head), size_of::<ListHead>()) };
    head
}

/// This thread's part in robust locking. It does not leave its thread.
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

/// What the list was before a [`Me::link`].
#[derive(Debug)]
pub(crate) struct Outer(*mut u8);

impl Me {
    #[inline]
    pub(crate) fn new() -> Self {
        let mut thread = THREAD.get();
        if thread.process != super::identity::process_id() {
            thread = introduce();
        }
        // SAFETY: the kernel gave or took the address as this thread's; libc keeps it until the thread ends, and a `Me`
        // does not leave its thread.
        let head = unsafe { &*thread.head };
        Self { tid: thread.tid, head, not_send: PhantomData }
    }

    /// This thread's id, as the kernel writes it in futex words.
    #[inline]
    pub(crate) fn tid(&self) -> u32 {
        self.tid
    }

    /// The node of `word`, as an address.
    #[inline]
    fn node(&self, word: &RobustWord) -> *mut u8 {
        let offset = self.head.futex_offset.load(Ordering::Relaxed).addr();
        ptr::from_ref(word).cast::<u8>().cast_mut().wrapping_byte_sub(offset)
    }

    /// From now until [`Me::settle`]: if this thread dies when `word` names it, the word is marked; when the word names
    /// nobody, one sleeper is woken.
    #[inline]
    pub(crate) fn announce(&self, word: &RobustWord) {
        self.head.list_op_pending.store(self.node(word), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst); // before whatever is done to the word; the kernel runs on this thread
    }

    /// Ends [`Me::announce`].
    #[inline]
    pub(crate) fn settle(&self) {
        compiler_fence(Ordering::SeqCst);
        self.head.list_op_pending.store(ptr::null_mut(), Ordering::Relaxed);
    }

    /// Puts `word`, which this thread has just taken, in the list.
    #[inline]
    pub(crate) fn link(&self, word: &RobustWord) -> Outer {
        let outer = self.head.list.load(Ordering::Relaxed);
        let node = self.node(word);
        let own = ptr::from_ref(&word.node).addr();
        debug_assert!((own..=own + 8).contains(&node.addr()), "libc's list nodes stand elsewhere");
        // SAFETY: libc's distance (32 on glibc, 28 on musl) puts the node in `word.node`; nobody else writes it
        // while we own the word.
        unsafe { node.cast::<*mut u8>().write_unaligned(outer) };
        compiler_fence(Ordering::SeqCst);
        self.head.list.store(node, Ordering::Relaxed);
        Outer(outer)
    }

    /// Takes the innermost word out of the list again.
    #[inline]
    pub(crate) fn unlink(&self, outer: &Outer) {
        self.head.list.store(outer.0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }
}
