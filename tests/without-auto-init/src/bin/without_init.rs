//! Does not call `init()`: starting a process must be an error, not a second run of `main`.

use polyproc::{Pool, PoolError, Process, StartError, StartMethod};

fn main() {
    println!("main runs");
    for method in [StartMethod::Forkserver, StartMethod::Spawn] {
        match Process::new(|()| (), ()).start_method(method).start() {
            Err(error @ StartError::NotInitialised) => println!("error {error}"),
            other => println!("unexpected: {other:?}"),
        }
    }
    match Pool::new(1) {
        Err(PoolError::Start(StartError::NotInitialised)) => println!("error in the pool too"),
        other => println!("unexpected: {other:?}"),
    }
}
