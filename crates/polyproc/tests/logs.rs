//! What workers log arrives in the parent's logger, in order, before the result.
#![cfg(feature = "log")]

use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};
use polyproc::Pool;

#[derive(Debug)]
struct Keep(Mutex<Vec<(Level, String, String)>>);

impl Log for Keep {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let entry = (record.level(), record.target().to_owned(), record.args().to_string());
        self.0.lock().expect("not poisoned").push(entry);
    }

    fn flush(&self) {}
}

static KEPT: Keep = Keep(Mutex::new(Vec::new()));

fn work(x: u32) -> u32 {
    log::info!(target: "work", "begin {x}");
    log::debug!("not at this level");
    log::warn!(target: "work", "end {x}");
    x
}

#[test]
fn records_come_in_order_and_before_the_result() -> Result<(), Box<dyn std::error::Error>> {
    log::set_logger(&KEPT)?;
    log::set_max_level(LevelFilter::Info);
    let pool = Pool::builder().workers(2).forward_logs().build()?;
    let kept = || std::mem::take(&mut *KEPT.0.lock().expect("not poisoned"));
    for x in 0..50 {
        assert_eq!(pool.apply(work, x)?, x);
        let entry = |level, text: &str| (level, "work".to_owned(), format!("{text} {x}"));
        assert_eq!(kept(), [entry(Level::Info, "begin"), entry(Level::Warn, "end")]);
    }
    assert_eq!(pool.map(work, 0..1000)?.len(), 1000);
    assert_eq!(kept().len(), 2000);
    // With an initializer, and without logs.
    let pool = Pool::builder().workers(1).initializer(|x: u32| x, 7).forward_logs().build()?;
    assert_eq!(pool.state().apply(|state: &mut u32, x: u32| work(x) + *state, 1)?, 8);
    assert_eq!(kept().len(), 2);
    let quiet = Pool::new(1)?;
    assert_eq!(quiet.apply(work, 1)?, 1);
    assert!(kept().is_empty());
    Ok(())
}
