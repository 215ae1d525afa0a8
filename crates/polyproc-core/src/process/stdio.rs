//! The standard streams of a new process.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Stdio;
use super::error::{StartError, os};
use crate::sys::fd;

/// A descriptor for a new process's stream: this process's own stream, or an owned descriptor.
pub(super) enum ChildStream {
    Own(BorrowedFd<'static>),
    Made(OwnedFd),
}

impl ChildStream {
    pub(super) fn into_owned(self) -> Option<OwnedFd> {
        match self {
            Self::Own(_) => None,
            Self::Made(fd) => Some(fd),
        }
    }
}

impl AsFd for ChildStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => *fd,
            Self::Made(fd) => fd.as_fd(),
        }
    }
}

/// Returns the three descriptors for the process, and the two memory files of captured output and error for the parent.
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
