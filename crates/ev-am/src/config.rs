//! The configuration file (`am.json`) as `evd` wrote it: read, checked, and refused with words that say what to do.

use std::path::{Path, PathBuf};

use ev_wire::am::AmConfig;

/// Largest configuration file that is read, in bytes. A longer one is refused: no VM comes near it.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// Newest version of the file that this program understands.
const VERSION: u32 = 1;

/// Why the configuration could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "cannot read the configuration {path}: {source}. evd writes it; start this program through evd, or give --config the file in the VM's state folder"
    )]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "the configuration {path} has {bytes} bytes, more than the {CONFIG_BYTES_MAX} that are read. Restart evd, which writes it anew"
    )]
    TooLong { path: PathBuf, bytes: u64 },
    #[error("the configuration {path} is not understood: {source}. Restart evd, which writes it anew")]
    Syntax { path: PathBuf, source: serde_json::Error },
    #[error(
        "the configuration {path} has version {found}; this program knows versions up to {VERSION}. Upgrade ev-am on this host"
    )]
    Version { path: PathBuf, found: u32 },
    #[error("the configuration {path} is wrong: {fault}. Restart evd, which writes it anew")]
    Fault { path: PathBuf, fault: Fault },
}

/// What does not fit together in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("`vm_id` and `vm.id` name different VMs")]
    OtherVm,
    #[error("`{0}` is not an absolute path")]
    RelativePath(&'static str),
    #[error("`members` is empty, so that no pool master can be found")]
    NoMembers,
    #[error("there is a partner host but `link_listen` or `link_partner` is empty")]
    NoLinks,
    #[error("the partner is this host itself")]
    PartnerIsSelf,
    #[error("`times.report_interval_ms` must be above 0 and at most a third of `times.lease_ms`")]
    ReportInterval,
    #[error("`times.partner_timeout_ms` must be above 0")]
    PartnerTimeout,
}

/// Reads and checks the file at `path`.
pub fn load(path: &Path) -> Result<AmConfig, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(read)?.len();
    if bytes > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLong { path: path.to_owned(), bytes });
    }
    let text = std::fs::read(path).map_err(read)?;
    parse(path, &text)
}

fn parse(path: &Path, text: &[u8]) -> Result<AmConfig, ConfigError> {
    let path = || path.to_owned();
    // The version first: a newer file may lack fields that this program asks for, and "upgrade" is the better answer.
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let version: Version =
        serde_json::from_slice(text).map_err(|source| ConfigError::Syntax { path: path(), source })?;
    if version.version == 0 || version.version > VERSION {
        return Err(ConfigError::Version { path: path(), found: version.version });
    }
    let config: AmConfig =
        serde_json::from_slice(text).map_err(|source| ConfigError::Syntax { path: path(), source })?;
    check(&config).map_err(|fault| ConfigError::Fault { path: path(), fault })?;
    Ok(config)
}

