//! Five items, three consumers that stop after 2 s without an item, and a parent that waits until all items are done.

use std::time::Duration;

use polyproc::{GetError, JoinableQueue, Process, current_process};

fn test(queue: JoinableQueue<u32>) {
    let pid = current_process().pid();
    loop {
        match queue.get_timeout(Duration::from_secs(2)) {
            Ok(item) => {
                println!("{pid} {item}");
                queue.task_done().expect("one for each item");
            }
            Err(GetError::Empty) => {
                println!("{pid} empty!");
                break;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let queue = JoinableQueue::new(1000)?;
    for item in 0..5 {
        queue.put(item)?;
    }
    println!("put over!");
    for _ in 0..3 {
        Process::new(test, queue.clone()).start()?;
    }
    queue.join();
    println!("task done");
    Ok(())
}
