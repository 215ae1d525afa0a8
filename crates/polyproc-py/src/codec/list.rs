//! Lists whose values are encoded and decoded one by one.

use std::os::fd::OwnedFd;

use pyo3::prelude::*;
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::PyList;

use super::pickle::{Purpose, put_pickle};
use super::simple::{Memo, put_simple};
use super::source::{Source, broken};
use super::tag::LIST;

/// Bytes before the values of a list: tag, count.
const LIST_HEAD: usize = 5;

/// Appends a list of values to `out`: each in an encoding of its own, or all in one pickle.
pub(crate) fn encode_all(
    values: &Bound<'_, PyList>,
    purpose: Purpose,
    out: &mut Vec<u8>,
    fds: &mut Vec<OwnedFd>,
) -> PyResult<()> {
    let start = out.len();
    let are_simple = with_critical_section(values, || {
        begin_list(values.len(), out);
        let mut memo = Memo::default();
        u32::try_from(values.len()).is_ok() && values.iter().all(|value| put_in_list(&value, out, &mut memo))
    });
    if are_simple {
        return Ok(());
    }
    out.truncate(start);
    put_pickle(values, purpose, out, fds)
}

/// Begins a list of `count` values, which [`put_in_list`] appends one by one. Returns the offset of the list.
pub(crate) fn begin_list(count: usize, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.push(LIST);
    out.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    start
}

/// Appends a value to a list, if it has an encoding of its own, and returns whether it has. `memo` belongs to the list.
#[inline]
pub(crate) fn put_in_list(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, memo: &mut Memo) -> bool {
    put_simple(value, out, 1, memo)
}

/// Decodes the first `count` values of an unfinished list.
pub(crate) fn list_so_far<'py>(py: Python<'py>, list: &[u8], count: usize) -> PyResult<Bound<'py, PyList>> {
    let mut source = Source::new(list.get(LIST_HEAD..).ok_or_else(broken)?, Vec::new());
    let values = PyList::empty(py);
    for _ in 0..count {
        values.append(source.decode_inner(py)?)?;
    }
    Ok(values)
}

/// The values of a list, one by one.
pub(crate) enum Values<'a, 'py> {
    Encoded(Source<'a>, usize),
    Decoded(Bound<'py, PyList>, usize),
}

impl<'py> Values<'_, 'py> {
    /// Returns the number of values, if none was taken yet.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Encoded(_, left) => *left,
            Self::Decoded(values, _) => values.len(),
        }
    }

    pub(crate) fn next(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self {
            Self::Encoded(_, 0) => Ok(None),
            Self::Encoded(source, left) => {
                *left -= 1;
                source.decode_inner(py).map(Some)
            }
            Self::Decoded(values, at) if *at < values.len() => {
                *at += 1;
                values.get_item(*at - 1).map(Some)
            }
            Self::Decoded(..) => Ok(None),
        }
    }
}

impl<'a> Source<'a> {
    /// Returns the values of the next value, which is a list.
    pub(crate) fn decode_list<'py>(mut self, py: Python<'py>) -> PyResult<Values<'a, 'py>> {
        if self.bytes.first() != Some(&LIST) {
            return Ok(Values::Decoded(self.decode(py)?.cast_into()?, 0));
        }
        self.byte()?;
        self.repeated.clear();
        let count = self.take_len()?;
        Ok(Values::Encoded(self, count))
    }
}
