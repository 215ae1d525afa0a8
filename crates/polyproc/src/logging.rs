//! Passes the log records of workers to the parent's logger.

use log::{Level, LevelFilter, Log, Metadata, Record};
use polyproc_core::pool as core;
use serde::{Deserialize, Serialize};

/// A log record, as sent to the parent.
#[derive(Serialize, Deserialize)]
struct Travelling<'a> {
    /// The level, from 1 (error) to 5 (trace).
    level: u8,
    target: &'a str,
    text: String,
    module: Option<&'a str>,
    file: Option<&'a str>,
    line: Option<u32>,
}

/// A worker's logger, which sends every record to the parent.
struct Forward;

impl Log for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let travelling = Travelling {
            level: record.level() as u8,
            target: record.target(),
            text: record.args().to_string(),
            module: record.module_path(),
            file: record.file(),
            line: record.line(),
        };
        if let Ok(bytes) = postcard::to_extend(&travelling, vec![LOG]) {
            // Fails when the parent has exited: no process can receive the record.
            let _ = core::log(&bytes);
        }
    }

    fn flush(&self) {}
}

/// The first byte of a record.
pub(crate) const LOG: u8 = 0;

/// Returns the level at which workers log: that of this process.
pub(crate) fn level() -> u8 {
    log::max_level() as u8
}

/// In a worker: sends log records to the parent from now on, unless the program has set a logger already.
pub(crate) fn install(level: u8) {
    let filter = LevelFilter::iter().find(|filter| *filter as u8 == level).unwrap_or(LevelFilter::Off);
    if log::set_logger(&Forward).is_ok() {
        log::set_max_level(filter);
    }
}

/// In the parent: logs a worker's record.
pub(crate) fn receive(bytes: &[u8]) {
    let Ok(record) = postcard::from_bytes::<Travelling<'_>>(bytes) else { return };
    let Some(level) = Level::iter().find(|level| *level as u8 == record.level) else { return };
    log::logger().log(
        &Record::builder()
            .args(format_args!("{}", record.text))
            .level(level)
            .target(record.target)
            .module_path(record.module)
            .file(record.file)
            .line(record.line)
            .build(),
    );
}
