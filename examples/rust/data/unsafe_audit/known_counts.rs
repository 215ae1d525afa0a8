//! 6 functions, 2 of them unsafe; 3 unsafe blocks; 25 lines.

/// Words in comments do not count: unsafe { fn nothing() }
fn plain() -> &'static str {
    "unsafe { fn in_a_string() }"
}

unsafe fn not_safe(pointer: *const u8) -> u8 {
    unsafe { *pointer }
}

trait Shape {
    fn area(&self) -> f64;
    unsafe fn raw(&self) {}
}

fn outer() -> u8 {
    fn inner(pointer: fn(u8) -> u8) -> u8 {
        unsafe { not_safe(&raw const FIVE) + pointer(1) }
    }
    let _ = plain;
    inner(|x| unsafe { not_safe(&x) })
}

static FIVE: u8 = 5;
