//! What this machine is: processors, memory, QEMU. Found out once at the daemon's start.

use std::collections::BTreeSet;

/// Processors and memory, from `/proc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Such as `GenuineIntel`.
    pub cpu_vendor: String,
    /// As the maker calls it.
    pub cpu_name: String,
    pub cpu_features: BTreeSet<String>,
    pub cpus: u32,
    pub memory_mib: u64,
}

impl Machine {
    /// Of this machine.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub fn here() -> std::io::Result<Self> {
        Ok(parse(&std::fs::read_to_string("/proc/cpuinfo")?, &std::fs::read_to_string("/proc/meminfo")?))
    }
}

/// Memory that could be had now without taking it from a process, as the kernel estimates it.
#[must_use]
pub fn available_mib() -> Option<u64> {
    mebibytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

fn mebibytes(meminfo: &str, key: &str) -> Option<u64> {
    let text = meminfo.lines().find_map(|line| value(line, key))?;
    text.trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib / 1024)
}

fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.strip_prefix(key)?.trim_start().strip_prefix(':').map(str::trim)
}

fn parse(cpuinfo: &str, meminfo: &str) -> Machine {
    let first = |key| cpuinfo.lines().find_map(|line| value(line, key)).unwrap_or_default();
    let cpus = cpuinfo.lines().filter(|line| value(line, "processor").is_some()).count();
    Machine {
        cpu_vendor: first("vendor_id").to_owned(),
        cpu_name: first("model name").to_owned(),
        cpu_features: first("flags").split_whitespace().map(str::to_owned).collect(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_mib: mebibytes(meminfo, "MemTotal").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read() {
        let cpuinfo = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: A CPU\nflags\t\t: fpu sse2\n\n\
                       processor\t: 1\nvendor_id\t: GenuineIntel\nmodel name\t: A CPU\nflags\t\t: fpu sse2\n";
        let machine = parse(cpuinfo, "MemTotal:       2048 kB\nMemFree: 1 kB\n");
        assert_eq!(machine.cpus, 2);
        assert_eq!(machine.memory_mib, 2);
        assert_eq!(mebibytes("MemTotal: 9 kB\nMemAvailable:    4100 kB\n", "MemAvailable"), Some(4));
        assert_eq!(mebibytes("MemTotal: 9 kB\n", "MemAvailable"), None);
        assert_eq!(machine.cpu_name, "A CPU");
        assert_eq!(machine.cpu_features, ["fpu".to_owned(), "sse2".to_owned()].into());
    }
}
