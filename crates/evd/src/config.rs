//! `evd.toml`: what a host's daemon must know before it belongs to a pool. Everything else lives in the pool state.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where the configuration is looked for when `--config` is not given.
pub const DEFAULT_PATH: &str = "/etc/evenkeel/evd.toml";
/// HTTPS API.
pub const API_PORT: u16 = 7411;
/// Raft, reports of AMs, library files (mutual TLS).
pub const PEER_PORT: u16 = 7412;
/// Heartbeats (UDP).
pub const HEARTBEAT_PORT: u16 = 7413;
/// The AMs of VM number n listen for each other on this plus n.
pub const LINK_PORT_BASE: u16 = 7500;
/// Most private links of a host.
pub const PRIVATE_ADDRESSES_MAX: usize = 4;
/// Longest host name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The host's name in the pool; the machine's host name if absent.
    #[serde(default = "machine_name")]
    pub name: String,
    /// Address on the management network: API, consensus, heartbeats; also the last path for mirror traffic.
    pub management_address: IpAddr,
    /// Addresses on the private links to the other hosts, the preferred one first.
    #[serde(default)]
    pub private_addresses: Vec<IpAddr>,
    #[serde(default = "api_port")]
    pub api_port: u16,
    #[serde(default = "peer_port")]
    pub peer_port: u16,
    #[serde(default = "heartbeat_port")]
    pub heartbeat_port: u16,
    #[serde(default = "link_port_base")]
    pub link_port_base: u16,
    /// Durable state: identity, pool state, replicas, library.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    /// Sockets and pid files; gone after a reboot.
    #[serde(default = "run_dir")]
    pub run_dir: PathBuf,
    /// The QEMU program.
    #[serde(default = "qemu")]
    pub qemu: PathBuf,
    /// The user that guests run as.
    #[serde(default = "qemu_user")]
    pub qemu_user: String,
    /// Data folder of QEMU (`-L`), if not the one it was built with.
    #[serde(default)]
    pub qemu_data_dir: Option<PathBuf>,
    /// The program of the Availability Manager; next to `evd` if absent.
    #[serde(default)]
    pub am_program: Option<PathBuf>,
    /// How this host carries each pool network.
    #[serde(default)]
    pub networks: BTreeMap<String, NetworkConfig>,
}

/// How this host carries one pool network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Name of the Linux bridge; the pool's name for it if absent.
    #[serde(default)]
    pub bridge: Option<String>,
    /// Interface to the world outside that is put into the bridge.
    #[serde(default)]
    pub uplink: Option<String>,
}

fn machine_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "host".to_owned(), |name| name.trim().to_owned())
}
fn api_port() -> u16 {
    API_PORT
}
fn peer_port() -> u16 {
    PEER_PORT
}
fn heartbeat_port() -> u16 {
    HEARTBEAT_PORT
}
fn link_port_base() -> u16 {
    LINK_PORT_BASE
}
fn state_dir() -> PathBuf {
    PathBuf::from("/var/lib/evenkeel")
}
fn run_dir() -> PathBuf {
    PathBuf::from("/run/evenkeel")
}
fn qemu() -> PathBuf {
    PathBuf::from("/usr/bin/qemu-system-x86_64")
}
fn qemu_user() -> String {
    "evenkeel".to_owned()
}

/// Why a configuration file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}. Create it, with at least management_address in it", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{} is not a valid configuration: {source}", path.display())]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
    #[error(
        "the name {name:?} cannot be used: give a name of at most {NAME_BYTES_MAX} letters, digits, dots and hyphens"
    )]
    BadName { name: String },
    #[error(
        "management_address {0} is an address that other hosts cannot reach: give this host's own address on the management network"
    )]
    BadManagementAddress(IpAddr),
    #[error("{0} private addresses are given: at most {PRIVATE_ADDRESSES_MAX} are used. Remove some")]
    TooManyPrivateAddresses(usize),
    #[error("two of the ports are the same ({0}): give each its own")]
    SamePort(u16),
    #[error("{key} is a relative path: give an absolute one")]
    RelativePath { key: &'static str },
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// The file can't be read, is not TOML of this shape, or has a value that can't work.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let name_fits = (1..=NAME_BYTES_MAX).contains(&self.name.len())
            && self.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
            && self.name.starts_with(|first: char| first.is_ascii_alphanumeric());
        if !name_fits {
            return Err(ConfigError::BadName { name: self.name.clone() });
        }
        if self.management_address.is_unspecified() || self.management_address.is_multicast() {
            return Err(ConfigError::BadManagementAddress(self.management_address));
        }
        if self.private_addresses.len() > PRIVATE_ADDRESSES_MAX {
            return Err(ConfigError::TooManyPrivateAddresses(self.private_addresses.len()));
        }
        if self.api_port == self.peer_port {
            return Err(ConfigError::SamePort(self.api_port));
        }
        if !self.state_dir.is_absolute() {
            return Err(ConfigError::RelativePath { key: "state_dir" });
        }
        if !self.run_dir.is_absolute() {
            return Err(ConfigError::RelativePath { key: "run_dir" });
        }
        Ok(())
    }

    /// Where the HTTPS API listens.
    #[must_use]
    pub fn api_address(&self) -> SocketAddr {
        SocketAddr::new(self.management_address, self.api_port)
    }

    /// Where the peer server listens.
    #[must_use]
    pub fn peer_address(&self) -> SocketAddr {
        SocketAddr::new(self.management_address, self.peer_port)
    }

    /// The administrator's local socket.
    #[must_use]
    pub fn local_socket(&self) -> PathBuf {
        self.run_dir.join("evd.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn an_address_is_enough() {
        let config = parse("management_address = '10.0.0.1'").unwrap();
        assert_eq!(config.api_address().to_string(), "10.0.0.1:7411");
        assert_eq!(config.state_dir, Path::new("/var/lib/evenkeel"));
    }

    #[test]
    fn networks_and_links_are_read() {
        let config = parse(
            "name = 'a'\nmanagement_address = '10.0.0.1'\nprivate_addresses = ['10.1.0.1', '10.2.0.1']\n\
             [networks.vm]\nbridge = 'br-vm'\nuplink = 'eth3'\n",
        )
        .unwrap();
        assert_eq!(config.private_addresses.len(), 2);
        assert_eq!(config.networks["vm"].bridge.as_deref(), Some("br-vm"));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (text, part) in [
            ("", "management_address"),
            ("management_address = 'x'", "management_address"),
            ("management_address = '0.0.0.0'\nname = 'a'", "cannot reach"),
            ("management_address = '10.0.0.1'\nname = 'a b'", "cannot be used"),
            ("management_address = '10.0.0.1'\nname = 'a'\nspeed = 1", "unknown field"),
            ("management_address = '10.0.0.1'\nname = 'a'\napi_port = 7412", "same"),
            ("management_address = '10.0.0.1'\nname = 'a'\nstate_dir = 'x'", "absolute"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(part), "{text:?}: {message}");
        }
    }
}
