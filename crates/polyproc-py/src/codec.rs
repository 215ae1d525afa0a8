//! Encodes values as bytes, one after the other. The first byte of a value is its tag: the simplest values have encodings of
//! their own, all others are pickles.
//!
//! | tag | followed by |
//! |---|---|
//! | NONE, TRUE, FALSE | nothing |
//! | INT | 8 bytes, little-endian, signed |
//! | FLOAT | 8 bytes, little-endian |
//! | STR, BYTES | a length, `u32`; UTF-8, or any bytes |
//! | TUPLE, LIST, DICT | a count, `u32`; then that many values, or keys and values |
//! | PICKLE | its number of descriptors, `u16`; a length, `u64`; the pickle from `polyproc._pickling.dumps` |
//! | BUFFERS | as PICKLE; a count, `u32`; a length, `u64`, for each buffer that is not in the pickle; the buffers |
//! | LENT_BUFFERS | the loan's length, `u64`; as BUFFERS, with an offset in the loan, `u64`, before each length; no buffers |
//! | LENT_BYTES | the length of the loan, `u64` |
//! | REPEATED | the index, `u32`, of an earlier object among the long strings and bytes of the same container |
//!
//! A loan is behind an additional descriptor, the first one: large buffers, such as those of arrays, are written once, and the
//! receiver does not copy them (`polyproc_core::lend`).
//!
//! Only values of exactly these types have an encoding of their own: an instance of a subclass is a pickle. A container has one
//! only if all its values do, and a list or dict only if it is not in another container. So one object never arrives as two
//! objects that a program could distinguish. A string that is in a container many times is encoded once, as in a pickle.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use polyproc_core::Loan;
use polyproc_core::pool::may_lend;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::buffer::{self, Memory, Owned};
use crate::sys;

const NONE: u8 = 0;
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const INT: u8 = 3;
const FLOAT: u8 = 4;
const STR: u8 = 5;
const BYTES: u8 = 6;
const TUPLE: u8 = 7;
const LIST: u8 = 8;
const DICT: u8 = 9;
const PICKLE: u8 = 10;
const BUFFERS: u8 = 11;
const LENT_BUFFERS: u8 = 12;
const LENT_BYTES: u8 = 13;
const REPEATED: u8 = 14;

/// Bytes before a pickle: tag, number of descriptors, length.
const PICKLE_HEAD: usize = 11;
/// Bytes before the values of a list: tag, count.
const LIST_HEAD: usize = 5;
/// A message of one pickle with at least this many bytes is unpickled in place, without another copy.
const LARGE: usize = 64 << 10;
/// Limit of the length of a string, of the length of bytes in a container, and of the number of values in a container. Values
/// above it are pickled, which copies less.
const MOST: usize = 1 << 16;
/// Limit of the nesting of tuples. Values nested deeper are pickled.
const DEEPEST: u32 = 8;
/// Strings and bytes of at least this length are encoded once if they are in a container many times.
const LONG: usize = 16;
/// Buffers of at least this many bytes together are lent.
const LENT: usize = 1 << 20;

/// Returns a function of `polyproc._pickling`, which is imported once.
fn pickling<'py>(
    py: Python<'py>,
    function: &'static PyOnceLock<Py<PyAny>>,
    name: &str,
) -> PyResult<&'py Bound<'py, PyAny>> {
    let function =
        function.get_or_try_init(py, || Ok::<_, PyErr>(py.import("polyproc._pickling")?.getattr(name)?.into()));
    function.map(|function| function.bind(py))
}

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
fn put_simple(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: u32, memo: &mut Memo) -> bool {
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
            && tuple.iter_borrowed().all(|item| put_simple(&item, out, depth + 1, memo));
    } else if depth > 0 {
        return false;
    } else if let Ok(list) = value.cast_exact::<PyList>() {
        // Another thread may change the list if the interpreter is free-threaded.
        return with_critical_section(list, || {
            put_len(LIST, list.len(), out) && list.iter().all(|item| put_simple(&item, out, depth + 1, memo))
        });
    } else if let Ok(dict) = value.cast_exact::<PyDict>() {
        return with_critical_section(dict, || {
            put_len(DICT, dict.len(), out)
                && dict.iter().all(|(key, value)| put_simple(&key, out, 1, memo) && put_simple(&value, out, 1, memo))
        });
    } else {
        return false;
    }
    true
}

fn encode_simple(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let is_simple = put_simple(value, out, 0, &mut Memo::default());
    if !is_simple {
        out.truncate(start);
    }
    is_simple
}

/// How values without an encoding of their own are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct How {
    /// Values that pickle refuses go through cloudpickle, if it is installed.
    by_value: bool,
    /// Large buffers are lent.
    lends: bool,
}

