//! [`Functions`]: the functions that workers may ask for, by their ids.
//!
//! They have a lock of their own, below that of the pool's state, as a call looks its function up before it is opened.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::pool::shared::task::encode_function;
use crate::process::{Function, lock};

/// The number by which tasks refer to a function with its context. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FunctionId(pub(super) u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Functions(Mutex<KnownFunctions>);

#[derive(Debug, Default)]
struct KnownFunctions {
    /// The last id.
    last: u64,
    /// Functions without a context, by [`Function::key`].
    ///
    /// Never removed: a program has a limited number of them.
    by_key: HashMap<(usize, usize), FunctionId>,
    /// The encoded names and contexts.
    names: HashMap<FunctionId, Vec<u8>>,
}

impl Functions {
    /// Returns the id of a function that was called before without a context. `key` is from [`Function::key`].
    pub(super) fn known(&self, key: (usize, usize)) -> Option<FunctionId> {
        lock(&self.0).by_key.get(&key).copied()
    }

    /// Adds a function that is called without a context.
    pub(super) fn add(&self, key: (usize, usize), name: &Function) -> FunctionId {
        let id = self.add_with_context(name, &[]);
        lock(&self.0).by_key.insert(key, id);
        id
    }

    /// Adds a function with a context. Workers ask for it by the id, at their first task with it.
    pub(super) fn add_with_context(&self, name: &Function, context: &[u8]) -> FunctionId {
        let mut known = lock(&self.0);
        known.last += 1;
        let id = FunctionId(known.last);
        known.names.insert(id, encode_function(name, context));
        id
    }

    /// Returns the answer for a worker that asks: the id, the encoded name and context; these are empty for an unknown function.
    pub(super) fn answer(&self, id: u64) -> Vec<u8> {
        let known = lock(&self.0);
        let name = known.names.get(&FunctionId(id)).map_or(&[][..], Vec::as_slice);
        [&id.to_le_bytes(), name].concat()
    }

    /// Removes a function with a context, whose call is over.
    pub(super) fn remove(&self, id: FunctionId) {
        lock(&self.0).names.remove(&id);
    }
}
