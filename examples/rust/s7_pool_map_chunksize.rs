//! As `s6_pool_map`, with chunks of two values.

use polyproc::{Pool, current_process};

fn test(x: i32) -> i32 {
    println!("{} {x}", current_process().pid());
    x + 100
}

fn test2(s: char) {
    println!("{} {s}", current_process().pid());
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::new(5)?;

    println!("{:?}", pool.chunksize(2).map(test, 0..10)?);
    pool.map(test2, "abc".chars())?;
    Ok(())
}