impl How {
    /// A result, or an item of a queue or a pipe.
    pub(crate) const VALUE: Self = Self { by_value: false, lends: true };
    /// An item of a queue that takes no loans.
    pub(crate) const WHOLE: Self = Self { by_value: false, lends: false };
    /// Arguments of a task.
    pub(crate) const ARGUMENTS: Self = Self { by_value: true, lends: true };
    /// A function, which is sent to each worker once.
    pub(crate) const FUNCTION: Self = Self { by_value: true, lends: false };
}

fn encode_pickle(value: &Bound<'_, PyAny>, how: How, out: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> PyResult<()> {
    static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static DUMPS_TASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = value.py();
    let dumps = if how.by_value { pickling(py, &DUMPS_TASK, "dumps_task")? } else { pickling(py, &DUMPS, "dumps")? };
    let (pickle, numbers, buffers): (Bound<'_, PyAny>, Vec<RawFd>, Vec<Bound<'_, PyAny>>) =
        dumps.call1((value,))?.extract()?;
    let buffers = buffers.iter().map(PyBuffer::get).collect::<PyResult<Vec<PyBuffer<u8>>>>()?;
    let lent = if how.lends { lend(&buffers)? } else { None };
    match (&lent, buffers.is_empty()) {
        (Some(lent), _) => {
            out.push(LENT_BUFFERS);
            out.extend(lent.len.to_le_bytes());
        }
        (None, false) => out.push(BUFFERS),
        (None, true) => out.push(PICKLE),
    }
    let too_many = || PyRuntimeError::new_err(format!("a value speaks of {} descriptors", numbers.len()));
    out.extend(u16::try_from(numbers.len()).map_err(|_| too_many())?.to_le_bytes());
    let start = out.len();
    out.extend([0; 8]);
    buffer::append(&pickle, out)?;
    let len = (out.len() - start - 8) as u64;
    out[start..start + 8].copy_from_slice(&len.to_le_bytes());
    if !buffers.is_empty() {
        out.extend(
            u32::try_from(buffers.len()).map_err(|_| PyRuntimeError::new_err("too many buffers"))?.to_le_bytes(),
        );
        for (at, buffer) in buffers.iter().enumerate() {
            if let Some(lent) = &lent {
                out.extend(lent.starts[at].to_le_bytes());
            }
            out.extend((buffer.len_bytes() as u64).to_le_bytes());
        }
        if lent.is_none() {
            buffer::with_bytes(&buffers, |parts| parts.iter().for_each(|part| out.extend_from_slice(part)));
        }
    }
    fds.extend(lent.map(|lent| lent.fd));
    for number in numbers {
        fds.push(sys::duplicate(number)?);
    }
    Ok(())
}

/// Buffers in the memory of a loan.
struct Lent {
    fd: OwnedFd,
    len: u64,
    starts: Vec<u64>,
}

/// Lends buffers that are large enough. Buffers in a loan to this process are lent on without a copy if they are unchanged.
fn lend(buffers: &[PyBuffer<u8>]) -> PyResult<Option<Lent>> {
    if buffers.iter().map(|buffer| buffer.len_bytes()).sum::<usize>() < LENT || !may_lend() {
        return Ok(None);
    }
    buffer::with_bytes(buffers, |parts| {
        let ends = |starts: &[u64]| starts.iter().zip(parts).map(|(start, part)| start + part.len() as u64).max();
        let lent = match buffer::find_loan(parts)? {
            Some(found) => Some(found),
            // If the system has no descriptor or memory for a loan, the buffers are copied.
            None => polyproc_core::lend(parts).unwrap_or(None),
        };
        Ok(lent.map(|(fd, starts)| Lent { fd, len: ends(&starts).unwrap_or(0), starts }))
    })
}

/// Appends a value to `out`, and duplicates of its descriptors to `fds`.
pub(crate) fn encode(value: &Bound<'_, PyAny>, how: How, out: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> PyResult<()> {
    if how.lends
        && let Ok(bytes) = value.cast_exact::<PyBytes>()
        && bytes.as_bytes().len() >= LENT
        && may_lend()
        && let Ok(Some((fd, _))) = polyproc_core::lend(&[bytes.as_bytes()])
    {
        out.push(LENT_BYTES);
        out.extend((bytes.as_bytes().len() as u64).to_le_bytes());
        fds.push(fd);
        return Ok(());
    }
    if encode_simple(value, out) { Ok(()) } else { encode_pickle(value, how, out, fds) }
}

