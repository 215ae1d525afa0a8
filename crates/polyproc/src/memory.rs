//! [`SharedMemory`] and [`SharedBytes`], as values that can be sent to another process.

use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;

pub use polyproc_core::{OutOfBounds, SharedBytesMut};
use polyproc_core::{SharedBytes as CoreBytes, SharedMemory as CoreMemory};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec;

/// Bytes that any number of processes may read and write at the same time.
///
/// Clones refer to the same memory. It has no name, and is freed with its last holder. A read concurrent with a write may
/// return a mix of old and new bytes, so coordinate access, for example with a lock or a queue.
///
/// ```
/// use polyproc::{Process, SharedMemory};
///
/// let memory = SharedMemory::new(1000)?;
/// let child = Process::new(|memory: SharedMemory| memory.write_at(500, b"here").is_ok(), memory.clone()).start()?;
/// assert!(child.join()?);
/// assert_eq!(memory.read_at(500, 4)?, b"here");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct SharedMemory(CoreMemory);

impl SharedMemory {
    /// Creates shared memory of `len` bytes, all zero.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when `len` is 0. Another error when the system provides no memory or no descriptor.
    pub fn new(len: usize) -> io::Result<Self> {
        Ok(Self(CoreMemory::new(len)?))
    }
}

/// For sending to another process by polyproc. Any other format fails.
impl Serialize for SharedMemory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::carry(&[self.0.as_fd()], serializer)
    }
}

impl<'de> Deserialize<'de> for SharedMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let [fd] = codec::take(deserializer)?;
        Ok(Self(CoreMemory::from_fd(fd).map_err(serde::de::Error::custom)?))
    }
}

impl Deref for SharedMemory {
    type Target = CoreMemory;
    fn deref(&self) -> &CoreMemory {
        &self.0
    }
}

/// Immutable bytes, as a `&[u8]`: the kernel prevents every process from changing them.
///
/// Sending them takes some microseconds, whatever their length. They start at a page boundary, so they are aligned for any
/// primitive type.
///
/// ```
/// use polyproc::{Process, SharedBytes, SharedBytesMut};
///
/// let mut bytes = SharedBytesMut::new(1_000_000)?;
/// bytes.fill(1);
/// let bytes: SharedBytes = bytes.freeze()?.into();
/// let sum = |bytes: SharedBytes| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
/// assert_eq!(Process::new(sum, bytes).start()?.join()?, 1_000_000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct SharedBytes(CoreBytes);

impl From<CoreBytes> for SharedBytes {
    fn from(bytes: CoreBytes) -> Self {
        Self(bytes)
    }
}

/// For sending to another process by polyproc. Any other format fails.
impl Serialize for SharedBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::carry(&[self.0.as_fd()], serializer)
    }
}

impl<'de> Deserialize<'de> for SharedBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let [fd] = codec::take(deserializer)?;
        Ok(Self(CoreBytes::from_fd(fd).map_err(serde::de::Error::custom)?))
    }
}

impl Deref for SharedBytes {
    type Target = CoreBytes;
    fn deref(&self) -> &CoreBytes {
        &self.0
    }
}
