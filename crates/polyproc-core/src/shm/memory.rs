//! Memory for users: [`SharedMemory`], which all its holders read and write, and [`SharedBytes`], which nobody can change.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::budget::PrivateBytes;
use crate::sys::bytes::{SealedBytes, UnsealedBytes};
use crate::sys::memory::{self, Mapping};

/// Bytes that any number of processes read and write at the same time. A read beside a write gives some of each: agree on
/// who does what when, with a lock or a queue.
#[derive(Debug, Clone)]
pub struct SharedMemory(Arc<MemoryFile>);

#[derive(Debug)]
struct MemoryFile {
    memfd: OwnedFd,
    mapping: Mapping,
    /// In the process that made it.
    _made: Option<PrivateBytes>,
}

/// What was asked for is not all inside the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes from {offset} on are not inside {size} bytes of shared memory")]
pub struct OutOfBounds {
    /// Where it begins.
    pub offset: usize,
    /// How long it is.
    pub len: usize,
    /// How long the memory is.
    pub size: usize,
}

impl SharedMemory {
    /// `len` bytes of zeros.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for 0; when the system gives no memory or no descriptor.
    pub fn new(len: usize) -> io::Result<Self> {
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "shared memory of no bytes"));
        }
        memory::look_for(len as u64)?; // before the file is as long
        let memfd = memory::create(c"polyproc-memory", len as u64)?;
        memory::allocate(memfd.as_fd(), 0, len as u64)?;
        Self::map(memfd, Some(PrivateBytes::new(len as u64)))
    }

    /// The memory of a descriptor that came from another process.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when it is none that nobody can make shorter.
    pub fn from_fd(memfd: OwnedFd) -> io::Result<Self> {
        Self::map(memfd, None)
    }

    fn map(memfd: OwnedFd, made: Option<PrivateBytes>) -> io::Result<Self> {
        let (len, _) = memory::inspect(memfd.as_fd())?;
        let mapping = Mapping::new(memfd.as_fd(), 0, len)?;
        Ok(Self(Arc::new(MemoryFile { memfd, mapping, _made: made })))
    }

    /// How many bytes it has: as many as at its start.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        usize::try_from(self.0.mapping.end()).unwrap_or(usize::MAX)
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing was written then.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let outside = OutOfBounds { offset, len: bytes.len(), size: self.len() };
        self.0.mapping.store(offset as u64, bytes).ok_or(outside)
    }

    /// A copy of `len` bytes from `offset` on.
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

/// Bytes that are being filled, to become [`SharedBytes`]. Only this process has them: in a forked child they are none.
#[derive(Debug)]
pub struct SharedBytesMut(UnsealedBytes, PrivateBytes);

impl SharedBytesMut {
    /// `len` zeros, at the start of a page.
    ///
    /// # Errors
    /// When the system gives no memory or no descriptor.
    pub fn new(len: usize) -> io::Result<Self> {
        Ok(Self(UnsealedBytes::new(len)?, PrivateBytes::new(len as u64)))
    }

    /// Nobody can change them from now on, and they can go to other processes.
    ///
    /// # Errors
    /// When the system refuses.
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

/// Bytes that no process can change, for the kernel forbids it. To hand them over costs some microseconds, however many they
/// are: a descriptor goes, and the receiver maps the same memory. They stand at the start of a page.
#[derive(Debug, Clone)]
pub struct SharedBytes(Arc<(SealedBytes, Option<PrivateBytes>)>);

impl SharedBytes {
    /// The bytes of a descriptor that came from another process.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when somebody could change them.
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
        let file = crate::sys::fd::memfd_with(&[0; 100]).expect("a file");
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
