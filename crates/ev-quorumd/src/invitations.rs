//! Invitations: a secret that works once, kept as a file named by its hash in the state folder.
//!
//! `ev-quorumd invite` makes the file, and the daemon takes it away when the secret is used; so the two need not talk.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use ev_wire::identity::{Fingerprint, SelfSigned, self_signed};
use ev_wire::quorum::{ENLIST_SERVER_NAME, Invitation};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use uuid::Uuid;

use crate::config::Config;
use crate::files;

/// How long an invitation may be used.
const VALID: Duration = Duration::from_secs(60 * 60);
/// Most invitations at once; over that the expired have to go, or the state folder is cleared by hand.
const INVITATIONS_MAX: usize = 64;

/// The quorum server's own certificate and key, made at the first use.
pub fn own_certificate(config: &Config) -> anyhow::Result<SelfSigned> {
    files::make_folder(&config.state_dir)?;
    let (certificate, key) = (config.state_dir.join("server.crt"), config.state_dir.join("server.key"));
    match (std::fs::read_to_string(&certificate), std::fs::read_to_string(&key)) {
        (Ok(certificate_pem), Ok(key_pem)) => Ok(SelfSigned { certificate_pem, key_pem }),
        // The certificate is written last: without it nothing was ever told to anyone.
        (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => {
            let made = self_signed(ENLIST_SERVER_NAME)?;
            files::write(&key, &made.key_pem)?;
            files::write(&certificate, &made.certificate_pem)?;
            Ok(made)
        }
        (Err(error), _) => Err(error).with_context(|| format!("reading {} failed", certificate.display())),
        (_, Err(error)) => Err(error).with_context(|| format!("reading {} failed", key.display())),
    }
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("invitations")
}

fn file_of(state_dir: &Path, secret: &str) -> PathBuf {
    folder(state_dir).join(blake3::hash(secret.as_bytes()).to_hex().as_str())
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Make an invitation.
pub fn invite(config: &Config) -> anyhow::Result<Invitation> {
    let own = own_certificate(config)?;
    let certificate = CertificateDer::from_pem_slice(own.certificate_pem.as_bytes())
        .context("the quorum server's own certificate is damaged: remove server.crt and server.key and start anew")?;
    let folder = folder(&config.state_dir);
    files::make_folder(&folder)?;
    drop_expired(&folder)?;
    anyhow::ensure!(
        std::fs::read_dir(&folder)?.count() < INVITATIONS_MAX,
        "there are {INVITATIONS_MAX} unused invitations in {}: use or remove some",
        folder.display()
    );
    let secret = Uuid::new_v4().simple().to_string() + &Uuid::new_v4().simple().to_string();
    let expires = unix_s(SystemTime::now() + VALID);
    files::write(&file_of(&config.state_dir, &secret), &expires.to_string())?;
    Ok(Invitation { address: config.listen(), fingerprint: Fingerprint::of(&certificate), secret })
}

fn expires(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.parse().ok()
}

/// One that can't be read may be half written by another `invite`, and is left alone while it is young.
fn drop_expired(folder: &Path) -> anyhow::Result<()> {
    let now = unix_s(SystemTime::now());
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if expires(&path).or_else(|| written(&path)).is_none_or(|expires| expires > now) {
            continue;
        }
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            // Used at this moment.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("removing {} failed", path.display())),
        }
    }
    Ok(())
}

/// When a file is as old as an invitation may become; `None`: it is gone.
fn written(path: &Path) -> Option<u64> {
    Some(unix_s(std::fs::metadata(path).ok()?.modified().ok()? + VALID))
}

/// Use a secret up. Whether it was good.
pub fn redeem(state_dir: &Path, secret: &str) -> bool {
    let path = file_of(state_dir, secret);
    let good = expires(&path).is_some_and(|expires| unix_s(SystemTime::now()) < expires);
    // Of two that come with the same secret only one removes the file.
    std::fs::remove_file(&path).is_ok() && good
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_is_out_of_date_is_dropped_and_what_is_being_written_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let now = unix_s(SystemTime::now());
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        put("good", &(now + 60).to_string());
        put("expired", &(now - 60).to_string());
        put("half.new", "");
        put("left.new", "");
        let long_ago = SystemTime::now() - VALID - Duration::from_secs(60);
        File::options().write(true).open(folder.path().join("left.new")).unwrap().set_modified(long_ago).unwrap();
        drop_expired(folder.path()).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["good", "half.new"]);
    }
}