/// Returns the bytes of a large `bytes` object and appends their tag and length to `out`; `None` for any other value.
pub(crate) fn large_bytes<'a>(value: &'a Bound<'_, PyAny>, out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let bytes = value.cast_exact::<PyBytes>().ok()?.as_bytes();
    let len = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() > MOST)?;
    out.push(BYTES);
    out.extend(len.to_le_bytes());
    Some(bytes)
}

/// Returns whether a message refers to a loan.
pub(crate) fn is_lent(message: &[u8]) -> bool {
    matches!(message.first(), Some(&LENT_BUFFERS | &LENT_BYTES))
}

/// Returns the length of the loan that a message refers to, in bytes; 0 if there is none.
pub(crate) fn lent_bytes(message: &[u8]) -> usize {
    let len = message.get(1..9).filter(|_| is_lent(message)).and_then(|len| len.try_into().ok());
    len.and_then(|len| usize::try_from(u64::from_le_bytes(len)).ok()).unwrap_or(0)
}

/// Appends a list of values to `out`: each in an encoding of its own, or all in one pickle.
pub(crate) fn encode_all(
    values: &Bound<'_, PyList>,
    how: How,
    out: &mut Vec<u8>,
    fds: &mut Vec<OwnedFd>,
) -> PyResult<()> {
    let start = out.len();
    let are_simple = with_critical_section(values, || {
        begin_list(values.len(), out);
        let mut memo = Memo::default();
        u32::try_from(values.len()).is_ok() && values.iter().all(|value| put_simple(&value, out, 1, &mut memo))
    });
    if are_simple {
        return Ok(());
    }
    out.truncate(start);
    encode_pickle(values, how, out, fds)
}

/// Begins a list of `count` values, which [`put_in_list`] appends one by one. Returns the offset of the list.
pub(crate) fn begin_list(count: usize, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.push(LIST);
    out.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    start
}

/// Appends a value to a list, if it has an encoding of its own, and returns whether it has. `memo` belongs to the list.
pub(crate) fn put_in_list(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, memo: &mut Memo) -> bool {
    let start = out.len();
    let is_simple = put_simple(value, out, 1, memo);
    if !is_simple {
        out.truncate(start);
    }
    is_simple
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

fn broken() -> PyErr {
    PyRuntimeError::new_err("what arrived is no value that polyproc sent")
}

/// Bytes to decode, with their descriptors.
pub(crate) struct Source<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) fds: std::vec::IntoIter<OwnedFd>,
    /// The long strings and bytes decoded so far in the current container.
    repeated: Vec<Py<PyAny>>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(bytes: &'a [u8], fds: Vec<OwnedFd>) -> Self {
        Self { bytes, fds: fds.into_iter(), repeated: Vec::new() }
    }

    fn take<const LEN: usize>(&mut self) -> PyResult<[u8; LEN]> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or_else(broken)?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub(crate) fn byte(&mut self) -> PyResult<u8> {
        self.take().map(|[byte]| byte)
    }

    fn take_len(&mut self) -> PyResult<usize> {
        Ok(u32::from_le_bytes(self.take()?) as usize)
    }

    fn take_bytes(&mut self, len: usize) -> PyResult<&'a [u8]> {
        self.bytes.split_off(..len).ok_or_else(broken)
    }

    fn take_u64(&mut self) -> PyResult<usize> {
        usize::try_from(u64::from_le_bytes(self.take()?)).map_err(|_| broken())
    }

    /// Takes the number of descriptors and the bytes of a pickle.
    fn take_pickle(&mut self) -> PyResult<(usize, &'a [u8])> {
        let fds = u16::from_le_bytes(self.take()?);
        let len = self.take_u64()?;
        Ok((fds.into(), self.take_bytes(len)?))
    }

    /// Maps the loan behind the next descriptor, `len` bytes.
    fn take_loan(&mut self, len: usize) -> PyResult<Arc<Memory>> {
        Ok(buffer::note_loan(Loan::open(self.fds.next().ok_or_else(broken)?, len)?))
    }

    /// Decodes a value whose buffers are not in its pickle, but in `loan`, or after the pickle.
    fn decode_with_buffers<'py>(&mut self, py: Python<'py>, loan: Option<&Arc<Memory>>) -> PyResult<Bound<'py, PyAny>> {
        let (fds, pickle) = self.take_pickle()?;
        let count = self.take_len()?;
        let mut places = Vec::new();
        for _ in 0..count {
            let start = if loan.is_some() { self.take_u64()? } else { 0 };
            places.push((start, self.take_u64()?));
        }
        let buffers = PyList::empty(py);
        for (start, len) in places {
            match loan {
                Some(loan) => buffers.append(Owned::part(loan, start, len).ok_or_else(broken)?)?,
                // An object of its own, so that it is aligned.
                None => buffers.append(PyByteArray::new(py, self.take_bytes(len)?))?,
            }
        }
        let fds = self.fds.by_ref().take(fds).collect();
        loads(py, PyBytes::new(py, pickle).into_any(), fds, Some(buffers))
    }

    /// Decodes the next value.
    pub(crate) fn decode<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.repeated.clear();
        self.decode_inner(py)
    }

    /// Keeps a long string or bytes object, to which later values may refer.
    fn note(&mut self, value: &Bound<'_, PyAny>, len: usize) {
        if len >= LONG {
            self.repeated.push(value.clone().unbind());
        }
    }

    /// Decodes the next value, which may be in a container.
    fn decode_inner<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let [tag] = self.take()?;
        match tag {
            INT => Ok(i64::from_le_bytes(self.take()?).into_pyobject(py)?.into_any()),
            FLOAT => Ok(PyFloat::new(py, f64::from_le_bytes(self.take()?)).into_any()),
            NONE => Ok(py.None().into_bound(py)),
            TRUE | FALSE => Ok(PyBool::new(py, tag == TRUE).to_owned().into_any()),
            STR => {
                let len = self.take_len()?;
                let text = std::str::from_utf8(self.take_bytes(len)?).map_err(|_| broken())?;
                let text = PyString::new(py, text).into_any();
                self.note(&text, len);
                Ok(text)
            }
            BYTES => {
                let len = self.take_len()?;
                let bytes = PyBytes::new(py, self.take_bytes(len)?).into_any();
                self.note(&bytes, len);
                Ok(bytes)
            }
            REPEATED => {
                let which = self.take_len()?;
                self.repeated.get(which).map(|value| value.bind(py).clone()).ok_or_else(broken)
            }
            TUPLE => {
                let items: Vec<_> = self.decode_many(py)?;
                Ok(PyTuple::new(py, items)?.into_any())
            }
            LIST => Ok(PyList::new(py, self.decode_many(py)?)?.into_any()),
            DICT => {
                let dict = PyDict::new(py);
                for _ in 0..self.take_len()? {
                    dict.set_item(self.decode_inner(py)?, self.decode_inner(py)?)?;
                }
                Ok(dict.into_any())
            }
            PICKLE => {
                let (fds, pickle) = self.take_pickle()?;
                loads(py, PyBytes::new(py, pickle).into_any(), self.fds.by_ref().take(fds).collect(), None)
            }
            BUFFERS => self.decode_with_buffers(py, None),
            LENT_BUFFERS => {
                let len = self.take_u64()?;
                let loan = self.take_loan(len)?;
                self.decode_with_buffers(py, Some(&loan))
            }
            LENT_BYTES => {
                let len = self.take_u64()?;
                Ok(self.take_loan(len)?.to_bytes(py).into_any())
            }
            _ => Err(broken()),
        }
    }

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

    fn decode_many<'py>(&mut self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let count = self.take_len()?;
        if count > self.bytes.len() {
            return Err(broken());
        }
        (0..count).map(|_| self.decode_inner(py)).collect()
    }
}

