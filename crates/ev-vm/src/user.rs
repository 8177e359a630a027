//! The unprivileged user that QEMU runs as.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Gid, Uid};

/// The user, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub uid: Uid,
    pub gid: Gid,
    /// Supplementary groups: the one that may open `/dev/kvm`, and no other.
    pub groups: Vec<Gid>,
}

/// Why a user can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum UserError {
    #[error(
        "there is no user {name} for QEMU to run as; create it (adduser --system --group {name}) or configure another one"
    )]
    Unknown { name: String },
    #[error("QEMU must not run as {name}, which is root; configure an unprivileged user")]
    Root { name: String },
}

impl User {
    /// Looks `name` up.
    pub(crate) fn find(name: &str) -> Result<Self, UserError> {
        let user = nix::unistd::User::from_name(name)
            .ok()
            .flatten()
            .ok_or_else(|| UserError::Unknown { name: name.to_owned() })?;
        if user.uid.is_root() {
            return Err(UserError::Root { name: name.to_owned() });
        }
        let groups = kvm_group(Path::new("/dev/kvm")).into_iter().collect();
        Ok(Self { uid: Uid::from_raw(user.uid.as_raw()), gid: Gid::from_raw(user.gid.as_raw()), groups })
    }

    /// Whether this user, with its groups, may read and write the device.
    pub(crate) fn may_use(&self, device: &Path) -> bool {
        let Ok(metadata) = std::fs::metadata(device) else { return false };
        let group = Gid::from_raw(metadata.gid());
        let needed = if metadata.uid() == self.uid.as_raw() {
            0o600
        } else if group == self.gid || self.groups.contains(&group) {
            0o060
        } else {
            0o006
        };
        metadata.mode() & needed == needed
    }
}

/// The group that may read and write `device`, if one other than root's does.
fn kvm_group(device: &Path) -> Option<Gid> {
    const GROUP_READ_WRITE: u32 = 0o060;
    let metadata = std::fs::metadata(device).ok()?;
    let usable = metadata.mode() & GROUP_READ_WRITE == GROUP_READ_WRITE && metadata.gid() != 0;
    usable.then(|| Gid::from_raw(metadata.gid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_found_and_root_refused() {
        assert_ne!(User::find("nobody").unwrap().uid, Uid::ROOT);
        assert!(matches!(User::find("root"), Err(UserError::Root { .. })));
        assert!(matches!(User::find("no-such-user-here"), Err(UserError::Unknown { .. })));
    }
}
