//! The kinds of functions that a pool runs, and how a worker calls each.

use std::any::Any;
use std::cell::RefCell;
use std::marker::PhantomData;

use polyproc_core::process::{Binary, Callable, Function, FunctionError, Handler};
use polyproc_core::{Input, Payload, Verdict};

use crate::codec::{self, CodecError, Transfer};

/// A function from `A` to `R`, with a name that workers can find, and the context that all its calls share.
pub(crate) struct Named<A, R> {
    pub(crate) key: (usize, usize),
    pub(crate) name: Box<dyn FnOnce() -> Result<Function, FunctionError>>,
    pub(crate) context: Option<Result<Vec<u8>, CodecError>>,
    pub(crate) types: PhantomData<fn(A) -> R>,
}

thread_local! {
    /// The value that this worker's initializer returned.
    static STATE: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// Calls a function for one item.
pub(crate) enum Item {}
/// Calls an initializer, and keeps the value that it returns.
pub(crate) enum Initialise {}
/// Calls a finalizer with the value that the initializer returned.
pub(crate) enum Finish {}

impl<A: Transfer, R: Transfer> Handler<fn(A) -> R> for Item {
    fn handle(function: fn(A) -> R, input: Input<'_>, out: &mut Payload) -> Verdict {
        codec::through(input, out, function)
    }
}

impl<A: Transfer, B: Transfer, R: Transfer> Handler<Binary<A, B, R>> for Item {
    fn handle(function: Binary<A, B, R>, input: Input<'_>, out: &mut Payload) -> Verdict {
        codec::through(input, out, |(a, b)| function.0(a, b))
    }
}

impl<C: Transfer, A: Transfer, R: Transfer> Handler<fn(&C, A) -> R> for Item {
    fn handle(function: fn(&C, A) -> R, input: Input<'_>, out: &mut Payload) -> Verdict {
        let context = input.context;
        match context.get_or_decode(|bytes| codec::decode_from::<C>("the context", bytes, Vec::new())) {
            Ok(Some(context)) => codec::through(input, out, |argument| function(context, argument)),
            Ok(None) => codec::raise(out, CodecError::new::<C>("decode", "the context", "it has another type")),
            Err(error) => codec::raise(out, error),
        }
    }
}

/// The worker's state, moved out of [`STATE`] during a call, and back on drop, also if the call panics.
struct Borrowed(Option<Box<dyn Any>>);

impl Drop for Borrowed {
    fn drop(&mut self) {
        STATE.set(self.0.take());
    }
}

impl<S: 'static, A: Transfer, R: Transfer> Handler<fn(&mut S, A) -> R> for Item {
    fn handle(function: fn(&mut S, A) -> R, input: Input<'_>, out: &mut Payload) -> Verdict {
        let mut borrowed = Borrowed(STATE.take().or_else(|| Some(Box::new(()))));
        match borrowed.0.as_mut().and_then(|state| state.downcast_mut()) {
            Some(state) => codec::through(input, out, |argument| function(state, argument)),
            None => codec::raise(out, CodecError::new::<S>("find", "the worker's state", "it has another type")),
        }
    }
}

impl<A: Transfer, S: 'static> Handler<fn(A) -> S> for Initialise {
    fn handle(function: fn(A) -> S, input: Input<'_>, out: &mut Payload) -> Verdict {
        codec::through(input, out, |argument| STATE.set(Some(Box::new(function(argument)))))
    }
}

/// As [`Initialise`], in a worker that forwards records to its parent. The levels are the first bytes of the input.
pub(crate) enum InitialiseForwarding {}

impl<A: Transfer, S: 'static> Handler<fn(A) -> S> for InitialiseForwarding {
    fn handle(function: fn(A) -> S, mut input: Input<'_>, out: &mut Payload) -> Verdict {
        if let Some((levels, rest)) = input.bytes.split_first_chunk() {
            crate::forward::install(*levels);
            input.bytes = rest;
        }
        Initialise::handle(function, input, out)
    }
}

impl<S: 'static> Handler<fn(S)> for Finish {
    fn handle(function: fn(S), _: Input<'_>, _: &mut Payload) -> Verdict {
        let state = STATE.take().or_else(|| Some(Box::new(())));
        if let Some(state) = state.and_then(|state| state.downcast().ok()) {
            function(*state);
        }
        Verdict::Returned
    }
}

impl<A, R> Named<A, R> {
    fn new<F: Callable>(function: F) -> Self
    where
        Item: Handler<F>,
    {
        Self {
            key: Function::key::<F, Item>(function),
            name: Box::new(move || Function::new::<F, Item>(function)),
            context: None,
            types: PhantomData,
        }
    }
}

impl<A: Transfer, R: Transfer> Named<A, R> {
    pub(crate) fn plain(function: fn(A) -> R) -> Self {
        Self::new(function)
    }

    pub(crate) fn stateful<S: 'static>(function: fn(&mut S, A) -> R) -> Self {
        Self::new(function)
    }

    pub(crate) fn contextual<C: Transfer>(function: fn(&C, A) -> R, context: Result<Vec<u8>, CodecError>) -> Self {
        Self { context: Some(context), ..Self::new(function) }
    }
}

impl<A: Transfer, B: Transfer, R: Transfer> Named<(A, B), R> {
    pub(crate) fn star(function: fn(A, B) -> R) -> Self {
        Self::new(Binary(function))
    }
}
