//! [`Queue`], [`JoinableQueue`] and [`SimpleQueue`]: pass values between any processes.
//!
//! | file | purpose |
//! |---|---|
//! | `plain`, `joinable`, `simple` | one type of queue each |
//! | `transfer` | the operations that they share |
//! | `iter` | the iterator over the values of a queue |
//! | `error` | the errors of puts and gets |

mod error;
mod iter;
mod joinable;
mod plain;
mod simple;
mod transfer;

pub use error::{GetError, PutError};
pub use iter::Iter;
pub use joinable::JoinableQueue;
pub use plain::Queue;
pub use simple::SimpleQueue;
