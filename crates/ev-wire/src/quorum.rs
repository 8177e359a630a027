//! How a pool takes a quorum server into its service, and dismisses it.
//!
//! The quorum server prints an [`Invitation`] (`ev-quorumd invite`). The pool's master connects with it: TLS with the
//! quorum server's own certificate, known by its fingerprint, and then these messages on the stream:
//!
//! ```text
//! master                                   quorum server
//!   | -- Enlist { secret, pool, … } ------->|  secret right and unused: makes a key
//!   |<------------------- Request { csr } --|
//!   |  issues a certificate                 |
//!   | -- Certificate { certificate } ------>|  saves all of it durably, starts the member
//!   |<--------------------------- Enlisted -|
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use ev_core::ids::{MemberId, PoolId};
use serde::{Deserialize, Serialize};

use crate::identity::Fingerprint;

/// Server name by which a client asks for the quorum server itself rather than for one of its pools.
pub const ENLIST_SERVER_NAME: &str = "enlist.evenkeel.invalid";

/// First message of the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enlist {
    /// The invitation's secret: proves that the quorum server's administrator wants this.
    pub secret: String,
    pub pool: PoolId,
    pub pool_name: String,
    /// The number that the quorum server gets in this pool.
    pub member: MemberId,
    /// The pool's certificate authority, PEM.
    pub authority_certificate: String,
}

/// All messages of the exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum QuorumMessage {
    Enlist(Enlist),
    /// A certificate request, PEM; the key stays with the quorum server.
    Request {
        request: String,
    },
    /// The certificate, PEM.
    Certificate {
        certificate: String,
    },
    Enlisted,
    /// The text says why and what to do.
    Refused(String),
}

/// What `ev-quorumd invite` prints and `ev quorum-add` takes: `address/fingerprint/secret`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    pub address: SocketAddr,
    /// Of the quorum server's own certificate.
    pub fingerprint: Fingerprint,
    /// Good for one use.
    pub secret: String,
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.address, self.fingerprint, self.secret)
    }
}

/// A text that is not an invitation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an invitation: run `ev-quorumd invite` on the quorum server and use the whole line that it prints")]
pub struct BadInvitation;

impl FromStr for Invitation {
    type Err = BadInvitation;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.trim().split('/');
        let (Some(address), Some(fingerprint), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BadInvitation);
        };
        if secret.is_empty() {
            return Err(BadInvitation);
        }
        Ok(Self {
            address: address.parse().map_err(|_| BadInvitation)?,
            fingerprint: fingerprint.parse().map_err(|_| BadInvitation)?,
            secret: secret.to_owned(),
        })
    }
}
