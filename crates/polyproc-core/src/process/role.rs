//! How an executed child learns that it is one: a token in its environment, `POLYPROC_CHILD=ROLE:PID` with the parent's process
//! id.
//!
//! [`launch`](super::launch) adds the token to the environment of the program that it executes; [`boot`](super::boot) takes it.
//! The module also records whether this program takes tokens at all, without which an executed child would run `main` again.

use std::ffi::{OsStr, OsString};

use crate::prim::{AtomicBool, Ordering};
use crate::sys::env;

/// The environment variable that marks a new program as a child.
const TOKEN: &str = "POLYPROC_CHILD";
/// True if this program checks for the token, so that it may be executed again. Relaxed: set by constructor, `init` or
/// [`set_program`](super::set_program) before the first start.
static IN_PLACE: AtomicBool = AtomicBool::new(false);

/// The purpose of an executed child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Creates processes on request.
    Zygote,
    /// Runs one function.
    Process,
}

impl Role {
    /// Returns the text that stands for the role in a token.
    fn name(self) -> &'static str {
        match self {
            Self::Zygote => "zygote",
            Self::Process => "process",
        }
    }

    /// Returns the environment variable for a child of this process: name and value.
    pub(crate) fn token(self) -> (OsString, OsString) {
        (TOKEN.into(), format!("{}:{}", self.name(), std::process::id()).into())
    }

    /// Returns the role and the parent's process id; `None` for a text that is not a token.
    fn parse(token: &OsStr) -> Option<(Self, u32)> {
        let (name, parent) = token.to_str()?.split_once(':')?;
        let role = [Self::Zygote, Self::Process].into_iter().find(|role| role.name() == name)?;
        Some((role, parent.parse().ok()?))
    }
}

/// Returns whether this program, when it is executed as a child, runs the child's work instead of `main`.
pub(crate) fn is_in_place() -> bool {
    IN_PLACE.load(Ordering::Relaxed)
}

/// Records that this program reaches [`init`](super::init) when it is executed as a child.
pub(crate) fn set_in_place() {
    IN_PLACE.store(true, Ordering::Relaxed);
}

/// Returns the role of this process and its parent's process id, once; `None` if it was executed as an ordinary program.
/// Removes the variable, so that programs that this process executes do not inherit it. Only in a process with one thread. A
/// malformed token is left alone.
pub(super) fn take() -> Option<(Role, u32)> {
    let found = std::env::var_os(TOKEN).as_deref().and_then(Role::parse);
    if found.is_some() {
        env::set(TOKEN.as_ref(), None);
    }
    found
}
