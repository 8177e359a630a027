//! The page faults that a process had: each first write to a page since the last pass is one. So if there was none,
//! nothing was written to pages that had been looked at.
//!
//! One kind is not counted there: a guest's processor under KVM that needs a page back from swap may have it fetched, and made
//! writable, by a kernel thread (`async_pf_execute` in Linux). So where the processors run, it is certain on hosts without swap only.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Longest `/proc/PID/stat`, in bytes: 52 numbers and a name of 64 bytes.
const STAT_BYTES_MAX: usize = 2048;
/// Fields after the name, from 0: minor and major faults of all threads (proc(5): 10 and 12).
const MINOR_FIELD: usize = 7;
const MAJOR_FIELD: usize = 9;
/// Enough of `/proc/swaps` to see whether there is a line below the head.
const SWAPS_BYTES: usize = 512;

#[derive(Debug)]
pub(super) struct FaultCounter {
    stat: File,
    /// `None`: a kernel that can't swap.
    swaps: Option<File>,
}

impl FaultCounter {
    pub(super) fn of_process(pid: u32) -> io::Result<Self> {
        let swaps = match File::open("/proc/swaps") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            swaps => Some(swaps?),
        };
        Ok(Self { stat: File::open(format!("/proc/{pid}/stat"))?, swaps })
    }

    /// Whether this host has any swap now.
    pub(super) fn may_swap(&self) -> io::Result<bool> {
        let Some(swaps) = &self.swaps else { return Ok(false) };
        let mut bytes = [0; SWAPS_BYTES];
        let length = swaps.read_at(&mut bytes, 0)?;
        Ok(names_a_swap(bytes.get(..length).unwrap_or_default()))
    }

    pub(super) fn count(&self) -> io::Result<u64> {
        let mut bytes = [0; STAT_BYTES_MAX];
        let length = self.stat.read_at(&mut bytes, 0)?;
        let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
        parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

fn names_a_swap(swaps: &[u8]) -> bool {
    swaps.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count() > 1
}

fn parse(stat: &str) -> Option<u64> {
    // The name may hold anything, closing parentheses too.
    let (_, fields) = stat.rsplit_once(") ")?;
    let field = |index: usize| fields.split(' ').nth(index)?.parse::<u64>().ok();
    field(MINOR_FIELD)?.checked_add(field(MAJOR_FIELD)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_the_sum_of_both_kinds() {
        let stat = "17 (a) b) S 1 17 17 0 -1 4194560 1234 99 5 7 1 2 3 4 20 0 1 0 100";
        assert_eq!(parse(stat), Some(1239));
        assert_eq!(parse("17 (x) S 1"), None);
    }

    #[test]
    fn a_swap_is_a_line_below_the_head() {
        let head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert!(!names_a_swap(head.as_bytes()));
        assert!(names_a_swap(format!("{head}/dev/sda2  partition\t1951740\t0\t-2\n").as_bytes()));
    }

    #[test]
    fn a_fault_of_our_own_is_counted() {
        let counter = FaultCounter::of_process(std::process::id()).unwrap();
        let before = counter.count().unwrap();
        let memory = vec![1_u8; 64 << 20];
        assert!(counter.count().unwrap() > before, "{}", memory.len());
    }
}
