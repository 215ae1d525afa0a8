//! One call in a pool with as many workers as processors; then the pool is terminated.

use std::collections::BTreeMap;

use polyproc::Pool;

fn test((args, kwargs): ((i32, i32, i32), BTreeMap<String, i32>)) -> i32 {
    println!("{args:?}");
    let kwargs: Vec<_> = kwargs.iter().map(|(name, value)| format!("'{name}': {value}")).collect();
    println!("{{{}}}", kwargs.join(", "));
    123
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::new(None)?;
    let kwargs = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
    println!("{}", pool.apply(test, ((0, 1, 2), kwargs))?);

    pool.terminate();
    pool.join()?;
    Ok(())
}
