//! [`FunctionCache`]: the functions that a worker has received from the parent.

use std::collections::HashMap;
use std::rc::Rc;

use crate::process::ResolvedFunction;
use crate::wire::Context;

/// Maximum number of functions with a context that are cached.
///
/// A context can be large, and its call usually ends soon; a function that is dropped too early is requested again.
const CONTEXTS: usize = 64;
/// A resolved function, and the context that all its tasks share.
///
/// Shared by the cache and by the task that runs.
pub(super) struct CachedFunction {
    /// The reason why it cannot be called is sent as [`ResultKind::Refused`](crate::pool::shared::result_ring::ResultKind::Refused) for each item.
    pub(super) function: Result<ResolvedFunction, String>,
    /// Decoded by the face at first use, and dropped with the cache entry. `None` if the function has no context.
    pub(super) context: Option<Context>,
}

/// See the module.
#[derive(Default)]
pub(super) struct FunctionCache {
    /// By id, which the parent never reuses.
    known: HashMap<u64, Rc<CachedFunction>>,
    /// The function of the last task.
    ///
    /// Kept apart from `known`, since most tasks in a row have the same function.
    last: Option<(u64, Rc<CachedFunction>)>,
}

impl FunctionCache {
    /// Returns the function with this id, which `find` asks the parent for if it is not cached.
    ///
    /// If the function is not available, it contains the reason. Before the cache takes a function while it has
    /// [`CONTEXTS`] contexts, it drops all functions with a context.
    pub(super) fn get(&mut self, id: u64, find: impl FnOnce(u64) -> CachedFunction) -> Rc<CachedFunction> {
        if let Some((_, known)) = self.last.as_ref().filter(|(last, _)| *last == id) {
            return Rc::clone(known);
        }
        let known = match self.known.get(&id) {
            Some(known) => Rc::clone(known),
            None => {
                // Contexts belong to calls, which end; the number of functions without a context is that of the program.
                if self.known.values().filter(|known| known.context.is_some()).count() >= CONTEXTS {
                    self.known.retain(|_, known| known.context.is_none());
                }
                let known = Rc::new(find(id));
                if known.function.is_err() {
                    return known; // not cached: a shortage may be over when the next task asks
                }
                self.known.insert(id, Rc::clone(&known));
                known
            }
        };
        self.last = Some((id, Rc::clone(&known)));
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown() -> CachedFunction {
        CachedFunction { function: Err("unknown".to_owned()), context: None }
    }

    #[test]
    fn a_function_that_was_not_found_is_asked_for_again() {
        let mut cache = FunctionCache::default();
        let mut asked = 0;
        for _ in 0..2 {
            let function = cache.get(7, |id| {
                assert_eq!(id, 7);
                asked += 1;
                unknown()
            });
            assert!(function.function.is_err());
        }
        assert_eq!(asked, 2);
    }
}
