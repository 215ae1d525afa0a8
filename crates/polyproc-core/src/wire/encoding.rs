//! The encoding of the engine's own messages: a sequence of little-endian integers and length-prefixed bytes.
//!
//! | item | bytes |
//! |---|---|
//! | `u8`, `u32`, `u64` | 1, 4, 8, little-endian |
//! | `flag` | 1: 0 or 1 |
//! | `bytes`, `text` | a `u32` length in bytes, then the bytes; `text` is UTF-8 |
//! | `list` | a `u32` count, then the items |
//! | `rest` | all bytes to the end of the message, without a length |
//!
//! Items have no tags and no version: sender and receiver are of one build, and read in the order in which they write. Used for
//! orders, outcomes, the zygote's protocol and a pool's messages; the values of users have the encodings of the faces.
//!
//! Reading never panics: a truncated or malformed message is a [`WireError`]. It allocates no more than a small multiple of the
//! message's length, whatever lengths and counts the message states.

/// A message is truncated, or a field has an invalid value. Its receiver cannot continue to read the message. As an
/// [`std::io::Error`] it is `InvalidData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message between polyproc's processes is truncated or malformed")]
pub(crate) struct WireError;

impl From<WireError> for std::io::Error {
    fn from(error: WireError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// A message that is being written. `Writer::default()` is empty; the message is complete at [`Writer::into_bytes`].
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// Writes one byte. A flag is written as 0 or 1.
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    /// Writes a length and `bytes`.
    ///
    /// # Panics
    /// If `bytes` has 4 GiB or more: the engine's own fields are names, paths and variables, and values go in [`Writer::rest`].
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).expect("a field below 4 GiB"));
        self.0.extend(bytes);
    }

    /// Writes the last field, which has no length: it extends to the end of the message.
    pub(crate) fn rest(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Returns the message.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Reads a message in the order in which it was written: the bytes that are left. After an error, the position is unspecified.
#[derive(Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Takes the next `len` bytes.
    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, left) = self.0.split_at_checked(len).ok_or(WireError)?;
        self.0 = left;
        Ok(taken)
    }

    /// Takes the next `N` bytes.
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads a byte that must be 0 or 1.
    pub(crate) fn flag(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError),
        }
    }

    /// Reads a length and that number of bytes, which are borrowed from the message.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let len = self.u32()?;
        self.take(len as usize)
    }

    /// Reads bytes that must be UTF-8.
    pub(crate) fn text(&mut self) -> Result<String, WireError> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| WireError)
    }

    /// Reads a `u32` count, then that number of items by `item`. Stops at the first error. `item` must take at least one byte,
    /// so that a message with a false count ends early.
    pub(crate) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        (0..self.u32()?).map(|_| item(self)).collect()
    }

    /// Takes all remaining bytes.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(a: u8, b: u32, c: u64, d: Vec<u8>, e: String, f: Vec<u8>) {
            let mut out = Writer::default();
            out.u8(a);
            out.u32(b);
            out.u64(c);
            out.bytes(&d);
            out.bytes(e.as_bytes());
            out.rest(&f);
            let bytes = out.into_bytes();
            let mut from = Reader::new(&bytes);
            prop_assert_eq!((from.u8(), from.u32(), from.u64()), (Ok(a), Ok(b), Ok(c)));
            prop_assert_eq!((from.bytes(), from.text(), from.rest()), (Ok(&d[..]), Ok(e), &f[..]));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let mut from = Reader::new(&bytes);
            let read = from.list(|from| Ok((from.flag()?, from.text()?)));
            prop_assert!(read.is_err() || read.is_ok_and(|items| items.len() * 5 <= bytes.len()));
        }
    }

    #[test]
    fn a_length_beyond_the_message_is_refused() {
        assert_eq!(Reader::new(&[255, 255, 255, 255, 1]).bytes(), Err(WireError));
        assert_eq!(Reader::new(&[2]).flag(), Err(WireError));
    }
}
