//! A type with a `run` method: made in the parent, run in the child. (Python: a subclass of `Process`.)

use polyproc::{Process, Run};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct MyProcess;

impl MyProcess {
    fn new() -> Self {
        println!("init: {}", std::process::id());
        Self
    }
}

impl Run for MyProcess {
    type Output = ();

    fn run(self) {
        println!("run: {}", std::process::id());
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("parent: {}", std::process::id());
    let child = Process::run(MyProcess::new()).start()?;
    Ok(child.join()?)
}
