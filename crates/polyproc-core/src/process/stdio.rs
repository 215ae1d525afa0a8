//! The standard streams of a new process: resolves the user's [`Stdio`] to descriptors, in the parent, before the process is
//! created.
//!
//! A captured stream is a memory file that both processes have open. It needs no reader while the process runs, so the process
//! never blocks on it; it grows with the output. [`Child::captured`](super::Child::captured) reads it from the parent's copy.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Stdio;
use super::error::{StartError, os};
use crate::sys::fd;

/// A descriptor for a new process's stream: this process's own stream, or an owned descriptor. Lives until the order is sent or
/// the process is forked, which copies it.
pub(super) enum ChildStream {
    /// A standard stream of this process. A forked child keeps it as it is.
    Own(BorrowedFd<'static>),
    /// A descriptor that the user gave or this module created.
    Made(OwnedFd),
}

impl ChildStream {
    /// Returns the descriptor that replaces the stream in a forked child; `None` for this process's own stream.
    pub(super) fn into_owned(self) -> Option<OwnedFd> {
        match self {
            Self::Own(_) => None,
            Self::Made(fd) => Some(fd),
        }
    }
}

/// The descriptor that becomes the stream in the new process.
impl AsFd for ChildStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => *fd,
            Self::Made(fd) => fd.as_fd(),
        }
    }
}

/// Returns the three descriptors for the process, and the two memory files of captured output and error for the parent, each
/// `None` if its stream is not captured. An inherited stream that this process has closed becomes `/dev/null`, except in a
/// forked child, where it stays closed. Captured standard input is `/dev/null` too.
///
/// Consumes the user's descriptors: they are closed in this process when the returned streams are dropped, also if the start
/// fails.
///
/// # Errors
/// [`StartError::Os`] when `/dev/null` cannot be opened, or there is no descriptor or memory.
pub(super) fn streams(stdio: [Stdio; 3]) -> Result<([ChildStream; 3], [Option<File>; 2]), StartError> {
    let mut captured = [None, None];
    let [stdin, stdout, stderr] = stdio;
    let null = || Ok::<_, StartError>(ChildStream::Made(fd::dev_null().map_err(os("opening /dev/null"))?));
    let mut stream = |number: i32, stdio| {
        Ok::<_, StartError>(match stdio {
            Stdio::Fd(fd) => ChildStream::Made(fd),
            Stdio::Captured if number > 0 => {
                let memory = fd::memfd(c"polyproc-captured").map_err(os("creating a memory file"))?;
                let copy = memory.try_clone().map_err(os("copying a descriptor"))?;
                captured[usize::from(number == 2)] = Some(File::from(copy));
                ChildStream::Made(memory)
            }
            Stdio::Inherit => fd::standard_stream(number).map_or_else(null, |own| Ok(ChildStream::Own(own)))?,
            Stdio::Captured | Stdio::Null => null()?,
        })
    };
    let streams = [stream(0, stdin)?, stream(1, stdout)?, stream(2, stderr)?];
    Ok((streams, captured))
}
