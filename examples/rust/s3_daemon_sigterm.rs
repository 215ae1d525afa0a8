//! A daemon receives `SIGTERM` when the program ends, and may catch it.

use std::thread::sleep;
use std::time::Duration;

use polyproc::Process;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

fn test(_: ()) {
    let mut signals = Signals::new([SIGTERM]).expect("SIGTERM can be caught");
    std::thread::spawn(move || {
        signals.forever().next();
        println!("chid exit. {}", std::process::id());
        std::process::exit(0);
    });
    println!("child start: {}", std::process::id());

    loop {
        println!("sleeping...");
        sleep(Duration::from_secs(1));
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    Process::new(test, ()).daemon(true).start()?;

    sleep(Duration::from_secs(2));
    println!("parent exit.");
    Ok(())
}
