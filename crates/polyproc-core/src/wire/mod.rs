//! [`Payload`], the unit of data that one process sends to another, and the encoding of the engine's own messages. Pure data:
//! no descriptor is used here, and no clock.

mod encoding;
mod payload;

pub(crate) use encoding::{Reader, WireError, Writer};
pub use payload::{Context, Input, Payload, Verdict};
