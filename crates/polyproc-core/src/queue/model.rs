//! The files of this room that the models compile: the protocols over its shared words.

pub(crate) mod index;
pub(crate) mod layout;
pub(crate) mod polled;
