//! Memory for users: [`SharedMemory`], which all its holders read and write, and [`SharedBytes`], which no process can change.
//!
//! The memory of both is reserved at creation, so no access fails later. It is not in flight: the budget counts it only for
//! the memory limit of workers ([`PrivateBytes`]). The kernel frees it when no process has it open.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::budget::PrivateBytes;
use crate::sys::bytes::{SealedBytes, UnsealedBytes};
use crate::sys::memory::{self, Mapping};

/// Bytes that any number of processes read and write at the same time. A read during a write may return a mix of old and new
/// bytes: synchronise with a lock or a queue.
#[derive(Debug, Clone)]
pub struct SharedMemory(Arc<MemoryFile>);

#[derive(Debug)]
struct MemoryFile {
    memfd: OwnedFd,
    mapping: Mapping,
    /// The accounting, in the process that created the memory.
    _made: Option<PrivateBytes>,
}

/// The range is not inside the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at offset {offset} are not inside {size} bytes of shared memory")]
pub struct OutOfBounds {
    /// Start of the range in bytes.
    pub offset: usize,
    /// Length of the range in bytes.
    pub len: usize,
    /// Length of the memory in bytes.
    pub size: usize,
}

impl SharedMemory {
    /// Creates shared memory of `len` zero bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `len` is 0; else if the system has no memory or no descriptor left.
    pub fn new(len: usize) -> io::Result<Self> {
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "shared memory must have at least one byte"));
        }
        memory::check_available(len as u64)?; // before the file gets its length
        let memfd = memory::create(c"polyproc-memory", len as u64)?;
        memory::allocate(memfd.as_fd(), 0, len as u64)?;
        Self::map(memfd, Some(PrivateBytes::new(len as u64)))
    }

    /// Maps the memory of a descriptor that came from another process.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if it is not a memory file that is sealed against shrinking.
    pub fn from_fd(memfd: OwnedFd) -> io::Result<Self> {
        Self::map(memfd, None)
    }

    fn map(memfd: OwnedFd, made: Option<PrivateBytes>) -> io::Result<Self> {
        let (len, _) = memory::inspect(memfd.as_fd())?;
        let mapping = Mapping::new(memfd.as_fd(), 0, len)?;
        Ok(Self(Arc::new(MemoryFile { memfd, mapping, _made: made })))
    }

    /// Returns the length in bytes, which never changes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        usize::try_from(self.0.mapping.end()).unwrap_or(usize::MAX)
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    /// [`OutOfBounds`]; then nothing was written.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let outside = OutOfBounds { offset, len: bytes.len(), size: self.len() };
        self.0.mapping.store(offset as u64, bytes).ok_or(outside)
    }

    /// Returns a copy of the `len` bytes from `offset` on.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn read_at(&self, offset: usize, len: usize) -> Result<Vec<u8>, OutOfBounds> {
        let mut bytes = Vec::new();
        let outside = OutOfBounds { offset, len, size: self.len() };
        self.0.mapping.load(offset as u64, len, &mut bytes).ok_or(outside)?;
        Ok(bytes)
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.memfd.as_fd()
    }
}

/// A buffer to fill and then turn into [`SharedBytes`]. Only this process has it: in a forked child it is empty.
#[derive(Debug)]
pub struct SharedBytesMut(UnsealedBytes, PrivateBytes);

impl SharedBytesMut {
    /// Creates a buffer of `len` zero bytes, which starts at a page boundary.
    ///
    /// # Errors
    /// If the system has no memory or no descriptor left.
    pub fn new(len: usize) -> io::Result<Self> {
        Ok(Self(UnsealedBytes::new(len)?, PrivateBytes::new(len as u64)))
    }

    /// Seals the bytes: from now on no process can change them, and they can be sent to other processes.
    ///
    /// # Errors
    /// If the system refuses to seal or map them.
    pub fn freeze(self) -> io::Result<SharedBytes> {
        Ok(SharedBytes(Arc::new((self.0.seal()?, Some(self.1)))))
    }
}

impl Deref for SharedBytesMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl DerefMut for SharedBytesMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }
}

/// Bytes that no process can change: the kernel forbids it. Sending them takes some microseconds whatever their length: only a
/// descriptor is sent, and the receiver maps the same memory. They start at a page boundary.
#[derive(Debug, Clone)]
pub struct SharedBytes(Arc<(SealedBytes, Option<PrivateBytes>)>);

impl SharedBytes {
    /// Maps the bytes of a descriptor that came from another process.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if a process could change them.
    pub fn from_fd(memfd: OwnedFd) -> io::Result<Self> {
        Ok(Self(Arc::new((SealedBytes::map(memfd)?, None))))
    }
}

impl Deref for SharedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.0.as_slice()
    }
}

impl AsFd for SharedBytes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_changed_is_refused() {
        let memory = SharedMemory::new(100).expect("memory");
        let copy = || memory.as_fd().try_clone_to_owned().expect("a descriptor");
        assert_eq!(SharedBytes::from_fd(copy()).expect_err("not sealed").kind(), io::ErrorKind::InvalidData);
        let other = SharedMemory::from_fd(copy()).expect("the same");
        other.write_at(98, &[1, 2]).expect("inside");
        assert_eq!(memory.read_at(97, 3), Ok(vec![0, 1, 2]));
        assert!(memory.write_at(99, &[1, 2]).is_err() && memory.read_at(usize::MAX, 2).is_err());
        let file = crate::sys::memory::create_with(&[0; 100]).expect("a file");
        assert!(SharedMemory::from_fd(file).is_err(), "it could be made shorter");
    }

    #[test]
    fn huge_pages_are_refused() {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
        let Ok(file) = memfd_create(c"huge", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB)
        else {
            return eprintln!("not tried: the system has no huge pages");
        };
        ftruncate(&file, 2 << 20).expect("no page is needed for that");
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::WRITE).expect("a new file");
        let copy = file.try_clone().expect("a descriptor");
        assert_eq!(SharedBytes::from_fd(copy).expect_err("huge").kind(), io::ErrorKind::InvalidData);
        assert_eq!(SharedMemory::from_fd(file).expect_err("huge").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn bytes_are_written_and_read_at_any_place() {
        let memory = SharedMemory::new(61).expect("memory");
        let mut model = vec![0; 61];
        for (start, len) in (0..61).flat_map(|start| (0..=61 - start).map(move |len| (start, len))) {
            let bytes: Vec<u8> = (0..len).map(|at| u8::try_from((start * 7 + at * 3) % 251).expect("small")).collect();
            memory.write_at(start, &bytes).expect("inside");
            model[start..start + len].copy_from_slice(&bytes);
            assert_eq!(memory.read_at(0, 61).as_ref(), Ok(&model));
            assert_eq!(memory.read_at(start, len).as_deref(), Ok(&bytes[..]));
        }
    }

    #[test]
    fn frozen_bytes_stay() {
        for len in [0, 1, 100_000] {
            let mut bytes = SharedBytesMut::new(len).expect("memory");
            bytes.fill(7);
            let bytes = bytes.freeze().expect("nobody else has them");
            let other =
                SharedBytes::from_fd(bytes.as_fd().try_clone_to_owned().expect("a descriptor")).expect("sealed");
            assert!(other.len() == len && other.iter().all(|byte| *byte == 7));
        }
    }
}
