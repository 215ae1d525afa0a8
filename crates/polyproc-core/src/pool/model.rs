//! The files of this room that the models compile: the protocols over its shared words.
//!
//! They use atomics only through `crate::prim`, for which a model checker can stand in.

pub(crate) mod shared {
    pub(crate) mod claim;
    pub(crate) mod count;
    pub(crate) mod doorbell;
    pub(crate) mod lookers;
    pub(crate) mod result_index;
}

pub(crate) mod parent {
    pub(crate) mod key;
    pub(crate) mod latch;
    pub(crate) mod leader;
}
