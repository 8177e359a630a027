//! One run of fio's nbd engine, and its numbers.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::run;

/// How long one run measures, after its ramp.
const RUN_MS: u32 = 1_000;
/// How long it runs before that.
const RAMP_MS: u32 = 200;

/// What fio does.
pub struct Case {
    pub name: &'static str,
    /// fio's `rw`.
    pub pattern: &'static str,
    /// fio's `bs`.
    pub block: &'static str,
    pub depth: u32,
}

/// The cases, in the order of the table.
pub const CASES: [Case; 6] = [
    Case { name: "randwrite-4k-qd1", pattern: "randwrite", block: "4k", depth: 1 },
    Case { name: "randread-4k-qd1", pattern: "randread", block: "4k", depth: 1 },
    Case { name: "randwrite-4k-qd32", pattern: "randwrite", block: "4k", depth: 32 },
    Case { name: "randread-4k-qd32", pattern: "randread", block: "4k", depth: 32 },
    Case { name: "seqwrite-1m-qd8", pattern: "write", block: "1m", depth: 8 },
    Case { name: "seqread-1m-qd8", pattern: "read", block: "1m", depth: 8 },
];

/// What one run measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    pub iops: f64,
    /// Millions of bytes per second.
    pub mb_s: f64,
    pub lat_mean_us: f64,
    pub lat_p99_us: f64,
}

/// Checks that fio is there and has the engine.
pub fn check() -> Result<()> {
    let engines = run::quiet(Command::new("fio").arg("--enghelp")).context("fio is needed; run `cargo xtask setup`")?;
    if engines.split_whitespace().any(|engine| engine == "nbd") {
        Ok(())
    } else {
        Err(anyhow!("this fio has no nbd engine; install Debian's fio (`cargo xtask setup`)"))
    }
}

/// Runs `case` against `uri`.
pub fn measure(case: &Case, uri: &str, size_bytes: u64, folder: &Path) -> Result<Measured> {
    let report = folder.join("fio.json");
    run::quiet(
        Command::new("fio")
            .current_dir(folder)
            .args(["--name=bench", "--ioengine=nbd", "--time_based", "--output-format=json", "--randrepeat=0"])
            .arg("--norandommap")
            .arg(format!("--uri={uri}"))
            .arg(format!("--rw={}", case.pattern))
            .arg(format!("--bs={}", case.block))
            .arg(format!("--iodepth={}", case.depth))
            .arg(format!("--size={size_bytes}"))
            .arg(format!("--runtime={RUN_MS}ms"))
            .arg(format!("--ramp_time={RAMP_MS}ms"))
            .arg(format!("--output={}", report.display())),
    )?;
    let text = std::fs::read_to_string(&report).context("reading fio's report")?;
    parse(&text).with_context(|| format!("reading fio's report for {}", case.name))
}

fn parse(text: &str) -> Result<Measured> {
    let start = text.find('{').context("no JSON in it")?;
    let report: Value = serde_json::from_str(&text[start..])?;
    let job = &report["jobs"][0];
    let direction = ["read", "write"]
        .into_iter()
        .map(|name| &job[name])
        .find(|direction| direction["total_ios"].as_u64().is_some_and(|count| count > 0))
        .context("not one request was finished")?;
    let number = |value: &Value, what| value.as_f64().with_context(|| format!("no {what} in it"));
    Ok(Measured {
        iops: number(&direction["iops"], "iops")?,
        mb_s: number(&direction["bw_bytes"], "bw_bytes")? / 1e6,
        lat_mean_us: number(&direction["lat_ns"]["mean"], "lat_ns.mean")? / 1e3,
        lat_p99_us: number(&direction["clat_ns"]["percentile"]["99.000000"], "99th percentile")? / 1e3,
    })
}

/// The median of each number.
pub fn median(runs: &[Measured]) -> Measured {
    let of = |number: fn(&Measured) -> f64| {
        let mut numbers: Vec<f64> = runs.iter().map(number).collect();
        numbers.sort_by(f64::total_cmp);
        let middle = numbers.len() / 2;
        if numbers.len() % 2 == 1 { numbers[middle] } else { (numbers[middle - 1] + numbers[middle]) / 2.0 }
    };
    Measured {
        iops: of(|run| run.iops),
        mb_s: of(|run| run.mb_s),
        lat_mean_us: of(|run| run.lat_mean_us),
        lat_p99_us: of(|run| run.lat_p99_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_direction_that_ran() {
        let text = r#"fio: connected to NBD server
            {"jobs":[{"read":{"total_ios":0},"write":{"total_ios":3,"iops":2.5,"bw_bytes":4000000,
            "lat_ns":{"mean":7000.0},"clat_ns":{"percentile":{"99.000000":9000}}}}]}"#;
        let expected = Measured { iops: 2.5, mb_s: 4.0, lat_mean_us: 7.0, lat_p99_us: 9.0 };
        assert_eq!(parse(text).unwrap(), expected);
        assert!(parse(r#"{"jobs":[{"read":{"total_ios":0},"write":{"total_ios":0}}]}"#).is_err());
    }

    #[test]
    fn median_is_by_number_and_not_by_run() {
        let run = |iops, p99| Measured { iops, mb_s: 0.0, lat_mean_us: 0.0, lat_p99_us: p99 };
        let middle = median(&[run(1.0, 9.0), run(3.0, 1.0), run(2.0, 5.0)]);
        assert_eq!((middle.iops, middle.lat_p99_us), (2.0, 5.0));
        assert_eq!(median(&[run(1.0, 0.0), run(3.0, 0.0)]).iops, 2.0);
    }
}
