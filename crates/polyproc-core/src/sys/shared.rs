//! Types that may be viewed in memory to which other processes write at any time: by `memory::Mapping::view`.
//!
//! A file that declares such a type with [`shared!`] documents its layout in a table, as other processes rely on it.

#[cfg(not(loom))]
use crate::prim::{AtomicU32, AtomicU64};

/// A type that may be viewed in shared memory. A value is never created or dropped there: memory of a new file is a value of
/// zeros.
///
/// # Safety
/// Every field is an atomic (so the compiler allows for changes by another process), any bytes are a valid value, and the type
/// needs no drop.
#[cfg(not(loom))]
pub(crate) unsafe trait Shared {}

// SAFETY: an atomic integer.
#[cfg(not(loom))]
unsafe impl Shared for AtomicU32 {}
// SAFETY: an atomic integer.
#[cfg(not(loom))]
unsafe impl Shared for AtomicU64 {}
// SAFETY: an array consists of `T`s only.
#[cfg(not(loom))]
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// Declares a struct in shared memory: `repr(C)`, aligned to a cache line, every field [`Shared`]. Fields have the order of the
/// declaration, so the layout is the same in all builds; the size is a multiple of 64 bytes, so two objects share no cache line
/// and each begins where the last one ends.
#[cfg(not(loom))]
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

/// Declares the same struct for the models, which share it among threads.
#[cfg(loom)]
macro_rules! shared {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type,)* }
    };
}
pub(crate) use shared;
