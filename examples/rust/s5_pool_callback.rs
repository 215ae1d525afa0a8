//! Two asynchronous calls: one with a callback, one whose result is waited for.

use std::time::Duration;

use polyproc::Pool;

fn test((): ()) -> i32 {
    println!("in testing");
    println!("sleeping...");
    std::thread::sleep(Duration::from_secs(2));

    println!("test returning...");
    123
}

fn callback(returned: &i32) {
    println!("callbacking...");
    std::thread::sleep(Duration::from_secs(2));
    println!("return: {returned}");
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::new(None)?;
    let _called_back = pool.apply_async(test, ()).callback(callback);

    println!("pooling...");
    println!();
    println!();

    let result = pool.apply_async(test, ());

    println!();
    println!("{}", result.get()?);

    pool.close();
    pool.join()?;
    Ok(())
}
