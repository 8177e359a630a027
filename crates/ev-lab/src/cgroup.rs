//! Control groups: every process of a machine is in the machine's own, so that all of them can be stopped, frozen and
//! killed at once, and none that is not of the lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::LabError;
use crate::tool::wait_until;

/// How long the kernel may take to freeze or end all processes of a machine.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// The root of the version 2 hierarchy (`/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid machines).
pub fn find_root() -> Result<PathBuf, LabError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(path).map_err(LabError::file("read", path))?;
    parse_root(&mounts).ok_or(LabError::NoCgroup2)
}

/// The mount point of type `cgroup2` in the text of `mountinfo` (proc(5)).
fn parse_root(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_cgroup2 = after.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| before.split(' ').nth(4).map(PathBuf::from)).flatten()
    })
}

/// One machine's control group.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub fn new(root: &Path, lab: &str, node: &str) -> Self {
        Self { path: root.join(lab).join(node) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn create(&self) -> Result<(), LabError> {
        fs::create_dir_all(&self.path).map_err(LabError::file("make the control group", &self.path))
    }

    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    fn write(&self, file: &str, text: &str) -> Result<(), LabError> {
        let path = self.path.join(file);
        fs::write(&path, text).map_err(LabError::file("write", path))
    }

    /// A flag of `cgroup.events`; false when the group is gone.
    fn event(&self, name: &str) -> bool {
        let text = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        text.lines().any(|line| line.split_once(' ') == Some((name, "1")))
    }

    pub fn freeze(&self) -> Result<(), LabError> {
        self.write("cgroup.freeze", "1")?;
        // A group without processes never counts as frozen by an event, but as empty.
        wait_until("all processes to freeze", SETTLE_LIMIT, || self.event("frozen") || !self.event("populated"))
    }

    pub fn thaw(&self) -> Result<(), LabError> {
        self.write("cgroup.freeze", "0")
    }

    pub fn is_frozen(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    }

    /// SIGKILL to every process at once, whether frozen or not.
    pub fn kill(&self) -> Result<(), LabError> {
        self.write("cgroup.kill", "1")
    }

    pub fn wait_empty(&self) -> Result<(), LabError> {
        wait_until("all processes to end", SETTLE_LIMIT, || !self.event("populated"))
    }

    pub fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Removes the empty group, and the lab's if this was the last.
    pub fn remove(&self) -> Result<(), LabError> {
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(LabError::File { action: "remove", path: self.path.clone(), cause }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_version_2_root_among_others() {
        let hybrid = "25 1 0:21 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      30 25 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                      42 25 0:38 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_root(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(parse_root("25 1 0:21 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
