//! [`Payload`]: bytes and descriptors that go together.

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
