//! Values as bytes, one after the other. The first byte of each says how: the simplest values have forms of their own, all
//! else is a pickle.
//!
//! | tag | then |
//! |---|---|
//! | NONE, TRUE, FALSE | nothing |
//! | INT | 8 bytes, little-endian, signed |
//! | FLOAT | 8 bytes, little-endian |
//! | STR, BYTES | a length, `u32`; UTF-8, or any bytes |
//! | TUPLE, LIST, DICT | a count, `u32`; so many values, or keys and values |
//! | PICKLE | how many descriptors it has, `u16`; a length, `u64`; what `polyproc._pickling.dumps` made |
//! | BUFFERS | as PICKLE, then a count, `u32`, and a length, `u64`, for each buffer that the pickle left out; then these |
//! | LENT_BUFFERS | a length, `u64`, of what is lent; as BUFFERS, with where it starts in it, `u64`, for each buffer |
//! | LENT_BYTES | a length, `u64` |
//! | REPEATED | which of the long strings and bytes of the same container it is, `u32`, in their order |
//!
//! What is lent is behind one more descriptor, the first: large buffers, such as those of arrays, are written once and not
//! copied where they arrive (`polyproc_core::lend`).
//!
//! Only values of exactly these types: a subclass is a pickle. A container has a form of its own only when all in it do, and
//! a list or dict only when it is in nothing else: so nothing that was one object arrives as two that one could tell apart. A
//! string that is in a container many times is there once, as in a pickle.

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

/// Of a pickle: tag, number of descriptors, length.
const PICKLE_HEAD: usize = 11;
/// Of a list: tag, count.
const LIST_HEAD: usize = 5;
/// A pickle above this is not copied once more to be read.
const LARGE: usize = 64 << 10;
/// Larger bytes, and containers of more, are pickles, which are made without copying, and deep ones.
const MOST: usize = 1 << 16;
const DEEPEST: u32 = 8;
/// From this length on strings and bytes are looked for that are the same object.
const LONG: usize = 16;
/// So many bytes together are lent.
const LENT: usize = 1 << 20;

/// A function of `polyproc._pickling`.
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

/// The long strings and bytes that were put in a container: the last of each hash, by its address.
#[derive(Default)]
pub(crate) struct Memo {
    places: Vec<(usize, u32)>,
    count: u32,
}

impl Memo {
    const PLACES: usize = 256;

    /// Which of them an object is, if it is known to be there; else it is one more.
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

/// Puts a reference to a string or bytes that is in the container already. False when it is not.
fn put_repeated(value: &Bound<'_, PyAny>, len: usize, out: &mut Vec<u8>, depth: u32, memo: &mut Memo) -> bool {
    if depth == 0 || len < LONG {
        return false;
    }
    let Some(which) = memo.find_or_add(value) else { return false };
    out.push(REPEATED);
    out.extend(which.to_le_bytes());
    true
}

/// Puts the form of a value at the end of `out`, if it has one of its own; else something that is to be removed. `depth` is
/// how far it is down in others.
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
        // Another thread may change it, where there is no lock for all of the interpreter.
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

/// What is done with values that have no form of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct How {
    /// What pickle refuses goes through cloudpickle, where that is installed.
    by_value: bool,
    lends: bool,
}

impl How {
    /// A result, or what goes through a queue or a pipe.
    pub(crate) const VALUE: Self = Self { by_value: false, lends: true };
    /// Where there is no room for descriptors.
    pub(crate) const WHOLE: Self = Self { by_value: false, lends: false };
    /// Arguments.
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

/// Lends buffers, if they are large enough; those that were lent to this process and are unchanged as they are.
fn lend(buffers: &[PyBuffer<u8>]) -> PyResult<Option<Lent>> {
    if buffers.iter().map(|buffer| buffer.len_bytes()).sum::<usize>() < LENT || !may_lend() {
        return Ok(None);
    }
    buffer::with_bytes(buffers, |parts| {
        let ends = |starts: &[u64]| starts.iter().zip(parts).map(|(start, part)| start + part.len() as u64).max();
        let lent = match buffer::find_loan(parts)? {
            Some(found) => Some(found),
            // Without a descriptor, or whatever else it takes, a copy is as good.
            None => polyproc_core::lend(parts).unwrap_or(None),
        };
        Ok(lent.map(|(fd, starts)| Lent { fd, len: ends(&starts).unwrap_or(0), starts }))
    })
}

/// Puts a value at the end of `out`, and copies of the descriptors that it speaks of in `fds`.
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

/// The bytes of a large `bytes` object, and in `out` what is to stand before them.
pub(crate) fn large_bytes<'a>(value: &'a Bound<'_, PyAny>, out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let bytes = value.cast_exact::<PyBytes>().ok()?.as_bytes();
    let len = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() > MOST)?;
    out.push(BYTES);
    out.extend(len.to_le_bytes());
    Some(bytes)
}

