//! Calls `init()` first, as production programs may.

use polyproc::{Failure, JoinError, Pool, Process, StartMethod};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    polyproc::init();
    println!("main runs in {}", polyproc::current_process().name());
    for method in [StartMethod::Forkserver, StartMethod::Spawn] {
        let child = Process::new(|x: u32| x + 1, 1).start_method(method).start()?;
        println!("result {}", child.join()?);
        match Process::new(|()| -> u32 { panic!("told") }, ()).start_method(method).start()?.join() {
            Err(JoinError::Panicked(panic)) => println!("panic {}", panic.message),
            other => println!("unexpected: {other:?}"),
        }
    }
    let pool = Pool::new(2)?;
    let lost = pool.apply(|()| -> u32 { panic!("told") }, ()).expect_err("it panics");
    match lost.failure {
        Failure::Panicked(panic) => println!("panic {}", panic.message),
        other => println!("unexpected: {other:?}"),
    }
    println!("map {:?}", pool.map(|x: u32| x * 2, 0..3)?);
    Ok(())
}
