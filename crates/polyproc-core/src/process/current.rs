//! Who this process is.

use std::ptr;

use crate::frame::wire::{Reader, WireError, Writer};
use crate::prim::{AtomicPtr, Ordering};

/// The process that started this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Its name.
    pub name: String,
    /// Its process id.
    pub pid: u32,
}

/// This process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// `MainProcess` for the program, `Process-N` or the given name for what it started.
    pub name: String,
    /// The number of this process among its parent's children, after the parent's own numbers; empty for the program.
    pub identity: Vec<u32>,
    /// Whether it is daemonic.
    pub daemon: bool,
    /// Whether it dies with its parent: it is daemonic, or an ancestor is.
    pub bound: bool,
    /// Who started it; `None` for the program.
    pub parent: Option<Parent>,
}

impl Current {
    fn main() -> Self {
        Self { name: "MainProcess".to_owned(), identity: Vec::new(), daemon: false, bound: false, parent: None }
    }

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

    /// Of a child, which has a parent.
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

/// Set once by a child as it is set up; null in the program.
static CURRENT: AtomicPtr<Current> = AtomicPtr::new(ptr::null_mut());

/// This process.
#[must_use]
pub fn current() -> Current {
    // Acquire pairs with the Release in `set_current`.
    let set = CURRENT.load(Ordering::Acquire);
    crate::sys::leaked(set).cloned().unwrap_or_else(Current::main)
}

/// Makes this process what its parent said.
pub(crate) fn set_current(current: Current) {
    CURRENT.store(Box::leak(Box::new(current)), Ordering::Release);
}
