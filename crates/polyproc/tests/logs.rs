//! Log records of workers arrive in the parent's logger, in order, before the result.
#![cfg(feature = "log")]

use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};
use polyproc::{Event, Pool, SharedBytes, SharedBytesMut};

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
    // With an initializer, and without forwarding.
    let pool = Pool::builder().workers(1).initializer(|x: u32| x, 7).forward_logs().build()?;
    assert_eq!(pool.state().apply(|state: &mut u32, x: u32| work(x) + *state, 1)?, 8);
    assert_eq!(kept().len(), 2);
    let quiet = Pool::new(1)?;
    assert_eq!(quiet.apply(work, 1)?, 1);
    assert!(kept().is_empty());
    Ok(())
}

/// Logs a record that is sent in a memory file, then a small one, and returns lent bytes that are filled with `x`.
fn log_and_lend(x: u8) -> Result<SharedBytes, String> {
    log::info!("{}", "x".repeat(100_000));
    log::info!("small");
    SharedBytesMut::new(1000)
        .and_then(|mut bytes| {
            bytes.fill(x);
            bytes.freeze()
        })
        .map(SharedBytes::from)
        .map_err(|error| error.to_string())
}

#[test]
fn a_record_that_cannot_be_received_takes_no_descriptors_of_results() -> Result<(), Box<dyn std::error::Error>> {
    log::set_logger(&KEPT)?;
    log::set_max_level(LevelFilter::Info);
    let pool = Pool::builder().workers(1).forward_logs().build()?;
    let value = |result: Result<SharedBytes, String>| result.map(|bytes| (bytes[0], bytes.len()));
    assert_eq!(value(pool.apply(log_and_lend, 1)?), Ok((1, 1000)));
    KEPT.0.lock().expect("not poisoned").clear();
    let go = Event::new()?;
    let wait_and_log = |(go, x): (Event, u8)| {
        go.wait();
        log_and_lend(x)
    };
    let result = pool.apply_async(wait_and_log, (go.clone(), 2));
    // Takes every free descriptor number, so that the next message cannot deliver descriptors.
    let fillers: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    go.set();
    // The small record arrives after the large one.
    while !KEPT.0.lock().expect("not poisoned").iter().any(|(_, _, text)| text == "small") {
        std::thread::yield_now();
    }
    drop(fillers);
    // The result's descriptors may have arrived before there was room for them: then the result is that error.
    match result.get() {
        Ok(bytes) => assert_eq!(value(bytes), Ok((2, 1000))),
        Err(error) => assert!(error.to_string().contains("too many open files"), "{error}"),
    }
    for x in 3..10 {
        assert_eq!(value(pool.apply(log_and_lend, x)?), Ok((x, 1000)), "the result of another task");
    }
    Ok(())
}
