//! [`Iter`].

use std::marker::PhantomData;

use polyproc_core::Deadline;
use polyproc_core::queue as core;

use super::GetError;
use super::transfer::get;
use crate::codec::{Transfer, TransferError};

/// An iterator over the values of a queue, until it is closed and empty. A value that could not be received is an error.
#[derive(Debug)]
pub struct Iter<'a, T> {
    core: &'a core::Queue,
    item: PhantomData<fn() -> T>,
}

impl<'a, T> Iter<'a, T> {
    pub(super) fn new(core: &'a core::Queue) -> Self {
        Self { core, item: PhantomData }
    }
}

impl<T: Transfer> Iterator for Iter<'_, T> {
    type Item = Result<T, TransferError>;

    fn next(&mut self) -> Option<Self::Item> {
        match get(self.core, Deadline::NEVER) {
            Ok(value) => Some(Ok(value)),
            Err(GetError::Failed(error)) => Some(Err(error)),
            Err(GetError::Closed | GetError::Empty) => None,
        }
    }
}
