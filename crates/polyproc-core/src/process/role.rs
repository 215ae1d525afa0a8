//! How an executed child learns that it is one: a token in its environment.

use std::ffi::{OsStr, OsString};

use crate::prim::{AtomicBool, Ordering};
use crate::sys::env;

/// The environment variable that marks a new program as a child.
const TOKEN: &str = "POLYPROC_CHILD";
/// True if this program checks for the token, so that it may be executed again.
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
    fn name(self) -> &'static str {
        match self {
            Self::Zygote => "zygote",
            Self::Process => "process",
        }
    }

    /// Returns the environment variable for a child of this process.
    pub(crate) fn token(self) -> (OsString, OsString) {
        (TOKEN.into(), format!("{}:{}", self.name(), std::process::id()).into())
    }

    /// Returns the role and the parent's process id.
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
pub(super) fn take() -> Option<(Role, u32)> {
    let found = std::env::var_os(TOKEN).as_deref().and_then(Role::parse);
    if found.is_some() {
        env::set(TOKEN.as_ref(), None);
    }
    found
}
