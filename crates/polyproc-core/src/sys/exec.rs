//! `posix_spawn(3)` of this program's own executable. Like `vfork(2)`, it does not copy the caller's memory, so it takes the
//! same time in a large program as in a small one.
//!
//! The only caller is the supervisor thread, on behalf of the start method `spawn` and of the fork server
//! (`process/launch.rs`): the kernel sends the parent-death signal of a process when the thread that created it ends, and the
//! supervisor thread never ends. The new program takes its descriptors in `process/boot.rs`.
//!
//! The new program gets: path, arguments and environment as given; descriptors 3, 4, ... and the standard streams of this
//! process; no blocked signal, and the default action of `SIGPIPE`; user, directory, umask and limits of this process. Handlers
//! of signals are reset by `execve(2)`. All other descriptors are closed where libc can do so ([`gives_nothing_else`]).
//!
//! Nothing is allocated between the copy of the process and `execve(2)`: libc performs the steps of [`FileActions`] and
//! [`Attributes`], which are listed before the copy.

use std::ffi::{CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr;
use std::sync::LazyLock;

/// A program to execute: its path, arguments, environment and descriptors. Lives from the request of a start to [`spawn`].
#[derive(Debug)]
pub(crate) struct Program {
    /// The file, which is not searched in `PATH`.
    pub(crate) path: OsString,
    /// The arguments, the name of the program first.
    pub(crate) argv: Vec<OsString>,
    /// Name and value of each variable of the new environment; nothing of this process's is added.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Passed to the new program as descriptors 3, 4, ... in this order. This process's own are close-on-exec, and closed by
    /// [`spawn`].
    pub(crate) fds: Vec<OwnedFd>,
}

/// The number that the first of [`Program::fds`] has in the new program.
pub(crate) const FIRST_FD: i32 = 3;

/// Converts a string for libc.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if it contains a NUL byte.
fn c_string(text: OsString) -> io::Result<CString> {
    Ok(CString::new(text.into_vec())?)
}

/// Converts the result of a `posix_spawn` function, which is the number of the error and not in `errno`.
fn check(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// Returns the array of pointers that `execve(2)` takes. The pointers are valid as long as `strings`. The type is that of the C
/// declaration; nothing writes through them.
fn null_terminated(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings.iter().map(|s| s.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

/// The C type of `posix_spawn_file_actions_addclosefrom_np(3)`.
type AddCloseFrom = unsafe extern "C" fn(*mut libc::posix_spawn_file_actions_t, libc::c_int) -> libc::c_int;

/// `posix_spawn_file_actions_addclosefrom_np(3)`, which glibc has from 2.34 on. Looked up at run time, so that a program that
/// was built with a newer glibc runs with an older one.
static ADD_CLOSE_FROM: LazyLock<Option<AddCloseFrom>> = LazyLock::new(|| {
    // SAFETY: the name is a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"posix_spawn_file_actions_addclosefrom_np".as_ptr()) };
    // SAFETY: null is `None`; any other value is the address of the function of that name, which has this type.
    unsafe { std::mem::transmute::<*mut libc::c_void, Option<AddCloseFrom>>(found) }
});

/// Returns whether a new program gets no descriptors but [`Program::fds`] and the standard streams. Otherwise it must close the
/// inherited ones itself. Parent and child use the same libc, so the child's answer is valid for its parent.
pub(crate) fn gives_nothing_else() -> bool {
    ADD_CLOSE_FROM.is_some()
}

/// An initialised `posix_spawn_file_actions_t`: steps that libc performs in the new process, in the order in which they were
/// added, before `execve(2)`. Used for one [`spawn`].
struct FileActions(MaybeUninit<libc::posix_spawn_file_actions_t>);

impl FileActions {
    /// Creates an empty list.
    fn new() -> io::Result<Self> {
        let mut actions = Self(MaybeUninit::uninit());
        // SAFETY: the call initialises the object that the pointer leads to.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.0.as_mut_ptr()) })?;
        Ok(actions)
    }

    /// Closes the descriptors from `first` on, where libc can. These are the ones that some code of the program opened without
    /// close-on-exec.
    fn close_from(&mut self, first: i32) -> io::Result<()> {
        match *ADD_CLOSE_FROM {
            // SAFETY: `new` initialised the object.
            Some(add) => check(unsafe { add(self.0.as_mut_ptr(), first) }),
            None => Ok(()),
        }
    }

    /// Makes descriptor `to` a copy of `from`, without close-on-exec.
    fn dup2(&mut self, from: i32, to: i32) -> io::Result<()> {
        // SAFETY: `new` initialised the object.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), from, to) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: `new` initialised the object.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

/// An initialised `posix_spawnattr_t`: no signal is blocked and `SIGPIPE` has its default action, as with std's `Command`.
/// Without it the new program would inherit the supervisor thread's mask, in which all signals are blocked.
struct Attributes(MaybeUninit<libc::posix_spawnattr_t>);

/// The attributes that libc applies: the signal mask and the default actions.
#[expect(
    clippy::cast_possible_truncation,
    reason = "two small bits; libc types the constants as int, the argument as short"
)]
const FLAGS: libc::c_short = (libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF) as libc::c_short;

impl Attributes {
    /// Creates the attributes, which are the same for each program.
    fn new() -> io::Result<Self> {
        let mut attributes = Self(MaybeUninit::uninit());
        // SAFETY: the call initialises the object that the pointer leads to.
        check(unsafe { libc::posix_spawnattr_init(attributes.0.as_mut_ptr()) })?;
        let mut set = super::signal::SignalSet::empty();
        // SAFETY: both objects are initialised.
        check(unsafe { libc::posix_spawnattr_setsigmask(attributes.0.as_mut_ptr(), set.as_ptr()) })?;
        set.add(libc::SIGPIPE);
        // SAFETY: both objects are initialised.
        check(unsafe { libc::posix_spawnattr_setsigdefault(attributes.0.as_mut_ptr(), set.as_ptr()) })?;
        // SAFETY: the object is initialised.
        check(unsafe { libc::posix_spawnattr_setflags(attributes.0.as_mut_ptr(), FLAGS) })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: `new` initialised the object.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

/// Starts `program` in a new process and returns its id. The process is a child of this one, and the caller must have it
/// reaped. [`Program::fds`] are closed in this process in any case.
///
/// # Errors
/// If `execve(2)` itself fails, for example as the file does not exist: then no process is left. `EMFILE` if there is no room
/// for the copies of the descriptors; `EAGAIN` or `ENOMEM` if the system refuses a process; [`io::ErrorKind::InvalidInput`] if
/// a path, argument or variable contains a NUL byte.
pub(crate) fn spawn(program: Program) -> io::Result<u32> {
    // A descriptor whose number is another one's new number would be overwritten before it is copied: move all of them up.
    let first_free = FIRST_FD + i32::try_from(program.fds.len()).map_err(io::Error::other)?;
    let moved: Vec<_> =
        program.fds.iter().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, first_free)).collect::<Result<_, _>>()?;
    let mut actions = FileActions::new()?;
    for (fd, number) in moved.iter().zip(FIRST_FD..) {
        actions.dup2(fd.as_raw_fd(), number)?;
    }
    actions.close_from(first_free)?;
    let attributes = Attributes::new()?;
    let path = c_string(program.path)?;
    let argv: Vec<_> = program.argv.into_iter().map(c_string).collect::<io::Result<_>>()?;
    let env: Vec<_> = program
        .env
        .into_iter()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            c_string(name)
        })
        .collect::<io::Result<_>>()?;
    let (argv_pointers, env_pointers) = (null_terminated(&argv), null_terminated(&env));
    let mut pid: libc::pid_t = 0;
    // SAFETY: path, argv and env are null-terminated and outlive the call; actions and attributes are initialised.
    check(unsafe {
        libc::posix_spawn(
            &raw mut pid,
            path.as_ptr(),
            actions.0.as_ptr(),
            attributes.0.as_ptr(),
            argv_pointers.as_ptr(),
            env_pointers.as_ptr(),
        )
    })?;
    Ok(pid.cast_unsigned())
}
