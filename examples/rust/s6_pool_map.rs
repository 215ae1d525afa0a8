//! A function over many values in three workers.

use polyproc::{Pool, current_process};

fn test(x: i32) -> i32 {
    println!("{} {x}", current_process().pid());
    x + 100
}

fn test2(s: char) {
    println!("{} {s}", current_process().pid());
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::new(3)?;

    println!("{:?}", pool.map(test, 0..5)?);
    pool.map(test2, "abc".chars())?;
    Ok(())
}
