//! Function pointers that another process of the same build can call.
//!
//! A [`Function`] is two code locations: a trampoline, monomorphised for the type `F` of the user's function and for the
//! [`Handler`] that feeds it, and that function itself. The two are made together by [`Function::new`], travel together over
//! channels that only processes of the engine hold, and are used together by [`Resolved::call`]: so the trampoline always gets
//! a function of the type that it was compiled for. They are `fn` pointers and not zero-sized `F: Fn` types: a closure that
//! captured a zero-sized proof token would otherwise be created in a process that never earned the token.
//!
//! 1. In the parent, a face names a function and its codec by [`Function::new`].
//! 2. The name travels in an order (`process/order.rs`), in a worker's setup, or in the answer to a worker's question
//!    (`pool/shared/task.rs`).
//! 3. The child reads it by [`Function::decode`], and finds both locations in its images by [`Function::resolve`].
//! 4. It calls the function: [`Resolved::call_once`] for a process, [`Resolved::call`] for each item of a task.
//!
//! A name identifies code to run, so it is never read from shared memory that a peer can write: tasks have numbers, for which a
//! worker asks its parent. This file and [`image`] argue from SAFETY.md, 1. No state is kept here; the caller caches resolved
//! functions.
#![expect(unsafe_code, reason = "an address becomes a function pointer again in another process")]

use std::ffi::CString;

use crate::sys::image::{self, FunctionError, Location};
use crate::wire::{Context, Input, Payload, Verdict};
use crate::wire::{Reader, WireError, Writer};

mod sealed {
    /// Keeps other crates from implementing [`Callable`](super::Callable), on which safety depends.
    #[expect(unnameable_types, reason = "sealing a trait takes a name that nobody else can write")]
    pub trait Sealed {}
}

/// A function pointer type: `fn() -> R`, `fn(A) -> R`, `fn(&C, A) -> R`, `fn(&mut S, A) -> R`, or [`Binary`]. Sealed. All types
/// are `'static`, so that no lifetime is invented in another process.
pub trait Callable: Copy + 'static + sealed::Sealed {
    /// Returns the address of the function's code in this process.
    fn address(self) -> usize;

    /// Returns the function at `address`.
    ///
    /// # Safety
    /// `address` is what [`Callable::address`] gave for a function of this very type, in this process or, moved by the
    /// difference of load addresses, in another process of the same build.
    unsafe fn from_address(address: usize) -> Self;
}

macro_rules! callable {
    ([$($generic:ident),*] $function:ty) => {
        impl<$($generic: 'static),*> sealed::Sealed for $function {}
        impl<$($generic: 'static),*> Callable for $function {
            fn address(self) -> usize {
                self as usize
            }
            unsafe fn from_address(address: usize) -> Self {
                // SAFETY: the caller promises that a function of this type starts at `address`.
                unsafe { std::mem::transmute::<*const (), Self>(std::ptr::with_exposed_provenance(address)) }
            }
        }
    };
}
callable!([R] fn() -> R);
callable!([A, R] fn(A) -> R);
callable!([C, A, R] fn(&C, A) -> R);
callable!([S, A, R] fn(&mut S, A) -> R);

/// A function of two arguments. A type of its own, since a `fn(A, B) -> R` may be a `fn(&C, A) -> R` to the compiler.
pub struct Binary<A, B, R>(pub fn(A, B) -> R);

impl<A, B, R> Clone for Binary<A, B, R> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A, B, R> Copy for Binary<A, B, R> {}
impl<A, B, R> std::fmt::Debug for Binary<A, B, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Binary").field(&self.0).finish()
    }
}

impl<A: 'static, B: 'static, R: 'static> sealed::Sealed for Binary<A, B, R> {}
impl<A: 'static, B: 'static, R: 'static> Callable for Binary<A, B, R> {
    fn address(self) -> usize {
        self.0 as usize
    }
    unsafe fn from_address(address: usize) -> Self {
        // SAFETY: the caller promises that a function of this type starts at `address`.
        Self(unsafe { std::mem::transmute::<*const (), fn(A, B) -> R>(std::ptr::with_exposed_provenance(address)) })
    }
}

/// How bytes reach a function of type `F` and its result becomes bytes again: the codec of a face. Never instantiated: the type
/// selects the trampoline.
pub trait Handler<F>: 'static {
    /// Decodes `input`, calls `function`, and puts its result, or an error in the face's own encoding, at the end of
    /// `out.bytes`, and descriptors in `out.fds`. The bytes that `out.bytes` has already belong to the caller.
    ///
    /// May panic, as `function` may; the caller catches the panic and drops `out`.
    fn handle(function: F, input: Input<'_>, out: &mut Payload) -> Verdict;
}

