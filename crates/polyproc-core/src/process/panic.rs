//! Panics as values: what std prints, caught with place and backtrace.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::ptr;

use crate::conn::Channel;
use crate::frame::wire::{Reader, WireError, Writer};
use crate::prim::{AtomicPtr, Ordering};

/// A panic that happened in another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panic {
    /// What `panic!` was given.
    pub message: String,
    /// `file:line:column`, unless the program replaced the panic hook.
    pub location: Option<String>,
    /// The stack, when `RUST_BACKTRACE` (or `RUST_LIB_BACKTRACE`) asks for it.
    pub backtrace: Option<String>,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Some(location) => write!(f, "panicked at {location}: {}", self.message),
            None => write!(f, "panicked: {}", self.message),
        }
    }
}

impl Panic {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(self.message.as_bytes());
        for optional in [&self.location, &self.backtrace] {
            out.u8(optional.is_some().into());
            out.bytes(optional.as_deref().unwrap_or_default().as_bytes());
        }
        out.into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        let message = from.text()?;
        let mut optional = || Ok(from.flag()?.then_some(()).zip(Some(from.text()?)).map(|((), text)| text));
        Ok(Self { message, location: optional()?, backtrace: optional()? })
    }

    fn new(payload: &(dyn Any + Send)) -> Self {
        let message = payload.downcast_ref::<&str>().map(ToString::to_string);
        let message = message.or_else(|| payload.downcast_ref::<String>().cloned());
        Self { message: message.unwrap_or_else(|| "Box<dyn Any>".to_owned()), location: None, backtrace: None }
    }

    fn from_hook(info: &PanicHookInfo<'_>) -> Self {
        let backtrace = Backtrace::capture();
        Self {
            location: info.location().map(ToString::to_string),
            backtrace: (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string()),
            ..Self::new(info.payload())
        }
    }
}

thread_local! {
    static LAST: RefCell<Option<Panic>> = const { RefCell::new(None) };
    static PRINTS: Cell<bool> = const { Cell::new(true) };
}

/// Where the hook reports when panics abort; null for nowhere.
static REPORT_TO: AtomicPtr<Channel> = AtomicPtr::new(ptr::null_mut());

/// Where panics abort, the hook itself is the last chance to tell the parent: it does so over `channel` from now on.
pub(crate) fn report_to(channel: Channel) -> &'static Channel {
    let channel = Box::leak(Box::new(channel));
    REPORT_TO.store(channel, Ordering::Release);
    channel
}

/// Has panics kept for [`catch`] and printed with the name of the process, or by the hook that the program installed when
/// `keep_previous` says that it could have.
pub(crate) fn install_hook(keep_previous: bool) {
    let previous = keep_previous.then(std::panic::take_hook);
    std::panic::set_hook(Box::new(move |info| {
        let panic = Panic::from_hook(info);
        if PRINTS.get() {
            match &previous {
                Some(hook) => hook(info),
                None => print(&panic),
            }
        }
        if let Some(channel) = crate::sys::leaked(REPORT_TO.load(Ordering::Acquire)).filter(|_| cfg!(panic = "abort")) {
            // The parent may be gone; the abort follows either way.
            let _ = channel.send(super::outcome::tag::PANICKED, &panic.encode(), &[]);
        }
        LAST.set(Some(panic));
    }));
}

fn print(panic: &Panic) {
    let (name, thread) = (&super::current().name, std::thread::current());
    let location = panic.location.as_deref().unwrap_or("an unknown place");
    let thread =
        thread.name().filter(|name| *name != "main").map(|name| format!(", thread '{name}'")).unwrap_or_default();
    let mut text = format!("\nprocess '{name}'{thread} panicked at {location}:\n{}\n", panic.message);
    match &panic.backtrace {
        Some(backtrace) => text.push_str(backtrace),
        None => text.push_str("note: run with `RUST_BACKTRACE=1` to see where the panic came from\n"),
    }
    // One write, so that processes do not mix their lines; a closed stderr is no reason to fail.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// While it lives, panics of this thread are not printed.
pub(crate) struct Quiet {
    printed: bool,
}

impl Quiet {
    pub(crate) fn new() -> Self {
        LAST.set(None);
        Self { printed: PRINTS.replace(false) }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        PRINTS.set(self.printed);
    }
}

/// Runs `f` and gives its panic as a value, printed like std does unless `quietly`.
pub(crate) fn catch<T>(quietly: bool, f: impl FnOnce() -> T) -> Result<T, Panic> {
    LAST.set(None);
    let _quiet = quietly.then(Quiet::new);
    catch_again(f)
}

/// As [`catch`], for many calls in a row, the first of which comes after [`Quiet::new`].
pub(crate) fn catch_again<T>(f: impl FnOnce() -> T) -> Result<T, Panic> {
    // Unwind safety: what `f` worked on is dropped with it or reported as failed.
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let panic = LAST.take().unwrap_or_else(|| Panic::new(payload.as_ref()));
        // A payload whose own destructor panics must not unwind past this border.
        std::mem::forget(payload);
        panic
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_wire() {
        let panic = Panic { message: "x".to_owned(), location: Some("a.rs:1:2".to_owned()), backtrace: None };
        assert_eq!(Panic::decode(&panic.encode()), Ok(panic.clone()));
        assert_eq!(panic.to_string(), "panicked at a.rs:1:2: x");
        assert_eq!(Panic::decode(&panic.encode()[1..]), Err(WireError));
    }

    #[test]
    fn caught_with_its_message() {
        let caught = catch(true, || panic!("number {}", 7)).expect_err("it panics");
        assert_eq!(caught.message, "number 7");
        assert_eq!(catch(true, || 5), Ok(5));
    }
}
