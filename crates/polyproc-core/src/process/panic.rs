//! Panics as values, with the message, location and backtrace that std prints.
//!
//! A child or worker [installs a hook](install_hook), which sees location and backtrace while they exist, and keeps the panic
//! in a thread-local for [`catch`]. The value then travels to the parent, as the outcome of a process or as the result of a
//! pool's item.
//!
//! Where panics abort, nothing can be caught: the hook itself sends the panic over the channel of [`report_to`], and the
//! process ends by `SIGABRT`.

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

/// A panic that happened in another process, as text. Of a payload that is not a text nothing is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panic {
    /// The message passed to `panic!`; `Box<dyn Any>` for a payload that is not a text.
    pub message: String,
    /// `file:line:column`, unless the program replaced the panic hook.
    pub location: Option<String>,
    /// The backtrace, if enabled by `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` in the process that panicked.
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
    /// Returns the encoding, in that of [`wire`](crate::wire):
    ///
    /// | field | encoding |
    /// |---|---|
    /// | message | text |
    /// | location | flag, then text; empty without it |
    /// | backtrace | flag, then text; empty without it |
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(self.message.as_bytes());
        for optional in [&self.location, &self.backtrace] {
            out.u8(optional.is_some().into());
            out.bytes(optional.as_deref().unwrap_or_default().as_bytes());
        }
        out.into_bytes()
    }

    /// Decodes [`Panic::encode`].
    ///
    /// # Errors
    /// [`WireError`] for truncated bytes, an invalid flag, or a text that is not UTF-8. Bytes after the end are ignored.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        let message = from.text()?;
        let mut optional = || Ok(from.flag()?.then_some(()).zip(Some(from.text()?)).map(|((), text)| text));
        Ok(Self { message, location: optional()?, backtrace: optional()? })
    }

    /// Returns a panic with the message in `payload`. std's `Box<dyn Any>` stands for a payload that is not a text, as in std's
    /// own output.
    fn new(payload: &(dyn Any + Send)) -> Self {
        let message = payload.downcast_ref::<&str>().map(ToString::to_string);
        let message = message.or_else(|| payload.downcast_ref::<String>().cloned());
        Self { message: message.unwrap_or_else(|| "Box<dyn Any>".to_owned()), location: None, backtrace: None }
    }

    /// Returns the panic that a hook was called for. Captures the backtrace here, on the panicking thread's stack.
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
    /// The last panic of this thread, from the hook until [`catch`] takes it.
    static LAST: RefCell<Option<Panic>> = const { RefCell::new(None) };
    /// False while a [`Quiet`] of this thread exists: then its panics are not printed.
    static PRINTS: Cell<bool> = const { Cell::new(true) };
}

/// The channel to the parent of this process: null in the program itself, and in a child until its bonds are made; until then a
/// copy made by `fork` has the value of its original. Never freed, so a reference to it is valid in any thread and in the hook.
static REPORT_TO: AtomicPtr<Channel> = AtomicPtr::new(ptr::null_mut());

/// Sets the channel over which the panic hook reports to the parent where panics abort: there it is the last code that runs.
/// Returns the channel, which is leaked. Called once in the set-up of a child, while it has one thread; in a forked child it
/// replaces that of its parent.
pub(crate) fn report_to(channel: Channel) -> &'static Channel {
    let channel = Box::leak(Box::new(channel));
    // Release pairs with the Acquire in `parent_channel`.
    REPORT_TO.store(channel, Ordering::Release);
    channel
}

/// Returns the channel to the parent of this process, which runs work that its parent ordered; `None` in the program. A pool's
/// worker uses it for all its messages.
pub(crate) fn parent_channel() -> Option<&'static Channel> {
    // Acquire pairs with the Release in `report_to`.
    crate::sys::leaked(REPORT_TO.load(Ordering::Acquire))
}

/// Installs a panic hook that keeps panics for [`catch`] and prints them with the name of the process, or by the previous hook
/// if `keep_previous`: in a forked child, which has the program's own hook. If the user later installs a hook that does not
/// call this one, panics have a message only.
///
/// Called once in the set-up of each process that runs ordered work, before user code. Clones of the zygote inherit its hook.
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

/// Prints a panic to standard error as std does, with the name of the process before that of the thread. The name of the main
/// thread is left out, as it is that of the process.
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

/// Suppresses the printing of this thread's panics until it is dropped. A pool's worker holds one while it runs items, whose
/// panics become results. May be nested.
pub(crate) struct Quiet {
    /// The value to restore.
    printed: bool,
}

impl Quiet {
    /// Suppresses the printing, and forgets this thread's last panic, so that [`catch_again`] does not return an older one.
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

/// Runs `f` and returns its panic as a value. The hook prints the panic unless `quietly`. Without the hook of [`install_hook`],
/// the value has a message only. The payload is leaked, as its destructor may panic.
///
/// Where panics abort, this does not return from one: the hook has sent the panic to the parent.
pub(crate) fn catch<T>(quietly: bool, f: impl FnOnce() -> T) -> Result<T, Panic> {
    LAST.set(None);
    let _quiet = quietly.then(Quiet::new);
    catch_again(f)
}

/// As [`catch`], for a series of calls after one [`Quiet::new`]: changes neither the printing nor the last panic beforehand.
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
