//! The environment and the working directory of a new process.
//!
//! [`start`](mod@super::start) resolves the user's [`Settings`](super::Settings) here, in the parent, at the time of the start;
//! so invalid settings are errors of the start. The caller holds [`ProcessState::starting`](super::state::ProcessState) while
//! these functions read std's environment. Changes that C code makes by `setenv(3)` on another thread are not excluded.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::order::EnvDelta;
use super::{EnvChange, StartError};

/// Returns the environment of a new process: that of this process after `changes`, in their order. Sorted by name if there are
/// changes. All changes are checked before any applies. An executed process gets the result whole; a process of the fork
/// server, or a forked one, gets the [`delta`] to the environment that it has already.
///
/// # Errors
/// [`StartError::Env`] for a name that is empty or contains `=`, and for a NUL byte in a name or value: neither can be in the
/// memory of an environment (`environ(7)`).
pub(super) fn environment(changes: &[EnvChange]) -> Result<Vec<(OsString, OsString)>, StartError> {
    if changes.is_empty() {
        return Ok(std::env::vars_os().collect());
    }
    let has = |text: &OsStr, bytes: &[u8]| text.as_bytes().iter().any(|byte| bytes.contains(byte));
    for change in changes {
        let (name, value) = match change {
            EnvChange::Clear => continue,
            EnvChange::Set(name, value) => (name, value.as_os_str()),
            EnvChange::Remove(name) => (name, OsStr::new("")),
        };
        if name.is_empty() || has(name, b"=\0") || has(value, b"\0") {
            return Err(StartError::Env { name: name.clone() });
        }
    }
    let mut env: BTreeMap<_, _> = std::env::vars_os().collect();
    for change in changes {
        match change {
            EnvChange::Clear => env.clear(),
            EnvChange::Set(name, value) => _ = env.insert(name.clone(), value.clone()),
            EnvChange::Remove(name) => _ = env.remove(name),
        }
    }
    Ok(env.into_iter().collect())
}

/// Returns the changes that turn the environment `from` into `to`: what an order carries to a process whose environment is
/// `from`. The usual case, no difference, is found by one comparison, which holds if both have the same order. A variable that
/// occurs twice counts with its last value. The result is in no order that matters: no name occurs twice in it.
pub(super) fn delta(from: &[(OsString, OsString)], to: &[(OsString, OsString)]) -> EnvDelta {
    if from == to {
        return Vec::new();
    }
    let (from, to): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (from.iter().map(|(n, v)| (n, v)).collect(), to.iter().map(|(n, v)| (n, v)).collect());
    let set = to.iter().filter(|(name, value)| from.get(*name) != Some(value));
    let set = set.map(|(name, value)| ((*name).clone(), Some((*value).clone())));
    let removed = from.keys().filter(|name| !to.contains_key(*name)).map(|name| ((*name).clone(), None));
    set.chain(removed).collect()
}

/// Returns the absolute path of a new process's working directory: `wanted`, or this process's own, or `None` if that no longer
/// exists. A relative `wanted` is relative to this process's own. The directory may still disappear before the child enters it;
/// the child then reports [`Outcome::Refused`](super::Outcome::Refused).
///
/// # Errors
/// [`StartError::CurrentDir`] when `wanted` is not an existing directory, and for any `wanted` when this process's own no
/// longer exists.
pub(super) fn current_dir(wanted: Option<&Path>) -> Result<Option<PathBuf>, StartError> {
    let here = std::env::current_dir();
    let Some(wanted) = wanted else { return Ok(here.ok()) };
    let found = here.map(|here| here.join(wanted)).and_then(|path| match path.metadata()?.is_dir() {
        true => Ok(path),
        false => Err(io::ErrorKind::NotADirectory.into()),
    });
    found.map(Some).map_err(|source| StartError::CurrentDir { path: wanted.to_owned(), source })
}
