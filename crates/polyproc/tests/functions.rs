//! Functions that a process can be started with: all that coerce to a `fn` pointer, wherever they are defined. Also runs under
//! fat LTO.

mod support;

use std::process::Command;

use polyproc::{Pool, Process};
use support::{TestResult, scratch};

fn plain(x: u32) -> u32 {
    x + 1
}

fn generic<T: std::ops::Add<Output = T> + Copy>(x: T) -> T {
    x + x
}

struct Type;

impl Type {
    fn associated(x: u32) -> u32 {
        x + 2
    }
}

trait Trait {
    fn provided(x: u32) -> u32 {
        x + 3
    }
}

impl Trait for Type {}

// Two functions that a linker may fold into one: harmless, as they do the same.
fn same_one(x: u32) -> u32 {
    x ^ 0x5555
}
fn same_two(x: u32) -> u32 {
    x ^ 0x5555
}

#[test]
fn all_kinds_of_functions_are_found() -> TestResult {
    assert_eq!(Process::new(plain, 1).start()?.join()?, 2);
    assert_eq!(Process::new(generic::<u64>, 4).start()?.join()?, 8);
    assert_eq!(Process::new(generic::<f64>, 0.5).start()?.join()?, 1.0);
    assert_eq!(Process::new(Type::associated, 1).start()?.join()?, 3);
    assert_eq!(Process::new(Type::provided, 1).start()?.join()?, 4);
    assert_eq!(Process::new(|x: i8| -x, 5).start()?.join()?, -5);
    assert_eq!(Process::new(Some, 5u8).start()?.join()?, Some(5));
    assert_eq!(Process::new(String::into_bytes, "ab".to_owned()).start()?.join()?, b"ab");
    assert_eq!(Process::new(same_one, 1).start()?.join()?, Process::new(same_two, 1).start()?.join()?);
    assert_eq!(Process::new(libm_sqrt, 9.0).start()?.join()?, 3.0);
    let from_thread = std::thread::spawn(|| Process::new(|x: u32| x * 3, 3).start()).join().expect("no panic")?;
    assert_eq!(from_thread.join()?, 9);
    Ok(())
}

fn libm_sqrt(x: f64) -> f64 {
    f64::sqrt(x)
}

#[test]
fn a_pool_takes_them_too() -> TestResult {
    let pool = Pool::new(2)?;
    assert_eq!(pool.map(plain, 0..4)?, [1, 2, 3, 4]);
    assert_eq!(pool.map(Some, 0..2u8)?, [Some(0), Some(1)]);
    assert_eq!(pool.map(|(a, b): (u32, String)| format!("{a}{b}"), [(1, "x".to_owned())])?, ["1x"]);
    Ok(())
}

/// The source of a library that the test compiles with cargo's rustc.
const LIBRARY: &str = r#"
#[unsafe(no_mangle)]
pub extern "C" fn triple() -> fn(u32) -> u32 {
    |x| x * 3 + std::process::id() * 0
}
"#;

#[test]
#[expect(unsafe_code, reason = "loading a library")]
fn a_function_of_a_library_loaded_later_is_found() -> TestResult {
    let (source, library) = (scratch("triple.rs"), scratch("libtriple.so"));
    std::fs::write(&source, LIBRARY)?;
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut compile = Command::new(rustc);
    compile
        .args(["--edition=2024", "--crate-type=cdylib", "-Clink-arg=-Wl,--build-id", "-o"])
        .arg(&library)
        .arg(&source);
    assert!(compile.status()?.success());
    // SAFETY: the library was compiled above; its constructors are std's.
    let loaded = unsafe { libloading::Library::new(&library) }?;
    // SAFETY: the symbol is a function of this type.
    let triple = unsafe { loaded.get::<extern "C" fn() -> fn(u32) -> u32>(b"triple") }?();
    assert_eq!(Process::new(triple, 5).start()?.join()?, 15);
    assert_eq!(Process::new(triple, 6).start_method(polyproc::StartMethod::Spawn).start()?.join()?, 18);

    // Another build at the same path is not mistaken for it.
    std::fs::write(&source, LIBRARY.replace("* 3", "* 4"))?;
    std::fs::remove_file(&library)?;
    assert!(compile.status()?.success());
    let refused = Process::new(triple, 5).start()?.join();
    assert!(refused.is_err_and(|error| error.to_string().contains("another build")));
    std::fs::remove_file(&library)?;
    let refused = Process::new(triple, 5).start()?.join();
    assert!(refused.is_err_and(|error| error.to_string().contains("could not load the library")));
    std::fs::remove_file(&source)?;
    Ok(())
}
