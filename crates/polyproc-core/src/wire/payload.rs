//! [`Payload`]: bytes and descriptors that travel together. [`Input`]: the input of a function call in another process.
//!
//! The faces define the meaning of the bytes; the engine only moves them. Descriptors are owned: dropping a value closes them,
//! so a message that is not delivered leaks none.

use std::any::Any;
use std::cell::OnceCell;
use std::fmt;
use std::os::fd::OwnedFd;

/// Data that one process sends to another: bytes in the encoding of a face, and the descriptors that the bytes refer to. A face
/// refers to a descriptor by its index.
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

/// The input of a function call in another process. Made for one call of [`Handler::handle`](crate::process::Handler::handle).
#[derive(Debug)]
pub struct Input<'a> {
    /// The encoded argument.
    pub bytes: &'a [u8],
    /// The descriptors that the argument refers to.
    pub fds: Vec<OwnedFd>,
    /// The data that related calls share; empty for a function without a context.
    pub context: &'a Context,
}

/// Data that many calls share: sent to each process once, and decoded there once. A worker keeps it with the function, and
/// decodes it at the first item. It stays in one thread.
#[derive(Default)]
pub struct Context {
    /// The encoded value, kept for a later attempt if decoding fails.
    bytes: Vec<u8>,
    /// The decoded value, of the type of the first successful attempt.
    decoded: OnceCell<Box<dyn Any>>,
}

impl Context {
    /// Creates a context that is not decoded yet.
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

/// How a call ended, apart from panics. It decides how the bytes of the output are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The function returned; its result was encoded.
    Returned,
    /// The function failed; the result is an error in the face's own encoding.
    Raised,
}
