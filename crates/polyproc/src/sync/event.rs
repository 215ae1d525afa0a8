//! [`Event`].

use std::io;
use std::time::Duration;

use polyproc_core::sync as core;
use polyproc_core::{Deadline, retry_interrupted};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec;

/// A flag that processes wait for.
#[derive(Debug, Clone)]
pub struct Event {
    core: core::Event,
}

impl Event {
    /// Creates an event that is not set.
    ///
    /// # Errors
    /// Fails when the system provides no memory or no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self { core: core::Event::new()? })
    }

    /// Returns whether the event is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.core.is_set()
    }

    /// Sets the event, and wakes all waiters.
    pub fn set(&self) {
        self.core.set();
    }

    /// Clears the event.
    pub fn clear(&self) {
        self.core.clear();
    }

    /// Blocks until the event is set. Also returns if the event was set and cleared during the wait.
    pub fn wait(&self) {
        let before = self.core.sets();
        let _ = retry_interrupted(|| self.core.wait(before, Deadline::NEVER));
    }

    /// As [`Event::wait`], for at most `timeout`. Returns false on timeout.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let (before, deadline) = (self.core.sets(), Deadline::after(timeout));
        retry_interrupted(|| self.core.wait(before, deadline)).is_ok()
    }
}

/// For sending to another process by polyproc. Any other format fails.
impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::carry_place(self.core.place(), serializer)
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { core: codec::take_place(deserializer, core::Event::from_place)? })
    }
}
