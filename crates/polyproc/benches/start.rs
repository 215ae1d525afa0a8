//! Starts and joins processes from a benchmark program: `cargo bench -p polyproc`. Beside the peers: `polyproc-bench start`.

use std::time::Instant;

use polyproc::Process;

const STARTS: u32 = 500;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let begin = Instant::now();
    for n in 0..STARTS {
        assert_eq!(Process::new(|n: u32| n + 1, n).start()?.join()?, n + 1);
    }
    println!("{STARTS} processes started and joined, {:.1?} each", begin.elapsed() / STARTS);
    Ok(())
}
