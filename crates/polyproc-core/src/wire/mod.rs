//! [`Payload`], the unit of data that one process sends to another, and the encoding of the engine's own messages.

mod encoding;
mod payload;

pub(crate) use encoding::{Reader, WireError, Writer};
pub use payload::{Context, Input, Payload, Verdict};