fn check(config: &AmConfig) -> Result<(), Fault> {
    if config.vm.id != config.vm_id {
        return Err(Fault::OtherVm);
    }
    let folders = [
        ("state_dir", &config.state_dir),
        ("run_dir", &config.run_dir),
        ("library_dir", &config.library_dir),
        ("certificate", &config.certificate),
        ("key", &config.key),
        ("authority_certificate", &config.authority_certificate),
        ("qemu", &config.qemu),
        ("turns.folder", &config.turns.folder),
    ];
    if let Some((name, _)) = folders.iter().find(|(_, path)| !path.is_absolute()) {
        return Err(Fault::RelativePath(name));
    }
    if config.members.is_empty() {
        return Err(Fault::NoMembers);
    }
    if config.partner == Some(config.host) {
        return Err(Fault::PartnerIsSelf);
    }
    if config.partner.is_some() && (config.link_listen.is_empty() || config.link_partner.is_empty()) {
        return Err(Fault::NoLinks);
    }
    let times = config.times;
    if times.report_interval_ms == 0 || times.report_interval_ms.saturating_mul(3) > times.lease_ms {
        return Err(Fault::ReportInterval);
    }
    if times.partner_timeout_ms == 0 {
        return Err(Fault::PartnerTimeout);
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use ev_core::ids::{MemberId, PoolId, VmId};
    use ev_core::vm::{Boot, Desired, Firmware, Level, Vm, VmConfig};
    use ev_wire::am::{MemberEndpoint, Times, Turns};

    pub fn sample() -> AmConfig {
        let id = VmId("6f2b7a52-0000-4000-8000-000000000001".parse().unwrap());
        let vm = Vm {
            id,
            name: "web01".into(),
            number: 1,
            config: VmConfig {
                vcpus: 1,
                memory_mib: 64,
                firmware: Firmware::Bios,
                machine: "pc-q35-7.2".into(),
                cpu_model: "qemu64".into(),
                boot: Boot::Disk,
                disks: Vec::new(),
                nics: Vec::new(),
                start_order: 0,
            },
            level: Level::Component,
            hosts: [MemberId(1), MemberId(2)].into(),
            desired: Desired::Running,
            authority: ev_core::authority::Authority::default(),
        };
        AmConfig {
            version: 1,
            pool: PoolId("6f2b7a52-0000-4000-8000-0000000000aa".parse().unwrap()),
            host: MemberId(1),
            vm,
            vm_id: id,
            state_dir: "/var/lib/evenkeel/vms/x".into(),
            run_dir: "/run/evenkeel/vms/x".into(),
            library_dir: "/var/lib/evenkeel/library".into(),
            members: vec![MemberEndpoint { member: MemberId(1), address: "127.0.0.1:7001".parse().unwrap() }],
            link_listen: vec!["127.0.0.1:7101".parse().unwrap()],
            link_partner: vec!["127.0.0.2:7101".parse().unwrap()],
            partner: Some(MemberId(2)),
            certificate: "/etc/evenkeel/host.pem".into(),
            key: "/etc/evenkeel/host.key".into(),
            authority_certificate: "/etc/evenkeel/ca.pem".into(),
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            qemu_user: "nobody".into(),
            qemu_data_dir: None,
            times: Times::default(),
            copy_rate_limit: None,
            turns: Turns { folder: "/run/evenkeel/turns".into(), at_once: 1 },
            blackout_ms: 300,
        }
    }

    fn parse_value(value: &serde_json::Value) -> Result<AmConfig, ConfigError> {
        parse(Path::new("/x/am.json"), &serde_json::to_vec(value).unwrap())
    }

    #[test]
    fn a_good_file_is_taken_as_written() {
        let value = serde_json::to_value(sample()).unwrap();
        assert_eq!(parse_value(&value).unwrap(), sample());
    }

    #[test]
    fn a_newer_version_asks_for_an_upgrade_even_if_the_rest_is_unknown() {
        let value = serde_json::json!({"version": 2, "something": "else"});
        assert!(matches!(parse_value(&value), Err(ConfigError::Version { found: 2, .. })));
    }

    #[test]
    fn each_fault_is_named() {
        let faulty = |change: fn(&mut AmConfig)| {
            let mut config = sample();
            change(&mut config);
            check(&config).unwrap_err()
        };
        assert_eq!(faulty(|c| c.vm_id.0 = uuid::Uuid::nil()), Fault::OtherVm);
        assert_eq!(faulty(|c| c.run_dir = "run".into()), Fault::RelativePath("run_dir"));
        assert_eq!(faulty(|c| c.members.clear()), Fault::NoMembers);
        assert_eq!(faulty(|c| c.link_listen.clear()), Fault::NoLinks);
        assert_eq!(faulty(|c| c.partner = Some(c.host)), Fault::PartnerIsSelf);
        assert_eq!(faulty(|c| c.times.report_interval_ms = 1_000), Fault::ReportInterval);
        assert_eq!(faulty(|c| c.times.partner_timeout_ms = 0), Fault::PartnerTimeout);
    }

    #[test]
    fn rubbish_and_a_missing_file_are_errors_that_say_what_to_do() {
        let error = parse(Path::new("/x/am.json"), b"\xff{").unwrap_err().to_string();
        assert!(error.contains("/x/am.json") && error.contains("Restart evd"), "{error}");
        let error = load(Path::new("/nonexistent/am.json")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/am.json") && error.contains("evd"), "{error}");
    }
}
