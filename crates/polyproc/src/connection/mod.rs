//! [`pipe`], [`Connection`], [`Listener`]: pass values between two processes.
//!
//! | file | purpose |
//! |---|---|
//! | `duplex`, `simplex` | pipes in two directions and in one, and the types of their ends |
//! | `transfer` | the operations that the ends share |
//! | `listener` | connections by address |
//! | `error` | the errors of sends and receives |

mod duplex;
mod error;
mod listener;
mod simplex;
mod transfer;

pub use duplex::{Connection, pipe};
pub use error::{RecvError, SendError};
pub use listener::{Listener, connect};
pub use polyproc_core::conn::{Address, AuthError, ConnectError};
pub use simplex::{Receiver, Sender, simplex_pipe};
