//! A function in a process of its own: name, pid, arguments. (Python: `Process(target, args, kwargs, name)`.)

use std::collections::BTreeMap;

use polyproc::{Process, current_process};

fn test((args, kwargs): ((i32, i32), BTreeMap<String, String>)) {
    let process = current_process();
    println!("{} {}", process.name(), process.pid());
    println!("{args:?}");
    let kwargs: Vec<_> = kwargs.iter().map(|(name, value)| format!("'{name}': '{value}'")).collect();
    println!("{{{}}}", kwargs.join(", "));
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kwargs = BTreeMap::from([("a".to_owned(), "hello".to_owned())]);
    let child = Process::new(test, ((1, 2), kwargs)).name("TEST").start()?;
    Ok(child.join()?)
}
