//! Types that may be viewed in memory to which other processes write at any time.

use crate::prim::{AtomicU32, AtomicU64};

/// A type that may be viewed in shared memory.
///
/// # Safety
/// Every field is an atomic (so the compiler allows for changes by another process), any bytes are a valid value, and the type
/// needs no drop.
pub(crate) unsafe trait Shared {}

// SAFETY: an atomic integer.
unsafe impl Shared for AtomicU32 {}
// SAFETY: an atomic integer.
unsafe impl Shared for AtomicU64 {}
// SAFETY: an array consists of `T`s only.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// Declares a struct in shared memory: `repr(C)`, aligned to a cache line, every field [`Shared`].
macro_rules! shared {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug)]
        #[repr(C, align(64))]
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type,)* }

        #[expect(unsafe_code, reason = "the bounds say what the trait asks for: every field is `Shared`")]
        // SAFETY: the bounds require every field to be `Shared`.
        unsafe impl crate::sys::shared::Shared for $name where $($type: crate::sys::shared::Shared),* {}
    };
}
pub(crate) use shared;
