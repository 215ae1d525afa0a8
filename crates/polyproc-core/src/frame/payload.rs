//! [`Payload`]: bytes and descriptors that go together; and what a function gets of them.

use std::any::Any;
use std::cell::OnceCell;
use std::fmt;
use std::os::fd::OwnedFd;

/// What one process hands to another: bytes in the encoding of a face, and the descriptors that they speak of.
#[derive(Debug, Default)]
pub struct Payload {
    /// The encoded value.
    pub head: Vec<u8>,
    /// Descriptors that travel with it, at most 240; the receiver gets its own copies, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

impl From<Vec<u8>> for Payload {
    fn from(head: Vec<u8>) -> Self {
        Self { head, fds: Vec::new() }
    }
}

/// What a function is called with in another process.
#[derive(Debug)]
pub struct Input<'a> {
    /// The encoded argument.
    pub bytes: &'a [u8],
    /// The descriptors that it speaks of.
    pub fds: Vec<OwnedFd>,
    /// What all calls of one kind have in common.
    pub context: &'a Context,
}

/// What many calls have in common: sent to each process once, and decoded there once.
#[derive(Default)]
pub struct Context {
    bytes: Vec<u8>,
    decoded: OnceCell<Box<dyn Any>>,
}

impl Context {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, decoded: OnceCell::new() }
    }

    /// The decoded value; `None` when it was decoded as another type before.
    ///
    /// # Errors
    /// What `decode` fails with; it is tried again the next time then.
    pub fn get_or_decode<T: 'static, E>(&self, decode: impl FnOnce(&[u8]) -> Result<T, E>) -> Result<Option<&T>, E> {
        if self.decoded.get().is_none() {
            let value = decode(&self.bytes)?;
            // `decode` cannot have come here itself and set it: it has no way to this context.
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
    /// An error in the face's own encoding stands in the place of the result.
    Raised,
}
