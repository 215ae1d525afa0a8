//! Messages with descriptors between two processes.
//!
//! | file | contents |
//! |---|---|
//! | `channel` | tagged messages, for the engine's own protocols |
//! | `connection` | [`Connection`]: the user's messages |
//! | `listener` | [`Listener`] and [`connect`]: connections by address between unrelated processes |
//! | `auth` | mutual proof that both sides of such a connection know a key |
//!
//! `docs/design/channel.md` describes channels and the engine's protocols over them.

mod auth;
pub(crate) mod channel;
mod connection;
mod listener;

pub use auth::AuthError;
pub use connection::Connection;
pub use listener::{Address, ConnectError, Listener, connect};

pub(crate) use channel::{Arrival, Channel, Message, bare_message, is_peer_gone};
