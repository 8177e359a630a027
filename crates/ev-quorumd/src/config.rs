//! The configuration file.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

/// Where the file is unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/evenkeel/quorumd.toml";

/// What can be set.
///
/// ```toml
/// address = "192.0.2.9"                     # where pools reach this machine
/// port = 7412
/// state_dir = "/var/lib/evenkeel-quorumd"
/// name = "third"                            # for people; the host's name if absent
/// socket = "/run/evenkeel-quorumd.sock"     # for `ev-quorumd status`; in the state folder if absent
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub address: IpAddr,
    #[serde(default = "default_port")]
    pub port: u16,
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    socket: Option<PathBuf>,
}

fn default_port() -> u16 {
    7_412
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/evenkeel-quorumd")
}

impl Config {
    /// Read the file.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("reading the configuration {} failed; it needs at least: address = \"…\"", path.display())
        })?;
        Self::parse(&text).with_context(|| format!("the configuration {} can't be used", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        anyhow::ensure!(
            !config.address.is_unspecified(),
            "address has to be the one that pools reach this machine at, not {}",
            config.address
        );
        Ok(config)
    }

    /// Where pools reach this machine.
    pub fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Where `ev-quorumd status` asks.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.state_dir.join("admin.sock"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_configuration_is_an_address() {
        let config = Config::parse("address = '192.0.2.9'").unwrap();
        assert_eq!(config.listen(), "192.0.2.9:7412".parse().unwrap());
        assert_eq!(config.socket(), Path::new("/var/lib/evenkeel-quorumd/admin.sock"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("", "address"),
            ("address = '0.0.0.0'", "not 0.0.0.0"),
            ("address = '192.0.2.9'\nprot = 1", "prot"),
            ("address = 'third'", "IP address"),
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
