//! The thread on which callbacks run, one after the other: made when it is first needed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use crate::process::lock;

type Callback = Box<dyn FnOnce() + Send>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Callbacks(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Fresh,
    Running(Sender<Callback>, JoinHandle<()>),
    Over,
}

impl Callbacks {
    /// Runs `callback` there. One that panics has been reported by the panic hook, and the next is run.
    pub(super) fn run(&self, callback: Callback) {
        let mut state = lock(&self.0);
        if matches!(*state, State::Fresh) {
            let (sender, receiver) = channel::<Callback>();
            let run = move || {
                for callback in receiver {
                    // Unwind safety: what it worked on is dropped with it.
                    let _ = catch_unwind(AssertUnwindSafe(callback));
                }
            };
            let spawned = std::thread::Builder::new().name("polyproc-callbacks".to_owned()).spawn(run);
            // Where there is no thread to be had: better here than never.
            if let Ok(thread) = spawned {
                *state = State::Running(sender, thread);
            }
        }
        match &*state {
            State::Running(sender, _) => _ = sender.send(callback), // the thread lives as long as the sender
            State::Fresh | State::Over => {
                drop(state);
                let _ = catch_unwind(AssertUnwindSafe(callback));
            }
        }
    }

    /// Waits until all callbacks so far have run, unless one of them asks for it.
    pub(super) fn join(&self) {
        if let State::Running(sender, thread) = std::mem::replace(&mut *lock(&self.0), State::Over) {
            drop(sender);
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join(); // it catches panics
            }
        }
    }
}
