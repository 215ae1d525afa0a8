//! Messages with descriptors between two processes.
//!
//! | file | what it holds |
//! |---|---|
//! | `channel` | tagged messages, for the engine's own protocols |
//! | `connection` | [`Connection`]: messages of the user's |
//! | `listener` | [`Listener`] and [`connect`]: connections between processes that have nothing in common but an address |
//! | `auth` | how both sides of these prove that they know a key |

mod auth;
pub(crate) mod channel;
mod connection;
mod listener;

pub use auth::AuthError;
pub use connection::Connection;
pub use listener::{Address, ConnectError, Listener, connect};

pub(crate) use channel::{Arrival, Channel, Message, bare_message, is_peer_gone};