/// The type of the trampoline: the address of the user's function, its input, and the output.
type EntryPoint = unsafe fn(usize, Input<'_>, &mut Payload) -> Verdict;

/// The trampoline. Its address identifies the type of the function and the codec.
///
/// # Safety
/// `target` is the address of a function of type `F`.
unsafe fn enter<F: Callable, H: Handler<F>>(target: usize, input: Input<'_>, out: &mut Payload) -> Verdict {
    // SAFETY: passed on to the caller.
    H::handle(unsafe { F::from_address(target) }, input, out)
}

/// The name of a function, good in every process of the same build. Equal names call the same function by the same codec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// The trampoline, an [`enter`].
    entry: Location,
    /// The user's function.
    target: Location,
}

impl Function {
    /// Names `function`, to be called through `H`.
    ///
    /// # Errors
    /// [`FunctionError::NotInAnImage`] or [`FunctionError::NoBuildId`] when no other process could find it.
    pub fn new<F: Callable, H: Handler<F>>(function: F) -> Result<Self, FunctionError> {
        let entry: EntryPoint = enter::<F, H>;
        Ok(Self { entry: image::locate(entry as usize)?, target: image::locate(function.address())? })
    }

    /// Returns two addresses that identify the function and its codec in this process: cheaper than a name, for caches.
    /// Addresses mean nothing in another process.
    #[must_use]
    pub fn key<F: Callable, H: Handler<F>>(function: F) -> (usize, usize) {
        let entry: EntryPoint = enter::<F, H>;
        (entry as usize, function.address())
    }

    /// Finds the function in this process. May load a library, and so run its constructors.
    ///
    /// # Errors
    /// [`FunctionError::NotLoadable`], [`FunctionError::OtherBuild`] or [`FunctionError::NotCode`].
    pub(crate) fn resolve(&self) -> Result<Resolved, FunctionError> {
        let entry = image::resolve(&self.entry)?;
        let target = image::resolve(&self.target)?;
        // SAFETY: `self` was made by `Function::new` in a process of the same build (the build ids match), or decoded
        // from the parent's channel, which carries only such names. So `entry` is the address of an `EntryPoint`.
        let entry = unsafe { std::mem::transmute::<*const (), EntryPoint>(std::ptr::with_exposed_provenance(entry)) };
        Ok(Resolved { entry, target })
    }

    /// Appends the name to a message: for each location the path of the library (empty for the program), the offset, the build
    /// id.
    pub(crate) fn encode(&self, out: &mut Writer) {
        for location in [&self.entry, &self.target] {
            out.bytes(location.library.as_deref().map(|path| path.to_bytes()).unwrap_or_default());
            out.u64(location.offset);
            out.bytes(&location.build_id);
        }
    }

    /// Reads a name. Only for bytes from a channel between processes of the engine: they name code to run.
    ///
    /// # Errors
    /// [`WireError`] if the bytes end early, or a path contains a NUL byte.
    pub(crate) fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut location = || {
            let path = from.bytes()?;
            let library = if path.is_empty() { None } else { Some(CString::new(path).map_err(|_| WireError)?) };
            Ok(Location { library, offset: from.u64()?, build_id: from.bytes()?.to_vec() })
        };
        Ok(Self { entry: location()?, target: location()? })
    }
}

/// A [`Function`] found in this process. Valid while the images that contain it are loaded, which the engine never unloads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resolved {
    entry: EntryPoint,
    /// The address of the user's function, of the type that `entry` was compiled for.
    target: usize,
}

impl Resolved {
    /// Calls the function for one item. See [`Handler::handle`]; a panic passes through.
    pub(crate) fn call(&self, input: Input<'_>, out: &mut Payload) -> Verdict {
        // SAFETY: `entry` and `target` were named together by `Function::new`, so `target` is of the type `entry` wants.
        unsafe { (self.entry)(self.target, input, out) }
    }

    /// Calls the function once, without a context, for a process of its own, a preload function or an initializer.
    ///
    /// # Errors
    /// The function's error, in the encoding of the face.
    pub(crate) fn call_once(&self, input: Payload) -> Result<Payload, Payload> {
        let mut out = Payload::default();
        let input = Input { bytes: &input.bytes, fds: input.fds, context: &Context::default() };
        match self.call(input, &mut out) {
            Verdict::Returned => Ok(out),
            Verdict::Raised => Err(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Reverse;
    impl Handler<fn(Vec<u8>) -> Vec<u8>> for Reverse {
        fn handle(function: fn(Vec<u8>) -> Vec<u8>, input: Input<'_>, out: &mut Payload) -> Verdict {
            out.bytes = function(input.bytes.to_vec());
            Verdict::Returned
        }
    }

    #[test]
    fn a_name_survives_the_wire_and_still_calls() {
        let reverse: fn(Vec<u8>) -> Vec<u8> = |bytes| bytes.into_iter().rev().collect();
        let function = Function::new::<_, Reverse>(reverse).expect("a function of the test binary");
        let mut wire = Writer::default();
        function.encode(&mut wire);
        let bytes = wire.into_bytes();
        let decoded = Function::decode(&mut Reader::new(&bytes)).expect("what was just encoded");
        assert_eq!(decoded, function);
        let result = decoded.resolve().expect("same process").call_once(Payload::from(vec![1, 2, 3]));
        assert_eq!(result.expect("the handler succeeds").bytes, [3, 2, 1]);
    }
}
