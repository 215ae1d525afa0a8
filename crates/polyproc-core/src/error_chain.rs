//! The text of an error and of its sources.

use std::error::Error;
use std::fmt::Write as _;

/// Returns the text of `error` and of each of its sources, separated by `": "`.
///
/// An error's own text leaves out its source. This is for a text that replaces the error: a message to another process, a
/// Python exception, a log record.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(text, ": {error}"); // writing to a `String` does not fail
        source = error.source();
    }
    text
}
