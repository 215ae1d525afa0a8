//! [`Functions`]: the functions that workers may ask for, by their ids.

use std::collections::HashMap;

use crate::pool::shared::task::encode_function;
use crate::process::Function;

/// The number by which tasks refer to a function with its context. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FunctionId(pub(super) u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Functions {
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
        self.by_key.get(&key).copied()
    }

    /// Adds a function that is called without a context.
    pub(super) fn add(&mut self, key: (usize, usize), name: &Function) -> FunctionId {
        let id = self.add_with_context(name, &[]);
        self.by_key.insert(key, id);
        id
    }

    /// Adds a function with a context. Workers ask for it by the id, at their first task with it.
    pub(super) fn add_with_context(&mut self, name: &Function, context: &[u8]) -> FunctionId {
        self.last += 1;
        let id = FunctionId(self.last);
        self.names.insert(id, encode_function(name, context));
        id
    }

    /// Returns the encoded name and context, for a worker that asks; empty for an unknown function.
    pub(super) fn name(&self, id: u64) -> &[u8] {
        self.names.get(&FunctionId(id)).map_or(&[], Vec::as_slice)
    }

    /// Removes a function with a context, whose call is over.
    pub(super) fn remove(&mut self, id: FunctionId) {
        self.names.remove(&id);
    }
}
