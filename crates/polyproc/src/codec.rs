//! Encodes values as bytes, in postcard, and as the descriptors that [`carry`] adds and [`take`] removes.

use std::any::{Any, type_name};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use polyproc_core::{Input, MemoryError, Payload, Verdict, error_chain};
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value that can be sent to another process: any type that serde can encode, and decode without borrowing.
///
/// The encoding is postcard, which is not self-describing. Types that need a self-describing format
/// (`#[serde(untagged)]`, `#[serde(flatten)]`, `skip_serializing_if`, `serde_json::Value`) fail with a [`CodecError`].
pub trait Transfer: Serialize + DeserializeOwned + 'static {}

impl<T: Serialize + DeserializeOwned + 'static> Transfer for T {}

/// A value could not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("could not {} of type {}: {}", .0.step, .0.type_name, .0.reason)]
pub struct CodecError(Box<CodecProblem>); // boxed, to keep the `Result`s of successful calls small

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CodecProblem {
    step: String,
    type_name: String,
    reason: String,
}

impl CodecError {
    #[cold]
    pub(crate) fn new<T>(step: &str, what: &str, reason: impl ToString) -> Self {
        let reason = PROBLEM.take().unwrap_or_else(|| reason.to_string());
        let (step, type_name) = (format!("{step} {what}"), type_name::<T>().to_owned());
        Self(Box::new(CodecProblem { step, type_name, reason }))
    }
}

/// Why a value could not pass through a queue or a pipe, other than the state of the queue or pipe.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The value could not be encoded, or decoded as the requested type. A value that could not be decoded is lost.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The queue's memory is unusable, or the system provides no more.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The descriptors of the handles in the value could not be passed on.
    #[error("the handles in the value could not be transferred")]
    Descriptors(#[source] io::Error),
    /// The value holds handles, which a queue cannot put back when the consumer dies.
    #[error("a queue that puts items back when a consumer dies cannot hold values with handles")]
    NotReturnable,
    /// A system call failed.
    #[error("the value could not be transferred")]
    Os(#[source] io::Error),
}

/// The largest capacity of a buffer that is kept for the next call.
const KEPT_LEN_BYTES: usize = 4 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `run` with an empty buffer, which the thread reuses between calls.
#[inline]
pub(crate) fn with_buffer<R>(run: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) => {
            buffer.clear();
            let result = run(&mut buffer);
            if buffer.capacity() > KEPT_LEN_BYTES {
                *buffer = Vec::new();
            }
            result
        }
        Err(_) => run(&mut Vec::new()), // called within a value's own `Serialize`
    })
}

/// Encodes to the end of a reused buffer.
struct Buffer<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Buffer<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// The descriptors of the values that this thread is encoding. Encodings nest: a value's `Serialize` may encode another value.
#[derive(Debug, Clone, Copy, Default)]
struct Leaving {
    /// The number of nested values.
    values: u32,
    /// The number of descriptors in [`LEAVING_FDS`].
    len: usize,
    /// The index of the first descriptor of the innermost value.
    first: usize,
}