/// Whether a message speaks of a loan.
pub(crate) fn is_lent(message: &[u8]) -> bool {
    matches!(message.first(), Some(&LENT_BUFFERS | &LENT_BYTES))
}

/// How many bytes a message speaks of that are lent.
pub(crate) fn lent_bytes(message: &[u8]) -> usize {
    let len = message.get(1..9).filter(|_| is_lent(message)).and_then(|len| len.try_into().ok());
    len.and_then(|len| usize::try_from(u64::from_le_bytes(len)).ok()).unwrap_or(0)
}

/// Puts many values at the end of `out`: each in a form of its own, or all in one pickle.
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

/// Begins a list of so many values, to be put in it one by one ([`put_in_list`]); gives where it begins.
pub(crate) fn begin_list(count: usize, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.push(LIST);
    out.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    start
}

/// Puts a value in a list, if it has a form of its own; `memo` is that of the list.
pub(crate) fn put_in_list(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, memo: &mut Memo) -> bool {
    let start = out.len();
    let is_simple = put_simple(value, out, 1, memo);
    if !is_simple {
        out.truncate(start);
    }
    is_simple
}

/// The first `count` values of a list that was begun.
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
    /// How many there are, before the first is taken.
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

/// What there is to decode.
pub(crate) struct Source<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) fds: std::vec::IntoIter<OwnedFd>,
    /// The long strings and bytes of the container that is being decoded.
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

    /// Number of descriptors, and a pickle.
    fn take_pickle(&mut self) -> PyResult<(usize, &'a [u8])> {
        let fds = u16::from_le_bytes(self.take()?);
        let len = self.take_u64()?;
        Ok((fds.into(), self.take_bytes(len)?))
    }

    /// What is lent, `len` bytes.
    fn take_loan(&mut self, len: usize) -> PyResult<Arc<Memory>> {
        Ok(buffer::note_loan(Loan::open(self.fds.next().ok_or_else(broken)?, len)?))
    }

    /// A value whose buffers are beside its pickle; those of `loan`, or those that follow.
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
                // Of its own, so that it is aligned.
                None => buffers.append(PyByteArray::new(py, self.take_bytes(len)?))?,
            }
        }
        let fds = self.fds.by_ref().take(fds).collect();
        loads(py, PyBytes::new(py, pickle).into_any(), fds, Some(buffers))
    }

    /// The next value.
    pub(crate) fn decode<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.repeated.clear();
        self.decode_inner(py)
    }

    /// Strings and bytes of this length may be referred to.
    fn note(&mut self, value: &Bound<'_, PyAny>, len: usize) {
        if len >= LONG {
            self.repeated.push(value.clone().unbind());
        }
    }

    /// The next value, which may be in a container.
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

    /// The next value, which is a list.
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
    /// Memory for messages, to be used again.
    static MEMORY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// More is given back.
const KEPT: usize = 4 << 20;

/// Runs `use_it` with memory for a message.
pub(crate) fn with_memory<T>(use_it: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut bytes = MEMORY.take();
    bytes.clear();
    let result = use_it(&mut bytes);
    if bytes.capacity() <= KEPT {
        MEMORY.set(bytes);
    }
    result
}

/// The value of a message of one value. The message is used up if it is large.
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

/// The value of a pickle of other code.
pub(crate) fn unpickle<'py>(py: Python<'py>, pickle: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    loads(py, PyBytes::new(py, pickle).into_any(), Vec::new(), None)
}

/// Borrowed for a message.
pub(crate) fn borrowed(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}
