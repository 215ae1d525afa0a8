//! Encodes values.

use std::os::fd::OwnedFd;

use pyo3::prelude::*;

use super::loan::put_lent_bytes;
use super::pickle::{Purpose, put_pickle};
use super::simple::{Memo, put_simple};

/// Appends a value to `out`, and duplicates of its descriptors to `fds`.
#[inline]
pub(crate) fn encode(
    value: &Bound<'_, PyAny>,
    purpose: Purpose,
    out: &mut Vec<u8>,
    fds: &mut Vec<OwnedFd>,
) -> PyResult<()> {
    let is_put =
        (purpose.lends() && put_lent_bytes(value, out, fds)) || put_simple(value, out, 0, &mut Memo::default());
    if is_put { Ok(()) } else { put_pickle(value, purpose, out, fds) }
}
