//! [`Payload`], the unit of data that one process sends to another, and the encoding of the engine's own messages.

mod payload;
pub(crate) mod wire;

pub use payload::{Context, Input, Payload, Verdict};
