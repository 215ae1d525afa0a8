//! Encodes the values with an encoding of their own.

use pyo3::prelude::*;
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use super::tag::{BYTES, DICT, FALSE, FLOAT, INT, LIST, NONE, REPEATED, STR, TRUE, TUPLE};

/// Limit of the length of a string, of the length of bytes in a container, and of the number of values in a container. Values
/// above it are pickled, which copies less.
const MOST: usize = 1 << 16;
/// Limit of the nesting of tuples. Values nested deeper are pickled.
const DEEPEST: u32 = 8;
/// Strings and bytes of at least this length are encoded once if they are in a container many times.
pub(super) const LONG: usize = 16;

fn put_len(tag: u8, len: usize, out: &mut Vec<u8>) -> bool {
    let Ok(number) = u32::try_from(len) else { return false };
    out.push(tag);
    out.extend(number.to_le_bytes());
    len <= MOST
}

/// The long strings and bytes that a container has so far: the last one for each hash of the address, with its index.
#[derive(Default)]
pub(crate) struct Memo {
    places: Vec<(usize, u32)>,
    count: u32,
}

impl Memo {
    const PLACES: usize = 256;

    /// Returns the index of an object that is known to be in the container; adds any other object and returns `None`.
    fn find_or_add(&mut self, value: &Bound<'_, PyAny>) -> Option<u32> {
        if self.places.is_empty() {
            self.places.resize(Self::PLACES, (0, 0));
        }
        let address = value.as_ptr() as usize;
        let place = &mut self.places[address / 16 % Self::PLACES];
        if place.0 == address {
            return Some(place.1);
        }
        *place = (address, self.count);
        self.count += 1;
        None
    }
}

/// Appends a reference to a string or bytes object that is in the container already. Returns false if it is not.
fn put_repeated(value: &Bound<'_, PyAny>, len: usize, out: &mut Vec<u8>, depth: u32, memo: &mut Memo) -> bool {
    if depth == 0 || len < LONG {
        return false;
    }
    let Some(which) = memo.find_or_add(value) else { return false };
    out.push(REPEATED);
    out.extend(which.to_le_bytes());
    true
}

/// Appends a value to `out`, if it has an encoding of its own. Returns false if not: the caller must then truncate `out`.
/// `depth` is the number of containers around the value.
fn try_put(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: u32, memo: &mut Memo) -> bool {
    if value.is_exact_instance_of::<PyInt>() {
        let Ok(number) = value.extract::<i64>() else { return false };
        out.push(INT);
        out.extend(number.to_le_bytes());
    } else if let Ok(text) = value.cast_exact::<PyString>() {
        let Ok(text) = text.to_str() else { return false }; // lone surrogates
        if put_repeated(value, text.len(), out, depth, memo) {
            return true;
        }
        if !put_len(STR, text.len(), out) {
            return false;
        }
        out.extend(text.as_bytes());
    } else if let Ok(bytes) = value.cast_exact::<PyBytes>() {
        if put_repeated(value, bytes.as_bytes().len(), out, depth, memo) {
            return true;
        }
        if !put_len(BYTES, bytes.as_bytes().len(), out) && (depth > 0 || bytes.as_bytes().len() > u32::MAX as usize) {
            return false;
        }
        out.extend(bytes.as_bytes());
    } else if let Ok(number) = value.cast_exact::<PyFloat>() {
        out.push(FLOAT);
        out.extend(number.value().to_le_bytes());
    } else if value.is_none() {
        out.push(NONE);
    } else if let Ok(truth) = value.cast_exact::<PyBool>() {
        out.push(if truth.is_true() { TRUE } else { FALSE });
    } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        return depth < DEEPEST
            && put_len(TUPLE, tuple.len(), out)
            && tuple.iter_borrowed().all(|item| try_put(&item, out, depth + 1, memo));
    } else if depth > 0 {
        return false;
    } else if let Ok(list) = value.cast_exact::<PyList>() {
        // Another thread may change the list if the interpreter is free-threaded.
        return with_critical_section(list, || {
            put_len(LIST, list.len(), out) && list.iter().all(|item| try_put(&item, out, depth + 1, memo))
        });
    } else if let Ok(dict) = value.cast_exact::<PyDict>() {
        return with_critical_section(dict, || {
            put_len(DICT, dict.len(), out)
                && dict.iter().all(|(key, value)| try_put(&key, out, 1, memo) && try_put(&value, out, 1, memo))
        });
    } else {
        return false;
    }
    true
}

/// Appends a value to `out`, if it has an encoding of its own, and returns whether it has. `depth` is the number of containers
/// around the value; `memo` belongs to the outermost one.
#[inline]
pub(super) fn put_simple(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: u32, memo: &mut Memo) -> bool {
    let start = out.len();
    let is_simple = try_put(value, out, depth, memo);
    if !is_simple {
        out.truncate(start);
    }
    is_simple
}

/// Returns the bytes of a large `bytes` object and appends their tag and length to `out`; `None` for any other value.
#[inline]
pub(crate) fn large_bytes<'a>(value: &'a Bound<'_, PyAny>, out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let bytes = value.cast_exact::<PyBytes>().ok()?.as_bytes();
    let len = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() > MOST)?;
    out.push(BYTES);
    out.extend(len.to_le_bytes());
    Some(bytes)
}
