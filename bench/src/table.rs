//! Medians and ratios, as tables and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

/// One line of a table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) who: String,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) unit: &'static str,
    pub(crate) runs: usize,
}

impl Row {
    /// Returns a row from single measurements; `None` if there are none.
    pub(crate) fn from_samples(case: &str, who: &str, unit: &'static str, mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let at = |part: usize| samples.get((samples.len() * part / 100).min(samples.len().saturating_sub(1))).copied();
        Some(Self { case: case.into(), who: who.into(), median: at(50)?, p99: at(99)?, unit, runs: samples.len() })
    }
}

/// Prints a table per case, with the ratios of each row to the row named `limit` and to the best row that is not one of `ours`.
pub(crate) fn print(rows: &[Row], limit: &str, ours: &str) {
    let mut cases: BTreeMap<usize, &str> = BTreeMap::new();
    for row in rows {
        if !cases.values().any(|case| *case == row.case) {
            cases.insert(cases.len(), &row.case);
        }
    }
    for case in cases.values() {
        let rows: Vec<_> = rows.iter().filter(|row| row.case == *case).collect();
        let limit_median = rows.iter().find(|row| row.who == limit).map(|row| row.median);
        let rivals = rows.iter().filter(|row| !row.who.starts_with(ours) && row.who != limit);
        let best = rivals.map(|row| row.median).min_by(f64::total_cmp);
        println!("\n{case}");
        println!(
            "{:36} {:>10} {:>10} {:>6} {:>12} {:>13}",
            "", "median", "p99", "runs", "to the limit", "to best rival"
        );
        for row in rows {
            let ratio = |to: Option<f64>| to.map_or_else(String::new, |to| format!("{:.2}", row.median / to));
            println!(
                "{:36} {:>7.1} {} {:>7.1} {} {:>6} {:>12} {:>13}",
                row.who,
                row.median,
                row.unit,
                row.p99,
                row.unit,
                row.runs,
                ratio(limit_median),
                ratio(best)
            );
        }
    }
}

/// Writes the rows as JSON.
pub(crate) fn write_json(rows: &[Row], path: &Path) -> std::io::Result<()> {
    std::fs::write(path, serde_json::to_string_pretty(rows)? + "\n")
}
