//! UEFI firmware (OVMF): where distributions put it, and each VM's own copy of its variables.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Where the code and the template of its variables may be: Debian and Ubuntu, Fedora and its relatives, Arch. The
/// variant without Secure Boot, in its 4 MB layout first: variables of one layout don't fit the code of the other.
const PLACES: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];

/// Firmware of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ovmf {
    pub code: PathBuf,
    pub variables_template: PathBuf,
}

impl Ovmf {
    /// The firmware whose variables are as large as `variables` (of an existing VM), else the first one.
    pub(crate) fn find(variables: &Path) -> Option<Self> {
        let wanted = fs::metadata(variables).ok().map(|metadata| metadata.len());
        let fits = |ovmf: &Self| {
            let length = fs::metadata(&ovmf.variables_template).map(|metadata| metadata.len()).ok();
            ovmf.code.is_file() && length.is_some() && wanted.is_none_or(|wanted| Some(wanted) == length)
        };
        PLACES.map(|(code, vars)| Self { code: code.into(), variables_template: vars.into() }).into_iter().find(fits)
    }

    /// Makes sure that `variables` exists, durably: a fresh copy of the template where it does not.
    pub(crate) fn ensure_variables(&self, variables: &Path) -> io::Result<()> {
        if variables.exists() {
            return Ok(());
        }
        let partial = variables.with_extension("fd.new");
        fs::copy(&self.variables_template, &partial)?;
        File::open(&partial)?.sync_all()?;
        fs::rename(&partial, variables)?;
        match variables.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}
