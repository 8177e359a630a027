//! The result of a benchmark as a table for people or as one JSON object.

use std::fmt::Write;

use serde::Serialize;

use super::fio::Measured;
use super::peers::PeerKind;

/// One line of the result.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub case: &'static str,
    pub peer: &'static str,
    pub iops: f64,
    pub mb_s: f64,
    pub lat_mean_us: f64,
    pub lat_p99_us: f64,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
}

impl Row {
    pub fn new(case: &'static str, peer: PeerKind, measured: Measured) -> Self {
        let round = |number: f64| (number * 10.0).round() / 10.0;
        Self {
            case,
            peer: peer.name(),
            iops: round(measured.iops),
            mb_s: round(measured.mb_s),
            lat_mean_us: round(measured.lat_mean_us),
            lat_p99_us: round(measured.lat_p99_us),
        }
    }
}

impl Report {
    fn iops(&self, case: &str, peer: PeerKind) -> Option<f64> {
        self.rows.iter().find(|row| row.case == case && row.peer == peer.name()).map(|row| row.iops)
    }

    /// The table, with each rate divided by those of the two peers from QEMU.
    pub fn table(&self) -> String {
        let mut table = format!(
            "{:<18} {:<12} {:>9} {:>9} {:>12} {:>11} {:>12} {:>10}\n",
            "case", "peer", "IOPS", "MB/s", "mean µs", "p99 µs", "of quorum", "of nbd"
        );
        for row in &self.rows {
            let ratio = |peer| match self.iops(row.case, peer) {
                Some(base) if base > 0.0 => format!("{:.2}", row.iops / base),
                Some(_) | None => "-".to_owned(),
            };
            let _ = writeln!(
                table,
                "{:<18} {:<12} {:>9.0} {:>9.1} {:>12.1} {:>11.1} {:>12} {:>10}",
                row.case,
                row.peer,
                row.iops,
                row.mb_s,
                row.lat_mean_us,
                row.lat_p99_us,
                ratio(PeerKind::QemuQuorum),
                ratio(PeerKind::QemuNbd),
            );
        }
        table
    }
}
