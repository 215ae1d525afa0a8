//! Statistics of a pool's workers.

use std::fmt;
use std::time::Duration;

pub use polyproc_core::pool::WorkerStats;

/// Statistics of a pool's workers. [`Display`](fmt::Display) prints them as a table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// The statistics of each living worker.
    pub workers: Vec<WorkerStats>,
    /// The number of workers that have died so far, orderly exits excluded.
    pub lost: u64,
    /// The size of the encoded arguments of tasks that wait in this process, in bytes.
    pub waiting_bytes: u64,
}

fn seconds(time: Duration) -> String {
    format!("{:.3}s", time.as_secs_f64())
}

fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let Some((unit, shift)) = units.iter().zip([10, 20, 30, 40]).rev().find(|(_, shift)| count >> shift > 0) else {
        return format!("{count} B");
    };
    #[expect(clippy::cast_precision_loss, reason = "a few digits are shown")]
    let scaled = (count >> (shift - 10)) as f64 / 1024.0;
    format!("{scaled:.1} {unit}")
}

impl fmt::Display for PoolStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>8} {:>10} {:>10} {:>10} {:>9} {:>10} {:>10} {:>10}",
            "pid", "tasks", "busy", "idle", "start", "in", "out", "peak"
        )?;
        for worker in &self.workers {
            writeln!(
                f,
                "{:>8} {:>10} {:>10} {:>10} {:>9} {:>10} {:>10} {:>10}",
                worker.pid,
                worker.tasks,
                seconds(worker.busy),
                seconds(worker.idle),
                worker.start.map_or("-".to_owned(), seconds),
                bytes(worker.bytes_in),
                bytes(worker.bytes_out),
                worker.peak_memory.map_or("-".to_owned(), bytes),
            )?;
        }
        write!(f, "workers lost: {}", self.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_at_a_glance() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(bytes(2 << 40), "2.0 TiB");
    }
}
