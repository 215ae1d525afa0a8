//! The fence: every system call and every `unsafe` block of the engine stands in this module.
//!
//! | file | what it wraps |
//! |---|---|
//! | `available` | how much memory there is for this process |
//! | `bounds` | umask, limits, processors, niceness |
//! | `bytes` | memory files that nobody else can write, as slices |
//! | `pid_slot` | one shared word, in which the kernel records a child's id |
//! | `clock` | the monotonic clock |
//! | `clone` | `clone3(2)` and `clone(2)` for the zygote, `fork(2)` |
//! | `credentials` | users and groups |
//! | `crash` | dying at a marked step, for tests |
//! | `env` | the environment of this process |
//! | `exec` | `posix_spawn(3)` of the own executable |
//! | `exit` | `_exit(2)`, `atexit(3)` |
//! | `fd` | standard streams, `close_range(2)`, `memfd_create(2)` |
//! | `futex` | sleeping on a shared word and waking its waiters |
//! | `process_stamp` | which process wrote something, and whether it lives |
//! | `image` | loaded images: their addresses, build ids, constructors |
//! | `lease` | who has a memory file, and what was written to a private mapping of it |
//! | `parent_death` | dying together with the parent |
//! | `memory` | memory files and their mappings |
//! | `pagemap` | whether pages were written to |
//! | `per_process` | statics that each process has of its own |
//! | `pidfd` | process descriptors: wait, signal, exit status |
//! | `priority` | niceness, processors, memory of a process |
//! | `region` | a mapped part of a file |
//! | `robust` | the kernel's help for locks whose owner dies |
//! | `shared` | what may be viewed in shared memory |
//! | `signal` | masks, dispositions, the stack-overflow handler |
//! | `socket` | one message with descriptors over a `SOCK_SEQPACKET` pair |
//! | `status` | exit status and signals |
//! | `title` | the command line that `ps` shows |
//! | `prefault` | keeping code mapped in the zygote's children |
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
pub(crate) mod process_stamp;
mod region;
pub(crate) mod robust;
pub(crate) mod shared;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod status;
pub(crate) mod title;
pub(crate) mod watch;

/// What an atomic pointer to leaked memory leads to.
pub(crate) fn leaked<T: Sync>(pointer: *mut T) -> Option<&'static T> {
    // SAFETY: every pointer passed here is null or came from `Box::leak`, or from a mapping that is never taken back, stored with Release and loaded with Acquire, and
    // nobody ever takes the box back or writes through it.
    unsafe { pointer.as_ref() }
}

/// This thread's id, which no other thread of the process has.
pub(crate) fn thread_id() -> u32 {
    robust::Me::new().tid()
}

/// The user that this process acts as.
pub(crate) fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Fills `bytes` with random ones that nobody can guess (`getrandom(2)`).
pub(crate) fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    let got =
        rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty()))?;
    if got == bytes.len() { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}
