//! Library files that a VM needs, fetched from whichever host has them.

use std::time::Duration;

use ev_core::vm::LibraryFile;
use ev_wire::peer::{PeerRequest, PeerResponse};

use super::Shared;
use crate::library::LibraryError;

/// How long a host may take for one part.
const PART_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a file is not here yet.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(
        "no host that can be reached has {name}; upload it again (ev vm-create does) or bring the host back that has it"
    )]
    Nowhere { name: String },
    #[error(transparent)]
    Library(#[from] LibraryError),
}

/// Makes sure that the file is here.
///
/// # Errors
/// No host has it, or it can't be kept.
pub async fn ensure(shared: &Shared, file: &LibraryFile) -> Result<(), FetchError> {
    if shared.app.library.has(&file.blake3) {
        return Ok(());
    }
    let state = shared.member.state();
    for host in state.hosts().filter(|host| host.id != shared.member.host) {
        for address in ev_pool::membership::addresses(host) {
            match from(shared, address, file).await {
                Ok(true) => return Ok(()),
                Ok(false) => break,
                Err(FetchError::Library(error)) => return Err(error.into()),
                Err(FetchError::Nowhere { .. }) => {}
            }
        }
    }
    Err(FetchError::Nowhere { name: file.name.clone() })
}

/// `false`: that host does not have it.
async fn from(shared: &Shared, address: std::net::SocketAddr, file: &LibraryFile) -> Result<bool, FetchError> {
    let mut incoming = shared.app.library.receive(&file.blake3)?;
    let mut offset = 0;
    loop {
        let request = PeerRequest::LibraryRead { blake3: file.blake3.clone(), offset };
        let part = match shared.member.peers.call(address, None, request, PART_TIMEOUT).await {
            Ok(PeerResponse::LibraryPart(Some(part))) => part,
            Ok(PeerResponse::LibraryPart(None)) => return Ok(false),
            Ok(_) | Err(_) => return Err(FetchError::Nowhere { name: file.name.clone() }),
        };
        if part.is_empty() {
            break;
        }
        offset += u64::try_from(part.len()).unwrap_or(u64::MAX);
        tokio::task::block_in_place(|| incoming.write(&part))?;
    }
    tokio::task::block_in_place(|| incoming.finish())?;
    Ok(true)
}
