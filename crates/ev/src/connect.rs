//! Which pool, and how it is reached: the local socket, a pool given on the command line, or the remembered one.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ev_api::client::{Client, Target};
use ev_api::token::AdminToken;
use serde::{Deserialize, Serialize};

use crate::args::{Global, api_address};
use crate::exit::{Failure, NO_CONNECTION};

/// The API's port where none is given.
pub const API_PORT: u16 = 7411;

/// `~/.config/evenkeel/pool.toml`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Remembered {
    pub name: String,
    /// API addresses of the pool's hosts.
    pub addresses: Vec<SocketAddr>,
    pub token: String,
}

fn remembered_path() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))?;
    Some(base.join("evenkeel/pool.toml"))
}

/// Writes the file, readable only by its owner.
pub fn remember(pool: &Remembered) -> Result<PathBuf, Failure> {
    let path = remembered_path().ok_or_else(|| Failure::local("cannot remember the pool: HOME is not set"))?;
    write_private(&path, pool)
        .map_err(|error| Failure::local(format!("cannot remember the pool in {}: {error}", path.display())))?;
    Ok(path)
}

fn write_private(path: &Path, pool: &Remembered) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let text = toml::to_string(pool).map_err(std::io::Error::other)?;
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(new, path)
}

fn recall() -> Result<Option<Remembered>, Failure> {
    let Some(path) = remembered_path() else { return Ok(None) };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::local(format!("cannot read {}: {error}", path.display()))),
    };
    toml::from_str(&text).map(Some).map_err(|error| {
        Failure::local(format!("{} is damaged: {}", path.display(), error.message())).hint("run ev login again")
    })
}

/// An address and a token from the command line.
pub fn remote(address: &str, token: &str) -> Result<Target, Failure> {
    let address = api_address(address)
        .ok_or_else(|| Failure::usage(format!("{address:?} is not an address: give one such as 10.0.0.1")))?;
    Ok(Target::Remote { addresses: vec![address], token: parse_token(token)? })
}

fn parse_token(token: &str) -> Result<AdminToken, Failure> {
    token.parse().map_err(|error: ev_api::token::BadToken| Failure::usage(error.to_string()))
}

/// The client that the options and the machine's state call for.
pub fn client(global: &Global) -> Result<Client, Failure> {
    if let Some(address) = &global.pool {
        let token = match (&global.token, recall()?) {
            (Some(token), _) => token.clone(),
            (None, Some(remembered)) => remembered.token,
            (None, None) => {
                return Err(Failure::usage("--pool needs --token, or a pool remembered with ev login"));
            }
        };
        return Ok(Client::new(remote(address, &token)?));
    }
    if global.socket.exists() {
        return Ok(local(global));
    }
    if let Some(remembered) = recall()? {
        let token = parse_token(&remembered.token)?;
        return Ok(Client::new(Target::Remote { addresses: remembered.addresses, token }));
    }
    Err(Failure::Local {
        code: NO_CONNECTION,
        message: format!("no pool: there is no evd on this machine (no {})", global.socket.display()),
        hint: Some("start evd here, or name a pool with ev login or with --pool and --token".into()),
    })
}

/// A client of the local evd, for commands that are about this very host.
pub fn local(global: &Global) -> Client {
    Client::new(Target::Local(global.socket.clone()))
}
