//! Certificates of a pool of two hosts that exists for this program only.

use std::path::Path;

use anyhow::{Context, Result};
use ev_core::ids::{HostId, PoolId};
use ev_wire::identity::{self, Identity, Peer, Role};
use uuid::Uuid;

/// Makes an authority and the papers of both hosts.
pub fn make(folder: &Path) -> Result<()> {
    let authority = identity::create_authority(PoolId(Uuid::from_u128(3)))?;
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("authority.pem"), authority.certificate_pem())?;
    for member in [super::COORDINATOR, super::REPLICA] {
        let key = identity::new_key_and_request()?;
        let peer = Peer { pool: authority.pool(), role: Role::Host, member };
        let certificate = identity::sign_request(&authority, &key.request_pem, peer, &format!("host-{member}"), &[])?;
        std::fs::write(folder.join(format!("{member}.pem")), certificate)?;
        std::fs::write(folder.join(format!("{member}.key")), key.key_pem)?;
    }
    Ok(())
}

/// One host's papers.
pub fn load(folder: &Path, host: HostId) -> Result<Identity> {
    let path = |name: String| folder.join(name);
    Identity::load(&path(format!("{host}.pem")), &path(format!("{host}.key")), &folder.join("authority.pem"))
        .context("loading the papers; make them with `mirror-disk papers`")
}
