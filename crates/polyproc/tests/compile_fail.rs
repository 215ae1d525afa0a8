//! Programs that must not compile.

#[test]
fn a_closure_that_captures_is_no_fn_pointer() {
    trybuild::TestCases::new().compile_fail("tests/ui/captured_closure.rs");
}
