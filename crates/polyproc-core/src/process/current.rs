//! The identity of this process: its name, numbers and parent.
//!
//! The parent assigns the identity and sends it in the [order](super::order), or leaves it in the memory that `fork` copies.
//! The child sets it once, while it has one thread; then any thread reads it. The program itself has the default.

use std::ptr;

use crate::prim::{AtomicPtr, Ordering};
use crate::wire::{Reader, WireError, Writer};

/// The process that started this one. It may have ended, and its process id may belong to another process by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The name.
    pub name: String,
    /// The process id.
    pub pid: u32,
}

/// The identity of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// `MainProcess` for the program; `Process-N` or the given name for a process that it started.
    pub name: String,
    /// The parent's numbers, then the number of this process among the parent's children; empty for the program.
    pub identity: Vec<u32>,
    /// True if it is daemonic.
    pub daemon: bool,
    /// True if it dies with its parent: it is daemonic, or an ancestor is.
    pub bound: bool,
    /// The process that started it; `None` for the program.
    pub parent: Option<Parent>,
}

impl Current {
    /// Returns the identity of the program, which the engine did not start.
    fn main() -> Self {
        Self { name: "MainProcess".to_owned(), identity: Vec::new(), daemon: false, bound: false, parent: None }
    }

    /// Writes the name, the numbers, two flags, and the name and process id of the parent if there is one. [`Current::decode`]
    /// requires a parent.
    pub(crate) fn encode(&self, out: &mut Writer) {
        out.bytes(self.name.as_bytes());
        out.u32(u32::try_from(self.identity.len()).unwrap_or_default());
        self.identity.iter().for_each(|number| out.u32(*number));
        out.u8(self.daemon.into());
        out.u8(self.bound.into());
        if let Some(parent) = &self.parent {
            out.bytes(parent.name.as_bytes());
            out.u32(parent.pid);
        }
    }

    /// Decodes the identity of a child, which always has a parent.
    ///
    /// # Errors
    /// [`WireError`] for truncated or malformed bytes.
    pub(crate) fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            name: from.text()?,
            identity: from.list(Reader::u32)?,
            daemon: from.flag()?,
            bound: from.flag()?,
            parent: Some(Parent { name: from.text()?, pid: from.u32()? }),
        })
    }
}

/// Set when a child is set up; null in the program. The value is leaked, as a thread may be reading an earlier one.
static CURRENT: AtomicPtr<Current> = AtomicPtr::new(ptr::null_mut());

/// Returns the identity of this process. In a fork that the engine did not make, that of the original.
#[must_use]
pub fn current() -> Current {
    // Acquire pairs with the Release in `set_current`.
    let set = CURRENT.load(Ordering::Acquire);
    crate::sys::leaked(set).cloned().unwrap_or_else(Current::main)
}

/// Sets the identity that the parent assigned to this process. Replaces the identity of the process that this one was copied from.
pub(crate) fn set_current(current: Current) {
    // Release pairs with the Acquire in `current`.
    CURRENT.store(Box::leak(Box::new(current)), Ordering::Release);
}