thread_local! {
    static LEAVING: Cell<Leaving> = const { Cell::new(Leaving { values: 0, len: 0, first: 0 }) };
    /// Copies of descriptors, each with the number of the original if several handles may share the copy.
    static LEAVING_FDS: RefCell<Vec<(OwnedFd, Option<RawFd>)>> = const { RefCell::new(Vec::new()) };
    /// The descriptors of the value that is being decoded.
    static ARRIVING: RefCell<Vec<Option<OwnedFd>>> = const { RefCell::new(Vec::new()) };
    /// The error text of [`carry`] or [`take`], as postcard does not keep the text of an error.
    static PROBLEM: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A value that is being encoded.
struct Encoding {
    outer: Leaving,
}

impl Encoding {
    #[inline]
    fn begin() -> Self {
        let outer = LEAVING.get();
        LEAVING.set(Leaving { values: outer.values + 1, len: outer.len, first: outer.len });
        Self { outer }
    }

    /// Removes and returns the descriptors that were added since [`Encoding::begin`].
    #[inline]
    fn fds(&self) -> Vec<OwnedFd> {
        let first = self.outer.len;
        if LEAVING.get().len == first {
            return Vec::new();
        }
        LEAVING_FDS.with_borrow_mut(|fds| fds.drain(first..).map(|(fd, _)| fd).collect())
    }
}

impl Drop for Encoding {
    #[inline]
    fn drop(&mut self) {
        if LEAVING.get().len != self.outer.len {
            LEAVING_FDS.with_borrow_mut(|fds| fds.truncate(self.outer.len));
        }
        LEAVING.set(self.outer);
    }
}

/// Records the text of an error of [`carry`] or [`take`], and returns the error for serde.
fn problem<E>(text: String, custom: fn(String) -> E) -> E {
    PROBLEM.set(Some(text.clone()));
    custom(text)
}

/// Adds a copy of a descriptor to the value that is being encoded, and returns its index among the descriptors of that value.
/// With `shared`, handles to the same descriptor share one copy.
fn leave(fd: BorrowedFd<'_>, shared: bool) -> Result<u32, String> {
    let mut leaving = LEAVING.get();
    let number = shared.then(|| fd.as_raw_fd());
    let is_same = |(_, of): &(OwnedFd, Option<RawFd>)| *of == number;
    let find = || LEAVING_FDS.with_borrow(|fds| fds[leaving.first..].iter().rposition(is_same));
    let index = match if shared { find() } else { None } {
        Some(index) => index,
        None => {
            let copy =
                fd.try_clone_to_owned().map_err(|error| format!("its descriptor could not be copied: {error}"))?;
            LEAVING_FDS.with_borrow_mut(|fds| fds.push((copy, number)));
            leaving.len += 1;
            LEAVING.set(leaving);
            leaving.len - 1 - leaving.first
        }
    };
    u32::try_from(index).map_err(|error| error.to_string())
}

/// Checks that polyproc encodes the handle.
///
/// # Errors
/// Fails outside of an [`Encoding`], where another format encodes the handle.
fn check_encoding() -> Result<(), String> {
    match LEAVING.get().values {
        0 => Err("a handle can be sent to another process only by polyproc itself".to_owned()),
        _ => Ok(()),
    }
}

/// Encodes a handle as its descriptors, which travel beside the bytes. For the handle's `Serialize`.
pub(crate) fn carry<S: Serializer>(fds: &[BorrowedFd<'_>], serializer: S) -> Result<S::Ok, S::Error> {
    let carry = || -> Result<u32, String> {
        check_encoding()?;
        let leaving = LEAVING.get();
        let first = u32::try_from(leaving.len - leaving.first).map_err(|error| error.to_string())?;
        fds.iter().try_for_each(|fd| leave(*fd, false).map(drop))?;
        Ok(first)
    };
    carry().map_err(|why| problem(why, S::Error::custom))?.serialize(serializer)
}

/// Encodes a handle to an object in a file, at an offset. All such handles in one value share one descriptor per file.
pub(crate) fn carry_place<S: Serializer>((file, at): (BorrowedFd<'_>, u64), serializer: S) -> Result<S::Ok, S::Error> {
    let index = check_encoding().and_then(|()| leave(file, true));
    (index.map_err(|why| problem(why, S::Error::custom))?, at).serialize(serializer)
}

/// Decodes a handle that [`carry_place`] encoded: calls `open` with the file and the offset.
pub(crate) fn take_place<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    open: impl FnOnce(BorrowedFd<'_>, u64) -> io::Result<T>,
) -> Result<T, D::Error> {
    let (first, at): (u32, u64) = Deserialize::deserialize(deserializer)?;
    let opened = ARRIVING.with_borrow(|arriving| {
        let file = arriving.get(first as usize).and_then(Option::as_ref);
        file.map(|file| open(file.as_fd(), at).map_err(|error| error_chain(&error)))
    });
    opened.unwrap_or_else(|| Err("its descriptor is missing".to_owned())).map_err(|why| problem(why, D::Error::custom))
}

/// Returns the descriptors that [`carry`] encoded. For the handle's `Deserialize`.
pub(crate) fn take<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[OwnedFd; N], D::Error> {
    let first = u32::deserialize(deserializer)? as usize;
    let fds = ARRIVING.with_borrow_mut(|arriving| {
        (first..first.saturating_add(N)).map(|at| arriving.get_mut(at)?.take()).collect::<Option<Vec<_>>>()
    });
    let fds = fds.and_then(|fds| fds.try_into().ok());
    fds.ok_or_else(|| problem("its descriptors are missing".to_owned(), D::Error::custom))
}

/// Appends the encoded value to `bytes`, and returns the descriptors that belong to it.
#[inline]
pub(crate) fn encode_to<T: Serialize + 'static>(
    what: &str,
    value: &T,
    bytes: &mut Vec<u8>,
) -> Result<Vec<OwnedFd>, CodecError> {
    if let Some(value) = (value as &dyn Any).downcast_ref::<Vec<u8>>() {
        encode_bytes(value, bytes);
        return Ok(Vec::new());
    }
    let encoding = Encoding::begin();
    match postcard::serialize_with_flavor(value, Buffer(bytes)) {
        Ok(()) => Ok(encoding.fds()),
        Err(error) => Err(CodecError::new::<T>("encode", what, error)),
    }
}

/// Returns the encoded value. `what` names it in the error, as "the argument" or "the result".
pub(crate) fn encode<T: Serialize + 'static>(what: &str, value: &T) -> Result<Payload, CodecError> {
    let mut bytes = Vec::new();
    let fds = encode_to(what, value, &mut bytes)?;
    Ok(Payload { bytes, fds })
}

/// Encodes bytes as postcard does, but copies them at once: serde visits each byte of a `Vec<u8>`.
fn encode_bytes(value: &[u8], out: &mut Vec<u8>) {
    out.reserve(value.len() + 10); // the length has at most 10 bytes
    postcard::serialize_with_flavor(&value.len(), Buffer(out)).expect("a length can be encoded");
    out.extend_from_slice(value);
}

/// Decodes a `Vec<u8>` that [`encode_bytes`] encoded, if `T` is one.
fn decode_bytes<T: 'static>(bytes: &[u8]) -> Option<T> {
    let mut decoded: Option<T> = None;
    let slot = (&mut decoded as &mut dyn Any).downcast_mut::<Option<Vec<u8>>>()?;
    let (len, rest) = postcard::take_from_bytes::<usize>(bytes).ok()?;
    *slot = (rest.len() == len).then(|| rest.to_vec());
    decoded
}