fn loads<'py>(
    py: Python<'py>,
    pickle: Bound<'py, PyAny>,
    fds: Vec<OwnedFd>,
    buffers: Option<Bound<'py, PyList>>,
) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    pickling(py, &LOADS, "loads")?.call1((pickle, sys::hand_over(fds), buffers))
}

thread_local! {
    /// Memory for messages, kept for reuse.
    static MEMORY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Limit of the memory that is kept, in bytes. Larger memory is freed.
const KEPT: usize = 4 << 20;

/// Calls `use_it` with an empty vector for a message, whose memory is reused.
pub(crate) fn with_memory<T>(use_it: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut bytes = MEMORY.take();
    bytes.clear();
    let result = use_it(&mut bytes);
    if bytes.capacity() <= KEPT {
        MEMORY.set(bytes);
    }
    result
}

/// Decodes a message of one value. Takes the vector out of `bytes` if the message is a large pickle, so that it is not copied.
pub(crate) fn decode_message<'py>(
    py: Python<'py>,
    bytes: &mut Vec<u8>,
    fds: Vec<OwnedFd>,
) -> PyResult<Bound<'py, PyAny>> {
    if bytes.len() >= LARGE && bytes.first() == Some(&PICKLE) {
        return loads(py, Bound::new(py, Owned::new(std::mem::take(bytes), PICKLE_HEAD))?.into_any(), fds, None);
    }
    Source::new(bytes, fds).decode(py)
}

/// Unpickles bytes that other code has pickled.
pub(crate) fn unpickle<'py>(py: Python<'py>, pickle: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    loads(py, PyBytes::new(py, pickle).into_any(), Vec::new(), None)
}

/// Borrows the descriptors of a message.
pub(crate) fn borrowed(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}
