//! Tags: the first byte of an encoded value.

pub(super) const NONE: u8 = 0;
pub(super) const TRUE: u8 = 1;
pub(super) const FALSE: u8 = 2;
pub(super) const INT: u8 = 3;
pub(super) const FLOAT: u8 = 4;
pub(super) const STR: u8 = 5;
pub(super) const BYTES: u8 = 6;
pub(super) const TUPLE: u8 = 7;
pub(super) const LIST: u8 = 8;
pub(super) const DICT: u8 = 9;
pub(super) const PICKLE: u8 = 10;
pub(super) const BUFFERS: u8 = 11;
pub(super) const LENT_BUFFERS: u8 = 12;
pub(super) const LENT_BYTES: u8 = 13;
pub(super) const REPEATED: u8 = 14;
