//! The fence: every system call of the engine is in this room, and every `unsafe` block except for those of `function.rs` and
//! `process/boot.rs`. The test `fences` checks it. SAFETY.md lists the invariants from which the `SAFETY` comments argue.
//!
//! The room wraps and checks; it makes no decision of a protocol. All rooms above use it, and it uses only atomics and
//! deadlines. A function that fails returns the system's error and has changed nothing, unless its documentation says
//! otherwise.
//!
//! | file | contents |
//! |---|---|
//! | `available` | the memory available to this process |
//! | `bounds` | umask, limits, processors, niceness |
//! | `bytes` | memory files that no other process can write, as slices |
//! | `clock` | the monotonic clock |
//! | `clone` | `clone3(2)` and `clone(2)` for the zygote, `fork(2)` |
//! | `crash` | dying at a marked step, for tests |
//! | `credentials` | users and groups |
//! | `env` | the environment of this process |
//! | `exec` | `posix_spawn(3)` of the program's own executable |
//! | `exit` | `_exit(2)`, `atexit(3)` |
//! | `fd` | standard streams, `close_range(2)`, `memfd_create(2)` |
//! | `futex` | sleeping on a shared word and waking its waiters |
//! | `image` | loaded images: their addresses, build ids, constructors |
//! | `lease` | whether a process has a descriptor or a mapping of a lent file |
//! | `memory` | memory files and their mappings |
//! | `pagemap` | whether pages were written to |
//! | `parent_death` | dying together with the parent |
//! | `per_process` | statics with a separate value in each process |
//! | `pid_slot` | one shared word, in which the kernel records a child's id |
//! | `pidfd` | process descriptors: wait, signal, exit status |
//! | `prefault` | keeping code mapped in the zygote's children |
//! | `priority` | niceness, processors, memory of a process |
//! | `proc_stat` | fields of `/proc/PID/stat` |
//! | `process_stamp` | the identity of a process in shared memory, and whether it lives |
//! | `region` | a mapped part of a file |
//! | `robust` | the robust list, by which the kernel marks locks of dead owners |
//! | `shared` | types that may be viewed in shared memory |
//! | `signal` | masks, dispositions, the stack-overflow handler |
//! | `socket` | one message with descriptors over a `SOCK_SEQPACKET` pair |
//! | `status` | exit status and signals |
//! | `title` | the command line that `ps` shows |
//! | `watch` | `poll(2)`, `epoll(7)`, `eventfd(2)` |
#![expect(unsafe_code, reason = "every system call and raw pointer of the engine is in this module")]

pub(crate) mod available;
pub(crate) mod bounds;
pub(crate) mod bytes;
pub(crate) mod clock;
pub(crate) mod clone;
pub(crate) mod crash;
pub(crate) mod credentials;
pub(crate) mod env;
pub(crate) mod exec;
pub(crate) mod exit;
pub(crate) mod fd;
pub(crate) mod futex;
pub(crate) mod image;
pub(crate) mod lease;
pub(crate) mod memory;
pub(crate) mod pagemap;
pub(crate) mod parent_death;
pub(crate) mod per_process;
pub(crate) mod pid_slot;
pub(crate) mod pidfd;
pub(crate) mod prefault;
pub(crate) mod priority;
mod proc_stat;
pub(crate) mod process_stamp;
mod region;
pub(crate) mod robust;
pub(crate) mod shared;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod status;
pub(crate) mod title;
pub(crate) mod watch;

/// Returns what an atomic pointer to leaked memory leads to; `None` for null. The pointer is null, or the address of a `T` that
/// is never freed and to which no exclusive reference exists, and was loaded with Acquire (SAFETY.md, 6).
pub(crate) fn leaked<T: Sync>(pointer: *mut T) -> Option<&'static T> {
    // SAFETY: every pointer passed here is null or came from `Box::leak`, or from a mapping that is never taken back, stored with Release and loaded with Acquire, and
    // nobody ever takes the box back or writes through it.
    unsafe { pointer.as_ref() }
}

/// Returns this thread's id, which no other thread of the PID namespace has while it lives. Cached for each thread.
pub(crate) fn thread_id() -> u32 {
    robust::Me::new().tid()
}

/// Returns the effective user id of this process.
pub(crate) fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Fills `bytes` with random ones that no process can predict (`getrandom(2)`), at most 256 of them at a time.
///
/// # Errors
/// [`std::io::ErrorKind::UnexpectedEof`] if a signal handler interrupted a longer request.
pub(crate) fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    let got =
        rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty()))?;
    if got == bytes.len() { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}
