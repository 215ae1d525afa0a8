//! Panics as values, with the message, location and backtrace that std prints.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::ptr;

use crate::conn::Channel;
use crate::prim::{AtomicPtr, Ordering};
use crate::wire::{Reader, WireError, Writer};

/// A panic that happened in another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panic {
    /// The message passed to `panic!`.
    pub message: String,
    /// `file:line:column`, unless the program replaced the panic hook.
    pub location: Option<String>,
    /// The backtrace, if enabled by `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE`.
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

/// The channel over which the hook reports if panics abort; null for none.
static REPORT_TO: AtomicPtr<Channel> = AtomicPtr::new(ptr::null_mut());

/// Sets the channel over which the panic hook reports to the parent where panics abort: there it is the last code that runs.
/// Returns the channel.
pub(crate) fn report_to(channel: Channel) -> &'static Channel {
    let channel = Box::leak(Box::new(channel));
    // Release pairs with the Acquire in `parent_channel`.
    REPORT_TO.store(channel, Ordering::Release);
    channel
}

/// Returns the channel to the parent of this process, which runs work that its parent ordered.
pub(crate) fn parent_channel() -> Option<&'static Channel> {
    // Acquire pairs with the Release in `report_to`.
    crate::sys::leaked(REPORT_TO.load(Ordering::Acquire))
}

/// Installs a panic hook that keeps panics for [`catch`] and prints them with the name of the process, or by the previous hook
/// if `keep_previous`.
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
        if let Some(channel) = parent_channel().filter(|_| cfg!(panic = "abort")) {
            // The parent may have closed its end; the abort follows either way.
            let _ = channel.send(super::tag::PANICKED, &panic.encode(), &[]);
        }
        LAST.set(Some(panic));
    }));
}

fn print(panic: &Panic) {
    let (name, thread) = (&super::current().name, std::thread::current());
    let location = panic.location.as_deref().unwrap_or("an unknown location");
    let thread =
        thread.name().filter(|name| *name != "main").map(|name| format!(", thread '{name}'")).unwrap_or_default();
    let mut text = format!("\nprocess '{name}'{thread} panicked at {location}:\n{}\n", panic.message);
    match &panic.backtrace {
        Some(backtrace) => text.push_str(backtrace),
        None => text.push_str("note: run with `RUST_BACKTRACE=1` to see where the panic came from\n"),
    }
    // One write, so that the lines of several processes do not mix. A closed stderr is not an error.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Suppresses the printing of this thread's panics until it is dropped.
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

/// Runs `f` and returns its panic as a value. The hook prints the panic unless `quietly`.
pub(crate) fn catch<T>(quietly: bool, f: impl FnOnce() -> T) -> Result<T, Panic> {
    LAST.set(None);
    let _quiet = quietly.then(Quiet::new);
    catch_again(f)
}

/// As [`catch`], for a series of calls after one [`Quiet::new`].
pub(crate) fn catch_again<T>(f: impl FnOnce() -> T) -> Result<T, Panic> {
    // Unwind safety: the data that `f` worked on is dropped with it or reported as failed.
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let panic = LAST.take().unwrap_or_else(|| Panic::new(payload.as_ref()));
        // Forgotten, since its destructor may panic, which must not unwind out of this function.
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
