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

mod decode;
mod encode;
mod list;
mod loan;
mod message;
mod pickle;
mod simple;
mod source;
mod tag;

pub(crate) use encode::encode;
pub(crate) use list::{begin_list, encode_all, list_so_far, put_in_list};
pub(crate) use loan::{is_lent, lent_bytes};
pub(crate) use message::{borrowed, decode_message, with_memory};
pub(crate) use pickle::{Purpose, unpickle};
pub(crate) use simple::{Memo, large_bytes};
pub(crate) use source::Source;
