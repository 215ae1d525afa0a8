#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| polyproc_core::fuzz::message(bytes));
