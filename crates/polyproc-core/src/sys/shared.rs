//! Views of memory that other processes write at any time.

use crate::prim::{AtomicU32, AtomicU64};

/// A type that may be looked at in shared memory.
///
/// # Safety
/// Every field is an atomic (so that a change by another process is no surprise to the compiler), any bytes are a valid
/// value, and nothing needs dropping.
pub(crate) unsafe trait Shared {}

// SAFETY: an atomic integer.
unsafe impl Shared for AtomicU32 {}
// SAFETY: an atomic integer.
unsafe impl Shared for AtomicU64 {}
// SAFETY: made of `T`s only.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// Declares a struct in shared memory: `repr(C)`, in cache lines of its own, every field [`Shared`].
macro_rules! shared {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug)]
        #[repr(C, align(64))]
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type,)* }

        #[expect(unsafe_code, reason = "the bounds say what the trait asks for: every field is `Shared`")]
        // SAFETY: by the bounds every field is `Shared`.
        unsafe impl crate::sys::shared::Shared for $name where $($type: crate::sys::shared::Shared),* {}
    };
}
pub(crate) use shared;