/// Decodes a value from its bytes and descriptors.
#[inline]
pub(crate) fn decode_from<T: DeserializeOwned + 'static>(
    what: &str,
    bytes: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<T, CodecError> {
    if let Some(decoded) = decode_bytes(bytes) {
        return Ok(decoded);
    }
    let outer = (!fds.is_empty()).then(|| ARRIVING.replace(fds.into_iter().map(Some).collect()));
    let decoded = postcard::take_from_bytes(bytes);
    if let Some(outer) = outer {
        ARRIVING.set(outer);
    }
    match decoded {
        Ok((value, [])) => Ok(value),
        Ok((_, left)) => Err(CodecError::new::<T>("decode", what, format!("{} bytes left over", left.len()))),
        Err(error) => Err(CodecError::new::<T>("decode", what, error)),
    }
}

pub(crate) fn decode<T: DeserializeOwned + 'static>(what: &str, payload: Payload) -> Result<T, CodecError> {
    decode_from(what, &payload.bytes, payload.fds)
}

/// Decodes the argument, calls `call`, and encodes the result, or a [`CodecError`] in its place.
#[inline]
pub(crate) fn through<A, R>(input: Input<'_>, out: &mut Payload, call: impl FnOnce(A) -> R) -> Verdict
where
    A: DeserializeOwned + 'static,
    R: Serialize + 'static,
{
    match decode_from("the argument", input.bytes, input.fds) {
        Ok(argument) => answer(out, &call(argument)),
        Err(error) => raise(out, error),
    }
}

/// Encodes a result, or the error if that fails.
#[inline]
pub(crate) fn answer<R: Serialize + 'static>(out: &mut Payload, result: &R) -> Verdict {
    let start = out.bytes.len();
    match encode_to("the result", result, &mut out.bytes) {
        Ok(fds) => {
            out.fds = fds;
            Verdict::Returned
        }
        Err(error) => {
            out.bytes.truncate(start);
            raise(out, error)
        }
    }
}

/// Encodes an error in place of a result.
#[cold]
pub(crate) fn raise(out: &mut Payload, error: CodecError) -> Verdict {
    encode_to("the error", &error, &mut out.bytes).expect("three strings can be encoded");
    Verdict::Raised
}

/// Decodes a [`CodecError`] that a child encoded.
pub(crate) fn raised(bytes: &[u8]) -> CodecError {
    decode_from("the error", bytes, Vec::new()).unwrap_or_else(|error| error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_encoded_as_postcard_encodes_them() {
        for len in [0, 1, 127, 128, 300, 70_000] {
            let value = vec![7u8; len];
            let encoded = encode("the value", &value).expect("bytes");
            assert_eq!(encoded.bytes, postcard::to_stdvec(&value).expect("bytes"), "{len}");
            assert_eq!(decode::<Vec<u8>>("the value", encoded).expect("bytes"), value);
        }
        let cut = Payload::from(vec![200, 1, 7]);
        assert!(decode::<Vec<u8>>("the value", cut).is_err());
    }

    #[test]
    fn what_cannot_travel_says_so() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(untagged)]
        enum Untagged {
            Number(u32),
        }
        let payload = encode("the argument", &Untagged::Number(1)).expect("writing works");
        let error = decode::<Untagged>("the argument", payload).expect_err("reading does not");
        assert!(error.to_string().starts_with("could not decode the argument of type "), "{error}");
        let mut out = Payload::default();
        assert_eq!(raise(&mut out, error.clone()), Verdict::Raised);
        assert_eq!(raised(&out.bytes), error);
    }

    #[test]
    fn leftovers_and_cuts_are_errors() {
        let payload = || encode("x", &(1u8, "text".to_owned())).expect("plain data");
        assert_eq!(decode::<(u8, String)>("x", payload()), Ok((1, "text".to_owned())));
        assert!(decode::<u8>("x", payload()).is_err());
        assert!(decode::<(u8, String, u64)>("x", payload()).is_err());
    }
}
