//! Whether guests run on the processor itself (KVM) or are emulated (TCG), decided by running something.

use std::fmt;

/// How guests are executed on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accelerator {
    /// On the processor.
    Kvm,
    /// Emulated: 10 to 50 times slower.
    Tcg {
        /// Why KVM is not used.
        reason: WhyNotKvm,
    },
}

/// Why KVM is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhyNotKvm {
    /// There is no device file.
    #[error("/dev/kvm does not exist: switch on virtualisation in the machine's firmware and load the kvm module")]
    NoDevice,
    /// The trial guest did not get to its end.
    #[error(
        "/dev/kvm exists, but a trial guest did not run on it ({0}): on a virtual machine, switch on nested \
         virtualisation on its host"
    )]
    TrialFailed(TrialFailure),
}

/// What became of the trial guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrialFailure {
    /// Still running after the limit.
    #[error("it did not end within {0} ms")]
    TimedOut(u128),
    /// Ended otherwise than by reporting success.
    #[allow(missing_docs)]
    #[error("QEMU ended with {status}: {log}")]
    Ended { status: String, log: String },
    /// QEMU could not be started at all.
    #[error("QEMU could not be started: {0}")]
    NotStarted(std::io::ErrorKind),
}

impl Accelerator {
    /// QEMU's name of it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg { .. } => "tcg",
        }
    }

    /// A sentence for people if guests are emulated.
    #[must_use]
    pub fn notice(&self) -> Option<String> {
        match self {
            Self::Kvm => None,
            Self::Tcg { reason } => Some(format!("guests are emulated (TCG) and slow: {reason}")),
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
