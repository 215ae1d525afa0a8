//! [`Payload`], what travels between processes, and its pure encoding.

mod payload;
pub(crate) mod wire;

pub use payload::{Context, Input, Payload, Verdict};
