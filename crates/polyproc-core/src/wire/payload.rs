//! [`Payload`]: bytes and descriptors that travel together. [`Input`]: the input of a function call in another process.

use std::any::Any;
use std::cell::OnceCell;
use std::fmt;
use std::os::fd::OwnedFd;

/// Data that one process sends to another: bytes in the encoding of a face, and the descriptors that the bytes refer to.
#[derive(Debug, Default)]
pub struct Payload {
    /// The encoded value.
    pub bytes: Vec<u8>,
    /// Descriptors that travel with the value, at most 240. The receiver gets its own copies, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, fds: Vec::new() }
    }
}

/// The input of a function call in another process.
#[derive(Debug)]
pub struct Input<'a> {
    /// The encoded argument.
    pub bytes: &'a [u8],
    /// The descriptors that the argument refers to.
    pub fds: Vec<OwnedFd>,
    /// The data that related calls share.
    pub context: &'a Context,
}

/// Data that many calls share: sent to each process once, and decoded there once.
#[derive(Default)]
pub struct Context {
    bytes: Vec<u8>,
    decoded: OnceCell<Box<dyn Any>>,
}

impl Context {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, decoded: OnceCell::new() }
    }

    /// Returns the decoded value, calling `decode` at first use; `None` if it was decoded as another type before.
    ///
    /// # Errors
    /// The error of `decode`. The next call tries again.
    pub fn get_or_decode<T: 'static, E>(&self, decode: impl FnOnce(&[u8]) -> Result<T, E>) -> Result<Option<&T>, E> {
        if self.decoded.get().is_none() {
            let value = decode(&self.bytes)?;
            // `decode` cannot have set the value itself, as it cannot reach this context.
            let _ = self.decoded.set(Box::new(value));
        }
        Ok(self.decoded.get().and_then(|value| value.downcast_ref()))
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("len_bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// How a call ended, apart from panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The function returned; its result was encoded.
    Returned,
    /// The function failed; the result is an error in the face's own encoding.
    Raised,
}
